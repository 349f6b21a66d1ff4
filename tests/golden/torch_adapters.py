"""Adapters in torch files, for tests/test_torch_adapters.c.

    python tests/golden/torch_adapters.py

(torch 2.15, diffusers 0.42.1, transformers 5.24) writes into tests/golden/data/torch/: ed_lora.pth and
ed_lora_research.pth, the two spellings of Mix-of-Show's files; peft/adapter_model.bin with its config;
embeddings in the forms of A1111 and diffusers; and cloneofsimo.txt, the modules that cloneofsimo's trainer
would change, in the order in which its walk through torch's modules meets them; lora-diffusers.bin, a
twin of ../lora-diffusers.safetensors. In each low-rank file the
factors of module k are filled with k + 1 and 1.
"""
import json
import os

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

HERE = os.path.dirname(os.path.abspath(__file__)) + "/data/torch/"


def walk(model, classes):
    """Every linear layer below a module of these classes, in torch's own order."""
    for path, module in model.named_modules():
        if type(module).__name__ in classes:
            for name, child in module.named_modules():
                if type(child) is torch.nn.Linear:
                    yield f"{path}.{name}"


def orders():
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        text = CLIPTextModel(CLIPTextConfig(num_hidden_layers=12, hidden_size=768))
    names = list(walk(unet, {"CrossAttention", "Attention", "GEGLU"}))
    assert len(names) == 144
    with open(HERE + "cloneofsimo.txt", "w") as f:
        for n in names:
            f.write(f"unet.{n}\n")
        for n in walk(text, {"CLIPAttention"}):
            f.write("text_encoder.text_model." + n.removeprefix("text_model.") + "\n")


def ed_lora():
    g = torch.Generator().manual_seed(3)
    unet = ["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
            "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
            "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"]
    text = ["text_model.encoder.layers.0.self_attn.q_proj",
            "text_model.encoder.layers.1.self_attn.out_proj"]
    for file, dot in (("ed_lora", ".lora_"), ("ed_lora_research", "_lora.")):
        parts = {"new_concept_embedding": {"<c1>": torch.randn(16, 16, generator=g),
                                           "<c2>": torch.randn(16, 16, generator=g)},
                 "text_encoder": {}, "unet": {}}
        for k, m in enumerate(unet + text):
            to = parts["unet" if k < 3 else "text_encoder"]
            to[f"{m}{dot}down.weight"] = torch.ones(4, 16)
            to[f"{m}{dot}up.weight"] = torch.full((16, 4), k + 1.)
        torch.save({"params": parts} if file == "ed_lora" else parts, HERE + file + ".pth")


def peft():
    os.makedirs(HERE + "peft", exist_ok=True)
    m = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    torch.save({m + ".lora_A.weight": torch.ones(4, 16), m + ".lora_B.weight": torch.ones(16, 4)},
               HERE + "peft/adapter_model.bin")
    with open(HERE + "peft/adapter_config.json", "w") as f:
        json.dump({"peft_type": "LORA", "r": 4, "lora_alpha": 16}, f)


def twin():
    """tests/golden/lora.py's file in diffusers' names, as diffusers wrote it before safetensors."""
    torch.save(load_file(HERE + "../lora-diffusers.safetensors"), HERE + "lora-diffusers.bin",
               _use_new_zipfile_serialization=False)


def embeddings():
    v = torch.arange(2 * 16, dtype=torch.float32).reshape(2, 16) / 16 - 1
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": v}, "name": "inner name",
                "step": 500, "sd_checkpoint": None, "sd_checkpoint_name": None}, HERE + "a1111.pt")
    torch.save({"<owl-toy>": v[0].half()}, HERE + "learned_embeds.bin")
    save_file({"<owl-toy>": v[0].half()}, HERE + "learned_embeds.safetensors")
    save_file({"clip_l": v, "clip_g": torch.cat([v, v], 1)}, HERE + "both.safetensors")
    n = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_"
    save_file({n + "down.weight": torch.ones(4, 16), n + "up.weight": torch.ones(16, 4),
               "bundle_emb.my.word.string_to_param.*": v, "bundle_emb.two.clip_l": v[:1].clone()},
              HERE + "bundle.safetensors")


orders(), ed_lora(), peft(), twin(), embeddings()
