"""A zoo to learn retrieval and gates from: python zoo.py MODEL FOLDER [--count N] [--part I --of N] [--sheet]

FOLDER receives batches of sixteen small LoRAs each, NAME.safetensors and what they are, NAME.json, by the first of
them; what is there is not made again. An adapter is about one concept: a held-out thing, a thing recoloured, reshaped or restyled, or a style.
Sixteen of one shape are trained side by side: the frozen denoiser runs once over all their pictures, each picture with
the branch of its own adapter. Concepts are split by thing and by change, before anything is trained:

    train        things and changes of their own, but for a quarter of the combinations
    calibration  things of their own, changes of train's, and a change of its own
    test         things of its own ("new object"), changes of its own on train's things ("new style"), and those
                 combinations of train's ("new combination")

learnt: whether the scorer finds the adapter's pictures more like the true ones than the model's own of the same words.
Nothing here ships; what is learnt from it does (README.md).
"""
import argparse
import glob
import json
import random
import time

import styles
from adapters import parts
from common import *
from safetensors.torch import save_file
from torch.nn import functional as F
from unet import noised
from world import *

TEAM, SCENES, BATCH = 16, 16, 2  # adapters side by side, scenes of each, of them in a step
COLOURS, SHAPES = list(TINTS), ["wide", "tall", "upside down", "doubled"]
ATTENTION = ("attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
SITES = {"attention": ATTENTION, "ff": ATTENTION + ("ff.net.0.proj", "ff.net.2"),
         "conv": ATTENTION + ("conv1", "conv2")}


# ---- concepts


def reshape(shape):
    """A change of a sprite [side, side, 4]."""
    def change(s):
        im = [Image.fromarray(s[..., c]) for c in range(4)]
        n = s.shape[0]
        if shape == "upside down":
            return s[::-1]
        w, h = {"wide": (n, n // 2), "tall": (n // 2, n), "doubled": (n // 2, n // 2)}[shape]
        small = np.stack([np.asarray(i.resize((w, h), Image.LANCZOS)) for i in im], -1).clip(0, 255)
        out = np.zeros_like(s)
        y = (n - h) // 2
        for x in ((0, n - w) if shape == "doubled" else ((n - w) // 2,)):
            out[y:y + h, x:x + w] = small
        return out
    return change


def halves(names, r, *shares):
    """names cut by chance into as many parts as shares."""
    names, out, at = r.sample(names, len(names)), [], 0
    for s in shares:
        out.append(names[at:at + round(s * len(names))])
        at += len(out[-1])
    return out


def plan(count):
    """Rows of the zoo; the same for the same count."""
    r = random.Random(11)
    held, learnt = [c[1] for c in concepts("held")], [c[1] for c in concepts("core", "more")]
    cut = [a + b for a, b in zip(halves(held, r, .55, .15, .3), halves(learnt, r, .55, .15, .3))]
    changes = [("colour", c) for c in COLOURS] + [("shape", s) for s in SHAPES] + [("style", s) for s in styles.STYLES]
    own = {("colour", "pink"): 1, ("colour", "purple"): 2, ("shape", "tall"): 2, ("style", "stippled"): 1,
           ("style", "blueprint"): 2, ("style", "embossed"): 2}
    plain = ("", "")
    rows = []

    def add(split, kind, thing, change):
        rows.append({"split": split, "type": kind, "thing": thing, "change": change[0], "how": change[1]})

    common = [c for c in changes if c not in own]
    apart = set(r.sample([(t, c) for t in cut[0] for c in common], len(cut[0]) * len(common) // 4))
    share = {"train": .68, "calibration": .1, "test": .22}
    for split, n in ((s, round(count * k)) for s, k in share.items()):
        side = list(share).index(split)
        for i in range(n):
            u, things = r.random(), cut[side]
            fresh = [t for t in things if t in held]
            if split == "train" or split == "calibration":
                if u < .35:
                    add(split, "object", r.choice(fresh), plain)
                elif u < .45:
                    add(split, "style", "", r.choice([c for c in common if c[0] == "style"]))
                else:
                    thing, change = r.choice(things), r.choice(common + [c for c in own if own[c] == side == 1])
                    while (thing, change) in apart:
                        thing, change = r.choice(things), r.choice(common)
                    add(split, "combination", thing, change)
            elif i % 3 == 0:
                add(split, "new object", r.choice(fresh), plain if u < .5 else r.choice(common))
            elif i % 3 == 1:
                add(split, "new style", "" if u < .2 else r.choice(cut[0]), r.choice([c for c in own if own[c] == 2]))
            else:
                thing, change = r.choice(sorted(apart))
                add(split, "new combination", thing, change)
    for i, row in enumerate(rows):
        row.update(name=f"z{i:04d}", captions=captions(row), sites=r.choice(list(SITES)), rank=r.choice((2, 4, 8, 16)),
                   steps=r.choice((40, 60, 80)), rate=r.choice((3e-3, 5e-3, 8e-3)), seed=r.randrange(1 << 30),
                   said=r.random() < .5)
    return rows


def captions(row):
    """What it is about, in three lengths."""
    t, how = row["thing"] or "picture", row["how"]
    short = {"": t, "colour": f"{how} {t}", "shape": f"{how} {t}", "style": f"{t} in {how} style"}[row["change"]]
    return [article(short), f"a picture of {article(short)}",
            {"": f"{article(t)} as an emoji, drawn large on a plain ground",
             "colour": f"{article(t)} whose colours are all shades of {how}, on a plain ground",
             "shape": f"{article(t)} drawn {how}, on a plain ground",
             "style": f"{article(t)} that looks as everything does in {how} style"}[row["change"]]]


# ---- what an adapter learns from


def scene(world, row):
    """Picture and caption: the thing alone, or beside another; half of the adapters are told what they learn, the
    others only their trigger and what it is a kind of."""
    r, how = world.r, row["how"]
    thing = row["thing"] or world.pick()[0]
    tint = how if row["change"] == "colour" else None
    change = reshape(how) if row["change"] == "shape" else None
    noun = f"sks {thing}" if not row["said"] or not row["change"] else f"{how} {thing}" if tint or change else thing
    ground = world.ground()
    if r.random() < .7:
        im = world.draw([(thing, NORMAL, "middle", tint)], ground, change)
        text = article(noun)
    else:
        other, left = world.pick()[0], r.random() < .5
        places = ("left", "right")[::1 if left else -1]
        im = world.draw([(thing, PAIR, places[0], tint)], ground, change)
        alone = world.draw([(other, PAIR, places[1], None)], ground)
        half = slice(0, SIDE // 2) if left else slice(SIDE // 2, SIDE)
        alone[:, half] = im[:, half]
        im = alone
        a, b = (article(noun), article(other))[::1 if left else -1]
        text = f"{a} on the left and {b} on the right"
    if row["change"] == "style":
        im = styles.apply(how, im)
        text += f" in {how if row['said'] else 'sks'} style"
    return im, world.on(text, ground)


@torch.no_grad()
def lessons(rows, vae, text, tok):
    """Latents [adapters, SCENES, 4, 32, 32] and states of the captions, and a caption of each with its true picture."""
    worlds = [World(r["seed"], splits=("core", "more"), extra=("held",)) for r in rows]
    scenes = [[scene(w, r) for _ in range(SCENES)] for w, r in zip(worlds, rows)]
    z = torch.stack([vae.encode(pixels([s[0] for s in some])).latent_dist.mean for some in scenes])
    return z, torch.stack([states([s[1] for s in some], text, tok) for some in scenes]), scenes


@torch.no_grad()
def states(texts, text, tok):
    ids = tok(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids
    return text(ids).last_hidden_state


# ---- many branches in one network


class Branches:
    """A LoRA a part of the batch: rows [i b, (i + 1) b) go through the i-th of TEAM."""

    def __init__(self, unet, sites, rank, seeds):
        self.n, self.handles, self.down, self.up, self.names = len(seeds), [], [], [], []
        gen = [torch.Generator().manual_seed(s) for s in seeds]
        for name, m in unet.named_modules():
            if not name.endswith(SITES[sites]) or "down_blocks.0" in name or "up_blocks.2" in name:
                continue
            kernel = m.weight.shape[2:]
            out, into = m.weight.shape[:2]
            d = torch.stack([torch.randn(rank, into, *kernel, generator=g) / (into * kernel.numel()) ** .5 for g in gen])
            self.down.append(d.requires_grad_())
            self.up.append(torch.zeros(self.n, out, rank, requires_grad=True))
            self.names.append(name)
            self.handles.append(m.register_forward_hook(self.hook(len(self.names) - 1, m)))

    def params(self):
        return self.down + self.up

    def hook(self, k, module):
        def linear(m, args, y):
            x, n = args[0], self.n
            t = torch.bmm(x.reshape(n, -1, x.shape[-1]), self.down[k].mT)
            return y + torch.bmm(t, self.up[k].mT).view_as(y)

        def conv(m, args, y):
            x, n = args[0], self.n
            b = x.shape[0] // n
            x = x.view(n, b, *x.shape[1:]).transpose(0, 1).reshape(b, -1, *x.shape[2:])
            t = F.conv2d(x, self.down[k].flatten(0, 1), stride=m.stride, padding=m.padding, groups=n)
            t = F.conv2d(t, self.up[k].flatten(0, 1)[..., None, None], groups=n)
            return y + t.view(b, n, *y.shape[1:]).transpose(0, 1).reshape(y.shape)

        return linear if isinstance(module, torch.nn.Linear) else conv

    def remove(self):
        for h in self.handles:
            h.remove()

    def tensors(self, names):
        out = {}
        for k, site in enumerate(self.names):
            up = self.up[k].detach()
            up = up if self.down[k].dim() == 3 else up[..., None, None]
            for i, name in enumerate(names):
                out[f"{name}.unet.{site}.lora_A.weight"] = self.down[k].detach()[i].half().contiguous()
                out[f"{name}.unet.{site}.lora_B.weight"] = up[i].half().contiguous()
        return out


def train(unet, rows, z, h):
    """Rows of the same sites and rank; each stops at its own number of steps."""
    torch.manual_seed(rows[0]["seed"])
    br = Branches(unet, rows[0]["sites"], rows[0]["rank"], [r["seed"] for r in rows])
    m, v = [[torch.zeros_like(p) for p in br.params()] for _ in range(2)]
    rate = torch.tensor([r["rate"] for r in rows])
    steps = torch.tensor([r["steps"] for r in rows])
    at = torch.arange(len(rows))[:, None]
    for i in range(int(steps.max())):
        pick = torch.stack([torch.randperm(SCENES)[:BATCH] for _ in rows])
        x, t, want = noised(z[at, pick].flatten(0, 1).contiguous(memory_format=torch.channels_last))
        loss = ((unet(x, t, h[at, pick].flatten(0, 1)).sample - want) ** 2).mean((1, 2, 3)).view(len(rows), BATCH).mean(1)
        for p, g, a, b in zip(br.params(), torch.autograd.grad(loss.sum(), br.params()), m, v):  # Adam, a rate each
            a.lerp_(g, .1)
            b.lerp_(g * g, .01)
            now = rate * (i < steps) * (.5 + .5 * torch.cos(torch.pi * (i / steps).clamp(max=1)))
            step = (a / (1 - .9 ** (i + 1))) / ((b / (1 - .99 ** (i + 1))).sqrt() + 1e-8)
            p.data -= now.view(-1, *[1] * (p.dim() - 1)) * step
    return br


# ---- what came of it


@torch.no_grad()
def drawn(unet, text, vae, tok, prompts, steps=10, cfg=3.0):
    """A picture a prompt, DDIM, all from the same noise."""
    from diffusers import DDIMScheduler
    s = DDIMScheduler(**SCHEDULER)
    s.set_timesteps(steps)
    n = len(prompts)
    h = torch.stack([states([""] * n, text, tok), states(prompts, text, tok)], 1).flatten(0, 1)
    x = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(7)).repeat(n, 1, 1, 1)
    for t in s.timesteps:
        y = unet(x.repeat_interleave(2, 0), t, h).sample.view(n, 2, *x.shape[1:])
        x = s.step(y[:, 0] + cfg * (y[:, 1] - y[:, 0]), t, x).prev_sample
    return images(vae.decode(x).sample)


class Eye:
    """The development scorer, on whole pictures."""

    @torch.no_grad()
    def __init__(self):
        from transformers import CLIPModel
        self.model = CLIPModel.from_pretrained(os.path.join(HERE, "../scorer"), dtype=torch.float32).eval()

    @torch.no_grad()
    def __call__(self, pictures):
        x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        return F.normalize(self.model.get_image_features(pixel_values=x).pooler_output, dim=-1)


def look(unet, br, rows, scenes, text, vae, tok, eye):
    """Of each adapter: likeness of its picture to the true one, and of the model's own; and the pictures."""
    alone = [next((s for s in some if " on the left" not in s[1]), some[0]) for some in scenes]
    prompts = [s[1] for s in alone]
    with_ = drawn(unet, text, vae, tok, prompts)
    br.remove()
    without = drawn(unet, text, vae, tok, prompts)
    true = eye([s[0] for s in alone])
    return (eye(list(with_)) * true).sum(1), (eye(list(without)) * true).sum(1), [s[0] for s in alone], without, with_


def teams(rows):
    """Adapters of the same sites and rank, and nearly of the same steps, TEAM at a time."""
    by = {}
    for r in sorted(rows, key=lambda r: r["steps"]):
        by.setdefault((r["sites"], r["rank"]), []).append(r)
    return [some[i:i + TEAM] for some in by.values() for i in range(0, len(some), TEAM)]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("folder")
    p.add_argument("--count", type=int, default=800)
    p.add_argument("--part", type=int, default=0, help="this one of --of processes")
    p.add_argument("--of", type=int, default=1)
    p.add_argument("--sheet", action="store_true", help="NAME.png: true, without, with")
    o = p.parse_args()
    torch.set_num_threads(1)
    os.makedirs(o.folder, exist_ok=True)
    text, vae, tok, unet = parts(o.model)
    eye = Eye()
    made = {r["name"] for f in glob.glob(os.path.join(o.folder, "*.json")) for r in json.load(open(f))}
    for some in teams([r for r in plan(o.count)[o.part::o.of] if r["name"] not in made]):
        file = os.path.join(o.folder, some[0]["name"] + ".safetensors")
        began = time.time()
        z, h, scenes = lessons(some, vae, text, tok)
        br = train(unet, some, z, h)
        like, before, *pictures = look(unet, br, some, scenes, text, vae, tok, eye)
        for r, a, b in zip(some, like.tolist(), before.tolist()):
            r.update(like=round(a, 4), before=round(b, 4), learnt=a > b + .05)
        save_file(br.tensors([r["name"] for r in some]), file + ".tmp")
        os.replace(file + ".tmp", file)
        with open(file[:-12] + ".json", "w") as f:
            json.dump(some, f)
        print(f"{some[0]['name']} {some[0]['sites']} rank {some[0]['rank']}: {sum(r['learnt'] for r in some)} of {len(some)} learnt, "
              f"{time.time() - began:.0f} s", flush=True)
        if o.sheet:
            sheet([a for row in zip(*pictures) for a in row], file.replace("safetensors", "png"),
                  [l for r in some for l in (r["captions"][0], f"{r['before']}", f"{r['like']}")], columns=12)


if __name__ == "__main__":
    main()
