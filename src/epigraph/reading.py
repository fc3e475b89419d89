"""Reading: files, images, ink or bytes become text by one road, which the pipeline, the command and evaluation share.

What a task does with its inputs stands in `reading_formulas` and `reading_words`; here are the checkpoints, and what
all tasks have in common. A bad input never stops the others: its result carries a sentence in `error`.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.utils import logging

from .adapters import base_of, base_weights, is_adapter, merge_adapter
from .cards import weights_sha256
from .inputs import first_line, is_batch, name_of
from .models import MODELS
from .reading_formulas import Candidate, FormulaReader, FormulaReading
from .reading_words import WordReader, WordReading

if TYPE_CHECKING:
    from .context_pool import ContextPool

HUB_ORGANISATION = "epigraph"
# What reads a task where no model is named: a folder of ./checkpoints, else a repository of the organisation.
DEFAULT_CHECKPOINTS = {"maths": "comer-hme", "ink": "comer-hme", "word": "e2str-small"}
TASKS_OF = {"comer": ("maths", "ink"), "e2str": ("word",)}
DTYPES = ("float32", "bfloat16", "float16")

WINDOW = 32  # batches whose inputs are read in the order that suits the model, all of them in memory


def read(
    inputs,
    model: str | Path | PreTrainedModel | None = None,
    task: str | None = None,
    pool: "ContextPool | str | Path | None" = None,
    k: int = 2,
    batch_size: int = 8,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    processor: ProcessorMixin | None = None,
    gate: float | None = None,
    n_best: int = 1,
    min_score: float | None = None,
    explain: bool = False,
    progress: bool = False,
    **generation,
) -> FormulaReading | WordReading | list[FormulaReading] | list[WordReading]:
    """Read handwritten formulas from images or ink, or words from images.

    Inputs are read in order of size, and returned in their own order; what an input is read with does not change its
    result. The model is loaded at every call that names it: to call often, pass it loaded.

    Args:
        inputs: one input or a list. An input is a path (.png, .jpg, .bmp, .gif, .tif, .webp, .inkml, .json), the
            content of such a file as bytes, a PIL image, an array or tensor (height, width), (height, width, 3) or
            (channels, height, width); of formulas also an `epigraph.data.ink.Ink`, or a list of strokes, each
            (points, 2), y down.
        model: folder, Hub id, or a loaded model; by default the task's own checkpoint (`DEFAULT_CHECKPOINTS`), from
            ./checkpoints or the Hub.
        task: "maths" reads images and ink, "ink" accepts ink only, "word" reads images of words; by default it follows
            from the model, and without one it is "word" where a pool is given, else "maths".
        pool: of a model that learns in context (E2STR): where its examples are searched; a `ContextPool`, or its
            folder or Hub id. The reading without examples then stands beside the one with them.
        k: how many examples, the most similar ones; fewer where the pool has fewer.
        gate: only where the reading without examples has a score below, a probability in 0..1, examples are used; by
            default always.
        batch_size: inputs that are read together.
        device: by default CUDA where there is one, else the CPU.
        dtype: "float32" (default), "bfloat16" or "float16".
        processor: needed for a loaded model that was not loaded from a folder or the Hub.
        n_best: readings per input.
        min_score: readings with a score below, a probability in 0..1, are marked as `doubtful`.
        explain: also say where the model looked: `image`, `attentions` and `coverages` of each formula, some megabytes
            for each; of words `image`, and the images of the examples. For many inputs use `read_all`, and keep what
            you need.
        progress: show a progress bar on a terminal.
        generation: settings of the model's `generate`; for CoMER `search`, `direction`, `num_beams`, `max_length` ...;
            for E2STR `num_beams` (3), `max_new_tokens` (49) ...

    Returns:
        A `FormulaReading` or a `WordReading`, or a list of them for a list.

    Raises:
        ValueError: unknown task or setting, a `min_score` or `gate` outside 0..1, a checkpoint that cannot be loaded
            or lacks weights, a pool of another encoder; one sentence.
        FileNotFoundError: there is no pool.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
    _check_settings(min_score, gate, k, pool)
    if isinstance(model, PreTrainedModel):
        if device is not None or dtype is not None:
            raise ValueError("device and dtype are for a model named by folder or Hub id; move a loaded one by .to().")
        _check_task(task, model.config.model_type, model.name_or_path or "the model")
        processor = processor or _load_processor(model.name_or_path)
        if len(processor.tokenizer) < getattr(model.config, "vocab_size", 0):
            raise ValueError("the model writes symbols that its processor lacks; pass the one saved with its adapter.")
    else:
        if model is None and task is None and pool is not None:
            task = "word"
        model, loaded = load(model, task, device, dtype)
        processor = processor or loaded
    single = not is_batch(inputs)
    readings = list(
        read_all(
            [inputs] if single else inputs,
            model,
            processor,
            task=task,
            batch_size=batch_size,
            progress=progress,
            n_best=n_best,
            min_score=min_score,
            pool=pool,
            k=k,
            gate=gate,
            explain=explain,
            **generation,
        )
    )
    return readings[0] if single else readings


def _check_settings(min_score: float | None, gate: float | None, k: int, pool):
    for name, value in (("min_score", min_score), ("gate", gate)):
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} is a probability and must be between 0 and 1, not {value}.")
    if k < 0:
        raise ValueError(f"k is a number of examples and must be 0 or more, not {k}.")
    if gate is not None and pool is None:
        raise ValueError("gate says which words are read with examples of a pool; give a pool, or leave it out.")


def read_all(
    inputs: Iterable,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    *,
    names: Iterable[str] | None = None,
    task: str | None = None,
    batch_size: int = 8,
    progress: bool = False,
    n_best: int = 1,
    min_score: float | None = None,
    pool: "ContextPool | str | Path | None" = None,
    k: int = 2,
    gate: float | None = None,
    explain: bool = False,
    **generation,
) -> Iterator[FormulaReading] | Iterator[WordReading]:
    """Read a stream of inputs with a loaded model; memory stays bounded however many there are.

    Args:
        inputs: see `read`; a sized iterable gives the progress bar its total.
        names: what to call each input in its result, in the same order.
        task, batch_size, progress, n_best, min_score, pool, k, gate, explain, generation: see `read`.

    Yields:
        One reading per input, in order. The model is in evaluation mode while it reads, and put back after.
    """
    _check_settings(min_score, gate, k, pool)
    if model.config.model_type == "e2str":
        reader = WordReader(model, processor, n_best, explain, generation, pool, k, gate)
    elif pool is not None:
        raise ValueError(
            f"pool is for models that learn in context; {type(model).__name__} does not, so leave it out or name "
            "another model."
        )
    else:
        reader = FormulaReader(model, processor, task, n_best, explain, generation)
    total = len(inputs) if hasattr(inputs, "__len__") else None
    names = iter(names) if names is not None else None
    numbered = enumerate(inputs, start=1)
    training = model.training
    model.eval()
    bar = tqdm(total=total, desc="Reading", unit=f" {reader.unit}", disable=None if progress else True)
    try:
        while window := list(islice(numbered, batch_size if explain else WINDOW * batch_size)):
            items = [item for _, item in window]
            called = [next(names) if names is not None else name_of(item, number) for number, item in window]
            readings = [reader.reading(name) for name in called]
            for done in reader.read(list(zip(readings, items)), batch_size):
                bar.update(done)
            for reading in readings:
                reading.doubtful = None not in (min_score, reading.score) and reading.score < min_score
            yield from readings
    finally:
        bar.close()
        model.train(training)


# ------------------------------------------------------------------------------------------------------ checkpoints


def load(
    model: str | Path | None = None,
    task: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a checkpoint for reading, in evaluation mode, with its processor. Arguments as in `read`.

    Raises:
        ValueError: no such checkpoint, one that is not complete or is of another kind, an unknown task or dtype.
    """
    dtype = str(dtype or "float32").removeprefix("torch.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    _check_task(task)
    folder = checkpoint_folder(model, task)
    if is_adapter(folder):
        return _load_adapter(folder, task, device, dtype)
    config = load_config(folder, model or folder)
    _check_task(task, config.model_type, model or folder)
    loaded, missing, unknown = load_weights(AutoModel, folder, config, dtype, model or folder)
    if missing or unknown:
        raise ValueError(
            f"{model or folder}: its weights do not fit its config.json: {len(missing)} missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}; save the model again with save_pretrained."
        )
    return on_device(loaded, device), _load_processor(folder)


def load_config(folder: Path, name: str | Path) -> PreTrainedConfig:
    """The configuration of a model folder; ValueError that calls it `name` where it cannot be used."""
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: its config.json cannot be used ({first_line(error)}).") from None


def load_weights(
    auto, folder: Path, config: PreTrainedConfig, dtype: str, name: str | Path
) -> tuple[PreTrainedModel, list[str], list[str]]:
    """A model of a folder by the Auto class `auto`; which weights the folder lacks, and which it has no place for.

    Raises:
        ValueError: that calls it `name`, where the weights are damaged or of other shapes.
    """
    try:
        with _quiet():
            loaded, info = auto.from_pretrained(
                folder, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
            )
    except Exception as error:  # damaged files and wrong shapes raise whatever the library in charge raises
        raise ValueError(f"{name}: its weights cannot be loaded ({first_line(error)}).") from error
    return loaded, sorted(info["missing_keys"]), sorted(info["unexpected_keys"])


def _load_adapter(folder: Path, task: str | None, device, dtype: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    """`load` for an adapter: its base model with the adapter merged in, and the adapter's own processor."""
    name, processor = base_of(folder), _load_processor(folder)
    try:
        base = checkpoint_folder(name)
        if is_adapter(base):
            raise ValueError(f"{name} is an adapter, too; merge that one first.")
        model, _ = load(base, task, "cpu", dtype)
    except ValueError as error:
        raise ValueError(f"{folder}: its base model cannot be loaded: {error}") from None
    trained_on = base_weights(folder)
    if trained_on and trained_on != weights_sha256(base):
        warnings.warn(f"{folder} was trained on other weights than {name} now has; train it again.", stacklevel=3)
    return on_device(merge_adapter(model, folder, processor.tokenizer.get_vocab()), device), processor


def on_device(model: PreTrainedModel, device) -> PreTrainedModel:
    """The model in evaluation mode on a device; ValueError where there is no such device."""
    try:
        return model.eval().to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!s} cannot be used ({first_line(error)}).") from None


@contextmanager
def _quiet():
    """Neither progress bars for a second's work nor tables of missing weights, which `load` puts into one sentence."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def checkpoint_folder(model: str | Path | None = None, task: str | None = None) -> Path:
    """The local folder of a checkpoint, fetched from the Hub where needed; see `read` for the arguments.

    Raises:
        ValueError: neither a folder nor a repository that can be reached.
    """
    name = str(model) if model is not None else default_checkpoint(task or "maths")
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file() and not is_adapter(folder):
            raise ValueError(f"{name}: no config.json in this folder; name one that save_pretrained wrote.")
        return folder
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1 or folder.parent.is_dir():
        raise ValueError(f"{name}: no such folder; name a model folder, or owner/name on the Hub.")
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ValueError(f"{name}: no such folder, and not to be had from the Hub ({first_line(error)}).") from None


def default_checkpoint(task: str) -> str:
    """The task's own checkpoint: in ./checkpoints, in those of this source tree, else its name on the Hub."""
    if task not in DEFAULT_CHECKPOINTS:
        raise ValueError(f"task {task!r} has no checkpoint of its own in this version; name a model.")
    name = DEFAULT_CHECKPOINTS[task]
    for root in (Path(), Path(__file__).resolve().parents[2]):
        folder = root / "checkpoints" / name
        if (folder / "config.json").is_file():
            return str(folder)
    return f"{HUB_ORGANISATION}/{name}"


def _check_task(task: str | None, model_type: str | None = None, model: str | Path = ""):
    tasks = [known for of in TASKS_OF.values() for known in of]
    if task is not None and task not in tasks:
        raise ValueError(f"task must be one of {', '.join(tasks)} in this version, not {task!r}.")
    if any(config.model_type == model_type and processor is None for config, _, _, processor in MODELS):
        raise ValueError(
            f"{model}: a model of type {model_type!r} classifies images and reads no text; use "
            f"transformers.pipeline('image-classification', model={str(model)!r})."
        )
    if model_type is not None and (model_type not in TASKS_OF or (task and task not in TASKS_OF[model_type])):
        raise ValueError(f"{model}: a model of type {model_type!r} does not read {task or 'text'}.")


def _load_processor(folder: str | Path) -> ProcessorMixin:
    if not folder:
        raise ValueError("the model was not loaded from a folder or the Hub, so pass its processor too.")
    try:
        return AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder}: its processor cannot be loaded ({first_line(error)}).") from None


__all__ = [
    "DEFAULT_CHECKPOINTS",
    "HUB_ORGANISATION",
    "Candidate",
    "FormulaReading",
    "WordReading",
    "load",
    "read",
    "read_all",
]
