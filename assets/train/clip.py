"""Towers in CLIP's layout: python clip.py text|scorer|judge MINUTES [--resume] [--rate R]

text     the model's text encoder, pre-trained against a small image tower on the learnt world only
scorer   assets/scorer: serves `weft score` and development
judge    tests/eval/judge: for reported figures only; other widths, seed and augmentations

One thread each (two spinning threads on a busy machine are many times slower), about .9 s a step of 64.
Scorer and judge know everything, held-out things and styles too. Each step they tell every piece apart
among all names ("a fox") and all styles ("in sepia style"), the texts' own vectors being the classes,
and match whole pictures to their captions. WEFT_TRAIN/ROLE.pt holds the state, written every three
minutes and at the end; --resume goes on from it, down to rate zero again. The folder WEFT_TRAIN/ROLE is
written at the end.
"""
import argparse
import json
import math
import time

import styles
from common import *
from diffusers import AutoencoderKL
from muon import Both
from pieces import BLOB, Scenes
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer
from world import *

ROLES = {
    # text width, layers, heads; vision width, layers, heads; patch, seed
    "text": (192, 3, 6, 128, 3, 4, 16, 21),
    "scorer": (128, 2, 4, 128, 6, 4, 16, 31),
    "judge": (96, 3, 3, 160, 4, 5, 16, 41),
}
OFF = {"scorer": 0, "judge": .5}  # how far latents are put off, in deviations
TEMPLATES = ("{}", "a picture of {}", "{} on a white background")
PLAIN = "in plain style"
PREPROCESSOR = dict(image_processor_type="CLIPImageProcessor", do_convert_rgb=True, do_resize=True,
                    size={"shortest_edge": SIDE}, resample=3, do_center_crop=True,
                    crop_size={"height": SIDE, "width": SIDE}, do_rescale=True,
                    rescale_factor=1 / 255, do_normalize=True, image_mean=[.5] * 3, image_std=[.5] * 3)


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


def tokens(tok, texts):
    """No longer than the longest: the tower is causal and reads its answer at the first end."""
    return tok(texts, padding="longest", truncation=True, max_length=LENGTH,
               return_tensors="pt").input_ids


def matched(logits, ids):
    """CLIP's loss; captions that are the same word for word are no mistakes."""
    n = len(ids)
    same = (ids[:, None] == ids[None]).all(-1) & ~torch.eye(n, dtype=torch.bool)
    logits, y = logits.masked_fill(same, -1e4), torch.arange(n)
    return (F.cross_entropy(logits, y) + F.cross_entropy(logits.T, y)) / 2


# ---- the text tower: the learnt world, with hard siblings


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


class Learnt:
    """Loss of the text tower's batches."""

    def __init__(self, model, tok, seed):
        self.model, self.tok, self.world = model, tok, World(seed)

    def loss(self):
        batch = learnt_batch(self.world, 128)
        ids = tokens(self.tok, [c for _, c in batch])
        o = self.model(input_ids=ids, pixel_values=pixels([a for a, _ in batch]))
        logits = o.logits_per_image.float()
        right = (logits.argmax(1) == torch.arange(len(ids))).float().mean().item()
        return matched(logits, ids), right


# ---- scorer and judge


def relit(x, role):
    """Small changes of light; the judge also sees noise and softness."""
    n = len(x)
    x = x * (1 + .12 * torch.randn(n, 1, 1, 1)) + .06 * torch.randn(n, 3, 1, 1)
    x = torch.where(torch.rand(n, 1, 1, 1) < .3,
                    F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1), x)
    if role == "judge":
        x = x + torch.rand(n, 1, 1, 1) * .1 * torch.randn_like(x)
    return x.clamp(-1, 1)


class Everything:
    """Loss of the scorers' batches."""

    def __init__(self, model, tok, seed, role):
        vae = AutoencoderKL.from_pretrained(path("model", "vae")).eval().requires_grad_(False)
        self.model, self.role, off = model, role, OFF[role]

        def through(x):
            z = vae.encode(x).latent_dist.mean
            return vae.decode(unsteady(z, off) if off else z).sample
        self.scenes = Scenes(World(seed, splits=("core", "more", "held")),
                             through=through, share=.6 if off else .2)
        names = [article(n) for n in self.scenes.names]
        looks = [PLAIN] + [v[1] for v in styles.STYLES.values()]
        self.texts = [tokens(tok, [t.format(n) for n in names] + looks) for t in TEMPLATES]
        self.n, self.tok, self.step, self.classes = len(names), tok, 0, None

    def loss(self):
        """The text tower learns in every third step, the image tower in all."""
        self.scenes.renew(5)
        x, names, style, whole, captions = self.scenes.batch(64, .08 if self.role == "judge" else 0)
        image = self.vectors(self.model.get_image_features(pixel_values=relit(x, self.role)))
        scale, loss = self.model.logit_scale.exp(), 0
        if self.step % 3 == 0:
            ids = tokens(self.tok, captions)
            said = self.vectors(self.model.get_text_features(input_ids=ids))
            loss = .3 * matched(scale * image[whole] @ said.T, ids)
            kind = self.scenes.w.r.choice((0, 0, 1, 2))
            classes = self.vectors(self.model.get_text_features(input_ids=self.texts[kind]))
            self.classes = classes.detach()
        else:
            classes = self.classes
        self.step += 1
        by_name = scale * image @ classes[:self.n].T
        loss = (loss + F.cross_entropy(by_name, names) +
                .3 * F.cross_entropy(scale * image @ classes[self.n:].T, style))
        right = names.gather(1, by_name.argmax(1)[:, None]).gt(0).float().mean().item()
        return loss, right

    @staticmethod
    def vectors(o):
        return F.normalize(o.pooler_output.float(), dim=-1)


# ---- training


def train(role, minutes, resume, rate):
    tok = CLIPTokenizer.from_pretrained(path("model", "tokenizer"))
    model, seed = build(role, tok)
    ps = list(model.parameters())
    halves = [[(n, p, 1.0) for n, p in model.named_parameters() if n.startswith("text") == said]
              for said in (False, True)]
    opts = [Both(h) for h in halves]
    average, step = Average(ps, .998), 0
    if resume:
        st = load(f"{role}.pt")
        model.load_state_dict(st["model"])
        for opt, d in zip(opts, st["opt"]):
            opt.load_state_dict(d)
        average.shadow, step = st["average"], st["step"]
    print(role, "parameters", count(model), flush=True)
    torch.manual_seed(seed + step)
    task = (Learnt(model, tok, seed + step) if role == "text" else
            Everything(model, tok, seed + step, role))

    def keep():
        save(dict(model=model.state_dict(), opt=[opt.state_dict() for opt in opts],
                  average=average.shadow, step=step), f"{role}.pt")

    began, kept, acc = time.time(), time.time(), []
    while (f := (time.time() - began) / 60 / minutes) < 1:
        loss, right = task.loss()
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(ps, 1.0)
        for opt, half in zip(opts, halves):
            if half[0][1].grad is not None:
                opt.step(rate * min(1, (step + 1) / 100) *
                         (.02 + .98 * (.5 + .5 * math.cos(math.pi * f))))
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6)
        average.update(step)
        step += 1
        acc.append((loss.item(), right))
        if step % 50 == 0:
            print(f"{step} {time.time() - began:.0f}s loss={np.mean([a for a, _ in acc]):.3f} "
                  f"right={np.mean([b for _, b in acc]):.3f} "
                  f"scale={model.logit_scale.exp().item():.1f}", flush=True)
            acc = []
        if time.time() - kept > 180:
            kept = time.time()
            keep()
    keep()
    average.swap()
    write(role, model.eval(), tok)


@torch.no_grad()
def write(role, model, tok):
    """Says how every thing alone is told among all names, and leaves the folder."""
    everything = concepts("core", "more") + ([] if role == "text" else concepts("held"))
    names = [article(r[1]) for r in everything] + ([] if role == "text" else [article(BLOB)])
    for splits in [("core", "more")] + ([] if role == "text" else [("held",)]):
        w = World(9, splits=splits)
        x = pixels([w.draw([(n, NORMAL, "middle", None)]) for n in w.names])
        o = model(input_ids=tokens(tok, names), pixel_values=x)
        y = torch.tensor([names.index(article(n)) for n in w.names])
        print(role, splits, "told among", len(names), "names:",
              round((o.logits_per_image.argmax(1) == y).float().mean().item(), 4), flush=True)
    model.half()
    if role == "text":
        m = CLIPTextModel(model.text_model.config)
        m.load_state_dict(model.text_model.state_dict(), strict=False)
        m.save_pretrained(path("model", "text_encoder"))
        return
    model.save_pretrained(path(role))
    for f in ("vocab.json", "merges.txt"):
        with open(path("model", "tokenizer", f)) as a, open(path(role, f), "w") as b:
            b.write(a.read())
    with open(path(role, "preprocessor_config.json"), "w") as f:
        json.dump(PREPROCESSOR, f, indent=1)


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("role", choices=ROLES)
    p.add_argument("minutes", type=float)
    p.add_argument("--resume", action="store_true")
    p.add_argument("--rate", type=float, default=2e-3, help="lower when resuming")
    o = p.parse_args()
    torch.set_num_threads(1)
    train(o.role, o.minutes, o.resume, o.rate)
