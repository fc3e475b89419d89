"""An outside recogniser reads what was drawn: labels and pictures belong together, and clean text is clean."""

import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from epigraph.data.synthesis import BUILTIN, FontError, StyleOptions, WordGenerator, find_fonts, open_face

WORDS = Path("/usr/share/dict/words")
COUNT = 200


class DictionaryWords:
    """Words of three letters and more, drawn alike by every test run."""

    def __init__(self):
        self.words = [word for word in WORDS.read_text().split() if re.fullmatch("[A-Za-z]{3,12}", word)]

    def sample(self, rng: np.random.Generator, characters: frozenset[str]) -> str:
        return self.words[rng.integers(len(self.words))]


def text_faces():
    """Upright book faces of the system, or the built-in one."""
    try:
        return find_fonts(names=("DejaVu Sans", "DejaVu Serif", "Liberation Sans", "Liberation Serif"))
    except FontError:
        return [open_face(BUILTIN)]


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="tesseract is not installed (Debian: tesseract-ocr)")
@pytest.mark.skipif(not WORDS.exists(), reason="no /usr/share/dict/words (Debian: wamerican)")
def test_tesseract_reads_clean_straight_words(tmp_path):
    make = WordGenerator(text_faces(), DictionaryWords(), StyleOptions.plain(), size=(64, 256), contents=1)
    samples = [make(np.random.default_rng([11, index])) for index in range(COUNT)]
    for index, sample in enumerate(samples):
        cv2.imwrite(str(tmp_path / f"{index:03d}.png"), sample.images[0][..., ::-1])
    names = tmp_path / "names.txt"
    names.write_text("".join(f"{tmp_path / f'{index:03d}.png'}\n" for index in range(COUNT)))
    done = subprocess.run(
        ["tesseract", str(names), "stdout", "--psm", "8", "-l", "eng"], capture_output=True, text=True, check=True
    )
    read = [page.strip().casefold() for page in done.stdout.split("\f")][:COUNT]
    wrong = [
        (sample.texts[0], text)
        for sample, text in zip(samples, read, strict=True)
        if sample.texts[0].casefold() != text
    ]
    assert len(wrong) <= 0.1 * COUNT, f"{len(wrong)} of {COUNT} misread, as {wrong[:10]}"
