"""Gates for adapters that share a picture: python gates.py MODEL ZOO OUT.safetensors --fingerprint F
[--objective superpose|pairs|margin|mask] [--steps N] [--without TERM …] [--seed N]

At a site with base output h and what adapter i adds to it, u_i, each [places, channels], become

    z_i = bias + base o n(h) + own o n(u_i) + cross o n(h) o n(u_i) + time s(t) + words w_i
    out = h + sum_i gain o sigmoid(z_i) o u_i

n: layer norm without scale, s: sines and cosines of t, w_i: how much the place attends to i's words rather than to the
others' (compose/maps.h). (AutoLoRA, arXiv 2508.02107; its norms' own scale and shift give nothing more, t and w are
ours.) What ships has bias and words alone, a number a site, and gain 1 / sigmoid(bias), so that one adapter alone comes in
whole: --without names what is left out. The vectors, one a channel
and site, are shared by all adapters; they begin where out is the plain sum. ZOO is a folder of zoo.py: adapters of its
train split, two at a time, beside each other as they were drawn when each was taught. What is learnt by:

    superpose  one pass is to give what superpose gives in three, base + (first - base) + (second - base), each an
             answer without noise of its own; of one adapter, what it gives alone
    pairs    the denoiser's own loss, through all of it: pictures of both, of one beside an adapter that is not meant,
             of one alone, and of neither
    margin   AutoLoRA's: pictures of one, which are to be denoised with its words, and not with the other's; the same
             noise for both, and a margin relative to the loss (its texts have one adapter's words: it teaches nothing of w)
    mask     no way back through the denoiser: at each site what comes in is to be what each adapter adds in its own
             half of the picture, and on its own words where texts arrive
"""
import argparse
import glob
import json
import os
import random
import time

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import styles
from adapters import parts
from common import pixels
from unet import noised
from world import NORMAL, PAIR, SIDE, World, article
from zoo import SITES, reshape, states

RANK, WAVES, BATCH, POOL, MARGIN = 16, 16, 8, 1200, 1.1
PARTS = "bias", "base", "own", "cross", "gain", "words"
MOST = 4.  # of |w|


def waves(t):
    """[n, WAVES] of times in [0, 1000)."""
    k = torch.arange(WAVES // 2) * torch.pi
    x = t[:, None].float() / 1000 * (k + torch.pi / 2)
    return torch.cat([x.sin(), x.cos()], 1)


def normed(x):
    return F.layer_norm(x, x.shape[-1:], eps=1e-5)


class Gates(torch.nn.Module):
    """The vectors of all sites; without: terms that stay 0, a gain that follows the bias, a
    bias and gain that stay as they begin (level), all channels alike."""

    def __init__(self, widths, without=()):
        super().__init__()
        self.without = without
        for k in PARTS:
            value = {"bias": 4., "gain": 1 / torch.tensor(4.).sigmoid().item()}.get(k, 0.)
            setattr(self, k, torch.nn.ParameterDict(
                {s.replace(".", ":"): torch.full((1 if "channels" in without else n,), value) for s, n in widths.items()}))
        self.time = torch.nn.ParameterDict({s.replace(".", ":"): torch.zeros(1 if "channels" in without else n, WAVES)
                                            for s, n in widths.items()})

    def forward(self, site, h, u, s, w=0):
        """h [n, places, c], u [n, adapters, places, c], s [n, WAVES], w [n, adapters, places, 1]: what the adapters add."""
        k = site.replace(".", ":")
        nh, nu = normed(h)[:, None], normed(u)
        z = self.bias[k]
        if "own" not in self.without:
            z = z + self.own[k] * nu
        if "base" not in self.without:
            z = z + self.base[k] * nh
        if "cross" not in self.without:
            z = z + self.cross[k] * nh * nu
        if "time" not in self.without:
            z = z + (s @ self.time[k].T)[:, None, None]
        if "words" not in self.without:
            z = z + self.words[k] * w
        return (self.level(k) * z.sigmoid() * u).sum(1)

    def level(self, k):
        """gain, or without it what makes a gate 1 where all else is 0: so one adapter alone comes in whole."""
        return 1 / self.bias[k].sigmoid() if "gain" in self.without else self.gain[k]

    def tensors(self, widths):
        """Of each site [PARTS and WAVES, channels], or [.., 1] where all channels are alike, float16."""
        out = {}
        for s, n in widths.items():
            k, n = s.replace(".", ":"), 1 if "channels" in self.without else n
            rows = [(self.level(k) if p == "gain" else getattr(self, p)[k]).detach().expand(n)[None] for p in PARTS]
            out["unet." + s] = torch.cat([*rows, self.time[k].detach().expand(n, WAVES).T]).half().contiguous()
        return out


class Zoo:
    """Adapters of a split that learnt something, factors padded to one rank, by kind of sites."""

    def __init__(self, folder, split):
        self.rows, self.at, self.up, self.down = [], {}, {}, {}
        kept = {}
        for file in sorted(glob.glob(os.path.join(folder, "*.json"))):
            mine = [r for r in json.load(open(file)) if r["split"] == split and r["learnt"]]
            tensors = load_file(file[:-5] + ".safetensors") if mine else {}
            for r in mine:
                own = {k[len(r["name"]) + 6:]: v for k, v in tensors.items() if k.startswith(r["name"] + ".")}
                for site in {k.rsplit(".", 2)[0] for k in own}:
                    kept.setdefault(site, {})[len(self.rows)] = [own[f"{site}.lora_{x}.weight"] for x in "BA"]
                self.rows.append(r)
        for site, some in kept.items():
            pad = [(F.pad(b.flatten(1), (0, RANK - b.shape[1])), F.pad(a, (0, 0) * (a.dim() - 1) + (0, RANK - a.shape[0])))
                   for b, a in some.values()]
            none = [torch.zeros_like(p) for p in pad[0]]
            self.at[site] = {i: k for k, i in enumerate(some)}  # -1, the last: none
            self.up[site] = torch.stack([p[0] for p in pad] + none[:1])
            self.down[site] = torch.stack([p[1] for p in pad] + none[1:])
        self.kinds = {k: [i for i, r in enumerate(self.rows) if r["sites"] == k] for k in SITES}

    def factors(self, site, some):
        """up [n, out, RANK] and down [n, RANK, ...] of adapters, -1: none."""
        k = [self.at[site].get(i, -1) for i in some]
        return self.up[site][k].float(), self.down[site][k].float()


class Together:
    """Adapters in a denoiser: rows of the batch have K each, side by side, through gates or summed as they are."""

    def __init__(self, unet, zoo, gates):
        self.zoo, self.gates, self.some, self.wave, self.ask, self.grid, self.watch = zoo, gates, None, None, None, None, None
        for site in zoo.at:
            unet.get_submodule(site).register_forward_hook(self.hook(site))
        for name, m in unet.named_modules():
            if name.startswith("up_blocks") and name.endswith("attn2"):
                m.processor = self.attention

    def put(self, some, t, grid=None):
        """some: [n][K] adapters; grid [n, K, side, side]: w, or None."""
        self.some, self.wave, self.grid = some, waves(t), grid

    def attention(self, attn, hidden_states, encoder_hidden_states, **_):
        """As it is; while watch is a list of a row's spans of tokens an adapter, maps go into seen."""
        q, k, v = (f(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for f, x in (
            (attn.to_q, hidden_states), (attn.to_k, encoder_hidden_states), (attn.to_v, encoder_hidden_states)))
        p = (q @ k.mT * attn.scale).softmax(-1)
        if self.watch:
            side = round(hidden_states.shape[1] ** .5)
            self.seen.append(torch.stack([torch.stack([p[i, :, :, a:b].sum(-1).mean(0).view(side, side) for a, b in spans])
                                          for i, spans in enumerate(self.watch)]))
        return attn.to_out[0]((p @ v).transpose(1, 2).flatten(2))

    @torch.no_grad()
    def look(self, unet, x, t, h, spans):
        """w [n, K, side, side] of what a pass with all adapters attends to; a row of None: nothing is divided there."""
        ask, self.ask = self.ask, lambda site, h, u, shape: u.sum(1)
        self.watch, self.seen = [s or [(1, 2)] * 2 for s in spans], []
        unet(x, t, h)
        self.watch, self.ask = None, ask
        side = max(m.shape[-1] for m in self.seen)
        total = weight = 0
        for m in self.seen:
            m = m / m.mean((2, 3), keepdim=True)
            d = m - 1
            apart = -(d[:, 0] * d[:, 1]).sum((1, 2)) / (d[:, 0] ** 2).sum((1, 2)).sqrt() / (d[:, 1] ** 2).sum((1, 2)).sqrt()
            apart = apart.nan_to_num().clamp(min=1e-3)[:, None, None, None] ** 2
            total, weight = total + apart * F.interpolate(m, (side, side), mode="bilinear"), weight + apart
        w = (total / weight).clamp(min=1e-6).log()
        w = (w - w.flip(1)).clamp(-MOST, MOST)
        for i, s in enumerate(spans):
            if not s:
                w[i] = 0
        return w

    def words(self, site, places):
        """w at a site's size; 0 where rows are no places of the picture."""
        if self.grid is None or site.endswith(("attn2.to_k", "attn2.to_v", "time_emb_proj")):
            return 0
        side = round(places ** .5)
        mode = "area" if side <= self.grid.shape[-1] else "bilinear"
        return F.interpolate(self.grid, (side, side), mode=mode).flatten(2)[..., None]

    def hook(self, site):
        def run(m, args, y):
            flat = [i for row in self.some for i in row] if self.some else []
            if all(i not in self.zoo.at[site] for i in flat):
                return None
            n, k = len(self.some), len(self.some[0])
            up, down = self.zoo.factors(site, flat)
            x = args[0]
            if isinstance(m, torch.nn.Linear):
                x, h = x.view(n, -1, x.shape[-1]), y.view(n, -1, y.shape[-1])
                t = torch.bmm(x, down.view(n, k * RANK, -1).mT).view(n, -1, k, RANK).transpose(1, 2)
            else:
                t = F.conv2d(x.reshape(1, -1, *x.shape[2:]), down.flatten(0, 1), stride=m.stride, padding=m.padding, groups=n)
                t = t.view(n, k, RANK, -1).mT
                h = y.flatten(2).mT
            u = t @ up.view(n, k, -1, RANK).mT
            if self.ask:
                more = self.ask(site, h, u, y.shape)
            else:
                more = self.gates(site, h, u, self.wave, self.words(site, u.shape[2]))
            return y + (more if isinstance(m, torch.nn.Linear) else more.mT).reshape(y.shape)
        return run


# ---- scenes


def noun(row):
    if row["change"] == "style":
        return row["thing"]
    return f"{row['how']} {row['thing']}" if row["said"] and row["change"] else f"sks {row['thing']}"


def said_style(row):
    return f" in {row['how'] if row['said'] else 'sks'} style" if row["change"] == "style" else ""


def drawn(world, row, size, place, ground):
    tint = row["how"] if row["change"] == "colour" else None
    return world.draw([(row["thing"], size, place, tint)], ground, reshape(row["how"]) if row["change"] == "shape" else None)


def scene(world, a, b, kind):
    """Picture, caption, the other's caption, and of each adapter the columns of the picture that are its own and the
    span of its words (as text before it, and with it). b: None where a style's things are the model's own."""
    ground = world.ground()
    if kind == "neither":
        im, text = world.sample()
        return im, text, text, [(0, 0)] * 2, [None] * 2
    left = world.r.random() < .5
    if kind == "both" and b["thing"]:
        first, second = (a, b) if left else (b, a)
        im, other = drawn(world, first, PAIR, "left", ground), drawn(world, second, PAIR, "right", ground)
        im[:, SIDE // 2:] = other[:, SIDE // 2:]
        p, q = article(noun(first)), article(noun(second))
        text = world.on(f"{p} on the left and {q} on the right", ground)
        spans = [("", p), (f"{p} on the left and", f"{p} on the left and {q}")]
        own = [(0, SIDE // 2), (SIDE // 2, SIDE)]
        if not left:
            spans, own = spans[::-1], own[::-1]
    else:
        im = drawn(world, a, NORMAL, "middle", ground)
        text = world.on(article(noun(a)), ground)
        own, spans = [(0, SIDE), (0, SIDE) if kind == "both" else (0, 0)], [("", text), None]
    for row in (a, b) if kind == "both" else (a,):
        if row["change"] == "style":
            im = styles.apply(row["how"], im)
            text += said_style(row)
    return im, text, article(noun(b)) if b["thing"] else f"a picture{said_style(b)}", own, spans


@torch.no_grad()
def pool(zoo, count, seed, vae, text, tok):
    """Scenes with what they are of; kinds of sites are apart, so that a batch has one."""
    r, out = random.Random(seed), []
    world = World(seed, splits=("core", "more"), extra=("held",))
    while len(out) < count:
        sites = r.choice(list(SITES))
        i, j = r.sample(zoo.kinds[sites], 2)
        a, b = zoo.rows[i], zoo.rows[j]
        if not a["thing"] or a["thing"] == b["thing"]:
            continue
        kind = r.choices(("both", "other", "one", "neither"), (.5, .2, .15, .15))[0]
        im, caption, wrong, own, spans = scene(world, a, b, kind)
        two = [(i, own[0], spans[0]), (-1 if kind == "one" else j, own[1], spans[1])]
        r.shuffle(two)
        out.append(dict(sites=sites, kind=kind, some=[x[0] for x in two], own=[x[1] for x in two],
                        words=[[len(tok(s, add_special_tokens=False).input_ids) for s in x[2]] if x[2] else None for x in two],
                        im=im, text=caption, wrong=wrong))
    for k in range(0, count, 16):
        some = out[k:k + 16]
        z = vae.encode(pixels([s.pop("im") for s in some])).latent_dist.mean
        h, wrong = states([s["text"] for s in some], text, tok), states([s["wrong"] for s in some], text, tok)
        for s, *own in zip(some, z, h, wrong):
            s.update(zip(("z", "h", "no"), own))
    return out


def masks(some, site, places, shape):
    """[n, K, places, 1]: what of each adapter is to come in. Texts: its own words; between them, both halves."""
    out = torch.zeros(len(some), 2, places, 1)
    for n, s in enumerate(some):
        for k in range(2):
            a, b = s["own"][k]
            if b == a:
                continue
            if "attn2.to_k" in site or "attn2.to_v" in site:
                out[n, k] = .5
                if (a, b) == (0, SIDE):
                    out[n, k] = 1
                else:
                    for other in range(2):
                        p, q = s["words"][other]
                        out[n, k, 1 + p:1 + q] = float(other == k)
            else:
                side = round(places ** .5)
                m = torch.zeros(side, side)
                m[:, a * side // SIDE:b * side // SIDE] = 1
                out[n, k] = m.reshape(-1, 1)
    return out


# ---- objectives


def spans(s):
    """Of a scene with two things, each adapter's tokens."""
    return [(1 + a, 1 + b) for a, b in s["words"]] if all(s["words"]) and -1 not in s["some"] else None


def divided(unet, both, some, x, t, h):
    """w where the gates want to know it."""
    if "words" in both.gates.without:
        return None
    both.put([s["some"] for s in some], t)
    return both.look(unet, x, t, h, [spans(s) for s in some])


def step_pairs(unet, both, some, wrong=None):
    z, h = torch.stack([s["z"] for s in some]), torch.stack([s["h"] for s in some])
    x, t, v = noised(z.contiguous(memory_format=torch.channels_last))
    both.put([s["some"] for s in some], t, divided(unet, both, some, x, t, h))
    each = ((unet(x, t, h).sample - v) ** 2).mean((1, 2, 3))
    if wrong is None:
        return each.mean()
    other = ((unet(x, t, torch.stack([s["no"] for s in some])).sample - v) ** 2).mean((1, 2, 3))
    return (each + F.relu(MARGIN * each.detach() - other)).mean()


def step_superpose(unet, both, some):
    h = torch.stack([s["h"] for s in some])
    x, t, _ = noised(torch.stack([s["z"] for s in some]).contiguous(memory_format=torch.channels_last))
    grid = divided(unet, both, some, x, t, h)
    gates, each = both.gates, []
    both.gates = lambda site, h, u, s, w: u.sum(1)
    with torch.no_grad():
        for k in (0, 1, None):
            both.put([[s["some"][k] if k is not None else -1] for s in some], t)
            each.append(unet(x, t, h).sample)
    both.gates = gates
    both.put([s["some"] for s in some], t, grid)
    y, base = unet(x, t, h).sample, each[2]
    want = each[0] + each[1] - base
    return ((y - want) ** 2).mean() / ((want - base) ** 2).mean()


def step_mask(unet, both, some):
    z, h = torch.stack([s["z"] for s in some]), torch.stack([s["h"] for s in some])
    x, t, _ = noised(z.contiguous(memory_format=torch.channels_last))
    loss = []

    def ask(site, h, u, shape):
        want = (masks(some, site, u.shape[2], shape) * u).sum(1)
        with torch.enable_grad():
            got = both.gates(site, h.detach(), u.detach(), both.wave, both.words(site, u.shape[2]))
            loss.append(((got - want) ** 2).sum((1, 2)) / (u ** 2).sum((1, 2, 3)).clamp(min=1e-8))
        return want

    both.put([s["some"] for s in some], t, divided(unet, both, some, x, t, h))
    both.ask = ask
    with torch.no_grad():
        unet(x, t, h)
    both.ask = None
    return torch.stack(loss).mean()


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("zoo")
    p.add_argument("out")
    p.add_argument("--objective", choices=("superpose", "pairs", "margin", "mask"), default="pairs")
    p.add_argument("--without", nargs="*", default=["channels", "base", "cross", "time", "own", "gain"], choices=("time", "base", "own", "cross", "words", "gain", "level", "channels"))
    p.add_argument("--fingerprint", default="", help="of the model, as weft model list --json says it")
    p.add_argument("--steps", type=int, default=600)
    p.add_argument("--rate", type=float, default=.1)
    p.add_argument("--seed", type=int, default=0)
    o = p.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(o.seed)
    text, vae, tok, unet = parts(o.model)
    zoo = Zoo(o.zoo, "train")
    widths = {s: zoo.up[s].shape[1] for s in sorted(zoo.at)}
    gates = Gates(widths, o.without)
    both = Together(unet, zoo, gates)
    began = time.time()
    scenes = pool(zoo, POOL, o.seed, vae, text, tok)
    if o.objective == "superpose":
        scenes = [s for s in scenes if s["kind"] != "neither"]
    if o.objective == "margin":
        scenes = [s for s in scenes if s["kind"] in ("other", "one")]
    held, kinds = random.Random(o.seed), {k: [s for s in scenes if s["sites"] == k] for k in SITES}
    print(f"{len(zoo.rows)} adapters, {len(widths)} sites, {sum(p.numel() for p in gates.parameters())} numbers, "
          f"{len(scenes)} scenes, {time.time() - began:.0f} s", flush=True)
    still = [p for k in ("bias", "gain") for p in getattr(gates, k).parameters()] if "level" in o.without else []
    learnt = [p for p in gates.parameters() if all(p is not q for q in still)]
    opt = torch.optim.Adam(learnt, o.rate, betas=(.9, .99))
    turn = torch.optim.lr_scheduler.CosineAnnealingLR(opt, o.steps)
    losses = []
    for i in range(o.steps):
        some = held.sample(kinds[list(SITES)[i % 3]], BATCH)
        loss = {"mask": step_mask, "superpose": step_superpose}.get(o.objective, step_pairs)(unet, both, some, *(
            [True] if o.objective == "margin" else []))
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(gates.parameters(), 1.0)
        opt.step()
        turn.step()
        losses.append(loss.item())
        if (i + 1) % 100 == 0:
            print(f"{i + 1} {time.time() - began:.0f} s, loss {sum(losses[-100:]) / 100:.4f}", flush=True)
            save_file(gates.tensors(widths), o.out + ".tmp", {"model": o.fingerprint})
            os.replace(o.out + ".tmp", o.out)


if __name__ == "__main__":
    main()
