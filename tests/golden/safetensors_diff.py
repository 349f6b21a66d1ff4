"""Feeds damaged safetensors files to weft's reader and to the reference reader and compares what
they say. Run by hand in the repository's root; prints every difference that is not on the list of
those we want, and fails if there is one.

    python3 tests/golden/safetensors_diff.py [CASES [SEED]]        (safetensors 0.8.0, gcc)
"""

import ctypes
import json
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter

from safetensors import deserialize

CASES = int(sys.argv[1]) if len(sys.argv) > 1 else 20000
rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 7)

# The reference's message, ours.
CLASSES = [
    ("header too small", "header too small"),
    ("header too large", "header too large"),
    ("invalid header length", "invalid header length"),
    ("invalid UTF-8 in header", "invalid header: not UTF-8"),
    ("invalid JSON in header", "unreadable header"),
    ("invalid offset", "invalid offset"),
    ("overflow", "size overflow"),
    ("does not end up at a byte", "misaligned"),
    ("invalid shape, data type", "invalid tensor size"),
    ("incomplete metadata", "incomplete buffer"),
]
# Where we are stricter on purpose: our message. And the one thing we let pass: -0 is 0.
STRICTER = ["occurs twice", "dimensions, weft takes", "too big integer", "NUL byte in", "\\u0000 is not allowed"]
LAXER = ["floating point `-0.0`"]


class Err(ctypes.Structure):
    _fields_ = [("code", ctypes.c_int), ("msg", ctypes.c_char * 1024)]


def build():
    lib = tempfile.NamedTemporaryFile(suffix=".so")
    sources = [f"unet/{n}.c" for n in ("safetensors", "tensor", "err")]
    command = ["gcc", "-std=c11", "-D_GNU_SOURCE", "-I.", "-O2", "-shared", "-fPIC", "-o", lib.name]
    subprocess.run(command + sources + ["-ljansson", "-lutf8proc"], check=True)
    return ctypes.CDLL(lib.name)


weft = build()
weft.safetensors_close.argtypes = [ctypes.c_void_p]


def ours(data):
    st, err = ctypes.c_void_p(), Err()
    rc = weft.safetensors_parse(ctypes.byref(st), data, ctypes.c_size_t(len(data)), ctypes.byref(err))
    weft.safetensors_close(st)
    return err.msg.decode("utf-8", "replace") if rc else None


def theirs(data):
    try:
        deserialize(data)
    except Exception as e:
        return str(e)


BITS = {"F32": 32, "F16": 16, "BF16": 16, "U8": 8, "BOOL": 8, "I64": 64, "F4": 4, "F6_E2M3": 6, "F8_E4M3": 8, "C64": 64}
TOKENS = ['"', "{", "}", "[", "]", ",", ":", "0", "-0", "-1", "1.0", "1e3", "null", "true", '""', "\\", "\\u0000", "\\ud800",
          "é", " ", "\n", "9223372036854775807", "9223372036854775808", "18446744073709551615", "18446744073709551616",
          '"U8"', '"F32"', '"__metadata__":{"a":"b"},', '"dtype":"U8",', '"shape":[1],', '"data_offsets":[0,1]', '"x":[{}],']


def valid():
    """A header and its data: a few small tensors, sometimes in mixed order, sometimes metadata."""
    entries, at = [], 0
    for i in range(rng.randrange(5)):
        dtype = rng.choice(list(BITS))
        shape = [rng.choice([0, 1, 2, 3, 4, 8]) for _ in range(rng.randrange(4))]
        bits = BITS[dtype]
        for d in shape:
            bits *= d
        if bits % 8:
            shape, bits = [8] + shape, bits * 8
        entries.append((f"t{i}", {"dtype": dtype, "shape": shape, "data_offsets": [at, at + bits // 8]}))
        at += bits // 8
    rng.shuffle(entries)
    if rng.random() < 0.4:
        entries.insert(0, ("__metadata__", rng.choice([None, {}, {"k": "v"}, {"é": "\n", "k": ""}])))
    return json.dumps(dict(entries), separators=(",", ":"), ensure_ascii=rng.random() < 0.5), at


def damage(text):
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        kind, i = rng.randrange(6), rng.randrange(len(text))
        numbers = list(re.finditer(r"\d+", text))
        if kind == 0:
            text = text[:i] + rng.choice(TOKENS) + text[i:]
        elif kind == 1:
            text = text[:i] + text[i + rng.randrange(1, 4) :]
        elif kind == 2 and numbers:
            m = rng.choice(numbers)
            n = rng.choice([int(m[0]) + 1, int(m[0]) - 1, int(m[0]) * 8, 0, 2**62, 2**63 - 1, 2**64 - 1])
            text = text[: m.start()] + str(n) + text[m.end() :]
        elif kind == 3:
            text = text[:i] + chr(rng.choice([0, 9, 34, 92, 127, 233, 0x65E5])) + text[i + 1 :]
        elif kind == 4:
            j = min(len(text), i + rng.randrange(40))
            text = text[:j] + text[i:j] + text[j:]
        text = text or "{}"
    return text


def case():
    text, n_data = valid()
    header = bytearray(damage(text).encode())
    if rng.random() < 0.1:
        header[rng.randrange(len(header))] ^= 1 << rng.randrange(8)
    n = len(header)
    if rng.random() < 0.1:
        n = rng.choice([n + 1, n - 1, 0, 100_000_000, 100_000_001, 2**63, 2**64 - 8, 2**64 - 1])
    data = n.to_bytes(8, "little") + bytes(header) + bytes(max(0, n_data + rng.choice([0] * 12 + [1, -1, 8])))
    return data[: rng.randrange(len(data) + 1)] if rng.random() < 0.05 else data


verdicts, wrong = Counter(), 0
for _ in range(CASES):
    data = case()
    a, b = ours(data), theirs(data)
    if a is None and b is None:
        verdict = "both accept"
    elif a and b:
        name = next((mine for ref, mine in CLASSES if ref in b), "?")
        verdict = "both refuse, same class" if name in a else "both refuse, other class"
        if verdict.endswith("other class") and not any(s in a for s in STRICTER):
            verdict += f" ({name} | {a.split(':')[0]})"
    elif a:
        verdict = f"only we refuse: {next((s for s in STRICTER if s in a), '?')}"
    else:
        verdict = f"only we accept: {next((s for s in LAXER if s in b), '?')}"
    verdicts[verdict] += 1
    if verdict.endswith("?"):
        wrong += 1
        print(repr(data), "\n  weft:", a, "\n  reference:", b)
for verdict, n in verdicts.most_common():
    print(f"{n:8} {verdict}")
sys.exit(wrong > 0)
