"""Goldens of whole models, stage by stage, from diffusers and transformers.

    python tests/golden/models.py tiny              the tiny models under tests/golden/data, made anew
    python tests/golden/models.py golden DIR        DIR/golden.safetensors for a model folder that exists
    python tests/golden/models.py sd15 DIR CONFIGS  Stable Diffusion 1.5's real size, seeded random weights
    python tests/golden/models.py sdxl-widths DIR   SDXL's layers, fewer of them, for deltas.py

tests/test_model.c reads them; WEFT_PARITY=DIR points it at a folder made by golden or sd15.
Everything is computed in float32 from the stored float16 weights, on the CPU.
"""
import json
import os
import shutil
import sys

import numpy as np
import torch
from diffusers import (AutoencoderKL, DDIMScheduler, StableDiffusionImg2ImgPipeline,
                       StableDiffusionPipeline, UNet2DConditionModel)
from diffusers import (DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler,
                       EulerDiscreteScheduler, HeunDiscreteScheduler, LCMScheduler, PNDMScheduler,
                       UniPCMultistepScheduler)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
DEMO = os.path.join(HERE, "../../assets/model")
PROMPTS = ["a red apple on the left and a blue key on the right", "small owl, castle"]
NEGATIVE = "yellow background"
SAMPLERS = {
    "ddim": (DDIMScheduler, {}),
    "pndm": (PNDMScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {}),
    "unipc": (UniPCMultistepScheduler, {}),
    "lcm": (LCMScheduler, {}),
    "dpmpp_2m karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
}


def randomise(model, seed):
    """Every parameter away from its initial value, so that no scale or bias is 1 or 0."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=g)
            if p.ndim == 1:
                p.add_(0.1 * noise)
            else:
                p.copy_(noise / (p[0].numel() ** 0.5))
    return model.half().float().eval()


def save_half(model, dir_):
    model.half().save_pretrained(dir_)
    model.float()


def text_config(width, act, heads, layers, **kw):
    return CLIPTextConfig(vocab_size=1152, hidden_size=width, intermediate_size=2 * width,
                          num_hidden_layers=layers, num_attention_heads=heads,
                          max_position_embeddings=32, hidden_act=act, **kw)


def tiny_parts(kind):
    if kind == "tiny-sd1":
        unet = UNet2DConditionModel(
            sample_size=8, layers_per_block=2, block_out_channels=(8, 8, 16, 16),
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            cross_attention_dim=16, attention_head_dim=2, norm_num_groups=4)
        vae = AutoencoderKL(
            block_out_channels=(4, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, norm_num_groups=2,
            latent_channels=4, sample_size=64)
        text = CLIPTextModel(text_config(16, "quick_gelu", 2, 3, eos_token_id=2, bos_token_id=0,
                                         pad_token_id=1))
        sched = DDIMScheduler(beta_start=.00085, beta_end=.012, beta_schedule="scaled_linear",
                              clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    else:
        unet = UNet2DConditionModel(
            sample_size=16, layers_per_block=1, block_out_channels=(8, 16, 24),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=20, attention_head_dim=[1, 2, 3], norm_num_groups=8,
            use_linear_projection=True)
        vae = AutoencoderKL(
            block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, norm_num_groups=4,
            latent_channels=4, sample_size=32, scaling_factor=0.5)
        text = CLIPTextModel(text_config(20, "gelu", 2, 2, eos_token_id=1151, bos_token_id=1150,
                                         pad_token_id=1151))
        sched = DDIMScheduler(beta_start=.00085, beta_end=.012, beta_schedule="scaled_linear",
                              clip_sample=False, set_alpha_to_one=False, steps_offset=1,
                              prediction_type="v_prediction")
    if kind == "sdxl-widths":  # its blocks' widths, heads and text, one transformer and one resnet a level
        unet = UNet2DConditionModel(
            sample_size=16, layers_per_block=1, block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=2048, attention_head_dim=[5, 10, 20], use_linear_projection=True)
        text = CLIPTextModel(text_config(2048, "gelu", 32, 1, eos_token_id=1151, bos_token_id=1150,
                                         pad_token_id=1151))
    return unet, vae, text, sched


def make_small(kind, seed, dir_=None):
    dir_ = dir_ or os.path.join(HERE, "data", kind)
    shutil.rmtree(dir_, ignore_errors=True)
    torch.manual_seed(seed)
    unet, vae, text, sched = tiny_parts(kind)
    for i, m in enumerate((unet, vae, text)):
        randomise(m, seed + i)
    tok = CLIPTokenizer.from_pretrained(os.path.join(DEMO, "tokenizer"))
    pipe = StableDiffusionPipeline(vae=vae, text_encoder=text, tokenizer=tok, unet=unet,
                                   scheduler=sched, safety_checker=None, feature_extractor=None,
                                   requires_safety_checker=False)
    save_half(unet, dir_ + "/unet")
    save_half(vae, dir_ + "/vae")
    save_half(text, dir_ + "/text_encoder")
    sched.save_pretrained(dir_ + "/scheduler")
    shutil.copytree(os.path.join(DEMO, "tokenizer"), dir_ + "/tokenizer")
    pipe.save_config(dir_)
    if kind == "tiny-sd2":  # the autoencoder's attention under its old names
        f = dir_ + "/vae/diffusion_pytorch_model.safetensors"
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        sd = load_file(f)
        for new, was in old.items():
            sd = {k.replace(f"attentions.0.{new}.", f"attentions.0.{was}."): v
                  for k, v in sd.items()}
        save_file(sd, f, {"format": "pt"})
    golden(load(dir_), dir_)  # as a user has it: what is in the files, not what classes default to


@torch.no_grad()
def golden(pipe, dir_, steps=5, samplers=SAMPLERS):
    """Inputs and outputs of every stage, with channels last, and whole pictures."""
    out, meta = {}, {"prompts": json.dumps(PROMPTS), "negative": NEGATIVE, "steps": str(steps)}
    g = torch.Generator().manual_seed(1234)
    unet, vae, text, tok = pipe.unet, pipe.vae, pipe.text_encoder, pipe.tokenizer
    length = text.config.max_position_embeddings
    ids = tok(PROMPTS, padding="max_length", max_length=length, truncation=True,
              return_tensors="pt").input_ids
    out["ids"] = ids.int()
    hidden = text(ids, output_hidden_states=True).hidden_states
    final = getattr(text, "text_model", text).final_layer_norm
    out["text"] = text(ids).last_hidden_state
    out["text_skip1"] = final(hidden[-2])

    f = 2 ** (len(vae.config.block_out_channels) - 1)
    side = unet.config.sample_size
    last = lambda x: x.permute(0, 2, 3, 1)
    for name, h, w in (("square", side, side), ("odd", 9, 11)):
        x = torch.randn(2, 4, h, w, generator=g)
        t = torch.tensor([981, 21])
        out[f"unet_{name}_x"], out[f"unet_{name}_t"] = last(x), t.float()
        out[f"unet_{name}_y"] = last(unet(x, t, out["text"]).sample)
    z = torch.randn(1, vae.config.latent_channels, 9, 11, generator=g)
    out["vae_z"] = last(z)
    out["vae_y"] = last(vae.decode(z / vae.config.scaling_factor).sample)
    x = torch.rand(1, 3, 8 * f, 6 * f, generator=g) * 2 - 1
    out["vae_x"] = last(x)
    out["vae_moments"] = last(vae.encode(x).latent_dist.parameters)
    vae.tile_latent_min_size, vae.tile_sample_min_size = 8, 8 * f
    z = torch.randn(1, vae.config.latent_channels, 11, 9, generator=g)
    out["tile_z"] = last(z)
    out["tile_y"] = last(vae.tiled_decode(z / vae.config.scaling_factor).sample)

    base = pipe.scheduler.config
    for name, (cls, extra) in samplers.items():
        pipe.scheduler = cls.from_config(base, **extra)
        latent = []
        picture = pipe(PROMPTS[0], negative_prompt=NEGATIVE, num_inference_steps=steps,
                       guidance_scale=4.0, height=side * f, width=side * f, output_type="np",
                       generator=torch.Generator().manual_seed(7),
                       callback_on_step_end=lambda p, i, t, kw: latent.append(kw["latents"]) or kw)
        out[f"latent {name}"] = last(latent[-1])
        if name == "ddim":
            out["picture ddim"] = torch.from_numpy(picture.images)
    pipe.scheduler = DDIMScheduler.from_config(base)
    i2i = StableDiffusionImg2ImgPipeline(**{k: v for k, v in pipe.components.items()},
                                         requires_safety_checker=False)
    i2i.set_progress_bar_config(disable=True)
    init = torch.rand(1, 3, side * f, side * f, generator=g)
    init = (init * 255).round() / 255
    latent = []
    i2i(PROMPTS[0], image=init, strength=0.6, num_inference_steps=steps, guidance_scale=4.0,
        negative_prompt=NEGATIVE, generator=torch.Generator().manual_seed(7),
        callback_on_step_end=lambda p, i, t, kw: latent.append(kw["latents"]) or kw)
    out["init"] = (last(init) * 255).round().byte()
    out["latent init"] = last(latent[-1])
    pipe.scheduler = DDIMScheduler.from_config(base)
    save_file({k: v.contiguous() for k, v in out.items()}, dir_ + "/golden.safetensors", meta)


def load(dir_):
    pipe = StableDiffusionPipeline.from_pretrained(dir_, safety_checker=None,
                                                   torch_dtype=torch.float32,
                                                   requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_sd15(dir_, configs):
    """Random weights at the real size; configs: a folder with SD 1.5's config files."""
    torch.manual_seed(15)
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(configs + "/unet"))
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(configs + "/vae"))
    text = CLIPTextModel(CLIPTextConfig.from_pretrained(configs + "/text_encoder"))
    for i, m in enumerate((unet, vae, text)):
        randomise(m, 15 + i)
    tok = CLIPTokenizer.from_pretrained(configs + "/tokenizer")
    sched = PNDMScheduler.from_config(PNDMScheduler.load_config(configs + "/scheduler"))
    pipe = StableDiffusionPipeline(vae=vae, text_encoder=text, tokenizer=tok, unet=unet,
                                   scheduler=sched, safety_checker=None, feature_extractor=None,
                                   requires_safety_checker=False)
    for m, name in ((unet, "unet"), (vae, "vae"), (text, "text_encoder")):
        save_half(m, f"{dir_}/{name}")
    sched.save_pretrained(dir_ + "/scheduler")
    shutil.copytree(configs + "/tokenizer", dir_ + "/tokenizer", dirs_exist_ok=True)
    pipe.save_config(dir_)
    golden(load(dir_), dir_, steps=2, samplers={k: SAMPLERS[k] for k in ("ddim", "pndm")})


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    if sys.argv[1] == "tiny":
        make_small("tiny-sd1", 100)
        make_small("tiny-sd2", 200)
    elif sys.argv[1] == "golden":
        golden(load(sys.argv[2]), sys.argv[2])
    elif sys.argv[1] == "sd15":
        make_sd15(sys.argv[2], sys.argv[3])
    elif sys.argv[1] == "sdxl-widths":
        make_small("sdxl-widths", 300, sys.argv[2])
