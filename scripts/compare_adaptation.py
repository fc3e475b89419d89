"""Some labelled words of a new domain: are they worth more as examples in context, or as training data of an adapter?

    python scripts/compare_adaptation.py --model checkpoints/e2str-small --data '${EPIGRAPH_DATA}/words.parquet' \\
        --source icdar15 --output model_cards/results/e2str-small.adaptation.json

Of the pool half of each source (`epigraph.data.words.pool_and_queries`) `--examples` words are drawn. They are the
pool that the query half is read with, and they train an adapter (LoRA) by scripts/finetune.py at its defaults, or at
those of `--recipe`, for a fixed number of steps: nothing is chosen by looking at queries. The query half is read by
the model as it is, with the pool, by the adapter, and by the adapter with a pool of its own keys. Several sources and
seeds are measured one after the other; a stopped run goes on with the same command.
"""

import argparse
import json
import platform
import shlex
import shutil
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from epigraph import encoder
from epigraph.card_words import adaptation_table
from epigraph.cards import weights_sha256
from epigraph.context_pool import ContextPool
from epigraph.data.protocols import DEFAULT_PROTOCOL, comparable_answer, comparable_label
from epigraph.data.readers import expand_path
from epigraph.data.words import check_images, load_words, pool_and_queries, training_labels
from epigraph.evaluation import data_sha256, portable, write_json
from epigraph.evaluation_pools import Contents, pixels_of
from epigraph.evaluation_words import evaluate_words
from epigraph.finetuning import FinetuneArguments, drawn, finetune
from epigraph.finetuning_words import characters_of
from epigraph.metrics import word_metrics
from epigraph.reading import load
from epigraph.training import parse_recipe

METHODS = {"none": "as it is", "context": "in context", "lora": "LoRA", "lora_context": "LoRA, in context"}
DRAWS = 2_000  # of the bootstrap


def pool_of_words(words, queries, characters: set[str]):
    """The words that can be examples in context as well as in training, and look like no query to the pixel."""
    usable, _ = check_images(training_labels(words, characters)[0])
    measured = set(pixels_of(Contents(queries)))
    return usable.select([i for i, pixels in enumerate(pixels_of(Contents(usable))) if pixels not in measured])


def settings_of(arguments, seed: int, folder: Path) -> FinetuneArguments:
    """What scripts/finetune.py is given."""
    recipe = ["--recipe", arguments.recipe] if arguments.recipe else []
    given = ["--model", arguments.model, "--train_data", str(folder / "examples.parquet"), "--seed", str(seed)]
    given += ["--output_dir", str(folder / "adapter"), "--lora", "--eval_share", "0", "--num_workers", "0"]
    return parse_recipe([*recipe, *given], FinetuneArguments)


def adapter_of(settings: FinetuneArguments, folder: Path) -> dict:
    """Train the adapter unless that has been done; what fine-tuning says of it."""
    done = folder / "adapter.json"
    if not done.is_file():
        shutil.rmtree(settings.output_dir, ignore_errors=True)  # half a training, whose seconds would not count
        write_json(done, finetune(settings, ""))
    return json.loads(done.read_text(encoding="utf-8"))


def read_twice(model: str | Path, examples, queries, arguments) -> dict:
    """The answers of a checkpoint without and with examples, how large their pool is, and the CPU seconds it took."""
    model, processor = load(model, "word")
    started = time.process_time()
    pool = ContextPool.from_dataset(examples, encoder(model, processor))
    seconds = time.process_time() - started
    beams = {} if arguments.num_beams is None else {"num_beams": arguments.num_beams}
    readings = evaluate_words(model, processor, queries, context="knn", pool=pool, k=arguments.k,
                              batch_size=arguments.batch_size, progress=True, **beams)["readings"]  # fmt: skip
    plain, answers = [reading.plain_text or "" for reading in readings], [reading.text for reading in readings]
    return {"plain": plain, "answers": answers, "pool": len(pool), "cpu_seconds": seconds}


def compare(arguments, source: str, seed: int, pool, queries, folder: Path) -> dict:
    """All four ways of reading one source, with the examples that one seed draws; found again when it was done."""
    settings = settings_of(arguments, seed, folder)
    key = {"weights": weights_sha256(arguments.model), "k": arguments.k, "num_beams": arguments.num_beams,
           "examples": arguments.examples, "queries": queries["id"][:], "settings": asdict(settings)}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    stated, done = folder / "settings.json", folder / "done.json"
    if stated.is_file() and json.loads(stated.read_text(encoding="utf-8")) != key:
        raise ValueError(f"{folder} is of other weights or settings; name another --output_dir, or delete that one.")
    write_json(stated, key)
    if not done.is_file():
        examples = drawn(pool, arguments.examples, seed)
        examples.to_parquet(folder / "examples.parquet")
        trained = adapter_of(settings, folder)
        before = read_twice(arguments.model, examples, queries, arguments)
        after = read_twice(Path(settings.output_dir) / "final", examples, queries, arguments)
        answers = {"none": before["plain"], "context": before["answers"]}
        answers |= {"lora": after["plain"], "lora_context": after["answers"]}
        seconds = {"context": before["cpu_seconds"], "lora": trained["cpu_seconds"]}
        seconds["lora_context"] = trained["cpu_seconds"] + after["cpu_seconds"]
        measured = {"seed": seed, "examples": len(examples), "pool": before["pool"], "texts": examples["text"][:]}
        training = {name: trained[name] for name in ("weights", "steps", "learning_rate")}
        write_json(done, {**measured, **training, "answers": answers, "cpu_seconds": seconds})
    return json.loads(done.read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------------------------ results


def right(answers: list[str], labels: list[str]) -> np.ndarray:
    """Which words are read right under the protocol; NaN where it leaves the label out."""
    wanted = [comparable_label(label, DEFAULT_PROTOCOL)[0] for label in labels]
    return np.array(
        [
            np.nan if label is None else float(comparable_answer(answer, DEFAULT_PROTOCOL) == label)
            for answer, label in zip(answers, wanted)
        ]
    )


def interval(gain: np.ndarray, names: list[str]) -> list[float]:
    """95 % interval of the mean, by drawing words, or whole receipts, with replacement."""
    groups = {name: number for number, name in enumerate(dict.fromkeys(name.split("#")[0] for name in names))}
    which, counted = np.array([groups[name.split("#")[0]] for name in names]), ~np.isnan(gain)
    sums = np.bincount(which, np.where(counted, gain, 0), len(groups))
    counts = np.bincount(which, counted, len(groups))
    draws = np.random.default_rng(0).integers(0, len(groups), (DRAWS, len(groups)))
    return np.quantile(sums[draws].sum(1) / np.maximum(counts[draws].sum(1), 1), [0.025, 0.975]).tolist()


def rows_of(source: str, queries, runs: list[dict]) -> list[dict]:
    """A row for each way of reading a source: means over the seeds."""
    labels, names = queries["text"][:], queries["id"][:]
    compared = [comparable_label(label, DEFAULT_PROTOCOL)[0] for label in labels]
    splits = set(queries["split"]) if "split" in queries.column_names else {None}
    split = splits.pop() if len(splits) == 1 else None
    known = [{comparable_label(text, DEFAULT_PROTOCOL)[0] for text in run["texts"]} for run in runs]
    new = [np.array([label not in texts for label in compared]) for texts in known]
    plain = np.mean([right(run["answers"]["none"], labels) for run in runs], axis=0)
    rows = []
    for method, name in METHODS.items():
        found = [right(run["answers"][method], labels) for run in runs]
        mean = np.mean(found, axis=0)
        of_new = [np.nanmean(one[which]) for one, which in zip(found, new) if (which & ~np.isnan(one)).any()]
        row = {"source": source, "split": split, "half": "queries", "protocol": DEFAULT_PROTOCOL, "method": name,
               "n": int((~np.isnan(mean)).sum()), "seeds": [run["seed"] for run in runs],
               "examples": runs[0]["examples"] if method != "none" else 0,
               "word_accuracy": float(np.nanmean(mean)),
               "ned": float(np.mean([word_metrics(run["answers"][method], labels)["ned"] for run in runs])),
               "new_labels": float(np.mean(of_new)) if of_new else None}  # fmt: skip
        if method != "none":
            row["interval"] = interval(mean - plain, names)
            row["cpu_seconds"] = float(np.mean([run["cpu_seconds"][method] for run in runs]))
            row["share"] = runs[0]["weights"]["share"] if method.startswith("lora") else 0.0
        rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a model that reads words")
    parser.add_argument("--data", required=True, help="word data; ${VARIABLES} expand")
    parser.add_argument("--split", help="of the data (default: all)")
    parser.add_argument("--source", nargs="+", required=True, help="one or several sources of the data")
    parser.add_argument("--examples", type=int, default=300, help="words of the pool half (default: %(default)s)")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="draws of these words (default: %(default)s)")
    parser.add_argument("--k", type=int, default=2, help="examples for each word (default: %(default)s)")
    parser.add_argument("--num_beams", type=int, help="of reading (default: as epigraph.read)")
    parser.add_argument("--batch_size", type=int, default=32, help="of reading (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="measure on so many queries only, the first")
    parser.add_argument("--recipe", help="YAML with other settings of scripts/finetune.py than its defaults")
    parser.add_argument("--output_dir", default="runs/adaptation", help="of the runs (default: %(default)s)")
    parser.add_argument("--output", required=True, help="JSON for the results")
    arguments = parser.parse_args()

    characters, rows, runs = characters_of(load(arguments.model, "word")[1]), [], {}
    for source in tqdm(arguments.source, desc="Sources", unit=" sources"):
        words, queries = pool_and_queries(load_words(arguments.data, arguments.split, source))
        queries = queries.select(range(min(len(queries), arguments.limit or len(queries))))
        pool = pool_of_words(words, queries, characters)
        folders = {seed: Path(arguments.output_dir) / f"{source}-{seed}" for seed in arguments.seed}
        found = [compare(arguments, source, seed, pool, queries, folder) for seed, folder in folders.items()]
        rows += rows_of(source, queries, found)
        runs[source] = [{name: run[name] for name in run.keys() - {"answers", "texts"}} for run in found]
    results = {
        "model": portable(arguments.model),
        "command": shlex.join(["python", "scripts/compare_adaptation.py", *map(portable, sys.argv[1:])]),
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("epigraph", "torch", "transformers", "peft")},
        "weights_sha256": weights_sha256(arguments.model),
        "data_sha256": data_sha256(expand_path(arguments.data)),
        "k": arguments.k,
        "rows": rows,
        "runs": runs,
    }
    write_json(arguments.output, results)
    print(adaptation_table(results))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
