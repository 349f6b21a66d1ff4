"""The denoiser and its text tower: python unet.py HOURS [--core] [--final] [--rate R] [--batch N]
[--workers N] [--start FILE]

v-prediction on latents of the world's scenes. Resumable: everything is in unet_state.pt, written every
five minutes; sheets appear beside it every half hour. --core draws only the sixty core things, for the
beginning; --final anneals the rate to zero over HOURS.
"""
import argparse
import math
import random
import time

from common import *
from muon import Both
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
from world import World, concepts

CONFIG = dict(sample_size=32, layers_per_block=1, block_out_channels=(32, 96, 160),
              down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
              up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
              cross_attention_dim=192, attention_head_dim=[1, 3, 5], norm_num_groups=16)
POOL, FRESH = 8000, 4

PROMPTS = ["a fox", "a tiger", "an elephant", "a cherry blossom", "a pizza", "an apple", "a donut",
           "a cool face", "a tractor", "a guitar on a blue background", "a sneaker", "dice",
           "a cat", "an owl", "a penguin", "a castle", "a robot", "ice cream",
           "a small heart on a pink background", "a blue elephant",
           "a dog on the left and a pizza on the right", "an apple and a key",
           "a ghost above a pumpkin", "a fish on the left, a bell in the middle and a rose on the right"]


class Pool:
    """Encoded scenes with their captions, a few of them new each step."""

    def __init__(self, world, vae, tok):
        self.world, self.vae, self.tok, self.memo = world, vae, tok, {}
        self.z = torch.empty(POOL, 4, 32, 32)
        self.ids = torch.empty(POOL, LENGTH, dtype=torch.long)
        self.at = 0
        self.empty = self.tokens("")
        for _ in range(POOL // 100):
            self.renew(100)

    def tokens(self, text):
        if text not in self.memo:
            self.memo[text] = self.tok(text, padding="max_length", max_length=LENGTH,
                                       return_tensors="pt").input_ids[0]
        return self.memo[text]

    @torch.no_grad()
    def renew(self, n):
        scenes = [self.world.sample() for _ in range(n)]
        z = self.vae.encode(pixels([a for a, _ in scenes])).latent_dist.mean
        for i, (_, caption) in enumerate(scenes):
            self.z[self.at], self.ids[self.at] = z[i], self.tokens(caption)
            self.at = (self.at + 1) % POOL

    def draw(self, n):
        k = torch.randint(0, POOL, (n,))
        ids = self.ids[k].clone()
        ids[torch.rand(n) < .1] = self.empty
        return self.z[k].contiguous(memory_format=torch.channels_last), ids


@torch.no_grad()
def render(unet, text, vae, tok, prompts, steps=25, cfg=4.0, seeds=None):
    """DDIM as the shipped scheduler runs it."""
    s = DDIMScheduler(**SCHEDULER)
    s.set_timesteps(steps)
    ids = tok([""] + list(prompts), padding="max_length", max_length=LENGTH,
              return_tensors="pt").input_ids
    h = text(ids).last_hidden_state
    h = torch.cat([h[:1].expand(len(prompts), -1, -1), h[1:]])
    x = torch.stack([torch.randn(4, 32, 32, generator=torch.Generator().manual_seed(k))
                     for k in (seeds or range(len(prompts)))])
    for t in s.timesteps:
        u, c = unet(torch.cat([x, x]), t, h).sample.chunk(2)
        x = s.step(u + cfg * (c - u), t, x).prev_sample
    return images(vae.decode(x).sample)


class Team:
    """Processes of one thread each that train one network: weights and gradients lie in memory they
    share, each takes its part of the batch and then of the update. (Two threads of one process wait
    for each other by spinning, which on a busy machine is many times slower.)"""

    def __init__(self, size, params):
        self.size, self.params = size, params
        self.owner, load = [0] * len(params), [0] * size  # who updates what: even shares
        for i in sorted(range(len(params)), key=lambda i: -params[i].numel()):
            self.owner[i] = load.index(min(load))
            load[self.owner[i]] += params[i].numel()
        self.grads = torch.zeros(size, sum(p.numel() for p in params)).share_memory_()
        self.control = torch.zeros(3, dtype=torch.float64).share_memory_()  # step, share done, stop
        self.barrier = torch.multiprocessing.get_context("spawn").Barrier(size)

    def part(self, rank, things):
        return [t for t, owner in zip(things, self.owner) if owner == rank]

    def sum_gradients(self, rank):
        """Leaves p.grad only on the parameters that are this worker's to update."""
        at, mine = 0, self.grads[rank]
        for p in self.params:
            mine[at:at + p.numel()] = p.grad.reshape(-1)
            at += p.numel()
        self.barrier.wait()
        at = 0
        for i, p in enumerate(self.params):
            p.grad = (self.grads[:, at:at + p.numel()].mean(0).view(p.shape)
                      if self.owner[i] == rank else None)
            at += p.numel()


def noised(z):
    """A batch at times that are spread evenly, a little denser where identity is decided."""
    n = len(z)
    u = (torch.randperm(n) + torch.rand(n)) / n
    t = (u ** .75 * 1000).long().clamp(0, 999)
    a, e = ALPHAS[t][:, None, None, None], torch.randn_like(z)
    return a.sqrt() * z + (1 - a).sqrt() * e, t, a.sqrt() * e - (1 - a).sqrt() * z


def worker(rank, o, team, unet, text, shadow):
    torch.set_num_threads(1)
    tok = CLIPTokenizer.from_pretrained(path("model", "tokenizer"))
    vae = AutoencoderKL.from_pretrained(path("model", "vae")).eval().requires_grad_(False)
    vae = vae.to(memory_format=torch.channels_last)
    named = ([(n, p, 1.0) for n, p in unet.named_parameters()] +
             [(n, p, .25) for n, p in text.named_parameters()])
    team.params = [p for _, p, _ in named]
    opt, part = Both(team.part(rank, named)), f"unet_opt.{rank}of{team.size}.pt"
    if os.path.exists(path(part)):
        opt.load_state_dict(load(part))
    everything = Average(team.params, .999, shadow)
    average = Average(team.part(rank, team.params), .999, team.part(rank, shadow))
    step = int(team.control[0])
    torch.manual_seed(step * team.size + rank)
    random.seed(step * team.size + rank)
    pool = Pool(World(step * team.size + rank, [r[1] for r in concepts("core")] if o.core else None),
                vae, tok)
    first, losses = step, []
    began = kept = drawn = time.time()

    @torch.compile
    def loss_of(x, t, ids, v):
        y = unet(x, t, text(ids).last_hidden_state).sample
        return ((y.float() - v) ** 2).mean((1, 2, 3))

    def keep():
        save(opt.state_dict(), part)
        if rank == 0:
            save(dict(unet=unet.state_dict(), text=text.state_dict(), average=shadow, step=step),
                 "unet_state.pt")

    while True:
        pool.renew(FRESH // team.size)
        z, ids = pool.draw(o.batch // team.size)
        x, t, v = noised(z)
        with torch.autocast("cpu", torch.bfloat16):
            each = loss_of(x, t, ids, v)
        each.mean().backward()
        if rank == 0:
            f = (time.time() - began) / 3600 / o.hours
            team.control[0], team.control[1], team.control[2] = step + 1, f, f >= 1
        team.sum_gradients(rank)
        done, stop = team.control[1].item(), team.control[2].item()
        rate = o.rate * min(1, (step - first + 1) / 200)
        opt.step(rate * (.5 + .5 * math.cos(math.pi * min(done, 1)) if o.final else 1))
        average.update(step)
        for p in team.params:
            p.grad = None
        step += 1
        team.barrier.wait()
        losses.append((each.mean().item(), each[t >= 700].mean().item()))
        if step % 100 == 0 and rank == 0:
            print(f"{step} {time.time() - began:.0f}s loss={np.mean([x for x, _ in losses]):.4f} "
                  f"early={np.nanmean([y for _, y in losses]):.4f} rate={rate:.1e}", flush=True)
            losses = []
        if step % 250 == 0 or stop:
            keep()
        if rank == 0 and time.time() - drawn > 1800:
            drawn = time.time()
            everything.swap()
            sheet(list(render(unet, text, vae, tok, PROMPTS, 20)), path(f"sheet_{step:07d}.png"),
                  PROMPTS, 6)
            everything.swap()
        if stop:
            return


def export(unet, text, average):
    average.swap()
    unet.half().save_pretrained(path("model", "unet"))
    text.half().save_pretrained(path("model", "text_encoder"))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("hours", type=float)
    p.add_argument("--core", action="store_true")
    p.add_argument("--final", action="store_true")
    p.add_argument("--rate", type=float, default=8e-4)
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--start", help="weights to begin from, where there is no state yet")
    o = p.parse_args()
    text = CLIPTextModel.from_pretrained(path("model", "text_encoder"), dtype=torch.float32)
    unet = UNet2DConditionModel(**CONFIG).to(memory_format=torch.channels_last)
    params = list(unet.parameters()) + list(text.parameters())
    team, shadow = Team(o.workers, params), None
    if os.path.exists(path("unet_state.pt")) or o.start:
        st = load("unet_state.pt") if os.path.exists(path("unet_state.pt")) else load(o.start)
        unet.load_state_dict(st["unet"]), text.load_state_dict(st["text"])
        shadow, team.control[0] = st.get("average"), st["step"]
    shadow = [s.share_memory_() for s in shadow or [q.detach().clone() for q in params]]
    unet.share_memory(), text.share_memory()
    team.params = []
    torch.multiprocessing.spawn(worker, (o, team, unet, text, shadow), o.workers)
    export(unet, text, Average(params, .999, shadow))
    print("done", int(team.control[0]))


if __name__ == "__main__":
    main()
