"""Adapters found by captions, by what their weights do: python retrieval.py MODEL ZOO [--distractors N] [--of SPLIT]

ZOO is a folder of assets/train/zoo.py. The gallery is all its adapters that learnt something and N more: half of them
two adapters of train in one (shares drawn from .3 to .7), half one with a fifth of another direction at every site.
Each adapter of SPLIT (default test) is asked for by its three captions; its name and files say nothing. An adapter of
the same concept is as right as itself; distractors are never right. Prints and writes retrieval.csv: of each way, by
type of concept, the share found first, among five, among ten, and the mean of 1 / place, with 95 % intervals over
adapters (bootstrap), and the difference in "among five" to the last of the ways without training.
"""
import argparse
import csv
import functools
import os
import random
import sys

import numpy as np
import torch
from torch.nn import functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../../assets/train"))
from deltas import Zoo, joined  # noqa: E402
from encoder import ALWAYS, CROWDS, Encoder, calibrate, crowds, likely, outcome, queries, ridge, targets  # noqa: E402
from transformer import Transformer, learn, sketches  # noqa: E402


# ---- what is no right answer


def distractors(zoo, count, made, seed=5):
    """Adapters, one at a time; to made of what: {index: share}."""
    r, g = random.Random(seed), torch.Generator().manual_seed(seed)
    train = zoo.of("train")
    for k in range(count):
        i, j, s = r.choice(train), r.choice(train), r.uniform(.3, .7)
        a, b = zoo.adapters[i], zoo.adapters[j]
        if k % 2 == 0:
            made.append({i: 1 - s, j: s} if i != j else {i: 1})
            yield {t: tuple(torch.cat(parts, 1 - i) for i, parts in enumerate(zip(
                *((x[t][0] * w, x[t][1]) for x, w in ((a, 1 - s), (b, s)) if t in x)))) for t in {*a, *b}}
        else:
            made.append({i: 1})
            yield {t: perturbed(x, y, g) for t, (x, y) in a.items()}


def perturbed(b, a, g):
    """With a rank more, a fifth as large as the rest together."""
    x, y = torch.randn(len(b), 1, generator=g), torch.randn(1, a.shape[1], generator=g)
    size = .2 * (b @ a).norm() / (x.norm() * y.norm())
    return torch.cat([b, size * x], 1), torch.cat([a, y])


# ---- ways to score: each gives [gallery] for a text


class Ridge:
    """Linear in what an adapter is told by, kernel [gallery, train] its inner products; to texts y(text)."""

    def __init__(self, zoo, kernel, y):
        train = zoo.of("train")
        t, self.mean = targets(zoo, train, y)
        self.y = y
        self.v = F.normalize((kernel.double() @ ridge(kernel[train].double(), t.double())[0]).float(), dim=1)

    def __call__(self, text):
        return self.v @ F.normalize(self.y(text) - self.mean, dim=0)


def linear(zoo, x):
    """Kernel of rows."""
    x = F.normalize(x, dim=1)
    return x @ x[zoo.of("train")].T + ALWAYS


TRANSFORMERS = {"as it was": {}, "inputs' directions": {"base": "inputs"}, "without spectrum": {"spectrum": False},
                "temperature 1": {"temperature": 1}, "without hard negatives": {"hard": False}}


def transformers(zoo, told, folder):
    """Trained where FOLDER has none yet: some minutes each."""
    os.makedirs(folder, exist_ok=True)
    for name, how in TRANSFORMERS.items():
        file = os.path.join(folder, name.replace("'", "").replace(" ", "-") + ".pt")
        if not os.path.exists(file):
            own = {k: ({b: {s: x[:len(zoo.adapters)] for s, x in v.items()} for b, v in told[k].items()} if k == "sketch"
                       else v[:len(zoo.adapters)]) for k, v in told.items()}
            with torch.enable_grad():
                torch.save(learn(zoo, own, 1500, dropout=.2, noise=.3, mix=.8, decay=.2, say=print, **how).state_dict(), file)
        t = Transformer(zoo.sites, zoo.weight, how.get("spectrum", True))
        t.load_state_dict(torch.load(file))
        v = t.read(*sketches(zoo, told, how.get("base", "differ")))
        yield "transformer, " + name, lambda text, t=t, v=v: v @ t.ask(zoo.meaning(text))


def ways(zoo, told, extra, folder):
    spectrum = torch.cat([(told["sigma"] / told["norm"][..., None].clamp(min=1e-12))[..., :8].flatten(1),
                          (told["norm"] / zoo.weight).clamp(min=1e-6).log()], 1)
    train = zoo.of("train")
    spectrum = (spectrum - spectrum[train].mean(0)) / spectrum[train].std(0).clamp(min=1e-6)
    enc = Encoder(zoo, told)
    v, w = enc.read(told), enc.by_sketch.text.shape[0]
    x = {b: enc.sketch(told["sketch"][b], told["norm"]) for b in zoo.bases}
    match = calibrate(zoo, told, enc)
    print("match", match, flush=True)
    g = torch.Generator().manual_seed(1)
    answers = functools.lru_cache(None)(lambda t: zoo.scores(told, t))
    yield "chance", lambda t: torch.rand(len(v), generator=g)
    yield "answers", answers
    yield "spectrum", Ridge(zoo, linear(zoo, spectrum), zoo.meaning)
    yield "flattened PCA", Ridge(zoo, extra(train), zoo.meaning)
    yield "sketches, random directions", Ridge(zoo, linear(zoo, x["random"]), zoo.meaning)
    yield "sketches, where train differs", Ridge(zoo, linear(zoo, x["differ"]), zoo.meaning)
    yield "sketches, inputs' directions", lambda t: v[:, :w] @ enc.ask(t)[:w]
    yield "the same and spectrum", Ridge(zoo, linear(zoo, torch.cat([x["inputs"], .3 * F.normalize(spectrum, dim=1)], 1)),
                                         zoo.meaning)
    yield "answers, ridge", lambda t: v[:, w:] @ enc.ask(t)[w:]
    yield "encoder", lambda t: v @ enc.ask(t)
    yield "answers and encoder", lambda t: match[1] * (v @ enc.ask(t)) + match[2] * answers(t).clamp(-3, 3)
    if folder:
        yield from transformers(zoo, told, folder)


def inner(zoo, chosen, made):
    """Cosines of whole dW, exact: <B A, B' A'> = tr((B^T B') (A' A^T)); PCA of flattened weights that keeps all would have
    the same. Of what is made of others by their shares (a perturbation's own direction stands on all others)."""
    n = len(zoo.adapters)
    k = torch.zeros(n, n)
    for s in zoo.sites:
        has = [i for i, a in enumerate(zoo.adapters) if s in a]
        ups, downs = torch.cat([zoo.adapters[i][s][0] for i in has], 1), torch.cat([zoo.adapters[i][s][1] for i in has])
        of = torch.cat([torch.full((len(zoo.adapters[i][s][1]),), i) for i in has])
        for i in has:
            b, a = zoo.adapters[i][s]
            k[i].index_add_(0, of, ((b.T @ ups) * (a @ downs.T)).sum(0))
    if made:
        w = torch.zeros(len(made), n)
        for m, shares in enumerate(made):
            for i, share in shares.items():
                w[m, i] = share
        size = torch.cat([k.diagonal(), ((w @ k) * w).sum(1)]).sqrt()
        k = torch.cat([k, w @ k])
    else:
        size = k.diagonal().sqrt()
    return k[:, chosen] / size[:, None] / size[chosen]


# ---- measuring


def places(zoo, way, split, same):
    """[adapters, captions]"""
    out, known = [], {}
    for i in zoo.of(split):
        right = torch.tensor([s == same[i] for s in same])
        for c in zoo.rows[i]["captions"]:
            if c not in known:
                known[c] = way(c)
            s = known[c]
            out.append(1 + int((s[~right] > s[right].max()).sum()))
    return np.array(out).reshape(-1, 3)


def interval(x, r):
    means = x[r.integers(0, len(x), (2000, len(x)))].mean(1)
    return np.percentile(means, [2.5, 97.5])


def picks(zoo, told, split):
    """What --auto takes of crowds of adapters of train and of a split: all is set on calibration."""
    enc = Encoder(zoo, told)
    match = calibrate(zoo, told, enc)
    x, there, right, n = crowds(queries(zoo, told, enc, split))
    got = outcome(likely(torch.tensor(match[:3]), x, there), right, match[3])
    for k in CROWDS:  # half of them without what is asked for
        print(f"--auto from {match[3]} among {k}: of what is there taken %.0f %%, another in its stead %.0f %%; of what is not "
              "there something taken %.0f %%" % tuple(200 * o[n == k].float().mean() for o in got), flush=True)


@torch.no_grad()
def main():
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("zoo")
    p.add_argument("--distractors", type=int, default=10000)
    p.add_argument("--of", default="test")
    p.add_argument("--csv", default="retrieval.csv")
    p.add_argument("--transformers", help="a folder of trained ones, and what is missing there is trained")
    o = p.parse_args()
    torch.set_num_threads(1)
    zoo = Zoo(o.model, o.zoo)
    told, made = zoo.tell(zoo.adapters), []
    if o.distractors:
        told = joined(told, zoo.tell(distractors(zoo, o.distractors, made), o.distractors))
    train = zoo.of("train")
    same = [(r["thing"], r["change"], r["how"]) for r in zoo.rows] + [None] * len(made)
    print(f"{len(zoo.rows)} adapters that learnt something, {zoo.dropped} that did not and are left out; {len(train)} of train, "
          f"{len(zoo.of('calibration'))} of calibration, {len(zoo.of('test'))} of test; {len(made)} distractors", flush=True)
    kinds = [zoo.rows[i]["type"] for i in zoo.of(o.of)]
    r, base = np.random.default_rng(0), None
    rows = []
    for name, way in ways(zoo, told, lambda t: inner(zoo, t, made), o.transformers):
        at = places(zoo, way, o.of, same)
        base = at if name == "answers" else base
        for kind in ["all"] + sorted(set(kinds)):
            mine = np.array([kind in ("all", k) for k in kinds])
            row = {"way": name, "of": kind, "adapters": int(mine.sum())}
            for label, x in (("first", at == 1), ("five", at < 6), ("ten", at < 11), ("mrr", 1 / at)):
                x = x[mine].mean(1)
                low, high = interval(x, r)
                row.update({label: round(x.mean(), 4), label + " low": round(low, 4), label + " high": round(high, 4)})
            if base is not None:
                x = ((at < 6).astype(float) - (base < 6))[mine].mean(1)
                low, high = interval(x, r)
                row.update({"five more": round(x.mean(), 4), "five more low": round(low, 4), "five more high": round(high, 4)})
            rows.append(row)
            print(f"{name:24s} {kind:16s} first {100 * row['first']:5.1f}  five {100 * row['five']:5.1f} "
                  f"({100 * row['five low']:.1f} to {100 * row['five high']:.1f})  ten {100 * row['ten']:5.1f}  mrr {row['mrr']:.3f}",
                  flush=True)
    with open(o.csv, "w") as f:
        w = csv.DictWriter(f, fieldnames=list(rows[-1]))
        w.writeheader()
        w.writerows(rows)
    if not o.distractors:
        picks(zoo, told, o.of)


if __name__ == "__main__":
    main()
