"""Images with classes: reading them from files, and training batches in a reproducible order.

The schema, a `datasets.Dataset`:

| column | content |
|---|---|
| `id` | string, unique within its split |
| `image` | `datasets.Image` |
| `label` | `datasets.ClassLabel` |
| `split`, `source` | strings, where known |
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..inputs import IMAGE_FORMATS, to_image
from .readers import column_values, expand_path, files_below, listing, load_parquet, names_of, narrow

if TYPE_CHECKING:
    from datasets import Dataset

MAX_CLASSES = 100_000
MAX_MEMORY = 2**30  # bytes of prepared images that are kept; the 70,000 of Fashion-MNIST take 55 million in grey
CHUNK = 256  # images that are prepared at once


# ---------------------------------------------------------------------------------------------------------- reading


def load_images(
    path: str | Path,
    split: str | None = None,
    source: str | None = None,
    limit: int | None = None,
    labelled: bool = True,
) -> Dataset:
    """Load images with their classes in the schema above.

    Args:
        path: one of
            * a parquet file, or a folder of such files, with columns `image` and `label`. Classes of `ClassLabel` keep
              their numbers and names; strings become classes in alphabetical order, whole numbers are taken as they
              are, each over all splits of the files;
            * a folder of images, `CLASS/*.png` or `SPLIT/CLASS/*.png` (the layout of `datasets`' imagefolder).
            Environment variables such as `${EPIGRAPH_DATA}` are expanded.
        split: keep these rows only: of the `split` column or, without one, of the files named so.
        source: keep the rows with this value in the `source` column.
        limit: keep so many rows only, evenly chosen: files are often sorted by class.
        labelled: False leaves labels out, and images need none; their folders, `*.png` or `SPLIT/*.png`, neither.

    Returns:
        The rows, in the order of the files. Images stay encoded; a damaged one is noticed when it is read.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: an unset variable in `path`, no images, missing columns, no such split or source, fewer than two
            classes, a label that is none of the classes (naming the row).
    """
    path = expand_path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; {path.parent} holds {listing(path.parent)}.")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}.")
    if files := files_below(path, ".parquet"):
        needed = (("image",), ("label",)) if labelled else (("image",),)
        rows = load_parquet(files, path, split, "images with classes" if labelled else "images", needed)
        rows = _with_classes_of_files(rows, files, path) if labelled else rows
    else:
        rows = _folder(path, labelled)
        if split is not None and "split" not in rows.column_names:
            raise ValueError(
                f"{path}: asked for split '{split}', but its images lie in no folders of splits; leave the split out, "
                f"or sort them into {split}/CLASS/name.png."
            )
        rows = rows if split is None else narrow(rows, "split", split, path)
    rows = rows if source is None else narrow(rows, "source", source, path)
    columns = ["id", "image", *(["label"] if labelled else []), "split", "source"]
    rows = rows.select_columns([column for column in columns if column in rows.column_names])
    if limit is None or limit >= len(rows):
        return rows
    return rows.select(np.linspace(0, len(rows) - 1, limit).round().astype(int))


def class_names(rows: Dataset) -> list[str]:
    """The names of the classes, by number."""
    return list(rows.features["label"].names)


def with_classes(rows: Dataset, names: Sequence[str], whose: str = "the model") -> Dataset:
    """The rows with their classes numbered as in `names`.

    Raises:
        ValueError: a class that rows have is not among the names.
    """
    own = class_names(rows)
    if own == list(names):
        return rows
    numbers = {name: number for number, name in enumerate(names)}
    labels = rows["label"][:]
    if unknown := sorted({own[label] for label in labels} - set(numbers)):
        raise ValueError(
            f"the data hold the classes {names_of(unknown)}, which {whose} does not have; its classes are "
            f"{names_of(names)}."
        )
    return _labelled(rows, [numbers[own[label]] for label in labels], names)


def _with_classes_of_files(rows: Dataset, files: list[Path], path: Path) -> Dataset:
    """Labels as `ClassLabel`; its names are those of all rows of the files, whatever split was asked for."""
    import datasets

    feature, labels = rows.features["label"], rows["label"][:]
    kind = getattr(feature, "dtype", str(feature))
    if isinstance(feature, datasets.ClassLabel):
        names = feature.names
        _check_numbering(files)
    elif kind in ("string", "large_string"):
        names = sorted(column_values(files, "label") - {None})
        numbers = {name: number for number, name in enumerate(names)}
        labels = [numbers.get(label) for label in labels]
    elif kind.startswith(("int", "uint")):
        highest = max(column_values(files, "label") - {None}, default=0)
        if highest >= MAX_CLASSES:
            raise ValueError(f"{path}: label {highest} is no class; at most {MAX_CLASSES:,} classes are read.")
        names = [str(number) for number in range(highest + 1)]
    else:
        raise ValueError(f"{path}: labels must be class names or whole numbers, not {kind}.")
    if len(names) < 2:
        raise ValueError(f"{path}: its images are of {len(names)} class; at least 2 are needed.")
    for name, label in zip(rows["id"], labels):
        if label is None or not 0 <= label < len(names):
            raise ValueError(
                f"{path}: row {name} has the label {label}, which is none of the {len(names)} classes; give it one of "
                f"0 to {len(names) - 1}, or leave the row out."
            )
    return rows if isinstance(feature, datasets.ClassLabel) else _labelled(rows, labels, names)


def _check_numbering(files: list[Path]):
    """Raise ValueError where files have `ClassLabel` of other names: only the first file's would be kept."""
    import datasets
    import pyarrow.parquet

    found = {}
    for file in files:
        feature = datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(file))["label"]
        if isinstance(feature, datasets.ClassLabel):
            found[file] = feature.names
    first = next(iter(found))
    for file, names in found.items():
        if names != found[first]:
            raise ValueError(
                f"{first} numbers its classes {', '.join(found[first][:10])}, but {file} {', '.join(names[:10])}; "
                "name each file for itself, or save them with the same ClassLabel."
            )


def _labelled(rows: Dataset, labels: list[int], names: Sequence[str]) -> Dataset:
    import datasets

    column = datasets.ClassLabel(names=list(names))
    rows = rows.remove_columns("label") if "label" in rows.column_names else rows
    return rows.add_column("label", labels, feature=column)


def _folder(path: Path, labelled: bool) -> Dataset:
    """`CLASS/*.png` or `SPLIT/CLASS/*.png`; without labels also `*.png` and `SPLIT/*.png`."""
    import datasets

    if not path.is_dir():
        raise ValueError(f"{path}: neither a parquet file nor a folder of images.")
    found = sorted(file.relative_to(path) for suffix in IMAGE_FORMATS for file in files_below(path, suffix))
    found = [file for file in found if not any(part.startswith(".") for part in file.parts)]
    if not found:
        raise ValueError(
            f"{path}: no images found; expected parquet files or CLASS/*.png, but it holds {listing(path)}."
        )
    depths = (2, 3) if labelled else (1, 2, 3)
    for file in found:
        if len(file.parts) != len(found[0].parts) or len(file.parts) not in depths:
            raise ValueError(
                f"{path}: the places of {found[0]} and {file} do not tell their classes; all images must lie as "
                "CLASS/name.png, or all as SPLIT/CLASS/name.png."
            )
    depth = len(found[0].parts)
    split_known = depth == 3 or (depth == 2 and not labelled)
    text = datasets.Value("string")
    columns = {
        "id": [file.as_posix() for file in found],
        "image": [{"bytes": None, "path": str(path / file)} for file in found],
    }
    features = {"id": text, "image": datasets.Image()}
    if split_known:
        columns["split"], features["split"] = [file.parts[0] for file in found], text
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    if not labelled:
        return rows
    names = sorted({file.parts[-2] for file in found})
    if len(names) < 2:
        raise ValueError(f"{path}: its images are of {len(names)} class; at least 2 are needed.")
    return _labelled(rows, [names.index(file.parts[-2]) for file in found], names)


def open_images(rows: Dataset) -> Iterator[tuple[str, object]]:
    """The name of each row, and its image as a Pillow image, or the ValueError that says why it cannot be opened."""
    for row in _encoded(rows):
        yield _opened(row["id"], row["image"])


def _encoded(rows: Dataset) -> Dataset:
    """Names and images as they are stored, so that a damaged one is one row's error."""
    import datasets

    return rows.select_columns(["id", "image"]).cast_column("image", datasets.Image(decode=False))


def _opened(row_id: str, stored: dict) -> tuple[str, object]:
    name = f"row {row_id}"
    if stored is None or not (stored["bytes"] or stored["path"]):
        return name, ValueError(f"{name}: there is no image in it.")
    try:
        return name, to_image(stored["bytes"] or stored["path"], name)
    except ValueError as error:
        return name, error


# --------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class ImageAugmentation:
    """How prepared images are varied in training; by default not at all.

    Attributes:
        shift: largest shift, in pixels of the prepared image, along both axes; what comes in repeats the border.
        flip: whether half of the images are mirrored left to right. Not for text and digits: a mirrored one is
            another sign, or none.
    """

    shift: int = 0
    flip: bool = False

    def __post_init__(self):
        if not isinstance(self.flip, bool) or not isinstance(self.shift, int) or self.shift < 0:
            raise ValueError(f"augmentation: shift must be 0, 1, 2 ... and flip true or false, not {self}.")

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """An image (channels, height, width), varied by what `rng` draws."""
        _, height, width = image.shape
        down, across = rng.integers(-self.shift, self.shift + 1, 2)
        mirrored = rng.random() < 0.5
        rows = (np.arange(height) + down).clip(0, height - 1)
        columns = (np.arange(width) + across).clip(0, width - 1)
        return image[:, rows[:, None], columns[::-1] if self.flip and mirrored else columns]


class ImageDataset(torch.utils.data.Dataset):
    """Images as the processor resizes them, before it normalises: uint8 (channels, height, width).

    Where all of them fit into `max_memory`, each is decoded and resized once, here; otherwise whenever it is asked
    for.

    Args:
        rows: of `load_images`.
        processor: the model's image processor; it must give all images one size.
        augmentation: how training keys (index, epoch) are varied; None and plain indices are not.
        seed: with epoch and index it determines every variation, whatever worker makes it.
        max_memory: bytes.

    Raises:
        ValueError: naming the row whose image cannot be read, or has another size than the first.
    """

    def __init__(
        self,
        rows: Dataset,
        processor,
        augmentation: ImageAugmentation | None = None,
        seed: int = 0,
        max_memory: int = MAX_MEMORY,
    ):
        self.encoded, self.processor, self.augmentation, self.seed = _encoded(rows), processor, augmentation, seed
        self.labels = rows["label"][:] if "label" in rows.column_names else None
        self.pixels = self.shape = None
        self.shape = self.prepare(0, 1).shape[1:]
        if len(rows) * math.prod(self.shape) <= max_memory:
            self.pixels = np.empty((len(rows), *self.shape), np.uint8)
            with tqdm(total=len(rows), desc="Preparing images", unit=" images", disable=None) as bar:
                for start in range(0, len(rows), CHUNK):
                    chunk = self.prepare(start, start + CHUNK)
                    self.pixels[start : start + CHUNK] = chunk
                    bar.update(len(chunk))

    def prepare(self, start: int, stop: int) -> np.ndarray:
        """The images of these rows, decoded and resized: (images, channels, height, width) uint8."""
        rows = self.encoded[start:stop]
        opened = [_opened(*row) for row in zip(rows["id"], rows["image"])]
        for _, image in opened:
            if isinstance(image, ValueError):
                raise image
        try:
            images = self._resized([image for _, image in opened])
        except ValueError:
            images = None
        if images is not None and self.shape in (None, images.shape[1:]):
            return images
        parts = []  # one after the other, to name the row
        for name, image in opened:
            try:
                parts.append(self._resized([image]))
            except ValueError as error:
                raise ValueError(f"{name}: {str(error).removeprefix('Image 0 cannot be read: ')}") from None
            height, width = parts[-1].shape[2:]
            if parts[-1].shape[1:] != self.shape:
                raise ValueError(
                    f"{name}: prepared, it is {height} x {width} pixels (height x width), but the first row is "
                    f"{self.shape[1]} x {self.shape[2]}; let the processor resize."
                )
        return np.concatenate(parts)

    def _resized(self, images: list) -> np.ndarray:
        batch = self.processor(images=images, do_rescale=False, do_normalize=False, return_tensors="pt")
        return batch["pixel_values"].to(torch.uint8).numpy()

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        """`{"image", "label"}` of a row; a training key is (index, epoch)."""
        index, epoch = key if isinstance(key, tuple) else (key, None)
        image = self.prepare(index, index + 1)[0] if self.pixels is None else self.pixels[index]
        if epoch is not None and self.augmentation is not None:
            image = self.augmentation(image, np.random.default_rng([self.seed, epoch, index]))
        return {"image": image, "label": None if self.labels is None else self.labels[index]}


class ImageLoader:
    """Training batches `{pixel_values, labels}` from any place in the run; without labels where rows have none.

    The order is a function of (seed, epoch). Of every global batch process `rank` takes each `world`-th example, so
    that the global batch is that of one process.

    Args:
        rows: of `load_images`.
        processor: the model's image processor.
        batch_size: examples over all processes.
        seed: of order and variation.
        num_workers: processes that prepare batches; small images that are kept in memory need none.
        augmentation: how images are varied.
        max_memory: bytes of prepared images that may be kept; see `ImageDataset`, also for what is raised.
    """

    def __init__(
        self,
        rows: Dataset,
        processor,
        batch_size: int,
        seed: int = 0,
        num_workers: int = 0,
        augmentation: ImageAugmentation | None = None,
        max_memory: int = MAX_MEMORY,
    ):
        self.dataset = ImageDataset(rows, processor, augmentation, seed, max_memory)
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers

    def collate(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        """Examples of the data set to the model's arguments, through the processor."""
        images = [example["image"] for example in examples]
        settings = {"do_resize": False, "input_data_format": "channels_first", "return_tensors": "pt"}
        batch = dict(self.dataset.processor(images=images, **settings))
        if self.dataset.labels is not None:
            batch["labels"] = torch.tensor([example["label"] for example in examples])
        return batch

    def __call__(self, epoch: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[dict[str, torch.Tensor]]:
        """Batches of `epoch` from number `start` on, the share of process `rank` among `world`."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset)).tolist()
        batches = [order[first : first + self.batch_size] for first in range(0, len(order), self.batch_size)]
        # A global batch smaller than the number of processes would leave one without work.
        batches = [batch[rank::world] for batch in batches if len(batch) >= world]
        if not batches:
            raise ValueError(f"{len(order)} images in batches of {self.batch_size} are too few for {world} processes.")
        return self.batches([[(index, epoch) for index in batch] for batch in batches[start:]])

    def in_order(self) -> Iterator[dict[str, torch.Tensor]]:
        """Every row once, unvaried, in order: for measuring."""
        order = list(range(len(self.dataset)))
        return self.batches([order[first : first + self.batch_size] for first in order[:: self.batch_size]])

    def batches(self, keys: list[list]) -> Iterator[dict[str, torch.Tensor]]:
        """Batches of these keys of the data set."""
        return iter(
            DataLoader(
                self.dataset,
                batch_sampler=keys,
                collate_fn=self.collate,
                num_workers=self.num_workers,
                multiprocessing_context="fork" if self.num_workers else None,
                # Its own generator: a loader otherwise draws from the global one, and a resumed run would differ.
                generator=torch.Generator(),
            )
        )


__all__ = [
    "ImageAugmentation",
    "ImageDataset",
    "ImageLoader",
    "class_names",
    "load_images",
    "open_images",
    "with_classes",
]
