"""How much does fine-tuning on one writer help that writer? Half of the expressions train, the other half measure.

    python scripts/adapt_writers.py --model checkpoints/comer-hme --data '${EPIGRAPH_DATA}/crohme_ink.parquet' \\
        --output model_cards/results/comer-hme.writers.json

The writers with the most expressions in the split take part, those of unknown writer left out. By the sha1 of their
ids, the first half of a writer's expressions is trained on, the second measured before and after, once with LoRA and
once with full fine-tuning, at the settings that scripts/finetune.py has by default. They were chosen on writers
further down the list, which take no part here. What the model forgets is measured on a sample of all other writers.
A stopped run goes on with the same command.
"""

import argparse
import hashlib
import json
import platform
import shlex
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from epigraph.cards import weights_sha256, writers_table
from epigraph.data.readers import expand_path, load_formulas
from epigraph.evaluation import data_sha256, evaluate_formulas, portable, write_json
from epigraph.finetuning import FinetuneArguments, finetune
from epigraph.metrics import exprate, token_error_rate, token_errors
from epigraph.reading import load

METHODS = {"lora": "LoRA", "full": "full fine-tuning"}
RATES = ("exprate", "exprate_1", "token_error_rate")
OTHERS = 150  # expressions of other writers that show what is forgotten
DRAWS = 10_000  # of the bootstrap


def shuffled(rows):
    """Rows in the order of the sha1 of their ids."""
    ids = rows["id"][:]
    return rows.select(sorted(range(len(rows)), key=lambda index: hashlib.sha1(ids[index].encode()).hexdigest()))


def of_writers(rows, names: list[str], others: bool = False):
    """The rows of these writers, or of all others."""
    return rows.select([index for index, writer in enumerate(rows["writer"]) if (writer in names) is not others])


def others_exprate(model: str | Path, rows) -> float:
    """ExpRate on other writers, read greedily."""
    return evaluate_formulas(*load(model), rows, num_beams=1, direction="l2r")["metrics"]["exprate"]


def adapt(arguments, method: str, folder: Path, others) -> dict:
    """Fine-tune on `folder`/train.parquet unless that has been done; what came of it."""
    run = folder / method
    done = run / "done.json"
    if not done.is_file():
        args = FinetuneArguments(
            output_dir=str(run),
            model=arguments.model,
            train_data=str(folder / "train.parquet"),
            eval_data=str(folder / "measured.parquet"),
            lora=method == "lora",
            resume=True,
        )
        results = finetune(args, "")
        write_json(done, {**results, "others": others_exprate(run / "final", others)})
    results = json.loads(done.read_text())
    if results["base_weights_sha256"] != weights_sha256(arguments.model):
        sys.exit(f"error: {run} was adapted from other weights; name another --output_dir, or delete that one.")
    readings = [json.loads(line) for line in (run / "readings.jsonl").read_text().splitlines()]
    return {**results, "readings": readings}


def rates(readings: list[dict], when: str) -> dict[str, float]:
    texts, truths = [row[when] for row in readings], [row["text"] for row in readings]
    return {
        "exprate": exprate(texts, truths),
        "exprate_1": exprate(texts, truths, 1),
        "token_error_rate": token_error_rate(texts, truths),
    }


def intervals(readings: list[dict]) -> dict[str, list[float]]:
    """95 % intervals of after minus before, by drawing expressions with replacement."""
    errors = {w: np.array([token_errors(row[w], row["text"]) for row in readings]) for w in ("before", "after")}
    lengths = np.array([len(row["text"].split()) for row in readings])
    draws = np.random.default_rng(0).integers(0, len(readings), (DRAWS, len(readings)))
    right = [(errors["after"] <= k).astype(float) - (errors["before"] <= k) for k in (0, 1)]
    more = errors["after"] - errors["before"]
    drawn = [right[0][draws].mean(1), right[1][draws].mean(1), more[draws].sum(1) / lengths[draws].sum(1)]
    return {name: np.quantile(values, [0.025, 0.975]).tolist() for name, values in zip(RATES, drawn)}


def summary(runs: dict[str, list[dict]], before_others: float) -> list[dict]:
    """A row for the model as it is, and one for each method: means over all measured expressions."""
    readings = {method: [row for run in runs[method] for row in run["readings"]] for method in METHODS}
    first = readings["lora"]
    rows = [{"method": "before", "n": len(first), **rates(first, "before"), "others_exprate": before_others}]
    for method, name in METHODS.items():
        rows.append(
            {
                "method": name,
                "n": len(readings[method]),
                **rates(readings[method], "after"),
                "intervals": intervals(readings[method]),
                "others_exprate": float(np.mean([run["others"] for run in runs[method]])),
                "share": runs[method][0]["weights"]["share"],
                "steps": runs[method][0]["steps"],
                "learning_rate": runs[method][0]["learning_rate"],
                "cpu_seconds": float(np.mean([run["cpu_seconds"] for run in runs[method]])),
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--data", required=True, help="parquet with the column writer; ${VARIABLES} expand")
    parser.add_argument("--split", default="test_2013", help="of the data (default: %(default)s)")
    parser.add_argument("--writers", type=int, default=6, help="how many take part (default: %(default)s)")
    parser.add_argument("--unknown", default="wda39a3ee", help="the name of unknown writers (default: %(default)s)")
    parser.add_argument("--output_dir", default="runs/writers", help="of the runs (default: %(default)s)")
    parser.add_argument("--output", required=True, help="JSON for the results")
    arguments = parser.parse_args()

    rows = load_formulas(arguments.data, arguments.split)
    counted = Counter(name for name in rows["writer"] if name and name != arguments.unknown)
    names = sorted(counted, key=lambda name: (-counted[name], name))[: arguments.writers]
    others = shuffled(of_writers(rows, names, others=True))
    others = others.select(range(min(OTHERS, len(others))))

    runs, writers = {method: [] for method in METHODS}, []
    for number, name in enumerate(tqdm(names, desc="Writers", unit=" writers")):
        folder = Path(arguments.output_dir) / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        mine = shuffled(of_writers(rows, [name]))
        half = len(mine) // 2
        mine.select(range(half)).to_parquet(folder / "train.parquet")
        mine.select(range(half, len(mine))).to_parquet(folder / "measured.parquet")
        for method in METHODS:
            runs[method].append(adapt(arguments, method, folder, others))
        latest = {method: runs[method][-1] for method in METHODS}
        writers.append(
            {
                "trained_on": half,
                "n": len(mine) - half,
                "before": rates(latest["lora"]["readings"], "before"),
                **{method: rates(run["readings"], "after") for method, run in latest.items()},
            }
        )
    results = {
        "model": portable(arguments.model),
        "command": shlex.join(["python", "scripts/adapt_writers.py", *map(portable, sys.argv[1:])]),
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("epigraph", "torch", "transformers", "peft")},
        "weights_sha256": weights_sha256(arguments.model),
        "data_sha256": data_sha256(expand_path(arguments.data)),
        "split": arguments.split,
        "others": len(others),
        "rows": summary(runs, others_exprate(arguments.model, others)),
        "writers": writers,
    }
    write_json(arguments.output, results)
    print(writers_table(results))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
