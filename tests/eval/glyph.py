"""The check without learning: how well the glyph itself fits somewhere in a picture.

Normalised correlation over the glyph's own pixels and a narrow rim about them, all three colours
together, at half resolution; the best of all positions and of fifteen sizes. The rim is drawn on the
picture's ground, so that a white thing on white is matched by its outline.
"""
import os
import sys

import numpy as np
from PIL import Image, ImageFilter

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../assets/train"))
from world import World  # noqa: E402

SIZES = (32, 36, 40, 44, 48, 52, 58, 64, 70, 76, 84, 94, 104, 114, 124)
HALF, RIM = 64, 3
THRESHOLD = .75


def ground_of(picture):
    """The commonest colour of the border."""
    edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    return np.median(edge, 0).astype(np.float32)


class Glyphs:
    def __init__(self):
        self.world, self.memo = World(0, splits=("core", "more", "held")), {}

    def template(self, name, size):
        """Half-size colours (premultiplied) and weight [n, n], n = size / 2."""
        key = (name, size)
        if key not in self.memo:
            n = size // 2
            s = self.world.sprite(name, n)
            alpha = Image.fromarray(np.pad(s[..., 3], RIM).astype(np.uint8))
            rim = np.asarray(alpha.filter(ImageFilter.MaxFilter(2 * RIM - 1)), np.float32) / 255
            self.memo[key] = np.pad(s, ((RIM, RIM), (RIM, RIM), (0, 0))), rim
        return self.memo[key]

    def match(self, picture, name):
        """The best correlation, -1 … 1, and its centre and size in pixels."""
        half = picture.reshape(HALF, 2, HALF, 2, 3).mean((1, 3)).astype(np.float32)
        ground = ground_of(picture)
        pad = np.pad(half - ground, ((RIM, RIM), (RIM, RIM), (0, 0)))
        full = pad.shape[0]
        f = np.fft.rfft2(pad, axes=(0, 1))
        sums = np.fft.rfft2(np.stack([pad.sum(-1), (pad ** 2).sum(-1)], -1), axes=(0, 1))
        best = (-1.0, None, None)
        for size in SIZES:
            s, w = self.template(name, size)
            t = s[..., :3] - ground * (s[..., 3:] / 255)  # the glyph on this ground, less the ground
            n = full - len(t) + 1

            def over(spectrum, kernel):
                k = np.conj(np.fft.rfft2(kernel, (full, full)))
                return np.fft.irfft2(spectrum * k, (full, full))[:n, :n]

            cross = sum(over(f[..., c], w * t[..., c]) for c in range(3))
            total, square, weight = over(sums[..., 0], w), over(sums[..., 1], w), 3 * w.sum()
            mean = (w[..., None] * t).sum() / weight
            spread = (w[..., None] * (t - mean) ** 2).sum()
            fit = (cross - total * mean) / np.sqrt(
                np.maximum(square - total ** 2 / weight, weight) * spread)
            y, x = np.unravel_index(fit.argmax(), fit.shape)
            if fit[y, x] > best[0]:
                best = float(fit[y, x]), (2 * x + size / 2, 2 * y + size / 2), size
        return best
