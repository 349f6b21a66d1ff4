"""Makes tests/golden/data/writer.safetensors with the reference writer; the test writes the same
tensors and compares bytes. Keep the list like the one in tests/test_safetensors.c.

    python3 tests/golden/safetensors_writer.py        (safetensors 0.8.0)
"""

import ctypes
from math import prod
from pathlib import Path

from safetensors import TensorSpec, serialize

OUT = Path(__file__).parent / "data" / "writer.safetensors"

# name, type, its bits, shape
TENSORS = [
    ("z.weight", "float32", 32, [2, 3]),
    ("a.weight", "float32", 32, [5]),
    ("scalar", "float32", 32, []),
    ("empty", "float32", 32, [0, 4]),
    ("half", "float16", 16, [3, 1]),
    ("brain", "bfloat16", 16, [2, 2, 2]),
    ("double", "float64", 64, [2]),
    ("i64", "int64", 64, [1]),
    ("i32", "int32", 32, [1]),
    ("i16", "int16", 16, [3]),
    ("i8", "int8", 8, [3]),
    ("u64", "uint64", 64, [1]),
    ("u32", "uint32", 32, [1]),
    ("u16", "uint16", 16, [1]),
    ("u8", "uint8", 8, [5]),
    ("truth", "bool", 8, [1]),
    ("complex", "complex64", 64, [1]),
    ("f8.a", "float8_e5m2", 8, [2]),
    ("f8.b", "float8_e4m3fn", 8, [2]),
    ("f8.c", "float8_e8m0fnu", 8, [2]),
    ("f8.d", "float8_e4m3fnuz", 8, [2]),
    ("f8.e", "float8_e5m2fnuz", 8, [2]),
    ('odd "name"\\\n\x1f\x7fé/日', "int8", 8, [1]),
]

keep = []
specs = {}
for i, (name, dtype, bits, shape) in enumerate(TENSORS):
    n = prod(shape) * bits // 8
    data = bytes((31 * i + k) % 256 for k in range(n))
    buf = ctypes.create_string_buffer(data, max(n, 1))
    keep.append(buf)
    specs[name] = TensorSpec(dtype=dtype, shape=shape, data_ptr=ctypes.addressof(buf), data_len=n)

# One pair: the reference writes several in no fixed order.
OUT.write_bytes(serialize(specs, {"format": "pt\tü\x0b"}))
print(OUT, OUT.stat().st_size, "bytes")
