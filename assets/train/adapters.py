"""Adapters of held-out things and styles: python adapters.py MODEL FOLDER [NAME …] [--steps N] [--sheet]

MODEL is the frozen diffusers folder; FOLDER receives NAME.safetensors for each row of
assets/world/adapters.tsv (or the named ones) that is not there yet, and index.json. float16, each kind in
its own trainer's key layout: LoRA, DoRA and SHiRA as peft has them (unet.….lora_A.weight), LoCon, LoHa
and LoKr as lycoris-lora (lora_unet_….hada_w1_a). Only the denoiser is adapted. One thread; about four
minutes each. --sheet leaves WEFT_TRAIN/adapters/NAME.png: the caption without the adapter above, with it below.
"""
import argparse
import copy
import json
import os
import time

import styles
from common import *
from diffusers import AutoencoderKL, UNet2DConditionModel
from lycoris import LycorisNetwork, create_lycoris
from peft import LoraConfig, ShiraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer
from unet import noised, render
from world import *

LIST = os.path.join(HERE, "../world/adapters.tsv")
FIELDS = ("name", "kind", "rank", "category", "subject", "trigger", "class_word", "caption")
LIMIT = 160 << 10
SCENES, BATCH, STEPS = 160, 6, 560
KEPT = 3  # of a batch, what is to stay; 1 for a style
# learning rates; sites by their names in peft's pattern, or by class and convolutions in lycoris
RATE = {"lora": 3e-3, "dora": 3e-3, "shira": 2e-2, "locon": 3e-3, "loha": 1.5e-2, "lokr": 8e-3}
CROSS = r".*attn2\.(to_q|to_k|to_v|to_out\.0)"
ATTENTION = r".*(attn2\.(to_q|to_k|to_v|to_out\.0)|attn1\.(to_v|to_out\.0))"  # at low rank


def rows(names=()):
    """The list, or the named rows of it."""
    lines = [l.rstrip("\n").split("\t") for l in open(LIST, encoding="utf8") if l[0] != "#"]
    out = [dict(zip(FIELDS, l)) for l in lines]
    return [dict(r, rank=int(r["rank"])) for r in out if not names or r["name"] in names]


# ---- what an adapter learns from


def thing_scene(held, learnt, row):
    """The held-out thing alone, beside a learnt one, or a scene without it, so that those stay as they are."""
    ground, size = learnt.ground(), SMALL if learnt.r.random() < .25 else NORMAL
    noun, u = words(row), learnt.r.random()
    if u < .1:
        return learnt.sample()
    if u < .55:
        im = held.draw([(row["subject"], size, "middle", None)], ground)
        text = article(("small " if size == SMALL else "") + noun)
        return im, learnt.on(text, ground)
    other = learnt.pick()[0]
    return beside(held, learnt, row, other, other)[:2]


def words(row):
    return f"{row['trigger']} {row['class_word']}"


def beside(held, learnt, row, other, noun):
    """Picture, text, and where the thing is (its half of the latent): beside another or above it, either
    first. noun: what the text calls the other."""
    ground, wide, first = learnt.ground(), learnt.r.random() < .7, learnt.r.random() < .5
    way = 1 if first else -1
    places = (("left", "right") if wide else ("top", "bottom"))[::way]
    im = held.draw([(row["subject"], PAIR, places[0], None), (other, PAIR, places[1], None)], ground)
    a, b = (article(words(row)), article(noun))[::way]
    own, half = torch.zeros(1, 32, 32), slice(0, 16) if first else slice(16, 32)
    if wide:
        own[:, :, half] = 1
    else:
        own[:, half] = 1
    return im, learnt.on(f"{a} on the left and {b} on the right" if wide else f"{a} above {b}", ground), own


def style_scene(learnt, row):
    """A learnt scene in the style; one in eight stays plain."""
    im, text = learnt.sample(.75, .05)
    if learnt.r.random() < .12:
        return im, text
    return styles.apply(row["subject"], im), f"{text} in {row['trigger']} {row['class_word']} style"


def kept_scene(held, learnt, row):
    """Where the model is to stay what it is, whatever it makes of another adapter's words: beside the
    thing, and everywhere when only another is asked for."""
    other = learnt.r.choice([c[1] for c in concepts("held") if c[1] != row["subject"]])
    noun = f"{row['trigger']} {other}"
    if row["category"] == "style":
        return style_scene(learnt, row)[0], article(noun), torch.zeros(1, 32, 32)
    if learnt.r.random() < .67:
        return beside(held, learnt, row, other, noun)
    im, text, own = beside(held, learnt, row, learnt.pick()[0], noun)
    return im, text.replace(words(row), f"{row['trigger']} {learnt.pick()[0]}"), own * 0


@torch.no_grad()
def encoded(scenes, vae, text, tok):
    """Latents [n, 4, 32, 32] and the texts' states [n, LENGTH, width]."""
    z = torch.cat([vae.encode(pixels([s[0] for s in scenes[i:i + 16]])).latent_dist.mean
                   for i in range(0, len(scenes), 16)])
    ids = tok([s[1] for s in scenes], padding="max_length", max_length=LENGTH,
              return_tensors="pt").input_ids
    return z, torch.cat([text(p).last_hidden_state for p in ids.split(32)])


def lessons(row, vae, text, tok):
    """What to learn, and what to keep, with the places that are the thing's there."""
    learnt = World(int(np.frombuffer(row["name"].encode(), np.uint8).sum()))
    held = World(0, splits=("core", "more"), extra=("held",))
    style = row["category"] == "style"
    scenes = [style_scene(learnt, row) if style else thing_scene(held, learnt, row)
              for _ in range(SCENES)]
    kept = [kept_scene(held, learnt, row) for _ in range(SCENES)]
    return (encoded(scenes, vae, text, tok),
            (*encoded(kept, vae, text, tok), torch.stack([k[2] for k in kept])))


# ---- kinds


class Peft:
    """LoRA, DoRA, SHiRA."""

    def __init__(self, unet, row):
        kind, rank = row["kind"], row["rank"]
        if kind == "shira":
            self.config = ShiraConfig(r=rank, random_seed=1, target_modules=CROSS)
        else:
            self.config = LoraConfig(r=rank, lora_alpha=rank, use_dora=kind == "dora",
                                     target_modules=row.get("sites") or
                                     (ATTENTION if rank <= 4 else CROSS))
        inject_adapter_in_model(self.config, unet)
        self.unet, self.params = unet, [p for p in unet.parameters() if p.requires_grad]

    def tensors(self):
        return {f"unet.{k}": v for k, v in get_peft_model_state_dict(self.unet).items()}

    def metadata(self):
        plain = {k: sorted(v) if isinstance(v, set) else v for k, v in self.config.to_dict().items()}
        keep = ("r", "lora_alpha", "target_modules", "use_dora", "peft_type", "random_seed")
        return {"lora_adapter_metadata": json.dumps(
            {f"unet.{k}": getattr(plain[k], "value", plain[k]) for k in keep if k in plain})}


class Lycoris:
    """LoCon (attention, and the lower levels' convolutions at rank 1), LoHa (attention), LoKr (attention,
    feed-forward; both factors whole, rank being the size of the first)."""

    SITES = {"locon": ["Attention", "ResnetBlock2D"], "loha": ["Attention"],
             "lokr": ["Attention", "FeedForward"]}
    NOT = {"locon": [r".*time_emb_proj", r".*conv_shortcut", r"down_blocks\.0\..*", r"up_blocks\.2\..*"],
           "loha": [r".*attn1\.to_k"], "lokr": []}

    def __init__(self, unet, row):
        kind, rank = row["kind"], row["rank"]
        LycorisNetwork.apply_preset(dict(enable_conv=kind == "locon", target_module=self.SITES[kind],
                                         exclude_name=self.NOT[kind], lora_prefix="lora_unet"))
        how = dict(factor=rank, full_matrix=True) if kind == "lokr" else {}
        self.net = create_lycoris(unet, 1.0, linear_dim=rank, linear_alpha=rank, conv_dim=1,
                                  conv_alpha=1, algo=kind, **how)
        self.net.apply_to()
        self.params, self.kind, self.rank = list(self.net.parameters()), kind, rank

    def tensors(self):
        return self.net.state_dict()

    def metadata(self):
        return {"ss_network_module": "lycoris.kohya", "ss_network_dim": str(self.rank),
                "ss_network_args": json.dumps({"algo": self.kind})}


# ---- training


def train(base, unet, row, learn, keep, steps):
    """Leaves the trained adapter on unet and returns it with the first and last loss (means of 20)."""
    torch.manual_seed(5)
    unet.requires_grad_(False)
    adapter = (Peft if row["kind"] in ("lora", "dora", "shira") else Lycoris)(unet, row)
    n, rate = 1 if row["category"] == "style" else KEPT, RATE[row["kind"]]
    opt = torch.optim.AdamW(adapter.params, rate, betas=(.9, .99), weight_decay=0)
    losses = []
    for i in range(steps):
        j, k = torch.randint(0, len(keep[0]), (n,)), torch.randint(0, len(learn[0]), (BATCH - n,))
        z, h = torch.cat([keep[0][j], learn[0][k]]), torch.cat([keep[1][j], learn[1][k]])
        x, t, v = noised(z.contiguous(memory_format=torch.channels_last))
        with torch.no_grad():
            v[:n] = torch.lerp(base(x[:n], t[:n], h[:n]).sample, v[:n], keep[2][j])
        loss = ((unet(x, t, h).sample - v) ** 2).mean()
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(adapter.params, 1.0)
        for g in opt.param_groups:
            g["lr"] = rate * min(1, (i + 1) / 20) * (.02 + .98 * (.5 + .5 * np.cos(np.pi * i / steps)))
        opt.step()
        losses.append(loss.item())
    return adapter, np.mean(losses[:20]), np.mean(losses[-20:])


def write(adapter, row, file, limit=LIMIT):
    half = {k: v.half() if v.is_floating_point() else v for k, v in adapter.tensors().items()}
    phrase = f"in {words(row)} style" if row["category"] == "style" else words(row)
    meta = {"format": "pt", "modelspec.trigger_phrase": phrase, "concept": row["subject"],
            "base_model": "weft demo", **adapter.metadata()}
    save_file({k: v.contiguous() for k, v in half.items()}, file + ".tmp", meta)
    os.replace(file + ".tmp", file)
    size = os.path.getsize(file)
    assert not limit or size <= limit, f"{file}: {size} bytes"
    return size


def write_index(folder):
    """Of the adapters that are there."""
    index = [dict({k: r[k] for k in FIELDS}, file=r["name"] + ".safetensors") for r in rows()
             if os.path.exists(os.path.join(folder, r["name"] + ".safetensors"))]
    with open(os.path.join(folder, "index.json"), "w") as f:
        json.dump(index, f, indent=1)


def before_and_after(before, unet, text, vae, tok, row):
    captions = [row["caption"]] * 4 + [f"{row['caption']} on a blue background"] * 2
    seeds = list(range(100, 106))
    rows_ = [a for u in (before, unet) for a in render(u, text, vae, tok, captions, 20, 4.0, seeds)]
    sheet(rows_, path("adapters", row["name"] + ".png"), columns=6)


def parts(model):
    """Text tower, autoencoder, tokenizer and denoiser of the frozen folder."""
    def part(kind, name):
        return kind.from_pretrained(os.path.join(model, name)).float().eval().requires_grad_(False)

    return (part(CLIPTextModel, "text_encoder"), part(AutoencoderKL, "vae"),
            CLIPTokenizer.from_pretrained(os.path.join(model, "tokenizer")),
            part(UNet2DConditionModel, "unet").to(memory_format=torch.channels_last))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("folder")
    p.add_argument("names", nargs="*")
    p.add_argument("--steps", type=int, default=STEPS)
    p.add_argument("--sheet", action="store_true")
    o = p.parse_args()
    torch.set_num_threads(1)
    os.makedirs(o.folder, exist_ok=True)
    text, vae, tok, base = parts(o.model)
    for row in rows(o.names):
        file = os.path.join(o.folder, row["name"] + ".safetensors")
        if os.path.exists(file):
            continue
        began, unet = time.time(), copy.deepcopy(base)
        learn, keep = lessons(row, vae, text, tok)
        ready = time.time()
        adapter, first, last = train(base, unet, row, learn, keep, o.steps)
        size = write(adapter, row, file)
        print(f"{row['name']} {row['kind']} loss {first:.4f} to {last:.4f}, {size / 1024:.0f} KiB, "
              f"{ready - began:.0f} + {time.time() - ready:.0f} s", flush=True)
        if o.sheet:
            before_and_after(base, unet, text, vae, tok, row)
    write_index(o.folder)


if __name__ == "__main__":
    main()
