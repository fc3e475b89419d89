"""How images of words are varied in training, in one resampling: geometry, blur and noise, colour."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class WordAugmentation:
    """Variation of single words (Zhao et al., CVPR 2024, section 4.1): chances of each kind.

    Attributes:
        geometry: a rotation, a shear with a change of scale, or a perspective.
        degradation: a loss of resolution, noise, or blur of motion.
        colour: other brightness, contrast, saturation and hue.
        part: only a part of the word is shown (ours), where it is known where its characters are. Of a few characters
            a model learns sooner that the image says more than the characters before.
        rotation: largest angle, in degrees.
    """

    geometry: float = 0.5
    degradation: float = 0.25
    colour: float = 0.25
    part: float = 0.0
    rotation: float = 15.0

    def __post_init__(self):
        for field in fields(self)[:4]:
            if not 0 <= getattr(self, field.name) <= 1:
                raise ValueError(
                    f"augmentation: {field.name} is a chance from 0 to 1, not {getattr(self, field.name)}."
                )
        if not 0 <= self.rotation <= 90:
            raise ValueError(f"augmentation: rotation lies between 0 and 90 degrees, not {self.rotation}.")

    def __call__(self, image: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """An image (height, width, 3) uint8, varied by what `rng` draws and brought to `size` (height, width)."""
        draws = rng.random(3)
        if draws[0] < self.geometry:
            move = (_rotated, _sheared, _turned_away)[rng.integers(3)]
            corners = move(image.shape[:2], self.rotation, rng)
            # As words are cut out of scenes: too wide, or a little too narrow.
            image = warped(image, corners, size, rng.uniform(-0.03, 0.08, (2, 2)))
        else:
            image = resized(image, size)
        if draws[1] < self.degradation:
            image = (_coarse, _noisy, _shaken)[rng.integers(3)](image, rng)
        return recoloured(image, 0.4, 0.1, rng) if draws[2] < self.colour else image


def varied_copy(image: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Transform of in-context training (section 3.2): other colours, turned by up to 30 degrees."""
    return recoloured(warped(image, _rotated(image.shape[:2], 30.0, rng), size), 0.5, 0.5, rng)


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """As the processor resizes images that are read: bilinearly, without aliases."""
    if image.shape[:2] == tuple(size):
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def warped(image: np.ndarray, corners: np.ndarray, size: tuple[int, int], margins=0.0) -> np.ndarray:
    """The image with its corners moved, cut to what they span, at `size`.

    Args:
        image: (height, width, 3) uint8.
        corners: (4, 2), x and y of where its corners go, clockwise from the top left one.
        size: height and width that come out.
        margins: (2, 2), of what the corners span: how much more is cut out at the left and top, right and bottom. It
            repeats the border.
    """
    import cv2

    spans = np.ptp(corners, axis=0)
    low, high = np.stack([corners.min(0), corners.max(0)]) + np.array([[-1], [1]]) * margins * spans
    scale = (size[1], size[0]) / (high - low)
    # What is much larger than the result would alias.
    (height, width), (across, down) = image.shape[:2], np.maximum(1, np.round(2 * scale * spans)).astype(int)
    image = resized(image, (min(height, down), min(width, across)))
    # Pixel centres are at +0.5.
    source = (_corners(image.shape[:2]) - 0.5).astype(np.float32)
    matrix = cv2.getPerspectiveTransform(source, ((corners - low) * scale - 0.5).astype(np.float32))
    settings = {"flags": cv2.INTER_LINEAR, "borderMode": cv2.BORDER_REPLICATE}
    return cv2.warpPerspective(image, matrix, (size[1], size[0]), **settings)


def _corners(shape: tuple[int, int]) -> np.ndarray:
    height, width = shape
    return np.array([[0, 0], [width, 0], [width, height], [0, height]], float)


def _rotated(shape, degrees, rng) -> np.ndarray:
    angle = np.deg2rad(rng.uniform(-degrees, degrees))
    cosine, sine = np.cos(angle), np.sin(angle)
    return _corners(shape) @ np.array([[cosine, sine], [-sine, cosine]])


def _sheared(shape, degrees, rng) -> np.ndarray:
    across, down = rng.uniform(-0.5, 0.5), rng.uniform(-0.1, 0.1)
    return _corners(shape) @ np.array([[1, down], [across, 1]])


def _turned_away(shape, degrees, rng) -> np.ndarray:
    inwards = rng.uniform(0, 0.25, (4, 2)) * (0.4 * shape[1], shape[0])
    return _corners(shape) + inwards * [[1, 1], [-1, 1], [-1, -1], [1, -1]]


def _coarse(image, rng) -> np.ndarray:
    import cv2

    height, width = image.shape[:2]
    factor = rng.uniform(0.35, 0.8)
    small = cv2.resize(
        image, (max(1, int(width * factor)), max(1, int(height * factor))), interpolation=cv2.INTER_AREA
    )
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def _noisy(image, rng) -> np.ndarray:
    noise = rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(3, 18)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def _shaken(image, rng) -> np.ndarray:
    import cv2

    length, angle = rng.integers(2, 6), rng.uniform(0, np.pi)
    reach = np.linspace(-0.5, 0.5, 9) * length
    kernel = np.zeros((7, 7), np.float32)
    rows, columns = (np.round(3 + reach * part).astype(int) for part in (np.sin(angle), np.cos(angle)))
    np.add.at(kernel, (rows, columns), 1 / len(reach))
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REPLICATE)


def recoloured(image: np.ndarray, strength: float, hue: float, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation times 1 - strength to 1 + strength, hue turned by up to `hue` of a circle."""
    import cv2

    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    turn = rng.uniform(-hue, hue) * 180
    mean = image.mean()
    image = np.clip((image - mean) * np.float32(brightness * contrast) + np.float32(mean * brightness), 0, 255)
    hsv = cv2.cvtColor(image.astype(np.uint8), cv2.COLOR_RGB2HSV).astype(np.float32)
    hsv[..., 0] = (hsv[..., 0] + turn) % 180
    hsv[..., 1] = np.minimum(hsv[..., 1] * saturation, 255)
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)


__all__ = ["WordAugmentation", "recoloured", "resized", "varied_copy", "warped"]
