"""Goldens of CLIPModel: both towers, their projections and the preprocessing of pictures.

    python tests/golden/clip.py tiny          tests/golden/data/tiny-clip, made anew
    python tests/golden/clip.py big DIR       DIR/vit-b-32 and DIR/vit-l-14: real sizes, random weights
    python tests/golden/clip.py of DIR OUT    a copy of a folder that is there, with its goldens

tests/test_clip.c reads them; WEFT_PARITY_CLIP=DIR[:DIR…] points it at folders made by the others.
"""
import json
import os
import shutil
import sys

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

HERE = os.path.dirname(os.path.abspath(__file__))
DEMO = os.path.join(HERE, "../../assets/model/tokenizer")


@torch.no_grad()
def make(dir_, text, vision, dim, seed, size):
    shutil.rmtree(dir_, ignore_errors=True)
    os.makedirs(dir_)
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig(text_config=dict(text, projection_dim=dim),
                                 vision_config=dict(vision, projection_dim=dim),
                                 projection_dim=dim))
    g = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        n = torch.randn(p.shape, generator=g)
        if name == "logit_scale":
            continue
        p.copy_(n / p[0].numel() ** .5 if p.ndim > 1 else p + .1 * n)
    model.half().save_pretrained(dir_)
    model.float().eval()
    pre = CLIPImageProcessorPil(size={"shortest_edge": vision["image_size"]},
                                crop_size={"height": vision["image_size"],
                                           "width": vision["image_size"]})
    pre.save_pretrained(dir_)
    for f in ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(DEMO, f), dir_)
    golden(dir_, model, pre, text, seed, size)


@torch.no_grad()
def golden(dir_, model, pre, text, seed, size):
    rng = np.random.default_rng(seed)
    out = {}
    w, h = size
    y, x = np.mgrid[0:h, 0:w]
    a = np.stack([x * 5 % 256, (y * 3 + x) % 256, rng.integers(0, 256, (h, w))], -1)
    a = a.astype(np.uint8)
    out["image"] = torch.from_numpy(a)
    px = pre(Image.fromarray(a), return_tensors="pt").pixel_values
    out["pixels"] = px.permute(0, 2, 3, 1)
    n = text["max_position_embeddings"]
    ids = torch.from_numpy(rng.integers(0, text["vocab_size"] - 2, (2, n))).int()
    ids[:, 0] = text["bos_token_id"]
    ids[0, n // 2:] = text["eos_token_id"]
    ids[1, -1] = text["eos_token_id"]
    out["ids"] = ids
    o = model(input_ids=ids.long(), pixel_values=px)
    # transformers normalises what it returns here; weft's layers give it before that
    pooled = lambda x: x if torch.is_tensor(x) else x.pooler_output
    out["text"] = pooled(model.get_text_features(ids.long()))
    out["vision"] = pooled(model.get_image_features(px))
    out["logits"] = o.logits_per_image
    save_file({k: v.contiguous() for k, v in out.items()}, dir_ + "/golden.safetensors")


def main():
    if sys.argv[1] == "tiny":
        make(HERE + "/data/tiny-clip",
             dict(vocab_size=1152, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                  num_attention_heads=2, max_position_embeddings=12, bos_token_id=1150,
                  eos_token_id=1151, pad_token_id=1151),
             dict(hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=3,
                  image_size=32, patch_size=8), 12, 5, (61, 45))
        return
    if sys.argv[1] == "of":
        shutil.copytree(sys.argv[2], sys.argv[3])
        model = CLIPModel.from_pretrained(sys.argv[3], dtype=torch.float32).eval()
        text = model.config.text_config.to_dict()
        golden(sys.argv[3], model, CLIPImageProcessorPil.from_pretrained(sys.argv[3]), text, 8, (150, 131))
        return
    text = dict(vocab_size=49408, num_hidden_layers=12, max_position_embeddings=77,
                bos_token_id=49406, eos_token_id=49407, pad_token_id=49407)
    make(sys.argv[2] + "/vit-b-32",
         dict(text, hidden_size=512, intermediate_size=2048, num_attention_heads=8),
         dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
              num_attention_heads=12, image_size=224, patch_size=32), 512, 6, (300, 421))
    make(sys.argv[2] + "/vit-l-14",
         dict(text, hidden_size=768, intermediate_size=3072, num_attention_heads=12),
         dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
              num_attention_heads=16, image_size=224, patch_size=14), 768, 7, (640, 333))


main()
