"""When a thing counts as recognised: the one rule of README.md, for any CLIP folder."""
import os
import sys

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../../assets/train"))
import styles  # noqa: E402
from world import SIDE, article, concepts  # noqa: E402

BLOB, PLAIN = "shapeless blob", "in plain style"
THRESHOLD = .4  # of the share among all names, for every CLIP folder
APART = .3  # two things' squares overlap (intersection by union) by no more
NAMES = [r[1] for r in concepts("core", "more", "held")]
STYLES = list(styles.STYLES)


def squares():
    """The fixed pieces: (x, y, side), the whole picture first."""
    out = [(0, 0, SIDE)]
    for side, step in ((88, 20), (64, 16), (48, 20)):
        at = range(0, SIDE - side + 1, step)
        out += [(x, y, side) for y in at for x in at]
    return out


SQUARES = squares()


def centre(square):
    x, y, side = square
    return x + side / 2, y + side / 2


def overlap(a, b):
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[2], b[1] + b[2]) - max(a[1], b[1])
    both = max(0, w) * max(0, h)
    return both / (a[2] ** 2 + b[2] ** 2 - both)


class Eyes:
    """A CLIP folder that looks at pictures piece by piece."""

    @torch.no_grad()
    def __init__(self, folder):
        from transformers import CLIPModel, CLIPTokenizer
        self.model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
        tok = CLIPTokenizer.from_pretrained(folder)
        texts = [article(n) for n in NAMES + [BLOB]] + [PLAIN] + [v[1] for v in styles.STYLES.values()]
        ids = tok(texts, padding="longest", return_tensors="pt").input_ids
        texts = F.normalize(self.model.get_text_features(input_ids=ids).pooler_output, dim=-1)
        self.names, self.looks = texts[:len(NAMES) + 1], texts[len(NAMES) + 1:]
        self.scale = self.model.logit_scale.exp()

    @torch.no_grad()
    def vectors(self, picture):
        """[squares, dim], each of length 1."""
        im = Image.fromarray(picture)
        x = np.stack([np.asarray(im.resize((SIDE, SIDE), Image.BICUBIC, (x, y, x + s, y + s)))
                      for x, y, s in SQUARES])
        x = torch.from_numpy(x).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        return F.normalize(self.model.get_image_features(pixel_values=x).pooler_output, dim=-1)

    def shares(self, picture):
        """[squares, names + 1]: how each piece is divided among all names and the blob."""
        return (self.scale * self.vectors(picture) @ self.names.T).softmax(-1).numpy()

    def style(self, vectors):
        """The name of the style of the whole picture, its vectors' first, or None where it is plain."""
        k = int((vectors[0] @ self.looks.T).argmax())
        return STYLES[k - 1] if k else None


def find(shares, names, threshold=THRESHOLD):
    """{name: (share, square)} of those of names that are recognised. The surest comes first; a square
    that overlaps one already given to another name counts no more."""
    out = {}
    order = sorted(((shares[k, NAMES.index(n)], n, SQUARES[k]) for n in names
                    for k in range(len(SQUARES))), reverse=True)
    for share, name, square in order:
        if share < threshold:
            break
        if name not in out and all(overlap(square, s) <= APART for _, s in out.values()):
            out[name] = (float(share), square)
    return out


def in_place(found, first, second, layout):
    """first lies left of (or above) second."""
    if first not in found or second not in found:
        return False
    a, b = centre(found[first][1]), centre(found[second][1])
    k = 0 if layout == "beside" else 1
    return b[k] - a[k] >= 16 and abs(b[k] - a[k]) > abs(b[1 - k] - a[1 - k])
