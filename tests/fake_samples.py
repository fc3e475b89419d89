"""A generator of tiny samples, for tests of what delivers samples: quick, and without fonts."""

import io
import time
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from PIL import Image

from epigraph.data.synthesis.fonts import SynthesisError


@dataclass
class FakeSample:
    """Noise, and its mean as text."""

    images: np.ndarray  # (2, 8, 12, 3)

    def row(self):
        return {
            "text": f"{self.images.mean():.6f}",
            "image": png(self.images[0]),
            "images": [png(image) for image in self.images],
            "quads": self.images[:, :2, :4, 0].astype(np.float32),
        }

    def __eq__(self, other):
        return np.array_equal(self.images, other.images)


@dataclass
class FakeGenerator:
    """Rejects, breaks down and dawdles as often and as long as asked."""

    rejected: float = 0.2
    broken: float = 0.0
    seconds: float = 0.0
    members: int = 1

    @classmethod
    def features(cls):
        from datasets import Image, List, Value

        quads = List(List(List(Value("float32"))))
        return {"text": Value("string"), "image": Image(), "images": List(Image()), "quads": quads}

    def __call__(self, rng):
        time.sleep(self.seconds)
        if rng.random() < self.rejected:
            raise SynthesisError(f"the word 'w{rng.integers(1000)}' does not fit {rng.integers(1000)} pixels")
        if rng.random() < self.broken:
            raise KeyError("no such thing")
        samples = [FakeSample(rng.integers(0, 256, (2, 8, 12, 3), np.uint8)) for _ in range(self.members)]
        return samples if self.members > 1 else samples[0]


def png(image):
    """An image as PNG bytes."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def word_picture(text, seed=0):
    """Noise as a word image whose text, of at most 31 bytes, stands in its first row: `written_in` reads it."""
    pixels = np.random.default_rng([seed, *text.encode()]).integers(0, 256, (8, 32, 3), np.uint8)
    said = text.encode()
    pixels[0, : len(said) + 1, 0] = [len(said), *said]
    return pixels


def written_in(picture):
    """The text of a `word_picture`, given as an image or in a file's bytes."""
    picture = Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else picture
    row = np.asarray(picture)[0, :, 0]
    return bytes(row[1 : row[0] + 1]).decode()


def write_words(path, texts, labels=None, seed=0, **columns):
    """Word data in parquet: pictures of `texts`, by default labelled with them."""
    from datasets import Dataset

    rows = {"image": [png(word_picture(text, seed)) for text in texts], "text": labels or texts}
    rows |= {"id": [f"w{number}" for number in range(len(texts))], "split": ["test"] * len(texts), **columns}
    Dataset.from_dict(rows).to_parquet(path)
    return path


def encode_letters(pictures):
    """What a pool takes as `encode`, for `word_picture`s: how often each letter occurs, so that words with the same
    letters are near; and latents that nobody reads."""
    keys = np.full((len(pictures), 128), 1e-3, np.float32)
    for key, picture in zip(keys, pictures):
        try:
            np.add.at(key, [ord(character) % 128 for character in written_in(picture)], 1)
        except UnicodeDecodeError:  # the picture that encoders are told apart by
            key[0] = 1
    return keys, np.zeros((len(pictures), 1, 4), np.float32)


@dataclass
class ReadWord:
    """What `epigraph.read_all` says of a word, as far as evaluation looks at it."""

    name: str
    text: str = ""
    score: float = 0.5
    error: str | None = None
    plain_text: str | None = None
    examples: tuple = ()
    char_scores: tuple = ()


class FakeRecogniser:
    """In place of a model and of `read_all`: it knows what it says to each word, and what examples change.

    `answers` tells what is read in a word, itself by default; `learnt` what is read instead with an example whose text
    it is told of: `{(word, text of the example): answer}`.
    """

    def __init__(self, answers=None, learnt=None):
        self.answers, self.learnt = answers or {}, learnt or {}
        self.config = SimpleNamespace(score_calibration=None, char_score_calibration=None)
        self.calls = []

    def read_all(self, inputs, model, processor, *, names, pool=None, k=2, gate=None, **settings):
        self.calls.append({"k": k, "gate": gate, **settings})
        for name, content in zip(names, inputs):
            word = written_in(content)
            reading = ReadWord(name, self.answers.get(word, word))
            if pool is not None:
                reading.plain_text = reading.text
                reading.examples = pool.search([Image.open(io.BytesIO(content))], k)[0]
                for example in reading.examples:
                    reading.text = self.learnt.get((word, example.text), reading.text)
            yield reading
