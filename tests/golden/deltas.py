"""Adapters of every kind and layout, written by lycoris-lora and peft, and the weights they make.

    python tests/golden/deltas.py [MODEL OUT]

Adapters go to tests/golden/data/deltas/ and the merged weights to tests/golden/data/deltas.safetensors:
"CASE SITE" is W' (float32) and "CASE SITE bias" b', at strength 1. MODEL is a diffusers UNet (the tiny
SD 1.x model's), OUT another place for both (with SDXL's widths 7 GB; WEFT_DELTAS points the test there). All factors are random and rounded to the file's type first, so
the file says exactly what the modules computed with. Two places where LyCORIS itself disagrees with its
own forward pass are settled its forward's way: LoHa's and LoKr's scale counts once.
"""
import json
import os
import shutil
import sys

import peft
import torch
from diffusers import UNet2DConditionModel
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__)) + "/data/"
MODEL, OUT = (sys.argv[1:] + [HERE + "tiny-sd1/unet", HERE])[:2] if len(sys.argv) < 3 else sys.argv[1:3]
LINEAR = ["mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
          "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"]
POINT = ["mid_block.attentions.0.proj_in", "up_blocks.0.resnets.0.conv_shortcut"]
CONV = ["mid_block.resnets.0.conv1"]
NORM = ["mid_block.attentions.0.transformer_blocks.0.norm1", "mid_block.resnets.0.norm1"]
ALL = LINEAR + POINT + CONV

want, rng = {}, torch.Generator()


def unet():
    m = UNet2DConditionModel.from_pretrained(MODEL, torch_dtype=torch.float32).eval()
    return m.requires_grad_(False)


def fill(module, dtype, size=.25):
    """Random values, as the file's type has them; magnitudes near what they begin with."""
    for name, p in module.named_parameters():
        r = torch.randn(p.shape, generator=rng)
        if "dora" in name or "magnitude" in name or name.endswith(("rescale", "boft_s")):
            v = p.data * (1 + .2 * r)
        elif "ia3_l" in name:
            v = 1 + size * r
        else:
            v = size * r
        p.data = v.to(dtype).to(p.dtype)


# ---- LyCORIS: one module a site, its own state dict, kohya's names


def truth(module, W):
    """W' at strength 1, LoHa's and LoKr's scale once. A bound's norm over millions of values is summed in
    double: in float32, torch's is 3e-5 off at SDXL's widths, and the weights with it."""
    single, torch.norm = torch.norm, lambda q, *a, **k: single(q.double(), *a, **k).to(q.dtype)
    try:
        return merged(module, W)
    finally:
        torch.norm = single


def merged(module, W):
    if isinstance(module, (LohaModule, LokrModule)):
        d = module.get_weight(W.shape)
        return module.apply_weight_decompose(W + d, 1) if module.wd else W + d
    return module.get_merged_weight(1)[0].view(W.shape)


def state_of(module):
    if isinstance(module, FullModule):  # whose own method expects it to hold W + diff by now
        named = dict(diff=module.weight, diff_b=module.bias)
        return {k: v.data for k, v in named.items() if v is not None}
    return module.custom_state_dict() or module.state_dict()


@torch.no_grad()
def lycoris(case, make, sites, dtype=torch.float16, prefix="lora_unet_", edit=None):
    rng.manual_seed(hash_of(case))
    model, file = unet(), {}
    for site in sites:
        org = model.get_submodule(site)
        name = prefix + site.replace(".", "_")
        module = make(name, org)
        fill(module, dtype)
        W = org.weight.data.clone()
        for k, v in state_of(module).items():
            keep = k in ("alpha", "on_input") or v.dtype == torch.int64
            file[f"{name}.{k}"] = v.clone() if keep else v.to(dtype).contiguous()
        if isinstance(module, NormModule):
            want[f"{case} {site}"] = W + module.w_norm
            want[f"{case} {site} bias"] = org.bias.data + module.b_norm
        else:
            want[f"{case} {site}"] = truth(module, W).float().contiguous()
            if isinstance(module, FullModule) and module.bias is not None:
                want[f"{case} {site} bias"] = org.bias.data + module.bias
    if edit:
        edit(file)
    save_file(file, f"{OUT}/deltas/{case}.safetensors")


def hash_of(s):
    h = 5381
    for c in s:
        h = (h * 33 + ord(c)) % (1 << 31)
    return h


def of(kind, **o):
    return lambda name, org: kind(name, org, 1.0, **o)


def mixed(name, org):
    """Another kind, and rank, at every site of one file."""
    kinds = [of(LoConModule, lora_dim=4, alpha=2), of(LohaModule, lora_dim=3, alpha=2),
             of(LokrModule, lora_dim=2, alpha=1, factor=4), of(LoConModule, lora_dim=2, alpha=1),
             of(LoConModule, lora_dim=3, alpha=2, weight_decompose=True)]
    names = ["lora_unet_" + s.replace(".", "_") for s in ALL]
    return kinds[names.index(name)](name, org)


def as_int(file):
    for k in file:
        if k.endswith(".alpha"):
            file[k] = file[k].round().long()


def old_glora(file):
    """Each pair the other way round, as files before 2024 have it."""
    for k in [k for k in file if k.endswith(".a1.weight")]:
        stem = k[:-10]
        for p in "ab":
            x, y = f"{stem}.{p}1.weight", f"{stem}.{p}2.weight"
            file[x], file[y] = file[y], file[x]


# ---- PEFT: a whole model, saved as PEFT saves it


@torch.no_grad()
def with_peft(case, config, dtype=torch.float16):
    rng.manual_seed(hash_of(case))
    torch.manual_seed(hash_of(case))
    m = peft.get_peft_model(unet(), config)
    for name, p in sorted(m.named_parameters()):
        if any(s in name for s in ("lora_", "hada_", "lokr_", "oft_R", "boft_", "ia3_l", "shira_")):
            holder = torch.nn.ParameterDict({name.split(".default")[0].split(".")[-1]: p})
            fill(holder, dtype, .1 if "oft" in name else .25)
            p.data = holder[next(iter(holder.keys()))].data
    d = f"{OUT}/deltas/{case}"
    shutil.rmtree(d, ignore_errors=True)
    m.save_pretrained(d)
    os.path.exists(d + "/README.md") and os.remove(d + "/README.md")
    halve(d + "/adapter_model.safetensors", dtype)
    tidy(d + "/adapter_config.json")
    merged = m.merge_and_unload()
    base = unet()
    for site in ALL:
        W, B = merged.get_submodule(site), base.get_submodule(site)
        if not torch.equal(W.weight, B.weight):
            want[f"{case} {site}"] = W.weight.data.clone()
        if B.bias is not None and not torch.equal(W.bias, B.bias):
            want[f"{case} {site} bias"] = W.bias.data.clone()


def halve(path, dtype):
    from safetensors.torch import load_file
    save_file({k: v.to(dtype) if v.is_floating_point() else v for k, v in load_file(path).items()},
              path, metadata={"format": "pt"})


def tidy(path):
    c = json.load(open(path))
    c["base_model_name_or_path"] = None
    c["auto_mapping"] = None
    c["target_modules"] = sorted(c["target_modules"])
    json.dump(c, open(path, "w"), indent=1, sort_keys=True)


def main():
    os.makedirs(OUT + "/deltas", exist_ok=True)
    bf = torch.bfloat16
    butterfly = 4 if unet().conv_in.out_channels < 64 else 10  # SDXL's widths are 10 times powers of two
    lycoris("locon", of(LoConModule, lora_dim=4, alpha=2), ALL)
    lycoris("locon-bf16-i64", of(LoConModule, lora_dim=2, alpha=3), ALL, bf, edit=as_int)
    lycoris("locon-tucker", of(LoConModule, lora_dim=4, alpha=2, use_tucker=True), CONV + LINEAR)
    lycoris("dora", of(LoConModule, lora_dim=4, alpha=2, weight_decompose=True), ALL)
    lycoris("dora-columns", of(LoConModule, lora_dim=4, alpha=2, weight_decompose=True,
                               wd_on_out=False), ALL)
    lycoris("loha", of(LohaModule, lora_dim=3, alpha=2), ALL)
    lycoris("loha-tucker", of(LohaModule, lora_dim=3, alpha=2, use_tucker=True), ALL, bf)
    lycoris("loha-dora", of(LohaModule, lora_dim=3, alpha=2, weight_decompose=True), ALL)
    lycoris("lokr", of(LokrModule, lora_dim=2, alpha=1, factor=4), ALL)
    lycoris("lokr-both", of(LokrModule, lora_dim=1, alpha=2, factor=4, decompose_both=True), ALL)
    lycoris("lokr-tucker", of(LokrModule, lora_dim=1, alpha=2, factor=4, use_tucker=True), ALL, bf)
    lycoris("lokr-whole", of(LokrModule, lora_dim=100, alpha=7, factor=4, full_matrix=True), ALL)
    lycoris("lokr-dora", of(LokrModule, lora_dim=2, alpha=1, factor=4, weight_decompose=True), ALL)
    lycoris("full", of(FullModule), ALL, prefix="lycoris_")
    lycoris("norm", of(NormModule), NORM)
    lycoris("ia3", of(IA3Module), ALL)
    lycoris("ia3-input", of(IA3Module, train_on_input=True), ALL)
    lycoris("glora", of(GLoRAModule, lora_dim=2, alpha=1), ALL)
    lycoris("glora-old", of(GLoRAModule, lora_dim=2, alpha=1), LINEAR, edit=old_glora)
    lycoris("oft", of(DiagOFTModule, lora_dim=4), ALL)
    lycoris("oft-bound", of(DiagOFTModule, lora_dim=4, constraint=.01, rescaled=True), ALL)
    lycoris("boft", of(ButterflyOFTModule, lora_dim=butterfly), ALL)
    lycoris("boft-bound", of(ButterflyOFTModule, lora_dim=butterfly, constraint=.01, rescaled=True), ALL, bf)
    lycoris("mixed", mixed, ALL)
    c = dict(target_modules=ALL)
    lora = dict(c, r=4, lora_alpha=6)
    with_peft("peft-lora", peft.LoraConfig(**lora))
    with_peft("peft-patterns", peft.LoraConfig(
        **lora, use_rslora=True, rank_pattern={"conv1": 2}, alpha_pattern={"ff.net.0.proj": 3}), bf)
    with_peft("peft-dora", peft.LoraConfig(**lora, use_dora=True))
    with_peft("peft-bias", peft.LoraConfig(**dict(lora, target_modules=LINEAR[:1] + POINT + CONV),
                                           lora_bias=True))
    with_peft("peft-loha", peft.LoHaConfig(r=3, alpha=5, **c))
    with_peft("peft-loha-cp", peft.LoHaConfig(r=3, alpha=5, use_effective_conv2d=True, **c))
    with_peft("peft-lokr", peft.LoKrConfig(r=2, alpha=5, decompose_factor=4, **c))
    with_peft("peft-lokr-cp", peft.LoKrConfig(r=1, alpha=5, decompose_factor=4, decompose_both=True,
                                              use_effective_conv2d=True, **c))
    with_peft("peft-lokr-whole", peft.LoKrConfig(r=100, alpha=5, decompose_factor=4, **c))
    with_peft("peft-oft", peft.OFTConfig(oft_block_size=4, r=0, use_cayley_neumann=False, **c))
    with_peft("peft-oft-neumann", peft.OFTConfig(oft_block_size=4, r=0, **c))
    with_peft("peft-oft-share", peft.OFTConfig(oft_block_size=4, r=0, block_share=True,
                                               use_cayley_neumann=False, **c))
    with_peft("peft-boft", peft.BOFTConfig(boft_block_size=4, **c))
    with_peft("peft-boft-stages", peft.BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=2, **c))
    with_peft("peft-ia3", peft.IA3Config(target_modules=ALL, feedforward_modules=[LINEAR[0], POINT[0]]))
    with_peft("peft-shira", peft.ShiraConfig(r=2, target_modules=LINEAR))
    save_file({k: v.contiguous() for k, v in want.items()}, OUT + "/deltas.safetensors")
    print(len(want), "weights of", len({k.split()[0] for k in want}), "adapters")


if __name__ == "__main__":
    main()
