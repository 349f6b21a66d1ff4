"""What ways to let two adapters in are worth on adapters nothing was learnt from: python held.py MODEL ZOO GATES.safetensors
[--scenes N] [--seed N]

Scenes are drawn as gates.py draws them, of adapters of the zoo's test split; the loss is the denoiser's own, with the same
noise for all ways, each scene at four times. Lines of a table: of pictures of both, and of one with another adapter beside
it that is not meant, the loss as a multiple of that of the plain sum, with 95 % intervals (bootstrap by scene). "the right
one" and "the better one" are told which adapter it is by the loss itself. Then the share of places that the router gives
each of two that both have words in the text.
"""
import argparse
import random

import torch
from safetensors.torch import load_file

from adapters import parts
from gates import BATCH, SITES, Gates, Together, Zoo, divided, pool
from unet import noised

TIMES = 4
FF, ATTENTION = (".ff.",), (".attn1.", ".attn2.")


class Learnt(Gates):
    """Gates of a file, a number a site."""

    def __init__(self, file, widths):
        super().__init__(widths, ["channels", "base", "own", "cross", "time", "gain"])
        for site, rows in load_file(file).items():
            k = site[len("unet."):].replace(".", ":")
            self.bias[k].data, self.words[k].data = rows[0].float(), rows[5].float()


class Router(Learnt):
    """The same, shut for all but the first by w, at sites in whose name one of these is."""

    def __init__(self, file, widths, at=("",), shares=None):
        super().__init__(file, widths)
        self.at, self.shares = at, shares

    def forward(self, site, h, u, s, w=0):
        if isinstance(w, int) or not any(k in site for k in self.at):
            return super().forward(site, h, u, s, w)
        first = (w >= w.max(1, keepdim=True).values).float()
        if self.shares is not None:
            self.shares.append(first.mean((2, 3)))
        return super().forward(site, h, u * first, s, w)


class Plain:
    """Both, by a factor."""
    without = ("words",)

    def __init__(self, by):
        self.by = by

    def __call__(self, site, h, u, s, w=0):
        return self.by * u.sum(1)


@torch.no_grad()
def losses(unet, both, scenes, gates, only=None, seed=0):
    """[scenes] of the denoiser's loss; only: 0 or 1, the other left out."""
    both.gates, out = gates, []
    for i in range(0, len(scenes), BATCH):
        some = scenes[i:i + BATCH]
        z, h = torch.stack([s["z"] for s in some]), torch.stack([s["h"] for s in some])
        total = 0
        for k in range(TIMES):
            torch.manual_seed(seed + TIMES * i + k)
            x, t, v = noised(z.contiguous(memory_format=torch.channels_last))
            two = [s["some"] if only is None else [s["some"][only], -1] for s in some]
            both.put(two, t, divided(unet, both, some, x, t, h) if only is None else None)
            total = total + ((unet(x, t, h).sample - v) ** 2).mean((1, 2, 3)) / TIMES
        out.append(total)
    return torch.cat(out)


def ratio(a, b, r):
    """Mean of a over mean of b, and its interval."""
    n = len(a)
    some = sorted((a[k].mean() / b[k].mean()).item() for k in (torch.tensor(r.choices(range(n), k=n)) for _ in range(1000)))
    return f"{a.mean() / b.mean():.3f} ({some[24]:.3f} to {some[974]:.3f})"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("zoo")
    p.add_argument("gates")
    p.add_argument("--scenes", type=int, default=480)
    p.add_argument("--seed", type=int, default=1)
    o = p.parse_args()
    torch.set_num_threads(1)
    text, vae, tok, unet = parts(o.model)
    zoo = Zoo(o.zoo, "test")
    widths = {s: zoo.up[s].shape[1] for s in sorted(zoo.at)}
    both = Together(unet, zoo, None)
    drawn = sorted(pool(zoo, o.scenes, o.seed, vae, text, tok), key=lambda s: list(SITES).index(s["sites"]))
    named = [s for s in drawn if s["kind"] == "both" and all(s["words"])]
    beside = [s for s in drawn if s["kind"] == "other"]
    shares = []
    ways = {
        "none": Plain(0), "the mean": Plain(.5), "the sum": Plain(1), "gated": Learnt(o.gates, widths),
        "router": Router(o.gates, widths, shares=shares), "router, attention": Router(o.gates, widths, ATTENTION),
        "router, ff": Router(o.gates, widths, FF), "router, down": Router(o.gates, widths, ("down_blocks",)),
        "router, middle": Router(o.gates, widths, ("mid_block",)), "router, up": Router(o.gates, widths, ("up_blocks",)),
    }
    got = {k: [losses(unet, both, s, g) for s in (named, beside)] for k, g in ways.items()}
    alone = [[losses(unet, both, s, Plain(1), k) for k in (0, 1)] for s in (named, beside)]
    got["the better one"] = [torch.minimum(*x) for x in alone]
    right = torch.tensor([s["own"][1] != (0, 0) for s in beside]).long()
    got["the right one"] = [None, torch.stack(alone[1])[right, torch.arange(len(beside))]]
    r = random.Random(o.seed)
    print(f"{len(zoo.rows)} adapters, {len(named)} scenes of both, {len(beside)} beside another")
    for k, x in got.items():
        print(f"| {k} | " + " | ".join(ratio(a, b, r) if a is not None else "–" for a, b in zip(x, got["the sum"])) + " |", flush=True)
    each = torch.cat(shares)
    each = each[each.sum(1) < 1.5]  # a scene with nobody's words is everybody's
    print(f"share of places of the lesser of two: mean {each.min(1).values.mean():.3f}, "
          f"at least a quarter in {(each.min(1).values >= .25).float().mean():.3f}")


if __name__ == "__main__":
    main()
