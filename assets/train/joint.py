"""The ceiling of composition: one adapter for two things, trained on both together: python joint.py MODEL FOLDER A+B …

A and B are names of assets/world/adapters.tsv, things both. A third of the scenes shows them side by side, the
others one of them as its own adapter learns it; the model stays what it is elsewhere. LoRA of rank 8 on all
attention layers, twice the steps of one adapter, so it knows and can do what two of them could at best. FOLDER
receives A+B.safetensors; no such file ships, only what is measured of them (tests/eval/compose.py ceiling).
"""
import argparse
import copy
import os
import time

import numpy as np
import torch

import adapters
from adapters import BATCH, KEPT, RATE, SCENES, STEPS, Peft, encoded, rows, thing_scene, words
from common import *
from diffusers import AutoencoderKL, UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from transformers import CLIPTextModel, CLIPTokenizer
from unet import noised
from world import *


class Rank8(Peft):
    def __init__(self, unet):
        self.config = LoraConfig(r=8, lora_alpha=8, target_modules=adapters.ATTENTION)
        inject_adapter_in_model(self.config, unet)
        self.unet, self.params = unet, [p for p in unet.parameters() if p.requires_grad]


def pair_scene(held, learnt, a, b):
    """Both, a first or b first, as the model's own pairs are laid out."""
    if learnt.r.random() < .5:
        a, b = b, a
    ground, wide = learnt.ground(), learnt.r.random() < .8
    places = ("left", "right") if wide else ("top", "bottom")
    im = held.draw([(a["subject"], PAIR, places[0], None), (b["subject"], PAIR, places[1], None)], ground)
    p, q = article(words(a)), article(words(b))
    return im, learnt.on(f"{p} on the left and {q} on the right" if wide else f"{p} above {q}", ground)


def lessons(a, b, vae, text, tok):
    learnt = World(int(np.frombuffer((a["name"] + b["name"]).encode(), np.uint8).sum()))
    held = World(0, splits=("core", "more"), extra=("held",))
    scenes = [pair_scene(held, learnt, a, b) if i % 3 == 0 else
              thing_scene(held, learnt, (a, b)[i % 2]) for i in range(2 * SCENES)]
    kept = [learnt.sample() for _ in range(SCENES)]
    return encoded(scenes, vae, text, tok), encoded(kept, vae, text, tok)


def train(base, unet, learn, keep, steps):
    torch.manual_seed(5)
    unet.requires_grad_(False)
    adapter, rate, losses = Rank8(unet), RATE["lora"], []
    opt = torch.optim.AdamW(adapter.params, rate, betas=(.9, .99), weight_decay=0)
    for i in range(steps):
        n = 1 + i % (KEPT - 1)
        j, k = torch.randint(0, len(keep[0]), (n,)), torch.randint(0, len(learn[0]), (BATCH - n,))
        z, h = torch.cat([keep[0][j], learn[0][k]]), torch.cat([keep[1][j], learn[1][k]])
        x, t, v = noised(z.contiguous(memory_format=torch.channels_last))
        with torch.no_grad():
            v[:n] = base(x[:n], t[:n], h[:n]).sample
        loss = ((unet(x, t, h).sample - v) ** 2).mean()
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(adapter.params, 1.0)
        for g in opt.param_groups:
            g["lr"] = rate * min(1, (i + 1) / 20) * (.02 + .98 * (.5 + .5 * np.cos(np.pi * i / steps)))
        opt.step()
        losses.append(loss.item())
    return adapter, np.mean(losses[:20]), np.mean(losses[-20:])


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("folder")
    p.add_argument("pairs", nargs="+")
    p.add_argument("--steps", type=int, default=2 * STEPS)
    o = p.parse_args()
    torch.set_num_threads(1)
    os.makedirs(o.folder, exist_ok=True)

    def part(kind, name):
        return kind.from_pretrained(os.path.join(o.model, name)).float().eval().requires_grad_(False)

    tok = CLIPTokenizer.from_pretrained(os.path.join(o.model, "tokenizer"))
    text, vae = part(CLIPTextModel, "text_encoder"), part(AutoencoderKL, "vae")
    base = part(UNet2DConditionModel, "unet").to(memory_format=torch.channels_last)
    for pair in o.pairs:
        file = os.path.join(o.folder, pair + ".safetensors")
        if os.path.exists(file):
            continue
        a, b = (rows([n])[0] for n in pair.split("+"))
        began, unet = time.time(), copy.deepcopy(base)
        adapter, first, last = train(base, unet, *lessons(a, b, vae, text, tok), o.steps)
        adapters.write(adapter, dict(a, subject=pair, class_word=f"{a['class_word']}, {b['trigger']} "
                                     f"{b['class_word']}", kind="lora"), file, limit=None)
        print(f"{pair} loss {first:.4f} to {last:.4f}, {time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
