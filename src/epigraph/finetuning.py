"""Fine-tuning: a trained model takes up a writer's hand, new symbols or a domain of words, as a whole or in a small
adapter (LoRA).

    python scripts/finetune.py --lora --train_data my_folder --output_dir runs/me

The loop is that of `training`. What is left to it here: what is trained and what stays, and the measurement of
held-out examples before and after. The examples are those of `finetuning_formulas` and `finetuning_words`.
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
from transformers.trainer_utils import set_seed

from .adapters import ADAPTER_CONFIG, ADAPTER_RESULTS, is_adapter
from .data.words import Half
from .finetuning_formulas import FormulaTuning
from .finetuning_words import WordTuning
from .training import LoopArguments, RecipeError, parse_recipe, refuse_existing, save_atomically

logger = logging.getLogger(__name__)

# What a type of model is fine-tuned on.
TUNINGS = {"comer": FormulaTuning, "e2str": WordTuning}
LEARNING_RATES = {True: 1e-3, False: 1e-4}  # with and without LoRA
TITLES = {
    "exprate": "ExpRate",
    "exprate_1": "≤ 1 error",
    "token_error_rate": "token errors",
    "word_accuracy": "word accuracy",
    "ned": "1-NED",
}


@dataclass
class FinetuneArguments(LoopArguments):
    """Adapt a trained model to a writer, to new symbols or to a domain of words. On the command line dictionaries are
    JSON.
    """

    model: str | None = field(
        default=None,
        metadata={"help": "Model folder or Hub id to start from; by default the shipped one for formulas."},
    )
    lora: bool = field(default=False, metadata={"help": "Train an adapter; without it, the whole model."})
    rank: int = field(default=8, metadata={"help": "Rank of the adapter."})
    alpha: int = field(default=16, metadata={"help": "The adapter's output is scaled by alpha / rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapter."})
    target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Names of layers that get an adapter; by default attention, feed-forward, convolutions."},
    )
    source: str | None = field(default=None, metadata={"help": "Of words: train on rows of this source only."})
    half: Half | None = field(
        default=None, metadata={"help": "Of words: train on this half of them only, so that the other can measure."}
    )
    train_limit: int | None = field(
        default=None, metadata={"help": "Use so many rows of train_data only, drawn by chance from seed."}
    )
    new_symbols: list[str] = field(
        default_factory=list,
        metadata={"help": "Tokens to add to the vocabulary, or auto: all that the training labels hold."},
    )
    eval_share: float = field(
        default=0.2, metadata={"help": "Share of train_data that is held out and measured; not with eval_data."}
    )
    eval_data: str | None = field(default=None, metadata={"help": "Data to measure before and after."})
    eval_steps: int = field(default=0, metadata={"help": "Steps between evaluations, 0: before and after only."})
    merge: bool = field(default=False, metadata={"help": "Also write OUTPUT_DIR/merged, which needs no peft."})
    augmentation: str | None = field(
        default=None,
        metadata={"help": "Strengths of InkAugmentation or WordAugmentation; {} leaves inputs as they are."},
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
        if self.train_limit is not None and self.train_limit < 1:
            raise ValueError(f"train_limit must be at least 1, not {self.train_limit}.")
        if not all(isinstance(path, str) for path in self.train_data):
            raise ValueError("train_data takes paths alone; source and half say which of the words.")
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


def drawn(rows, count: int | None, seed: int):
    """So many of the rows, drawn by chance, in their order; all where there are no more."""
    import numpy as np

    if count is None or count >= len(rows):
        return rows
    return rows.select(sorted(np.random.default_rng(seed).permutation(len(rows))[:count]))


def hold_out(rows, share: float, seed: int):
    """Rows to train on and rows to measure with, by chance; None for the latter where `share` is 0.

    What has one name before a `#`, as the words of one receipt, stays together.

    Raises:
        ValueError: too few rows to divide.
    """
    import numpy as np

    if not share:
        return rows, None
    groups = {}
    for index, name in enumerate(rows["id"]):
        groups.setdefault(str(name).split("#")[0], []).append(index)
    if len(groups) < 2:
        raise ValueError("one example cannot be trained on and measured with; give eval_data, or --eval_share 0.")
    count, groups, held_out = max(1, round(share * len(rows))), list(groups.values()), []
    for place in np.random.default_rng(seed).permutation(len(groups))[:-1]:
        if len(held_out) >= count:
            break
        held_out += groups[place]
    return rows.select(sorted(set(range(len(rows))) - set(held_out))), rows.select(sorted(held_out))


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


def shareable(value: str) -> str:
    """An argument as a published card may show it: of a path on this machine, the last part."""
    from .evaluation import portable

    value = portable(value)
    return Path(value).name if Path(value).is_absolute() else value


def table(results: dict) -> str:
    """What was trained and what it changed, as Markdown."""
    weights, held_out, unit = results["weights"], results.get("held_out"), results.get("unit", "formulas")
    lines = [
        f"{results['method']}: {weights['trained']:,} of {weights['parameters']:,} weights trained "
        f"({100 * weights['share']:.1f} %), {results['steps']} steps on {results['examples']} {unit}"
    ]
    if results["new_symbols"]:
        lines.append(f"new symbols: {' '.join(results['new_symbols'])}")
    if held_out:
        names = {name: title for name, title in TITLES.items() if name in held_out["before"]}
        lines += ["", f"| {held_out['n']} held-out {unit} | {' | '.join(names.values())} |"]
        lines += ["|---|" + "---:|" * len(names)]
        for when in ("before", "after"):
            cells = [f"{100 * held_out[when][name]:.1f} %" for name in names]
            lines.append(f"| {when} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_readings(path: Path, rows, before: list[str], after: list[str]) -> None:
    """One JSON line for each held-out example: what was read before and after."""
    with path.open("w", encoding="utf-8") as file:
        for name, text, *read in zip(rows["id"], rows["text"], before, after):
            line = {"id": name, "text": text, "before": read[0], "after": read[1]}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


# -------------------------------------------------------------------------------------------------------------- main


def finetune(args: FinetuneArguments, command: str) -> dict:
    """Train as the arguments say; what stands in `OUTPUT_DIR/final/finetuning.json`.

    `OUTPUT_DIR/final` holds the adapter, or the model, with its processor; `readings.jsonl` beside it what was read
    in the held-out examples before and after.

    Raises:
        ValueError: model or data cannot be used; one sentence. Also what `training.train` raises.
    """
    import epigraph  # noqa: F401  registers the Auto classes

    from .cards import weights_sha256
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
    tuning = TUNINGS[model.config.model_type](args, model, processor)
    rows, held_out = drawn(tuning.rows, args.train_limit, args.seed), tuning.held_out
    if held_out is None:
        rows, held_out = hold_out(rows, args.eval_share, args.seed)
    if held_out is not None:
        held_out = held_out.select(range(min(len(held_out), args.eval_limit or len(held_out))))
    augmentation = tuning.augmentation if args.augmentation is None else args.augmentation
    targets = args.target_modules or tuning.target_modules
    args = replace(args, augmentation=augmentation, target_modules=targets)
    loader, examples = tuning.loader(rows, args)
    args = args.scaled_to(examples)
    model = prepare_model(model, args, bool(tuning.new_symbols))
    results = {
        "method": "LoRA" if args.lora else "full fine-tuning",
        "unit": tuning.unit,
        "command": command,
        "base_model": shareable(base),
        "base_weights_sha256": weights_sha256(folder),
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("epigraph", "torch", "transformers", "peft")},
        "weights": counts(model),
        "examples": examples,
        "steps": args.max_steps,
        "learning_rate": args.learning_rate,
        "new_symbols": list(tuning.new_symbols),
    }
    before = tuning.measure(folder, held_out) if held_out is not None and first_process() else None
    evaluate = None
    if held_out is not None and args.eval_steps < args.max_steps:
        evaluate = tuning.evaluation(held_out, args)
    started = time.process_time()
    train(model, loader, args, evaluate, saver(tuning.processor, base, args.lora))
    results["cpu_seconds"] = time.process_time() - started
    if first_process():
        conclude(args, results, tuning, held_out, before)
    return results


def conclude(args: FinetuneArguments, results: dict, tuning, held_out, before: dict | None) -> None:
    """Measure what was saved, write what was measured, merge."""
    from .evaluation import write_json
    from .reading import load

    folder = Path(args.output_dir)
    if before:
        after = tuning.measure(folder / "final", held_out)
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
