"""Formulas as `epigraph.read` reads them: images and ink become LaTeX, with scores and with where the model looked."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter, ImageOps
from transformers import PreTrainedModel, ProcessorMixin

from .calibration import probabilities
from .data.ink import AS_DRAWN, Ink, render
from .inputs import height_and_width, is_channel_first, open_input, picture_of, to_image

MAX_SIDE = 4096  # larger images are reduced before they become floats; models read at most 1024 x 256 pixels
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


@dataclass
class FormulaReader:
    """A model that reads formulas, for `read_all`, where its attributes are described."""

    model: PreTrainedModel
    processor: ProcessorMixin
    task: str | None
    n_best: int
    explain: bool
    generation: dict

    reading, unit = FormulaReading, "formulas"

    def read(self, inputs: list[tuple[FormulaReading, object]], batch_size: int) -> Iterator[int]:
        """Fill in the reading of every input, in batches of like sizes; yields how many more are done."""
        ready = []
        for reading, item in inputs:
            try:
                ready.append((reading, *prepare(item, self.processor, self.task, reading.name, self.explain)))
            except ValueError as error:
                reading.error = str(error)
        yield len(inputs) - len(ready)
        ready.sort(key=lambda entry: entry[1].numel())
        for start in range(0, len(ready), batch_size):
            batch, pixels, views = zip(*ready[start : start + batch_size])
            views = views if self.explain else None
            _generate(self.model, self.processor, batch, pixels, views, self.n_best, self.generation)
            yield len(batch)


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
        picture = image if isinstance(image, Image.Image) else picture_of(image)
        coarser = math.ceil(max(picture.size) / PICTURE_SIDE)
        picture, finer = picture.reduce(coarser), 1 / coarser
    return _View(picture, geometry * torch.tensor([finer, finer, 1 / finer, 1 / finer]))


__all__ = ["Candidate", "FormulaReader", "FormulaReading", "prepare"]
