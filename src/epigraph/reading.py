"""Reading: files, images, ink or bytes become text by one road, which the pipeline, the command and evaluation share.

Ink is rendered to an image; the image goes through the processor, `model.generate` and the tokenizer. A bad input
never stops the others: its result carries a sentence in `error`.
"""

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image, ImageFilter, ImageOps
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.utils import logging

from .adapters import base_of, base_weights, is_adapter, merge_adapter
from .calibration import probabilities
from .cards import weights_sha256
from .data.ink import AS_DRAWN, Ink, render
from .inputs import first_line, height_and_width, is_batch, is_channel_first, name_of, open_input, to_image
from .models import MODELS

HUB_ORGANISATION = "epigraph"
# What reads a task where no model is named: a folder of ./checkpoints, else a repository of the organisation.
DEFAULT_CHECKPOINTS = {"maths": "comer-hme", "ink": "comer-hme"}
TASKS_OF = {"comer": ("maths", "ink")}
DTYPES = ("float32", "bfloat16", "float16")

MAX_SIDE = 4096  # larger images are reduced before they become floats; models read at most 1024 x 256 pixels
WINDOW = 32  # batches whose images are sorted by size together, all of them in memory
PICTURE_SIDE = 1024  # the longer side of the pictures that explanations lie over, at most
MAP_SIDE = 256  # and of the maps themselves; the model looks at no more than 64 x 16 cells


@dataclass
class Candidate:
    """One reading of an input.

    Attributes:
        text: LaTeX tokens separated by spaces.
        score: probability in 0..1 that all of it is right, by the checkpoint's `config.score_calibration`; of a
            checkpoint without one, the probability that the model itself gives to the text. A further candidate is
            right only where those before it are wrong, so the scores of all candidates sum to 1 at most.
        log_probability: of the whole text, the stop token included; the mean of the directions that were read.
        forward_score: log-probability per token, the stop token included, in the direction that found the text.
        reverse_score: the same in the other direction; None where only one was read.
    """

    text: str
    score: float
    log_probability: float
    forward_score: float
    reverse_score: float | None = None


@dataclass
class FormulaReading:
    """What one input says.

    Attributes:
        name: the path as it was given, the ink's name, or "input 3".
        text: LaTeX tokens separated by spaces; empty where the input could not be read.
        score: probability in 0..1 that the whole of `text` is right; `Candidate.score` of the first reading.
        token_scores: log-probability of each token of `text`, in reading order.
        n_best: the best readings, `text` first; as many as were asked for, or as there are. The search finds them by
            log-probability per token; after the first they are in order of their scores.
        doubtful: whether `score` is below the `min_score` that was asked for.
        error: one sentence that names the input and says why it could not be read; None where it was.
        image: with `explain`, the input as a picture, upright, reduced where it is longer than 1024 pixels; ink as
            black strokes on white. This and the following are no fields: `asdict` leaves them out.
        attentions: with `explain`, (tokens, height, width) float32: where in `image` the model looked as it wrote each
            token of `text`. Each map covers the whole picture, has its shape but at most 256 pixels along the longer
            side, and sums to 1 (`TextProcessor.post_process_attention`).
        coverages: with `explain`, the same summed up: all it had looked at, from the first token up to each.
    """

    name: str
    text: str = ""
    score: float | None = None
    token_scores: list[float] = field(default_factory=list)
    n_best: list[Candidate] = field(default_factory=list)
    doubtful: bool = False
    error: str | None = None

    image = attentions = coverages = None


def read(
    inputs,
    model: str | Path | PreTrainedModel | None = None,
    task: str | None = None,
    pool=None,
    k: int = 2,
    batch_size: int = 8,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    processor: ProcessorMixin | None = None,
    n_best: int = 1,
    min_score: float | None = None,
    explain: bool = False,
    progress: bool = False,
    **generation,
) -> FormulaReading | list[FormulaReading]:
    """Read handwritten formulas from images or ink.

    Inputs are read in order of size, and returned in their own order; what an input is read with does not change its
    result. The model is loaded at every call that names it: to call often, pass it loaded.

    Args:
        inputs: one input or a list. An input is a path (.png, .jpg, .bmp, .gif, .tif, .webp, .inkml, .json), the
            content of such a file as bytes, a PIL image, an array or tensor (height, width), (height, width, 3) or
            (channels, height, width), an `epigraph.data.ink.Ink`, or a list of strokes, each (points, 2), y down.
        model: folder, Hub id, or a loaded model; by default the task's own checkpoint (`DEFAULT_CHECKPOINTS`), from
            ./checkpoints or the Hub.
        task: "maths" reads images and ink, "ink" accepts ink only; by default it follows from the input.
        pool, k: examples for recognisers that learn in context, which this version does not have yet.
        batch_size: inputs that are read together.
        device: by default CUDA where there is one, else the CPU.
        dtype: "float32" (default), "bfloat16" or "float16".
        processor: needed for a loaded model that was not loaded from a folder or the Hub.
        n_best: readings per input.
        min_score: readings with a score below, a probability in 0..1, are marked as `doubtful`.
        explain: also say where the model looked: `image`, `attentions` and `coverages` of each result, some megabytes
            for each. For many inputs use `read_all`, and keep what you need.
        progress: show a progress bar on a terminal.
        generation: settings of the model's `generate`; for CoMER `search`, `direction`, `num_beams`, `max_length` ...

    Returns:
        A `FormulaReading`, or a list of them for a list.

    Raises:
        ValueError: unknown task or setting, a `min_score` outside 0..1, a checkpoint that cannot be loaded or lacks
            weights; one sentence.
    """
    if pool is not None:
        raise ValueError("pool is for models that learn in context; CoMER reads without one, so leave it out.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
    _check_min_score(min_score)
    if isinstance(model, PreTrainedModel):
        if device is not None or dtype is not None:
            raise ValueError("device and dtype are for a model named by folder or Hub id; move a loaded one by .to().")
        _check_task(task, model.config.model_type, model.name_or_path or "the model")
        processor = processor or _load_processor(model.name_or_path)
        if len(processor.tokenizer) < model.config.vocab_size:
            raise ValueError("the model writes symbols that its processor lacks; pass the one saved with its adapter.")
    else:
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
            explain=explain,
            **generation,
        )
    )
    return readings[0] if single else readings


def _check_min_score(min_score: float | None):
    if min_score is not None and not 0 <= min_score <= 1:
        raise ValueError(f"min_score is a probability and must be between 0 and 1, not {min_score}.")


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
    explain: bool = False,
    **generation,
) -> Iterator[FormulaReading]:
    """Read a stream of inputs with a loaded model; memory stays bounded however many there are.

    Args:
        inputs: see `read`; a sized iterable gives the progress bar its total.
        names: what to call each input in its result, in the same order.
        task, batch_size, progress, n_best, min_score, explain, generation: see `read`.

    Yields:
        One `FormulaReading` per input, in order. The model is in evaluation mode while it reads, and put back after.
    """
    _check_min_score(min_score)
    total = len(inputs) if hasattr(inputs, "__len__") else None
    names = iter(names) if names is not None else None
    numbered = enumerate(inputs, start=1)
    training = model.training
    model.eval()
    bar = tqdm(total=total, desc="Reading", unit=" formulas", disable=None if progress else True)
    try:
        while window := list(islice(numbered, batch_size if explain else WINDOW * batch_size)):
            readings, ready = [], []
            for number, item in window:
                name = next(names) if names is not None else name_of(item, number)
                readings.append(FormulaReading(name))
                try:
                    ready.append((len(readings) - 1, *prepare(item, processor, task, name, explain)))
                except ValueError as error:
                    readings[-1].error = str(error)
                    bar.update()
            ready.sort(key=lambda entry: entry[1].numel())
            for start in range(0, len(ready), batch_size):
                places, pixels, views = zip(*ready[start : start + batch_size])
                batch = [readings[place] for place in places]
                _generate(model, processor, batch, pixels, views if explain else None, n_best, generation)
                for reading in batch:
                    reading.doubtful = None not in (min_score, reading.score) and reading.score < min_score
                bar.update(len(batch))
            yield from readings
    finally:
        bar.close()
        model.train(training)


@dataclass
class _View:
    """An input as a picture, and where in it lie the pixels that the model sees (`TextImageProcessor`'s geometry)."""

    picture: Image.Image
    geometry: torch.Tensor


def _generate(
    model,
    processor,
    readings: list[FormulaReading],
    pixels: list[torch.Tensor],
    views: list[_View] | None,
    n_best: int,
    settings: dict,
):
    """Fill `readings` in with what the model reads in `pixels`, each (1, height, width), and with where it looks."""
    height, width = (max(image.shape[axis] for image in pixels) for axis in (1, 2))
    padding = [(0, width - image.shape[2], 0, height - image.shape[1]) for image in pixels]
    masks = [F.pad(torch.ones_like(image[0]), pad) for image, pad in zip(pixels, padding)]
    output = model.generate(
        pixel_values=torch.stack([F.pad(image, pad) for image, pad in zip(pixels, padding)]).to(model.device),
        pixel_mask=torch.stack(masks).to(model.device),
        num_return_sequences=n_best,
        return_dict_in_generate=True,
        output_attentions=views is not None,
        output_coverage=views is not None,
        **settings,
    )
    if views is not None:
        _explain(processor, readings, views, output, n_best)
    texts = processor.decode_labels(output.sequences.tolist())
    forward = output.forward_scores.float().tolist()
    log_probabilities = output.log_probabilities.float().tolist()
    found = probabilities(log_probabilities, model.config.score_calibration).tolist()
    reverse = [None] * len(forward) if output.reverse_scores is None else output.reverse_scores.float().tolist()
    for index, reading in enumerate(readings):
        rows = range(index * n_best, (index + 1) * n_best)
        rows = [row for row in rows if output.sequences_scores[row] > -math.inf]  # the search may have found fewer
        # The search ranks by log-probability per token, which suits the choice of the best; long ones that follow it
        # are not the more likely ones.
        rows[1:] = sorted(rows[1:], key=lambda row: -log_probabilities[row])
        left = 1.0  # a further candidate can only be right where those before it are wrong
        for row in rows:
            score = left * found[row]
            left -= score
            candidate = Candidate(texts[row], score, log_probabilities[row], forward[row], reverse[row])
            reading.n_best.append(candidate)
        if not reading.n_best:
            reading.error = f"{reading.name}: no formula fits within max_length; allow a longer one."
            continue
        best = reading.n_best[0]
        reading.text, reading.score = best.text, best.score
        reading.token_scores = output.token_scores[index * n_best, : len(best.text.split())].float().tolist()


def _explain(processor, readings: list[FormulaReading], views: list[_View], output, n_best: int):
    """Fill in where the model looked as it wrote the best reading of each."""
    geometry = torch.stack([view.geometry for view in views])
    sizes = [(view.picture.height, view.picture.width) for view in views]
    special = torch.tensor(processor.tokenizer.all_special_ids, device=output.sequences.device)
    tokens = (~torch.isin(output.sequences[::n_best], special)).cpu().numpy()
    found = {}
    for name, maps in (("attentions", output.cross_attentions), ("coverages", output.coverages)):
        found[name] = processor.post_process_attention(maps[::n_best], geometry, sizes, max_side=MAP_SIDE)
    for index, (reading, view) in enumerate(zip(readings, views)):
        reading.image = view.picture
        reading.attentions, reading.coverages = (maps[index][tokens[index]] for maps in found.values())


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
    name = DEFAULT_CHECKPOINTS[task]
    for root in (Path(), Path(__file__).resolve().parents[2]):
        folder = root / "checkpoints" / name
        if (folder / "config.json").is_file():
            return str(folder)
    return f"{HUB_ORGANISATION}/{name}"


def _check_task(task: str | None, model_type: str | None = None, model: str | Path = ""):
    if task is not None and task not in DEFAULT_CHECKPOINTS:
        raise ValueError(f"task must be one of {', '.join(DEFAULT_CHECKPOINTS)} in this version, not {task!r}.")
    if any(config.model_type == model_type and processor is None for config, _, _, processor in MODELS):
        raise ValueError(
            f"{model}: a model of type {model_type!r} classifies images and reads no text; use "
            f"transformers.pipeline('image-classification', model={str(model)!r})."
        )
    if model_type is not None and (model_type not in TASKS_OF or (task and task not in TASKS_OF[model_type])):
        raise ValueError(f"{model}: a model of type {model_type!r} does not read {task or 'formulas'}.")


def _load_processor(folder: str | Path) -> ProcessorMixin:
    if not folder:
        raise ValueError("the model was not loaded from a folder or the Hub, so pass its processor too.")
    try:
        return AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder}: its processor cannot be loaded ({first_line(error)}).") from None


# ----------------------------------------------------------------------------------------------------------- inputs


def prepare(
    item, processor: ProcessorMixin, task: str | None, name: str, explain: bool = False
) -> tuple[torch.Tensor, _View | None]:
    """One input as the model sees it: (1, height, width) float32 in 0..1, white ink on black.

    With `explain` also as a picture to look at.

    Raises:
        ValueError: it cannot be read; one sentence that names it.
    """
    content = open_input(item, name)
    image = to_image(content, name, task)
    height, width = image.shape[-2:] if is_channel_first(image) else height_and_width(image)
    try:
        processor.image_processor.scale_factor(height, width)  # refuses before anything large is computed
        if isinstance(image, Image.Image) and max(image.size) > MAX_SIDE:
            image = image.reduce(math.ceil(max(image.size) / MAX_SIDE))
        known = AS_DRAWN if isinstance(content, Ink) else {}
        batch = processor(images=[image], return_geometry=True, **known)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: {str(error).removeprefix('Image 0 cannot be read: ')}") from None
    return batch["pixel_values"][0], _view(content, image, batch["geometry"][0]) if explain else None


def _view(content, image: Image.Image | np.ndarray, geometry: torch.Tensor) -> _View:
    """What `explain` shows of an input: of ink, strokes drawn afresh, and finer than the model needs them."""
    if isinstance(content, Ink):
        finer = max(1, min(3, PICTURE_SIDE // max(image.size)))
        picture = ImageOps.invert(render(content.strokes, 28.0 * finer, 3.0 * finer, 12 * finer))
        # Closes the hairlines between the pieces of a stroke, which show at this size: blur, then sharp edges again.
        picture = picture.filter(ImageFilter.GaussianBlur(finer / 2)).point(lambda grey: 3 * grey - 255)
    else:
        picture = image if isinstance(image, Image.Image) else _picture(image)
        coarser = math.ceil(max(picture.size) / PICTURE_SIDE)
        picture, finer = picture.reduce(coarser), 1 / coarser
    return _View(picture, geometry * torch.tensor([finer, finer, 1 / finer, 1 / finer]))


def _picture(pixels: np.ndarray) -> Image.Image:
    """An array that the processor takes, as it takes it: channels first or last, of any range."""
    if is_channel_first(pixels):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.dtype != np.uint8:
        high = 65535 if pixels.dtype == np.uint16 or (pixels.dtype == np.int32 and pixels.max() > 255) else 255
        pixels = np.asarray(pixels, np.float32) / (1 if pixels.max() <= 1 else high)
        pixels = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels)


__all__ = ["DEFAULT_CHECKPOINTS", "HUB_ORGANISATION", "Candidate", "FormulaReading", "load", "read", "read_all"]
