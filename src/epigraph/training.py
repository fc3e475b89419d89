"""The training loop: any model that returns `.loss` trains with it, on one process or many, and resumes exactly.

    accelerate launch scripts/pretrain.py --recipe recipes/comer_crohme.yaml

The order of the data is a function of (seed, epoch), every variation of an example one of (seed, epoch, example), and
a checkpoint holds everything else: a run that is killed goes on to the same losses.
"""

import argparse
import json
import logging
import math
import re
import shutil
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, HfArgumentParser
from transformers.trainer_utils import set_seed

logger = logging.getLogger(__name__)


_CHOICES = {
    "optimizer": ("adamw", "sgd"),
    "mixed_precision": ("no", "bf16", "fp16"),
    "save_dtype": ("float32", "float16", "bfloat16"),
}


@dataclass
class PretrainArguments:
    """What a recipe may say. On the command line dictionaries are JSON."""

    output_dir: str = field(metadata={"help": "Folder for checkpoints, logs and the trained model."})
    train_data: str = field(metadata={"help": "Parquet file or folder in the formula schema; ${VARIABLES} expand."})
    model: str = field(
        default="{}", metadata={"help": "Configuration with its model_type, or a folder to go on from."}
    )
    processor: str = field(default="{}", metadata={"help": "Settings of a new processor."})
    train_split: str | None = field(default=None, metadata={"help": "Rows of this split only."})
    eval_data: str | None = field(default=None, metadata={"help": "Data for model selection; never the test set."})
    eval_split: str | None = field(default=None, metadata={"help": "Rows of this split only."})
    eval_steps: int = field(default=1000, metadata={"help": "Steps between evaluations."})
    eval_limit: int | None = field(default=None, metadata={"help": "Evaluate on the first rows only."})
    augmentation: str = field(default="{}", metadata={"help": "Strengths of InkAugmentation; {} draws ink as it is."})
    zoom: list[float] = field(default_factory=lambda: [0.7, 1.4], metadata={"help": "Range of the size factor."})
    batch_size: int = field(default=32, metadata={"help": "Examples a step, over all processes."})
    max_pixels: int = field(default=320_000, metadata={"help": "Pixels a batch, before the processor's scale."})
    max_image_pixels: int = field(default=320_000, metadata={"help": "Larger training images are left out."})
    max_label_length: int = field(default=200, metadata={"help": "Longer training labels are left out."})
    accumulate: int = field(default=1, metadata={"help": "Batches whose gradients make one step."})
    max_steps: int = field(default=100_000, metadata={"help": "Optimiser steps of the run."})
    optimizer: str = field(default="adamw", metadata={"help": "adamw or sgd (momentum 0.9)."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=1e-4, metadata={"help": "For matrices and kernels."})
    warmup_steps: int = field(default=500, metadata={"help": "Steps of linear warm-up."})
    decay_steps: int = field(default=0, metadata={"help": "Last steps, over which the rate falls linearly to zero."})
    freeze_norms_at: int = field(
        default=0, metadata={"help": "Step from which BatchNorm keeps its statistics, as in reading; 0 for never."}
    )
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradient norm to clip at, 0 for none."})
    ema_decay: float = field(default=0.0, metadata={"help": "Decay of the weight average that is kept, 0 for none."})
    mixed_precision: str = field(default="no", metadata={"help": "no, bf16 or fp16."})
    seed: int = field(default=7, metadata={"help": "Of weights, order and variation."})
    num_workers: int = field(default=2, metadata={"help": "Processes that prepare batches."})
    logging_steps: int = field(default=50, metadata={"help": "Steps between log lines."})
    save_dtype: str = field(default="float32", metadata={"help": "Of the weights in best and final; float16 halves."})
    save_steps: int = field(default=1000, metadata={"help": "Steps between checkpoints; the last two are kept."})
    resume: bool = field(default=False, metadata={"help": "Go on from the newest checkpoint in output_dir."})

    def __post_init__(self):
        for name in ("model", "processor", "augmentation"):
            value = getattr(self, name)
            if isinstance(value, str) and value.lstrip().startswith("{"):
                setattr(self, name, json.loads(value))
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}.")


class RecipeError(ValueError):
    """A recipe that cannot be run."""


def parse_recipe(argv: list[str], arguments: type = PretrainArguments):
    """Arguments of a recipe file, overridden by those of the command line.

    Raises:
        RecipeError: no such file, not a mapping, an unknown key, an unset variable.
    """
    parser = HfArgumentParser(arguments, description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", help="YAML file of the arguments below.")
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--recipe")
    recipe = finder.parse_known_args(argv)[0].recipe
    if recipe is not None:
        values = read_recipe(Path(recipe), {f.name for f in fields(arguments)})
        parser.set_defaults(**values)
        for action in parser._actions:
            action.required = action.required and action.dest not in values
    namespace = vars(parser.parse_args(argv))
    namespace.pop("recipe")
    try:
        return arguments(**namespace)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{recipe or 'command line'}: {error}") from None


def read_recipe(path: Path, names: set[str]) -> dict:
    """The values of a recipe, whose keys must be among `names`; see `parse_recipe` for the errors."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}).") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid YAML ({error}).") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of argument names to values.")
    if unknown := sorted(set(map(str, values)) - names):
        raise RecipeError(f"{path}: unknown key {', '.join(unknown)}; known are {', '.join(sorted(names))}.")
    return values


@dataclass
class Progress:
    """Where a run stands; `batch` counts within the epoch."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best: float = -math.inf
    examples: int = 0
    loss_sum: float = 0.0  # since the last log line, so that a resumed run logs the same means
    loss_steps: int = 0

    def state_dict(self) -> dict:
        return dict(vars(self))

    def load_state_dict(self, state: dict):
        vars(self).update(state)


def build_optimizer(model: torch.nn.Module, args: PretrainArguments) -> torch.optim.Optimizer:
    """AdamW, without decay of norms, biases and embeddings; or SGD as CoMER used it, decay on everything."""
    if args.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=args.learning_rate, momentum=0.9, weight_decay=args.weight_decay)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    parameters = list(model.parameters())
    decayed = [p for p in parameters if p.ndim > 1 and id(p) not in embeddings]
    plain = [p for p in parameters if p.ndim < 2 or id(p) in embeddings]
    groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.learning_rate, weight_decay=args.weight_decay)


def learning_rate_factor(step: int, args: PretrainArguments) -> float:
    """Linear warm-up, a constant rate, and a linear fall over the last `decay_steps`."""
    rise = min(1.0, (step + 1) / max(1, args.warmup_steps))
    fall = min(1.0, (args.max_steps - step) / max(1, args.decay_steps))
    return max(0.0, min(rise, fall))


def save_atomically(folder: Path, write) -> None:
    """Let `write` fill a temporary folder, then put it in the place of `folder`: a crash or full disk loses nothing.

    Raises:
        OSError: naming the folder; what stood there stands there still.
    """
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        if folder.exists():
            old = folder.with_name(f".{folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
            temporary.rename(folder)
            shutil.rmtree(old)
        else:
            temporary.rename(folder)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(f"{folder}: could not be saved ({error}); what was there before is unchanged.") from error


def freeze_norms(model: torch.nn.Module, statistics: torch.nn.Module | None) -> None:
    """Let BatchNorm normalise by its running statistics from now on, taken from `statistics` (a weight average).

    Batches of images of like size have statistics of their own, which a model learns to lean on and which are not
    there when it reads: measured on CoMER after 64,000 images, loss 0.34 by batch and 0.80 by running statistics.
    """
    norms = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)}
    for name, norm in norms.items():
        norm.eval()
        if statistics is not None:
            for buffer, value in statistics.get_submodule(name).named_buffers():
                getattr(norm, buffer).copy_(value)


def checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def keep_until(metrics_file: Path, step: int) -> None:
    """Drop what a killed run logged after the checkpoint that is resumed: it is logged again."""
    if metrics_file.exists():
        lines = [line for line in metrics_file.read_text().splitlines() if json.loads(line)["step"] <= step]
        metrics_file.write_text("".join(f"{line}\n" for line in lines))


def train(model, loader, args: PretrainArguments, evaluate=None, save_extra=None) -> Progress:
    """Trains `model` in place.

    Args:
        model: returns `.loss`, takes `num_items_in_batch`, and counts them in `num_loss_items(labels)`.
        loader: `loader(epoch, start, rank, world)` iterates over a process's share of an epoch; `FormulaLoader`.
        args: what to do.
        evaluate: `evaluate(model) -> dict` of numbers; `selection` among them, higher is better, picks the best.
        save_extra: `save_extra(folder)` puts what belongs beside the weights (the processor) into a saved folder.

    Returns:
        Where the run ended. `output_dir/best` holds the best evaluated model, `output_dir/final` the last.
    """
    from accelerate import Accelerator
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
    from tqdm.auto import tqdm

    output_dir = Path(args.output_dir)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        log_with="tensorboard",
        project_dir=str(output_dir),
        step_scheduler_with_optimizer=False,
    )
    optimizer = build_optimizer(model, args)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, args))
    average = None
    if args.ema_decay:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(args.ema_decay), use_buffers=True)
        average.to(accelerator.device)
        accelerator.register_for_checkpointing(average)
    count_items = model.num_loss_items
    model.to(memory_format=torch.channels_last)  # convolutions on CPUs and tensor cores are fastest so
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    progress = Progress()
    accelerator.register_for_checkpointing(progress)

    existing = checkpoints(output_dir)
    if existing and not args.resume:
        raise RecipeError(f"{output_dir} already holds checkpoints; add --resume, or choose another output_dir.")
    if existing:
        accelerator.load_state(str(existing[-1]))
        logger.info("resumed from %s", existing[-1])
    accelerator.init_trackers("logs")
    metrics_file = output_dir / "metrics.jsonl"
    if accelerator.is_main_process:
        keep_until(metrics_file, progress.step)

    def log(values: dict) -> None:
        if accelerator.is_main_process:
            accelerator.log({k: v for k, v in values.items() if k != "step"}, step=progress.step)
            with metrics_file.open("a") as file:
                file.write(json.dumps({"step": progress.step, **values}) + "\n")

    dtype = getattr(torch, args.save_dtype)

    def trained():
        return average.module if average is not None else accelerator.unwrap_model(model)

    def save_model(name: str) -> None:
        def write(folder: Path):
            # The configuration keeps saying float32: half precision is for the disk, not for reading on a CPU.
            half = {n: t.to(dtype) if t.is_floating_point() else t for n, t in trained().state_dict().items()}
            trained().save_pretrained(folder, state_dict=half)
            if save_extra is not None:
                save_extra(folder)

        if accelerator.is_main_process:
            save_atomically(output_dir / name, write)

    def save_checkpoint() -> None:
        folder = output_dir / f"checkpoint-{progress.step}"
        partial = folder.with_name(f".{folder.name}.partial")
        progress.loss_sum = accelerator.reduce(running, "mean").item()
        try:
            accelerator.save_state(str(partial))  # every process writes its random state
        except Exception as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise OSError(f"{folder}: could not be saved ({error}); earlier checkpoints are unchanged.") from error
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
            for old in checkpoints(output_dir)[:-2]:
                shutil.rmtree(old)
        accelerator.wait_for_everyone()

    def run_evaluation() -> None:
        if evaluate is None:
            return
        if accelerator.is_main_process:
            network = trained()
            training = network.training
            values = evaluate(network.eval())
            network.train(training)
            log({f"eval_{name}": value for name, value in values.items()})
            tqdm.write(f"step {progress.step}: " + ", ".join(f"{k} {v:.4f}" for k, v in values.items()))
            if values["selection"] > progress.best:
                progress.best = values["selection"]
                save_model("best")
        accelerator.wait_for_everyone()

    hidden = not accelerator.is_main_process
    bar = tqdm(total=args.max_steps, initial=progress.step, disable=hidden, dynamic_ncols=True)
    running, started = torch.tensor(progress.loss_sum, device=accelerator.device), time.perf_counter()
    model.train()
    if args.freeze_norms_at and progress.step > args.freeze_norms_at:
        freeze_norms(accelerator.unwrap_model(model), None)
    while progress.step < args.max_steps:
        batches = loader(progress.epoch, progress.batch, accelerator.process_index, accelerator.num_processes)
        while progress.step < args.max_steps:
            window = [batch for _, batch in zip(range(args.accumulate), batches)]
            if not window:
                break
            if args.freeze_norms_at and progress.step == args.freeze_norms_at:
                freeze_norms(accelerator.unwrap_model(model), average and average.module)
            window = [{name: tensor.to(accelerator.device) for name, tensor in batch.items()} for batch in window]
            items = torch.tensor([sum(count_items(batch["labels"]) for batch in window)], device=accelerator.device)
            # Processes average their gradients: dividing by the mean count makes that the mean over all tokens.
            items = accelerator.reduce(items.float(), "mean").item()
            for position, batch in enumerate(window):
                last = position == len(window) - 1
                with nullcontext() if last else accelerator.no_sync(model):
                    with accelerator.autocast():
                        loss = model(**batch, num_items_in_batch=items).loss
                    accelerator.backward(loss)
                running += loss.detach()
            if args.max_grad_norm:
                accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            if average is not None:
                average.update_parameters(accelerator.unwrap_model(model))
            progress.step += 1
            progress.batch += len(window)
            progress.examples += sum(len(batch["labels"]) for batch in window) * accelerator.num_processes
            progress.loss_steps += 1
            bar.update()
            if progress.step % args.logging_steps == 0:
                value = accelerator.reduce(running, "mean").item() / progress.loss_steps
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"The loss is {value} at step {progress.step}; lower the learning rate or clip gradients "
                        f"(max_grad_norm), and resume from {output_dir}."
                    )
                rate = scheduler.get_last_lr()[0]
                counts = {"epoch": progress.epoch, "examples": progress.examples}
                log({"loss": value, "learning_rate": rate, **counts, "seconds": time.perf_counter() - started})
                bar.set_postfix(loss=f"{value:.3f}", lr=f"{rate:.1e}", epoch=progress.epoch)
                running.zero_()
                progress.loss_steps = 0
            if progress.step % args.eval_steps == 0 and progress.step < args.max_steps:
                run_evaluation()
            if progress.step % args.save_steps == 0 and progress.step < args.max_steps:
                save_checkpoint()
        else:
            break
        progress.epoch, progress.batch = progress.epoch + 1, 0
    bar.close()
    run_evaluation()
    save_checkpoint()
    save_model("final")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return progress


def reading_evaluation(rows, processor, limit: int | None):
    """`evaluate(model)` for `train`: greedy expression rates on held-out rows; ExpRate selects the best model."""
    from .evaluation import evaluate_formulas

    rows = rows.select(range(min(limit or len(rows), len(rows))))

    def evaluate(model) -> dict[str, float]:
        metrics = evaluate_formulas(model, processor, rows, batch_size=16, num_beams=1, direction="l2r")["metrics"]
        return {**metrics, "selection": metrics["exprate"]}

    return evaluate


def main(argv: list[str] | None = None) -> None:
    """Trains what a recipe says; see `PretrainArguments`."""
    import epigraph  # noqa: F401  registers the Auto classes

    from .data.collate import FormulaBatches, FormulaDataset, FormulaLoader
    from .data.ink import InkAugmentation
    from .data.readers import load_formulas, normalise_labels
    from .models.grammar_comer import grammar_from_vocabulary
    from .models.processing import comer_processor

    args = parse_recipe(sys.argv[1:] if argv is None else argv)
    set_seed(args.seed)
    if isinstance(args.model, dict):
        if "model_type" not in args.model:
            raise RecipeError("The recipe's model needs a model_type, or is the folder of a model to go on from.")
        processor = comer_processor(**args.processor)
        vocabulary = processor.tokenizer.get_vocab()
        settings = {"vocab_size": len(vocabulary), "grammar": grammar_from_vocabulary(vocabulary), **args.model}
        model = AutoModel.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
    else:
        processor = AutoProcessor.from_pretrained(args.model)
        model = AutoModel.from_pretrained(args.model, dtype=torch.float32)

    vocabulary = processor.tokenizer.get_vocab()
    rows, report = normalise_labels(load_formulas(args.train_data, args.train_split), vocabulary)
    logger.info("%s", report)
    augmentation = InkAugmentation(**args.augmentation) if args.augmentation else None
    dataset = FormulaDataset(rows, augmentation, args.seed)
    lengths = [len(text.split()) for text in dataset.texts]
    zoom = tuple(args.zoom) if augmentation is not None else (1.0, 1.0)
    limits = (args.batch_size, args.max_pixels, args.max_label_length, args.max_image_pixels)
    batches = FormulaBatches(dataset.sizes(), lengths, *limits, args.seed, zoom)
    evaluate = None
    if args.eval_data:
        # Not normalised: a label that the vocabulary cannot write counts as wrong.
        evaluate = reading_evaluation(load_formulas(args.eval_data, args.eval_split), processor, args.eval_limit)

    loader = FormulaLoader(dataset, batches, processor, args.num_workers)
    train(model, loader, args, evaluate, processor.save_pretrained)


if __name__ == "__main__":
    main()
