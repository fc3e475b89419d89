"""Times searching a context pool, and says what memory it takes.

    python scripts/benchmark_pool.py
    python scripts/benchmark_pool.py --entries 1000000 --widths 384 --json pool.json

Every pool has random keys and one image that all entries share. It is written as shards, opened as any pool, and
searched for 1 and for 32 queries at a time, k = 2; with --in-memory keys only go into the index, without shards.
Times are CPU seconds of a process of its own for each pool, the best of three; memory is what that process holds after
it has opened the pool, and at most. With --ivf the same is asked of an inverted file of 4 * sqrt(n) lists, 16 of which
are looked into, and how much it finds of what exact search finds. Random keys have no clusters, and are found worse
than real ones.
"""

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from epigraph.context_pool import ContextPool
from epigraph.pool_entries import KeyIndex, open_crop
from epigraph.pool_storage import SHARD_ROWS, Manifest, Operation, write_manifest, write_shard

QUERIES = 32


def resident() -> float:
    """MiB that the process holds now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def seconds(run, repeats: int = 3) -> float:
    """The least CPU seconds of several runs."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def random_keys(rows: int, width: int, seed: int) -> np.ndarray:
    keys = np.random.default_rng(seed).standard_normal((rows, width), np.float32)
    return keys / np.linalg.norm(keys, axis=1, keepdims=True)


def write_pool(folder: Path, entries: int, width: int):
    _, image = open_crop(np.full((32, 128), 200, np.uint8), "image")
    shards = []
    for start in tqdm(range(0, entries, SHARD_ROWS), f"{entries:,} x {width}", disable=None):
        numbers = range(start, min(start + SHARD_ROWS, entries))
        hashes = [hashlib.sha256(str(number).encode()).hexdigest()[:32] for number in numbers]
        rows = [
            {"id": name[:16], "image": image, "text": f"word{number}", "source": "random", "added_at": "2026-01-01"}
            | {"pixels": name}
            for number, name in zip(numbers, hashes)
        ]
        shards.append(write_shard(folder, rows, random_keys(len(rows), width, start)))
    operation = Operation("random", "2026-01-01", tuple(shards))
    write_manifest(folder, Manifest("random", "random", None, width, [operation]))


def measure(folder: Path, width: int, ivf: bool) -> dict[str, float]:
    """In the process of one pool."""
    import faiss
    import pyarrow.compute
    import pyarrow.parquet  # noqa: F401 - so that opening is not charged for them
    import torch

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)

    def encode(images):
        return random_keys(len(images), width, -1 % 2**32), np.zeros((len(images), 64, width), np.float32)

    encode.weights_sha256 = "random"
    ContextPool(encode)
    faiss.IndexFlatIP(width)
    before, start = resident(), time.process_time()
    pool = ContextPool.load(folder, encode)
    found = {"open_cpu_seconds": time.process_time() - start, "open_mib": resident() - before}
    queries = random_keys(QUERIES, width, 2**31)
    nearest = pool._entries.nearest
    found["search_1_cpu_seconds"] = seconds(lambda: nearest(queries[:1], 2))
    found[f"search_{QUERIES}_cpu_seconds"] = seconds(lambda: nearest(queries, 2))
    pictures = [Image.fromarray(np.full((32, 128), shade, np.uint8)) for shade in range(8)]
    found["examples_8_cold_cpu_seconds"] = seconds(lambda: pool.search(pictures, 2, keys=queries[:8]), 1)
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if ivf:
        found |= inverted_file(pool._entries.index, queries, len(pool))
    return found


def measure_keys(entries: int, width: int, ivf: bool) -> dict[str, float]:
    """The index alone."""
    import faiss

    faiss.omp_set_num_threads(1)
    index, queries = KeyIndex(width), random_keys(QUERIES, width, 2**31)
    before = resident()
    for start in range(0, entries, SHARD_ROWS):
        index.add(random_keys(min(SHARD_ROWS, entries - start), width, start))
    found = {"keys_mib": resident() - before}
    found["search_1_cpu_seconds"] = seconds(lambda: index.search(queries[:1], 2))
    found[f"search_{QUERIES}_cpu_seconds"] = seconds(lambda: index.search(queries, 2))
    return found | (inverted_file(index, queries, entries) if ivf else {})


def inverted_file(keys: KeyIndex, queries: np.ndarray, entries: int) -> dict[str, float]:
    import faiss

    width = keys.width
    blocks = [faiss.rev_swig_ptr(b.get_xb(), b.ntotal * width).reshape(-1, width) for b in keys.blocks]
    lists = int(4 * entries**0.5)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.nprobe = 5, 16
    start = time.process_time()
    index.train(blocks[0][: 40 * lists])
    for block in blocks:
        index.add(block)
    built = time.process_time() - start
    _, exact = keys.search(queries, 2)
    _, near = index.search(queries, 2)
    share = np.mean([len(set(a) & set(b)) / 2 for a, b in zip(exact, near)])
    times = seconds(lambda: index.search(queries[:1], 2))
    return {"ivf_build_cpu_seconds": built, "ivf_search_1_cpu_seconds": times, "ivf_share_found": float(share)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, nargs="+", default=[1_000, 100_000, 1_000_000], metavar="N")
    parser.add_argument("--widths", type=int, nargs="+", default=[384, 768], metavar="W")
    parser.add_argument("--in-memory", action="store_true", help="the index of keys alone, without shards and images")
    parser.add_argument("--ivf", action="store_true", help="compare with an inverted file")
    parser.add_argument("--folder", help="where pools are written and deleted again (default: the system's)")
    parser.add_argument("--json", metavar="FILE", help="write the rows there, too")
    parser.add_argument("--measure", nargs=2, metavar=("POOL", "WIDTH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        pool, width = arguments.measure
        run, pool = (measure_keys, int(pool)) if arguments.in_memory else (measure, Path(pool))
        print(json.dumps(run(pool, int(width), arguments.ivf)))
        return
    rows = []
    for entries in arguments.entries:
        for width in arguments.widths:
            with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
                if not arguments.in_memory:
                    write_pool(Path(name), entries, width)
                wanted = [*["--ivf"] * arguments.ivf, *["--in-memory"] * arguments.in_memory]
                pool = str(entries) if arguments.in_memory else name
                command = [sys.executable, __file__, "--measure", pool, str(width), *wanted]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            for what, value in json.loads(done.stdout.splitlines()[-1]).items():
                unit = "MiB" if what.endswith("mib") else "" if what.endswith("found") else "s"
                rows.append({"name": f"pool/n{entries}/w{width}/{what}", "value": value, "unit": unit})
                print(f"{rows[-1]['name']:50} {value:12.5f} {unit}", flush=True)
            if arguments.json:
                Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
