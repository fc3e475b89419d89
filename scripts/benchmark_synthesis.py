"""What `scripts/benchmark.py synthesis` measures: samples per CPU second of one core, and how rich they are.

Samples are the shipped default style with all labels. The first rounds fill the caches (glyphs of some hundred faces)
and are thrown away; then the best of three rounds counts, each of samples that no round before it had. Shares of
effects are counted from the style records of the very samples that were timed.
"""

import cProfile
import os
import pstats
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from epigraph.data.synthesis import (
    BUILTIN,
    FontError,
    FormulaGenerator,
    SceneGenerator,
    SynthesisDataset,
    WordGenerator,
    WordSampler,
    find_fonts,
    open_face,
    sample_style,
)
from epigraph.data.synthesis.backgrounds import TEXTURES

WARM_UP = 4  # rounds
ROUNDS = 3
SIZES = {"pairs_32x128": (32, 128), "pairs_64x256": (64, 256), "scenes_512": (512, 512)}
SAMPLES = {"pairs_32x128": 600, "pairs_64x256": 300, "scenes_512": 60, "formulas": 200}  # of a round


class Measured:
    """One generator's rate, and what its timed samples were like.

    Attributes:
        rate: samples per CPU second.
        effects: how many of the timed samples have each effect; words: how many words they have together.
        rejected: attempts that were drawn again in the timed rounds.
    """

    def __init__(self, name: str, make, samples: int):
        self.dataset = SynthesisDataset(make, (WARM_UP + ROUNDS + 1) * samples)
        self.name, self.samples = name, samples
        self.effects, self.words = Counter(), 0
        for number in range(WARM_UP):
            self.timed_round(number)
        self.dataset.rejected.clear()
        rounds = [self.timed_round(number) for number in range(WARM_UP, WARM_UP + ROUNDS)]
        self.rate = samples / min(seconds for seconds, _ in rounds)
        self.rejected = self.dataset.rejected.total()
        for texts, style in (label for _, labels in rounds for label in labels):
            self.words += len(texts)
            if style is not None:
                self.effects.update(name for name, on in effects_of(style).items() if on)
        self.timed = ROUNDS * samples

    def timed_round(self, number: int) -> tuple[float, list]:
        """CPU seconds, and words and style of each sample. Pictures are dropped at once, as training does."""
        start, labels = time.process_time(), []
        for index in range(number * self.samples, (number + 1) * self.samples):
            sample = self.dataset[index]
            labels.append((getattr(sample, "texts", ()), getattr(sample, "style", None)))
        return time.process_time() - start, labels

    def rows_rate(self) -> float:
        """Samples per CPU second when they are also encoded as the rows of shards."""
        start = time.process_time()
        for index in range(self.samples):
            self.dataset[index].row()
        return self.samples / (time.process_time() - start)

    def print_profile(self) -> None:
        """Where the time of one more round goes: the 25 dearest functions."""
        profile = cProfile.Profile(time.process_time)
        last = (WARM_UP + ROUNDS) * self.samples
        for index in range(last, last + self.samples):
            profile.runcall(self.dataset.__getitem__, index)
        print(f"\n{self.name}: {self.samples} samples")
        pstats.Stats(profile).strip_dirs().sort_stats("tottime").print_stats(25)


def effects_of(style) -> dict[str, bool]:
    """The effects of a style; of `texture` also where it is."""
    return style.effects() | {
        "texture_on_letters": style.fill.kind == "texture",
        "texture_on_background": style.background.kind in TEXTURES,
    }


def faces():
    """The fonts of the system, or the built-in one with a word about it."""
    try:
        return find_fonts()
    except FontError as error:
        print(f"{error} Measured with the built-in font alone.", flush=True)
        return [open_face(BUILTIN)]


def generator(name: str):
    """The generator of a row; None where it needs data that is not there."""
    if name == "formulas":
        ink = Path(os.environ.get("EPIGRAPH_DATA", "")) / "crohme_ink.parquet"
        if not ink.is_file():
            print("EPIGRAPH_DATA names no folder with crohme_ink.parquet: formulas are not measured", flush=True)
            return None
        return FormulaGenerator.from_ink(ink)
    kind = SceneGenerator if name.startswith("scenes") else WordGenerator
    return kind(faces(), WordSampler(), size=SIZES[name])


def synthesis_rows(wanted: Callable[[str], bool], profile: bool = False) -> Iterator[tuple[str, float, str]]:
    """Name, value and unit of every row that is wanted.

    Args:
        wanted: whether a row of this name was asked for.
        profile: also print where the time of each rate goes.
    """
    cv2.setNumThreads(1)

    @cache
    def measured(name: str) -> Measured | None:
        make = generator(name)
        return None if make is None else Measured(name, make, SAMPLES[name])

    units = {"pairs_32x128": "pairs/s", "pairs_64x256": "pairs/s", "scenes_512": "scenes/s", "formulas": "formulas/s"}
    for name, unit in units.items():
        rows = {
            f"synthesis/{name}/per_cpu_second": lambda name=name: measured(name).rate,
            f"synthesis/{name}/encoded_per_cpu_second": lambda name=name: measured(name).rows_rate(),
        }
        rows = {row: value for row, value in rows.items() if wanted(row)}
        if rows and measured(name) is not None:
            yield from ((row, value(), unit) for row, value in rows.items())
            if profile:
                measured(name).print_profile()
    if wanted("synthesis/scenes_512/words"):
        scenes = measured("scenes_512")
        yield "synthesis/scenes_512/words", scenes.words / scenes.timed, "words"

    effects = effects_of(sample_style(np.random.default_rng(0), [open_face(BUILTIN)], (32, 128)))
    for row in filter(wanted, (f"synthesis/share/{effect}" for effect in effects)):
        pairs = [measured("pairs_32x128"), measured("pairs_64x256")]
        found = sum(part.effects[row.rsplit("/", 1)[-1]] for part in pairs)
        yield row, found / sum(part.timed for part in pairs), "of pairs"
    if wanted("synthesis/rejected_share"):
        parts = [measured(name) for name in SIZES]
        rejected = sum(part.rejected for part in parts)
        yield "synthesis/rejected_share", rejected / (rejected + sum(part.timed for part in parts)), "of attempts"
    if wanted("synthesis/faces"):
        yield "synthesis/faces", len(faces()), "fonts"
