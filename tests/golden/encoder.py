"""A small encoder that was never trained, and vectors by the training code: python tests/golden/encoder.py FINGERPRINT

of assets/model, as weft model add says it. The encoder is tests/golden/data/encoder, random but for what its shapes
ask. Of each kind of adapter the first of assets/adapters is merged into the model by peft or lycoris-lora, and what
that changed is what the encoder sees. tests/golden/data/encoder.safetensors: NAME [dim], "NAME strength" [1], and
"text: TEXT" [dim].
"""
import json
import os
import sys

import torch
from diffusers import UNet2DConditionModel
from lycoris import create_lycoris_from_weights
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__))
ASSETS = os.path.join(HERE, "../../assets")
sys.path.insert(0, os.path.join(ASSETS, "train"))
from deltas import CROSSING, Texts  # noqa: E402
from encoder import Encoder, Map, write  # noqa: E402

SIZES = dict(sketch=[6, 5], states=10, dim=[16, 12])
BLOCKS = ("down_blocks.1.attentions.0", "mid_block.attentions.0", "up_blocks.0.attentions.1")
SITES = [f"{b}.transformer_blocks.0.attn2.{s}" for b in BLOCKS for s in ("to_q", "to_k", "to_v", "to_out.0")] + [
    "down_blocks.1.resnets.0.conv1", "mid_block.resnets.1.conv2"]
TEXTS = ["a teapot", "a picture of a purple skunk", "a church that looks as everything does in neon style"]


def unet():
    return UNet2DConditionModel.from_pretrained(os.path.join(ASSETS, "model/unet")).float().eval()


def merged(row):
    """{site: W'} by the kind's own library."""
    file, u = os.path.join(ASSETS, "adapters", row["file"]), unet()
    t = {k: v.float() for k, v in load_file(file).items()}
    if row["kind"] in ("lora", "dora"):
        t = {k.removeprefix("unet."): v for k, v in t.items()}
        rank = next(v.shape[0] for k, v in t.items() if "lora_A" in k)
        sites = sorted({k.split(".lora_")[0] for k in t})
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=sites,
                                           use_dora=row["kind"] == "dora"), u)
        set_peft_model_state_dict(u, t)
        out = {}
        for s in sites:
            layer = u.get_submodule(s)
            layer.merge()
            out[s] = layer.base_layer.weight.detach()
        return out
    t = {k.replace("lora_unet_", "lycoris_", 1): v for k, v in t.items()}
    net, _ = create_lycoris_from_weights(1.0, file, u, weights_sd=t)
    net.merge_to(1.0)
    return {n: m.weight.detach() for n, m in u.named_modules() if hasattr(m, "weight") and m.weight is not None}


def halved(t):
    return t.half().float()


class Untrained(Encoder):
    """Its weights are exact in the file's half precision."""

    def __init__(self, base):
        torch.manual_seed(7)
        self.zoo, self.sizes, self.match, self.directions = Texts(os.path.join(ASSETS, "model")), SIZES, [-2.0, 4.0, 1.5, .3], {}
        self.zoo.sites = SITES
        for s in SITES:
            out, into = base.get_submodule(s).weight.flatten(1).shape
            self.directions[s] = tuple(halved(torch.linalg.qr(torch.randn(n, k))[0].T) for n, k in zip((out, into), SIZES["sketch"]))
        width, n = len(self.zoo.middle), SIZES["states"]
        self.main = halved(torch.linalg.qr(torch.randn(width, n))[0].T)
        self.by_sketch = self.map(len(SITES) * 30, self.zoo.eye.config.projection_dim, SIZES["dim"][0], self.zoo.meaning)
        self.by_answer = self.map(n * n, width, SIZES["dim"][1], self.state)
        # both halves of what is symmetric weigh the same, a quarter so that their sum is exact in half precision
        w = self.by_answer.weight.unflatten(1, (n, n))
        self.by_answer.weight = halved(w + w.mT).flatten(1) / 4

    @staticmethod
    def map(n, texts, dim, y):
        m = Map.__new__(Map)
        m.y, m.weight, m.bias = y, halved(torch.randn(dim, n) / n ** .5), halved(.1 * torch.randn(dim))
        m.text, m.mean = halved(torch.randn(dim, texts) / texts ** .5), halved(.02 * torch.randn(texts))
        return m


@torch.no_grad()
def main():
    base, out, seen = unet(), {}, set()
    enc = Untrained(base)
    write(enc, os.path.join(HERE, "data/encoder"), sys.argv[1])
    crossing = [n for n, m in base.named_modules() if n.endswith(CROSSING)]
    for row in json.load(open(os.path.join(ASSETS, "adapters/index.json"))):
        if row["kind"] in seen or row["kind"] == "shira":
            continue
        seen.add(row["kind"])
        after = merged(row)

        def changed(s):
            w = base.get_submodule(s).weight
            d = (after[s] - w).flatten(1) if s in after else torch.zeros_like(w).flatten(1)
            return d if d.abs().max() > 1e-6 else torch.zeros_like(d)

        d = {s: changed(s) for s in SITES}
        norm = torch.stack([x.norm() for x in d.values()])[None]
        told = {"sketch": {"inputs": {s: (left @ d[s] @ right.T)[None] for s, (left, right) in enc.directions.items()}},
                "norm": norm,
                "answer": enc.zoo.answer(torch.cat([changed(s) / base.get_submodule(s).weight.norm() for s in crossing]))[None]}
        out[row["name"]] = enc.read(told)[0]
        out[row["name"] + " strength"] = (norm / torch.stack([base.get_submodule(s).weight.norm() for s in SITES])).norm()[None]
    for t in TEXTS:
        out["text: " + t] = enc.ask(t)
    save_file({k: v.contiguous() for k, v in out.items()}, os.path.join(HERE, "data/encoder.safetensors"))


if __name__ == "__main__":
    main()
