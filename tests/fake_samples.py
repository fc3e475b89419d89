"""A generator of tiny samples, for tests of what delivers samples: quick, and without fonts."""

import io
import time
from dataclasses import dataclass

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
