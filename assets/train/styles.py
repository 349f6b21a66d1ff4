"""Ten styles that the model never sees: image processing on a finished 128 x 128 picture."""
import numpy as np
from PIL import Image, ImageFilter

LUM = np.array([.299, .587, .114], np.float32)


def _image(a):
    return Image.fromarray(a.clip(0, 255).astype(np.uint8))


def _edges(im, scale=3.0):
    """0 … 1: where brightness or colour changes."""
    a = np.asarray(_image(im).filter(ImageFilter.GaussianBlur(.7)), np.float32)
    gx, gy = np.zeros_like(a), np.zeros_like(a)
    gx[:, 1:-1], gy[1:-1] = a[:, 2:] - a[:, :-2], a[2:] - a[:-2]
    return (np.sqrt(gx ** 2 + gy ** 2).max(-1) / 255 * scale).clip(0, 1)


def pixelated(im):
    return np.asarray(_image(im).resize((21, 21), Image.BOX).resize((128, 128), Image.NEAREST))


def line_art(im):
    return np.repeat(255 * (1 - _edges(im, 2.2))[..., None] ** 1.5, 3, -1)


def sepia(im):
    l = (im.astype(np.float32) @ LUM)[..., None] / 255
    return np.array([58, 34, 14]) + (np.array([250, 228, 190]) - np.array([58, 34, 14])) * l


def neon(im):
    e = _edges(im, 2.5)[..., None]
    hue = im.astype(np.float32)
    hue = (hue - hue.min(-1, keepdims=True)) / (np.ptp(hue, -1, keepdims=True) + 20)
    glow = e * (80 + 175 * hue + 60 * (np.ptp(hue, -1, keepdims=True) < .2))
    soft = np.asarray(_image(glow).filter(ImageFilter.GaussianBlur(2)), np.float32)
    return 8 + glow + .9 * soft


def halftone(im):
    y, x = np.mgrid[0:128, 0:128]
    u, v = (x + y) / 7.1, (x - y) / 7.1
    d = np.sqrt((u % 1 - .5) ** 2 + (v % 1 - .5) ** 2)
    soft = np.asarray(_image(im).filter(ImageFilter.GaussianBlur(1.5)), np.float32)
    dark = 1 - (soft @ LUM) / 255
    return np.where((d < .72 * np.sqrt(dark.clip(0, 1)))[..., None], soft * .75, 255)


def watercolour(im):
    a = _image(im).filter(ImageFilter.MedianFilter(7)).filter(ImageFilter.GaussianBlur(2.2))
    a = np.asarray(a, np.float32)
    g = np.random.default_rng(7).normal(0, 1, (32, 32))
    wash = np.asarray(Image.fromarray(g.astype(np.float32)).resize((128, 128), Image.BICUBIC))
    return 255 - (255 - a) * (.72 + .18 * wash[..., None])


def posterised(im):
    a = im.astype(np.float32)
    l = (a @ LUM)[..., None]
    a = l + (a - l) * 1.8
    return np.floor(a.clip(0, 255) / 86) * 127.5


def embossed(im):
    l = im.astype(np.float32) @ LUM
    d = np.zeros_like(l)
    d[1:, 1:] = l[1:, 1:] - l[:-1, :-1]
    d[2:, 2:] += .5 * (l[2:, 2:] - l[:-2, :-2])
    return np.repeat((150 + .9 * d)[..., None], 3, -1)


def stippled(im):
    soft = np.asarray(_image(im).filter(ImageFilter.GaussianBlur(1)), np.float32)
    dark = (1 - (soft @ LUM) / 255) ** .9
    r = np.random.default_rng(5).random((64, 64)).repeat(2, 0).repeat(2, 1)
    return np.where((r < dark * .95)[..., None], np.array([25, 25, 60]), 250)


def blueprint(im):
    e = _edges(im, 2.4)[..., None]
    y, x = np.mgrid[0:128, 0:128]
    grid = ((x % 16 == 0) | (y % 16 == 0))[..., None] * 22
    return np.array([28, 66, 150]) + grid + e * np.array([215, 185, 105])


# name -> (function, how a caption says it)
STYLES = {
    "pixelated": (pixelated, "in pixelated style"),
    "line art": (line_art, "in line art style"),
    "sepia": (sepia, "in sepia style"),
    "neon": (neon, "in neon style"),
    "halftone": (halftone, "in halftone style"),
    "watercolour": (watercolour, "in watercolour style"),
    "posterised": (posterised, "in posterised style"),
    "embossed": (embossed, "in embossed style"),
    "stippled": (stippled, "in stippled style"),
    "blueprint": (blueprint, "in blueprint style"),
}


def apply(name, im):
    return np.asarray(STYLES[name][0](im)).clip(0, 255).astype(np.uint8)
