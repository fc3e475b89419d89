"""The training loop: any model that returns `.loss` trains with it, on one process or many, and resumes exactly.

Which models and data it is given stands in `pretraining`. The order of the data is a function of (seed, epoch), every
variation of an example one of (seed, epoch, example), and a checkpoint holds everything else: a run that is killed
goes on to the same losses.
"""

import argparse
import json
import math
import re
import shutil
import sys
import time
from contextlib import nullcontext
from dataclasses import MISSING, dataclass, field, fields
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from tqdm.auto import tqdm
from transformers import HfArgumentParser

_CHOICES = {
    "optimizer": ("adamw", "sgd"),
    "schedule": ("linear", "cosine"),
    "mixed_precision": ("no", "bf16", "fp16"),
    "save_dtype": ("float32", "float16", "bfloat16"),
}


@dataclass
class LoopArguments:
    """What the training loop and its data take."""

    output_dir: str = field(metadata={"help": "Folder for checkpoints, logs and the trained model."})
    train_data: list[str] = field(
        metadata={
            "help": "Files or folders of formulas, images or words, one or several; ${VARIABLES} expand. Of words "
            "also mappings of path, split, source, weight and held_out."
        }
    )
    train_split: str | None = field(default=None, metadata={"help": "Rows of this split only."})
    eval_data: str | None = field(default=None, metadata={"help": "Data for model selection; never the test set."})
    eval_split: str | None = field(default=None, metadata={"help": "Rows of this split only."})
    eval_steps: int = field(default=1000, metadata={"help": "Steps between evaluations."})
    eval_limit: int | None = field(
        default=None,
        metadata={
            "help": "Evaluate on so many rows only: the first ones, or of images and of each source of words evenly "
            "chosen ones."
        },
    )
    augmentation: str = field(
        default="{}",
        metadata={
            "help": "Strengths of InkAugmentation, ImageAugmentation, WordAugmentation; {} leaves inputs as they are."
        },
    )
    zoom: list[float] = field(
        default_factory=lambda: [0.7, 1.4], metadata={"help": "Range of the size factor of formulas."}
    )
    batch_size: int = field(default=32, metadata={"help": "Examples a step, over all processes."})
    max_pixels: int = field(
        default=320_000, metadata={"help": "Pixels a batch of formulas, before the processor's scale."}
    )
    max_image_pixels: int = field(default=320_000, metadata={"help": "Larger formulas are left out of training."})
    max_label_length: int = field(default=200, metadata={"help": "Longer formulas are left out of training."})
    accumulate: int = field(default=1, metadata={"help": "Batches whose gradients make one step."})
    max_steps: int = field(default=100_000, metadata={"help": "Optimiser steps of the run."})
    optimizer: str = field(default="adamw", metadata={"help": "adamw or sgd (momentum 0.9)."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=1e-4, metadata={"help": "For matrices and kernels."})
    warmup_steps: int = field(default=500, metadata={"help": "Steps of linear warm-up."})
    decay_steps: int = field(default=0, metadata={"help": "Last steps, over which the rate falls to zero."})
    schedule: str = field(default="linear", metadata={"help": "Shape of that fall: linear or cosine."})
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
        if isinstance(self.train_data, str | Path | dict):
            self.train_data = [self.train_data]
        self.train_data = [str(data) if isinstance(data, Path) else parsed(data) for data in self.train_data or ()]
        if not self.train_data or not all(isinstance(data, str | dict) for data in self.train_data):
            raise ValueError(f"train_data must be a path or a list of paths, not {self.train_data!r}.")
        self.augmentation = parsed(self.augmentation)
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}.")


@dataclass
class PretrainArguments(LoopArguments):
    """Train a model from a recipe. On the command line dictionaries are JSON."""

    model: str = field(
        default="{}", metadata={"help": "Configuration with its model_type, or a folder to go on from."}
    )
    processor: str = field(default="{}", metadata={"help": "Settings of a new processor."})
    task: str | None = field(
        default=None,
        metadata={
            "help": "comer: formulas; e2str: words; pixelvit: classification (default), or pixels: hidden ones are "
            "predicted."
        },
    )
    images_per_sequence: int = field(
        default=1, metadata={"help": "Of words: 1 trains on single images; more, in context, on so many at most."}
    )
    alike: float = field(
        default=0.0, metadata={"help": "Share of sequences with words of one font, all with digits or all without."}
    )
    exchange: float = field(
        default=0.0, metadata={"help": "Share of sequences in which some characters stand for others."}
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={"help": "eager, sdpa, blocked ...; by default sdpa, or blocked for images in bf16 on CPUs."},
    )

    def __post_init__(self):
        self.model, self.processor = parsed(self.model), parsed(self.processor)
        if isinstance(self.model, dict) and "model_type" not in self.model:
            raise ValueError("model needs a model_type, or is the folder of a model to go on from.")
        super().__post_init__()


def parsed(value):
    """A dictionary written as JSON on the command line; anything else as it is."""
    return json.loads(value) if isinstance(value, str) and value.lstrip().startswith("{") else value


class RecipeError(ValueError):
    """A recipe that cannot be run."""


def parse_recipe(argv: list[str], arguments: type = PretrainArguments):
    """Arguments, those of a dataclass, of a recipe file, overridden by those of the command line.

    Raises:
        RecipeError: no such file, not a mapping, an unknown key, a value that cannot be.
    """
    parser = HfArgumentParser(arguments, description=arguments.__doc__)
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


def build_optimizer(model: torch.nn.Module, args: LoopArguments) -> torch.optim.Optimizer:
    """AdamW, with decay of matrices and kernels alone; or SGD as CoMER used it, decay on everything.

    What AdamW leaves as it is: norms, biases, embeddings, and what is no layer's `weight`, such as position tables,
    extra tokens and learned rotary frequencies. Parameters that need no gradient are left out.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if args.optimizer == "sgd":
        return torch.optim.SGD(
            parameters.values(), lr=args.learning_rate, momentum=0.9, weight_decay=args.weight_decay
        )
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    matrices = {n for n, p in parameters.items() if n.endswith(".weight") and p.ndim > 1 and id(p) not in embeddings}
    decayed = [parameter for name, parameter in parameters.items() if name in matrices]
    plain = [parameter for name, parameter in parameters.items() if name not in matrices]
    groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.learning_rate, weight_decay=args.weight_decay)


def learning_rate_factor(step: int, args: LoopArguments) -> float:
    """Linear warm-up, a constant rate, and a fall over the last `decay_steps`."""
    rise = min(1.0, (step + 1) / max(1, args.warmup_steps))
    fall = min(1.0, (args.max_steps - step) / max(1, args.decay_steps))
    if args.schedule == "cosine":
        fall = (1 - math.cos(math.pi * fall)) / 2
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
            try:
                temporary.rename(folder)
            except OSError:
                old.rename(folder)
                raise
            shutil.rmtree(old)
        else:
            temporary.rename(folder)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(f"{folder}: could not be saved ({error}); what was there before is unchanged.") from error


def freeze_norms(model: torch.nn.Module, statistics: torch.nn.Module | None) -> None:
    """Let BatchNorm normalise by its running statistics from now on, taken from `statistics` (a weight average).

    Batches of images of like size have statistics of their own, which a model learns to lean on and which are not
    there when it reads.
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


def changed(arguments, names) -> list[str]:
    """Which of these fields of a dataclass are not what they are by default."""
    defaults = {
        f.name: f.default if f.default is not MISSING else f.default_factory()
        for f in fields(arguments)
        if f.name in names
    }
    return [name for name, default in defaults.items() if getattr(arguments, name) != default]


def refuse_existing(args: LoopArguments) -> None:
    """Raise `RecipeError` where a run would overwrite another."""
    if checkpoints(Path(args.output_dir)) and not args.resume:
        raise RecipeError(f"{args.output_dir} already holds checkpoints; add --resume, or choose another output_dir.")


def keep_until(metrics_file: Path, step: int) -> None:
    """Drop what a killed run logged after the checkpoint that is resumed: it is logged again."""
    if not metrics_file.exists():
        return
    kept = []
    for line in metrics_file.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(f"{line}\n")
        except ValueError:
            continue  # the line that a kill cut short
    partial = metrics_file.with_name(f".{metrics_file.name}.partial")
    partial.write_text("".join(kept))
    partial.replace(metrics_file)


def moving_average(decay: float):
    """How an `AveragedModel` takes in the newest weights: with `decay`, less of it at the start.

    An average over a thousand steps would otherwise be of random weights for as many, and worthless where the best
    model is chosen by it. The warm-up is that of TensorFlow's ExponentialMovingAverage.
    """
    from torch.optim.swa_utils import get_ema_multi_avg_fn

    def take_in(averaged, newest, count):
        get_ema_multi_avg_fn(min(decay, (1 + int(count)) / (10 + int(count))))(averaged, newest, count)

    return take_in


class _Run:
    """What a training run holds: the model and its average, the optimiser, where it stands, and where it writes."""

    def __init__(self, model, args: LoopArguments, save_extra):
        from accelerate import Accelerator, DistributedType
        from torch.optim.swa_utils import AveragedModel

        self.args, self.save_extra = args, save_extra
        self.folder = Path(args.output_dir)
        self.metrics_file = self.folder / "metrics.jsonl"
        self.progress = Progress()
        self.accelerator = Accelerator(
            mixed_precision=args.mixed_precision,
            log_with="tensorboard",
            project_dir=str(self.folder),
            step_scheduler_with_optimizer=False,
        )
        if self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise RecipeError(
                "sharded training is not supported: evaluation and the weight average need whole parameters in each "
                "process; launch with recipes/accelerate/multi_gpu.yaml."
            )
        self.plain = model.to(memory_format=torch.channels_last)  # fastest for convolutions on CPUs and tensor cores
        self.average = None
        if args.ema_decay:
            self.average = AveragedModel(model, multi_avg_fn=moving_average(args.ema_decay), use_buffers=True)
            self.average.to(self.accelerator.device)
        optimizer = build_optimizer(model, args)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, args))
        self.model, self.optimizer, self.scheduler = self.accelerator.prepare(model, optimizer, scheduler)
        self.load()
        self.accelerator.init_trackers("logs")
        self.loss_sum = torch.tensor(self.progress.loss_sum, device=self.accelerator.device)
        self.started = time.perf_counter()

    @property
    def trained(self):
        """The model as it is evaluated and saved."""
        return self.plain if self.average is None else self.average.module

    # ------------------------------------------------------------------ checkpoints

    def load(self) -> None:
        """Go on from the newest checkpoint if the recipe says so."""
        refuse_existing(self.args)
        if existing := checkpoints(self.folder):
            self.accelerator.load_state(str(existing[-1]))
            vars(self.progress).update(json.loads((existing[-1] / "progress.json").read_text()))
            if self.average is not None:
                load_model(self.average, str(existing[-1] / "average.safetensors"))
            self.tell(f"resumed from {existing[-1]}")
        if self.accelerator.is_main_process:
            keep_until(self.metrics_file, self.progress.step)

    def save_checkpoint(self) -> None:
        """Everything that the next step depends on, in place at once; the last two are kept."""
        folder = self.folder / f"checkpoint-{self.progress.step}"
        partial = folder.with_name(f".{folder.name}.partial")
        self.progress.loss_sum = self.accelerator.reduce(self.loss_sum, "mean").item()
        try:
            self.accelerator.save_state(str(partial))  # every process writes its random state
            if self.accelerator.is_main_process:
                # Not registered with accelerate, which would unpickle them on the way back.
                (partial / "progress.json").write_text(json.dumps(vars(self.progress)))
                if self.average is not None:
                    save_model(self.average, str(partial / "average.safetensors"))  # tied weights once
        except Exception as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise OSError(f"{folder}: could not be saved ({error}); earlier checkpoints are unchanged.") from error
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
            for old in checkpoints(self.folder)[:-2]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def save_model(self, name: str) -> None:
        """The trained model as a folder that `from_pretrained` loads."""
        dtype = getattr(torch, self.args.save_dtype)

        def write(folder: Path):
            # The configuration keeps saying float32: half precision is for the disk, not for reading on a CPU.
            tensors = {n: t.to(dtype) if t.is_floating_point() else t for n, t in self.trained.state_dict().items()}
            self.trained.save_pretrained(folder, state_dict=tensors)
            if self.save_extra is not None:
                self.save_extra(folder)

        if self.accelerator.is_main_process:
            save_atomically(self.folder / name, write)

    # ------------------------------------------------------------------ logs

    def tell(self, sentence: str) -> None:
        """Print above the progress bar, once however many processes run."""
        if self.accelerator.is_main_process:
            tqdm.write(sentence, file=sys.stderr)

    def log(self, values: dict) -> None:
        if self.accelerator.is_main_process:
            self.accelerator.log(values, step=self.progress.step)
            with self.metrics_file.open("a") as file:
                file.write(json.dumps({"step": self.progress.step, **values}) + "\n")

    def log_loss(self) -> dict:
        """Log the mean loss since the last line.

        Raises:
            FloatingPointError: it is not a finite number.
        """
        progress = self.progress
        loss = self.accelerator.reduce(self.loss_sum, "mean").item() / progress.loss_steps
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"The loss is {loss} at step {progress.step}; lower the learning rate or clip gradients "
                f"(max_grad_norm), and resume from {self.folder}."
            )
        rate = self.scheduler.get_last_lr()[0]
        counts = {"epoch": progress.epoch, "examples": progress.examples}
        self.log({"loss": loss, "learning_rate": rate, **counts, "seconds": time.perf_counter() - self.started})
        self.loss_sum.zero_()
        progress.loss_steps = 0
        return {"loss": f"{loss:.3f}", "lr": f"{rate:.1e}", "epoch": progress.epoch}

    def evaluate(self, evaluate) -> None:
        """Measure, and keep the model if it is the best so far."""
        if evaluate is None:
            return
        if self.accelerator.is_main_process:
            values = evaluate(self.trained.eval())
            self.log({f"eval_{name}": value for name, value in values.items()})
            self.tell(f"step {self.progress.step}: " + ", ".join(f"{n} {v:.4f}" for n, v in values.items()))
            if values["selection"] > self.progress.best:
                self.progress.best = values["selection"]
                self.save_model("best")
        self.accelerator.wait_for_everyone()
        self.train_mode()

    # ------------------------------------------------------------------ steps

    def train_mode(self) -> None:
        """Dropout on; BatchNorm too, unless it has been frozen."""
        self.model.train()
        frozen_at = self.args.freeze_norms_at
        if frozen_at and self.progress.step >= frozen_at:
            # At the step itself the average's statistics are taken over; afterwards they are the model's own.
            at_once = self.progress.step == frozen_at and self.average is not None
            freeze_norms(self.plain, self.average.module if at_once else None)

    def step(self, window: list[dict]) -> None:
        """One optimiser step on the batches of `window`."""
        accelerator, progress = self.accelerator, self.progress
        if progress.step == self.args.freeze_norms_at:
            self.train_mode()
        window = [{name: tensor.to(accelerator.device) for name, tensor in batch.items()} for batch in window]
        items = sum(self.plain.num_loss_items(batch) for batch in window)
        # Processes average their gradients: dividing by the mean count makes that the mean over all items.
        items = accelerator.reduce(torch.tensor([float(items)], device=accelerator.device), "mean").item()
        for position, batch in enumerate(window):
            last = position == len(window) - 1
            with nullcontext() if last else accelerator.no_sync(self.model):
                with accelerator.autocast():
                    loss = self.model(**batch, num_items_in_batch=items).loss
                accelerator.backward(loss)
            self.loss_sum += loss.detach()
        if self.args.max_grad_norm:
            accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.plain)
        progress.step += 1
        progress.batch += len(window)
        progress.examples += sum(len(next(iter(batch.values()))) for batch in window) * accelerator.num_processes
        progress.loss_steps += 1


def train(model, loader, args: LoopArguments, evaluate=None, save_extra=None) -> Progress:
    """Trains `model` in place.

    Args:
        model: returns `.loss`, takes `num_items_in_batch`, and counts them in `num_loss_items(batch)`.
        loader: `loader(epoch, start, rank, world)` iterates over a process's share of an epoch; `FormulaLoader`. It
            gives the model's arguments by name, the first with an entry for each example.
        args: what to do.
        evaluate: `evaluate(model) -> dict` of numbers; `selection` among them, higher is better, picks the best.
        save_extra: `save_extra(folder)` puts what belongs beside the weights (the processor) into a saved folder.

    Returns:
        Where the run ended. `output_dir/best` holds the best evaluated model, `output_dir/final` the last.

    Raises:
        RecipeError: `output_dir` holds checkpoints and `resume` is not set.
        FloatingPointError: the loss is not finite.
        OSError: a checkpoint or model could not be saved; what was saved before is intact.
    """
    for name in ("score_calibration", "char_score_calibration"):  # fitted to the weights as they were
        if getattr(getattr(model, "config", None), name, None):
            setattr(model.config, name, None)
    run = _Run(model, args, save_extra)
    progress, accelerator = run.progress, run.accelerator
    hidden = not accelerator.is_main_process
    run.train_mode()
    with tqdm(total=args.max_steps, initial=progress.step, disable=hidden, dynamic_ncols=True) as bar:
        while progress.step < args.max_steps:
            batches = loader(progress.epoch, progress.batch, accelerator.process_index, accelerator.num_processes)
            while progress.step < args.max_steps and (window := list(islice(batches, args.accumulate))):
                run.step(window)
                bar.update()
                if progress.step % args.logging_steps == 0:
                    bar.set_postfix(run.log_loss())
                if progress.step == args.max_steps:
                    break
                if progress.step % args.eval_steps == 0:
                    run.evaluate(evaluate)
                if progress.step % args.save_steps == 0:
                    run.save_checkpoint()
            else:
                progress.epoch, progress.batch = progress.epoch + 1, 0
    run.evaluate(evaluate)
    run.save_checkpoint()
    run.save_model("final")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return progress
