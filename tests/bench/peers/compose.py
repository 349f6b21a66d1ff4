"""weft and diffusers with peft beside each other: merge, switch and composite with the same adapter files.

    OMP_NUM_THREADS=2 python tests/bench/peers/compose.py [MODEL] [ADAPTERS]

(torch 2.15, diffusers 0.42.1, peft 0.21.2.) Both run the same guided steps of DDIM on the same model folder in
float32; a step is the difference of a long and a short picture, so loading and decoding do not count. Turns are
taken strategy by strategy, the best of three each; the last column is their ratio.
"""
import json
import os
import subprocess
import sys
import tempfile
import time

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "../../..")
WEFT = os.path.join(ROOT, "build/weft")
SHORT, LONG, TIMES = 6, 26, 3
PROMPT = "a red apple"


def lora_files(folder, n):
    """Files that peft's own loader takes."""
    with open(os.path.join(folder, "index.json"), encoding="utf8") as f:
        rows = [r for r in json.load(f) if r["kind"] == "lora"]
    return [os.path.join(folder, r["file"]) for r in rows[:n]]


class Diffusers:
    def __init__(self, model, files):
        self.pipe = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32)
        self.pipe.scheduler = DDIMScheduler.from_config(self.pipe.scheduler.config)
        self.pipe.set_progress_bar_config(disable=True)
        self.names = [f"a{i}" for i in range(len(files))]
        for name, file in zip(self.names, files):
            self.pipe.load_lora_weights(os.path.dirname(file), weight_name=os.path.basename(file),
                                        adapter_name=name)

    @torch.no_grad()
    def seconds(self, how, n, steps):
        p, names = self.pipe, self.names[:n]
        c, u = p.encode_prompt(PROMPT, "cpu", 1, True, "")
        text = torch.cat([u, c])
        p.scheduler.set_timesteps(steps)
        x = torch.randn(1, 4, p.unet.config.sample_size, p.unet.config.sample_size,
                        generator=torch.Generator().manual_seed(1))
        p.set_adapters(names)
        began = time.perf_counter()
        for i, t in enumerate(p.scheduler.timesteps):
            def one():
                return p.unet(torch.cat([x, x]), t, text).sample

            if how == "composite":
                outs = []
                for name in names:
                    p.set_adapters([name])
                    outs.append(one())
                e = torch.stack(outs).mean(0)
            else:
                if how == "switch":
                    p.set_adapters([names[i % n]])
                e = one()
            a, b = e.chunk(2)
            x = p.scheduler.step(a + 7 * (b - a), t, x).prev_sample
        return time.perf_counter() - began


def weft_seconds(model, files, how, steps, folder):
    how = {"switch": ["--compose", "switch:tau=1"], "composite": ["--compose", "composite"]}.get(how, [])
    refs = [x for f in files for x in ("-a", f)]
    out = subprocess.run([WEFT, "render", PROMPT, "--model", model, "--seed", "1", "--sampler", "ddim",
                          "--steps", str(steps), "--json", "-t", os.environ.get("OMP_NUM_THREADS", "2"),
                          "-o", os.path.join(folder, "a.png"), *how, *refs],
                         check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(out.stdout)["seconds"]


def main():
    model = sys.argv[1] if len(sys.argv) > 1 else os.path.join(ROOT, "assets/model")
    adapters = sys.argv[2] if len(sys.argv) > 2 else os.path.join(ROOT, "assets/adapters")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    files = lora_files(adapters, 4)
    peer = Diffusers(model, files)
    print("strategy   n   diffusers ms   weft ms   ratio")
    with tempfile.TemporaryDirectory() as folder:
        for how in ("merge", "switch", "composite"):
            for n in (1, 2, 4):
                best = [[1e9, 1e9], [1e9, 1e9]]
                for _ in range(TIMES):
                    for k, steps in enumerate((SHORT, LONG)):
                        best[0][k] = min(best[0][k], peer.seconds(how, n, steps))
                        best[1][k] = min(best[1][k], weft_seconds(model, files[:n], how, steps, folder))
                a, b = (1000 * (t[1] - t[0]) / (LONG - SHORT) for t in best)
                print(f"{how:10} {n}   {a:12.1f}   {b:7.1f}   {a / b:5.2f}", flush=True)


main()
