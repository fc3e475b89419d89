"""Leaks: images of a test set that also stand in the training set, found by perceptual hash.

A hash of 63 bits says which of the lowest frequencies of the image (its discrete cosine transform) are above their
median (Zauner 2010, "pHash"). It survives new compression, other sizes, blur, grey and other exposure. Words of one
font look much alike, so that every pair of near hashes is compared once more, as small grey pictures: only pairs whose
pictures correlate are reported.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .image_classes import open_images

if TYPE_CHECKING:
    from datasets import Dataset

MAX_DISTANCE = 10  # bits of 63
MIN_CORRELATION = 0.9
HASHED = (64, 32)  # width and height that hashes are made from, of the shape of words
COMPARED = (24, 12)
FREQUENCIES = 8  # along each axis; the lowest of all, the mean, is left out
BLOCK = 2**20  # training images that are compared at once


@dataclass(frozen=True)
class Leak:
    """A pair of images that look the same.

    Attributes:
        test, train: ids of the rows.
        distance: differing bits of the hashes, of 63.
        correlation: of the small grey pictures, at most 1.
        test_text, train_text: what the rows say, None where they do not.
    """

    test: str
    train: str
    distance: int
    correlation: float
    test_text: str | None = None
    train_text: str | None = None


def perceptual_hash(image: Image.Image) -> int:
    """63 bits of an image of any mode. Images of one colour have the hash 0."""
    pixels = _grey(image, HASHED)
    width, height = HASHED
    low = (_cosines(height) @ pixels @ _cosines(width).T).ravel()[1:]
    # Rounding leaves something of images of one colour.
    bits = (low > np.median(low)) & (np.abs(low).max() > 1e-3 * pixels.size)
    return int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little")


def look_of(image: Image.Image) -> tuple[int, np.ndarray]:
    """What `same_look` compares: the hash, and the small grey picture (288,) uint8."""
    return perceptual_hash(image), _grey(image, COMPARED).astype(np.uint8).ravel()


def same_look(one: tuple[int, np.ndarray], other: tuple[int, np.ndarray]) -> bool:
    """Whether `find_leaks` would report two images as a pair; images of one colour are like nothing."""
    near = (one[0] ^ other[0]).bit_count() <= MAX_DISTANCE
    return near and float(_standardised(one[1]) @ _standardised(other[1])) >= MIN_CORRELATION


def find_near(train: np.ndarray, test: np.ndarray, max_distance: int = MAX_DISTANCE) -> Iterator[tuple[int, int, int]]:
    """Pairs of hashes that differ in few bits.

    Args:
        train, test: (n,) uint64.

    Yields:
        Number in `test`, number in `train`, differing bits; in the order of `test`.
    """
    train, test = np.asarray(train, np.uint64), np.asarray(test, np.uint64)
    for number, value in enumerate(test):
        for start in range(0, len(train), BLOCK):
            distances = np.bitwise_count(train[start : start + BLOCK] ^ value)
            for place in np.flatnonzero(distances <= max_distance):
                yield number, start + int(place), int(distances[place])


def find_leaks(
    train: Dataset,
    test: Dataset,
    max_distance: int = MAX_DISTANCE,
    min_correlation: float = MIN_CORRELATION,
    progress: bool = False,
) -> tuple[list[Leak], list[tuple[str, str]]]:
    """Rows of `test` whose image also stands in `train`.

    Args:
        train, test: rows with `id` and `image`, as `load_words` or `load_images` give them; `text` is reported where
            there is one. Of each image 300 bytes are kept in memory.
        max_distance: most differing bits of two hashes that are looked at.
        min_correlation: least likeness of the small grey pictures, in -1..1.
        progress: show progress bars.

    Returns:
        The leaks, in the order of `test` and the likest first; and name and reason of the images that could not be
        read.
    """
    unread = []
    test_rows, test_hashes, queries = _hashed(test, "test", unread, progress)
    train_rows, train_hashes, pictures = _hashed(train, "train", unread, progress)
    leaks = []
    for place, pairs in itertools.groupby(
        find_near(train_hashes, test_hashes, max_distance), key=lambda pair: pair[0]
    ):
        query, found = _standardised(queries[place]), []
        for _, other, distance in pairs:
            correlation = float(query @ _standardised(pictures[other]))
            if correlation >= min_correlation:
                found.append((-correlation, other, distance))
        for correlation, other, distance in sorted(found):
            (name, text), (train_name, train_text) = test_rows[place], train_rows[other]
            leaks.append(Leak(name, train_name, distance, min(1.0, -correlation), text, train_text))
    return leaks, unread


def _hashed(rows: Dataset, kind: str, unread: list, progress: bool) -> tuple[list, np.ndarray, np.ndarray]:
    """(id, text), hash and small grey picture (n, 288) uint8 of the images that can be read."""
    from tqdm.auto import tqdm

    texts = iter(rows["text"]) if "text" in rows.column_names else itertools.repeat(None)
    names, hashes, pictures = [], [], []
    images = tqdm(open_images(rows), desc=f"Hashing {kind}", total=len(rows), unit=" images", disable=not progress)
    for (shown, image), name, text in zip(images, rows["id"], texts):
        if isinstance(image, ValueError):
            unread.append((f"{kind} {name}", str(image).removeprefix(f"{shown}: ").rstrip(".")))
            continue
        names.append((name, text))
        hashes.append(perceptual_hash(image))
        pictures.append(_grey(image, COMPARED).astype(np.uint8).ravel())
    return names, np.array(hashes, np.uint64), np.array(pictures)


def _grey(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """(height, width) float32 in 0..255, on white where the image is transparent."""
    if image.mode in ("RGBA", "LA", "PA"):
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.asarray(image.convert("L").resize(size, Image.Resampling.BILINEAR), np.float32)


def _cosines(count: int) -> np.ndarray:
    """The lowest waves of the cosine transform of `count` values: (FREQUENCIES, count)."""
    places = np.pi * (2 * np.arange(count) + 1) / (2 * count)
    return np.cos(np.arange(FREQUENCIES)[:, None] * places).astype(np.float32)


def _standardised(picture: np.ndarray) -> np.ndarray:
    """Without its mean and of length 1; all 0 where it is of one colour, which is like nothing."""
    picture = picture.astype(np.float32)
    picture -= picture.mean()
    return picture / max(float(np.linalg.norm(picture)), 1e-6)


__all__ = ["Leak", "find_leaks", "find_near", "look_of", "perceptual_hash", "same_look"]
