"""LoRA files in three key styles and what diffusers makes of them, on the tiny SD 1.x model.

    python tests/golden/lora.py

writes tests/golden/data/lora-{peft,kohya,diffusers}.safetensors (float16) and lora.safetensors: the
UNet's and text encoder's outputs with each at strengths 1 and 0.5. The adapters are modules that peft
put into the models; for peft's and kohya's files diffusers' own loader must give the same UNet. The
inputs are those of tiny-sd1/golden.safetensors.
"""
import os

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__)) + "/data/"
UNET = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
        "conv1", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "conv_in"]
TEXT = ["q_proj", "v_proj", "fc1", "fc2"]
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


def pipeline():
    p = StableDiffusionPipeline.from_pretrained(HERE + "tiny-sd1", safety_checker=None,
                                                torch_dtype=torch.float32)
    p.unet.eval(), p.text_encoder.eval()
    return p


def random_lora(model, targets, rank, alpha, seed):
    """Adapter "a" with random factors, rounded to float16. Returns its state dict, peft's names."""
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets), model, "a")
    g = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if ".lora_" in name:
            p.data = (torch.randn(p.shape, generator=g) * 0.3 / p[0].numel() ** .5).half().float()
    return {k: v.half() for k, v in get_peft_model_state_dict(model, adapter_name="a").items()}


def strength(model, w):
    for m in model.modules():
        if hasattr(m, "scaling") and "a" in m.scaling:
            m.set_scale("a", w)


def outputs(p, g, out, name):
    """With the adapter at strengths 1 and 0.5."""
    x = g["unet_square_x"].permute(0, 3, 1, 2)
    for w in (1.0, 0.5):
        strength(p.unet, w), strength(p.text_encoder, w)
        out[f"{name} {w} text"] = p.text_encoder(g["ids"].long()).last_hidden_state
        y = p.unet(x, g["unet_square_t"].long(), g["text"]).sample
        out[f"{name} {w} unet"] = y.permute(0, 2, 3, 1)


def check_loader(path, g, out, name):
    """diffusers' loader on the file's UNet half against the modules it was made from. (The text half
    needs a newer peft than there is.)"""
    p = pipeline()
    sd, alphas, meta = p.lora_state_dict(path, unet_config=p.unet.config, return_lora_metadata=True)
    sd = {k: v for k, v in sd.items() if k.startswith("unet.")}
    p.load_lora_into_unet(sd, network_alphas=alphas, unet=p.unet, adapter_name="a", metadata=meta)
    x = g["unet_square_x"].permute(0, 3, 1, 2)
    y = p.unet(x, g["unet_square_t"].long(), g["text"]).sample.permute(0, 2, 3, 1)
    e = ((y - out[f"{name} 1.0 unet"]).norm() / y.norm()).item()
    print(os.path.basename(path), "loader against modules:", e)
    assert e < 1e-6


@torch.no_grad()
def main():
    g = load_file(HERE + "tiny-sd1/golden.safetensors")
    out = {}

    p = pipeline()
    unet = random_lora(p.unet, UNET, 2, 3, 1)
    text = random_lora(p.text_encoder, TEXT, 2, 4, 2)
    outputs(p, g, out, "peft")
    # PEFT's names under unet. and text_encoder., with the alphas in the metadata
    StableDiffusionPipeline.save_lora_weights(
        HERE, unet_lora_layers=unet, text_encoder_lora_layers=text,
        unet_lora_adapter_metadata=p.unet.peft_config["a"].to_dict(),
        text_encoder_lora_adapter_metadata=p.text_encoder.peft_config["a"].to_dict(),
        weight_name="lora-peft.safetensors")
    check_loader(HERE + "lora-peft.safetensors", g, out, "peft")

    # kohya's names and alpha tensors, of the same factors
    kohya = {}
    for sd, prefix, alpha in ((unet, "lora_unet_", 3.), (text, "lora_te_", 4.)):
        for k, v in sd.items():
            module, which = k.rsplit(".lora_", 1)
            if prefix == "lora_te_" and not module.startswith("text_model"):
                module = "text_model." + module
            name = prefix + module.replace(".", "_")
            kohya[name + (".lora_down.weight" if which[0] == "A" else ".lora_up.weight")] = v
            kohya[name + ".alpha"] = torch.tensor(alpha).half()
    save_file({k: v.contiguous() for k, v in kohya.items()}, HERE + "lora-kohya.safetensors",
              {"ss_network_module": "networks.lora"})
    check_loader(HERE + "lora-kohya.safetensors", g, out, "peft")

    # the attention processors' names of diffusers before 0.20: no alpha, no prefix
    p = pipeline()
    sd = random_lora(p.unet, ATTENTION, 2, 2, 3)
    outputs(p, g, out, "diffusers")
    old = {}
    for k, v in sd.items():
        module, which = k.rsplit(".lora_", 1)
        block, proj = module.replace(".to_out.0", ".to_out").rsplit(".", 1)
        old[f"{block}.processor.{proj}_lora.{'down' if which[0] == 'A' else 'up'}.weight"] = v
    save_file({k: v.contiguous() for k, v in old.items()}, HERE + "lora-diffusers.safetensors",
              {"format": "pt"})
    save_file({k: v.contiguous() for k, v in out.items()}, HERE + "lora.safetensors")


main()
