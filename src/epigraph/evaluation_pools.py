"""Pools as words are measured with them: chosen by chance, without the words themselves, and as controls.

A control is a pool whose `search` finds something else: entries drawn by chance, or the right entries with wrong
texts. `epigraph.read_all` takes them as it takes a `ContextPool`.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .context_pool import ContextPool, Example
from .data.leaks import look_of, same_look
from .data.readers import expand_path
from .data.words import Half, half_of, load_words
from .pool_entries import check_text, open_crop, pixels_hash
from .pool_storage import holds_pool

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


class Contents:
    """The encoded image of every row, so that a damaged one is one row's error."""

    def __init__(self, dataset: "Dataset"):
        from datasets import Image

        self.rows = dataset.select_columns(["image"]).cast_column("image", Image(decode=False))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[bytes]:
        for row in self.rows:
            image = row["image"] or {"bytes": b"", "path": None}
            content = image["bytes"] or b""
            if not content and image["path"]:
                with suppress(OSError):
                    content = Path(image["path"]).read_bytes()
            yield content  # nothing, where there is nothing: no image to whoever reads it


def pixels_of(contents: Contents) -> Iterator[str | None]:
    """What tells the pixels of every image; None where it cannot be read."""
    for content in contents:
        try:
            yield pixels_hash(open_crop(content, "")[0])
        except ValueError:
            yield None


class NearestExamples:
    """A pool as it is read with, `--context knn`: for each word the entries most like it, most similar first.

    Args:
        pool: what is searched.
        seed: of what the other modes leave to chance.

    Attributes:
        alike: for the pixels of each query the ids of examples that look the same (`data.leaks.same_look`): the word
            itself, most likely, stored in another way. Only what was found is compared, so that large pools cost
            nothing.
    """

    def __init__(self, pool: ContextPool, seed: int = 0):
        self.pool, self.seed, self.encode = pool, seed, pool.encode
        self.alike: dict[str, list[str]] = {}
        self._looks: dict[str, tuple] = {}  # of examples

    def __len__(self) -> int:
        return len(self.pool)

    def search(self, images: Sequence, k: int = 2, keys=None, source: str | None = None) -> list[list[Example]]:
        """As `ContextPool.search`."""
        pictures = [open_crop(image, f"query {number}")[0] for number, image in enumerate(images)]
        found = self.find(pictures, k, keys, source)
        for picture, examples in zip(pictures, found):
            own = look_of(picture)
            if alike := [example.id for example in examples if same_look(own, self._look(example))]:
                self.alike[pixels_hash(picture)] = alike
        return found

    def _look(self, example: Example) -> tuple:
        if example.id not in self._looks:
            self._looks[example.id] = look_of(example.image)
        return self._looks[example.id]

    def find(self, pictures: list, k: int, keys=None, source: str | None = None) -> list[list[Example]]:
        """`search` of pictures that are open, without a look at what looks the same."""
        return self.pool.search(pictures, k, keys=keys, source=source)


class RandomExamples(NearestExamples):
    """`--context random`: for each word `k` different entries drawn by chance, with their own texts.

    What a word gets depends on the seed, its pixels and the pool's entries, not on what it is read with.
    """

    def __init__(self, pool: ContextPool, seed: int = 0):
        super().__init__(pool, seed)
        self.ids = sorted(pool.ids)

    def find(self, pictures: list, k: int, keys=None, source: str | None = None) -> list[list[Example]]:
        """See `search`."""
        drawn = []
        for picture, own in zip(pictures, self.pool.same(pictures)):
            chance = np.random.default_rng([self.seed, int(pixels_hash(picture), 16)])
            places = chance.choice(len(self.ids), min(len(self.ids), k + len(own)), replace=False)
            drawn.append([name for name in (self.ids[place] for place in places) if name not in own][:k])
        examples = iter(self.pool.examples([name for names in drawn for name in names]))
        return [[next(examples) for _ in names] for names in drawn]


class WrongTexts(NearestExamples):
    """`--context wrong`: the entries of `knn`, each with the text of another entry, drawn by chance.

    An entry has the same wrong text for every word; it depends on the seed, the entry and the pool. Texts that differ
    only in case are the same.

    Raises:
        ValueError: all entries have one text.
    """

    def __init__(self, pool: ContextPool, seed: int = 0):
        super().__init__(pool, seed)
        self.texts = [text for _, text in sorted(zip(pool.ids, pool.texts))]
        if len({text.casefold() for text in self.texts}) == 1:
            raise ValueError(f"context 'wrong' needs different texts, but all entries of {pool!r} have the same.")

    def find(self, pictures: list, k: int, keys=None, source: str | None = None) -> list[list[Example]]:
        """See `search`."""
        found = super().find(pictures, k, keys, source)
        return [[replace(example, text=self._wrong_text(example)) for example in examples] for examples in found]

    def _wrong_text(self, example: Example) -> str:
        chance = np.random.default_rng([self.seed, int(example.id, 16)])
        while True:
            text = self.texts[chance.integers(len(self.texts))]
            if text.casefold() != example.text.casefold():
                return text


@dataclass
class OpenedPool:
    """A pool as it is measured with.

    Attributes:
        pool: its entries are the chosen ones.
        entries: how many there were to choose from.
        test_images: how many were left out because they have exactly the pixels of a word that is measured.
        refused: how many images of a data set cannot be entries.
    """

    pool: ContextPool
    entries: int
    test_images: int
    refused: int = 0

    def sha256(self) -> str:
        """Of the sorted ids of its entries, which are made of pixels and texts."""
        return hashlib.sha256("\n".join(sorted(self.pool.ids)).encode()).hexdigest()


class Pools:
    """Pools without the words that are measured, out of one source of examples, which is read once.

    Args:
        path: folder or Hub id of a pool that was saved, or anything that `load_words` reads.
        encode: the model's encoder (`epigraph.encoder`).
        split, source, half: of data, only these rows; a saved pool is taken as a whole.
        test: the words that are measured. Entries with exactly their pixels are not chosen.

    Raises:
        ValueError: no pool or data, or a part of them that there is not.
        FileNotFoundError: there is nothing at `path`.
    """

    def __init__(
        self,
        path: str,
        encode,
        *,
        split: str | None = None,
        source: str | None = None,
        half: Half | None = None,
        test: "Dataset | None" = None,
    ):
        self.path, self.encode, self.test = path, encode, test
        self.folder, self.rows = expand_path(path), None
        if self.folder.exists() and not holds_pool(self.folder):
            self.rows = half_of(load_words(path, split, source), half, path)
            self.pixels = set() if test is None else set(pixels_of(Contents(test))) - {None}
        elif (split, source, half) != (None, None, None):
            raise ValueError(
                f"{path}: a saved pool is taken as a whole; leave pool_split, pool_source and pool_half out."
            )

    def choose(self, size: int | None = None, seed: int = 0) -> OpenedPool:
        """A pool of `size` entries drawn by chance, by default of all. Nothing on disk changes.

        Of one seed, the smaller choice is part of the larger one.

        Raises:
            ValueError: a pool of another model, one of which nothing is left, or too few entries.
        """
        if self.rows is None:
            opened = _saved_pool(str(self.folder), self.encode, self.test, size, seed)
        else:
            opened = _pool_of_rows(self.rows, self.encode, self.pixels, size, seed)
        left, wanted = len(opened.pool), "" if size is None else f", of which {size} were to be chosen"
        if opened.entries and (not left or (size is not None and left < size)):
            raise ValueError(
                f"{self.path}: {left} entries can be used{wanted}; of {opened.entries}, {opened.test_images} are test "
                f"images and {opened.refused} cannot be entries."
            )
        if opened.test_images:
            logger.warning(
                "%s holds %d images that are measured; they are left out of it.", self.path, opened.test_images
            )
        return opened


def open_pool(path: str, encode, *, size: int | None = None, seed: int = 0, **chosen) -> OpenedPool:
    """One of `Pools`: see there for `chosen`, and `Pools.choose` for the rest."""
    return Pools(path, encode, **chosen).choose(size, seed)


def _saved_pool(path: str, encode, test: "Dataset | None", size: int | None, seed: int) -> OpenedPool:
    pool = ContextPool.load(path, encode)
    found = [] if test is None else (pool.same([content])[0] for content in Contents(test))
    ids, own = sorted(pool.ids), {name for names in found for name in names}
    left = [name for name in ids if name not in own]
    chosen = {left[place] for place in _order(len(left), size, seed)}
    pool.remove([name for name in ids if name not in chosen])
    return OpenedPool(pool, len(ids), len(own))


def _pool_of_rows(rows: "Dataset", encode, pixels: set[str], size: int | None, seed: int) -> OpenedPool:
    from datasets import Image

    encoded, own, seen = rows.cast_column("image", Image(decode=False)), [], set()

    def wanted() -> Iterator[dict]:
        for place in _order(len(rows), None if size is None else len(rows), seed):
            if size is not None and len(seen) >= size:
                return
            row = encoded[int(place)]
            try:
                check_text(row["text"], row["id"])
                name = pixels_hash(open_crop(row["image"], row["id"])[0])
            except ValueError:  # which the pool finds, too, and reports
                yield row
                continue
            if name in pixels:
                own.append(name)
            else:
                seen.add(name)
                yield row

    pool = ContextPool.from_dataset(wanted(), encode)
    return OpenedPool(pool, len(rows), len(own), len(pool.added.refused))


def _order(count: int, size: int | None, seed: int):
    """The places that a choice takes: all in order, or the first of a permutation."""
    return range(count) if size is None else np.random.default_rng(seed).permutation(count)[:size]


__all__ = [
    "Contents",
    "NearestExamples",
    "OpenedPool",
    "Pools",
    "RandomExamples",
    "WrongTexts",
    "open_pool",
    "pixels_of",
]
