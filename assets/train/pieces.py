"""What scorer and judge learn from: scenes of everything and pieces of them, with what each shows.

A piece is a square of a picture, enlarged to the whole. Its names are those of the things that lie in it
whole; a piece that holds none (ground, scraps, mush that is no thing) is called BLOB; a piece that holds a
thing by half is never shown.
"""
import random

import styles
from common import *
from PIL import ImageFilter
from torch.nn import functional as F
from world import *

BLOB = "shapeless blob"
SIZES = {1: (56, 124), 2: (44, 72), 3: (36, 58), 4: (33, 52), 5: (30, 46)}
WHOLE, SCRAP = .78, .25  # seen of a thing's square: from here it is there, up to here it is not
LEAST = .24  # of the piece's side: smaller things need not be told


def placed(w, n):
    """n things anywhere without much overlap: (name, size, centre, tint)."""
    r, out = w.r, []
    for name in w.pick(n):
        for _ in range(40):
            s = r.randint(*SIZES[n])
            c = (r.randint(s // 2, SIDE - s // 2), r.randint(s // 2, SIDE - s // 2))
            if all(max(abs(c[0] - p[0]), abs(c[1] - p[1])) > (s + z) * .48 for _, z, p, _ in out):
                out.append((name, s, c, w.tint(.1)))
                break
    return out


def laid_out(w):
    """As the model's own pictures are: one, two or three things at their places."""
    u, r = w.r.random(), w.r
    if u < .5:
        return [(w.pick()[0], NORMAL if u < .36 else SMALL, PLACES["middle"], w.tint(.1))]
    if u < .85:
        places = ("left", "right") if r.random() < .7 else ("top", "bottom")
        return [(n, PAIR, PLACES[p], w.tint(.08)) for n, p in zip(w.pick(2), places)]
    return [(n, TRIPLE, PLACES[p], None) for n, p in
            zip(w.pick(3), ("left3", "middle3", "right3"))]


def melted(im, r):
    g = np.random.default_rng(r.randint(0, 1 << 30))
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    for a in (x, y):
        wave = Image.fromarray(g.normal(0, 1, (7, 7)).astype(np.float32))
        a += np.asarray(wave.resize((SIDE, SIDE), Image.BICUBIC)) * r.uniform(12, 24)
    return im[y.clip(0, SIDE - 1).astype(int), x.clip(0, SIDE - 1).astype(int)]


def shuffled(im, r):
    k = r.choice((16, 21, 32))
    at = [(i, j) for i in range(0, SIDE - k + 1, k) for j in range(0, SIDE - k + 1, k)]
    tiles = [im[i:i + k, j:j + k].copy() for i, j in at]
    r.shuffle(tiles)
    im = im.copy()
    for (i, j), t in zip(at, tiles):
        im[i:i + k, j:j + k] = t
    return im


def blend(w, k):
    """k things in one place, each seen through the others."""
    im, size = w.draw([], w.ground()).astype(np.float32), w.r.randint(60, 104)
    s = sum(w.sprite(n, size) for n in w.pick(k)) / k
    y, x = w.r.randint(0, SIDE - size), w.r.randint(0, SIDE - size)
    im[y:y + size, x:x + size] = im[y:y + size, x:x + size] * (1 - s[..., 3:] / 255) + s[..., :3]
    return im.astype(np.uint8)


def mush(w):
    """The colours of things without their shapes: what a bad model draws."""
    kind = w.r.randint(0, 3)
    if kind == 1:
        return blend(w, w.r.choice((2, 2, 3)))
    im = w.draw(laid_out(w), w.ground())
    if kind == 0:
        return melted(im, w.r)
    if kind == 2:
        return shuffled(im, w.r)
    return np.asarray(Image.fromarray(im).filter(ImageFilter.GaussianBlur(w.r.uniform(8, 13))))


def caption(w, things, ground, style):
    text = " and ".join(w.phrase(t[0], tint=t[3]) for t in things) or article(BLOB)
    return (w.on(text, ground) if not style else text) + (
        f" {styles.STYLES[style][1]}" if style else "")


class Scenes:
    """A pool of finished pictures with what is in them, a few of them new each step."""

    def __init__(self, world, size=2000, through=None, share=.2):
        """through: what a share of the pictures goes through (the autoencoder)."""
        self.w, self.through, self.share, self.at = world, through, share, 0
        self.names = world.names + [BLOB]
        self.styles = [None, *styles.STYLES]
        self.picture = np.zeros((size, SIDE, SIDE, 3), np.uint8)
        self.things, self.style, self.caption = [[]] * size, [0] * size, [""] * size
        for _ in range(size // 40):
            self.renew(40)

    def scene(self):
        r, w, ground = self.w.r, self.w, self.w.ground()
        if r.random() < .1:
            return mush(w), [], 0, article(BLOB)
        things = laid_out(w) if r.random() < .4 else placed(w, r.choice((1, 2, 2, 3, 3, 4, 5)))
        im, style = w.draw(things, ground), 0
        if r.random() < .18:
            style = r.randint(1, len(styles.STYLES))
            im = styles.apply(self.styles[style], im)
        return im, things, style, caption(w, things, ground, self.styles[style])

    def renew(self, n):
        new = [self.scene() for _ in range(n)]
        ims = [s[0] for s in new]
        k = round(n * self.share)
        if self.through:
            ims[:k] = list(images(self.through(pixels(ims[:k]))))
        for im, (_, things, style, text) in zip(ims, new):
            i, self.at = self.at, (self.at + 1) % len(self.things)
            self.picture[i], self.things[i] = im, things
            self.style[i], self.caption[i] = style, text
        self.w.cache.clear()

    def seen(self, i, x, y, side):
        """Names in a square of picture i, or None where one lies in it by half."""
        out = []
        for name, s, (cx, cy), _ in self.things[i]:
            s = s * .92
            w = min(x + side, cx + s / 2) - max(x, cx - s / 2)
            h = min(y + side, cy + s / 2) - max(y, cy - s / 2)
            part = max(w, 0) * max(h, 0) / s ** 2
            if part >= WHOLE and s >= LEAST * side:
                out.append(name)
            elif part > SCRAP:
                return None
        return out

    def square(self, i, r):
        """A whole picture, a square around one thing, or any square: (x, y, side, names)."""
        for _ in range(12):
            u = r.random()
            if u < .3:
                x, y, side = 0, 0, SIDE
            elif u < .7 and self.things[i]:
                _, s, (cx, cy), _ = r.choice(self.things[i])
                side = min(SIDE, s * r.uniform(.9, 1.8))
                x = min(max(0, cx - side / 2 + r.uniform(-.17, .17) * s), SIDE - side)
                y = min(max(0, cy - side / 2 + r.uniform(-.17, .17) * s), SIDE - side)
            else:
                side = r.uniform(40, 110)
                x, y = r.uniform(0, SIDE - side), r.uniform(0, SIDE - side)
            names = self.seen(i, x, y, side)
            if names is not None:
                return x, y, side, names
        return 0, 0, SIDE, [t[0] for t in self.things[i]]

    def batch(self, n, bend):
        """Pieces [n, 3, 128, 128], shares of names [n, names + 1], style [n], captions of whole ones.

        bend: how far (a share of the side) lines may be bent."""
        r, size = self.w.r, len(self.things)
        pick = [r.randrange(size) for _ in range(n)]
        squares = [self.square(i, r) for i in pick]
        goal = torch.zeros(n, len(self.names))
        for k, (_, _, _, names) in enumerate(squares):
            for name in names or [BLOB]:
                goal[k, self.names.index(name)] = 1 / max(1, len(names))
        x = cut(pixels(self.picture[pick]), [s[:3] for s in squares], bend)
        whole = [k for k, s in enumerate(squares) if s[2] == SIDE]
        return (x, goal, torch.tensor([self.style[i] for i in pick]), whole,
                [self.caption[pick[k]] for k in whole])


def cut(x, squares, bend):
    """Squares of pictures, a little turned and bent, enlarged to the whole."""
    n = len(x)
    turn = (torch.rand(n) - .5) * .2
    at = torch.tensor(squares)
    half = at[:, 2] / SIDE
    c, s = half * turn.cos(), half * turn.sin()
    mx, my = (at[:, 0] + at[:, 2] / 2) / SIDE * 2 - 1, (at[:, 1] + at[:, 2] / 2) / SIDE * 2 - 1
    theta = torch.stack([torch.stack([c, -s, mx], 1), torch.stack([s, c, my], 1)], 1)
    grid = F.affine_grid(theta, x.shape, align_corners=False)
    if bend:
        wave = torch.randn(n, 2, 5, 5) * torch.rand(n, 1, 1, 1) * bend * half[:, None, None, None]
        grid = grid + F.interpolate(wave, SIDE, mode="bilinear").permute(0, 2, 3, 1)
    return F.grid_sample(x, grid, "bilinear", "border", align_corners=False)
