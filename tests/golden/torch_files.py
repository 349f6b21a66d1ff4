"""What torch itself reads in torch files, as one line a file: the golden of tests/test_torch_file.c.

    python tests/golden/torch_files.py OUTSIDE

(torch 2.15) makes tests/golden/data/torch/*.pt and writes tests/golden/data/torch/golden.txt: path,
container, number of tensors, number of numbers and texts, and the SHA-256 of all tensors, each as
"NAME DTYPE SHAPE\\n" and its values, in order of names. OUTSIDE is a folder of other people's files,
which are listed by their path in it and are not kept here. Everything is loaded with weights_only.
"""
import hashlib
import os
import pickle
import sys
import zipfile

import torch

HERE = os.path.dirname(os.path.abspath(__file__)) + "/data/torch/"
NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64",
         torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
         torch.uint8: "U8", torch.bool: "BOOL", torch.complex64: "C64"}


def flatten(x, name, tensors, rest):
    if torch.is_tensor(x):
        tensors[name or "tensor"] = x.detach()
    elif isinstance(x, dict) or isinstance(x, (list, tuple)):
        for k, v in x.items() if isinstance(x, dict) else enumerate(x):
            flatten(v, f"{name}.{k}" if name else str(k), tensors, rest)
    elif isinstance(x, (bool, int, float, str)):
        rest[name or "value"] = x


def line(path, shown, container, tree=None):
    tensors, rest = {}, {}
    tree = tree if tree is not None else torch.load(path, weights_only=True, map_location="cpu")
    flatten(tree, "", tensors, rest)
    h = hashlib.sha256()
    for k in sorted(tensors, key=lambda s: s.encode()):
        t = tensors[k].contiguous()
        h.update(f"{k} {NAMES[t.dtype]} [{', '.join(map(str, t.shape))}]\n".encode())
        h.update(bytes(t.reshape(-1).view(torch.uint8).tolist()) if t.numel() else b"")
    return f"{shown}\t{container}\t{len(tensors)}\t{len(rest)}\t{h.hexdigest()}\n"


def tree():
    g = torch.Generator().manual_seed(1)
    base = torch.randn(6, 8, generator=g)
    one = torch.arange(6).reshape(2, 3)
    return {
        "a": {"b": {"c": base, "turned": base.t(), "row": base[2], "column": base[:, 3],
                    "every_second": base[1::2, ::3]}},
        "list": [base[0, :2].clone(), (base[1, :3].clone(), {"deep": torch.tensor(2.5)})],
        "wide": torch.tensor([1.5]).expand(3, 4),
        "parameter": torch.nn.Parameter(base[:2, :2].clone()),
        "types": {str(t)[6:]: one.to(t) for t in NAMES},
        "turned4": torch.randn(2, 3, 4, 5, generator=g).permute(3, 1, 0, 2),
        "none_there": torch.zeros(0, 3), "scalar": torch.tensor(-7), 3: torch.ones(1),
        "step": -12, "name": "a name", "big": 1 << 40, "rate": 0.1, "yes": True, "nothing": None,
        "": torch.zeros(1), "size": torch.Size([1, 2]), "empty": {}, "two.parts": "x",
    }


def parameter_dict(path):
    """A textual inversion of 2022: string_to_param is a torch.nn.ParameterDict of torch 1.11."""
    data = torch.arange(8, dtype=torch.float32).reshape(2, 4) / 8
    torch.save({"string_to_param": {"*": torch.nn.Parameter(data)}}, path, pickle_protocol=2)
    z = zipfile.ZipFile(path)
    entries = {i.filename: z.read(i) for i in z.infolist()}
    name = [n for n in entries if n.endswith("data.pkl")][0]
    p = entries[name]
    # {"*": X} becomes NEWOBJ of the class and BUILD with {"_parameters": OrderedDict, …}
    start = p.index(b"}q\x02X\x01\x00\x00\x00*") if b"}q\x02X\x01\x00\x00\x00*" in p else -1
    assert start > 0, p
    end = p.rindex(b"ss.")
    inner = p[start + 3:end]
    p = (p[:start] + b"ctorch.nn.modules.container\nParameterDict\n)\x81}(X\x08\x00\x00\x00training"
         b"\x88X\x0b\x00\x00\x00_parametersccollections\nOrderedDict\n)R" + inner +
         b"sX\x1b\x00\x00\x00_non_persistent_buffers_setc__builtin__\nset\n]\x85RX\x08\x00\x00\x00"
         b"_buffersccollections\nOrderedDict\n)Rub" + b"s.")
    entries[name] = p
    with zipfile.ZipFile(path, "w") as z:
        for n, b in entries.items():
            z.writestr(zipfile.ZipInfo(n), b)
    return {"string_to_param": {"*": data}}


def main():
    os.makedirs(HERE, exist_ok=True)
    t = tree()
    torch.save(t, HERE + "zip.pt")
    torch.save(t, HERE + "protocol4.pt", pickle_protocol=4)
    torch.save(t, HERE + "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(torch.arange(12.).reshape(3, 4).t(), HERE + "alone.pt")
    with zipfile.ZipFile(HERE + "zip.pt") as a, \
            zipfile.ZipFile(HERE + "deflated.pt", "w", zipfile.ZIP_DEFLATED) as b:
        for i in a.infolist():
            b.writestr(zipfile.ZipInfo(i.filename), a.read(i), zipfile.ZIP_DEFLATED)
    out = [line(HERE + f"{n}.pt", f"{n}.pt", "torch-legacy" if n == "legacy" else "torch-zip",
                t if n == "protocol4" else None)  # which torch writes, but does not read
           for n in ("zip", "protocol4", "legacy", "alone", "deflated")]
    out.append(line(None, "parameter_dict.pt", "torch-zip",
                    parameter_dict(HERE + "parameter_dict.pt")))
    for dir_, _, files in sorted(os.walk(sys.argv[1])):
        for f in sorted(files):
            path = os.path.join(dir_, f)
            if not f.endswith((".pt", ".pth", ".bin")):
                continue
            with open(path, "rb") as fh:
                container = "torch-zip" if fh.read(2) == b"PK" else "torch-legacy"
            try:
                out.append(line(path, os.path.relpath(path, sys.argv[1]), container))
            except pickle.UnpicklingError as e:
                print(f"{path}: torch refuses it: {str(e)[:60]!r}")
    open(HERE + "golden.txt", "w").writelines(out)


main()
