"""Two adapters in a whole UNet, through gates, in places of their own, and where words are attended to:
python tests/golden/gates.py

writes tests/golden/data/gates.safetensors (random gates at some sites of the tiny SD 1.x model, as
assets/train/gates.py writes them) and gates-out.safetensors, of the UNet with lora-peft and lora-diffusers:

    w           [2, 4, 4], what gates see of words
    both, one   outputs through the gates, of the two (and w) and of the first alone; where there are none they are added up
    mask        [2, 4, 4], places of each
    masked      the output where each acts in its own places, on texts and the time everywhere (no gates)
    spread      [2, 8, 8], the masks that follow from what the first row attends to (compose/maps.h), of WORDS in
                PROMPT with sharp 4 and leak .3
"""
import os
import sys

import torch
from safetensors.torch import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__)) + "/data/"
sys.path.insert(0, os.path.join(HERE, "../../../assets/train"))
import gates  # noqa: E402
from diffusers import UNet2DConditionModel  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from transformers import CLIPTokenizer  # noqa: E402


PROMPT, WORDS = "a red owl beside a castle", ("red owl", "castle")


class Two:
    """What gates.Zoo is, of two files."""

    def __init__(self, *adapters):
        self.at, self.up, self.down = {}, {}, {}
        for site in sorted({s for a in adapters for s in a}):
            have = [i for i, a in enumerate(adapters) if site in a]
            self.at[site] = {i: k for k, i in enumerate(have)}
            pairs = [adapters[i][site] for i in have]
            self.up[site] = torch.stack([F.pad(b.flatten(1), (0, gates.RANK - b.shape[1])) for b, _ in pairs] +
                                        [torch.zeros(pairs[0][0].shape[0], gates.RANK)])
            self.down[site] = torch.stack([F.pad(a, (0, 0) * (a.dim() - 1) + (0, gates.RANK - a.shape[0])) for _, a in pairs] +
                                          [torch.zeros(gates.RANK, *pairs[0][1].shape[1:])])

    factors = gates.Zoo.factors


def read(file, scale, up, down, site):
    t = {k: v.float() for k, v in load_file(HERE + file).items()}
    return {site(k[:-len(up)]): (t[k] * scale, t[k[:-len(up)] + down]) for k in t if k.endswith(up) and "text_encoder" not in k}


def old_site(name):
    block, proj = name.rsplit(".processor.", 1)
    return f"{block}.{proj.removesuffix('_lora')}".replace(".to_out", ".to_out.0")


def spread(maps, sharp=4, leak=.3):
    """compose/maps.h, of one pass."""
    maps = [m / m.mean((1, 2), keepdim=True) for m in maps]
    size = max(m.shape[1] for m in maps)
    apart = [max(0, -torch.corrcoef(m.flatten(1))[0, 1].item()) ** 2 for m in maps]
    wide = [F.interpolate(m[None], (size, size), mode="bilinear")[0] for m in maps]
    m = sum(w * x for w, x in zip(apart, wide)) / sum(apart)
    return leak + (1 - leak) * m ** sharp / (m ** sharp).sum(0)


@torch.no_grad()
def main():
    unet = UNet2DConditionModel.from_pretrained(HERE + "tiny-sd1", subfolder="unet").float().eval()
    zoo = Two(read("lora-peft.safetensors", 1.5, ".lora_B.weight", ".lora_A.weight", lambda k: k[5:]),
              read("lora-diffusers.safetensors", 1, ".up.weight", ".down.weight", old_site))
    chosen = [s for s in sorted(zoo.at) if not s.endswith("time_emb_proj")][::7]
    widths = {s: zoo.up[s].shape[1] for s in chosen}
    g, rand = gates.Gates(widths), torch.Generator().manual_seed(4)
    for p in g.parameters():
        p.copy_((torch.randn(p.shape, generator=rand) * .7).half().float())
    for site in chosen[::2]:  # plain: no more than a number a place
        k = site.replace(".", ":")
        for part in (g.bias, g.gain, g.words, g.time):
            part[k].copy_(part[k][:1].expand_as(part[k]).clone())
        for part in (g.base, g.own, g.cross):
            part[k].zero_()
    save_file(g.tensors(widths), HERE + "gates.safetensors")
    both = gates.Together(unet, zoo, lambda site, h, u, s, w: g(site, h, u, s, w) if site in widths else u.sum(1))
    golden = load_file(HERE + "tiny-sd1/golden.safetensors")
    x, t, out = golden["unet_square_x"].permute(0, 3, 1, 2), golden["unet_square_t"].long(), {}
    out["w"] = torch.randn(2, 4, 4, generator=rand)
    for name, some, w in (("both", [[0, 1]] * 2, out["w"].expand(2, -1, -1, -1)), ("one", [[0]] * 2, None)):
        both.put(some, t, w)
        out[name] = unet(x, t, golden["text"]).sample.permute(0, 2, 3, 1).contiguous()
    out["mask"] = torch.rand(2, 4, 4, generator=rand)

    def masked(site, h, u, shape):
        side = round(u.shape[2] ** .5)
        if site.endswith(("attn2.to_k", "attn2.to_v", "time_emb_proj")):
            return u.sum(1)
        mode = "area" if side <= 4 else "bilinear"
        return (F.interpolate(out["mask"][None], (side, side), mode=mode).view(1, 2, -1, 1) * u).sum(1)

    both.put([[0, 1]] * 2, t)
    both.ask = masked
    out["masked"] = unet(x, t, golden["text"]).sample.permute(0, 2, 3, 1).contiguous()
    both.ask = lambda site, h, u, shape: u.sum(1)
    tok = CLIPTokenizer.from_pretrained(HERE + "tiny-sd1", subfolder="tokenizer")
    ids = tok(PROMPT).input_ids
    words = [tok(w, add_special_tokens=False).input_ids for w in WORDS]
    at = [next(i for i in range(len(ids)) if ids[i:i + len(w)] == w) for w in words]
    both.watch, both.seen = [[(i, i + len(w)) for i, w in zip(at, words)]] * 2, []
    unet(x, t, golden["text"])
    out["spread"] = spread([m[0] for m in both.seen])
    save_file(out, HERE + "gates-out.safetensors")


if __name__ == "__main__":
    main()
