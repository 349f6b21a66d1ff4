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
import os
import random
import sys

import numpy as np
import torch
from torch.nn import functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../../assets/train"))
from deltas import Zoo, joined  # noqa: E402


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


def standard(x):
    return (x - x.mean()) / x.std()


class Ridge:
    """Linear in what an adapter is told by, x [gallery, n] of about unit length; to texts y(text), by kernel ridge
    regression on train with lambda by leaving one out (retrieve/ridge.h)."""

    def __init__(self, zoo, train, kernel, y):
        texts = torch.stack([torch.stack([y(c) for c in zoo.rows[i]["captions"]]).mean(0) for i in train])
        self.y, self.mean = y, texts.mean(0)
        t, k = (F.normalize(texts, dim=1) - self.mean).double(), kernel.double()
        own, best = k[train], None
        e, q = torch.linalg.eigh(own)
        for step in range(-14, 5):
            lam = 2.0 ** step * own.diagonal().mean()
            h = q * (e.clamp(min=0) / (e.clamp(min=0) + lam)) @ q.T
            miss = ((t - h @ t) / (1 - h.diagonal())[:, None]).square().mean()
            if best is None or miss < best[0]:
                best = miss, lam
        self.v = F.normalize((k @ torch.linalg.solve(own + best[1] * torch.eye(len(own)), t)).float(), dim=1)

    def __call__(self, text):
        return self.v @ F.normalize(self.y(text) - self.mean, dim=0)


def linear(x):
    """Kernel of rows."""
    x = F.normalize(x, dim=1)
    return lambda train: x @ x[train].T + .1


def ways(zoo, told, train, extra):
    def flat(base, share):
        return F.normalize(torch.cat([told["sketch"][base][s].flatten(1) /
                                      (zoo.weight[j] if share else told["norm"][:, j, None].clamp(min=1e-12))
                                      for j, s in enumerate(zoo.sites)], 1), dim=1)

    def state(text):
        return F.normalize(((zoo.states(text) - zoo.middle) @ zoo.out).mean(0), dim=0)

    spectrum = torch.cat([(told["sigma"] / told["norm"][..., None].clamp(min=1e-12))[..., :8].flatten(1),
                          (told["norm"] / zoo.weight).clamp(min=1e-6).log()], 1)
    spectrum = (spectrum - spectrum[train].mean(0)) / spectrum[train].std(0).clamp(min=1e-6)
    rows = told["answer"] @ zoo.into

    def answers(chosen):
        """Cosines of G (retrieve/learn.h)."""
        g = torch.stack([(rows @ rows[i].T).square().sum((1, 2)) for i in chosen], 1)
        own = torch.stack([(r @ r.T).square().sum() for r in rows]).sqrt()
        return g / own[:, None] / own[chosen] + .1

    sketches = linear(torch.cat([flat(b, s) for b in ("differ", "inputs") for s in (False, True)], 1))
    g = torch.Generator().manual_seed(1)
    out = {"chance": lambda t: torch.rand(len(rows), generator=g),
           "answers": lambda t: zoo.scores(told, t),
           "spectrum": Ridge(zoo, train, linear(spectrum)(train), zoo.meaning),
           "flattened PCA": Ridge(zoo, train, extra(train), zoo.meaning),
           "ridge, sketches": Ridge(zoo, train, sketches(train), zoo.meaning),
           "ridge, random sketches": Ridge(zoo, train, linear(torch.cat([flat("random", s) for s in (False, True)], 1))(train),
                                           zoo.meaning),
           "ridge, answers": Ridge(zoo, train, answers(train), state)}
    both = out["ridge, sketches"], out["ridge, answers"]
    out["both ridges"] = lambda t: both[0](t) + both[1](t)
    out["answers + both ridges"] = lambda t: standard(out["answers"](t)) + .8 * standard(out["both ridges"](t))
    return out


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


def chosen(zoo, way, split, same, least):
    """Of adapters asked for by their short caption: shares that are chosen rightly (first, and at least `least`),
    wrongly, and not; and how often one is chosen where none of the concept is there."""
    right, wrong, other = [], [], []
    for i in zoo.of(split):
        s, mine = way(zoo.rows[i]["captions"][0]), torch.tensor([x == same[i] for x in same])
        best = float(s.max()) >= least
        right.append(best and bool(mine[s.argmax()]))
        wrong.append(best and not mine[s.argmax()])
        other.append(float(s[~mine].max()) >= least)
    return np.mean(right), np.mean(wrong), np.mean(other)


def interval(x, r):
    means = x[r.integers(0, len(x), (2000, len(x)))].mean(1)
    return np.percentile(means, [2.5, 97.5])


@torch.no_grad()
def main():
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("zoo")
    p.add_argument("--distractors", type=int, default=10000)
    p.add_argument("--of", default="test")
    p.add_argument("--csv", default="retrieval.csv")
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
    for name, way in ways(zoo, told, train, lambda t: inner(zoo, t, made)).items():
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
    answers = lambda t: zoo.scores(told, t)
    for least in (.3, .4, .45, .5, .6, .7, .8, 1):
        print(f"--auto from {least}: rightly %.1f %%, wrongly %.1f %%; where none is there %.1f %%" %
              tuple(100 * x for x in chosen(zoo, answers, o.of, same, least)), flush=True)
    with open(o.csv, "w") as f:
        w = csv.DictWriter(f, fieldnames=list(rows[-1]))
        w.writeheader()
        w.writerows(rows)


if __name__ == "__main__":
    main()
