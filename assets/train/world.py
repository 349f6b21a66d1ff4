"""The demo world: Noto Color Emoji on plain grounds, and what one says of it.

A picture is 128 x 128 with one, two or three things at fixed places and sizes, now and then tinted, on
white or one of five light grounds. `assets/world/concepts.tsv` lists the things: `core` and `more` are
what the model learns, `held` is what only adapters and judges ever see. Held-out styles are in styles.py.

Glyphs come from Debian's fonts-noto-color-emoji (SIL OFL 1.1).
"""
import io
import os
import random

import numpy as np
from PIL import Image

HERE = os.path.dirname(os.path.abspath(__file__))
LIST = os.path.join(HERE, "../world/concepts.tsv")
FONT = os.environ.get("WEFT_EMOJI_FONT", "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")

SIDE = 128
NORMAL, SMALL, PAIR, TRIPLE = 104, 64, 58, 42
PLACES = {"middle": (64, 64), "left": (33, 64), "right": (95, 64), "top": (64, 33),
          "bottom": (64, 95), "left3": (22, 64), "middle3": (64, 64), "right3": (106, 64)}
GROUNDS = {"blue": (176, 208, 248), "green": (184, 230, 184), "yellow": (252, 240, 168),
           "pink": (252, 204, 222), "purple": (216, 198, 244)}
TINTS = {"red": (235, 60, 50), "blue": (70, 120, 245), "green": (60, 175, 70),
         "yellow": (250, 205, 50), "purple": (160, 90, 220), "pink": (248, 130, 185)}
# things one does not put "a" before
PLURAL = set("grapes cherries pancakes fries glasses scissors jeans broccoli bread popcorn corn coffee "
             "sushi fire cheese beer wine poo blueberries peanuts gloves socks headphones chocolate milk "
             "garlic".split())


def concepts(*splits):
    """(glyph, name, category, split) of the given splits, in the order of the list."""
    rows = [l.rstrip("\n").split("\t") for l in open(LIST, encoding="utf8") if l[0] != "#"]
    return [r for r in rows if r[3] in splits]


def read_glyphs(chars):
    """[n, 136, 136, 4] uint8: the font's bitmaps, centred."""
    from fontTools.ttLib import TTFont
    font = TTFont(FONT)
    cmap, strike = font.getBestCmap(), font["CBDT"].strikeData[0]
    out = np.zeros((len(chars), 136, 136, 4), np.uint8)
    for i, c in enumerate(chars):
        bitmap = strike[cmap[ord(c[0])]].imageData
        a = np.asarray(Image.open(io.BytesIO(bitmap)).convert("RGBA"))
        top = (136 - a.shape[0]) // 2
        out[i, top:top + a.shape[0], :a.shape[1]] = a[:136 - top]
    return out


def article(noun):
    if noun.split()[-1] in PLURAL:
        return noun
    return ("an " if noun[0] in "aeio" or noun.startswith("umb") else "a ") + noun


def colourise(rgb, tint):
    """The same drawing in one colour: white becomes light, black stays."""
    lum = (rgb @ np.array([.299, .587, .114], np.float32))[..., None] / 255
    c = np.array(TINTS[tint], np.float32)
    flat = np.where(lum < .6, c * (lum / .6), c + (255 - c) * ((lum - .6) / .4) * .75)
    return .15 * rgb + .85 * flat


class World:
    """Draws scenes of the named things with a random generator of its own."""

    def __init__(self, seed=0, names=None, splits=("core", "more"), extra=()):
        rows = concepts(*splits, *extra)
        self.names = [r[1] for r in rows]
        self.category = {r[1]: r[2] for r in rows}
        self.index = {n: i for i, n in enumerate(self.names)}
        self.glyphs = read_glyphs([r[0] for r in rows])
        self.pool = list(names or [r[1] for r in rows if r[3] in splits])
        self.r = random.Random(seed)
        self.bag, self.cache = [], {}

    # ---- drawing

    def sprite(self, name, size, tint=None):
        """[size, size, 4] float32, colour premultiplied."""
        key = (name, size, tint)
        if key not in self.cache:
            a = self.glyphs[self.index[name]].astype(np.float32)
            rgb, alpha = a[..., :3], a[..., 3:]
            if tint:
                rgb = colourise(rgb, tint)
            p = np.concatenate([rgb * alpha / 255, alpha], -1)
            self.cache[key] = np.stack([np.asarray(Image.fromarray(p[..., c]).resize(
                (size, size), Image.LANCZOS)) for c in range(4)], -1).clip(0, 255)
        return self.cache[key]

    def draw(self, things, ground=None, change=None):
        """things: (name, size, place, tint) in order. change: applied to each sprite (styles of objects)."""
        im = np.empty((SIDE, SIDE, 3), np.float32)
        im[:] = GROUNDS[ground] if ground else 255
        for name, size, place, tint in things:
            s = self.sprite(name, size, tint)
            if change:
                s = change(s)
            cx, cy = PLACES[place] if isinstance(place, str) else place
            x, y = cx - size // 2, cy - size // 2
            x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + size, SIDE), min(y + size, SIDE)
            s = s[y0 - y:y1 - y, x0 - x:x1 - x]
            im[y0:y1, x0:x1] = im[y0:y1, x0:x1] * (1 - s[..., 3:] / 255) + s[..., :3]
        return im.clip(0, 255).astype(np.uint8)

    # ---- chance

    def pick(self, n=1):
        """n different things; all come up equally often."""
        out = []
        while len(out) < n:
            if not self.bag:
                self.bag = list(self.pool)
                self.r.shuffle(self.bag)
            c = self.bag.pop()
            if c in out:
                self.bag.insert(0, c)
            else:
                out.append(c)
        return out

    def ground(self):
        return None if self.r.random() < .65 else self.r.choice(list(GROUNDS))

    def tint(self, p):
        return self.r.choice(list(TINTS)) if self.r.random() < p else None

    # ---- scenes with their captions

    def phrase(self, name, size=NORMAL, tint=None):
        words = (["small"] if size == SMALL else []) + ([tint] if tint else []) + [name]
        return article(" ".join(words))

    def on(self, text, ground):
        if ground:
            return f"{text} on a {ground} background"
        return text + (" on a white background" if self.r.random() < .1 else "")

    def single(self, name=None, size=None, ground=0, tint=0):
        name = name or self.pick()[0]
        size = size or (SMALL if self.r.random() < .25 else NORMAL)
        ground = self.ground() if ground == 0 else ground
        tint = self.tint(.12) if tint == 0 else tint
        p, u = self.phrase(name, size, tint), self.r.random()
        text = f"a picture of {p}" if u < .1 else p.split(" ", 1)[1] if u < .2 and " " in p else p
        return self.draw([(name, size, "middle", tint)], ground), self.on(text, ground)

    def pair(self, names=None, side_by_side=None, ground=0, tints=0):
        a, b = names or self.pick(2)
        ground = self.ground() if ground == 0 else ground
        wide = self.r.random() < .7 if side_by_side is None else side_by_side
        ta, tb = (self.tint(.08), self.tint(.08)) if tints == 0 else tints
        places = ("left", "right") if wide else ("top", "bottom")
        im = self.draw([(a, PAIR, places[0], ta), (b, PAIR, places[1], tb)], ground)
        p, q, u = self.phrase(a, tint=ta), self.phrase(b, tint=tb), self.r.random()
        if wide:
            text = (f"{p} on the left and {q} on the right" if u < .5 else
                    f"{q} on the right and {p} on the left" if u < .6 else
                    f"{p} and {q}" if u < .85 else f"{p} next to {q}")
        else:
            text = f"{p} above {q}" if u < .65 else f"{q} below {p}"
        return im, self.on(text, ground)

    def triple(self, names=None, ground=0):
        names = names or self.pick(3)
        ground = self.ground() if ground == 0 else ground
        im = self.draw([(n, TRIPLE, p, None) for n, p in
                        zip(names, ("left3", "middle3", "right3"))], ground)
        a, b, c = (self.phrase(n) for n in names)
        text = (f"{a} on the left, {b} in the middle and {c} on the right"
                if self.r.random() < .6 else f"{a}, {b} and {c}")
        return im, self.on(text, ground)

    def sample(self, singles=.5, triples=.12):
        u = self.r.random()
        return self.single() if u < singles else self.triple() if u < singles + triples else self.pair()
