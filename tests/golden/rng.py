"""Makes tests/golden/data/rng.txt: what torch.randn gives on the CPU, bit for bit, and Philox.

    ATEN_CPU_CAPABILITY=default python tests/golden/rng.py

torch 2.15.0, numpy 2.4.6. Each case is one generator: a line "KIND SEED CALLS", then for each call
"N HASH" (FNV-1a, 64 bits, of the little-endian bytes) and the values kept: all of them up to 40,
else the first and the last eight. Values are the bits of float32 in hexadecimal.
"""
import os
import pathlib

os.environ.setdefault("ATEN_CPU_CAPABILITY", "default")

import numpy as np
import torch

assert torch.backends.cpu.get_cpu_capability() == "DEFAULT"

SEEDS = [0, 1, 42, 2**63 - 1]
SHAPES = [4 * 8 * 8, 4 * 64 * 64, 4 * 9 * 11, 16, 17, 31, 100, 1, 2, 3, 15]
SEQUENCES = [
    [1, 1, 1],
    [3, 256, 2, 17, 1],
    [15, 15, 15],
    [624, 31, 313, 5, 4 * 64 * 64, 256],
    [256, 256, 256, 256],
]


def fnv(data):
    h = 0xCBF29CE484222325
    for b in data:
        h = (h ^ b) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def philox_normal(seed, call, n):
    """Philox4x32-10 and Box-Muller in numpy's float64, one value a counter."""
    mask = np.uint64(0xFFFFFFFF)
    c = [np.full(n, call, np.uint64), np.zeros(n, np.uint64), np.arange(n, dtype=np.uint64)]
    c.append(np.zeros(n, np.uint64))
    k = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [
            (b >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]),
            b & mask,
            (a >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]),
            a & mask,
        ]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    u, v = (c[0] + 0.5) * 2.0**-32, (c[1] + 0.5) * 2.0**-32
    return (np.sqrt(-2 * np.log(u)) * np.sin(2 * np.pi * v)).astype(np.float32)


def emit(out, kind, seed, calls):
    out.append(f"{kind} {seed} {len(calls)}")
    for x in calls:
        bits = x.view(np.uint32)
        kept = bits if x.size <= 40 else np.concatenate([bits[:8], bits[-8:]])
        out.append(f"{x.size} {fnv(x.tobytes()):016x}")
        out.append(" ".join(f"{b:08x}" for b in kept))


out = []
for seed in SEEDS:
    for sizes in [[n] for n in SHAPES] + SEQUENCES:
        g = torch.Generator("cpu").manual_seed(seed)
        emit(out, "torch", seed, [torch.randn(n, generator=g).numpy() for n in sizes])
for seed in SEEDS:
    emit(out, "philox", seed, [philox_normal(seed, i, n) for i, n in enumerate([12, 256, 3])])
path = pathlib.Path(__file__).parent / "data" / "rng.txt"
path.parent.mkdir(exist_ok=True)
path.write_text("\n".join(out) + "\n")
print(path, path.stat().st_size, "bytes,", torch.__version__, np.__version__)
