"""weft and diffusers with peft beside each other: a batch of pictures with many adapters.

    python tests/bench/peers/batch.py --make /tmp/jobs.jsonl --dir /tmp/resized
    python tests/bench/peers/batch.py --jobs /tmp/jobs.jsonl [--weft build/weft] [--rounds 2] [--only N]

(torch 2.15, diffusers 0.42.1, peft 0.21.2.) --make writes 64 jobs with 32 adapters, all of them once and then all of them
again, as a list of prompts has them: the shipped plain LoRAs, and where these are not enough or of too few ranks, smaller
copies by `weft resize` in --dir. Then the ways take turns, each a process of its own on all processors, in float32, with
the demo model, whose scheduler is DDIM, and with PNGs written:

    load       diffusers: the pipeline once; for each job load_lora_weights, set_adapters, a picture, unload_lora_weights
    keep       diffusers: the pipeline and all adapters once; for each job set_adapters and a picture
    batch      weft batch JOBS -o FOLDER
    render     weft render, a process a job

Seconds are of whole processes. What diffusers takes to import is also said, and the last column's ratio is without it.
First: from the start to the first picture's file. Pictures of the same job are compared; they start from the same noise.
"""
import argparse
import glob
import json
import os
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.abspath(os.path.join(HERE, "../../.."))
MODEL, SHIPPED = os.path.join(ROOT, "assets/model"), os.path.join(ROOT, "assets/adapters")
JOBS, ADAPTERS, RANKS, SMALLER = 64, 32, 4, (2, 3, 5, 1)
GROUNDS = "red", "green", "blue", "yellow"
CPUS = len(os.sched_getaffinity(0))


def make(path, weft, folder):
    """Writes the jobs, and the adapters that are lacking into folder."""
    with open(os.path.join(SHIPPED, "index.json"), encoding="utf8") as f:
        rows = json.load(f)
    plain = [dict(r, path=os.path.join(SHIPPED, r["file"])) for r in rows if r["kind"] == "lora"]
    skipped = sorted({r["kind"] for r in rows} - {"lora"})
    print(f"{len(plain)} plain LoRAs; left out: {len(skipped)} kinds ({', '.join(skipped)}), {len(rows) - len(plain)} files")
    some = plain[:ADAPTERS - max(0, RANKS - len({r["rank"] for r in plain}))]
    large = sorted((r for r in plain if r["rank"] > max(SMALLER)), key=lambda r: -r["rank"])
    lacking = ADAPTERS - len(some)
    for i in range(lacking):
        r, rank = large[i % len(large)], SMALLER[i % len(SMALLER)]
        file = os.path.join(os.path.abspath(folder), f"{r['name']}-{rank}.safetensors")
        os.makedirs(folder, exist_ok=True)
        subprocess.run([weft, "resize", r["path"], "--rank", str(rank), "--style", "diffusers", "-o", file], check=True)
        some.append(dict(r, rank=rank, path=file))
    with open(path, "w", encoding="utf8") as f:
        for i in range(JOBS):
            r = some[i % ADAPTERS]
            where = f" on a {GROUNDS[i % len(GROUNDS)]} background" if i >= ADAPTERS else ""
            job = {"id": f"j{i:02}", "prompt": f"a photo of {r['caption']}{where}", "adapter": [r["path"] + ":1"],
                   "seed": 1000 + i, "steps": 20, "cfg": 5, "size": 128}
            f.write(json.dumps(job) + "\n")
    ranks = [r["rank"] for r in some]
    print(f"{path}: {JOBS} jobs, {len({r['path'] for r in some})} adapters, {lacking} of them resized; rank: "
          + ", ".join(f"{n} ({ranks.count(n)})" for n in sorted(set(ranks))))


def read_jobs(path):
    with open(path, encoding="utf8") as f:
        return [json.loads(line) for line in f if line.strip()]


def adapters_of(job):
    return [(file, float(strength)) for file, _, strength in (a.rpartition(":") for a in job["adapter"])]


def peer(how, path, out):
    """What one process of diffusers does; prints its figures."""
    began = time.perf_counter()
    import torch
    from diffusers import StableDiffusionPipeline
    imported = time.perf_counter()
    torch.set_num_threads(CPUS)
    pipe = StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.float32, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    opened = time.perf_counter()
    jobs, loading, loads, switching, names = read_jobs(path), 0, 0, 0, {}

    def load(file):
        nonlocal loading, loads
        at = time.perf_counter()
        names[file] = f"a{len(names)}"
        pipe.load_lora_weights(os.path.dirname(file), weight_name=os.path.basename(file), adapter_name=names[file])
        loading, loads = loading + time.perf_counter() - at, loads + 1

    if how == "keep":
        for file in dict.fromkeys(f for j in jobs for f, _ in adapters_of(j)):
            load(file)
    for job in jobs:
        mine = adapters_of(job)
        if how == "load":
            for file, _ in mine:
                load(file)
        at = time.perf_counter()
        pipe.set_adapters([names[file] for file, _ in mine], [strength for _, strength in mine])
        switching += time.perf_counter() - at
        done = pipe(job["prompt"], height=job["size"], width=job["size"], num_inference_steps=job["steps"],
                    guidance_scale=job["cfg"], generator=torch.Generator().manual_seed(job["seed"]))
        done.images[0].save(os.path.join(out, job["id"] + ".png"))
        if how == "load":
            at = time.perf_counter()
            pipe.unload_lora_weights()
            names.clear()
            switching += time.perf_counter() - at
    print(json.dumps({"import": imported - began, "open": opened - imported, "load_ms": 1e3 * loading / loads,
                      "switch_ms": 1e3 * switching / len(jobs), "threads": torch.get_num_threads(),
                      "scheduler": type(pipe.scheduler).__name__}))


def run(commands, out):
    """Runs one after another; seconds of all, seconds to the first picture, what the last wrote."""
    first, text = None, ""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryFile("w+") as err:
        env = dict(os.environ, WEFT_HOME=home, HF_HUB_OFFLINE="1", OMP_NUM_THREADS=str(CPUS))
        env.pop("OMP_WAIT_POLICY", None)  # each waits as it does by itself
        for c in commands:
            with subprocess.Popen(c, stdout=subprocess.PIPE, stderr=err, text=True, env=env) as p:
                while first is None and p.poll() is None:
                    if glob.glob(os.path.join(out, "**/*.png"), recursive=True):
                        first = time.perf_counter() - began
                    time.sleep(.01)
                text = p.communicate()[0]
            if p.returncode:
                err.seek(0)
                raise RuntimeError((err.read().strip().splitlines() or ["?"])[-1])
    whole = time.perf_counter() - began
    return whole, first or whole, text


def picture(out, job):
    import numpy as np
    from PIL import Image
    found = glob.glob(os.path.join(out, f"**/*{job['id']}*.png"), recursive=True)
    if len(found) != 1:
        raise SystemExit(f"{out}: {len(found)} pictures of {job['id']}, not 1")
    return np.asarray(Image.open(found[0]).convert("RGB"), dtype="float64")


def agree(jobs, a, b, at):
    import numpy as np
    mse = [((picture(at[a], j) - picture(at[b], j)) ** 2).mean() for j in jobs]
    p = np.array([10 * np.log10(255 ** 2 / m) if m else np.inf for m in mse])
    worst = jobs[int(p.argmin())]["id"]
    print(f"{a} and {b}: PSNR {np.median(p):.1f} dB median, {p.min():.1f} the lowest ({worst}), "
          f"{np.isinf(p).sum()} the same")
    return np.median(p)


def main():
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("--make", metavar="JOBS")
    arg.add_argument("--dir", default="resized")
    arg.add_argument("--weft", default=os.path.join(ROOT, "build/weft"))
    arg.add_argument("--jobs")
    arg.add_argument("--rounds", type=int, default=2)
    arg.add_argument("--only", type=int, help="the first N jobs, to try it out")
    arg.add_argument("--peer", nargs=2, metavar=("HOW", "FOLDER"), help=argparse.SUPPRESS)
    a = arg.parse_args()
    if a.make:
        return make(a.make, a.weft, a.dir)
    if not a.jobs:
        arg.error("--make or --jobs")
    if a.peer:
        return peer(a.peer[0], a.jobs, a.peer[1])
    jobs = read_jobs(a.jobs)[:a.only]
    ways = ["load", "keep", "batch", "render"]
    if subprocess.run([a.weft, "help", "batch"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
        print("this weft has no batch; it is left out, and ratios are to render")
        ways.remove("batch")
    best, told, at = {}, {}, {}
    with tempfile.TemporaryDirectory(prefix="weft-peers-") as folder:
        file = os.path.join(folder, "jobs.jsonl")
        with open(file, "w", encoding="utf8") as f:
            f.writelines(json.dumps(j) + "\n" for j in jobs)
        for turn in range(a.rounds):
            for way in list(ways):
                out = at[way] = os.path.join(folder, f"{way}{turn}")
                commands = [[sys.executable, __file__, "--jobs", file, "--peer", way, out]]
                if way == "batch":
                    commands = [[a.weft, "batch", file, "-o", out]]
                elif way == "render":
                    commands = [[a.weft, "render", j["prompt"], "-o", os.path.join(out, j["id"] + ".png")]
                                + [x for r in j["adapter"] for x in ("-a", r)]
                                + [f"--{k}={j[k]}" for k in ("seed", "steps", "cfg", "size")] for j in jobs]
                if way != "batch":
                    os.mkdir(out)
                try:
                    whole, first, text = run(commands, out)
                except RuntimeError as e:
                    print(f"{way} does not work: {e}")
                    ways.remove(way)
                    continue
                more = json.loads(text) if way in ("load", "keep") else {"import": 0}
                print(f"round {turn + 1}  {way:7} {whole:7.2f} s  load average {os.getloadavg()[0]:.1f}", flush=True)
                if way not in best or whole < best[way][0]:
                    best[way], told[way] = (whole, first), more
        base = best[[w for w in ("batch", "render", "load") if w in ways][0]][0]
        print(f"{len(jobs)} jobs on {CPUS} processors\n{'':8} seconds   ms a job   first, s   ratio   without import")
        for way in ways:
            whole, first = best[way]
            print(f"{way:8} {whole:7.2f} {1e3 * whole / len(jobs):10.1f} {first:10.2f} {whole / base:7.2f}"
                  f" {(whole - told[way]['import']) / base:16.2f}")
        for way in (w for w in ways if "open" in told[w]):
            print(f"{way}: import {told[way]['import']:.1f} s, pipeline {told[way]['open']:.1f} s, load_lora_weights "
                  f"{told[way]['load_ms']:.0f} ms each, set_adapters and unload {told[way]['switch_ms']:.0f} ms a job, "
                  f"{told[way]['threads']} threads, {told[way]['scheduler']}")
        pairs = [(p, w) for p in ("load", "keep") for w in ("batch", "render")] + [("render", "batch")]
        if any(agree(jobs, *pair, at) <= 30 for pair in pairs if set(pair) <= set(ways)):
            raise SystemExit("pictures do not agree")


if __name__ == "__main__":
    main()
