"""The demo world's figures: python eval.py [options] COMMAND …; README.md says what each means.

    scenes          the rule and the glyph check on true scenes of one to five things, and of styles
    vae             true scenes of two through the autoencoder and back
    render          makes the pictures of the lists that are not there yet (build/weft, seed 0)
    singles pairs   quality of the model's own pictures, from the lists in prompts/
    adapters        each alone at strength 1, ten seeds, and the same captions without it
    merges          two adapters of things added in one picture
    label           the sheet and the table for looking at 100 pictures, verdicts hidden
    agree           the filled table against judge and glyphs

Pictures lie in WORK/pictures, results in WORK/NAME.json, contact sheets in WORK/NAME.png.
"""
import argparse
import glob
import json
import math
import os
import random
import subprocess

import numpy as np
import torch
from PIL import Image

import rule
from glyph import THRESHOLD as FITS
from glyph import Glyphs
from rule import HERE, NAMES, Eyes, find, in_place

import styles  # noqa: E402  (rule.py says where these lie)
from common import images, pixels, sheet  # noqa: E402
from adapters import rows  # noqa: E402
from pieces import laid_out, placed  # noqa: E402
from world import PAIR, PLACES, World, article  # noqa: E402

MODEL = os.path.join(HERE, "../../assets/model")
ADAPTERS = os.path.join(HERE, "../../assets/adapters")
SEEDS = 10


# ---- figures


def wilson(k, n, z=1.959964):
    """The 95 % interval of a share of k in n."""
    if not n:
        return [0.0, 1.0]
    p, d = k / n, 1 + z * z / n
    m, h = (p + z * z / 2 / n) / d, z / d * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
    return [round(max(0.0, m - h), 4), round(min(1.0, m + h), 4)]


def share(hits):
    hits = list(hits)
    k = int(sum(hits))
    return {"k": k, "n": len(hits), "share": round(k / max(1, len(hits)), 4),
            "interval": wilson(k, len(hits))}


def say(title, s):
    print(f"{title:44} {s['k']:5} of {s['n']:5}  {100 * s['share']:5.1f} %  "
          f"({100 * s['interval'][0]:.1f} to {100 * s['interval'][1]:.1f})", flush=True)


def keep(o, name, result):
    with open(os.path.join(o.work, name + ".json"), "w") as f:
        json.dump(result, f, indent=1)


# ---- true scenes


def true_scenes(n, count, w):
    """Half as the model lays them out (up to three), half anywhere: (picture, names)."""
    for i in range(count):
        if n == 1 and i % 2:
            things = [(w.pick()[0], w.r.choice((64, 104)), PLACES["middle"], None)]
        elif n == 2 and i % 2:
            things = [(a, PAIR, PLACES[p], None) for a, p in zip(w.pick(2), ("left", "right"))]
        else:
            things = []
            while len(things) < n:
                things = placed(w, n)
        yield w.draw([(*t[:3], None) for t in things], w.ground()), [t[0] for t in things]


def scenes(o, eyes):
    w, glyphs, result = World(1234, splits=("core", "more", "held")), Glyphs(), {}
    for n in range(1, 6):
        there, absent, invented, fits, misfits, whole = [], [], [], [], [], []
        for im, names in true_scenes(n, o.count, w):
            shares = eyes.shares(im)
            found = find(shares, names)
            others = w.r.sample([x for x in NAMES if x not in names], 5)
            there += [x in found for x in names]
            whole.append(len(found) == n)
            absent += [bool(find(shares, [x])) for x in others]
            invented.append(any(find(shares, [x]) for x in NAMES if x not in names))
            fits += [glyphs.match(im, x)[0] >= FITS for x in names]
            misfits += [glyphs.match(im, x)[0] >= FITS for x in others[:2]]
        result[n] = {"recall": share(there), "all": share(whole), "false": share(absent),
                     "some_wrong_name": share(invented), "glyph_recall": share(fits),
                     "glyph_false": share(misfits)}
        for k, v in result[n].items():
            say(f"{n} things: {k}", v)
    result["styles"] = style_scenes(o, eyes, w)
    keep(o, "scenes", result)


def style_scenes(o, eyes, w):
    right, plain = [], []
    for _ in range(max(1, o.count // 10)):
        for s in rule.STYLES:
            im = w.draw(laid_out(w), w.ground())
            right.append(eyes.style(eyes.vectors(styles.apply(s, im))) == s)
            plain.append(eyes.style(eyes.vectors(im)) is not None)
    result = {"recall": share(right), "false": share(plain)}
    for k, v in result.items():
        say(f"styles: {k}", v)
    return result


def vae(o, eyes):
    from diffusers import AutoencoderKL
    m = AutoencoderKL.from_pretrained(os.path.join(o.model, "vae")).float().eval()
    w, result = World(4321, splits=("core", "more", "held")), {}
    before, after, psnr, pictures = [], [], [], []
    for _ in range(o.count):
        a, b = w.pick(2)
        im, _ = w.pair((a, b), tints=(None, None))
        with torch.no_grad():
            back = images(m.decode(m.encode(pixels([im])).latent_dist.mean).sample)[0]
        before.append(len(find(eyes.shares(im), (a, b))) == 2)
        after.append(len(find(eyes.shares(back), (a, b))) == 2)
        psnr.append(10 * math.log10(255 ** 2 / ((im.astype(float) - back) ** 2).mean()))
        pictures += [im, back]
    result = {"both_before": share(before), "both_after": share(after), "psnr": float(np.mean(psnr))}
    say("true scenes of two", result["both_before"])
    say("the same through the autoencoder", result["both_after"])
    print("PSNR %.1f dB" % result["psnr"])
    sheet(pictures[:48], os.path.join(o.work, "vae.png"))
    keep(o, "vae", result)


# ---- pictures of weft


def table(name):
    with open(os.path.join(HERE, "prompts", name + ".tsv"), encoding="utf8") as f:
        head, *lines = [l.rstrip("\n").split("\t") for l in f]
    return [dict(zip(head, l)) for l in lines]


def jobs(o):
    """(file, prompt, seed, adapter files) of every picture that is judged."""
    for name in ("singles", "pairs"):
        for i, r in enumerate(table(name)):
            yield f"{name}/{i:03}.png", r["prompt"], 0, []
    for a in rows():
        for seed in range(SEEDS):
            yield f"adapters/{a['name']}/with-{seed}.png", a["caption"], seed, [a["name"]]
            yield f"adapters/{a['name']}/without-{seed}.png", a["caption"], seed, []
    for i, r in enumerate(table("merges")):
        for seed in range(2):
            yield f"merges/{i:03}-{seed}.png", r["prompt"], seed, [r["first"], r["second"]]


def render(o):
    for name, prompt, seed, adapters in jobs(o):
        file = os.path.join(o.work, "pictures", name)
        if os.path.exists(file) or not name.startswith(o.only):
            continue
        os.makedirs(os.path.dirname(file), exist_ok=True)
        refs = [x for a in adapters for x in ("-a", os.path.join(o.adapters, a + ".safetensors"))]
        subprocess.run([o.weft, "render", prompt, "--model", o.model, "--seed", str(seed), "-o", file,
                        *o.setting, *refs], check=True, stdout=subprocess.DEVNULL)


def picture(o, name):
    return np.asarray(Image.open(os.path.join(o.work, "pictures", name)).convert("RGB"))


def singles(o, eyes):
    glyphs, lines, pictures, labels = Glyphs(), [], [], []
    for i, r in enumerate(table("singles")):
        im = picture(o, f"singles/{i:03}.png")
        found = find(eyes.shares(im), [r["thing"]])
        fit = glyphs.match(im, r["thing"])[0]
        lines.append(dict(r, recognised=bool(found), glyph=round(fit, 3)))
        pictures.append(im)
        labels.append(("" if found else "- ") + r["prompt"])
    result = {"recognised": share(l["recognised"] for l in lines),
              "glyph": share(l["glyph"] >= FITS for l in lines),
              "judge_and_glyph_agree": share((l["glyph"] >= FITS) == l["recognised"] for l in lines)}
    for k, v in result.items():
        say(f"singles: {k}", v)
    sheet(pictures, os.path.join(o.work, "singles.png"), labels, 20)
    keep(o, "singles", dict(result, pictures=lines))


def both(o, eyes, name, files, lists, subject):
    """Pictures of two things: are both recognised, and in their places?"""
    lines, pictures, labels = [], [], []
    for file, r in zip(files, lists):
        im, (a, b) = picture(o, file), (subject(r["first"]), subject(r["second"]))
        found = find(eyes.shares(im), (a, b))
        lines.append(dict(r, found=sorted(found), both=len(found) == 2,
                          in_place=in_place(found, a, b, r["layout"])))
        pictures.append(im)
        labels.append(f"{len(found)}{'p' if lines[-1]['in_place'] else ''} {r['prompt']}")
    result = {"both": share(l["both"] for l in lines),
              "in_place": share(l["in_place"] for l in lines),
              "one_or_both": share(bool(l["found"]) for l in lines)}
    for k, v in result.items():
        say(f"{name}: {k}", v)
    sheet(pictures, os.path.join(o.work, name + ".png"), labels, 10)
    keep(o, name, dict(result, pictures=lines))


def pairs(o, eyes):
    lists = table("pairs")
    both(o, eyes, "pairs", [f"pairs/{i:03}.png" for i in range(len(lists))], lists, lambda x: x)


def merges(o, eyes):
    lists, subjects = table("merges"), {a["name"]: a["subject"] for a in rows()}
    both(o, eyes, "merges", [f"merges/{i:03}-{s}.png" for i in range(len(lists)) for s in range(2)],
         [r for r in lists for _ in range(2)], subjects.get)


def adapters(o, eyes):
    def shown(a, im):
        if a["category"] == "style":
            return eyes.style(eyes.vectors(im)) == a["subject"]
        return bool(find(eyes.shares(im), [a["subject"]]))

    lines, pictures, labels = [], [], []
    for a in rows():
        folder = os.path.join(o.work, "pictures/adapters", a["name"])
        got = {}
        for how in ("with", "without"):
            ims = [picture(o, f) for f in sorted(glob.glob(os.path.join(folder, how + "-*.png")))]
            got[how] = [shown(a, im) for im in ims]
            if how == "with":
                pictures += ims
                labels += [("" if ok else "- ") + a["name"] for ok in got[how]]
        if not got["with"]:
            continue
        lines.append(dict(a, recognised=share(got["with"]), without=share(got["without"])))
        print(f"{a['name']:18} {a['kind']:6} {a['category']:10} {sum(got['with']):3} of "
              f"{len(got['with'])}, without {sum(got['without'])}", flush=True)
    result = {k: {"k": sum(l[k]["k"] for l in lines), "n": sum(l[k]["n"] for l in lines)}
              for k in ("recognised", "without")}
    for k, v in result.items():
        v.update(share=round(v["k"] / max(1, v["n"]), 4), interval=wilson(v["k"], v["n"]))
        say(f"adapters: {k}", v)
    sheet(pictures, os.path.join(o.work, "adapters.png"), labels, 10)
    keep(o, "adapters", dict(result, adapters=lines))


# ---- a person's eyes


def label(o):
    """100 pictures and a name each, a quarter of the names wrong, in no order."""
    r, asked = random.Random(3), []
    for i, row in enumerate(table("singles")):
        asked.append((f"singles/{i:03}.png", row["thing"]))
    for i, row in enumerate(table("pairs")):
        asked.append((f"pairs/{i:03}.png", row[r.choice(("first", "second"))]))
    asked = [(f, n if r.random() < .75 else r.choice(NAMES)) for f, n in r.sample(asked, 100)]
    file = os.path.join(o.work, "labels.tsv")
    with open(file, "w") as f:
        f.write("number\tpicture\tthing\tseen\n")
        f.writelines(f"{k + 1}\t{p}\t{n}\t\n" for k, (p, n) in enumerate(asked))
    sheet([picture(o, p) for p, _ in asked], os.path.join(o.work, "labels.png"),
          [f"{k + 1}: {article(n)}?" for k, (_, n) in enumerate(asked)], 10)
    print(f"look at labels.png and put 1 or 0 into the last column of {file}")


def agree(o, eyes):
    with open(o.labels, encoding="utf8") as f:
        lines = [l.rstrip("\n").split("\t") for l in f][1:]
    glyphs, verdicts = Glyphs(), []
    for _, name, thing, seen in lines:
        im = picture(o, name)
        verdicts.append((seen == "1", bool(find(eyes.shares(im), [thing])),
                         glyphs.match(im, thing)[0] >= FITS))
    result = {}
    for k, i, j in (("judge_and_person", 0, 1), ("glyph_and_person", 0, 2), ("judge_and_glyph", 1, 2)):
        same = share(v[i] == v[j] for v in verdicts)
        p, q = (np.mean([v[x] for v in verdicts]) for x in (i, j))
        chance = p * q + (1 - p) * (1 - q)
        result[k] = dict(same, kappa=round(float((same["share"] - chance) / max(1e-9, 1 - chance)), 3))
        say(k, same)
        print(f"{'':44} kappa {result[k]['kappa']}")
    keep(o, "agree", result)


def main():
    blind = {"render": render, "label": label}
    seeing = {f.__name__: f for f in (scenes, vae, singles, pairs, adapters, merges, agree)}
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("command", choices=[*seeing, *blind])
    p.add_argument("--judge", default=os.path.join(HERE, "judge"), help="a CLIP folder")
    p.add_argument("--model", default=MODEL)
    p.add_argument("--adapters", default=ADAPTERS)
    p.add_argument("--work", default=os.path.join(HERE, "../../build/eval"))
    p.add_argument("--weft", default=os.path.join(HERE, "../../build/weft"))
    p.add_argument("--only", default="", help="render: names that begin so")
    p.add_argument("--setting", nargs="*", default=[], help="render: other settings than the default")
    p.add_argument("--count", type=int, default=100, help="true scenes of each kind")
    p.add_argument("--labels", default=os.path.join(HERE, "labels.tsv"))
    o = p.parse_args()
    torch.set_num_threads(1)
    os.makedirs(o.work, exist_ok=True)
    if o.command in blind:
        blind[o.command](o)
    else:
        seeing[o.command](o, Eyes(o.judge))


if __name__ == "__main__":
    main()
