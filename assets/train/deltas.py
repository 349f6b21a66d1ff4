"""What the encoder reads of adapters (retrieve/encoder.h), for a whole zoo.

    zoo = Zoo(MODEL, FOLDER)           # of zoo.py; zoo.rows says what each is
    told = zoo.tell(zoo.adapters)      # what is taken of each adapter's dW, see told
    zoo.scores(told, text)             # [adapters] pooled answers (retrieve/response.h)
    zoo.meaning(text)                  # [128] the development scorer's vector of a text

An adapter is {site: (B [out, r], A [r, in kh kw])}; dW = B A. told holds, for n adapters,

    sketch   {base: {site: [n, p, q]}}, L dW R^T with directions L and R of each base:
             "differ"  in which train's dW / |dW| differ most
             "inputs"  L the same, R along which the site's inputs lie: states of captions where a text arrives,
                       else what it takes in at five times of the model's own pictures
             "random"  fixed by the site's name
    norm     [n, sites] |dW|;  sigma [n, sites, 16] singular values
    answer   [n, 16, width] and plain [n], what it answers to texts (retrieve/response.h)
"""
import glob
import json
import os
import re

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from common import ALPHAS, SCHEDULER

HERE = os.path.dirname(os.path.abspath(__file__))
P, Q, SINGULAR, ANSWERS = 16, 16, 16, 16
CROSSING = "attn2.to_k", "attn2.to_v"
FORMS = ["a {} {}", "a picture of a {}", "a {} on a {}", "a {} in {} style", "{}, {}, {}"]  # as retrieve/response.c


def neutral(tok, count=200):
    """Texts of the vocabulary's words."""
    words = sorted(w[:-4] for w in tok.get_vocab() if re.fullmatch("[a-z]{2,15}</w>", w))
    out, k = [], 0
    for i in range(count):
        form, picked = FORMS[i % len(FORMS)], []
        for _ in range(form.count("{}")):
            k += 1
            picked.append(words[int(k * 0.61803398874989485 % 1 * len(words))])
        out.append(form.format(*picked))
    return out


def factors(b, a):
    """dW = B A as U diag(s) V^T of its rank."""
    (qb, rb), (qa, ra) = torch.linalg.qr(b.double()), torch.linalg.qr(a.double().T)
    u, s, vt = torch.linalg.svd(rb @ ra.T)
    return (qb @ u).float(), s.float(), (vt @ qa.T).float()


class Texts:
    """What a model and the development scorer say of texts."""

    @torch.no_grad()
    def __init__(self, model):
        self.tok = CLIPTokenizer.from_pretrained(os.path.join(model, "tokenizer"))
        self.text = CLIPTextModel.from_pretrained(os.path.join(model, "text_encoder")).float().eval()
        scorer = os.path.join(HERE, "../scorer")
        self.eye, self.eye_tok = CLIPModel.from_pretrained(scorer).float().eval(), CLIPTokenizer.from_pretrained(scorer)
        self.known = {}
        h = torch.cat([self.states(t) for t in neutral(self.tok)])
        self.middle = h.mean(0)
        h = h - self.middle
        e, v = torch.linalg.eigh((h.T @ h / len(h)).double())
        e = e.clamp(min=0) + e.mean() / 10
        self.into, self.out = ((v * e ** p @ v.T).float() for p in (.25, -.25))
        self.plain = h[[k * len(h) // 256 for k in range(256)]]

    @torch.no_grad()
    def states(self, text):
        """[tokens, width] of the model's own encoder, without start and end."""
        return self.text(self.tok([text], return_tensors="pt", truncation=True).input_ids).last_hidden_state[0, 1:-1]

    @torch.no_grad()
    def meaning(self, text):
        if text not in self.known:
            ids = self.eye_tok([text], return_tensors="pt", padding="max_length", max_length=40, truncation=True).input_ids
            self.known[text] = F.normalize(self.eye.get_text_features(ids).pooler_output, dim=-1)[0]
        return self.known[text]

    def answer(self, rows):
        """A [ANSWERS, width] of all rows dW / |W|."""
        _, e, v = torch.linalg.svd(rows @ self.into, full_matrices=False)
        e = torch.where(e > e[0] / 1e4, e, 0)[:ANSWERS]
        out = torch.zeros(ANSWERS, len(self.middle))
        out[:len(e)] = e[:, None] ** .25 * v[:ANSWERS] @ self.out
        return out


class Zoo(Texts):
    @torch.no_grad()
    def __init__(self, model, folder):
        torch.manual_seed(0)
        super().__init__(model)
        self.unet = UNet2DConditionModel.from_pretrained(os.path.join(model, "unet")).float().eval()
        self.rows, self.adapters, self.dropped = [], [], 0
        for file in sorted(glob.glob(os.path.join(folder, "*.json"))):
            tensors = load_file(file[:-5] + ".safetensors")
            for row in json.load(open(file)):
                if row["learnt"]:
                    self.rows.append(row)
                    self.adapters.append(self.read(tensors, row["name"]))
                else:
                    self.dropped += 1
        self.sites = sorted({s for a in self.adapters for s in a})
        self.weight = torch.stack([self.unet.get_submodule(s).weight.norm() for s in self.sites])
        self.crossing = [s for s in self.sites if s.endswith(CROSSING)]
        self.bases = self.directions([a for a, r in zip(self.adapters, self.rows) if r["split"] == "train"],
                                     sorted({c for r in self.rows if r["split"] == "train" for c in r["captions"]}))

    @staticmethod
    def read(tensors, name):
        head, tail = name + ".unet.", ".lora_A.weight"
        return {k[len(head):-len(tail)]: (tensors[k.replace("lora_A", "lora_B")].float().flatten(1), v.float().flatten(1))
                for k, v in tensors.items() if k.startswith(head) and k.endswith(tail)}

    def of(self, split):
        return [i for i, r in enumerate(self.rows) if r["split"] == split]

    # ---- answers

    def answers(self, told, text):
        """[n, tokens]"""
        h = self.states(text) - self.middle
        return (told["answer"] @ h.T).norm(dim=1).log() - told["plain"][:, None]

    def scores(self, told, text, softness=.12):
        """Less what all that were told of answer on the average."""
        x = self.answers(told, text)
        common = x.clamp(min=-3).sum(0) / (len(x) + 4)
        return softness * ((x - common) / softness).logsumexp(1)

    # ---- directions

    def inputs(self, captions):
        """Per site [places, in kh kw] of what it takes in."""
        seen = {}

        def watch(site):
            def hook(m, args, _):
                x = args[0]
                if isinstance(m, torch.nn.Conv2d):
                    x = F.unfold(x, m.kernel_size, padding=m.padding, stride=m.stride).mT
                x = x.flatten(0, 1)
                seen.setdefault(site, []).append(x[torch.randperm(len(x))[:400]])
            return hook

        pick = torch.randperm(len(captions))[:16]
        ids = self.tok([captions[i] for i in pick], return_tensors="pt", padding="max_length", max_length=40).input_ids
        h, s = self.text(ids).last_hidden_state, DDIMScheduler(**SCHEDULER)
        z = torch.randn(16, 4, 32, 32)
        s.set_timesteps(10)
        for t in s.timesteps:
            z = s.step(self.unet(z, t, h).sample, t, z).prev_sample
        hooks = [self.unet.get_submodule(k).register_forward_hook(watch(k)) for k in self.sites if k not in self.crossing]
        for t in (1, 250, 500, 750, 950):
            self.unet(ALPHAS[t].sqrt() * z + (1 - ALPHAS[t]).sqrt() * torch.randn_like(z), t, h)
        for k in hooks:
            k.remove()
        return {k: torch.cat(v) for k, v in seen.items()}

    @torch.no_grad()
    def directions(self, train, captions):
        """{base: {site: (L [p, out], R [q, in kh kw])}}"""
        h = torch.cat([self.states(c) for c in captions]) - self.middle
        came, out = self.inputs(captions), {"differ": {}, "inputs": {}, "random": {}}

        def main(x, n):
            return torch.linalg.eigh(x.T @ x)[1].flip(1)[:, :n].T.contiguous()

        for s in self.sites:
            ups, downs = [], []
            for a in train:
                if s in a:
                    u, sigma, vt = factors(*a[s])
                    sigma = sigma / sigma.norm()
                    ups.append((u * sigma).T)
                    downs.append(sigma[:, None] * vt)
            left = main(torch.cat(ups), P)
            out["differ"][s] = left, main(torch.cat(downs), Q)
            out["inputs"][s] = left, main(h if s in self.crossing else came[s], Q)
            g = torch.Generator().manual_seed(sum(map(ord, s)))
            out["random"][s] = tuple(torch.linalg.qr(torch.randn(x.shape[1], x.shape[0], generator=g))[0].T
                                     for x in out["differ"][s])
        return out

    # ---- what is told of adapters

    @torch.no_grad()
    def tell(self, adapters, n=None):
        """adapters: a list, or n of them as they come."""
        n = len(adapters) if n is None else n
        told = {"sketch": {b: {s: torch.zeros(n, P, Q) for s in self.sites} for b in self.bases},
                "norm": torch.zeros(n, len(self.sites)), "sigma": torch.zeros(n, len(self.sites), SINGULAR),
                "answer": torch.zeros(n, ANSWERS, len(self.middle))}
        for i, adapter in enumerate(adapters):
            rows = []
            for j, s in enumerate(self.sites):
                if s not in adapter:
                    continue
                u, sigma, vt = factors(*adapter[s])
                told["norm"][i, j] = sigma.norm()
                told["sigma"][i, j, :len(sigma)] = sigma[:SINGULAR]
                for name, base in self.bases.items():
                    left, right = base[s]
                    told["sketch"][name][s][i] = (left @ u * sigma) @ (vt @ right.T)
                if s in self.crossing:
                    rows.append(sigma[:, None] * vt / self.weight[j])
            told["answer"][i] = self.answer(torch.cat(rows))
        told["plain"] = (told["answer"] @ self.plain.T).norm(dim=1).log().mean(1)
        return told


def joined(a, b):
    """Two told as one."""
    if isinstance(a, dict):
        return {k: joined(v, b[k]) for k, v in a.items()}
    return torch.cat([a, b])
