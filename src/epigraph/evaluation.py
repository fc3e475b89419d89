"""The evaluation loop: data are read as `epigraph.read` reads them, the answers become metrics and a JSON of results.

python scripts/evaluate.py --model checkpoints/comer-hme --data formulas.parquet --split test --output results.json

What models that tell classes and models that read words need besides is in `classification` and `evaluation_words`.
"""

import hashlib
import json
import os
import platform
import shlex
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from transformers import HfArgumentParser, PreTrainedModel, ProcessorMixin

from .adapters import base_of, is_adapter
from .calibration import reliability
from .cards import METRIC_NAMES, class_table, metrics_table, reliability_table, shown, weights_sha256
from .classification import class_breakdown, classification_metrics, evaluate_classification, load_classifier
from .data.latex import is_valid
from .data.protocols import check_protocol
from .data.variants import Variant, vary
from .data.words import Half
from .inputs import to_image
from .metrics import formula_breakdowns, formula_metrics
from .reading import TASKS_OF, checkpoint_folder, load, load_config, read_all
from .training import changed

if TYPE_CHECKING:
    from datasets import Dataset

    from .reading import FormulaReading

CLASSIFIERS = ("pixelvit",)  # types of models that are measured by classes
# Settings that mean nothing to models of other kinds.
OF_FORMULAS = ("variant", "max_length", "length_penalty", "search", "direction", "grammar")
OF_READERS = ("num_beams",)
OF_POOLS = ("pool", "pool_split", "pool_source", "pool_half", "pool_size", "pool_seed", "k", "gate")
OF_WORDS = ("context", *OF_POOLS, "half", "only_alnum", "min_length", "labels")
CONTEXTS = ("none", "knn", "random", "wrong", "copy")
PROTOCOL = "standard"  # the one protocol of formulas and classes; those of words count characters
NUM_BEAMS = 10  # of formulas
VERSIONS = ("epigraph", "torch", "transformers", "datasets")


@dataclass
class EvaluationArguments:
    """What `scripts/evaluate.py` and `epigraph eval` take."""

    model: str = field(metadata={"help": "Model folder or Hub id."})
    data: str = field(metadata={"help": "Parquet file or folder in the package's schemas; ${VARIABLES} are expanded."})
    split: str | None = field(default=None, metadata={"help": "Only rows of this split."})
    source: str | None = field(default=None, metadata={"help": "Only rows of this source."})
    task: Literal["maths", "ink", "word", "classification"] | None = field(
        default=None,
        metadata={
            "help": "maths reads images and ink, ink only strokes; word reads images of words, classification tells "
            "classes of images. By default what the model does."
        },
    )
    protocol: list[str] | None = field(
        default=None,
        metadata={
            "help": "How answers are compared. Of words one or several of 36 (default), 62, 94, standard, literature, "
            "literature_ignore_case, literature_openocr, literature_anyascii, literature_unicase; of all else "
            "standard."
        },
    )
    half: Half | None = field(
        default=None, metadata={"help": "Only this half of words that are never trained on: pool or queries."}
    )
    context: list[str] = field(
        default_factory=lambda: ["none"],
        metadata={
            "help": "Examples that words are read with: none, the most similar ones (knn), random ones, the most "
            "similar ones with wrong texts; copy answers with the text of the most similar one. Several of these, "
            "of --k, --pool_size or --pool_seed are measured in one run, each with each, and gather in --output."
        },
    )
    pool: str | None = field(
        default=None, metadata={"help": "Where examples come from: a saved pool, by folder or Hub id, or word data."}
    )
    pool_split: str | None = field(default=None, metadata={"help": "Of word data, only rows of this split."})
    pool_source: str | None = field(default=None, metadata={"help": "Of word data, only rows of this source."})
    pool_half: Half | None = field(default=None, metadata={"help": "Of word data, only this half: pool or queries."})
    pool_size: list[int] | None = field(
        default=None, metadata={"help": "So many entries only, drawn by chance; several for a sweep."}
    )
    pool_seed: list[int] = field(
        default_factory=lambda: [0], metadata={"help": "Of all that is drawn by chance; several for a sweep."}
    )
    k: list[int] = field(default_factory=lambda: [2], metadata={"help": "Examples for each word."})
    gate: float | None = field(
        default=None, metadata={"help": "Use examples only where the reading without has a lower score, in 0..1."}
    )
    only_alnum: bool = field(
        default=False, metadata={"help": "Only words whose labels are ASCII letters and digits (ICDAR 2013: 1015)."}
    )
    min_length: int = field(
        default=1, metadata={"help": "Only words with so many characters (3 with --only_alnum, ICDAR 2013: 857)."}
    )
    labels: Literal["original", "cleansed"] | None = field(
        default=None, metadata={"help": "Which labels of a benchmark the data have; only recorded."}
    )
    variant: Variant | None = field(
        default=None, metadata={"help": "Read the images changed so; of ink, what is drawn of it."}
    )
    limit: int | None = field(
        default=None, metadata={"help": "So many rows only: the first, of images with classes evenly chosen ones."}
    )
    output: str | None = field(default=None, metadata={"help": "JSON file for the results; replaced at once or not."})
    batch_size: int = field(default=8, metadata={"help": "Inputs that are read together; changes no result."})
    num_beams: int | None = field(
        default=None, metadata={"help": f"Width of the search; by default {NUM_BEAMS}, of words what the model says."}
    )
    max_length: int = field(default=200, metadata={"help": "Longest reading in tokens, start and stop included."})
    length_penalty: float = field(default=1.0, metadata={"help": "Power of the length that scores are divided by."})
    search: Literal["exact", "official"] = field(
        default="exact", metadata={"help": "official: the heuristics of the official code, without grammar."}
    )
    direction: Literal["joint", "l2r", "r2l"] = field(default="joint", metadata={"help": "Reading direction."})
    grammar: bool = field(default=True, metadata={"help": "Let only well-formed LaTeX come out of the exact search."})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, cuda:1 ...; by default CUDA if there."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "Of the weights."})

    def __post_init__(self):
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit must be at least 1, not {self.limit}.")
        if self.batch_size < 1:
            raise ValueError(f"--batch_size must be at least 1, not {self.batch_size}.")
        for name in ("pool_size", "min_length", "k", "pool_seed"):
            least, values = int(name != "pool_seed"), getattr(self, name)
            for value in values if isinstance(values, list) else [values]:
                if value is not None and value < least:
                    raise ValueError(f"--{name} must be at least {least}, not {value}.")
        if self.gate is not None and not 0 <= self.gate <= 1:
            raise ValueError(f"--gate is a probability and must be between 0 and 1, not {self.gate}.")
        for context in self.context:
            if context not in CONTEXTS:
                raise ValueError(f"there is no --context {context}; there are {', '.join(CONTEXTS)}.")
        if (shown := [context for context in self.context if context != "none"]) and not self.pool:
            raise ValueError(f"--context {shown[0]} needs a --pool: a saved pool, or words with their texts.")
        if not shown and (given := changed(self, OF_POOLS)):
            raise ValueError(f"--{given[0]} is for reading with examples; add --context knn, or leave it out.")
        if self.context == ["copy"] and (given := changed(self, ("k", "gate", "num_beams"))):
            raise ValueError(f"--{given[0]} means nothing to --context copy, which reads nothing; leave it out.")

    def settings(self) -> list["ContextSetting"]:
        """What is measured, each once: every context with every `k`, size and seed that means something to it."""
        plain = [ContextSetting("none")] if "none" in self.context else []
        return plain + [
            ContextSetting(context, k, size, seed)
            for size in dict.fromkeys(self.pool_size or [None])
            for seed in dict.fromkeys(self.pool_seed)
            for context in dict.fromkeys(self.context)
            if context != "none"
            for k in ([1] if context == "copy" else dict.fromkeys(self.k))
        ]


@dataclass(frozen=True)
class ContextSetting:
    """What words are read with; None where it means nothing, and of `pool_size` for all entries."""

    context: str
    k: int | None = None
    pool_size: int | None = None
    pool_seed: int | None = None


def evaluate_formulas(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: "Dataset",
    *,
    task: str | None = None,
    variant: Variant | None = None,
    batch_size: int = 8,
    progress: bool = False,
    **generation,
) -> dict:
    """Read a data set and compare.

    Args:
        model: loaded; it is put into evaluation mode meanwhile.
        processor: of the model.
        dataset: in the formula schema (`epigraph.data.readers`), with `strokes` or `image`.
        variant: how the images are changed before they are read (`data.variants.vary`), each by its number as seed.
        task, batch_size, progress, generation: as in `epigraph.read`.

    Returns:
        `metrics`: the rates of `formula_metrics` and `unbalanced`, the share of answers that are no well-formed LaTeX,
        both in 0..1. `readings`: a `FormulaReading` per row, in order. A row that cannot be read has the answer "",
        which is wrong.

    Raises:
        ValueError: the data set is empty or lacks a column.
    """
    readings = list(read_all(_inputs(dataset, task, variant), model, processor, names=dataset["id"], task=task,
                             batch_size=batch_size, progress=progress, **generation))  # fmt: skip
    predictions = [reading.text for reading in readings]
    metrics = formula_metrics(predictions, dataset["text"][:])
    return {"metrics": {**metrics, "unbalanced": _unbalanced(predictions)}, "readings": readings}


def evaluate(arguments: EvaluationArguments, command: str) -> dict:
    """Evaluate as the arguments say; the results as they stand in the JSON.

    Args:
        command: what was called, for the record.

    Raises:
        ValueError, FileNotFoundError: model or data cannot be used, or the output cannot be written; one sentence.
    """
    from .data.readers import expand_path

    if arguments.output:
        _check_writable(Path(arguments.output))
    folder = checkpoint_folder(arguments.model)
    task = _task(arguments, folder)
    _check_settings(arguments, task)
    results = {
        "model": portable(arguments.model),
        "command": command,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in VERSIONS},
        "weights_sha256": weights_sha256(folder),
        "data_sha256": data_sha256(expand_path(arguments.data)),
    }
    if task == "word" and (len(arguments.settings()) > 1 or _holds_sweep(arguments.output)):
        from .evaluation_sweeps import sweep_words

        return sweep_words(arguments, folder, results)
    if task == "word":
        from .evaluation_words import measure_words as measure
    else:
        measure = _measure_classes if task == "classification" else _measure_formulas
    rows, breakdowns = measure(arguments, folder)
    return {**results, "rows": rows, "breakdowns": breakdowns}


def _holds_sweep(output: str | None) -> bool:
    """Whether the output is that of a sweep, which one more setting is added to and does not replace."""
    try:
        return output is not None and "sweep" in json.loads(Path(output).read_text(encoding="utf-8"))["breakdowns"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _task(arguments: EvaluationArguments, folder: Path) -> str | None:
    """The task that was asked for, or what the model does: "word", "classification", or None for formulas."""
    if arguments.task:
        return arguments.task
    if is_adapter(folder):
        try:
            folder = checkpoint_folder(base_of(folder))
        except ValueError:
            return None  # `load` says why
    kind = load_config(folder, arguments.model).model_type
    if kind in CLASSIFIERS:
        return "classification"
    return "word" if "word" in TASKS_OF.get(kind, ()) else None


def _check_settings(arguments: EvaluationArguments, task: str | None):
    """ValueError where a setting is for models of another kind."""
    others = {"word": OF_FORMULAS, "classification": (*OF_FORMULAS, *OF_READERS, *OF_WORDS)}.get(task, OF_WORDS)
    if given := changed(arguments, others):
        kind = "formulas" if given[0] in OF_FORMULAS else "words" if given[0] in OF_WORDS else "formulas or words"
        raise ValueError(f"--{given[0]} is for models that read {kind}; leave it out.")
    for protocol in arguments.protocol or ():
        if task == "word":
            check_protocol(protocol)
        elif protocol != PROTOCOL:
            raise ValueError(f"--protocol {protocol} is for words; formulas and classes have '{PROTOCOL}' only.")


def _measure_formulas(arguments: EvaluationArguments, folder: Path) -> tuple[list[dict], dict]:
    """Rows and breakdowns of a model that reads formulas."""
    from .data.readers import load_formulas

    dataset = load_formulas(arguments.data, split=arguments.split, source=arguments.source)
    dataset = dataset.select(range(min(len(dataset), arguments.limit or len(dataset))))
    model, processor = load(folder, arguments.task, arguments.device, arguments.dtype)
    measured = evaluate_formulas(
        model,
        processor,
        dataset,
        task=arguments.task,
        variant=arguments.variant,
        batch_size=arguments.batch_size,
        progress=True,
        num_beams=arguments.num_beams or NUM_BEAMS,
        max_length=arguments.max_length,
        length_penalty=arguments.length_penalty,
        search=arguments.search,
        direction=arguments.direction,
        grammar=None if arguments.grammar else False,
    )
    readings, calibration = measured["readings"], model.config.score_calibration
    pairs = [(reading.text, text) for reading, text in zip(readings, dataset["text"])]
    rows = _rows(dataset, pairs, lambda pairs: formula_metrics(*zip(*pairs)), arguments)
    return rows, _breakdowns(dataset, readings, calibration)


def _measure_classes(arguments: EvaluationArguments, folder: Path) -> tuple[list[dict], dict]:
    """Rows and breakdowns of a classifier of images."""
    from .data.image_classes import load_images, with_classes

    dataset = load_images(arguments.data, arguments.split, arguments.source, arguments.limit)
    model, processor = load_classifier(folder, arguments.device, arguments.dtype)
    names = [model.config.id2label[number] for number in range(model.config.num_labels)]
    dataset = with_classes(dataset, names, arguments.model)
    measured = evaluate_classification(model, processor, dataset, batch_size=arguments.batch_size, progress=True)
    answers, errors, labels = measured["answers"], measured["errors"], dataset["label"][:]
    pairs = list(zip(answers, labels))
    rows = _rows(dataset, pairs, lambda pairs: classification_metrics(*zip(*pairs), len(names)), arguments)
    unreadable = {"value": len(errors) / len(labels), "n": len(labels), "first": errors[:10]}
    return rows, {"class": class_breakdown(answers, labels, names), "unreadable": unreadable}


def _inputs(dataset: "Dataset", task: str | None, variant: Variant | None = None):
    """What `read_all` takes, of every row; images stay encoded, so that a damaged one is one row's error."""
    column = "strokes" if "strokes" in dataset.column_names else "image"
    if column not in dataset.column_names or not {"text", "id"} <= set(dataset.column_names):
        raise ValueError(f"formulas need columns id, text and image or strokes; these have {dataset.column_names}.")
    if task == "ink" and column == "image":
        raise ValueError("task 'ink' reads strokes, but the data hold images; leave --task out.")
    if task == "ink" and variant is not None:
        raise ValueError("--variant changes images, but task 'ink' reads strokes; leave one of them out.")
    return _Inputs(dataset, column, variant)


class _Inputs:
    """The inputs of a data set, one at a time, with their number for the progress bar."""

    def __init__(self, dataset: "Dataset", column: str, variant: Variant | None):
        from datasets import Image

        encoded = column == "image" and isinstance(dataset.features["image"], Image)
        dataset = dataset.select_columns([column])
        self.rows = dataset.cast_column("image", Image(decode=False)) if encoded else dataset
        self.column = column
        self.variant = variant

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self):
        for number, row in enumerate(self.rows):
            value = row[self.column]
            value = (value["bytes"] or value["path"]) if isinstance(value, dict) else value
            yield value if self.variant is None else self._changed(value, number)

    def _changed(self, value, number: int):
        try:
            return vary(to_image(value, f"row {number}"), self.variant, number)
        except ValueError:
            return value  # which is then the row's error, like any that cannot be read


def _rows(dataset: "Dataset", answers: list, measure, arguments: EvaluationArguments) -> list[dict]:
    """One row per metric, source and split; a value that the data do not state is None or the name of the file.

    `measure` makes metrics of some of the `answers`, of which each row of the data has one.
    """
    unknown = [Path(arguments.data).stem] * len(dataset)
    sources = dataset["source"][:] if "source" in dataset.column_names else unknown
    splits = dataset["split"][:] if "split" in dataset.column_names else [arguments.split] * len(dataset)
    groups = {}
    for source, split, answer in zip(sources, splits, answers):
        groups.setdefault((source, split), []).append(answer)
    return [
        {
            "metric": metric,
            "value": value,
            "n": len(group),
            "source": source,
            "split": split,
            "protocol": PROTOCOL,
            **({"variant": arguments.variant} if arguments.variant else {}),
        }
        for (source, split), group in groups.items()
        for metric, value in measure(group).items()
    ]


def _breakdowns(dataset: "Dataset", readings: list["FormulaReading"], calibration: dict | None) -> dict:
    """By length, depth and score; and what went wrong apart from misreading."""
    predictions = [reading.text for reading in readings]
    scored = [
        (reading.score, reading.text.split() == text.split())
        for reading, text in zip(readings, dataset["text"])
        if reading.score is not None
    ]
    errors = [reading.error for reading in readings if reading.error]
    return {
        **formula_breakdowns(predictions, dataset["text"][:]),
        "reliability": {"calibration": calibration, **reliability(*zip(*scored))} if scored else None,
        "unbalanced": {"value": _unbalanced(predictions), "n": len(predictions)},
        "unreadable": {"value": len(errors) / len(readings), "n": len(readings), "first": errors[:10]},
    }


def _unbalanced(predictions: list[str]) -> float:
    return sum(not is_valid(text) for text in predictions) / len(predictions)


def data_sha256(path: Path) -> str:
    """The sha256 of a file; of a folder that of its files' names and contents, sorted."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file()):
        if file != path:
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        with open(file, "rb") as content:
            while block := content.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def portable(value: str) -> str:
    """A path as others can use it: below ${EPIGRAPH_DATA} or relative, where it can be said so."""
    data = os.environ.get("EPIGRAPH_DATA")
    roots = {"${EPIGRAPH_DATA}": Path(data).resolve()} if data else {}
    roots[""] = Path.cwd()
    path = Path(value)
    if path.is_absolute():
        for name, root in roots.items():
            if path.resolve().is_relative_to(root):
                return (Path(name) / path.resolve().relative_to(root)).as_posix()
    return value


def _check_writable(path: Path):
    """Before hours of work: create the folder, and see that a file can be made in it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise ValueError(f"--output {path}: cannot be written ({error.strerror}).") from None


def write_json(path: str | Path, results: dict):
    """Write results in one step: a full disk leaves what was there.

    Raises:
        OSError: naming the file.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=2, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"{path}: could not be written ({error.strerror}); what was there is unchanged.") from error


def summary(results: dict) -> str:
    """The results as Markdown, for the terminal."""
    breakdowns = results["breakdowns"]
    if "sweep" in breakdowns:
        from .evaluation_sweeps import sweep_table

        return sweep_table(results)
    lines = [metrics_table(results), ""]
    if "class" in breakdowns:
        lines += [class_table(results), ""]
    elif "protocols" in breakdowns:
        from .evaluation_words import summary_of_words

        lines += summary_of_words(results)
    else:
        lines += _formula_tables(results)
    unreadable = breakdowns["unreadable"]
    if unreadable["first"]:
        lines.append(f"could not be read: {100 * unreadable['value']:.2f} %, first of all {unreadable['first'][0]}")
    return "\n".join(lines)


def _formula_tables(results: dict) -> list[str]:
    """Metrics by length and depth, and how far scores can be trusted."""
    lines, breakdowns = [], results["breakdowns"]
    for name, unit in (("length", "tokens"), ("depth", "nesting depth")):
        names = [metric for metric in breakdowns[name][0] if metric in METRIC_NAMES]
        lines += [f"| {unit} | n | {' | '.join(METRIC_NAMES[metric] for metric in names)} |"]
        lines += ["|---|---:|" + "---:|" * len(names)]
        for row in breakdowns[name]:
            lines.append(f"| {row['bin']} | {row['n']} | {' | '.join(shown(m, row[m]) for m in names)} |")
        lines.append("")
    lines += [reliability_table(results), ""]
    return [*lines, f"not well-formed: {100 * breakdowns['unbalanced']['value']:.2f} %"]


def main(args: list[str] | None = None):
    """`epigraph eval` and scripts/evaluate.py."""
    args = sys.argv[1:] if args is None else args
    parser = HfArgumentParser(EvaluationArguments, description="Measure a model on a data set.")
    (arguments,) = parser.parse_args_into_dataclasses(args)
    command = shlex.join(["python", "scripts/evaluate.py", *(portable(argument) for argument in args)])
    results = evaluate(arguments, command)
    print(summary(results))
    if arguments.output:
        try:
            write_json(arguments.output, results)
        except OSError:
            print(json.dumps(results))  # so that the work is not lost
            raise


__all__ = ["EvaluationArguments", "data_sha256", "evaluate", "evaluate_formulas", "main", "write_json"]
