"""The autoencoder: f = 4, four channels. python vae.py MINUTES

Trained on scenes of the learnt things, and on shapes, lines and dots of chance, so that it can also hold
pictures that it never saw (adapters' things and styles). Afterwards the latents' mean and deviation are
folded into the 1x1 convolutions: scaling_factor is 1 and every channel is about N(0, 1).
"""
import random
import sys
import time

from common import *
from diffusers import AutoencoderKL
from PIL import ImageDraw
from world import World, GROUNDS

CONFIG = dict(block_out_channels=(16, 32, 64), down_block_types=("DownEncoderBlock2D",) * 3,
              up_block_types=("UpDecoderBlock2D",) * 3, layers_per_block=1, norm_num_groups=8,
              latent_channels=4, sample_size=128, mid_block_add_attention=False, scaling_factor=1.0)
KL = 1e-3


def chance(r):
    """A picture of random shapes: what keeps the autoencoder general."""
    im = Image.new("RGB", (128, 128), tuple(r.randint(0, 255) for _ in range(3)))
    d = ImageDraw.Draw(im)
    for _ in range(r.randint(2, 14)):
        c = tuple(r.randint(0, 255) for _ in range(3))
        x, y, s = r.randint(-10, 120), r.randint(-10, 120), r.randint(3, 60)
        kind = r.randint(0, 4)
        box = (x, y, x + s, y + r.randint(3, 60))
        if kind == 0:
            d.ellipse(box, fill=c)
        elif kind == 1:
            d.rectangle(box, fill=c)
        elif kind == 2:
            d.line([(r.randint(0, 127), r.randint(0, 127)) for _ in range(r.randint(2, 5))], fill=c,
                   width=r.randint(1, 5))
        elif kind == 3:
            d.polygon([(x + r.randint(0, s), y + r.randint(0, s)) for _ in range(r.randint(3, 6))],
                      fill=c)
        else:
            step = r.randint(4, 12)
            for i in range(0, 40, step):
                for j in range(0, 40, step):
                    d.ellipse((x + i, y + j, x + i + step // 2, y + j + step // 2), fill=c)
    return np.asarray(im)


def batch(world, n, crop):
    out, r = [], world.r
    while len(out) < n:
        im = world.sample(.35, .2)[0] if r.random() < .85 else chance(r)
        if r.random() < .15:
            im = im[..., r.sample(range(3), 3)]  # other colours
        if r.random() < .08:
            im = 255 - im
        k = 128 - crop
        y, x = (r.randint(0, k), r.randint(0, k)) if k else (0, 0)
        piece = im[y:y + crop, x:x + crop]
        if piece.std() > 20 or r.random() < .1:
            out.append(np.ascontiguousarray(piece))
    return pixels(out)


def slopes(x):
    return x[:, :, 1:] - x[:, :, :-1], x[:, :, :, 1:] - x[:, :, :, :-1]


def distance(x, y):
    """Loss and mean square: values, slopes, and both at half and quarter size."""
    l1 = (x - y).abs().mean()
    edge = sum((a - b).abs().mean() for a, b in zip(slopes(x), slopes(y)))
    a, b, coarse = x, y, 0
    for _ in range(2):
        a, b = torch.nn.functional.avg_pool2d(a, 2), torch.nn.functional.avg_pool2d(b, 2)
        coarse = coarse + (a - b).abs().mean()
    square = ((x - y) ** 2).mean()
    return l1 + edge + .5 * coarse + square, square


def loss_of(vae, x):
    d = vae.encode(x).latent_dist
    loss, square = distance(x, vae.decode(d.mean + d.std * torch.randn_like(d.mean)).sample)
    return loss + KL * .5 * (d.mean ** 2 + d.var - 1 - d.logvar).mean(), square


@torch.no_grad()
def fold(vae, x):
    """Makes every latent channel N(0, 1) over x."""
    m = torch.cat([vae.encode(p).latent_dist.mean for p in x.split(32)])
    mu, sd = m.mean((0, 2, 3)), m.std((0, 2, 3))
    n, q, p = len(mu), vae.quant_conv, vae.post_quant_conv
    q.weight[:n] /= sd[:, None, None, None]
    q.bias[:n] = (q.bias[:n] - mu) / sd
    q.bias[n:] -= 2 * sd.log()
    p.bias += p.weight[:, :, 0, 0] @ mu
    p.weight *= sd[None, :, None, None]


def train(vae, minutes, rate, world):
    params = list(vae.parameters())
    opt = torch.optim.AdamW(params, rate, betas=(.9, .99), weight_decay=1e-4)
    average, step, psnr, began = Average(params, .998), 0, [], time.time()
    while (f := (time.time() - began) / 60 / minutes) < 1:
        whole = f > .8
        x = batch(world, 5 if whole else 20, 128 if whole else 64)
        for g in opt.param_groups:
            g["lr"] = rate * min(1, (step + 1) / 80) * (.5 + .5 * np.cos(np.pi * f)) + 1e-6
        loss, square = loss_of(vae, x)
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        average.update(step)
        step += 1
        psnr.append(10 * np.log10(4 / float(square)))
        if step % 100 == 0:
            print(f"{step} {time.time() - began:.0f}s psnr={np.mean(psnr):.2f}", flush=True)
            psnr = []
    average.swap()


def main():
    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
    world = World(11)
    vae = AutoencoderKL(**CONFIG).to(memory_format=torch.channels_last)
    train(vae, float(sys.argv[1]), 2e-3, world)
    fold(vae.eval(), pixels([world.sample()[0] for _ in range(256)]))
    vae.save_pretrained(path("model", "vae"))
    report(vae)


@torch.no_grad()
def report(vae):
    for name, w in (("learnt", World(99)), ("held", World(99, splits=("held",)))):
        x = pixels([w.sample()[0] for _ in range(64)])
        y = vae.decode(vae.encode(x).latent_dist.mean).sample
        print(name, "psnr %.2f" % (10 * torch.log10(4 / ((x - y) ** 2).mean())))
        sheet([a for p in zip(images(x[:16]), images(y[:16])) for a in p], path(f"vae_{name}.png"))


if __name__ == "__main__":
    main()
