"""Words in batches for training: several sources in given shares, varied, one word or many in a sequence.

Stage 1 shows a model single words. Stage 2 shows it sequences of words whose parts and variants come again (Split and
Transform; Zhao et al., CVPR 2024, section 3.2): what a word looks like is then told by its neighbours' texts.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from .readers import expand_path
from .word_augmentation import WordAugmentation, resized, varied_copy
from .words import load_words, open_word, training_labels

if TYPE_CHECKING:
    from datasets import Dataset

# Of 80 images in a sequence of the official code 60 are words of their own at least.
OWN_WORDS = 0.75
_BUCKETS = 10_000


@dataclass(frozen=True)
class WordSource:
    """Where words for training come from.

    Attributes:
        path: what `load_words` reads; shards of word crops by `epigraph synth` are among it.
        split, source: keep these rows only.
        weight: share of this source in what is trained on, in any unit; None is its number of words.
        held_out: share of its words, chosen by their ids, that is kept for measuring and never trained on.
    """

    path: str
    split: str | None = None
    source: str | None = None
    weight: float | None = None
    held_out: float = 0.0

    def __post_init__(self):
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise ValueError(f"train_data: weight must be above 0, not {self.weight}.")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"train_data: held_out is a share from 0 to below 1, not {self.held_out}.")

    @property
    def name(self) -> str:
        """What a measurement of its held-out words is called."""
        return self.source or expand_path(self.path).stem

    def load(self, characters: set[str]) -> tuple[Dataset, Dataset]:
        """The words that can be written with `characters`: those to train on, and those held out.

        Raises:
            ValueError, FileNotFoundError: as `load_words`; or nothing is left to train on.
        """
        rows, _ = training_labels(load_words(self.path, self.split, self.source), characters)
        held_out = np.array([self.held_out > 0 and _bucket(name) < self.held_out * _BUCKETS for name in rows["id"]])
        if held_out.all():
            raise ValueError(f"{self.path}: all of its {len(rows)} words are held out; lower held_out.")
        return rows.select(np.flatnonzero(~held_out)), rows.select(np.flatnonzero(held_out))


def _bucket(name: str) -> int:
    return int(hashlib.sha1(name.encode()).hexdigest()[:8], 16) % _BUCKETS


# ------------------------------------------------------------------------------------------------------------- stage 2


def split_word(
    image: np.ndarray, text: str, char_quads: np.ndarray | None, rng: np.random.Generator
) -> list[tuple[np.ndarray, str]]:
    """Parts of a word: Split of in-context training (section 3.2; the counts are those of the official code).

    Args:
        image: (height, width, 3).
        text: what it shows.
        char_quads: (characters, 4, 2), where each character is, clockwise from its own top left corner, in pixels of
            `image`: of the renderer, or of whatever finds characters in photographs. None where that is not known.
        rng: draws how many parts there are, and which.

    Returns:
        Parts of full height with their texts, from the right edge of the character before (or the left border) to the
        right edge of the last one. None of words of one character, and where quads and characters are not as many.
    """
    length = len(text)
    if char_quads is None or len(char_quads) != length or length < 2:
        return []
    edges = np.asarray(char_quads, np.float32)[:, 1:3, 0].mean(1).round().astype(int)
    edges = np.clip(np.concatenate([[0], edges]), 0, image.shape[1])
    latin = any(character.isascii() and character.isalpha() for character in text)
    count = rng.integers(2, length + 1) if latin else rng.integers(1, max(int(0.7 * length), 1) + 1)
    parts = []
    for _ in range(count):
        first = rng.integers(length)
        last = rng.integers(first, length)
        left, right = edges[first], edges[last + 1]
        if right > left:  # characters of slanted or backward text may lie on top of each other
            parts.append((image[:, left:right], text[first : last + 1]))
    return parts


def in_context(
    words: Sequence[tuple[np.ndarray, str, np.ndarray | None]], images: int, size: tuple[int, int], rng
) -> list[tuple[np.ndarray, str]]:
    """A sequence of in-context training (section 3.2): words, parts of them, and variants, in any order.

    Varied are parts, and words that have none.

    Args:
        words: image (height, width, 3), text and `char_quads` (or None) of each.
        images: most images in the sequence.
        size: height and width that all images are brought to.
        rng: draws everything.

    Returns:
        Images (height, width, 3) uint8 with their texts.
    """
    own, parts, copies = [], [], []
    for image, text, char_quads in words:
        own.append((resized(image, size), text))
        pieces = split_word(image, text, char_quads, rng)
        parts += pieces
        copies += pieces or [(image, text)]
    wanted = rng.permutation(len(parts))[: len(own)]
    chosen = [(resized(parts[index][0], size), parts[index][1]) for index in wanted]
    count = rng.integers(2, max(2, int(0.3 * len(copies))) + 1)
    again = [copies[index] for index in rng.permutation(len(copies))[:count]]
    chosen += [(varied_copy(image, size, rng), text) for image, text in again]
    sequence = own + chosen
    return [sequence[index] for index in rng.permutation(len(sequence))[:images]]


def exchanged(texts: Sequence[str], rng: np.random.Generator) -> tuple[list[str], list[list[bool]]]:
    """The texts of a sequence in a writing of its own: some of its letters and digits stand for each other.

    What such a character is can be learnt from the examples before it alone, by what it looks like. A decoder that
    starts at random hardly learns otherwise to look at its examples, as images mostly speak for themselves. The idea
    is that of symbol tuning (Wei et al., EMNLP 2023, arXiv 2305.08298).

    Args:
        texts: of images in their order.
        rng: draws two to eight characters of those that occur in two texts at least.

    Returns:
        The new texts; and for each character whether it can be known: it stands for itself, or was there before.
    """
    counts = Counter(character for text in texts for character in set(text) if character.isalnum())
    often = sorted(character for character, count in counts.items() if count > 1)
    chosen = rng.permutation(often)[: rng.integers(2, 9)].tolist()
    writing, seen, known = dict(zip(chosen, chosen[1:] + chosen[:1])), set(), []
    for text in texts:
        known.append([])
        for character in text:
            known[-1].append(character not in writing or character in seen)
            seen.add(character)
    return ["".join(writing.get(character, character) for character in text) for text in texts], known


def kinds(texts: Sequence[str], fonts: Sequence[str | None]) -> np.ndarray:
    """Which words are of one kind: of one font, and all of letters, of letters and digits, or of neither but digits.

    Words of such a kind stand together in a receipt, or on number plates; a sequence of them has something to tell.

    Args:
        texts, fonts: of each word; None is a font of its own, as of photographs.

    Returns:
        (words,) int64, a number for each kind.
    """
    digits = [any(map(str.isdigit, text)) for text in texts]
    letters = [any(map(str.isalpha, text)) for text in texts]
    names = [f"{font}|{digit}{letter}" for font, digit, letter in zip(fonts, digits, letters)]
    return np.unique(np.array(names, dtype=object).astype(str), return_inverse=True)[1]


# ------------------------------------------------------------------------------------------------------------- batches


class WordDataset(torch.utils.data.Dataset):
    """Sequences of words by key, `(epoch, place, rows)`: which words, and with what random numbers they are varied.

    Args:
        parts: rows of each source (`WordSource.load`), one after the other.
        size: height and width of the images that come out.
        images: of a sequence; 1 gives single words.
        augmentation: how words are varied; None leaves them as they are. In a sequence of several all words are
            varied by the same draw, as if one camera had seen them.
        exchange: share of sequences in which some characters stand for others (`exchanged`).
        seed: with epoch and place it determines every variation.
    """

    def __init__(
        self,
        parts: list[Dataset],
        size: tuple[int, int],
        images: int = 1,
        augmentation: WordAugmentation | None = None,
        seed: int = 0,
        exchange: float = 0.0,
    ):
        import datasets

        self.parts = augmentation.part if augmentation is not None else 0.0
        kept = ["id", "image", "text"] + ["char_quads"] * (images > 1 or self.parts > 0)
        rows = [part.select_columns([name for name in kept if name in part.column_names]) for part in parts]
        self.rows = [part.cast_column("image", datasets.Image(decode=False)) for part in rows]
        self.starts = np.cumsum([0, *map(len, self.rows)])
        self.size, self.images, self.augmentation, self.seed = size, images, augmentation, seed
        self.exchange = exchange
        self.kinds = np.zeros(len(self), int)
        if images > 1:
            fonts = [part["font"] if "font" in part.column_names else [None] * len(part) for part in parts]
            of_part = [kinds(part["text"], names) for part, names in zip(parts, fonts)]
            counts = [int(numbers.max(initial=-1)) + 1 for numbers in of_part]
            self.kinds = np.concatenate([first + n for first, n in zip(np.cumsum([0, *counts]), of_part)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def words(self, indices: Sequence[int]) -> list[tuple[np.ndarray, str, np.ndarray | None]]:
        """Images (height, width, 3), texts and `char_quads`, where known, of these rows.

        Raises:
            ValueError: naming a row whose image cannot be read.
        """
        indices, found = np.asarray(indices), [None] * len(indices)
        sources = np.searchsorted(self.starts, indices, side="right") - 1
        for source in np.unique(sources):
            places = np.flatnonzero(sources == source)
            rows = self.rows[source][(indices[places] - self.starts[source]).tolist()]
            quads = rows.get("char_quads", [None] * len(places))
            for place, *row in zip(places, rows["id"], rows["image"], rows["text"], quads):
                found[place] = _word(*row)
        return found

    def __getitems__(self, keys: list[tuple[int, int, list[int]]]) -> list[list[tuple]]:
        words = iter(self.words([row for _, _, rows in keys for row in rows]))
        return [self.sequence(epoch, place, [next(words) for _ in rows]) for epoch, place, rows in keys]

    def sequence(self, epoch: int, place: int, words: list) -> list[tuple[np.ndarray, str, list[bool]]]:
        """Images (height, width, 3) of one size, their texts, and which characters of these can be known."""
        rng = np.random.default_rng([self.seed, epoch, place])
        if self.images > 1:
            shown, draw = in_context(words, self.images, self.size, rng), int(rng.integers(2**32))
            images, texts = zip(*shown)
            if self.augmentation is not None:
                images = [self.augmentation(image, self.size, np.random.default_rng(draw)) for image in images]
            known = [[True] * len(text) for text in texts]
            if self.exchange and rng.random() < self.exchange:
                texts, known = exchanged(texts, rng)
            return list(zip(images, texts, known))
        ((image, text, char_quads),) = words
        if self.parts and rng.random() < self.parts and (parts := split_word(image, text, char_quads, rng)):
            image, text = parts[0]
        vary = self.augmentation or (lambda image, size, rng: resized(image, size))
        return [(vary(image, self.size, rng), text, [True] * len(text))]


def _word(name: str, stored: dict, text: str, quads: list | None) -> tuple[np.ndarray, str, np.ndarray | None]:
    content = stored["bytes"] if stored["bytes"] is not None else Path(stored["path"]).read_bytes()
    image = np.asarray(open_word(content, f"row {name}").convert("RGB"))
    return image, text, None if quads is None else np.asarray(quads, np.float32)


class WordLoader:
    """Training batches of `E2STRProcessor` from any place in the run.

    The order is a function of (seed, epoch): an epoch has as many words as all sources together, of each source its
    share; sources are gone through again and again, each in an order that is new every time. Of every global batch
    process `rank` takes each `world`-th sequence.

    Args:
        dataset: sequences by key.
        weights: share of each of its sources, in any unit.
        processor: the model's.
        batch_size: sequences over all processes.
        num_workers: processes that prepare batches.
        alike: share of sequences that consist of words of one kind (`kinds`).
    """

    def __init__(
        self,
        dataset: WordDataset,
        weights: list[float],
        processor,
        batch_size: int,
        num_workers: int = 0,
        alike: float = 0.0,
    ):
        self.dataset, self.processor, self.alike = dataset, processor, alike
        self.batch_size, self.num_workers = batch_size, num_workers
        shares = np.array(weights, float) / sum(weights)
        self.counts = np.maximum(1, np.round(shares * len(dataset))).astype(int)
        self.own_words = 1 if dataset.images == 1 else max(1, round(OWN_WORDS * dataset.images))

    def order(self, epoch: int) -> np.ndarray:
        """The rows of an epoch."""
        seed, starts, chosen = self.dataset.seed, self.dataset.starts, []
        for number, count in enumerate(self.counts.tolist()):
            size = int(starts[number + 1] - starts[number])
            first = epoch * count
            rounds = range(first // size, (first + count - 1) // size + 1)
            walk = np.concatenate([np.random.default_rng([seed, number, turn]).permutation(size) for turn in rounds])
            chosen.append(starts[number] + walk[first - rounds[0] * size :][:count])
        rng = np.random.default_rng([seed, epoch])
        rows = rng.permutation(np.concatenate(chosen))
        return self._together(rows, rng) if self.alike else rows

    def _together(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The same rows, so that a share of the sequences that are cut of them have words of one kind."""
        own = self.own_words
        sequences, rest = np.split(rows, [len(rows) // own * own])
        alike, other = np.split(sequences, [round(self.alike * len(sequences) / own) * own])
        alike = alike[np.argsort(self.dataset.kinds[alike], kind="stable")]
        cut = rng.permutation(np.concatenate([alike, other]).reshape(-1, own))
        return np.concatenate([cut.ravel(), rest])

    def __call__(self, epoch: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[dict[str, torch.Tensor]]:
        """Batches of `epoch` from number `start` on, the share of process `rank` among `world`."""
        order, own = self.order(epoch).tolist(), self.own_words
        keys = [(epoch, place, order[place : place + own]) for place in range(0, len(order), own)]
        batches = [keys[first : first + self.batch_size] for first in range(0, len(keys), self.batch_size)]
        batches = [batch[rank::world] for batch in batches if len(batch) >= world]
        if not batches:
            raise ValueError(f"{len(order)} words in batches of {self.batch_size} are too few for {world} processes.")
        return iter(
            DataLoader(
                self.dataset,
                batch_sampler=batches[start:],
                collate_fn=self.collate,
                num_workers=self.num_workers,
                multiprocessing_context="fork" if self.num_workers else None,
                # Its own generator: a loader otherwise draws from the global one, and a resumed run would differ.
                generator=torch.Generator(),
            )
        )

    def collate(self, sequences: list[list[tuple]]) -> dict[str, torch.Tensor]:
        """Sequences to the model's arguments, through the processor; images behind its longest prompt are left out.

        Characters that cannot be known have no label.
        """
        sequences = [self.within(sequence) for sequence in sequences]
        images = [[Image.fromarray(image) for image, _, _ in sequence] for sequence in sequences]
        texts = [[text for _, text, _ in sequence] for sequence in sequences]
        batch = dict(self.processor(images=images, text=texts, do_resize=False))
        for labels, sequence in zip(batch["labels"], sequences):
            known = [flag for _, _, flags in sequence for flag in [*flags, True]]  # the last is the end of the text
            if not all(known):
                places = (labels != -100).nonzero()[:, 0]
                if len(places) != len(known):
                    raise ValueError("exchange: each character must be a token; leave it out for other tokenizers.")
                labels[places[~torch.tensor(known)]] = -100
        return batch

    def within(self, sequence: list[tuple]) -> list[tuple]:
        """As much of a sequence as the model reads; no text has more tokens than characters."""
        ends = np.cumsum([len(text) + 2 for _, text, _ in sequence]) + 1
        return sequence[: max(1, int((ends <= self.processor.tokenizer.model_max_length).sum()))]


__all__ = ["WordDataset", "WordLoader", "WordSource", "exchanged", "in_context", "kinds", "split_word"]
