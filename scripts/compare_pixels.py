"""Which pixels does a PixelViT need, how should it know their places, and does MAE pre-training pay?

    python scripts/prepare_images.py digits runs/images/digits.parquet
    python scripts/compare_pixels.py positions digits --jobs 2
    python scripts/compare_pixels.py selection digits --only all 'ink*' --seeds 0
    python scripts/compare_pixels.py selection mnist5k --set cpu_seconds=300
    python scripts/compare_pixels.py selection digits --only ink --seeds 0 --validation-only \\
        --set learning_rate=1e-3 --output model_cards/results/pixelvit/choices.json
    python scripts/pixel_tables.py

One run is one arm of a table with one seed, in a process of its own with one thread: a small PixelViT trained from new
weights. The validation images are never trained on; all settings were chosen on them, with --validation-only, which
does not look at the test images. Rows are added to model_cards/results/pixelvit/TABLE.DATA.json as they are finished;
a stopped study goes on with the same command, and pixel_tables.py fills the tables of docs/pixelvit.md with them.

CPU seconds are those of the training process: decoding the images, choosing pixels, forward, backward and optimiser,
without evaluation. The loop is the script's own, since a run here is a schedule of seconds to minutes that ends with
its last step: it needs neither checkpoints nor logs, whose cost would be part of what is compared.
"""

import os

# Before torch loads: threads that spin while they wait would be counted as work.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import copy
import json
import math
import multiprocessing
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from benchmark import machine, matmul_rate
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from epigraph.data.image_classes import load_images
from epigraph.data.readers import expand_path
from epigraph.evaluation import data_sha256, portable, write_json
from epigraph.training import build_optimizer

RESULTS = Path("model_cards/results/pixelvit")
MODEL = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 1, "intermediate_size": 256}
DECODER = {f"decoder_{name}": value for name, value in MODEL.items()} | {"decoder_num_hidden_layers": 2}
TOLD_EVERY = 30.0  # CPU seconds between lines of progress


@dataclass(frozen=True)
class Settings:
    """What all arms of a table share on one data set."""

    epochs: float = 30
    cpu_seconds: float = 0  # of training; above 0 they set the length of the run, not epochs
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.1  # share of the steps
    shift: int = 0  # pixels by which training images are moved at most
    flip: bool = False
    position: str = "sincos2d"
    initializer_range: float = 0.125  # 64^-0.5: with ViT's 0.02 layers this narrow hardly learn in so few steps
    train_images: int = 0  # the first of every class, 0 for all
    dtype: str = "float32"
    attention: str = "sdpa"
    pretrain_seconds: float = 30
    finetune_seconds: float = 30
    pretrain_learning_rate: float = 2e-3
    selection: str = "all"  # in the tables positions and mae; all but `all` read a quarter of the pixels
    few: float = 0.1  # share of the labels, in the arms with few

    def __post_init__(self):
        for name in ("epochs", "batch_size", "learning_rate", "pretrain_seconds", "finetune_seconds", "few"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}.")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype must be float32 or bfloat16, not {self.dtype!r}.")


@dataclass(frozen=True)
class Arm:
    """One way to read an image, or to train on it."""

    title: str
    config: dict = field(default_factory=dict)
    share: float = 1.0  # of the pixels
    patch: int = 1
    mask: str | None = None  # pre-training
    few: bool = False


def _selection(policy: str, title: str, share: float = 0.25) -> Arm:
    return Arm(title, {"pixel_selection": policy}, share)


def _position(kind: str, title: str, **config) -> Arm:
    return Arm(title, {"position_embedding_type": kind, **config})


FAST = {"dtype": "bfloat16", "attention": "blocked"}
SETTINGS = {
    "digits": Settings(),
    "mnist5k": Settings(epochs=5, selection="ink", pretrain_seconds=90, finetune_seconds=90, **FAST),
    "fashion": Settings(epochs=8, train_images=10_000, **FAST),
}
CPU_MINUTES = {"digits": 10, "mnist5k": 10, "fashion": 60}  # of one run at most
ARMS = {
    "positions": {
        "learned_0.02": _position("learned", "learned, std 0.02", position_init_std=0.02),
        "learned_0.3": _position("learned", "learned, std 0.3", position_init_std=0.3),
        "learned_1.0": _position("learned", "learned, std 1.0", position_init_std=1.0),
        "sincos2d": _position("sincos2d", "sines and cosines in 2-D"),
        "rope_axial": _position("rope_axial", "axial RoPE"),
        "rope_mixed": _position("rope_mixed", "mixed RoPE"),
        "none": _position("none", "none"),
    },
    "selection": {
        "all": Arm("all pixels"),
        "patches_2x2": Arm("2 x 2 patches of all pixels", patch=2),
        "ink": _selection("ink", "ink"),
        "edge": _selection("edge", "edge"),
        "saliency": _selection("saliency", "saliency"),
        "grid": _selection("grid", "grid"),
        "random_fixed": _selection("random_fixed", "random, the same in all images"),
        "random": _selection("random", "random, drawn anew in training"),
        "edge_12.5": _selection("edge", "edge", 0.125),
    },
    "mae": {
        f"{start}{labels}": Arm(f"{title}, {said}", mask=mask, few=bool(labels))
        for labels, said in (("", "all labels"), ("_few", "few labels"))
        for start, title, mask in (
            ("scratch", "from scratch", None),
            ("mae_random", "MAE, random mask", "random"),
            ("mae_block", "MAE, block mask", "block"),
        )
    },
}


@dataclass(frozen=True)
class Run:
    table: str
    data: str
    path: str
    arm: str
    seed: int
    settings: Settings
    max_cpu_seconds: float
    validation_only: bool
    command: str
    data_sha256: str

    @property
    def name(self) -> str:
        return f"{self.table}/{self.data}/{self.arm}/seed{self.seed}"


# ---------------------------------------------------------------------- data


def read_images(path: str, split: str, limit: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, channels, height, width) in -1..1 and labels (n,); with `limit` about that many, see `first_of`."""
    rows = load_images(path, split)
    labels = torch.tensor(rows["label"][:])
    if limit:
        chosen = first_of(labels, limit)
        rows, labels = rows.select(chosen.tolist()), labels[chosen]
    images = torch.from_numpy(np.stack([np.asarray(image) for image in rows["image"]])).float()
    images = images[:, None] if images.ndim == 3 else images.movedim(-1, 1)
    return images / 127.5 - 1, labels


def first_of(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Indices, ascending, of the first images of every class, `count` in all where classes are equal."""
    classes = labels.unique()
    each = max(1, count // len(classes))
    return torch.cat([(labels == number).nonzero()[:each, 0] for number in classes]).sort().values


def batches(count: int, size: int, seed: int) -> Iterator[torch.Tensor]:
    """Indices without end, each epoch in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.empty(0, dtype=torch.long)
    while True:
        while len(left) < size:
            left = torch.cat([left, torch.randperm(count, generator=generator)])
        yield left[:size]
        left = left[size:]


def varied(images: torch.Tensor, settings: Settings) -> torch.Tensor:
    """Images moved by whole pixels, what comes in filled with black, and half of them mirrored."""
    if settings.shift:
        count, _, height, width = images.shape
        padded = F.pad(images, (settings.shift,) * 4, value=-1.0).movedim(1, -1)
        down, right = torch.randint(2 * settings.shift + 1, (2, count, 1))
        rows, columns = (down + torch.arange(height))[:, :, None], (right + torch.arange(width))[:, None]
        images = padded[torch.arange(count)[:, None, None], rows, columns].movedim(-1, 1)
    if settings.flip:
        images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)
    return images


def patched(images: torch.Tensor, arm: Arm) -> torch.Tensor:
    return F.pixel_unshuffle(images, arm.patch) if arm.patch > 1 else images


# ---------------------------------------------------------------------- training


def configuration(run: Run, arm: Arm, images: torch.Tensor, classes: int):
    """The model's configuration for images as `read_images` gives them."""
    from epigraph.models.configuration_pixelvit import PixelViTConfig

    _, channels, height, width = images.shape
    values = {"position_embedding_type": run.settings.position, **arm.config}
    policy = values.setdefault("pixel_selection", "all" if run.table == "selection" else run.settings.selection)
    if policy != "all":
        share = arm.share if run.table == "selection" else 0.25
        values |= {"num_selected_pixels": round(share * height * width), "selection_seed": run.seed}
    return PixelViTConfig(
        image_size=(height // arm.patch, width // arm.patch),
        num_channels=channels * arm.patch**2,
        pooling="mean",
        initializer_range=run.settings.initializer_range,
        num_labels=classes,
        mask_type=arm.mask or "random",
        mask_block_size=max(2, height // 7),
        **MODEL,
        **DECODER,
        **values,
    )


def autocast(settings: Settings):
    return torch.autocast("cpu", torch.bfloat16, enabled=settings.dtype == "bfloat16")


class Training:
    """Steps of AdamW on one set of images, with linear warm-up, a cosine to zero and gradients clipped to norm 1."""

    def __init__(self, model, images, labels, run: Run, steps: int, learning_rate: float):
        settings, self.arm = run.settings, ARMS[run.table][run.arm]
        self.model, self.images, self.labels, self.settings = model.train(), images, labels, settings
        self.steps, self.done, self.seconds, self.name = steps, 0, 0.0, run.name
        chosen = {"learning_rate": learning_rate, "weight_decay": settings.weight_decay}
        self.optimizer = build_optimizer(model, SimpleNamespace(optimizer="adamw", **chosen))
        warmup = round(settings.warmup * steps)
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, warmup, steps)
        self.batches = batches(len(images), settings.batch_size, run.seed)

    def step(self) -> float:
        """One step; its loss."""
        indices = next(self.batches)
        batch = {"pixel_values": patched(varied(self.images[indices], self.settings), self.arm)}
        if self.labels is not None:
            batch["labels"] = self.labels[indices]
        with autocast(self.settings):
            loss = self.model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return loss.item()

    def run(self, limit: float = math.inf) -> "Training":
        """All steps, or as many as `limit` CPU seconds allow.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        started, told = time.process_time(), 0.0
        while self.done < self.steps and self.seconds < limit:
            loss = self.step()
            self.done += 1
            self.seconds = time.process_time() - started
            if not math.isfinite(loss):
                raise FloatingPointError(f"{self.name}: the loss is {loss} at step {self.done}; lower learning_rate.")
            if self.seconds - told > TOLD_EVERY:
                told = self.seconds
                line = f"{self.name}: step {self.done} of {self.steps}, loss {loss:.3f}, {told:.0f} CPU s"
                print(line, file=sys.stderr, flush=True)
        return self


def steps_within(seconds: float, model, images, labels, run: Run) -> int:
    """How many steps fit into so many CPU seconds, from the time of a few steps of a copy of the model."""
    with torch.random.fork_rng():
        trial, times = Training(copy.deepcopy(model), images, labels, run, 1000, 1e-6), []
        for _ in range(8):
            started = time.process_time()
            trial.step()
            times.append(time.process_time() - started)
    return max(1, int(seconds / statistics.median(times[2:])))


@torch.no_grad()
def accuracy(model, images, labels, run: Run) -> float:
    """Share of the images whose class is named right."""
    model.eval()
    right = 0
    for start in range(0, len(images), 100):
        batch = patched(images[start : start + 100], ARMS[run.table][run.arm])
        with autocast(run.settings):
            logits = model(pixel_values=batch).logits
        right += (logits.argmax(-1) == labels[start : start + 100]).sum().item()
    return right / len(images)


def pretrain(run: Run, config, images: torch.Tensor):
    """An encoder trained to fill in hidden pixels, and what the row says of it."""
    from epigraph.models.modeling_pixelvit_pretraining import PixelViTForPreTraining

    whole = copy.deepcopy(config)
    whole.pixel_selection, whole.num_selected_pixels = "all", None
    model = PixelViTForPreTraining(whole)
    model.set_attn_implementation(run.settings.attention)
    steps = steps_within(run.settings.pretrain_seconds, model, images, None, run)
    training = Training(model, images, None, run, steps, run.settings.pretrain_learning_rate).run(run.max_cpu_seconds)
    row = {"pretrain_images": len(images), "pretrain_steps": training.done, "pretrain_cpu_seconds": training.seconds}
    return model.pixelvit, row


def measure(run: Run) -> dict:
    """Train and evaluate: a row of results. Meant for a process of its own, since it sets the threads of torch."""
    from epigraph.models.modeling_pixelvit import PixelViTForImageClassification

    torch.set_num_threads(1)
    torch.manual_seed(run.seed)
    settings, arm = run.settings, ARMS[run.table][run.arm]
    started = time.process_time()
    images, labels = read_images(run.path, "train", settings.train_images)
    prepared = time.process_time() - started

    config = configuration(run, arm, images, int(labels.max()) + 1)
    encoder, row = pretrain(run, config, images) if arm.mask else (None, {})
    spent = prepared + row.get("pretrain_cpu_seconds", 0.0)
    if arm.few:
        chosen = first_of(labels, round(settings.few * len(labels)))
        images, labels = images[chosen], labels[chosen]
    model = PixelViTForImageClassification(config)
    model.set_attn_implementation(settings.attention)
    if encoder is not None:
        model.pixelvit.load_state_dict(encoder.state_dict())
    seconds = settings.cpu_seconds
    if run.table == "mae":
        seconds = settings.finetune_seconds + (0 if arm.mask else settings.pretrain_seconds)
    if seconds:
        steps = steps_within(seconds, model, images, labels, run)
    else:
        steps = math.ceil(settings.epochs * len(images) / settings.batch_size)
    training = Training(model, images, labels, run, steps, settings.learning_rate).run(run.max_cpu_seconds - spent)

    pixels = math.prod(config.image_height_width)
    measured = {"accuracy": None, "n": None}
    validation = accuracy(model, *read_images(run.path, "validation"), run)
    if not run.validation_only:
        test_images, test_labels = read_images(run.path, "test")
        measured = {"accuracy": accuracy(model, test_images, test_labels, run), "n": len(test_labels)}
    return {
        **{name: getattr(run, name) for name in ("data", "table", "arm", "seed")},
        "settings": asdict(settings),
        "tokens": config.num_selected_pixels or pixels,
        "share": (config.num_selected_pixels or pixels) / pixels,
        "train_images": len(images),
        "epochs": training.done * settings.batch_size / len(images),
        "steps": training.done,
        **({"cut": f"after {training.done} of {steps} steps"} if training.done < steps else {}),
        **measured,
        "validation_accuracy": validation,
        **row,
        "cpu_seconds": spent + training.seconds,
        "machine": machine("cpu"),
        "matmul_gflop_per_cpu_second": round(matmul_rate(), 1),
        "command": run.command,
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("epigraph", "torch", "transformers")},
        "data_sha256": run.data_sha256,
    }


# ---------------------------------------------------------------------- the study


def read_rows(path: Path) -> list[dict]:
    """The rows that are there already; ValueError where the file is something else."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["rows"]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not what this script writes; name another --output.") from None


def changed(settings: Settings, assignments: list[str]) -> Settings:
    """Settings with `name=value` assigned; ValueError naming the assignment that cannot be."""
    kinds, values = {item.name: item.type for item in fields(settings)}, {}
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        if name not in kinds:
            raise ValueError(f"--set {assignment}: there is no setting {name!r}; known are {', '.join(kinds)}.")
        try:
            values[name] = text.lower() in ("1", "true", "yes") if kinds[name] is bool else kinds[name](text)
        except ValueError:
            raise ValueError(f"--set {assignment}: {text!r} is not of type {kinds[name].__name__}.") from None
    return replace(settings, **values)


def planned(arguments) -> list[Run]:
    """The runs that were asked for."""
    settings = changed(SETTINGS[arguments.data], arguments.set)
    table, data = arguments.table, arguments.data
    command = ["python", "scripts/compare_pixels.py", table, data]
    if arguments.images:
        command += ["--images", portable(arguments.images)]
    if arguments.set:
        command += ["--set", *arguments.set]
    if arguments.validation_only:
        command += ["--validation-only"]
    if arguments.max_cpu_minutes:
        command += ["--max-cpu-minutes", f"{arguments.max_cpu_minutes:g}"]
    path = expand_path(arguments.images or f"runs/images/{data}.parquet")
    if not path.exists():
        make = f"python scripts/prepare_images.py {data} {path}"
        raise ValueError(f"there is no {path}; make it with {make}")
    digest, limit = data_sha256(path), 60 * (arguments.max_cpu_minutes or CPU_MINUTES[data])
    runs = []
    for seed in arguments.seeds:
        for arm in ARMS[table]:
            if any(fnmatch(arm, glob) for glob in arguments.only):
                said = shlex.join([*command, "--only", arm, "--seeds", str(seed)])
                what = (table, data, str(path), arm, seed, settings, limit)
                runs.append(Run(*what, arguments.validation_only, said, digest))
    if not runs:
        known = ", ".join(ARMS[table])
        raise ValueError(f"--only {' '.join(arguments.only)}: no such arm of {table}; there are {known}.")
    return runs


def identity(row: dict) -> str:
    """What makes two rows the same measurement."""
    return json.dumps([row[name] for name in ("arm", "seed", "settings", "data_sha256")])


def main(argv: list[str] | None = None) -> None:
    names = ", ".join(item.name for item in fields(Settings))
    settings_help = f"other settings than those of the data set, which stand in this file: {names}"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=ARMS)
    parser.add_argument("data", choices=SETTINGS)
    parser.add_argument("--images", metavar="PARQUET", help="default: runs/images/DATA.parquet")
    parser.add_argument("--only", nargs="+", metavar="GLOB", default=["*"], help="arms whose name matches one of them")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--set", nargs="+", metavar="NAME=VALUE", default=[], help=settings_help)
    parser.add_argument("--validation-only", action="store_true", help="to choose settings; needs --output")
    parser.add_argument("--max-cpu-minutes", type=float, help="of a run, which is cut there (10, fashion 60)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each with one thread")
    parser.add_argument("--output", type=Path, help=f"default: {RESULTS}/TABLE.DATA.json")
    parser.add_argument("--list", action="store_true", help="name the runs that are to be done, and stop")
    arguments = parser.parse_args(argv)
    if arguments.validation_only and not arguments.output:
        parser.error("--validation-only needs an --output of its own: the tables are of test images")
    output = arguments.output or RESULTS / f"{arguments.table}.{arguments.data}.json"
    rows = read_rows(output)
    finished = {identity(row) for row in rows}
    runs = [
        run for run in planned(arguments) if identity({**vars(run), "settings": asdict(run.settings)}) not in finished
    ]
    if arguments.list:
        print("\n".join(run.name for run in runs))
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    failed = []
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(arguments.jobs, mp_context=context, max_tasks_per_child=1)
    try:
        futures = {pool.submit(measure, run): run for run in runs}
        for future in tqdm(as_completed(futures), total=len(runs), unit=" runs", dynamic_ncols=True):
            try:
                row = future.result()
            except (ValueError, OSError, FloatingPointError) as error:
                failed.append(f"{futures[future].name}: {error}")
                tqdm.write(failed[-1], file=sys.stderr)
                continue
            except BrokenProcessPool:
                sys.exit(
                    f"error: a run was ended from outside, as for want of memory; what is finished is in {output}"
                )
            # Read again: another command may have written to the same file meanwhile.
            write_json(output, {"rows": sorted([*read_rows(output), row], key=lambda row: (row["arm"], row["seed"]))})
            shown = ", ".join(f"{name} {row[name]:.4f}" for name in ("validation_accuracy", "accuracy") if row[name])
            tqdm.write(f"{futures[future].name}: {shown}, {row['cpu_seconds']:.0f} CPU s")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    if failed:
        sys.exit(f"error: {len(failed)} of {len(runs)} runs failed; the same command tries them again")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
