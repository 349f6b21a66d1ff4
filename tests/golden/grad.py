"""Gradients with respect to a picture, by autograd in float64, on the tiny SD 1.x model: python tests/golden/grad.py

(torch 2.15, diffusers 0.42.1) writes tests/golden/data/grad.safetensors, of golden.safetensors' unet_square_x and text, with
lora-peft and lora-diffusers (what they add to the UNet). Maps are of the attentions at half the side of the picture, 4 by 4,
and means of so many layers as metadata has, their heads and rows.

    weight                 [2, 8, 8, 4]
    dx, dx_lora            gradients of sum(weight * output): plain; with lora-peft, and half of lora-diffusers
    clora_maps             [3, 4, 4, 32], CLoRA: plain, with lora-peft, with lora-diffusers; rows of text 1 (unconditional)
                           and 0, of x's row 0
    clora_loss, clora_dz   its contrastive loss, and the gradient
    clora_cond_loss, _dz   the same where row 0 of text alone is in the maps
    composer_out           LoRA-Composer: the output with regions' own texts and adapters (REGIONS) injected and isolated
    composer_maps          [2, 4, 4, 32], what all places attend to in a region's text
    composer_self          [16, 16], what places (rows) attend to of each other
    composer_loss          [4]: all, enhancement, fill, region
    composer_dz, composer_ce_dz, composer_fill_dz, composer_region_dz
"""
import copy
import functools
import math
import os

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

HERE = os.path.dirname(os.path.abspath(__file__)) + "/data/"
SIDE = 4
GROUPS = ([3], [3, 4], [3]), ([7], [7], [7, 8])  # tokens by class and variant
REGIONS = (("peft", 1, (.1, 0, 1, .5), (3, 4)),  # adapter, row of text, box (top, left, bottom, right), trigger tokens
           ("diffusers", 0, (0, .5, .9, 1), (7,)))


def deltas(file, scale, up, down, site):
    """What an adapter adds to weights, by layer of the UNet."""
    t, out = {k: v.double() for k, v in load_file(HERE + file).items()}, {}
    for name in (k[:-len(up)] for k in t if k.endswith(up) and "text_encoder" not in k):
        a, b = t[name + down], t[name + up]
        out[site(name)] = scale * (b.flatten(1) @ a.flatten(1)).unflatten(1, a.shape[1:])
    return out


def old_site(name):
    block, proj = name.rsplit(".processor.", 1)
    return f"{block}.{proj.removesuffix('_lora')}".replace(".to_out", ".to_out.0")


def merged(unet, *some):
    """A copy of the UNet with (deltas, strength) in its weights."""
    unet = copy.deepcopy(unet)
    for delta, strength in some:
        for site, d in delta.items():
            unet.get_submodule(site).weight.data += strength * d
    return unet


def box(edges, h, w):
    """[h, w], 1 inside."""
    top, left, bottom, right = edges
    inside = torch.zeros(h, w, dtype=torch.float64)
    inside[math.ceil(top * h):math.floor(bottom * h), math.ceil(left * w):math.floor(right * w)] = 1
    return inside


class Watch:
    """Attention written out, which keeps maps with SIDE: cross [row or region, head, place, token] and own [row, head,
    place, place]; with regions (deltas, text, box) these are injected and isolated."""

    def __init__(self, unet, regions=()):
        self.regions, self.cross, self.own, self.names = regions, [], [], []
        for name, m in unet.named_modules():
            if name.endswith(("attn1", "attn2")):
                m.processor = functools.partial(self.attention, name)

    def attention(self, name, attn, x, encoder_hidden_states=None, **_):
        side = round(x.shape[1] ** .5)
        inside = [box(edges, side, side).flatten() for _, _, edges in self.regions]
        heads = lambda y: y.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        q = heads(attn.to_q(x))

        def attend(context, hidden=None, delta={}):
            def linear(proj, y):
                m = attn.get_submodule(proj)
                return F.linear(y, m.weight + delta.get(f"{name}.{proj}", 0), m.bias)

            logits = q @ heads(linear("to_k", context)).mT * attn.scale
            p = (logits if hidden is None else logits.masked_fill(hidden, -math.inf)).softmax(-1)
            return p, linear("to_out.0", (p @ heads(linear("to_v", context))).transpose(1, 2).flatten(2))

        if encoder_hidden_states is None:
            hidden = torch.zeros(x.shape[1], x.shape[1], dtype=torch.bool)  # from queries, keys
            for n, here in enumerate(inside):
                other = sum(m for i, m in enumerate(inside) if i != n)
                hidden |= (here[:, None] > 0) & ((other > 0) & (here == 0))
            p, y = attend(x, hidden)
        else:
            p, y = attend(encoder_hidden_states)
            if self.regions:
                ps, ys = zip(*(attend(text, None, delta) for delta, text, _ in self.regions))
                count = sum(inside)
                some = sum(m[:, None] * o for m, o in zip(inside, ys)) / count.clamp(min=1)[:, None]
                p, y = torch.cat(ps), torch.where(count[:, None] > 0, some, y)
        if side == SIDE:
            (self.own if encoder_hidden_states is None else self.cross).append(p)
            self.names.append(name)
        return y


def contrastive(maps, tau=.5):
    """CLoRA's loss of maps [variant, places, tokens]."""
    of = [(label, maps[v, :, t]) for label, group in enumerate(GROUPS) for v, tokens in enumerate(group) for t in tokens]
    e = torch.stack([(m - m.min()) / (m.max() - m.min()) for _, m in of])
    s = F.cosine_similarity(e[:, None], e[None], dim=-1) / tau
    label = torch.tensor([y for y, _ in of])
    same = label[:, None] == label
    rest = s.exp().masked_fill(same, 0).sum(1, keepdim=True)
    return -(s - (s.exp() + rest).log())[same & ~torch.eye(len(of), dtype=torch.bool)].mean()


def smooth(m):
    kernel = torch.tensor([[.0449, .1221, .0449], [.1221, .3319, .1221], [.0449, .1221, .0449]], dtype=torch.float64)
    return F.conv2d(F.pad(m[None, None], (1, 1, 1, 1), mode="reflect"), kernel[None, None])[0, 0]


def bump(edges):
    """[SIDE, SIDE]: 1 in the middle of a box (or as near as places are), less to its edges, 0 outside."""
    inside = box(edges, SIDE, SIDE)
    rows, columns = (inside.amax(k).bool() for k in (1, 0))
    u, v = (torch.linspace(-1, 1, int(k.sum()), dtype=torch.float64) for k in (rows, columns))
    g = (-(u[:, None] ** 2 + v ** 2) / 2).exp()
    inside[rows[:, None] & columns] = (g / g.max()).flatten()
    return inside


def composer(maps, own):
    """LoRA-Composer's loss of maps [region, places, tokens] and own [places, places], in its parts: [3]."""
    enhance = fill = region = 0
    for a, (_, _, edges, tokens) in zip(maps, REGIONS):
        inside = box(edges, SIDE, SIDE)
        k = max(1, int(.2 * inside.sum()))
        for t in tokens:
            s = smooth(a[:, t].view(SIDE, SIDE)) * inside
            enhance += 8 * (1 - (s * bump(edges)).flatten().topk(k).values.mean()).clamp(min=0)
            fill += sum(2 * (s.amax(i) - inside.amax(i)).abs().mean() for i in (0, 1))
        here = inside.flatten() > 0
        region += 10 * own[here][:, ~here].flatten().topk(k).values.mean().clamp(min=0)
    return torch.stack([enhance, fill, region])


def gradient(name, loss, x):
    """Of loss(x), checked by differences along two directions."""
    x = x.clone().requires_grad_()
    dx, rand = torch.autograd.grad(loss(x), x)[0], torch.Generator().manual_seed(6)
    with torch.no_grad():
        for _ in range(2):
            d = torch.randn(x.shape, generator=rand, dtype=torch.float64)
            want, got = ((loss(x + 1e-5 * d) - loss(x - 1e-5 * d)) / 2e-5).item(), (dx * d).sum().item()
            print(f"{name}: {got:.9g}, by differences {want:.9g}, relative error {abs(got / want - 1):.1e}")
    return last(dx)


def last(x):
    """Channels last."""
    return x.permute(0, 2, 3, 1)


def main():
    torch.set_num_threads(1)
    unet = UNet2DConditionModel.from_pretrained(HERE + "tiny-sd1", subfolder="unet").double().eval().requires_grad_(False)
    adapters = {"peft": deltas("lora-peft.safetensors", 1.5, ".lora_B.weight", ".lora_A.weight", lambda k: k[5:]),
                "diffusers": deltas("lora-diffusers.safetensors", 1, ".up.weight", ".down.weight", old_site)}
    golden = load_file(HERE + "tiny-sd1/golden.safetensors")
    x, text = golden["unet_square_x"].permute(0, 3, 1, 2).double(), golden["text"].double()
    t = golden["unet_square_t"].long()
    z, out = x[:1], {"weight": torch.randn(2, 8, 8, 4, generator=torch.Generator().manual_seed(5))}

    for name, some in (("dx", ()), ("dx_lora", ((adapters["peft"], 1), (adapters["diffusers"], .5)))):
        with_some = merged(unet, *some)
        out[name] = gradient(name, lambda x: (out["weight"] * last(with_some(x, t, text).sample)).sum(), x)

    variants = [merged(unet, *some) for some in ((), ((adapters["peft"], 1),), ((adapters["diffusers"], 1),))]
    watches = [Watch(v) for v in variants]

    def clora_maps(z, rows):
        """[variant, places, tokens] of rows of the batch."""
        for v, w in zip(variants, watches):
            w.cross, w.own, w.names = [], [], []
            v(z.expand(2, -1, -1, -1), t[0], text.flip(0))
        return torch.stack([torch.stack(w.cross)[:, rows].mean((0, 1, 2)) for w in watches])

    for name, rows in (("clora", [0, 1]), ("clora_cond", [1])):
        loss = lambda z: contrastive(clora_maps(z, rows))
        out[name + "_loss"] = loss(z)[None]
        out[name + "_dz"] = gradient(name, loss, z)
    out["clora_maps"] = clora_maps(z, [0, 1]).view(3, SIDE, SIDE, -1)

    whole = merged(unet)
    watch = Watch(whole, [(adapters[name], text[row:row + 1], edges) for name, row, edges, _ in REGIONS])

    def composed(z):
        """The output, maps [region, places, tokens] and [places, places]."""
        watch.cross, watch.own, watch.names = [], [], []
        y = whole(z, t[0], text[:1]).sample
        return y, torch.stack(watch.cross).mean((0, 2)), torch.stack(watch.own).mean((0, 1, 2))

    y, maps, own = composed(z)
    parts = composer(maps, own)
    out |= {"composer_out": last(y), "composer_maps": maps.view(2, SIDE, SIDE, -1), "composer_self": own,
            "composer_loss": torch.cat([parts.sum()[None], parts])}
    for i, part in enumerate(("ce", "fill", "region")):
        out[f"composer_{part}_dz"] = gradient(f"composer_{part}", lambda z: composer(*composed(z)[1:])[i], z)
    out["composer_dz"] = gradient("composer", lambda z: composer(*composed(z)[1:]).sum(), z)
    assert watch.names == watches[0].names and len(watch.own) == len(watch.cross)
    for k, v in out.items():
        print(k, list(v.shape), v.flatten().tolist() if v.numel() < 5 else "")
    print(*watch.names, sep="\n")
    save_file({k: v.float().contiguous() for k, v in out.items()}, HERE + "grad.safetensors",
              {"layers": str(len(watch.cross))})


if __name__ == "__main__":
    main()
