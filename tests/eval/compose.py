"""Strategies of composition beside each other: python compose.py [options] COMMAND; README.md says what it means.

    prepare   a repository of the manifest's adapters in WORK/home, each with its profile for this model
    render    the pictures that are not there yet: every set of adapters, strategy and seed, and each adapter alone
    table     what is shown, what it costs: WORK/compose-SPLIT.csv, .md and .json
    clash     what weft clash says of each set beforehand, against what merge then fails to show (after table)
    sheet     WORK/compose-SPLIT.png: a row a set, a column a strategy

A manifest (--manifest) names adapters and sets of them; the usual ones are manifest-dev.json and
manifest-test.json. The strategies are those of strategies.tsv. What is there already is never made again, so it
can be stopped; --most N takes only so many sets of each size (--most 8 ends within the hour on two cores).
"""
import argparse
import csv
import hashlib
import itertools
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
DRAWS = 2000  # of the bootstrap


def read_strategies(names):
    with open(os.path.join(HERE, "strategies.tsv"), encoding="utf8") as f:
        head, *lines = [l.rstrip("\n").split("\t") for l in f if l[0] != "#"]
    rows = [dict(zip(head, l)) for l in lines]
    return [r for r in rows if not names or r["name"] in names]


class Manifest:
    """base: what every prompt begins with; adapters: name, file, category, words, subject; sets: adapters and
    prompt, or "choose": one of each first category, the others from distinct ones, all there are."""

    def __init__(self, o):
        with open(o.manifest, encoding="utf8") as f:
            m = json.load(f)
        self.subset = o.subset
        self.folder = os.path.join(os.path.dirname(os.path.abspath(o.manifest)), m.get("folder", "."))
        self.adapters = {a["name"]: a for a in m["adapters"]}
        self.seeds, self.options, self.strength = m["seeds"], m.get("options", []), m.get("strength", 1)
        sets = m["sets"] if "sets" in m else list(self.chosen(m))
        self.sets = [s for n in o.sizes or m["sizes"] for s in [s for s in sets if len(s["adapters"]) == n][:o.most]]
        self.name = m["name"]

    def chosen(self, m):
        """ComposLoRA's rule: one of the first category and the others from as many distinct ones."""
        by = {}
        for a in m["adapters"]:
            by.setdefault((a["subset"], a["category"]), []).append(a)
        subsets = [s for s in m["subsets"] if self.subset in ("", s["name"])]
        for subset, n in itertools.product(subsets, m["sizes"]):
            first, *others = m["categories"]
            for cats in itertools.combinations(others, n - 1):
                for combo in itertools.product(*(by[subset["name"], c] for c in (first, *cats))):
                    yield {"adapters": [a["name"] for a in combo], "subset": subset["name"],
                           "prompt": ", ".join([subset["base"], *(a["words"] for a in combo)]),
                           "options": subset["options"]}

    def file(self, name):
        return os.path.join(self.folder, self.adapters[name]["file"])

    def reference(self, name):
        return f"{os.path.splitext(os.path.basename(self.file(name)))[0]}:{self.strength}"


def key_of(s):
    return hashlib.sha256(json.dumps(s, sort_keys=True).encode()).hexdigest()[:12]


def jobs(o, m, strategies):
    """(file, prompt, adapters, seed, options): those of the sets, and of each adapter alone."""
    for s in m.sets:
        for st, seed in itertools.product(strategies, m.seeds):
            refs, how = [m.reference(a) for a in s["adapters"]], ["--compose", st["compose"]]
            if st["compose"] == "none":
                refs, how = [], []
            elif st["compose"] == "joint":  # assets/train/joint.py's, where there is one
                refs, how = [os.path.join(o.joint, "+".join(s["adapters"]) + ".safetensors")], []
                if not os.path.exists(refs[0]):
                    continue
            elif st.get("places") == "halves":  # things side by side, as the prompt has them; styles everywhere
                things = [a for a in s["adapters"] if m.adapters[a]["category"] != "style"]
                for k, a in enumerate(things):
                    refs[s["adapters"].index(a)] += f",box={k / len(things):g}/0/{(k + 1) / len(things):g}/1,prompt={s['prompt']}"
            yield (f"{key_of(s)}/{st['name']}-{seed}.png", s["prompt"], refs, seed,
                   how + m.options + s.get("options", []))
    for name in sorted({a for s in m.sets for a in s["adapters"]}):
        a = m.adapters[name]
        for seed in m.seeds:
            yield f"alone/{name}-{seed}.png", a.get("caption", a["words"]), [m.reference(name)], seed, m.options


def prepare(o, m, strategies):
    home = ["--home", os.path.join(o.work, "home")]
    names = sorted({a for s in m.sets for a in s["adapters"]})
    subprocess.run([o.weft, "add", *home, *map(m.file, names)], check=True)
    subprocess.run([o.weft, "profile", *home, "--model", o.model, *o.setting,
                    *(m.reference(n).rsplit(":", 1)[0] for n in names)], check=True)


def render(o, m, strategies):
    for i, (name, prompt, refs, seed, options) in enumerate(jobs(o, m, strategies)):
        file = os.path.join(o.work, "compose", name)
        if i % o.of != o.part or os.path.exists(file + ".json"):
            continue
        os.makedirs(os.path.dirname(file), exist_ok=True)
        args = [x for r in refs for x in ("-a", r)]
        out = subprocess.run([o.weft, "render", prompt, "--model", o.model, "--seed", str(seed), "-o", file,
                              "--home", os.path.join(o.work, "home"), "--json", *options, *args, *o.setting], check=True, stdout=subprocess.PIPE)
        with open(file + ".json.tmp", "wb") as f:
            f.write(out.stdout)
        os.replace(file + ".json.tmp", file + ".json")


def picture(o, name):
    return np.asarray(Image.open(os.path.join(o.work, "compose", name)).convert("RGB"))


# ---- what is shown


class World:
    """The demo world's eyes (rule.py)."""

    def __init__(self, o, m):
        from rule import SIDE, Eyes, centre, find
        self.side, self.centre = SIDE, centre
        self.eyes, self.find, self.o, self.m, self.alone = Eyes(o.judge), find, o, m, {}

    def shown(self, im, names):
        subjects = {n: self.m.adapters[n]["subject"] for n in names}
        things = [n for n in names if self.m.adapters[n]["category"] != "style"]
        v = self.eyes.vectors(im)
        shares = (self.eyes.scale * v @ self.eyes.names.T).softmax(-1).numpy()
        found = self.find(shares, [subjects[n] for n in things])
        style = self.eyes.style(v)
        got = {n: subjects[n] in found if n in things else style == subjects[n] for n in names}
        inside = [int(self.centre(found[subjects[n]][1])[0] * len(things) / self.side) == k
                  for k, n in enumerate(things) if subjects[n] in found]  # of things side by side, in their order
        return got, {n: self.likeness(v, n) for n in things}, inside

    def likeness(self, v, name):
        """The best cosine of a piece of the picture with the best piece of the adapter's own pictures."""
        if name not in self.alone:
            from rule import NAMES
            k, best = NAMES.index(self.m.adapters[name]["subject"]), []
            for seed in self.m.seeds:
                w = self.eyes.vectors(picture(self.o, f"alone/{name}-{seed}.png"))
                best.append(w[int((w @ self.eyes.names.T)[:, k].argmax())])
            self.alone[name] = F.normalize(torch.stack(best).mean(0), dim=0)
        return float((v @ self.alone[name]).max())


class Words:
    """Any CLIPModel folder: the cosine of the picture and each adapter's words; nothing counts as shown by a
    threshold, since none was calibrated."""

    def __init__(self, o, m):
        from transformers import CLIPModel, CLIPProcessor
        self.model = CLIPModel.from_pretrained(o.judge).eval()
        self.prepare, self.m = CLIPProcessor.from_pretrained(o.judge), m

    @torch.no_grad()
    def shown(self, im, names):
        x = self.prepare(text=[self.m.adapters[n]["words"] for n in names], images=[Image.fromarray(im)],
                         return_tensors="pt", padding=True, truncation=True)
        out = self.model(**x)
        return {}, dict(zip(names, (out.logits_per_image[0] / self.model.logit_scale.exp()).tolist())), []


# ---- the table


def measure(o, m, strategies):
    """A row a picture, kept: judging is slow."""
    kept = os.path.join(o.work, f"compose-{m.name}-rows.json")
    rows = json.load(open(kept)) if os.path.exists(kept) else {}
    eyes = (Words if o.words else World)(o, m)
    for s in m.sets:
        for st, seed in itertools.product(strategies, m.seeds):
            name = f"{key_of(s)}/{st['name']}-{seed}.png"
            file = os.path.join(o.work, "compose", name + ".json")
            if name in rows or not os.path.exists(file):
                continue
            with open(file) as f:
                told = json.load(f)
            got, like, inside = eyes.shown(picture(o, name), s["adapters"])
            style = [v for k, v in got.items() if m.adapters[k]["category"] == "style"]
            rows[name] = {"all": float(all(got.values())) if got else None,
                          "each": float(np.mean(list(got.values()))) if got else None,
                          "style": float(style[0]) if style else None,
                          "like": float(np.mean(list(like.values()))) if like else None,
                          "inside": float(np.mean(inside)) if inside else None,
                          "flops": told["flops"], "seconds": told["seconds"]}
        with open(kept, "w") as f:
            json.dump(rows, f)
    return rows


def interval(values, r):
    """The 95 % interval of a mean, by drawing sets. values [sets]."""
    if not len(values):
        return [None, None]
    means = r.choice(values, (DRAWS, len(values))).mean(1)
    return [round(float(x), 4) for x in np.percentile(means, (2.5, 97.5))]


def groups(m):
    """The sets of each size, and those of them that are of things alone where others are there too."""
    for n in sorted({len(s["adapters"]) for s in m.sets}):
        sets = [s for s in m.sets if len(s["adapters"]) == n]
        things = [s for s in sets if all(m.adapters[a]["category"] != "style" for a in s["adapters"])]
        yield n, "all", sets
        if 0 < len(things) < len(sets):
            yield n, "things", things


def lines_of(m, strategies, rows):
    """A line a group of sets and strategy. Means over seeds are taken first: a set is what is drawn."""
    r, out = np.random.default_rng(0), []
    for n, of, sets in groups(m):

        def column(st, what):
            cells = [[rows.get(f"{key_of(s)}/{st['name']}-{seed}.png", {}).get(what) for seed in m.seeds]
                     for s in sets]
            return np.array([np.mean(c) if None not in c else np.nan for c in cells])

        merge = {w: column({"name": "merge"}, w) for w in ("all", "each", "flops", "seconds")}
        for st in strategies:
            line = {"n": n, "of": of, "strategy": st["name"], "compose": st["compose"]}
            for w in ("all", "each", "style", "like", "inside"):
                v = column(st, w)
                v = v[~np.isnan(v)]
                line[w] = round(float(v.mean()), 4) if len(v) else None
                line[w + "_interval"] = interval(v, r)
            line["sets"] = int((~np.isnan(column(st, "flops"))).sum())
            for w in ("all", "each"):
                d = column(st, w) - merge[w]
                d = d[~np.isnan(d)]
                line[w + "_over_merge"] = round(float(d.mean()), 4) if len(d) else None
                line[w + "_over_merge_interval"] = interval(d, r)
            for w in ("flops", "seconds"):
                with np.errstate(invalid="ignore"):
                    d = column(st, w) / merge[w]
                line[w] = round(float(np.nanmedian(d)), 3) if (~np.isnan(d)).any() else None
            out.append(line)
    return out


def percent(x, interval=None):
    if x is None:
        return "–"
    s = f"{100 * x:.1f}"
    return s if not interval else f"{s} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def markdown(lines):
    head = ("adapters", "strategy", "all shown, %", "over merge, points", "each, %", "style, %", "likeness",
            "FLOPs", "seconds")
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for l in lines:
        yield "| " + " | ".join([
            str(l["n"]) + (" things" if l["of"] == "things" else ""), l["strategy"], percent(l["all"], l["all_interval"]),
            percent(l["all_over_merge"], l["all_over_merge_interval"]), percent(l["each"]),
            percent(l["style"]), "–" if l["like"] is None else f"{l['like']:.3f}",
            f"{l['flops']}", f"{l['seconds']}"]) + " |"


def table(o, m, strategies):
    lines = lines_of(m, strategies, measure(o, m, strategies))
    stem = os.path.join(o.work, f"compose-{m.name}")
    with open(stem + ".json", "w") as f:
        json.dump(lines, f, indent=1)
    with open(stem + ".csv", "w", newline="") as f:
        w = csv.DictWriter(f, lines[0])
        w.writeheader()
        w.writerows(lines)
    text = "\n".join(markdown(lines))
    with open(stem + ".md", "w") as f:
        f.write(text + "\n")
    print(text)


def ranks(x):
    """Places from the lowest on, equal ones sharing theirs."""
    x = np.asarray(x)
    return np.array([(x < v).sum() + ((x == v).sum() - 1) / 2 for v in x])


def clash(o, m, strategies):
    """Spearman's correlation of the risk, and of what it is made of, with the share of adapters that merge does not
    show, and with how many more superpose does; by groups of sets."""
    pair = ("merge", "superpose-base")
    rows, told = measure(o, m, [s for s in strategies if s["name"] in pair]), []

    def ask(s):
        return subprocess.run([o.weft, "clash", *(m.reference(a).rsplit(":", 1)[0] for a in s["adapters"]),
                               s["prompt"], "--model", o.model, "--home", os.path.join(o.work, "home"),
                               "--seed", str(m.seeds[0]), "--json", *m.options, "--steps", "6", *o.setting],
                              check=True, stdout=subprocess.PIPE).stdout

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        said = list(pool.map(ask, m.sets))
    for s, out in zip(m.sets, said):
        pairs = json.loads(out)["pairs"]
        each = [np.mean([rows[f"{key_of(s)}/{st}-{seed}.png"]["each"] for seed in m.seeds]) for st in pair]
        told.append({"failed": 1 - each[0], "gain": each[1] - each[0],
                     **{k: max(p[k] for p in pairs) for k in ("risk", "place", "direction")},
                     "wakes": max(max(p["wakes"]) for p in pairs)})
    result = {}
    for n, of, sets in (("", "all", m.sets), *groups(m)):
        some = [told[m.sets.index(s)] for s in sets]
        for k, y in itertools.product(("risk", "place", "direction", "wakes"), ("failed", "gain")):
            a, b = (ranks([t[x] for t in some]) for x in (k, y))
            r = float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else None
            result[f"{k}, {y}, {n} {of}"] = r
            print(f"{k:10} {y:7} {n!s:2} {of:7} {len(some):4} sets  " + ("–" if r is None else f"{r:+.2f}"))
    with open(os.path.join(o.work, f"clash-{m.name}.json"), "w") as f:
        json.dump({"correlation": result, "sets": told}, f, indent=1)


def sheet(o, m, strategies):
    from common import sheet as draw  # rule.py's path
    pictures, labels = [], []
    for s in m.sets[::max(1, len(m.sets) // 24)]:
        for st in strategies:
            pictures.append(picture(o, f"{key_of(s)}/{st['name']}-{m.seeds[0]}.png"))
            labels.append(st["name"] if st is not strategies[0] else " ".join(s["adapters"]))
    draw(pictures, os.path.join(o.work, f"compose-{m.name}.png"), labels, len(strategies))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("command", choices=("prepare", "render", "table", "clash", "sheet"))
    p.add_argument("--manifest", default=os.path.join(HERE, "manifest-dev.json"))
    p.add_argument("--subset", default="", help="of a manifest that chooses sets: one of its bases")
    p.add_argument("--strategies", nargs="*", default=[], help="some of strategies.tsv")
    p.add_argument("--judge", default=os.path.join(HERE, "../../assets/scorer"), help="a CLIP folder; "
                   "tests/eval/judge for what is reported")
    p.add_argument("--words", action="store_true", help="any world: likeness to each adapter's words only")
    p.add_argument("--model", default=os.path.join(HERE, "../../assets/model"))
    p.add_argument("--work", default=os.path.join(HERE, "../../build/eval"))
    p.add_argument("--weft", default=os.path.join(HERE, "../../build/weft"))
    p.add_argument("--joint", default="", help="folder of adapters trained on two together, A+B.safetensors")
    p.add_argument("--setting", nargs="*", default=[], help="render: further options of weft")
    p.add_argument("--most", type=int, default=1000, help="sets of each size")
    p.add_argument("--sizes", nargs="*", type=int, default=[], help="only sets of so many")
    p.add_argument("--part", type=int, default=0, help="render: this one of --of processes")
    p.add_argument("--of", type=int, default=1)
    o = p.parse_args()
    torch.set_num_threads(1)
    sys.path.insert(0, os.path.join(HERE, "../../assets/train"))
    os.makedirs(o.work, exist_ok=True)
    m = Manifest(o)
    {"prepare": prepare, "render": render, "table": table, "clash": clash, "sheet": sheet}[o.command](o, m, read_strategies(o.strategies))


if __name__ == "__main__":
    main()
