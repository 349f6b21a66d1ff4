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

from adapters import ATTENTION, SCENES, STEPS, encoded, parts, rows, thing_scene, train, words, write
from world import PAIR, World, article


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
    """What to learn, and the model's own scenes, all of which are to stay."""
    learnt = World(int(np.frombuffer((a["name"] + b["name"]).encode(), np.uint8).sum()))
    held = World(0, splits=("core", "more"), extra=("held",))
    scenes = [pair_scene(held, learnt, a, b) if i % 3 == 0 else
              thing_scene(held, learnt, (a, b)[i % 2]) for i in range(2 * SCENES)]
    kept = encoded([learnt.sample() for _ in range(SCENES)], vae, text, tok)
    return encoded(scenes, vae, text, tok), (*kept, torch.zeros(SCENES, 1, 32, 32))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("folder")
    p.add_argument("pairs", nargs="+")
    p.add_argument("--steps", type=int, default=2 * STEPS)
    o = p.parse_args()
    torch.set_num_threads(1)
    os.makedirs(o.folder, exist_ok=True)
    text, vae, tok, base = parts(o.model)
    for pair in o.pairs:
        file = os.path.join(o.folder, pair + ".safetensors")
        if os.path.exists(file):
            continue
        a, b = (rows([n])[0] for n in pair.split("+"))
        both = dict(a, kind="lora", rank=8, sites=ATTENTION, category="joint", subject=pair,
                    class_word=f"{a['class_word']}, {words(b)}")
        began, unet = time.time(), copy.deepcopy(base)
        adapter, first, last = train(base, unet, both, *lessons(a, b, vae, text, tok), o.steps)
        write(adapter, both, file, limit=None)
        print(f"{pair} loss {first:.4f} to {last:.4f}, {time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
