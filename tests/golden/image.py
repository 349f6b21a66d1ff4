"""Makes tests/golden/data/image.safetensors: PNG files with the pixels Pillow reads from them, and
pictures with what Pillow's filters make of them.

    python3 tests/golden/image.py        (Pillow 13.0.0, numpy 2.4.6, safetensors 0.8.0)
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin
from safetensors.numpy import save_file

OUT = Path(__file__).parent / "data" / "image.safetensors"
rng = np.random.default_rng(7)
out = {}

W, H = 13, 7
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
GREY, RGB, PALETTE, GREY_A, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_A: 2, RGBA: 4}


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def pack(rows, depth):
    """Rows of samples [h, w * channels] as PNG stores them, filter 0 in front of each."""
    text = b""
    for row in rows:
        if depth == 16:
            data = row.astype(">u2").tobytes()
        else:
            bits = "".join(format(v, f"0{depth}b") for v in row)
            bits += "0" * (-len(bits) % 8)
            data = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
        text += b"\0" + data
    return text


def png(samples, colour, depth, interlace=False, before=b"", after=b""):
    """A PNG of samples [h, w, channels]; before and after are chunks around the pixels."""
    h, w, _ = samples.shape
    passes = [(0, 0, 1, 1)] if not interlace else ADAM7
    data = b""
    for x, y, dx, dy in passes:
        part = samples[y::dy, x::dx]
        if part.size:
            data += pack(part.reshape(part.shape[0], -1), depth)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, interlace))
        + before
        + chunk(b"IDAT", zlib.compress(data, 9))
        + after
        + chunk(b"IEND", b"")
    )


def expected(data):
    """What weft promises: 8 bits, RGB, alpha over white, from Pillow's pixels."""
    im = Image.open(io.BytesIO(data))
    im.load()
    if im.mode in ("I;16", "I"):
        grey = (np.asarray(im).astype(np.uint32) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    p = np.asarray(im.convert("RGBA")).astype(np.uint32)
    a = p[..., 3:]
    return ((p[..., :3] * a + 255 * (255 - a) + 127) // 255).astype(np.uint8)


def case(name, data):
    out[f"png.{name}"] = np.frombuffer(data, np.uint8)
    out[f"rgb.{name}"] = expected(data)


def pictures():
    for depth in (1, 2, 4, 8, 16):
        case(f"grey{depth}", png(rng.integers(0, 1 << depth, (H, W, 1)), GREY, depth, depth == 2))
    for depth in (1, 2, 4, 8):
        n = min(1 << depth, 200)
        samples = rng.integers(0, n, (H, W, 1))
        plte = chunk(b"PLTE", rng.integers(0, 256, 3 * n, dtype=np.uint8).tobytes())
        case(f"palette{depth}", png(samples, PALETTE, depth, depth == 8, plte))
        trns = chunk(b"tRNS", rng.integers(0, 256, min(n, 100), dtype=np.uint8).tobytes())
        case(f"palette{depth}-alpha", png(samples, PALETTE, depth, depth == 4, plte + trns))
    for colour, name in ((RGB, "rgb"), (GREY_A, "grey-alpha"), (RGBA, "rgb-alpha")):
        for depth in (8, 16):
            samples = rng.integers(0, 1 << depth, (H, W, CHANNELS[colour]))
            case(f"{name}{depth}", png(samples, colour, depth))
            case(f"{name}{depth}-interlaced", png(samples, colour, depth, True))
    samples = rng.integers(0, 3, (H, W, 1)) * 100
    case("grey8-key", png(samples, GREY, 8, False, chunk(b"tRNS", struct.pack(">H", 100))))
    samples = rng.integers(0, 2, (H, W, 3)) * 255
    case("rgb8-key", png(samples, RGB, 8, False, chunk(b"tRNS", struct.pack(">HHH", 255, 0, 255))))
    case("one-pixel", png(np.array([[[10, 20, 30]]]), RGB, 8, True))


def texts():
    """All three text chunks, both kinds of iTXt, and one after the pixels."""
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a caf\xe9\nSteps: 20")
    info.add_text("packed", "long " * 60, zip=True)
    info.add_itxt("unicode", "日本語 \U0001f34e", "ja", "鍵")
    info.add_itxt("packed unicode", "日本" * 60, zip=True)
    buf = io.BytesIO()
    Image.new("RGB", (2, 2), (1, 2, 3)).save(buf, "PNG", pnginfo=info)
    data = buf.getvalue()
    end = data.index(b"IEND") - 4
    case("texts", data[:end] + chunk(b"tEXt", b"late\0after the pixels") + data[end:])
    bad = chunk(b"iTXt", b"claims\0\0\0\0\0caf\xe9") + chunk(b"tEXt", b"caf\xe9\0")
    case("odd-texts", png(np.array([[[1, 2, 3]]]), RGB, 8, False, bad))


def resizes():
    noise = rng.integers(0, 256, (23, 37, 3), dtype=np.uint8)
    y, x = np.mgrid[0:40, 0:52]
    shapes = np.stack([(x * 5) % 256, ((x // 5 + y // 4) % 2) * 255, (y * y) % 256], axis=2).astype(np.uint8)
    dot = np.array([[[7, 130, 255]]], np.uint8)
    few = rng.integers(0, 256, (3, 2, 3), dtype=np.uint8)
    sources = {"noise": noise, "shapes": shapes, "dot": dot, "few": few}
    todo = [("noise", (48, 40)), ("noise", (16, 9)), ("noise", (37, 30)), ("noise", (5, 23)), ("noise", (1, 1))]
    todo += [("shapes", (17, 31)), ("shapes", (53, 13)), ("shapes", (26, 20)), ("dot", (5, 3))]
    todo += [("few", (61, 1)), ("few", (2, 90)), ("few", (1, 2))]
    # Pillow goes down first when the height loses more than twice what the width does.
    todo += [("shapes", (47, 29)), ("shapes", (47, 30))]
    for name, src in sources.items():
        out[f"from.{name}"] = src
    for name, (w, h) in todo:
        im = Image.fromarray(sources[name]).resize((w, h), Image.LANCZOS)
        out[f"resize.{name}.lanczos.{w}x{h}"] = np.asarray(im)
    for kind, filter in (("bicubic", Image.BICUBIC), ("bilinear", Image.BILINEAR)):
        for name, (w, h) in [("noise", (48, 40)), ("noise", (16, 9)), ("shapes", (17, 31)), ("few", (61, 1))]:
            im = Image.fromarray(sources[name]).resize((w, h), filter)
            out[f"resize.{name}.{kind}.{w}x{h}"] = np.asarray(im)


pictures()
texts()
resizes()
save_file({k: np.ascontiguousarray(v) for k, v in out.items()}, OUT)
print(OUT, OUT.stat().st_size, "bytes")
