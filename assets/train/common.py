"""What the training scripts share: folders, noise schedule, checkpoints, sheets.

Everything that training leaves lies under WEFT_TRAIN (default ~/weft-train), never in the tree.
"""
import json
import os

import numpy as np
import torch
from PIL import Image, ImageDraw

ROOT = os.environ.get("WEFT_TRAIN", os.path.expanduser("~/weft-train"))
MODEL = os.path.join(ROOT, "model")  # the diffusers folder as it grows
LENGTH = 40  # tokens a caption, with start and end

BETAS = torch.linspace(.00085 ** .5, .012 ** .5, 1000, dtype=torch.float64) ** 2
ALPHAS = torch.cumprod(1 - BETAS, 0).float()  # scaled_linear, as Stable Diffusion
SCHEDULER = dict(beta_start=.00085, beta_end=.012, beta_schedule="scaled_linear", clip_sample=False,
                 set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction",
                 timestep_spacing="leading")


def path(*names):
    p = os.path.join(ROOT, *names)
    os.makedirs(os.path.dirname(p), exist_ok=True)
    return p


def save(obj, name):
    """By rename: a checkpoint is whole or not there."""
    p = path(name)
    torch.save(obj, p + ".tmp")
    os.replace(p + ".tmp", p)


def load(name):
    return torch.load(path(name), weights_only=True)


def pixels(images):
    """uint8 [h, w, 3] arrays to [n, 3, h, w] in -1 … 1, channels last in memory."""
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    return x.contiguous(memory_format=torch.channels_last)


def images(x):
    return ((x.float() + 1) * 127.5).clamp(0, 255).round().byte().permute(0, 2, 3, 1).numpy()


def unsteady(z, off):
    """Latents put off by up to `off` deviations, finely and in blotches, as a denoiser's are."""
    def much():
        return off * torch.rand(len(z), 1, 1, 1)
    blotches = torch.nn.functional.interpolate(torch.randn(*z.shape[:2], 8, 8), z.shape[2:],
                                               mode="bilinear")
    return (z * (1 + .3 * much() * torch.randn(len(z), 1, 1, 1)) + much() * torch.randn_like(z) +
            much() * blotches)


def sheet(rows, file, labels=None, columns=8):
    """A labelled contact sheet."""
    side, room = rows[0].shape[0], 24 if labels else 0
    n = -(-len(rows) // columns)
    im = Image.new("RGB", (columns * (side + 4), n * (side + 4 + room)), (80, 80, 80))
    d = ImageDraw.Draw(im)
    for i, a in enumerate(rows):
        x, y = i % columns * (side + 4), i // columns * (side + 4 + room)
        im.paste(Image.fromarray(a), (x, y))
        for k in range(2 if labels else 0):
            d.text((x + 2, y + side + k * 11), labels[i][k * 21:(k + 1) * 21], fill=(255, 255, 255))
    im.save(file)


def count(m):
    return sum(p.numel() for p in m.parameters())


class Average:
    """Exponential moving average of a module's parameters."""

    def __init__(self, params, decay, shadow=None):
        self.params, self.decay = list(params), decay
        self.shadow = shadow or [p.detach().clone() for p in self.params]

    @torch.no_grad()
    def update(self, step):
        d = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_mul_(self.shadow, d)
        torch._foreach_add_(self.shadow, [p.detach() for p in self.params], alpha=1 - d)

    @torch.no_grad()
    def swap(self):
        for p, s in zip(self.params, self.shadow):
            t = p.detach().clone()
            p.copy_(s)
            s.copy_(t)
