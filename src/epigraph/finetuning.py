"""Fine-tuning: a trained model takes up a writer's hand or new symbols, as a whole or in a small adapter (LoRA).

    python scripts/finetune.py --lora --train_data my_folder --output_dir runs/me

The loop is that of `training`. What is left to it here: rows that can be used, room for new symbols, what is trained
and what stays, and the measurement of held-out formulas before and after.
"""

import json
import logging
import math
import platform
import shlex
import sys
import time
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers.trainer_utils import set_seed

from .adapters import ADAPTER_CONFIG, ADAPTER_RESULTS, is_adapter
from .pretraining import formula_loader, reading_evaluation
from .training import LoopArguments, RecipeError, parse_recipe, refuse_existing, save_atomically

logger = logging.getLogger(__name__)

MAX_NEW_SYMBOLS = 500
# Attention and feed-forward of the decoder; of the encoder every convolution.
TARGET_MODULES = [
    *("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"),
    *("stem.conv", "bottleneck.conv", "growth.conv", "projection.conv", "feature_proj"),
]
LEARNING_RATES = {True: 1e-3, False: 1e-4}  # with and without LoRA


@dataclass
class FinetuneArguments(LoopArguments):
    """Adapt a trained model to a writer or to new symbols. On the command line dictionaries are JSON."""

    model: str | None = field(
        default=None, metadata={"help": "Model folder or Hub id to start from; by default the shipped checkpoint."}
    )
    lora: bool = field(default=False, metadata={"help": "Train an adapter; without it, the whole model."})
    rank: int = field(default=8, metadata={"help": "Rank of the adapter."})
    alpha: int = field(default=16, metadata={"help": "The adapter's output is scaled by alpha / rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapter."})
    target_modules: list[str] = field(
        default_factory=lambda: list(TARGET_MODULES), metadata={"help": "Layers that get an adapter, by name."}
    )
    new_symbols: list[str] = field(
        default_factory=list,
        metadata={"help": "Tokens to add to the vocabulary, or auto: all that the training labels hold."},
    )
    eval_share: float = field(
        default=0.2, metadata={"help": "Share of train_data that is held out and measured; not with eval_data."}
    )
    eval_data: str | None = field(default=None, metadata={"help": "Formulas to measure before and after."})
    eval_steps: int = field(default=0, metadata={"help": "Steps between evaluations, 0: before and after only."})
    merge: bool = field(default=False, metadata={"help": "Also write OUTPUT_DIR/merged, which needs no peft."})
    augmentation: str = field(
        default='{"swap": 0.5, "rotation": 2.0, "shear": 0.15, "stretch": 0.15}',
        metadata={"help": "Strengths of InkAugmentation; {} draws ink as it is."},
    )
    zoom: list[float] = field(default_factory=lambda: [0.8, 1.25], metadata={"help": "Range of the size factor."})
    batch_size: int = field(default=8, metadata={"help": "Examples a step, over all processes."})
    max_pixels: int = field(default=2_000_000, metadata={"help": "Pixels a batch, before the processor's scale."})
    max_image_pixels: int = field(default=320_000, metadata={"help": "Ink that is drawn larger is left out."})
    max_steps: int = field(default=0, metadata={"help": "Steps; 0: 20 passes over the data, from 40 to 2000 steps."})
    learning_rate: float = field(default=0.0, metadata={"help": "Peak rate; 0: 1e-3 for LoRA, else 1e-4."})
    weight_decay: float = field(default=0.01, metadata={"help": "For matrices and kernels."})
    warmup_steps: int = field(default=10, metadata={"help": "Steps of linear warm-up."})
    decay_steps: int = field(default=0, metadata={"help": "Last steps, of falling rate; 0: half of all."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradient norm to clip at, 0 for none."})
    num_workers: int = field(default=0, metadata={"help": "Processes that prepare batches."})
    logging_steps: int = field(default=10, metadata={"help": "Steps between log lines."})
    save_steps: int = field(default=100, metadata={"help": "Steps between checkpoints; the last two are kept."})

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.eval_share < 1:
            raise ValueError(f"eval_share must be at least 0 and below 1, not {self.eval_share}.")
        if self.rank < 1 or self.alpha <= 0 or self.max_steps < 0:
            raise ValueError("rank must be at least 1, alpha above 0 and max_steps not negative.")
        if self.freeze_norms_at:
            raise ValueError("freeze_norms_at is for training from scratch; fine-tuning never moves BatchNorm.")

    def scaled_to(self, examples: int) -> "FinetuneArguments":
        """The same with everything that follows from the amount of data filled in."""
        passes = 20 * math.ceil(examples / self.batch_size)
        steps = self.max_steps or min(2000, max(40, passes))
        return replace(
            self,
            max_steps=steps,
            learning_rate=self.learning_rate or LEARNING_RATES[self.lora],
            decay_steps=self.decay_steps or steps // 2,
            eval_steps=self.eval_steps or steps,
        )


# ------------------------------------------------------------------------------------------------------------- data


def usable_images(rows):
    """Rows whose images can be opened; rows of ink as they are.

    Raises:
        ValueError: no image can be opened.
    """
    if "image" not in rows.column_names:
        return rows
    kept = []
    for index, (_, image) in enumerate(_images(rows)):
        if isinstance(image, ValueError):
            logger.warning("left out: %s", image)
        else:
            kept.append(index)
    if not kept:
        raise ValueError(f"none of the {len(rows)} images can be opened.")
    return rows.select(kept)


def as_read(rows, processor):
    """Rows with their images as reading prepares them: cleaned, cut to the ink, at the size of drawn ink.

    So photographs train what they are read as, and none is too large. Rows of ink stay as they are; images in which
    there is nothing to read are left out.
    """
    if "image" not in rows.column_names:
        return rows
    import datasets
    from PIL import Image

    kept, images = [], []
    for index, (name, image) in enumerate(tqdm(_images(rows), "Preparing images", len(rows), disable=None)):
        try:
            ink = processor(images=[image], scale=1.0)["pixel_values"][0, 0]
        except ValueError as error:
            logger.warning("left out: %s: %s", name, str(error).removeprefix("Image 0 cannot be read: "))
            continue
        kept.append(index)
        images.append(Image.fromarray((ink * 255).byte().numpy()))
    rows = rows.select(kept)
    columns = {name: rows[name][:] for name in rows.column_names if name != "image"}
    features = datasets.Features({**rows.features, "image": datasets.Image()})
    return datasets.Dataset.from_dict({**columns, "image": images}, features=features)


def _images(rows):
    """The name and the image of each row, or the ValueError that says why it cannot be opened."""
    import datasets

    from .inputs import to_image

    for row in rows.cast_column("image", datasets.Image(decode=False)):
        try:
            yield row["id"], to_image(row["image"]["bytes"] or row["image"]["path"], row["id"])
        except ValueError as error:
            yield row["id"], error


def missing_symbols(rows, vocabulary: dict[str, int], wanted: list[str]) -> list[str]:
    """The tokens to add: those `wanted`, or with "auto" all that the labels hold; the most frequent first.

    Raises:
        RecipeError: a wanted symbol is no token, or there are more than a vocabulary of formulas would need.
    """
    from .data.latex import LabelReport, tokenize

    if wanted != ["auto"]:
        for symbol in wanted:
            if tokenize(symbol) != [symbol]:
                raise RecipeError(
                    f"new_symbols: {symbol!r} is not one token; tokens are single characters and commands such as "
                    r"\Omega, or auto."
                )
        return [symbol for symbol in dict.fromkeys(wanted) if symbol not in vocabulary]
    report = LabelReport()
    for name, text in zip(rows["id"], rows["text"]):
        report.add(name, text, vocabulary)
    if len(report.unknown) > MAX_NEW_SYMBOLS:
        raise RecipeError(
            f"new_symbols: the labels hold {len(report.unknown)} unknown tokens, such as "
            f"{', '.join(list(report.unknown)[:5])}; are they LaTeX? More than {MAX_NEW_SYMBOLS} are not added."
        )
    return [symbol for symbol, _ in sorted(report.unknown.items(), key=lambda item: (-item[1], item[0]))]


def widened_processor(processor, symbols: list[str]):
    """The processor with `symbols` added after the tokens it has.

    Raises:
        ValueError: its tokenizer is none of `latex_tokenizer`, so that tokens would get other ids.
    """
    from .models.processing import TextProcessor
    from .models.tokenization import SPECIAL_TOKENS, latex_tokenizer

    vocabulary = processor.tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    tokenizer = latex_tokenizer([*tokens[len(SPECIAL_TOKENS) :], *symbols])
    if {token: tokenizer.get_vocab().get(token) for token in tokens} != vocabulary:
        raise ValueError("this model's tokenizer is not one of LaTeX tokens, so no symbols can be added to it.")
    return TextProcessor(processor.image_processor, tokenizer)


def comparable_labels(rows, vocabulary: dict[str, int]):
    """Rows to measure with, labels in normal form; one that the vocabulary cannot write stays, and counts as wrong."""
    from .data.readers import normalise_labels

    try:
        kept, _ = normalise_labels(rows, vocabulary)
    except ValueError:
        return rows
    written = dict(zip(kept["id"], kept["text"]))
    texts = [written.get(name, text) for name, text in zip(rows["id"], rows["text"])]
    return rows.remove_columns("text").add_column("text", texts)


def hold_out(rows, share: float, seed: int):
    """Rows to train on and rows to measure with, by chance; None for the latter where `share` is 0.

    Raises:
        ValueError: too few rows to divide.
    """
    import numpy as np

    if not share:
        return rows, None
    if len(rows) < 2:
        raise ValueError("one formula cannot be trained on and measured with; give eval_data, or --eval_share 0.")
    count = min(len(rows) - 1, max(1, round(share * len(rows))))
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows.select(sorted(order[count:])), rows.select(sorted(order[:count]))


# ------------------------------------------------------------------------------------------------------------ model


def prepare_model(model, args: FinetuneArguments, widened: bool):
    """Decide what is trained: an adapter, and embeddings and projection of a `widened` vocabulary; or everything.

    BatchNorm keeps its statistics, its scale and its shift in either case: a writer's few formulas would move them.

    Raises:
        RecipeError: target_modules names nothing.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.requires_grad_(False)
    if not args.lora:
        return model
    from peft import LoraConfig

    embeddings = ["embed_tokens", "lm_head"] if widened else None
    config = LoraConfig(
        r=args.rank,
        lora_alpha=args.alpha,
        lora_dropout=args.lora_dropout,
        target_modules=args.target_modules,
        modules_to_save=embeddings,
    )
    try:
        model.add_adapter(config)
    except ValueError as error:
        raise RecipeError(f"target_modules: {str(error).splitlines()[0]}") from None
    # peft would ask the Hub for the base's vocabulary, and store the embeddings a second time where it is another.
    model.peft_config["default"].base_model_name_or_path = None
    return model


def counts(model) -> dict[str, int | float]:
    """How many weights are trained, of how many that the model reads with."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen_copies = sum(p.numel() for name, p in model.named_parameters() if "original_module" in name)
    added = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    total = sum(p.numel() for p in model.parameters()) - frozen_copies - added
    return {"trained": trained, "parameters": total, "share": trained / total}


def saver(processor, base: str, lora: bool):
    """`save_extra` of the loop: the processor, and in an adapter the name of its base model."""

    def save(folder: Path):
        processor.save_pretrained(folder)
        if lora:
            file = folder / ADAPTER_CONFIG
            config = {**json.loads(file.read_text()), "base_model_name_or_path": base}
            config["target_modules"] = sorted(config["target_modules"])
            file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    return save


# ----------------------------------------------------------------------------------------------------------- results


def measure(model: str | Path | None, rows) -> dict:
    """Read `rows` with the checkpoint `model` as `epigraph.read` does; metrics and texts."""
    from .evaluation import evaluate_formulas
    from .metrics import token_error_rate
    from .reading import load

    measured = evaluate_formulas(*load(model), rows, progress=True)
    texts = [reading.text for reading in measured["readings"]]
    metrics = {name: measured["metrics"][name] for name in ("exprate", "exprate_1", "exprate_2", "exprate_symlg")}
    return {"metrics": {**metrics, "token_error_rate": token_error_rate(texts, rows["text"][:])}, "texts": texts}


def shareable(value: str) -> str:
    """An argument as a published card may show it: of a path on this machine, the last part."""
    from .evaluation import portable

    value = portable(value)
    return Path(value).name if Path(value).is_absolute() else value


def table(results: dict) -> str:
    """What was trained and what it changed, as Markdown."""
    weights, held_out = results["weights"], results.get("held_out")
    lines = [
        f"{results['method']}: {weights['trained']:,} of {weights['parameters']:,} weights trained "
        f"({100 * weights['share']:.1f} %), {results['steps']} steps on {results['examples']} formulas"
    ]
    if results["new_symbols"]:
        lines.append(f"new symbols: {' '.join(results['new_symbols'])}")
    if held_out:
        names = {"exprate": "ExpRate", "exprate_1": "≤ 1 error", "token_error_rate": "token errors"}
        lines += ["", f"| {held_out['n']} held-out formulas | {' | '.join(names.values())} |", "|---|---:|---:|---:|"]
        for when in ("before", "after"):
            cells = [f"{100 * held_out[when][name]:.1f} %" for name in names]
            lines.append(f"| {when} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_readings(path: Path, rows, before: list[str], after: list[str]) -> None:
    """One JSON line for each held-out formula: what was read before and after."""
    with path.open("w", encoding="utf-8") as file:
        for name, text, *read in zip(rows["id"], rows["text"], before, after):
            line = {"id": name, "text": text, "before": read[0], "after": read[1]}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


# -------------------------------------------------------------------------------------------------------------- main


def load_data(args: FinetuneArguments, rows, processor):
    """Rows to train on and rows to measure with (or None), from what was loaded; what is left out is logged."""
    from .data.readers import load_formulas, normalise_labels

    vocabulary = processor.tokenizer.get_vocab()
    rows, report = normalise_labels(rows, vocabulary)
    if report.unknown and not args.new_symbols:
        logger.warning("add --new_symbols auto to teach the model the %d unknown symbols, too", len(report.unknown))
    rows = usable_images(rows)
    if args.eval_data:
        held_out = comparable_labels(load_formulas(args.eval_data, args.eval_split), vocabulary)
    else:
        rows, held_out = hold_out(rows, args.eval_share, args.seed)
    if held_out is not None:
        held_out = held_out.select(range(min(len(held_out), args.eval_limit or len(held_out))))
    return as_read(rows, processor), held_out


def finetune(args: FinetuneArguments, command: str) -> dict:
    """Train as the arguments say; what stands in `OUTPUT_DIR/final/finetuning.json`.

    `OUTPUT_DIR/final` holds the adapter, or the model, with its processor; `readings.jsonl` beside it what was read
    in the held-out formulas before and after.

    Raises:
        ValueError: model or data cannot be used; one sentence. Also what `training.train` raises.
    """
    import epigraph  # noqa: F401  registers the Auto classes

    from .cards import weights_sha256
    from .pretraining import training_rows
    from .reading import checkpoint_folder, default_checkpoint, load
    from .training import train

    refuse_existing(args)
    set_seed(args.seed)
    name = args.model or default_checkpoint("maths")
    folder = checkpoint_folder(name)
    if is_adapter(folder):
        raise ValueError(f"{name} is an adapter; start from its base model, or from a folder that --merge wrote.")
    base = str(folder.resolve()) if Path(name).expanduser().is_dir() else name
    model, processor = load(folder, None, "cpu")
    rows = training_rows(args.train_data, args.train_split)
    symbols = missing_symbols(rows, processor.tokenizer.get_vocab(), args.new_symbols) if args.new_symbols else []
    if symbols:
        processor = widened_processor(processor, symbols)
        model.widen_vocabulary(processor.tokenizer.get_vocab())
        logger.warning("%d new symbols: %s", len(symbols), " ".join(symbols))
    rows, held_out = load_data(args, rows, processor)

    args = args.scaled_to(len(rows))
    model = prepare_model(model, args, bool(symbols))
    loader = formula_loader(rows, processor, args)
    if dropped := len(rows) - int(loader.batches.usable.sum()):
        logger.warning("%d of %d formulas are larger than max_image_pixels or max_label_length", dropped, len(rows))
    results = {
        "method": "LoRA" if args.lora else "full fine-tuning",
        "command": command,
        "base_model": shareable(base),
        "base_weights_sha256": weights_sha256(folder),
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("epigraph", "torch", "transformers", "peft")},
        "weights": counts(model),
        "examples": len(rows) - dropped,
        "steps": args.max_steps,
        "learning_rate": args.learning_rate,
        "new_symbols": symbols,
    }
    before = measure(folder, held_out) if held_out is not None and first_process() else None
    evaluate = None
    if held_out is not None and args.eval_steps < args.max_steps:
        evaluate = reading_evaluation(held_out, processor, None)
    started = time.process_time()
    train(model, loader, args, evaluate, saver(processor, base, args.lora))
    results["cpu_seconds"] = time.process_time() - started
    if first_process():
        conclude(args, results, held_out, before)
    return results


def conclude(args: FinetuneArguments, results: dict, held_out, before: dict | None) -> None:
    """Measure what was saved, write what was measured, merge."""
    from .evaluation import write_json
    from .reading import load

    folder = Path(args.output_dir)
    if before:
        after = measure(folder / "final", held_out)
        results["held_out"] = {"n": len(held_out), "before": before["metrics"], "after": after["metrics"]}
        write_readings(folder / "readings.jsonl", held_out, before["texts"], after["texts"])
    write_json(folder / "final" / ADAPTER_RESULTS, results)
    if args.merge:
        model, processor = load(folder / "final", None, "cpu")

        def write(target: Path):
            model.save_pretrained(target)
            processor.save_pretrained(target)

        save_atomically(folder / "merged", write)


def first_process() -> bool:
    """Whether this process measures and writes; under `accelerate launch` there may be others."""
    from accelerate import PartialState

    return PartialState().is_main_process


def main(argv: list[str] | None = None) -> None:
    """`epigraph finetune` and scripts/finetune.py; see `FinetuneArguments`."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    argv = sys.argv[1:] if argv is None else argv
    args = parse_recipe(argv, FinetuneArguments)
    command = shlex.join(["python", "scripts/finetune.py", *map(shareable, argv)])
    results = finetune(args, command)
    if first_process():
        print(table(results))
        print(f"\nTry it: epigraph read --model {Path(args.output_dir) / 'final'} FILE")


__all__ = ["FinetuneArguments", "finetune", "main"]
