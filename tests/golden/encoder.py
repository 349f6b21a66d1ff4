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
from deltas import SINGULAR, Zoo  # noqa: E402
from encoder import Encoder, write  # noqa: E402

SIZES = dict(sketch=[6, 5], kept=8, spectrum=4, width=32, layers=2, heads=4, dim=48)
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


@torch.no_grad()
def encoder(base):
    """Its weights are exact in the file's half precision."""
    torch.manual_seed(7)
    weight = torch.stack([base.get_submodule(s).weight.norm() for s in SITES])
    enc, directions = Encoder(SITES, weight, dropout=0, sizes=SIZES).eval(), {}
    for p in enc.parameters():
        p.data = halved(p + .05 * torch.randn_like(p))
    for s in SITES:
        out, into = base.get_submodule(s).weight.flatten(1).shape
        directions[s] = tuple(halved(torch.linalg.qr(torch.randn(n, k))[0].T) for n, k in ((out, 6), (into, 5)))
    for j in range(len(SITES)):
        enc.narrow[j].data = halved(torch.randn(8, 30))
    return enc, directions


@torch.no_grad()
def main():
    base, out, seen = unet(), {}, set()
    enc, directions = encoder(base)
    enc.match = [-2.0, 4.0, 1.5]
    write(enc, directions, os.path.join(HERE, "data/encoder"), sys.argv[1])
    for row in json.load(open(os.path.join(ASSETS, "adapters/index.json"))):
        if row["kind"] in seen or row["kind"] == "shira":
            continue
        seen.add(row["kind"])
        after = merged(row)
        sketch, norm, sigma = [], torch.zeros(1, len(enc.sites)), torch.zeros(1, len(enc.sites), SINGULAR)
        for j, s in enumerate(enc.sites):
            left, right = directions[s]
            d = (after[s] - base.get_submodule(s).weight).flatten(1) if s in after else torch.zeros(len(left.T), len(right.T))
            values = torch.linalg.svdvals(d.double()).float()
            norm[0, j] = values.norm() if values[0] > 1e-6 else 0
            sigma[0, j] = torch.cat([values, torch.zeros(SINGULAR)])[:SINGULAR]
            sketch.append((left @ d @ right.T)[None])
        out[row["name"]] = enc(sketch, norm, sigma)[0]
        out[row["name"] + " strength"] = (norm / enc.weight).norm()[None]
    for t in TEXTS:
        out["text: " + t] = enc.ask(Zoo.meaning(Words(), t))
    save_file({k: v.contiguous() for k, v in out.items()}, os.path.join(HERE, "data/encoder.safetensors"))


class Words:
    """What Zoo.meaning needs of a Zoo."""

    def __init__(self):
        from transformers import CLIPModel, CLIPTokenizer
        scorer = os.path.join(ASSETS, "scorer")
        self.eye, self.eye_tok = CLIPModel.from_pretrained(scorer).float().eval(), CLIPTokenizer.from_pretrained(scorer)
        self.known = {}


if __name__ == "__main__":
    main()
