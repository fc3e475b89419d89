"""Words per CPU second, memory, and whether batches change anything, of a checkpoint that reads words.

python scripts/benchmark_reading.py --model checkpoints/e2str-small --data '${EPIGRAPH_DATA}/words.parquet' \
    --split test --source icdar13 --pool '${EPIGRAPH_DATA}/words.parquet' --pool_source svt --json reading.json

Every row is measured in a process of its own with one thread: the words are opened, prepared and read by
`epigraph.read_all`, as they are stored. `words_per_cpu_second` is the best of some rounds. `peak_mib` is the most
memory that the process ever held, `loaded_mib` what it held before it read anything: Python, torch and the weights.
With `--pool` rows follow in which each word is read twice, without examples and behind two from the pool, whose
latents are known before the clock runs.

A reading must not depend on what it is read with. `differ` counts the words that another batch reads differently than
batches of one, and `score_difference` is how far their scores are apart at most: rounding.
"""

import argparse
import json
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path

BATCHES = (1, 8, 32)
EXAMPLES = 2


def memory(name: str) -> float | None:
    """MiB of this process: "VmRSS" now or "VmHWM" at most; None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")), None)


def measure(arguments: argparse.Namespace, beams: int, batch_size: int, dtype: str, in_context: bool) -> dict:
    """One row, with the readings."""
    import torch

    from epigraph import encoder
    from epigraph.data.words import load_words
    from epigraph.evaluation_pools import Contents, open_pool
    from epigraph.reading import load, read_all

    torch.set_num_threads(1)
    rows = load_words(arguments.data, arguments.split, arguments.source)
    rows = rows.select(range(min(len(rows), arguments.limit)))
    images = list(Contents(rows))
    model, processor = load(arguments.model, "word", "cpu", dtype)
    settings = {"task": "word", "batch_size": batch_size, "num_beams": beams}
    loaded = memory("VmRSS")
    if in_context:
        opened = open_pool(arguments.pool, encoder(model, processor), source=arguments.pool_source, test=rows)
        settings |= {"pool": opened.pool, "k": EXAMPLES}
    list(read_all(images[:batch_size], model, processor, **settings))  # pays for initialisation
    if in_context:
        list(read_all(images, model, processor, **settings))
    best = float("inf")
    for _ in range(arguments.rounds):
        start = time.process_time()
        readings = list(read_all(images, model, processor, **settings))
        best = min(best, time.process_time() - start)
    return {
        "num_beams": beams,
        "batch_size": batch_size,
        "dtype": dtype,
        "examples": EXAMPLES if in_context else 0,
        "words": len(images),
        "words_per_cpu_second": len(images) / best,
        "loaded_mib": loaded,
        "peak_mib": memory("VmHWM"),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "readings": [(reading.text, reading.score) for reading in readings],
    }


def compare(rows: list[dict]):
    """Put beside each row how its readings differ from those of batches of one."""
    alone = {}
    for row in rows:
        kind = row["num_beams"], row["dtype"], row["examples"]
        theirs = alone.setdefault(kind, row["readings"])
        pairs = list(zip(row["readings"], theirs))
        row["differ"] = sum(one[0] != other[0] for one, other in pairs)
        same = [
            abs(one[1] - other[1]) for one, other in pairs if one[0] == other[0] and None not in (one[1], other[1])
        ]
        row["score_difference"] = max(same, default=0.0)
    for row in rows:
        row.pop("readings")


def table(rows: list[dict]) -> str:
    """Markdown."""
    names = ("beams", "batch", "weights", "examples", "words / CPU s", "loaded MiB", "peak MiB", "differ",
             "score difference")  # fmt: skip
    lines = [f"| {' | '.join(names)} |", "|" + "---:|" * len(names)]
    for row in rows:
        held = ["" if row[name] is None else f"{row[name]:.0f}" for name in ("loaded_mib", "peak_mib")]
        cells = [row["num_beams"], row["batch_size"], row["dtype"], row["examples"]]
        cells += [f"{row['words_per_cpu_second']:.1f}", *held, row["differ"], f"{row['score_difference']:.1e}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(args: list[str] | None = None):
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or Hub id")
    parser.add_argument("--data", required=True, help="words: anything that load_words reads")
    parser.add_argument("--split")
    parser.add_argument("--source")
    parser.add_argument("--limit", type=int, default=128, help="so many words, the first (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="of which the best counts (default: %(default)s)")
    parser.add_argument("--pool", help="where examples come from: a saved pool, or words")
    parser.add_argument("--pool_source", help="of words, only rows of this source")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 3], help="default: %(default)s")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="file for the rows")
    arguments = parser.parse_args(args)
    rows = []
    kinds = product(arguments.dtypes, [False, True] if arguments.pool else [False], arguments.beams, BATCHES)
    for dtype, in_context, beams, batch_size in kinds:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
            rows.append(processes.submit(measure, arguments, beams, batch_size, dtype, in_context).result())
        row = rows[-1]
        print(f"beams {beams}, batch {batch_size}, {dtype}, {row['examples']} examples: "
              f"{row['words_per_cpu_second']:.1f} words per CPU second", file=sys.stderr, flush=True)  # fmt: skip
    compare(rows)
    print(table(rows))
    if arguments.json:
        import torch

        head = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": 1}
        arguments.json.write_text(json.dumps(head | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
