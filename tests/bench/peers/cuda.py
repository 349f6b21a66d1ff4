"""weft and diffusers with peft beside each other on a GPU: a step of SD 1.5's UNet at 512 x 512, with adapters.

    python tests/bench/peers/cuda.py [--weft build/weft] [--batches 1,4,16] [--adapters 0,1,4,8] [--skip-compile] [--all]

(torch 2.15, diffusers 0.42.1, peft 0.21.2.) Both run guided steps, two rows a picture, in float16 on weights that were
never trained, so nothing is downloaded. Adapters are of rank 16, unmerged, all active on all rows: on the q, k, v and out
of every attention, or with --all on every layer of the transformers. The ways, best of a few rounds of many steps each:

    eager      diffusers, channels last, cuDNN's own search
    compiled   the same by torch.compile(mode="max-autotune", fullgraph=True), CUDA graphs among it; minutes each
    weft       weft bench unet --device cuda --precision f16, a process of its own

and what weft's goals for batch 1 say of it. Without a GPU nothing is measured. --device cpu --small is the demo model's
shape in float32, to try the script out.
"""
import argparse
import gc
import json
import os
import platform
import re
import subprocess
import sys
import time
import warnings

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.abspath(os.path.join(HERE, "../../.."))
DEMO = os.path.join(ROOT, "assets/model")
RANK, TOKENS, ROUNDS, SECONDS = 16, 77, 5, .3
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
OTHERS = ["proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
SD15 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}  # the rest is the class's default


class Peer:
    """diffusers' UNet with as many of peft's adapters as were asked for last."""

    def __init__(self, a):
        import torch
        from diffusers import UNet2DConditionModel
        from diffusers.utils import logging
        logging.set_verbosity_error()
        torch.backends.cudnn.benchmark = True
        self.torch, self.a = torch, a
        self.type = torch.float16 if a.device == "cuda" else torch.float32
        config = SD15
        if a.small:
            with open(os.path.join(DEMO, "unet/config.json"), encoding="utf8") as f:
                config = json.load(f)
        torch.manual_seed(1)
        with torch.device(a.device):
            self.unet = UNet2DConditionModel.from_config(config).eval()
        self.names, self.inputs = [], {}
        self.settle()

    def settle(self):
        self.unet.to(device=self.a.device, dtype=self.type, memory_format=self.torch.channels_last)

    def adapt(self, n):
        from peft import LoraConfig
        for i in range(len(self.names), n):
            self.names.append(f"a{i}")
            self.unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian",
                                             target_modules=ATTENTION + (OTHERS if self.a.all else [])), self.names[i])
        if n:
            self.unet.set_adapters(self.names[:n])
        self.settle()

    def wait(self):
        if self.a.device == "cuda":
            self.torch.cuda.synchronize()

    def steps(self, net, batch, n):
        """Seconds of n steps."""
        torch, c = self.torch, self.unet.config
        if batch not in self.inputs:
            x = torch.randn(2 * batch, c.in_channels, c.sample_size, c.sample_size, device=self.a.device, dtype=self.type)
            text = torch.randn(2 * batch, TOKENS, c.cross_attention_dim, device=self.a.device, dtype=self.type)
            t = torch.full((2 * batch,), 801, device=self.a.device)
            self.inputs[batch] = x.to(memory_format=torch.channels_last), t, text
        self.wait()
        began = time.perf_counter()
        with torch.no_grad():
            for _ in range(n):
                torch.compiler.cudagraph_mark_step_begin()
                net(*self.inputs[batch], return_dict=False)
        self.wait()
        return time.perf_counter() - began

    def best(self, net, batch):
        for _ in range(3):
            one = self.steps(net, batch, 1)
        n = max(1, min(200, int(SECONDS / one)))
        return 1e3 * min(self.steps(net, batch, n) for _ in range(ROUNDS)) / n

    def compiled(self, batch):
        torch, began = self.torch, time.perf_counter()
        torch._dynamo.reset()
        gc.collect()
        try:
            net = torch.compile(self.unet, mode="max-autotune", fullgraph=True, dynamic=False)
            self.steps(net, batch, 1)
            took = time.perf_counter() - began
            return self.best(net, batch), f"made in {took:.0f} s"
        except Exception as e:  # whatever the compiler says: the others still count
            return None, f"does not work: {(str(e).strip().splitlines() or ['?'])[0]}"


def weft_figures(a):
    """{(batch, way): {name: value}}, and the other lines by their names."""
    command = [a.weft, "bench", "unet", "--device", a.device, "--json"]
    command += ["--precision", "f16"] if a.device == "cuda" else []
    command += ["--small"] if a.small else []
    command += [] if a.all else ["--qkv"]
    for n in a.batches:
        command += ["--batch", str(n)]
    print(" ".join(command), flush=True)
    out = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if out.returncode:
        print(f"weft failed ({out.returncode}); what it had measured counts")
    cells, others, of = {}, {}, "demo UNet" if a.small else "SD 1.5 UNet"
    for line in out.stdout.splitlines():
        row = json.loads(line)
        m = re.fullmatch(r"(.+ UNet), (\d+) pictures?, (.+): (.+)", row["name"])
        if m and m[1] == of:
            cells.setdefault((int(m[2]), m[3]), {})[m[4]] = row["value"]
        elif not m:
            others[row["name"]] = f"{row['value']:.4g} {row['unit']}"
    return cells, others


def way(n):
    return "no adapter" if n == 0 else f"{n} adapter{'s' if n > 1 else ''}"


def ratio(a, b):
    return f"{a / b:6.2f}" if a and b else "     -"


def table(a, cells, peer):
    print("\npictures  adapters        weft ms   eager ms  compiled ms   eager/weft  compiled/weft   over none, %: "
          "weft, eager, compiled")
    for batch in a.batches:
        mine = {n: cells.get((batch, way(n)), {}).get("a step") for n in a.adapters}
        for n in a.adapters:
            three = [mine[n], *peer.get((batch, n), (None, None))]
            zero = [mine.get(0), *peer.get((batch, 0), (None, None))]
            over = [f"{100 * (x / y - 1):7.1f}" if n and x and y else "      -" for x, y in zip(three, zero)]
            ms = [f"{x:9.2f}" if x else "        -" for x in three]
            print(f"{batch:8}  {way(n):12} {ms[0]}  {ms[1]}    {ms[2]}       {ratio(three[1], three[0])}         "
                  f"{ratio(three[2], three[0])}                  {' '.join(over)}")
        for name in ("4 adapters, gated", "4 adapters, folded"):
            if (batch, name) in cells:
                print(f"{batch:8}  {name}: " + ", ".join(f"{k} {v:.4g}" for k, v in cells[batch, name].items()))


def goals(cells, peer):
    none, four, gated = (cells.get((1, way), {}) for way in ("no adapter", "4 adapters", "4 adapters, gated"))
    change = cells.get((1, "switch to 4 others"), {}).get("beyond a step")
    eager, compiled = peer.get((1, 0), (None, None))

    def times(other):
        return other / none["a step"] if other and none else None

    rows = [("as fast as max-autotune", times(compiled), ">=", 1, "times"),
            ("faster than eager", times(eager), ">=", 1.5, "times"),
            ("4 unmerged adapters over none", four.get("over none"), "<=", 8, "%"),
            ("a switch to 4 others that are there", change, "<=", 1, "ms"),
            ("gates over the same adapters", gated.get("over those ungated"), "<=", 10, "%")]
    print("\ngoals at 1 picture")
    for name, value, sign, goal, unit in rows:
        holds = value is not None and (value >= goal if sign == ">=" else value <= goal)
        got = "not measured" if value is None else f"{value:.2f} {unit}, {'holds' if holds else 'DOES NOT HOLD'}"
        print(f"    {name:36} {sign} {goal:g} {unit:6} {got}")


def versions(a):
    import diffusers
    import peft
    import torch
    print(f"python {platform.python_version()}, torch {torch.__version__}, diffusers {diffusers.__version__}, "
          f"peft {peft.__version__}, cuda {torch.version.cuda}, cudnn {torch.backends.cudnn.version()}")
    if a.device == "cuda":
        print(torch.cuda.get_device_name(), torch.cuda.get_device_capability())


def numbers(text):
    return sorted({int(x) for x in text.split(",")})


def main():
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("--weft", default=os.path.join(ROOT, "build/weft"))
    arg.add_argument("--batches", type=numbers, default=[1, 4, 16], help="pictures at once")
    arg.add_argument("--adapters", type=numbers, default=[0, 1, 4, 8], help="of 0, 1, 4, 8")
    arg.add_argument("--skip-compile", action="store_true")
    arg.add_argument("--all", action="store_true", help="adapters on every layer of the transformers")
    arg.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help=argparse.SUPPRESS)
    arg.add_argument("--small", action="store_true", help=argparse.SUPPRESS)
    a = arg.parse_args()
    warnings.filterwarnings("ignore")
    import torch
    if a.device == "cuda" and not torch.cuda.is_available():
        print("no GPU: nothing measured")
        return 0
    versions(a)
    cells, others = weft_figures(a)
    for name, value in others.items():
        print(f"    {name:64} {value}")
    peer, measured = Peer(a), {}
    for n in a.adapters:
        peer.adapt(n)
        for batch in a.batches:
            eager = peer.best(peer.unet, batch)
            fast, how = (None, "left out") if a.skip_compile else peer.compiled(batch)
            measured[batch, n] = eager, fast
            print(f"diffusers, {batch} pictures, {way(n)}: eager {eager:.2f} ms, compiled "
                  + (f"{fast:.2f} ms, " if fast else "") + how, flush=True)
    table(a, cells, measured)
    goals(cells, measured)
    return 0


if __name__ == "__main__":
    sys.exit(main())
