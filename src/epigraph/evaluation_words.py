"""The evaluation loop for words: protocols, sub-sets of benchmarks, and what examples in context change.

`docs/protocols.md` says what every protocol, mode and number means.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from transformers import PreTrainedModel, ProcessorMixin

from .calibration import outcomes, reliability
from .cards import METRIC_NAMES, reliability_table, shown
from .context_pool import ContextPool, Example
from .data.protocols import DEFAULT_PROTOCOL, benchmark_subset, comparable_answer, comparable_label
from .data.words import WordReport, keep_words, load_checked_words
from .evaluation import ContextSetting, EvaluationArguments, portable
from .evaluation_pools import Contents, NearestExamples, OpenedPool, Pools, RandomExamples, WrongTexts, pixels_of
from .metrics import averages, left_out, word_breakdowns, word_metrics, word_rows
from .reading import load, read_all
from .reading_words import encoder

if TYPE_CHECKING:
    from datasets import Dataset

EXAMPLES = {"knn": NearestExamples, "random": RandomExamples, "wrong": WrongTexts, "copy": NearestExamples}


@dataclass
class CopiedText:
    """What `--context copy` answers to a word: the text of the entry most like it."""

    name: str
    text: str = ""
    error: str | None = None
    examples: list[Example] = field(default_factory=list)

    score = plain_text = None


def evaluate_words(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: "Dataset",
    *,
    protocol: str = DEFAULT_PROTOCOL,
    context: str = "none",
    pool: ContextPool | None = None,
    k: int = 2,
    gate: float | None = None,
    seed: int = 0,
    batch_size: int = 8,
    progress: bool = False,
    **generation,
) -> dict:
    """Read words and compare.

    Args:
        model: loaded; it is put into evaluation mode meanwhile.
        processor: of the model.
        dataset: in the word schema (`epigraph.data.words`).
        protocol: how answers are compared.
        context: none, knn, random, wrong or copy (docs/protocols.md).
        pool: that examples come from; needed in every mode but none.
        seed: of what `random` and `wrong` leave to chance.
        k, gate, batch_size, progress, generation: as in `epigraph.read`.

    Returns:
        `metrics`: those of `word_metrics`. `readings`: a `WordReading` per row, in order, or a `CopiedText`; one
        that cannot be read has the answer "". `alike`: for each row the ids of examples that look the same as it.

    Raises:
        ValueError: the data set is empty, the protocol leaves out all of it, or the pool does not fit the model.
    """
    contents, names = Contents(dataset), dataset["id"][:]
    examples = None if context == "none" else EXAMPLES[context](pool, seed)
    if context == "copy":
        readings = list(_copied(contents, names, examples, progress))
    else:
        with_examples = {} if examples is None else {"pool": examples, "k": k, "gate": gate}
        readings = list(read_all(contents, model, processor, names=names, task="word", batch_size=batch_size,
                                 progress=progress, **with_examples, **generation))  # fmt: skip
    alike = [[] for _ in names]
    if examples is not None and examples.alike:
        alike = [examples.alike.get(pixels, []) for pixels in pixels_of(contents)]
    metrics = word_metrics([reading.text for reading in readings], dataset["text"][:], protocol)
    return {"metrics": metrics, "readings": readings, "alike": alike}


def _copied(contents: Contents, names: list[str], examples: NearestExamples, progress: bool) -> Iterator[CopiedText]:
    from tqdm.auto import tqdm

    bar = tqdm(contents, desc="Searching", unit=" words", disable=None if progress else True)
    for name, content in zip(names, bar):
        try:
            (found,) = examples.search([content], 1)
        except ValueError as error:
            yield CopiedText(name, error=f"{name}: {str(error).removeprefix('query 0: ')}")
        else:
            yield CopiedText(name, found[0].text if found else "", examples=found)


# ------------------------------------------------------------------------------------------------------------- results


def measure_words(arguments: EvaluationArguments, folder: Path) -> tuple[list[dict], dict]:
    """Rows and breakdowns of a model that reads words."""
    (setting,) = arguments.settings()
    chosen, report, filtered = load_measured(arguments)
    model, processor = load(folder, "word", arguments.device, arguments.dtype)
    opened = None
    if setting.context != "none":
        opened = pools_of(arguments, encoder(model, processor), chosen).choose(setting.pool_size, setting.pool_seed)
    measured = evaluate_words(
        model,
        processor,
        chosen,
        protocol="standard",  # which leaves nothing out
        context=setting.context,
        pool=opened and opened.pool,
        k=setting.k or 0,
        gate=arguments.gate,
        seed=setting.pool_seed or 0,
        batch_size=arguments.batch_size,
        progress=True,
        **({} if arguments.num_beams is None else {"num_beams": arguments.num_beams}),
    )
    words = _Words(chosen, measured["readings"], measured["alike"], arguments, setting)
    breakdowns = words.breakdowns(report, filtered)
    if setting.context != "copy":
        breakdowns |= words.reliability(model.config)
    if opened:
        breakdowns["context"] = words.context(opened)
    return words.rows(opened), breakdowns


def load_measured(arguments: EvaluationArguments) -> tuple["Dataset", WordReport, int]:
    """The words that are measured, what could not be used, and how many others the filters left out."""
    dataset, report = load_checked_words(
        arguments.data, arguments.split, arguments.source, arguments.limit, arguments.half
    )
    chosen = keep_words(dataset, arguments.only_alnum, arguments.min_length)
    if not len(chosen):
        raise ValueError(f"{arguments.data}: none of the {len(dataset)} words passes only_alnum and min_length.")
    return chosen, report, len(dataset) - len(chosen)


def pools_of(arguments: EvaluationArguments, encode, test: "Dataset") -> Pools:
    """Where the examples come from."""
    chosen = {"split": arguments.pool_split, "source": arguments.pool_source, "half": arguments.pool_half}
    return Pools(arguments.pool, encode, test=test, **chosen)


class _Words:
    """What was read, beside what there was to read."""

    def __init__(
        self,
        dataset: "Dataset",
        readings: list,
        alike: list,
        arguments: EvaluationArguments,
        setting: ContextSetting,
    ):
        self.arguments, self.protocols = arguments, arguments.protocol or [DEFAULT_PROTOCOL]
        self.setting = setting
        self.readings, self.alike, self.names = readings, alike, dataset["id"][:]
        self.answers, self.labels = [reading.text for reading in readings], dataset["text"][:]
        columns, name = dataset.column_names, Path(arguments.data).stem
        sources = dataset["source"][:] if "source" in columns else [None] * len(dataset)
        self.sources = [name if source is None else source for source in sources]
        self.splits = dataset["split"][:] if "split" in columns else [arguments.split] * len(dataset)
        self.sets = Counter(zip(self.sources, self.splits))

    def rows(self, opened: OpenedPool | None) -> list[dict]:
        """One row for each protocol, source, split and metric; it says which half was measured, if one was."""
        context = {"context": self.setting.context}
        if self.arguments.half:
            context = {"half": self.arguments.half} | context
        if opened:
            context |= {"k": self.setting.k, "pool_size": len(opened.pool), "pool_seed": self.setting.pool_seed}
        return [
            row | ({"subset": subset} if (subset := self._subset(row)) else {}) | context
            for row in self._rows(self.answers)
        ]

    def _rows(self, answers: list[str]) -> list[dict]:
        return [
            row
            for protocol in self.protocols
            for row in word_rows(answers, self.labels, self.sources, self.splits, protocol)
        ]

    def _subset(self, row: dict) -> str | None:
        return benchmark_subset(row["source"], self.sets[row["source"], row["split"]])

    def breakdowns(self, report: WordReport, filtered: int) -> dict:
        """What does not depend on the context."""
        errors = [reading.error for reading in self.readings if reading.error]
        given, reasons = self.arguments, Counter(reason.split(" (")[0] for _, reason in report.left_out)
        words = [{"source": source, "split": split, "words": n} for (source, split), n in self.sets.items()]
        return {
            **word_breakdowns(self.answers, self.labels, self.sources, self.protocols[0]),
            "averages": averages(self._rows(self.answers)),
            "protocols": [
                {
                    "protocol": protocol,
                    "left_out": left_out(self.labels, protocol),
                    "deleted": self._deleted(protocol),
                }
                for protocol in self.protocols
            ],
            "data": {
                "labels": given.labels,
                "half": given.half,
                "only_alnum": given.only_alnum,
                "min_length": given.min_length,
                "filtered": filtered,
                "sets": [entry | {"subset": self._subset(entry)} for entry in words],
            },
            "records": {
                "n": report.records,
                "left_out": len(report.left_out),
                "reasons": dict(reasons),
                "first": [f"{name}: {reason}" for name, reason in report.left_out[:10]],
            },
            "unreadable": {"value": len(errors) / len(self.readings), "n": len(self.readings), "first": errors[:10]},
        }

    def _deleted(self, protocol: str) -> dict:
        """How many labels hold characters that the protocol deletes, and how often it deletes each."""
        gone = {c for c in set("".join(self.labels)) if not c.isspace() and not comparable_label(c, protocol)[0]}
        found = [[character for character in label if character in gone] for label in self.labels]
        counts = Counter(character for characters in found for character in characters)
        return {"labels": sum(map(bool, found)), "characters": dict(counts.most_common())}

    def reliability(self, config) -> dict:
        """How far the scores of words and of characters can be trusted, under the first protocol."""
        found, outcome = {}, outcomes(self.readings, self.labels, self.protocols[0])
        for pairs, prefix, metric in zip(outcome, ("", "char_"), ("word_accuracy", "character_accuracy")):
            if pairs:
                calibration = getattr(config, f"{prefix}score_calibration")
                found[f"{prefix}reliability"] = {"calibration": calibration, **reliability(*zip(*pairs), metric)}
        return found

    def context(self, opened: OpenedPool) -> dict:
        """What the examples were, and what they changed, under the first protocol."""
        given = self.arguments
        found = {
            "mode": self.setting.context,
            "k": self.setting.k,
            "gate": given.gate,
            "seed": self.setting.pool_seed,
            "pool": {
                "path": portable(given.pool),
                "split": given.pool_split,
                "source": given.pool_source,
                "half": given.pool_half,
                "size": len(opened.pool),
                "entries": opened.entries,
                "test_images": opened.test_images,
                "refused": opened.refused,
                "sources": opened.pool.sources(),
                "sha256": opened.sha256(),
            },
        }
        if self.setting.context != "copy":
            found["plain"] = self._rows(self._plain())
        return found | self._compared(opened.pool)

    def _plain(self) -> list[str]:
        """What is read without examples."""
        return [reading.plain_text or "" for reading in self.readings]

    def _compared(self, pool: ContextPool) -> dict:
        """Which words had which examples, and how many of them were right."""
        protocol = self.protocols[0]
        labels = [comparable_label(label, protocol)[0] for label in self.labels]
        kept = [number for number, label in enumerate(labels) if label is not None]
        answers, plain = (
            [comparable_answer(texts[number], protocol) for number in kept] for texts in (self.answers, self._plain())
        )
        labels = [labels[number] for number in kept]
        shown = [{comparable_answer(e.text, protocol) for e in self.readings[n].examples} - {""} for n in kept]
        in_pool = {comparable_label(text, protocol)[0] for text in pool.texts}
        right, before = (np.array([a == b for a, b in zip(texts, labels)], bool) for texts in (answers, plain))
        used = np.array([bool(self.readings[number].examples) for number in kept], bool)
        known = np.array([label in in_pool for label in labels], bool)
        copied = np.array([answer in texts for answer, texts in zip(answers, shown)], bool)
        alike = np.array([bool(self.alike[number]) for number in kept], bool)

        def accuracy(which: np.ndarray) -> dict:
            rates = {"word_accuracy": right} | ({} if self.setting.context == "copy" else {"plain": before})
            return {"n": int(which.sum()), **{name: _mean(values[which]) for name, values in rates.items()}}

        pairs = [f"{self.names[number]} and {', '.join(self.alike[number])}" for number in kept if self.alike[number]]
        return {
            "with_examples": accuracy(used),
            "label_in_pool": accuracy(known),
            "label_not_in_pool": accuracy(~known),
            "copied": accuracy(copied),
            "spoiled": {"n": int((copied & before & ~right).sum())},
            "alike": accuracy(alike) | {"first": pairs[:10]},
            "not_alike": accuracy(~alike),
        }


def _mean(values: np.ndarray) -> float | None:
    return values.mean().item() if len(values) else None


def summary_of_words(results: dict) -> list[str]:
    """Tables of what a results file holds besides its rows, as Markdown."""
    lines, breakdowns = [], results["breakdowns"]
    for kind in ("length", "source"):
        if breakdowns[kind]:
            metrics = [name for name in breakdowns[kind][0] if name in METRIC_NAMES]
            name = "characters" if kind == "length" else kind
            lines += [f"| {name} | n | {' | '.join(METRIC_NAMES[metric] for metric in metrics)} |"]
            lines += ["|---|---:|" + "---:|" * len(metrics)]
            for row in breakdowns[kind]:
                values = " | ".join(shown(metric, row[metric]) for metric in metrics)
                lines.append(f"| {row['bin' if kind == 'length' else kind]} | {row['n']} | {values} |")
            lines.append("")
    for row in breakdowns["averages"]:
        if row["sets"] > 1:
            values = ", ".join(f"{kind} {shown(row['metric'], row[kind])}" for kind in ("arithmetic", "weighted"))
            lines.append(f"{METRIC_NAMES[row['metric']]} ({row['protocol']}) over {row['sets']} sets: {values}")
    if context := breakdowns.get("context"):
        lines += _context_lines(context)
    if table := reliability_table(results):
        lines += [table, ""]
    for entry in breakdowns["protocols"]:
        for reason, count in entry["left_out"].items():
            lines.append(f"protocol {entry['protocol']} leaves out {count} labels: {reason}")
    records = breakdowns["records"]
    for reason, count in records["reasons"].items():
        lines.append(f"{count} of {records['n']} records cannot be used: {reason}")
    return lines


def _context_lines(context: dict) -> list[str]:
    pool = context["pool"]
    chosen = f"{pool['size']} of the {pool['entries']} entries of {pool['path']}, seed {context['seed']}"
    lines = ["", f"context {context['mode']}: {chosen}", ""]
    lines += ["| words | n | right | without examples |", "|---|---:|---:|---:|"]
    for name, text in GROUPS.items():
        row = context[name]
        plain = shown("word_accuracy", row.get("plain"))
        lines.append(f"| {text} | {row['n']} | {shown('word_accuracy', row['word_accuracy'])} | {plain} |")
    lines += ["", f"copies that took the place of a right reading: {context['spoiled']['n']}"]
    if context["alike"]["n"]:
        lines.append(f"examples that look the same as the word, first of all {context['alike']['first'][0]}")
    return [*lines, ""]


GROUPS = {
    "with_examples": "read with examples",
    "label_in_pool": "whose label stands in the pool",
    "label_not_in_pool": "whose label does not",
    "copied": "whose answer is the text of an example",
    "alike": "with an example that looks the same",
    "not_alike": "without one",
}


__all__ = ["EXAMPLES", "CopiedText", "evaluate_words", "measure_words", "summary_of_words"]
