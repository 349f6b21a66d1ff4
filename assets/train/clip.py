"""Contrastive towers: python clip.py text|scorer|judge MINUTES [--resume]

text     the model's text encoder, pre-trained against a small image tower on the learnt world only
scorer   assets/scorer: serves `weft score` and development
judge    tests/eval/judge: for reported figures only; other widths, seed and augmentations

Scorer and judge know everything: held-out things and styles, tints, scenes of one to five, pieces of
scenes, and mush that is none of them ("a shapeless blob"), so that what is not drawn is not recognised.
"""
import argparse
import random
import time

import styles
from common import *
from PIL import ImageFilter
from torch.nn import functional as F
from transformers import CLIPModel, CLIPConfig, CLIPTokenizer
from world import *

ROLES = {
    # text width, layers, heads; vision width, layers, heads, patch; seed
    "text": (192, 3, 6, 128, 3, 4, 16, 21),
    "scorer": (128, 2, 4, 128, 5, 4, 8, 31),
    "judge": (96, 3, 3, 168, 4, 4, 16, 41),
}


def build(role, tok):
    tw, tl, th, vw, vl, vh, patch, seed = ROLES[role]
    torch.manual_seed(seed)
    text = dict(vocab_size=len(tok), hidden_size=tw, intermediate_size=4 * tw, num_hidden_layers=tl,
                num_attention_heads=th, max_position_embeddings=LENGTH,
                bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id,
                pad_token_id=tok.pad_token_id, projection_dim=128, hidden_act="quick_gelu")
    vision = dict(hidden_size=vw, intermediate_size=4 * vw, num_hidden_layers=vl,
                  num_attention_heads=vh, image_size=SIDE, patch_size=patch, projection_dim=128,
                  hidden_act="quick_gelu")
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128,
                                logit_scale_init_value=2.3)), seed


# ---- what the text tower sees: the learnt world, with hard siblings


def learnt_batch(w, n):
    out, r = [], w.r
    while len(out) < n:
        ground = w.ground()
        other = r.choice([g for g in [None, *GROUNDS] if g != ground])
        u, v = r.random(), r.random()
        if u < .45:
            name, size, tint = w.pick()[0], r.choice((NORMAL, NORMAL, SMALL)), w.tint(.2)
            out.append(w.single(name, size, ground, tint))
            if v < .2:
                out.append(w.single(name, SMALL if size == NORMAL else NORMAL, ground, tint))
            elif v < .4:
                out.append(w.single(name, size, other, tint))
            elif v < .6:
                out.append(w.single(name, size, ground, r.choice([t for t in TINTS if t != tint])))
        elif u < .85:
            names, wide = w.pick(2), r.random() < .65
            out.append(w.pair(names, wide, ground))
            if v < .3:
                out.append(w.pair(names[::-1], wide, ground))
            elif v < .4:
                out.append(w.pair(names, not wide, ground))
        else:
            names = w.pick(3)
            out.append(w.triple(names, ground))
            if v < .5:
                out.append(w.triple(r.sample(names, 3), ground))
    return out[:n]


# ---- what scorer and judge see: everything, whole and in pieces


def mush(w):
    """Colours of things without their shape: what a bad model draws."""
    r = w.r
    im = w.sample()[0].astype(np.float32)
    kind = r.randint(0, 3)
    if kind == 0:  # melted
        g = np.random.default_rng(r.randint(0, 1 << 30))
        y, x = np.mgrid[0:128, 0:128].astype(np.float32)
        for a in (x, y):
            wave = Image.fromarray(g.normal(0, 1, (7, 7)).astype(np.float32))
            a += np.asarray(wave.resize((128, 128), Image.BICUBIC)) * r.uniform(11, 22)
        im = im[y.clip(0, 127).astype(int), x.clip(0, 127).astype(int)]
    elif kind == 1:  # two things in one place
        a, b = w.pick(2)
        s = w.sprite(a, NORMAL) * .5 + w.sprite(b, NORMAL) * .5
        im = w.draw([], w.ground()).astype(np.float32)
        im[12:116, 12:116] = im[12:116, 12:116] * (1 - s[..., 3:] / 255) + s[..., :3]
    elif kind == 2:  # tiles that moved
        k = r.choice((16, 21, 32))
        t = [im[i:i + k, j:j + k].copy() for i in range(0, 128 - k + 1, k)
             for j in range(0, 128 - k + 1, k)]
        r.shuffle(t)
        for q, (i, j) in enumerate((i, j) for i in range(0, 128 - k + 1, k)
                                   for j in range(0, 128 - k + 1, k)):
            im[i:i + k, j:j + k] = t[q]
    else:
        im = np.asarray(Image.fromarray(im.astype(np.uint8)).filter(
            ImageFilter.GaussianBlur(r.uniform(7, 12))), np.float32)
    return im.clip(0, 255).astype(np.uint8), "a shapeless blob"


def placed(w, n):
    """n things anywhere without overlap, their centres and sizes."""
    r, out = w.r, []
    size = {1: (60, 124), 2: (46, 72), 3: (36, 56), 4: (34, 52), 5: (32, 46)}[n]
    for name in w.pick(n):
        for _ in range(40):
            s = r.randint(*size)
            c = (r.randint(s // 2, 128 - s // 2), r.randint(s // 2, 128 - s // 2))
            if all(max(abs(c[0] - p[0]), abs(c[1] - p[1])) > (s + z) * .48 for _, z, p, _ in out):
                out.append((name, s, c, w.tint(.1)))
                break
    return out


def piece(im, centre, size):
    """A square of the picture, enlarged to the whole."""
    half = size // 2
    pad = np.pad(im, ((64, 64), (64, 64), (0, 0)), mode="edge")
    y, x = int(centre[1]) + 64, int(centre[0]) + 64
    p = pad[max(0, y - half):y + half, max(0, x - half):x + half]
    return np.asarray(Image.fromarray(p).resize((SIDE, SIDE), Image.BICUBIC))


def any_batch(w, n):
    out, r = [], w.r
    while len(out) < n:
        u, ground = r.random(), w.ground()
        if u < .08:
            out.append(mush(w))
            continue
        if u < .3:  # as the model's own pictures are laid out
            out.append(w.sample(.4, .2))
            continue
        things = placed(w, r.choice((1, 1, 2, 2, 3, 3, 4, 5)))
        im = w.draw(things, ground)
        style = r.choice(list(styles.STYLES)) if r.random() < .2 else None
        if style:
            im = styles.apply(style, im)
        end = f" {styles.STYLES[style][1]}" if style else ""
        if u < .75:  # one thing of the scene, cut out by and large
            name, s, c, tint = r.choice(things)
            shift = (c[0] + r.randint(-s // 6, s // 6), c[1] + r.randint(-s // 6, s // 6))
            out.append((piece(im, shift, int(s * r.uniform(.85, 1.7))),
                        w.phrase(name, tint=tint) + end))
        else:
            text = " and ".join(w.phrase(t[0], tint=t[3]) for t in things)
            out.append((im, (w.on(text, ground) if not style else text) + end))
    return out[:n]


def augment(x, role, g):
    """Small changes of light; the judge also sees noise and softness."""
    n = len(x)
    x = x * (1 + .12 * torch.randn(n, 1, 1, 1, generator=g)) + .06 * torch.randn(n, 3, 1, 1,
                                                                              generator=g)
    x = torch.where(torch.rand(n, 1, 1, 1, generator=g) < .35,
                    F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1), x)
    if role == "judge":
        k = torch.rand(n, 1, 1, 1, generator=g) * .12
        x = x + k * torch.randn(x.shape, generator=g)
        soft = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
        x = torch.where(torch.rand(n, 1, 1, 1, generator=g) < .2, soft, x)
    return x.clamp(-1, 1)


# ---- training


def train(role, minutes, resume):
    tok = CLIPTokenizer.from_pretrained(path("model", "tokenizer"))
    model, seed = build(role, tok)
    learnt = role == "text"
    world = World(seed) if learnt else World(seed, splits=("core", "more", "held"))
    size, rate, g = (128, 1e-3, torch.Generator().manual_seed(seed))
    if resume:
        model.load_state_dict(load(f"{role}.pt"))
        rate = 5e-4
    print(role, "parameters", count(model), flush=True)
    ps = list(model.parameters())
    opt = torch.optim.AdamW(ps, rate, betas=(.9, .98), weight_decay=.02)
    average, began, step, acc = Average(ps, .995), time.time(), 0, []
    while (f := (time.time() - began) / 60 / minutes) < 1:
        batch = learnt_batch(world, size) if learnt else any_batch(world, size)
        ids = tok([c for _, c in batch], padding="max_length", max_length=LENGTH,
                  return_tensors="pt").input_ids
        x = pixels([a for a, _ in batch])
        x = x if learnt else augment(x, role, g)
        with torch.autocast("cpu", torch.bfloat16):
            o = model(input_ids=ids, pixel_values=x)
        logits = o.logits_per_image.float()
        same = (ids[:, None] == ids[None]).all(-1) & ~torch.eye(size, dtype=torch.bool)
        logits = logits.masked_fill(same, -1e4)
        y = torch.arange(size)
        loss = (F.cross_entropy(logits, y) + F.cross_entropy(logits.T, y)) / 2
        for p in opt.param_groups:
            p["lr"] = rate * min(1, (step + 1) / 100) * (.02 + .98 * (.5 + .5 * np.cos(np.pi * f)))
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(ps, 1.0)
        opt.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6)
        average.update(step)
        step += 1
        acc.append((loss.item(), (logits.argmax(1) == y).float().mean().item()))
        if step % 50 == 0:
            print(f"{step} {time.time() - began:.0f}s loss={np.mean([a for a, _ in acc]):.3f} "
                  f"right={np.mean([b for _, b in acc]):.3f} "
                  f"scale={model.logit_scale.exp().item():.1f}", flush=True)
            acc = []
            if step % 300 == 0:
                save(model.state_dict(), f"{role}.pt")
    average.swap()
    save(model.state_dict(), f"{role}.pt")
    report(role, model.eval(), tok)


@torch.no_grad()
def report(role, model, tok):
    """Every thing alone against every name."""
    for splits in (("core", "more"),) + ((("held",),) if role != "text" else ()):
        w = World(9, splits=splits)
        everything = w.names if role == "text" else [r[1] for r in concepts("core", "more", "held")]
        ids = tok([article(n) for n in everything], padding="max_length", max_length=LENGTH,
                  return_tensors="pt").input_ids
        x = pixels([w.draw([(n, NORMAL, "middle", None)]) for n in w.names])
        o = model(input_ids=ids, pixel_values=x)
        y = torch.tensor([everything.index(n) for n in w.names])
        print(role, splits, "zero-shot among", len(everything), "names:",
              (o.logits_per_image.argmax(1) == y).float().mean().item(), flush=True)
    model.half()
    if role == "text":
        text = model.text_model
        from transformers import CLIPTextModel
        m = CLIPTextModel(text.config)
        m.load_state_dict(text.state_dict(), strict=False)
        m.save_pretrained(path("model", "text_encoder"))
    else:
        model.save_pretrained(path(role))
        tok.save_pretrained(path(role))


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("role", choices=ROLES)
    p.add_argument("minutes", type=float)
    p.add_argument("--resume", action="store_true")
    o = p.parse_args()
    torch.set_num_threads(2)
    train(o.role, o.minutes, o.resume)
