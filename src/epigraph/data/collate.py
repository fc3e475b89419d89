"""Formulas to batches: rendering with augmentation, and batches of similar size in a reproducible order."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from .ink import AS_DRAWN, InkAugmentation, SymbolBank, as_strokes, ink_size, render

SYMBOL_HEIGHT = 28.0  # pixels, the field's rule
LINE_WIDTH = 3.0


def bucket_by_area(
    areas: Sequence[float],
    lengths: Sequence[int],
    batch_size: int = 8,
    max_pixels: int = 320_000,
    max_label_length: int = 200,
    order: Sequence[int] | None = None,
) -> list[list[int]]:
    """Cut examples into batches that stay under a pixel budget (CoMER's rule).

    A batch closes at `batch_size` examples, or when its largest image times its size would pass `max_pixels`.
    Examples larger than `max_pixels`, or with labels longer than `max_label_length`, are left out.

    Args:
        areas: height times width of every example.
        lengths: tokens of its label.
        order: in which examples are taken, by default from the smallest area to the largest.
    """
    order = np.argsort(areas, kind="stable") if order is None else order
    batches, batch, largest = [], [], 0.0
    for index in map(int, order):
        area = areas[index]
        if area > max_pixels or lengths[index] > max_label_length:
            continue
        if batch and (len(batch) == batch_size or max(largest, area) * (len(batch) + 1) > max_pixels):
            batches.append(batch)
            batch, largest = [], 0.0
        batch.append(index)
        largest = max(largest, area)
    return [*batches, batch] if batch else batches


class FormulaDataset(torch.utils.data.Dataset):
    """Rows of the formula schema as images; training keys draw their own, reproducible variation.

    Args:
        rows: a `datasets.Dataset` with `text` and `strokes` or `image`.
        augmentation: how ink is varied; None draws it as it is.
        seed: with epoch and index it determines every variation, whatever worker makes it.

    Raises:
        InkError: naming the row whose strokes cannot be drawn.
    """

    def __init__(self, rows, augmentation: InkAugmentation | None = None, seed: int = 0):
        self.rows = rows
        self.augmentation = augmentation
        self.seed = seed
        columns = rows.column_names
        self.from_ink = "strokes" in columns
        self.texts = rows["text"][:]
        self.names = [f"row {name}" for name in (rows["id"] if "id" in columns else range(len(rows)))]
        if self.from_ink:
            # Kept as arrays: Arrow would make Python floats of every point, at each look.
            self.strokes = [as_strokes(strokes, name) for name, strokes in zip(self.names, rows["strokes"])]
            self.symbols = rows["symbols"][:] if "symbols" in columns else [None] * len(rows)
            swapping = augmentation is not None and augmentation.swap > 0 and "symbols" in columns
            pairs = zip(self.strokes, self.symbols)
            self.bank = SymbolBank({"strokes": s, "symbols": y} for s, y in pairs) if swapping else None

    def __len__(self) -> int:
        return len(self.texts)

    def sizes(self) -> np.ndarray:
        """Height and width of every unvaried image, (rows, 2), in pixels."""
        if self.from_ink:
            return np.array([ink_size(strokes, SYMBOL_HEIGHT, LINE_WIDTH) for strokes in self.strokes])
        return np.array([image.size[::-1] for image in self.rows["image"]])

    def __getitem__(self, key: int | tuple[int, int, float]) -> dict:
        """`{"image", "text", "name", "drawn", "zoom"}` of a row; a training key is (index, epoch, zoom)."""
        index, epoch, zoom = key if isinstance(key, tuple) else (key, None, 1.0)
        varied = epoch is not None and self.augmentation is not None
        rng = np.random.default_rng([self.seed, epoch or 0, index])
        if self.from_ink:
            arguments = (self.strokes[index], SYMBOL_HEIGHT, LINE_WIDTH)
            if varied:
                # The zoom is the batch's, so that its images stay of one size; a little is each image's own.
                augmentation = replace(self.augmentation, scale=(0.96 * zoom, 1.04 * zoom))
                arguments = augmentation(self.strokes[index], rng, self.symbols[index], self.bank)
            image = render(*arguments)
        else:
            image = self.rows[index]["image"]
            if varied:
                factor = zoom * rng.uniform(0.96, 1.04)
                size = [max(1, round(side * factor)) for side in image.size]
                image = image.resize(size, Image.Resampling.BILINEAR)
        example = {"image": image, "text": self.texts[index], "name": self.names[index]}
        return {**example, "drawn": self.from_ink, "zoom": zoom if varied else 1.0}


class FormulaBatches:
    """The order of one training run: which examples make which batch, as a function of (seed, epoch) alone.

    Args:
        sizes: (rows, 2) height and width in pixels.
        lengths: tokens of each label.
        batch_size, max_pixels, max_label_length: as in `bucket_by_area`.
        max_image_pixels: larger images are left out; very long formulas cost much and teach little.
        zoom: range of the size factor that the images of a batch share.
    """

    def __init__(
        self,
        sizes,
        lengths,
        batch_size: int,
        max_pixels: int,
        max_label_length: int = 200,
        max_image_pixels: int = 320_000,
        seed: int = 0,
        zoom: tuple[float, float] = (1.0, 1.0),
    ):
        sizes = np.asarray(sizes, dtype=np.float64)
        self.areas, self.lengths = sizes.prod(1), np.asarray(lengths)
        self.shapes = np.column_stack([sizes, self.lengths + 1])
        self.usable = (self.areas <= max_image_pixels) & (self.lengths <= max_label_length)
        if not self.usable.any():
            raise ValueError("No training example is within max_image_pixels and max_label_length.")
        self.batch_size, self.max_pixels, self.max_label_length = batch_size, max_pixels, max_label_length
        self.seed, self.zoom = seed, zoom

    def epoch(self, epoch: int) -> list[list[tuple[int, int, float]]]:
        """The batches of an epoch, as lists of `FormulaDataset` keys."""
        rng = np.random.default_rng([self.seed, epoch])
        # The noise makes other neighbours in every epoch.
        noise = rng.uniform(0.97, 1.03, self.shapes.shape)
        groups = _alike(np.log(self.shapes * noise), np.flatnonzero(self.usable), self.batch_size)
        limits = (self.areas, self.lengths, self.batch_size, self.max_pixels, self.max_label_length)
        batches = [batch for group in groups for batch in bucket_by_area(*limits, order=group)]
        zooms = rng.uniform(*self.zoom, len(batches))
        return [
            [(index, epoch, float(zooms[number])) for index in batches[number]]
            for number in rng.permutation(len(batches))
        ]


def _alike(points: np.ndarray, members: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut `members` into groups of at most `size` near neighbours: halve along the widest spread, again and again.

    Images of like height and width with labels of like length need little padding, in encoder and decoder.
    """
    if len(members) <= size:
        return [members]
    axis = points[members].std(0).argmax()
    ordered = members[np.argsort(points[members, axis], kind="stable")]
    middle = -(-len(members) // size) // 2 * size
    return _alike(points, ordered[:middle], size) + _alike(points, ordered[middle:], size)


class FormulaCollator:
    """Examples to the model's arguments, through its processor.

    Drawn ink keeps the size it was drawn at. Where the processor itself finds the size of the writing in images, a
    batch is varied by its `zoom` of that.

    Raises:
        ValueError: naming the row whose image or label cannot be used.
    """

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        images, texts, names = ([example[key] for example in examples] for key in ("image", "text", "name"))
        settings = {}
        if examples[0].get("drawn"):
            settings = AS_DRAWN
        elif height := self.processor.image_processor.symbol_height:
            settings = {"symbol_height": height * examples[0].get("zoom", 1.0)}
        try:
            return dict(self.processor(images=images, text=texts, **settings))
        except ValueError:
            for image, text, name in zip(images, texts, names):
                try:
                    self.processor(images=[image], text=[text], **settings)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None
            raise


class FormulaLoader:
    """Training batches from any place in the run.

    Of every global batch process `rank` takes each `world`-th example, so that the global batch is that of one
    process.
    """

    def __init__(self, dataset: FormulaDataset, batches: FormulaBatches, processor, num_workers: int = 0):
        self.dataset, self.batches, self.collate = dataset, batches, FormulaCollator(processor)
        self.num_workers = num_workers

    def __call__(self, epoch: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[dict[str, torch.Tensor]]:
        """Batches of `epoch` from number `start` on, the share of process `rank` among `world`."""
        # A global batch smaller than the number of processes would leave one without work.
        batches = [batch for batch in self.batches.epoch(epoch) if len(batch) >= world]
        mine = [batch[rank::world] for batch in batches[start:]]
        return iter(
            DataLoader(
                self.dataset,
                batch_sampler=mine,
                collate_fn=self.collate,
                num_workers=self.num_workers,
                multiprocessing_context="fork" if self.num_workers else None,
                # Its own generator: a loader otherwise draws from the global one, and a resumed run would differ.
                generator=torch.Generator(),
            )
        )
