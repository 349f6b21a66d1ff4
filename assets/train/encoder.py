"""The encoder of adapters (retrieve/encoder.h): python encoder.py MODEL ZOO FOLDER --fingerprint F

Two linear maps learnt from train's adapters of ZOO (zoo.py) by ridge regression in closed form: from sketches of dW to
the development scorer's vectors of the captions, and from what an adapter answers to (retrieve/response.h) to the mean
states of the captions in the model's own text encoder. Calibration's adapters say how likely one is meant. FOLDER
receives config.json and model.safetensors.
"""
import argparse
import json
import os

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from deltas import Zoo

SIZES = dict(sketch=[12, 12], states=64, dim=[48, 48])
ALWAYS = .1  # the square of a constant beside the features, which have length 1


def ridge(k, t):
    """k [n, n] inner products of examples, t [n, out]. alpha [n, out], and what is said of each by the others; lambda
    by their error."""
    e, q = torch.linalg.eigh(k)
    e, best = e.clamp(min=0), None
    for step in range(-14, 5):
        lam = 2.0 ** step * k.diagonal().mean()
        h = q * (e / (e + lam)) @ q.T
        left_out = t - (t - h @ t) / (1 - h.diagonal())[:, None]
        miss = (t - left_out).square().mean()
        if best is None or miss < best[0]:
            best = miss, (q / (e + lam)) @ (q.T @ t), left_out
    return best[1:]


def targets(zoo, train, y):
    """[train, out] of captions, by y(text); and the mean that is taken off."""
    texts = torch.stack([torch.stack([y(c) for c in zoo.rows[i]["captions"]]).mean(0) for i in train])
    mean = texts.mean(0)
    return F.normalize(texts, dim=1) - mean, mean


class Map:
    """x [adapters, n] of length 1 to `dim` directions of the texts' space y(text) in which train's adapters differ."""

    def __init__(self, zoo, x, y, dim):
        train = zoo.of("train")
        self.y = y
        t, self.mean = targets(zoo, train, y)
        own, t = x[train].double(), t.double()
        alpha, left_out = ridge(own @ own.T + ALWAYS, t)
        weight, bias = own.T @ alpha, ALWAYS * alpha.sum(0)
        p = torch.linalg.svd(own @ weight + bias, full_matrices=False)[2][:dim]
        self.weight, self.bias, self.text = (p @ weight.T).float(), (p @ bias).float(), p.float()
        self.left_out = F.normalize((left_out @ p.T).float(), dim=1)  # of train

    def __call__(self, x):
        return F.normalize(x @ self.weight.T + self.bias, dim=1)

    def ask(self, text):
        return F.normalize(self.text @ (self.y(text) - self.mean), dim=0)


class Encoder:
    def __init__(self, zoo, told, base="inputs", sizes=SIZES):
        self.zoo, self.sizes, self.directions, self.match = zoo, sizes, zoo.bases[base], [0., 0., 0., 1.]
        train = zoo.of("train")
        h = torch.cat([zoo.states(c) for c in sorted({c for i in train for c in zoo.rows[i]["captions"]})]) - zoo.middle
        h = h @ zoo.out
        self.main = torch.linalg.eigh(h.T @ h)[1].flip(1)[:, :sizes["states"]].T.contiguous()
        self.by_sketch = Map(zoo, self.sketch(told["sketch"][base], told["norm"]), zoo.meaning, sizes["dim"][0])
        self.by_answer = Map(zoo, self.answer(told["answer"]), self.state, sizes["dim"][1])

    def sketch(self, sketch, norm):
        p, q = self.sizes["sketch"]
        return F.normalize(torch.cat([sketch[s][:, :p, :q].flatten(1) / norm[:, j, None].clamp(min=1e-12)
                                      for j, s in enumerate(self.zoo.sites)], 1), dim=1)

    def answer(self, rows):
        x = rows @ self.zoo.into @ self.main.T
        return F.normalize((x.mT @ x).flatten(1), dim=1)

    def state(self, text):
        """[width] the mean state."""
        return F.normalize(((self.zoo.states(text) - self.zoo.middle) @ self.zoo.out).mean(0), dim=0)

    def read(self, told, base="inputs"):
        """[n, sum of dim]"""
        x = self.sketch(told["sketch"][base], told["norm"]), self.answer(told["answer"])
        return torch.cat([self.by_sketch(x[0]), self.by_answer(x[1])], 1) / 2 ** .5

    def ask(self, text):
        return torch.cat([self.by_sketch.ask(text), self.by_answer.ask(text)]) / 2 ** .5

    def left_out(self):
        """As read, of train, each by the others."""
        return torch.cat([self.by_sketch.left_out, self.by_answer.left_out], 1) / 2 ** .5


# ---- how likely an adapter is meant

CROWDS = 20, 50, 100, 200


def queries(zoo, told, enc, split):
    """For each caption of a split: likeness and answer [gallery, 2], which are of the concept asked for, which of the
    thing (or, where it has none, the change). The gallery is train, as the others would have it read, and the split."""
    gallery = zoo.of("train") + zoo.of(split)
    v = torch.cat([enc.left_out(), enc.read(told)[zoo.of(split)]])
    concept = [tuple(zoo.rows[i][k] for k in ("thing", "change", "how")) for i in gallery]
    out = []
    for i in zoo.of(split):
        mine = tuple(zoo.rows[i][k] for k in ("thing", "change", "how"))
        part = 0 if mine[0] else 2
        for c in zoo.rows[i]["captions"]:
            out.append((torch.stack([v @ enc.ask(c), zoo.scores(told, c)[gallery].clamp(-3, 3)], 1),
                        torch.tensor([o == mine for o in concept]), torch.tensor([o[part] == mine[part] for o in concept])))
    return out


def crowds(queries, times=4, seed=0):
    """[n, most, 2] and [n, most]: crowds of CROWDS adapters, none of them of the thing, and in every other one more, of the
    concept: x, who is there, who is right; [n] how many are there."""
    g, of = torch.Generator().manual_seed(seed), []
    for x, right, thing in queries:
        for n in CROWDS * times:
            for absent in (False, True):
                who = torch.randperm(len(x), generator=g)[:n]
                who, mine = who[~thing[who]], right.nonzero()[:, 0]
                who = who if absent else torch.cat([who, mine[torch.randint(len(mine), (1,), generator=g)]])
                of.append((x[who], right[who], n))
    pad = torch.nn.utils.rnn.pad_sequence
    there = pad([torch.ones(len(o[0])) for o in of], True) > 0
    return pad([o[0] for o in of], True), there, pad([o[1] for o in of], True), torch.tensor([o[2] for o in of])


def likely(match, x, there):
    """[n, most]: softmax over the crowd and one that stands for none of them, whose score is 0."""
    s = (x @ match[1:3] + match[0]).masked_fill(~there, -1e9)
    return torch.cat([s, torch.zeros(len(s), 1)], 1).softmax(1)[:, :-1]


def outcome(p, right, least):
    """[n] each: the likeliest is taken and right; taken and wrong, where a right one was there; taken where none was."""
    best = p.argmax(1)
    took, good, there = p.max(1)[0] >= least, right[torch.arange(len(p)), best], right.any(1)
    return took & good, took & ~good & there, took & ~there


@torch.enable_grad()
def calibrate(zoo, told, enc, steps=300):
    """[constant, of likeness, of answer, least]: by maximum likelihood, half the crowds without what is asked for; least
    where right less false less half of wrong is greatest (a wrong one is mostly of the kind that was asked for)."""
    x, there, right, _ = crowds(queries(zoo, told, enc, "calibration"))
    match = torch.tensor([-5., 3., 5.], requires_grad=True)
    opt, found = torch.optim.Adam([match], .1), right.any(1)
    for _ in range(steps):
        p = likely(match, x, there)
        loss = -torch.where(found, (p * right).sum(1), 1 - p.sum(1)).clamp(min=1e-9).log().mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    match = match.detach()
    p = likely(match, x, there)
    net = {k / 20: float(sum(s * o.float().sum() for s, o in zip((1, -.5, -1), outcome(p, right, k / 20)))) for k in range(2, 19)}
    return [*(round(float(v), 4) for v in match), max(net, key=net.get)]


# ---- writing


def write(enc, folder, fingerprint):
    os.makedirs(folder, exist_ok=True)
    z, s, a = enc.sizes, enc.by_sketch, enc.by_answer
    (p, q), n = z["sketch"], z["states"]
    upper = torch.triu_indices(n, n)
    both = a.weight.unflatten(1, (n, n))
    both = (both + both.mT)[:, upper[0], upper[1]] * torch.where(upper[0] == upper[1], .5, 1)
    out = {"sketch.bias": s.bias, "sketch.text": s.text, "sketch.mean": s.mean,
           "answer.main": enc.main, "answer.weight": both, "answer.bias": a.bias, "answer.text": a.text, "answer.mean": a.mean}
    for j, name in enumerate(enc.zoo.sites):
        left, right = enc.directions[name]
        out.update({f"sites.{j}.left": left[:p], f"sites.{j}.right": right[:q],
                    f"sites.{j}.weight": s.weight[:, j * p * q:(j + 1) * p * q]})
    save_file({k: v.detach().half().contiguous() for k, v in out.items()}, os.path.join(folder, "model.safetensors"))
    config = {"model": fingerprint, **z, "match": enc.match, "sites": ["unet." + s for s in enc.zoo.sites]}
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f, indent=2)
        f.write("\n")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("zoo")
    p.add_argument("folder")
    p.add_argument("--fingerprint", required=True, help="of the model, as weft model list --json says it")
    o = p.parse_args()
    torch.set_num_threads(1)
    zoo = Zoo(o.model, o.zoo)
    told = zoo.tell(zoo.adapters)
    enc = Encoder(zoo, told)
    enc.match = calibrate(zoo, told, enc)
    write(enc, o.folder, o.fingerprint)


if __name__ == "__main__":
    main()
