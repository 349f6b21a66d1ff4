"""FAISS from Python beside `weft bench retrieve`: the same vectors, queries, kind of index and figures.

    build/weft bench retrieve --keep --dir /tmp
    python3 tests/bench/peers/faiss_index.py /tmp/weft-bench-XXXXXX/home

(Debian's python3-faiss and libfaiss-dev 1.7.3 are one build of the library.) It makes the index from weft's
database anew, and also searches in the one that weft wrote.
"""
import os
import resource
import sqlite3
import struct
import sys
import tempfile
import time

import faiss
import numpy as np

ENCODER, ASKED, K, COMPARED, TURNS = "bench", "queries", 10, 200, 50
TRAILER = struct.Struct("=8sIIqqQ40sQ")


def vectors(db, encoder):
    rows = db.execute("SELECT id, vector FROM embedding WHERE encoder = ? ORDER BY id", (encoder,)).fetchall()
    return (np.array([r[0] for r in rows], dtype="int64"),
            np.frombuffer(b"".join(r[1] for r in rows), dtype="float32").reshape(len(rows), -1))


def figure(name, value, unit):
    print(f"{name:64} {value:10.4g} {unit}", flush=True)


def percentiles(name, seconds):
    t = sorted(seconds)
    figure(name + ", p50", 1e3 * t[len(t) // 2], "ms")
    figure(name + ", p99", 1e3 * t[(99 * len(t) + 99) // 100 - 1], "ms")


def timed(f):
    began = time.perf_counter()
    out = f()
    return out, time.perf_counter() - began


def make(kind, ids, v):
    factory, _, parameters = kind.partition(" ")
    index = faiss.index_factory(v.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    if parameters:
        faiss.ParameterSpace().set_index_parameters(index, parameters)
    if not index.is_trained:
        index.train(np.ascontiguousarray(v[::max(1, len(v) // (64 * index.nlist))]))
    index.add_with_ids(v, ids)
    return index


def recall(index, ids, v, queries):
    found = index.search(queries[:COMPARED], K)[1]
    best = np.argsort(-(queries[:COMPARED] @ v.T), axis=1, kind="stable")[:, :K]
    return 100 * np.mean([len(set(a) & set(ids[b])) / K for a, b in zip(found, best)])


def search_all(name, index, queries):
    percentiles(name, [timed(lambda q=q: index.search(q[None], K))[1] for q in queries])


def main():
    home = sys.argv[1]
    db = sqlite3.connect(f"file:{home}/weft.db?mode=ro", uri=True)
    with open(os.path.join(home, "index", ENCODER + ".faiss"), "rb") as f:
        whole = f.read()
    *_, length, kind, _ = TRAILER.unpack(whole[-TRAILER.size:])
    kind = kind.rstrip(b"\0").decode()
    print(f"an index of kind {kind}")
    _, queries = vectors(db, ASKED)
    (ids, v), seconds = timed(lambda: vectors(db, ENCODER))
    index, built = timed(lambda: make(kind, ids, v))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a.faiss")
        written = timed(lambda: faiss.write_index(index, path))[1]
        figure("built from the database and written", seconds + built + written, "s")
        figure("  of which reading the database", seconds, "s")
        figure("memory of all this, at most", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, "MB")
        figure("size of its file", os.path.getsize(path) / 1e6, "MB")
        search_all("a query for ten, warm", index, queries)
        figure("recall at 10", recall(index, ids, v, queries), "%")
        percentiles("opening the index", [timed(lambda: faiss.read_index(path))[1] for _ in range(TURNS)])
        percentiles("opening the index, mapped and unchecked",
                    [timed(lambda: faiss.read_index(path, faiss.IO_FLAG_MMAP))[1] for _ in range(TURNS)])
        search_all("a query for ten, warm, mapped", faiss.read_index(path, faiss.IO_FLAG_MMAP), queries)
    theirs = faiss.deserialize_index(np.frombuffer(whole[:length], dtype="uint8"))
    search_all("a query for ten, warm, in weft's file", theirs, queries)


main()
