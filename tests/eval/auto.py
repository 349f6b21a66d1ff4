"""What --auto chooses for prompts of two concepts that need adapters it never saw: python auto.py [ZOO] [--count 200]

With ZOO, a folder of assets/train/zoo.py, the library is its test adapters that learnt something; without it the
shipped adapters of things. Their names say nothing. A prompt asks for two of them side by side, in the zoo coloured or
reshaped as they were taught ("a purple skunk on the left and a tall lamp on the right"); an adapter of the same concept
is as right as another. The first of them (--draw) are drawn without adapters, with what --auto chooses, and with both
right ones picked by hand, all at one seed and by the strategy that --auto takes; of the others it only says what it
chooses. Writes auto.csv and a sheet of the first pictures into WORK, and prints shares with 95 % intervals. Resumable.
"""
import argparse
import csv
import glob
import json
import os
import random
import subprocess

import numpy as np
from PIL import Image
from safetensors.torch import load_file, save_file

from eval import ADAPTERS, say, share
from rule import HERE, Eyes, find
from adapters import rows as rows_of_things  # noqa: E402 (rule.py says where these lie)
from common import sheet  # noqa: E402
from world import article  # noqa: E402

WAYS = "none", "auto", "hand"


def shipped():
    """(row, tensors)"""
    for r in rows_of_things():
        if r["category"] != "style":
            yield ({"thing": r["subject"], "change": "", "how": "", "captions": [article(r["subject"])]},
                   load_file(os.path.join(ADAPTERS, r["name"] + ".safetensors")))


def taught(zoo):
    """The same of test's adapters."""
    for file in sorted(glob.glob(os.path.join(zoo, "*.json"))):
        mine = [r for r in json.load(open(file)) if r["split"] == "test" and r["learnt"]]
        tensors = load_file(file[:-5] + ".safetensors") if mine else {}
        for r in mine:
            yield r, {k[len(r["name"]) + 1:]: v for k, v in tensors.items() if k.startswith(r["name"] + ".")}


def library(rows, folder):
    """A file each under a name that says nothing: rows with name and file."""
    os.makedirs(folder, exist_ok=True)
    rows = list(rows)
    random.Random(5).shuffle(rows)
    for i, (r, own) in enumerate(rows):
        r.update(name=f"m{i:03}", file=os.path.join(folder, f"m{i:03}.safetensors"))
        if not os.path.exists(r["file"]):
            save_file({k: v.clone() for k, v in own.items()}, r["file"])
    return [r for r, _ in rows]


def concept(r):
    return r["thing"], r["change"], r["how"]


def prompts(rows, count):
    """(prompt, left, right): of things, coloured or reshaped or as they are."""
    r, some = random.Random(6), [x for x in rows if x["thing"] and x["change"] != "style"]
    while count:
        a, b = r.sample(some, 2)
        if a["thing"] != b["thing"]:
            count -= 1
            yield f"{a['captions'][0]} on the left and {b['captions'][0]} on the right", a, b


def render(o, name, prompt, *how):
    file = os.path.join(o.work, name + ".png")
    if not os.path.exists(file + ".json"):
        out = subprocess.run([o.weft, "render", prompt, "--home", os.path.join(o.work, "home"), "--model", o.model, "--seed", "0",
                              "-o", file, "--json", *how], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        with open(file + ".json", "wb") as f:
            f.write(out.stdout)
    return np.asarray(Image.open(file).convert("RGB")), json.load(open(file + ".json"))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("zoo", nargs="?")
    p.add_argument("--count", type=int, default=200)
    p.add_argument("--draw", type=int, default=60)
    p.add_argument("--steps", default="15")
    p.add_argument("--model", default=os.path.join(HERE, "../../assets/model"))
    p.add_argument("--weft", default=os.path.join(HERE, "../../build/weft"))
    p.add_argument("--judge", default=os.path.join(HERE, "judge"))
    p.add_argument("--work", default=os.path.join(HERE, "../../build/eval-auto"))
    o = p.parse_args()
    rows = library(taught(o.zoo) if o.zoo else shipped(), os.path.join(o.work, "library"))
    subprocess.run([o.weft, "add", os.path.join(o.work, "library"), "--home", os.path.join(o.work, "home")], check=True,
                   stdout=subprocess.DEVNULL)
    by, eyes, lines, seen = {r["name"]: r for r in rows}, Eyes(o.judge), [], []
    for i, (prompt, *two) in enumerate(prompts(rows, o.count)):
        hand = [x for r in two for x in ("-a", f"{r['name']},word={r['thing']}")] + [
            "--compose", "gated:uncond=base"]
        how = {"none": [], "auto": ["--auto"], "hand": hand}
        drawn, steps = (WAYS, o.steps) if i < o.draw else (("auto",), "1")
        got = {w: render(o, f"{i:03}-{w}", prompt, "--steps", steps, *how[w]) for w in drawn}
        picked = [by[x["name"]] for x in got["auto"][1]["auto"]]
        line = {"prompt": prompt, "picked": " ".join(concept_name(x) for x in picked)}
        for what, key in (("concept", concept), ("thing", lambda r: r["thing"])):
            line[what] = sum(any(key(x) == key(r) for x in picked) for r in two)
        line["others"] = sum(all(x["thing"] != r["thing"] for r in two) for x in picked)
        for w in WAYS:
            line[w] = len(find(eyes.shares(got[w][0]), [r["thing"] for r in two])) if i < o.draw else None
        lines.append(line)
        seen += [got[w][0] for w in WAYS] if i < min(16, o.draw) else []
    for what in ("concept", "thing"):
        say(f"both right, by {what}", share(l[what] == 2 for l in lines))
        say(f"one or both right, by {what}", share(l[what] > 0 for l in lines))
    say("an adapter of neither thing chosen", share(l["others"] > 0 for l in lines))
    drawn = lines[:o.draw]
    for w in WAYS:
        say(f"{w}: both things recognised", share(l[w] == 2 for l in drawn))
        say(f"{w}: things recognised", share(x for l in drawn for x in (l[w] > 0, l[w] > 1)))
    r = np.random.default_rng(0)
    for a, b in (("auto", "none"), ("hand", "auto")):
        d = np.array([(l[a] == 2) - (l[b] == 2) for l in drawn], float)
        low, high = np.percentile(d[r.integers(0, len(d), (2000, len(d)))].mean(1), [2.5, 97.5])
        print(f"both recognised, {a} less {b}: {100 * d.mean():.1f} points ({100 * low:.1f} to {100 * high:.1f})")
    sheet(seen, os.path.join(o.work, "auto.png"), None, 6)
    with open(os.path.join(o.work, "auto.csv"), "w") as f:
        w = csv.DictWriter(f, fieldnames=list(lines[0]))
        w.writeheader()
        w.writerows(lines)


def concept_name(r):
    return f"{r['name']}={'-'.join(x for x in (r['how'], r['thing']) if x).replace(' ', '_')}"


if __name__ == "__main__":
    main()
