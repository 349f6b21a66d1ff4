"""A transformer over what is read of each site of an adapter: what else was tried for retrieve/encoder.h. It learns
its train adapters by heart, and linear maps (encoder.py) find more; tests/eval/retrieval.py --transformers shows both.

    transformer = learn(Zoo(MODEL, FOLDER), told)      # .read(*sketches(zoo, told, base)), .ask(meaning)

A step sees BATCH adapters, half of them neighbours by meaning of the other half (hard negatives). Half are mixtures
with a second adapter of a smaller share, which then is no negative; sketches are put off a little, sites and kinds of
sites left out by chance. The loss is cross entropy over all captions of train, and over the batch's adapters; what
means nearly the same (cosine over SAME) is neither right nor wrong. The temperature is learnt. Calibration says which
step was best.
"""
import copy
import math

import torch
from torch import nn
from torch.nn import functional as F

from deltas import P, Q, SINGULAR

SIZES = dict(sketch=[P, Q], kept=32, spectrum=8, width=128, layers=2, heads=4, dim=128)
BATCH, RATE, DECAY, SAME = 64, 1e-3, .05, .95


def kind(site):
    """Sites of one kind share the weights of their tokens."""
    return site.split("transformer_blocks.0.")[-1] if "transformer_blocks" in site else site.split(".")[-1]


class Block(nn.Module):
    """A block of CLIP's towers, by transformers' names."""

    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads = heads
        self.self_attn = nn.ModuleDict({f"{k}_proj": nn.Linear(width, width) for k in ("q", "k", "v", "out")})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        y = self.layer_norm1(x)
        q, k, v = (self.self_attn[f"{n}_proj"](y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for n in "qkv")
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.self_attn["out_proj"](y))
        return x + self.dropout(self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.layer_norm2(x)))))


class Transformer(nn.Module):
    def __init__(self, sites, weight, spectrum=True, dropout=.1, sizes=SIZES):
        """weight: [sites] |W|."""
        super().__init__()
        self.sites, self.weight, self.spectrum, self.sizes = sites, weight, spectrum, sizes
        self.kinds = sorted({kind(s) for s in sites})
        self.kind = [self.kinds.index(kind(s)) for s in sites]
        (p, q), width = sizes["sketch"], sizes["width"]
        self.narrow = nn.ParameterList(nn.Parameter(torch.zeros(sizes["kept"], p * q), requires_grad=False) for _ in sites)
        self.tokens = nn.ModuleList(nn.Linear(sizes["kept"] + sizes["spectrum"] + 2, width) for _ in self.kinds)
        self.position = nn.Parameter(.02 * torch.randn(len(sites) + 1, width))
        self.absent = nn.Parameter(.02 * torch.randn(width))
        self.layers = nn.ModuleList(Block(width, sizes["heads"], dropout) for _ in range(sizes["layers"]))
        self.final_layer_norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, sizes["dim"])
        self.text = nn.Linear(128, sizes["dim"], bias=False)
        nn.init.eye_(self.text.weight)
        self.mean = nn.Parameter(torch.zeros(128), requires_grad=False)
        self.scale = nn.Parameter(torch.tensor(math.log(1 / .07)))

    def begin(self, sketch, norm):
        """The main directions of train's sketches as what is kept of them."""
        for j, x in enumerate(sketch):
            x = x[norm[:, j] > 0].flatten(1) / norm[norm[:, j] > 0, j, None]
            e, v = torch.linalg.eigh(x.T @ x / len(x))
            n = self.sizes["kept"]
            self.narrow[j].data = v.flip(1)[:, :n].T / e.flip(0)[:n].mean().sqrt()

    def forward(self, sketch, norm, sigma, absent=None):
        """sketch: a list of [n, p, q], one a site."""
        share = norm / self.weight
        share = share / share.norm(dim=1, keepdim=True)
        norm = norm.clamp(min=1e-12)
        tokens = []
        for j in range(len(self.sites)):
            s = sigma[:, j]
            wide = s.sum(1).square() / s.square().sum(1).clamp(min=1e-24) / SINGULAR
            told = torch.cat([(sketch[j] / norm[:, j, None, None]).flatten(1) @ self.narrow[j].T,
                              s[:, :self.sizes["spectrum"]] / norm[:, j, None], wide[:, None],
                              share[:, j, None].clamp(min=1e-4).log() / 2 + 1], 1)
            if not self.spectrum:
                told = told * (torch.arange(told.shape[1]) < self.sizes["kept"])
            tokens.append(self.tokens[self.kind[j]](told))
        x = torch.stack(tokens, 1)
        there = share > 0 if absent is None else (share > 0) & ~absent
        x = torch.where(there[..., None], x, self.absent)
        x = torch.cat([x, torch.zeros_like(x[:, :1])], 1) + self.position
        for b in self.layers:
            x = b(x)
        return F.normalize(self.projection(self.final_layer_norm(x[:, -1])), dim=-1)

    def ask(self, meaning):
        return F.normalize(self.text(meaning - self.mean), dim=-1)

    @torch.no_grad()
    def read(self, sketch, norm, sigma, most=500):
        """[n, dim] of many adapters."""
        self.eval()
        return torch.cat([self([s[i:i + most] for s in sketch], norm[i:i + most], sigma[i:i + most])
                          for i in range(0, len(norm), most)])


def sketches(zoo, told, base):
    return [told["sketch"][base][s] for s in zoo.sites], told["norm"], told["sigma"]


def mixture(sketch, norm, sigma, a, b, share, noise):
    """Adapters a with a share of adapters b, both as strong; singular values as if they shared none."""
    size = norm.square().sum(1).sqrt()
    x, y = (1 - share) / size[a], share / size[b]
    out = [s[a] * x[:, None, None] + s[b] * y[:, None, None] for s in sketch]
    out = [s + noise * torch.randn_like(s) * s.flatten(1).std(1)[:, None, None] for s in out]
    return (out, ((x[:, None] * norm[a]) ** 2 + (y[:, None] * norm[b]) ** 2).sqrt(),
            torch.cat([sigma[a] * x[:, None, None], sigma[b] * y[:, None, None]], 2).sort(2, True)[0][..., :SINGULAR])


def ranks(zoo, v, ask, split):
    """v: [n, dim] of the zoo's adapters. Places of the adapters of a split for each of their captions, among all of the
    zoo; those of the same concept are as right."""
    same = [(r["thing"], r["change"], r["how"]) for r in zoo.rows]
    out = []
    with torch.no_grad():
        for i in zoo.of(split):
            right = torch.tensor([s == same[i] for s in same])
            for c in zoo.rows[i]["captions"]:
                score = v @ ask(zoo.meaning(c))
                out.append(1 + int((score[~right] > score[right].max()).sum()))
    return torch.tensor(out)


def learn(zoo, told, steps=2000, seed=0, base="differ", spectrum=True, temperature=None, mix=.5, noise=.1, hard=True,
          leave=.15, dropout=.1, decay=DECAY, share_most=.5, say=None):
    torch.manual_seed(seed)
    train = torch.tensor(zoo.of("train"))
    enc, all_ = Transformer(zoo.sites, zoo.weight, spectrum, dropout), sketches(zoo, told, base)
    sketch, norm, sigma = [s[train] for s in all_[0]], all_[1][train], all_[2][train]
    enc.begin(sketch, norm)
    captions = sorted({c for i in train for c in zoo.rows[i]["captions"]})
    at = {c: k for k, c in enumerate(captions)}
    meanings = torch.stack([zoo.meaning(c) for c in captions])
    own = torch.tensor([[at[c] for c in zoo.rows[i]["captions"]] for i in train])
    enc.mean.data = meanings.mean(0)
    alike = meanings @ meanings.T
    middle = F.normalize(meanings[own].mean(1) - meanings.mean(0), dim=1)
    near = (middle @ middle.T).argsort(1, descending=True)[:, 2:50]
    groups = [torch.tensor([k in s for s in zoo.sites]) for k in ("conv", ".ff.")]
    if temperature:
        enc.scale = nn.Parameter(torch.tensor(math.log(1 / temperature)), requires_grad=False)
    opt = torch.optim.AdamW([p for p in enc.parameters() if p.requires_grad], lr=RATE, weight_decay=decay)
    rate = torch.optim.lr_scheduler.OneCycleLR(opt, RATE, total_steps=steps, pct_start=.1)
    best, kept, row = -1, None, torch.arange(BATCH)
    for step in range(1, steps + 1):
        enc.train()
        a = torch.randint(len(train), (BATCH,))
        if hard:
            half = BATCH // 2
            a[half:] = near[a[:half], torch.randint(near.shape[1], (half,))]
        b = torch.randint(len(train), (BATCH,))
        share = torch.rand(BATCH) * share_most * (torch.rand(BATCH) < mix)
        absent = torch.rand(BATCH, len(zoo.sites)) < leave
        for g in groups:
            absent |= (torch.rand(BATCH, 1) < .2) & g
        v = enc(*mixture(sketch, norm, sigma, a, b, share, noise), absent)
        said = torch.randint(3, (BATCH,))
        mine = own[a, said]
        scale = enc.scale.exp().clamp(max=100)
        asked = enc.ask(meanings)
        logit = v @ asked.T * scale
        neither = alike[mine] > SAME
        neither[row[:, None], own[a]] = True
        neither[row[:, None], own[b]] |= (share > 0)[:, None]
        neither[row, mine] = False
        loss = F.cross_entropy(logit.masked_fill(neither, -1e4), mine)
        back = asked[mine] @ v.T * scale
        twice = (alike[mine][:, mine] > SAME) & ~torch.eye(BATCH, dtype=torch.bool)
        loss = loss + .5 * F.cross_entropy(back.masked_fill(twice, -1e4), row)
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(enc.parameters(), 1)
        opt.step()
        rate.step()
        if step % 250 == 0 or step == steps:
            r = ranks(zoo, enc.read(*all_), enc.ask, "calibration")
            now = float((1 / r).mean())
            if say:
                say(f"{step}: loss {loss.item():.2f}, temperature {1 / scale.item():.3f}, calibration: first "
                    f"{100 * (r == 1).float().mean():.0f} %, of five {100 * (r < 6).float().mean():.0f} %, "
                    f"mean 1 / place {now:.3f}")
            if now > best:
                best, kept = now, copy.deepcopy(enc.state_dict())
    enc.load_state_dict(kept)
    return enc.eval()
