"""The finished model as a diffusers folder: python export.py FOLDER [--state FILE] [--weft PROGRAM]

Takes the averaged weights of unet_state.pt, the autoencoder and the tokenizer; writes float16, with the
licence of the glyphs beside it. Then checks: not above 20 MiB, diffusers' pipeline loads it, and with
--weft the same prompt and seed give the same picture in both (their PSNR is printed).
"""
import argparse
import os
import shutil
import subprocess
import tempfile

from common import *
from diffusers import (AutoencoderKL, DDIMScheduler, StableDiffusionPipeline,
                       UNet2DConditionModel)
from transformers import CLIPTextModel, CLIPTokenizer
from unet import CONFIG
from world import SIDE

LICENCE = "/usr/share/doc/fonts-noto-color-emoji/copyright"
LIMIT = 20 << 20
PROMPT, SEED, STEPS, CFG = "a fox on the left and a pizza on the right", 7, 30, 7.0


def averaged(state):
    unet, text = UNet2DConditionModel(**CONFIG), CLIPTextModel.from_pretrained(
        path("model", "text_encoder"))
    with torch.no_grad():
        for p, a in zip([*unet.parameters(), *text.parameters()], state["average"], strict=True):
            p.copy_(a)
    return unet, text


def forget_origin(file):
    """Where the weights were read from is nobody's business."""
    with open(file) as f:
        config = json.load(f)
    config.pop("_name_or_path", None)
    with open(file, "w") as f:
        json.dump(config, f, indent=2)
        f.write("\n")


def write(folder, state):
    unet, text = averaged(state)
    vae = AutoencoderKL.from_pretrained(path("model", "vae"))
    for name, m in (("unet", unet), ("text_encoder", text), ("vae", vae)):
        m.half().save_pretrained(os.path.join(folder, name))
        forget_origin(os.path.join(folder, name, "config.json"))
    shutil.copytree(path("model", "tokenizer"), os.path.join(folder, "tokenizer"),
                    dirs_exist_ok=True)
    DDIMScheduler(**SCHEDULER).save_pretrained(os.path.join(folder, "scheduler"))
    index = dict(_class_name="StableDiffusionPipeline", _diffusers_version="0.30.0",
                 feature_extractor=[None, None], image_encoder=[None, None],
                 requires_safety_checker=False, safety_checker=[None, None],
                 scheduler=["diffusers", "DDIMScheduler"],
                 text_encoder=["transformers", "CLIPTextModel"],
                 tokenizer=["transformers", "CLIPTokenizer"],
                 unet=["diffusers", "UNet2DConditionModel"], vae=["diffusers", "AutoencoderKL"])
    with open(os.path.join(folder, "model_index.json"), "w") as f:
        json.dump(index, f, indent=1)
    shutil.copy(LICENCE, os.path.join(folder, "LICENCE.noto-emoji"))


def size_of(folder):
    return sum(os.path.getsize(os.path.join(d, f)) for d, _, fs in os.walk(folder) for f in fs)


def picture(folder):
    """As diffusers itself makes it, in float32 on the processor."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return np.asarray(pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=CFG, height=SIDE,
                           width=SIDE, generator=torch.Generator().manual_seed(SEED)).images[0])


def weft_picture(weft, folder):
    with tempfile.TemporaryDirectory() as t:
        file = os.path.join(t, "a.png")
        subprocess.run([weft, "render", PROMPT, "--model", folder, "--seed", str(SEED), "--steps",
                        str(STEPS), "--cfg", str(CFG), "-o", file], check=True,
                       stdout=subprocess.DEVNULL)
        return np.asarray(Image.open(file).convert("RGB"))


def psnr(a, b):
    e = ((a.astype(np.float64) - b) ** 2).mean()
    return np.inf if e == 0 else 10 * np.log10(255 ** 2 / e)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("folder")
    p.add_argument("--state", default=path("unet_state.pt"))
    p.add_argument("--weft", help="the program to compare with")
    o = p.parse_args()
    torch.set_num_threads(1)
    write(o.folder, torch.load(o.state, weights_only=True))
    n = size_of(o.folder)
    print(f"{o.folder}: {n / 2 ** 20:.2f} MiB")
    assert n <= LIMIT, "too large"
    a = picture(o.folder)
    Image.fromarray(a).save(path("export.png"))
    if o.weft:
        print(f"PSNR against {o.weft}: {psnr(a, weft_picture(o.weft, o.folder)):.1f} dB")


if __name__ == "__main__":
    main()
