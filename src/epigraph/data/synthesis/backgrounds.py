"""Backgrounds and textures: painted from a small record, or cropped from a folder of images.

```python
import numpy as np
from epigraph.data.synthesis.backgrounds import BackgroundPool, paint, sample_background

rng = np.random.default_rng(0)
image = paint(sample_background(rng), (64, 256))                      # uint8 (64, 256, 3)
pool = BackgroundPool(["my_photos"])                                  # text-free pictures of your own
image = paint(sample_background(rng, pool, share=0.8), (512, 512))
```

The painted kinds follow what stands behind words in photographs: mostly one colour under uneven light, then printed
gradients, signs with a frame, paper, plaster, stone, wood, bricks, cloth, brushed metal, leaves, out-of-focus clutter.
"""

import colorsys
import logging
import math
import os
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from .fonts import SynthesisError
from .textures import FIELDS, PICTURES, grain, light

logger = logging.getLogger(__name__)

# Share of every painted kind. What counts as textured stands in TEXTURES.
KINDS: dict[str, float] = {
    "plain": 0.24,
    "gradient": 0.10,
    "sign": 0.12,
    "paper": 0.08,
    "plaster": 0.07,
    "concrete": 0.06,
    "stone": 0.03,
    "wood": 0.05,
    "brick": 0.04,
    "tiles": 0.03,
    "stripes": 0.03,
    "fabric": 0.04,
    "metal": 0.04,
    "leaves": 0.02,
    "blurred": 0.04,
    "street": 0.01,
}
TEXTURES = frozenset(KINDS) - {"plain", "gradient", "sign"} | {"file"}
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MAX_FILE_BYTES = 64 * 2**20
MAX_PIXELS = 80_000_000  # of an image file
MAX_SIDE = 1024  # to which an image of a folder is reduced
MIN_SIDE = 16
MAX_CANVAS = 8192
CACHE_BYTES = 256 * 2**20  # of reduced images in one process


@dataclass(frozen=True)
class Background:
    """What a background looks like; strings, numbers and tuples only, so that it goes through JSON.

    Attributes:
        kind: one of `KINDS`, or "file".
        seed: of everything that `paint` draws at random.
        colors: RGB, 0..255; the darkest part of the texture first.
        scale: size of one brick, plank, leaf ... as a share of the image's short side.
        contrast: 0..1, how far the colours lie apart: 0 gives their mean.
        light: 0..1, strength of the uneven light.
        grain: standard deviation of the surface's fine noise in levels of 255.
        path: of the image, for "file".
        box: left, top, right, bottom of the crop as shares of the image, for "file"; of it the largest part with the
            proportions of the canvas is taken.
    """

    kind: str
    seed: int
    colors: tuple[tuple[int, int, int], ...]
    scale: float = 0.3
    contrast: float = 1.0
    light: float = 0.0
    grain: float = 0.0
    path: str = ""
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)


def sample_background(
    rng: np.random.Generator,
    pool: "BackgroundPool | None" = None,
    share: float = 0.5,
    kinds: Mapping[str, float] = KINDS,
    scale: tuple[float, float] = (0.12, 0.9),
    color: tuple[int, int, int] | None = None,
) -> Background:
    """Draw a background.

    Args:
        rng: the only source of chance.
        pool: images of your own.
        share: of them, where a pool is given; the rest is painted.
        kinds: relative frequency of the painted kinds.
        scale: least and largest `Background.scale`; word crops show a wall from near, scenes from afar.
        color: RGB around which the colours are chosen; without it they follow the kind (wood is brown ...).

    Raises:
        SynthesisError: a kind does not exist.
    """
    seed = int(rng.integers(2**31))
    size = float(math.exp(rng.uniform(math.log(scale[0]), math.log(scale[1]))))
    if pool is not None and rng.random() < share:
        zoom = math.exp(rng.uniform(math.log(0.15), 0.0))
        left, top = rng.random() * (1 - zoom), rng.random() * (1 - zoom)
        path = pool.paths[int(rng.integers(len(pool.paths)))]
        return Background("file", seed, (), size, path=path, box=(left, top, left + zoom, top + zoom))
    names, weights = kind_weights(tuple(kinds.items()))
    kind = names[min(int(np.searchsorted(weights, rng.random(), side="right")), len(names) - 1)]
    return Background(
        kind,
        seed,
        _around(rng, color) if color is not None else _PALETTES.get(kind, _printed)(rng),
        size,
        contrast=float(rng.uniform(0.25, 1.0)),
        light=float(rng.random() ** 1.5),
        grain=float(rng.exponential(1.5)) if rng.random() < 0.8 else 0.0,
    )


def paint(background: Background, size: tuple[int, int]) -> np.ndarray:
    """The picture of a background: the same record and size give the same pixels.

    Args:
        size: (height, width), each 1..8192.

    Returns:
        uint8 `(height, width, 3)`, RGB.

    Raises:
        SynthesisError: a size that cannot be painted, an unknown kind, or an image that cannot be read.
    """
    height, width = size
    if not (1 <= height <= MAX_CANVAS and 1 <= width <= MAX_CANVAS):
        raise SynthesisError(
            f"a canvas of {height} x {width} pixels cannot be painted; give sides in 1..{MAX_CANVAS}."
        )
    if background.kind == "file":
        return _crop(background.path, background.box, height, width)
    if background.kind not in KINDS:
        raise SynthesisError(
            f"the background kind {background.kind!r} does not exist; choose from {', '.join(KINDS)}."
        )
    rng = np.random.default_rng(background.seed)
    unit = max(2.0, background.scale * min(height, width))
    if background.kind in PICTURES:
        image = PICTURES[background.kind](rng, height, width, _spread(background.colors, background.contrast))
    else:
        field = FIELDS[background.kind](rng, height, width, unit)
        image = cv2.applyColorMap(field, _palette(background.colors, background.contrast))
    if background.light:
        image = light(rng, image, background.light)
    return grain(rng, image, background.grain) if background.grain else image


# ---- colours ----


def _color(rng: np.random.Generator) -> tuple[int, int, int]:
    """A colour as signs, packages, walls and screens have them."""
    draw = rng.random()
    if draw < 0.17:
        hue, saturation, value = common_hue(rng), rng.random() * 0.5, rng.uniform(0.02, 0.22)
    elif draw < 0.39:
        hue, saturation, value = rng.normal(0.12, 0.05) % 1, rng.random() ** 2 * 0.15, rng.uniform(0.85, 1.0)
    elif draw < 0.52:
        hue, saturation, value = rng.random(), rng.random() * 0.12, rng.uniform(0.25, 0.8)
    elif draw < 0.82:
        hue, saturation, value = common_hue(rng), rng.uniform(0.6, 1.0), rng.uniform(0.3, 1.0)
    else:
        hue, saturation, value = common_hue(rng), rng.uniform(0.15, 0.5), rng.uniform(0.3, 0.85)
    return _rgb(hue, saturation, value)


def common_hue(rng: np.random.Generator) -> float:
    """A hue, 0..1, as often as signs have it: red, orange and blue by far the most, violet hardly ever."""
    if rng.random() < 0.15:
        return rng.random()
    return (_HUES[int(rng.random() * len(_HUES))] + 0.02 * rng.normal()) % 1


_HUES = (0.0, 0.98, 0.02, 0.06, 0.09, 0.12, 0.15, 0.36, 0.5, 0.57, 0.59, 0.61, 0.61, 0.64)


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return round(255 * red), round(255 * green), round(255 * blue)


def _around(rng: np.random.Generator, color: tuple[int, int, int], spread: float = 0.3) -> tuple:
    """Three shades of one colour, dark to light."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in color))
    down, up = (rng.random(2) * spread + 0.03).tolist()
    drift = float(rng.normal(0, 0.015))
    return (
        _rgb(hue + drift, saturation * 1.1, value * (1 - down)),
        tuple(color),
        _rgb(hue - drift, saturation * (1 - up / 2), value + up * (1.05 - value)),
    )


def _printed(rng: np.random.Generator) -> tuple:
    """Two or three colours that a printer would put beside each other: shades of one, or two of the kind."""
    first = _color(rng)
    if rng.random() < 0.6:
        return _around(rng, first)
    return first, _color(rng)


def _shades(hue: tuple, saturation: tuple, value: tuple) -> Callable[[np.random.Generator], tuple]:
    """A palette from ranges of hue, saturation and value."""

    def palette(rng: np.random.Generator) -> tuple:
        return _around(rng, _rgb(rng.uniform(*hue), rng.uniform(*saturation), rng.uniform(*value)), 0.45)

    return palette


def _wall(rng: np.random.Generator) -> tuple:
    """Shades of one wall paint, seldom a loud one."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in _color(rng)))
    return _around(rng, _rgb(hue, saturation * (1 - 0.6 * rng.random()), 0.25 + 0.75 * value))


def _masonry(rng: np.random.Generator) -> tuple:
    """Mortar, then the bricks."""
    mortar = _rgb(0.1, rng.random() * 0.15, rng.uniform(0.35, 0.85))
    if rng.random() < 0.5:
        return mortar, *_around(rng, _rgb(rng.uniform(0.0, 0.06), rng.uniform(0.3, 0.7), rng.uniform(0.35, 0.7)))
    return mortar, *_around(rng, _color(rng), 0.15)


def _plain_colors(rng: np.random.Generator) -> tuple:
    return (_color(rng),)


def _two_colors(rng: np.random.Generator) -> tuple:
    """Ground and frame of a sign."""
    return _color(rng), _color(rng)


_PALETTES: dict[str, Callable] = {
    "plain": _plain_colors,
    "sign": _two_colors,
    "paper": _shades((0.08, 0.16), (0.0, 0.2), (0.75, 0.98)),
    "plaster": _wall,
    "concrete": _shades((0.05, 0.15), (0.0, 0.15), (0.3, 0.8)),
    "stone": _shades((0.03, 0.12), (0.05, 0.3), (0.3, 0.75)),
    "wood": _shades((0.03, 0.11), (0.3, 0.75), (0.2, 0.75)),
    "brick": _masonry,
    "tiles": _masonry,
    "metal": _shades((0.5, 0.65), (0.0, 0.12), (0.35, 0.85)),
    "leaves": _shades((0.18, 0.36), (0.35, 0.8), (0.15, 0.6)),
}


@lru_cache(maxsize=64)
def kind_weights(kinds: tuple[tuple[str, float], ...]) -> tuple[tuple[str, ...], np.ndarray]:
    """Painted kinds and the running sums of their shares, from pairs of kind and relative frequency.

    Raises:
        SynthesisError: a kind does not exist, or no share is above 0.
    """
    unknown = [kind for kind, _ in kinds if kind not in KINDS]
    shares = np.array([share for _, share in kinds], np.float64)
    if unknown:
        raise SynthesisError(f"the background kind {unknown[0]!r} does not exist; choose from {', '.join(KINDS)}.")
    if not len(shares) or (shares < 0).any() or not shares.sum() > 0:
        raise SynthesisError(f"backgrounds need shares above 0 of {', '.join(KINDS)}, not {dict(kinds)}.")
    return tuple(kind for kind, _ in kinds), np.cumsum(shares / shares.sum())


def _spread(colors: Sequence, contrast: float) -> np.ndarray:
    """The colours drawn together around their mean, float (k, 3)."""
    points = np.array(colors, np.float32)
    mean = points.mean(axis=0)
    return mean + (points - mean) * contrast


@lru_cache(maxsize=1024)
def _palette(colors: tuple, contrast: float) -> np.ndarray:
    """The colours of field values 0..255, uint8 (256, 1, 3)."""
    points = _spread(colors, contrast)
    places = np.linspace(0, 255, len(points))
    steps = [np.interp(np.arange(256), places, channel) for channel in points.T]
    return np.stack(steps, axis=1).round().astype(np.uint8)[:, None]


# ---- images of folders ----


class BackgroundPool:
    """The readable images of some folders.

    Files that are no image, truncated, over 64 MB or over 80 megapixels are counted, logged and left out. Every file
    is decoded once for that. Images are kept reduced to 1024 pixels, 256 MB of them at a time: a pool of a hundred
    images is served from memory, a larger one costs a file read per sample.

    Args:
        folders: one or more, searched with their subfolders; single images are taken too.

    Attributes:
        paths: of the images, sorted.
        rejected: reason -> how many files.

    Raises:
        SynthesisError: a folder does not exist, or no file is of use.
    """

    def __init__(self, folders: str | Path | Sequence[str | Path]):
        if isinstance(folders, (str, Path)):
            folders = [folders]
        self.paths: list[str] = []
        self.rejected: Counter[str] = Counter()
        files = sorted({file for folder in folders for file in _image_files(folder)})
        examples = {}
        for file in tqdm(files, "Reading backgrounds", disable=None if len(files) > 50 else True):
            reason = _trouble(file)
            if reason:
                self.rejected[reason] += 1
                examples.setdefault(reason, file)
            else:
                self.paths.append(file)
        counts = ", ".join(f"{n} {reason} (as {examples[reason]})" for reason, n in sorted(self.rejected.items()))
        if counts:
            logger.warning("%d of %d background images are left out: %s", self.rejected.total(), len(files), counts)
        if not self.paths:
            where = ", ".join(str(folder) for folder in folders) or "no folder at all"
            raise SynthesisError(
                f"no background image in {where} ({counts or f'no file ends in {SUFFIXES}'}); give other folders."
            )

    def __len__(self) -> int:
        return len(self.paths)


def _image_files(folder: str | Path) -> list[str]:
    if os.path.isfile(folder):
        return [str(folder)]
    if not os.path.isdir(folder):
        raise SynthesisError(f"the background folder {folder} does not exist; give a folder or an image.")
    found = []
    for root, _, names in os.walk(folder):
        found += [os.path.join(root, name) for name in names if name.lower().endswith(SUFFIXES)]
    return found


def _trouble(path: str) -> str:
    """Why an image is of no use, or nothing."""
    try:
        _open_reduced(path, 64)
    except SynthesisError as error:
        return error.args[1]
    return ""


def _open_reduced(path: str, side: int) -> np.ndarray:
    """An image, upright and RGB, its longer side at most `side`: uint8 `(height, width, 3)`."""
    try:
        if os.path.getsize(path) > MAX_FILE_BYTES:
            raise _ImageError(path, "too large")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise _ImageError(path, "too large")
                if min(image.size) < MIN_SIDE:
                    raise _ImageError(path, "too small")
                image.draft("RGB", (side, side))  # a JPEG is then decoded at a half, quarter or eighth at once
                image = ImageOps.exif_transpose(image)
                if image.mode.startswith("I;16"):
                    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
                if image.has_transparency_data:
                    image = image.convert("RGBA")
                    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
                image = image.convert("RGB")
                image.thumbnail((side, side), Image.Resampling.BOX)
                return np.array(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _ImageError(path, "too large") from None
    except SynthesisError:
        raise
    # A damaged file makes Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error ... : one bad file.
    except Exception as error:
        logger.debug("the background %s is unreadable: %s", path, error)
        raise _ImageError(path, "unreadable") from None


class _ImageError(SynthesisError):
    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)

    def __str__(self) -> str:
        return f"the background image {self.args[0]} is {self.args[1]}; take it out of the folder."


_images: OrderedDict[str, np.ndarray] = OrderedDict()


def _image(path: str) -> np.ndarray:
    """The reduced image, from memory where it was used lately."""
    image = _images.get(path)
    if image is None:
        image = _images[path] = _open_reduced(path, MAX_SIDE)
        while len(_images) > 1 and sum(kept.nbytes for kept in _images.values()) > CACHE_BYTES:
            _images.popitem(last=False)
    else:
        _images.move_to_end(path)
    return image


def _crop(path: str, box: tuple[float, float, float, float], height: int, width: int) -> np.ndarray:
    image = _image(path)
    tall, wide = image.shape[:2]
    left, top, right, bottom = (min(max(edge, 0.0), 1.0) for edge in box)
    if right <= left or bottom <= top:
        raise SynthesisError(f"the crop {box} of the background {path} is empty; give left < right, top < bottom.")
    left, right, top, bottom = left * wide, right * wide, top * tall, bottom * tall
    factor = min((right - left) / width, (bottom - top) / height)
    crop_width, crop_height = max(2, int(width * factor)), max(2, int(height * factor))
    x = min(int((left + right - crop_width) / 2), wide - crop_width)
    y = min(int((top + bottom - crop_height) / 2), tall - crop_height)
    part = image[max(y, 0) : max(y, 0) + crop_height, max(x, 0) : max(x, 0) + crop_width]
    return cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA if factor > 1 else cv2.INTER_LINEAR)
