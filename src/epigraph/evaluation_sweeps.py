"""Sweeps: words read with every context, number of examples, pool size and draw that was asked for, in one run.

Nothing is computed twice. Words are encoded and read without examples once, images of pools are encoded once whatever
pools they are in, and a word that two settings show the same examples is read once. Every setting is written to
`--output` as soon as it is measured; a run that is stopped, or that asks for more, measures what is not there yet.
`docs/protocols.md` says what every number means.
"""

import copy
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin

from .context_pool import Example
from .data.protocols import DEFAULT_PROTOCOL, comparable_answer, comparable_label
from .data.readers import expand_path
from .evaluation import CONTEXTS, ContextSetting, EvaluationArguments, data_sha256, portable, write_json
from .evaluation_pools import Contents, OpenedPool
from .evaluation_words import EXAMPLES, load_measured, pools_of
from .metrics import word_rows
from .pool_entries import pixels_hash
from .reading import load
from .reading_words import Query, WordReader, WordReading, encoder

if TYPE_CHECKING:
    from datasets import Dataset

# Student's t for 95 %, by degrees of freedom from 1 on; for more the last, which is a little too wide.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
Z95 = 1.96
DIGESTS = ("weights_sha256", "data_sha256")
KEYS = ("context", "k", "pool_size", "pool_seed")


class EncodedOnce:
    """An encoder that remembers what it has encoded, by pixels; see `epigraph.encoder`."""

    def __init__(self, encode):
        self.encode, self.known = encode, {}
        self.weights_sha256 = getattr(encode, "weights_sha256", None)

    def __call__(self, images: list) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and latents of PIL images."""
        names = [pixels_hash(image) for image in images]
        absent = {name: image for name, image in zip(names, images) if name not in self.known}
        if absent:
            self.known |= dict(zip(absent, zip(*self.encode(list(absent.values())))))
        keys, latents = zip(*(self.known[name] for name in names))
        return torch.stack(keys), torch.stack(latents)


class SweepReader:
    """Words that were encoded and read without examples, to be read again behind any.

    Args:
        model, processor: loaded.
        dataset: the words.
        gate, batch_size, generation: as in `epigraph.read`.

    Attributes:
        plain: what is read without examples, "" where an image cannot be read.
        errors: of those.
        queries: the words that can be read, by their numbers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        dataset: "Dataset",
        gate: float | None,
        batch_size: int,
        generation: dict,
    ):
        from tqdm.auto import tqdm

        self.reader = WordReader(model, processor, 1, False, generation, None, 0, None)
        self.gate, self.batch_size = gate, batch_size
        readings = [WordReading(name) for name in dataset["id"]]
        numbers = {id(reading): number for number, reading in enumerate(readings)}
        self.queries: dict[int, Query] = {}
        self.known: dict[tuple, str] = {}
        inputs = list(zip(readings, Contents(dataset)))
        with tqdm(total=len(inputs), desc="Reading without examples", unit=" words", disable=None) as bar:
            for start in range(0, len(inputs), batch_size):
                batch = inputs[start : start + batch_size]
                self.queries |= {numbers[id(query.reading)]: query for query in self.reader.read_plain(batch)}
                bar.update(len(batch))
        self.plain = [reading.text for reading in readings]
        self.errors = [reading.error for reading in readings if reading.error]
        self.pictures = [query.picture for query in self.queries.values()]
        self.keys = torch.stack([query.key for query in self.queries.values()]) if self.queries else None

    def read(self, found: list[list[Example]], bar) -> list[str]:
        """What is read behind these examples, of which each of `queries` has some or none; of all words."""
        answers, wanted = list(self.plain), {}
        for (number, query), examples in zip(self.queries.items(), found):
            examples = self.reader.usable(examples)
            if not examples or (self.gate is not None and query.reading.score >= self.gate):
                continue
            again = copy.copy(query)
            again.reading, again.examples = WordReading(query.reading.name), examples
            if (name := (number, again.context)) in self.known:
                answers[number] = self.known[name]
            else:
                wanted[number] = again
        bar.update(len(self.plain) - len(wanted))
        for done in self.reader.read_in_context(list(wanted.values()), self.batch_size):
            bar.update(done)
        for number, query in wanted.items():
            answers[number] = self.known[number, query.context] = query.reading.text
        return answers


class Sweep:
    """The words of a sweep, and the rows that it has so far.

    Args:
        arguments: of the evaluation.
        dataset: the words that are measured, all of one source and split.
        rows: known already.
    """

    def __init__(self, arguments: EvaluationArguments, dataset: "Dataset", rows: list[dict]):
        self.arguments, self.dataset, self.rows = arguments, dataset, rows
        (self.protocol,) = arguments.protocol or [DEFAULT_PROTOCOL]
        columns, name = dataset.column_names, Path(arguments.data).stem
        sources = dataset["source"][:] if "source" in columns else [name] * len(dataset)
        splits = dataset["split"][:] if "split" in columns else [arguments.split] * len(dataset)
        if len(sets := set(zip(sources, splits))) > 1:
            raise ValueError(
                f"{arguments.data}: a sweep measures one source and split, but the words are of "
                f"{sorted(map(str, sets))}; choose with --source and --split."
            )
        self.sources, self.splits, self.texts = sources, splits, dataset["text"][:]
        labels = [comparable_label(text, self.protocol)[0] for text in self.texts]
        self.kept = [number for number, label in enumerate(labels) if label is not None]
        self.labels = [labels[number] for number in self.kept]

    def missing(self) -> list[ContextSetting]:
        """What was asked for and is not measured yet."""
        known = {tuple(row[key] for key in KEYS) for row in self.rows}
        return [setting for setting in self.arguments.settings() if tuple(asdict(setting).values()) not in known]

    def add(self, setting: ContextSetting, answers: list[str], plain: list[str], opened: OpenedPool | None):
        """Count what was read in one setting."""
        rows = word_rows(answers, self.texts, self.sources, self.splits, self.protocol)
        for row in rows:
            row |= asdict(setting) | ({"entries": len(opened.pool)} if opened else {})
            row |= {"half": self.arguments.half} if self.arguments.half else {}
        rows[0] |= self._counts(answers, plain, opened)
        self.rows += rows

    def _counts(self, answers: list[str], plain: list[str], opened: OpenedPool | None) -> dict:
        """Beside the accuracy: what examples made right and wrong, of all words and of those new to the pool."""
        right, before = (
            np.array([comparable_answer(texts[n], self.protocol) == label for n, label in zip(self.kept, self.labels)])
            for texts in (answers, plain)
        )
        if opened is None:
            return {}
        in_pool = {comparable_label(text, self.protocol)[0] for text in opened.pool.texts}
        new = np.array([label not in in_pool for label in self.labels], bool)
        return {
            "plain": _mean(before),
            "gained": int((right & ~before).sum()),
            "lost": int((before & ~right).sum()),
            "label_not_in_pool": {
                "n": int(new.sum()),
                "value": _mean(right[new]),
                "plain": _mean(before[new]),
                "gained": int((right & ~before)[new].sum()),
                "lost": int((before & ~right)[new].sum()),
            },
            "pool_sha256": opened.sha256(),
        }


def _mean(values: np.ndarray) -> float | None:
    return values.mean().item() if len(values) else None


def sweep_words(arguments: EvaluationArguments, folder: Path, results: dict) -> dict:
    """Measure every setting that the output lacks.

    Args:
        arguments: of the evaluation.
        folder: of the model.
        results: the head of the results file.

    Returns:
        The results, as they stand in the output by then.

    Raises:
        ValueError: the output holds something else, several protocols or sources were named, or as `Pools`.
    """
    from tqdm.auto import tqdm

    if len(arguments.protocol or [0]) > 1:
        raise ValueError("--protocol: a sweep compares under one protocol; name one, or leave it out for 36.")
    of = _identity(arguments)
    chosen, report, filtered = load_measured(arguments)
    standing = _standing(arguments, results, of)
    sweep = Sweep(arguments, chosen, standing.get("rows", []))
    missing = sweep.missing()
    records = {"n": report.records, "left_out": len(report.left_out), "filtered": filtered}
    unreadable = standing["breakdowns"]["unreadable"] if standing else {"value": 0.0, "n": len(chosen), "first": []}
    if missing:
        model, processor = load(folder, "word", arguments.device, arguments.dtype)
        generation = {} if arguments.num_beams is None else {"num_beams": arguments.num_beams}
        reader = SweepReader(model, processor, chosen, arguments.gate, arguments.batch_size, generation)
        unreadable |= {"value": len(reader.errors) / len(chosen), "first": reader.errors[:10]}
        pools = None
        if any(setting.context != "none" for setting in missing):
            pools = pools_of(arguments, EncodedOnce(encoder(model, processor)), chosen)
        opened, drawn = None, None
        with tqdm(total=len(missing) * len(chosen), desc="Reading", unit=" words", disable=None) as bar:
            for setting in missing:
                if setting.context != "none" and drawn != (setting.pool_size, setting.pool_seed):
                    drawn = setting.pool_size, setting.pool_seed
                    opened = pools.choose(*drawn)
                answers = _answers(setting, reader, opened, bar)
                sweep.add(setting, answers, reader.plain, opened if setting.context != "none" else None)
                found = _with_rows(results, sweep.rows, of, records, unreadable)
                if arguments.output:
                    write_json(arguments.output, found)
    return _with_rows(results, sweep.rows, of, records, unreadable)


def _answers(setting: ContextSetting, reader: SweepReader, opened: OpenedPool | None, bar) -> list[str]:
    """What is read in one setting, or copied."""
    if setting.context == "none":
        bar.update(len(reader.plain))
        return reader.plain
    examples = EXAMPLES[setting.context](opened.pool, setting.pool_seed)
    found = examples.find(reader.pictures, setting.k, reader.keys) if reader.pictures else []
    if setting.context != "copy":
        return reader.read(found, bar)
    bar.update(len(reader.plain))
    answers = [""] * len(reader.plain)
    for number, nearest in zip(reader.queries, found):
        answers[number] = nearest[0].text if nearest else ""
    return answers


def _identity(arguments: EvaluationArguments) -> dict:
    """What all rows of a file have in common, besides weights and data."""
    names = ("split", "source", "half", "protocol", "pool_split", "pool_source", "pool_half", "gate", "only_alnum",
             "min_length", "limit", "num_beams", "dtype")  # fmt: skip
    pool = expand_path(arguments.pool)
    digest = data_sha256(pool) if pool.exists() else None
    return {name: getattr(arguments, name) for name in names} | {
        "pool": portable(arguments.pool),
        "pool_data_sha256": digest,
    }


def _standing(arguments: EvaluationArguments, results: dict, of: dict) -> dict:
    """What earlier runs have written to the output, if any; their commands come before that of `results`."""
    if not arguments.output or not Path(arguments.output).exists():
        return {}
    try:
        standing = json.loads(Path(arguments.output).read_text(encoding="utf-8"))
        theirs = standing["breakdowns"]["sweep"]["of"] | {
            key: standing[key] for key in ("weights_sha256", "data_sha256")
        }
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"--output {arguments.output} is there and holds no sweep; name another file.") from None
    ours = of | {key: results[key] for key in DIGESTS}
    if different := [name for name, value in ours.items() if theirs.get(name) != value]:
        raise ValueError(
            f"--output {arguments.output} holds a sweep with another {different[0]} "
            f"({theirs.get(different[0])}, not {ours[different[0]]}); name another file."
        )
    if standing["command"] != results["command"]:  # several runs make one file
        commands = [*standing["command"].split("\n"), results["command"]]
        results["command"] = "\n".join(dict.fromkeys(commands))
    return standing


def _with_rows(results: dict, rows: list[dict], of: dict, records: dict, unreadable: dict) -> dict:
    breakdowns = {"sweep": {"of": of, "summary": summarise(rows)}, "records": records, "unreadable": unreadable}
    return {**results, "rows": rows, "breakdowns": breakdowns}


# ----------------------------------------------------------------------------------------------------------- intervals


@dataclass
class Interval:
    """A mean over draws of the pool, and how far it may be off with 95 % confidence.

    Attributes:
        value, plus_minus: None where there is nothing to count. Of one draw, `plus_minus` allows for other words only.
    """

    value: float | None
    plus_minus: float | None


def interval(rates: list[float], variances: list[float], counts: list[int]) -> Interval:
    """Mean of a rate over draws, with what other words and other draws would change.

    The words are the same in every draw, so that they do not average out: their part is the mean variance of a word
    over the number of words. The part of the draws is Student's, of their standard deviation.

    Args:
        rates: of each draw.
        variances: of a single word in it.
        counts: words in it.
    """
    used = [(rate, variance / count) for rate, variance, count in zip(rates, variances, counts) if count]
    if not used:
        return Interval(None, None)
    rates, of_words = (np.array(values) for values in zip(*used))
    squared = Z95**2 * of_words.mean()
    if (draws := len(rates)) > 1:
        squared += T95[min(draws - 1, len(T95)) - 1] ** 2 * rates.var(ddof=1) / draws
    return Interval(rates.mean().item(), float(np.sqrt(squared)))


def summarise(rows: list[dict]) -> list[dict]:
    """For each context, k and pool size the means over the seeds.

    Args:
        rows: of a sweep.

    Returns:
        `context`, `k`, `pool_size`, the `seeds`, `n`; `word_accuracy`; with examples `gain` over reading without, and
        `label_not_in_pool`: mean `n`, `word_accuracy`, `plain` and `gain` of the words whose label no entry has. Each
        is `{"value", "plus_minus"}`.
    """
    groups = {}
    for row in rows:
        if row["metric"] == "word_accuracy":
            groups.setdefault((row["context"], row["k"], row["pool_size"]), []).append(row)
    found = []
    for (context, k, size), group in groups.items():
        entry = {"context": context, "k": k, "pool_size": size, "seeds": [row["pool_seed"] for row in group]}
        entry |= {"n": group[0]["n"], "word_accuracy": _accuracy(group)}
        if context != "none":
            new = [row["label_not_in_pool"] for row in group]
            entry["gain"] = _gain(group)
            entry["label_not_in_pool"] = {
                "n": sum(row["n"] for row in new) / len(new),
                "word_accuracy": _accuracy(new),
                "plain": _accuracy(new, "plain"),
                "gain": _gain(new),
            }
        found.append(entry)
    return found


def _accuracy(rows: list[dict], name: str = "value") -> dict:
    rates = [row[name] or 0.0 for row in rows]
    return asdict(interval(rates, [rate * (1 - rate) for rate in rates], [row["n"] for row in rows]))


def _gain(rows: list[dict]) -> dict:
    """Paired: only words that examples made right or wrong have a say in its variance."""
    counts = [row["n"] for row in rows]
    gains = [(row["gained"] - row["lost"]) / max(1, row["n"]) for row in rows]
    changed = [(row["gained"] + row["lost"]) / max(1, row["n"]) for row in rows]
    return asdict(interval(gains, [share - gain**2 for share, gain in zip(changed, gains)], counts))


def sweep_table(results: dict) -> str:
    """Markdown: a line for each context, number of examples and pool size."""
    summary = results["breakdowns"]["sweep"]["summary"]
    first = results["rows"][0]  # all are of one set
    of = ", ".join(str(first[name]) for name in ("source", "split", "half") if first.get(name) is not None)
    lines = [
        f"{of}, {summary[0]['n']} words, protocol {first['protocol']}; mean and 95 % confidence "
        "interval over seeds and words; gains over reading without examples, in points",
        "",
        "| context | k | pool | seeds | right, % | gain | label not in pool | right, % | without, % | gain |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    order = {context: place for place, context in enumerate(CONTEXTS)}
    for entry in sorted(summary, key=lambda of: (order[of["context"]], of["pool_size"] or math.inf, of["k"] or 0)):
        cells = [entry["context"], "", "", "", _shown(entry["word_accuracy"])] + [""] * 5
        if new := entry.get("label_not_in_pool"):
            cells[1:4] = entry["k"], entry["pool_size"] or "all", len(entry["seeds"])
            cells[5:] = (
                _shown(entry["gain"], True),
                f"{new['n']:.0f}",
                *map(_shown, (new["word_accuracy"], new["plain"])),
            )
            cells.append(_shown(new["gain"], True))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _shown(entry: dict, points: bool = False) -> str:
    """A rate in per cent or a gain in points, with its interval."""
    if entry["value"] is None:
        return ""
    return f"{100 * entry['value']:{'+' if points else ''}.2f} ± {100 * entry['plus_minus']:.2f}"


__all__ = ["EncodedOnce", "Interval", "Sweep", "SweepReader", "interval", "summarise", "sweep_table", "sweep_words"]
