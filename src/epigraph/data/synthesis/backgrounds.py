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

logger = logging.getLogger(__name__)

# Share of every painted kind. What counts as textured stands in TEXTURES.
KINDS: dict[str, float] = {
    "plain": 0.26,
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
    "blurred": 0.03,
}
TEXTURES = frozenset(KINDS) - {"plain", "gradient", "sign"} | {"file"}
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MAX_FILE_BYTES = 64 * 2**20
MAX_PIXELS = 80_000_000  # of an image file
MAX_SIDE = 1024  # to which an image of a folder is reduced
MIN_SIDE = 16
MAX_CANVAS = 8192
CACHE_BYTES = 256 * 2**20  # of reduced images in one process
_TILE = 768  # pixels along the side of the noise and material tiles


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
    names, weights = _weights(tuple(kinds.items()))
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
    painter = _PAINTERS[background.kind]
    if painter is _blurred:
        image = _blurred(rng, height, width, unit, _spread(background.colors, background.contrast))
    else:
        field = painter(rng, height, width, unit)
        image = cv2.applyColorMap(field, _palette(background.colors, background.contrast))
    if background.light:
        image = _lit(rng, image, background.light)
    if background.grain:
        noise = _window(rng, _noise_tile(), height, width)
        amount = background.grain / _NOISE_SIGMA
        image = cv2.addWeighted(image, 1.0, noise, amount, -128.0 * amount)
    return image


# ---- colours ----


def _color(rng: np.random.Generator) -> tuple[int, int, int]:
    """A colour as signs, packages, walls and screens have them."""
    draw = rng.random()
    if draw < 0.17:
        hue, saturation, value = rng.random(), rng.random() * 0.5, rng.uniform(0.02, 0.22)
    elif draw < 0.39:
        hue, saturation, value = rng.normal(0.12, 0.05) % 1, rng.random() ** 2 * 0.15, rng.uniform(0.85, 1.0)
    elif draw < 0.52:
        hue, saturation, value = rng.random(), rng.random() * 0.12, rng.uniform(0.25, 0.8)
    elif draw < 0.82:
        hue = (0.0, 0.02, 0.09, 0.14, 0.36, 0.45, 0.57, 0.61, 0.66, 0.8)[int(rng.integers(10))]
        hue, saturation, value = (hue + rng.normal(0, 0.015)) % 1, rng.uniform(0.6, 1.0), rng.uniform(0.3, 1.0)
    else:
        hue, saturation, value = rng.random(), rng.uniform(0.15, 0.5), rng.uniform(0.3, 0.85)
    return _rgb(hue, saturation, value)


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
def _weights(kinds: tuple[tuple[str, float], ...]) -> tuple[tuple[str, ...], np.ndarray]:
    unknown = [kind for kind, _ in kinds if kind not in KINDS]
    shares = np.array([share for _, share in kinds], np.float64)
    if unknown or not len(shares) or (shares < 0).any() or not shares.sum() > 0:
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


# ---- what is painted: fields (height, width) of uint8, turned into colours by the palette ----


def _flat(rng: np.random.Generator, height: int, width: int, unit: float) -> np.ndarray:
    return np.zeros((height, width), np.uint8)


def _ramp(rng: np.random.Generator, height: int, width: int, unit: float) -> np.ndarray:
    """0..255 from one side to another, in any direction."""
    angle = rng.random() * 2 * math.pi
    across, down = math.cos(angle), math.sin(angle)
    x, y = np.linspace(0, across, width, dtype=np.float32), np.linspace(0, down, height, dtype=np.float32)
    least, most = min(across, 0.0) + min(down, 0.0), max(across, 0.0) + max(down, 0.0)
    factor = 255 / (most - least)
    return np.add.outer((y - least) * factor, x * factor).astype(np.uint8)


def _frame(rng: np.random.Generator, height: int, width: int, unit: float) -> np.ndarray:
    """A plate with a frame, or the edge of a plate that runs through the crop."""
    field = np.zeros((height, width), np.uint8)
    thick = max(1, round(min(height, width) * rng.uniform(0.01, 0.06)))
    if rng.random() < 0.5:
        gap = round(min(height, width) * rng.uniform(0.0, 0.08))
        low, high = (gap, gap), (width - 1 - gap, height - 1 - gap)
        cv2.rectangle(field, low, high, 255, thick, cv2.LINE_AA)
        return field
    shade = int(rng.integers(90, 256))
    slope = rng.normal(0, 0.05)
    if rng.random() < 0.7:
        edge = height * (rng.uniform(0.0, 0.2) if rng.random() < 0.5 else rng.uniform(0.8, 1.0))
        line = [(0, edge - slope * width), (width, edge + slope * width)]
        outside = 0 if edge < height / 2 else height
        corners = [*line, (width, outside), (0, outside)]
    else:
        edge = width * (rng.uniform(0.0, 0.12) if rng.random() < 0.5 else rng.uniform(0.88, 1.0))
        line = [(edge - slope * height, 0), (edge + slope * height, height)]
        outside = 0 if edge < width / 2 else width
        corners = [*line, (outside, height), (outside, 0)]
    fixed = np.round(np.array(corners) * 16).astype(np.int32)
    cv2.fillPoly(field, [fixed], shade, cv2.LINE_AA, 4)
    if rng.random() < 0.4:
        cv2.polylines(field, [fixed[:2]], False, 255, thick, cv2.LINE_AA, 4)
    return field


def _stripes(rng: np.random.Generator, height: int, width: int, unit: float) -> np.ndarray:
    angle = rng.random() * math.pi
    period = max(4.0, unit)
    x = np.arange(width, dtype=np.float32) * (math.cos(angle) / period)
    y = np.arange(height, dtype=np.float32) * (math.sin(angle) / period) + rng.random()
    phase = np.add.outer(y, x)
    phase -= np.floor(phase)
    # A triangle wave, cut off at both ends: stripes whose edges are one pixel soft, or soft waves.
    steep = period * (1.0 if rng.random() < 0.7 else 0.15)
    wave = cv2.absdiff(phase, 0.5)
    return cv2.convertScaleAbs(np.clip((wave - rng.uniform(0.1, 0.4)) * steep + 0.5, 0, 1), alpha=255)


def _masonry_field(rng: np.random.Generator, height: int, width: int, unit: float, shift: float, ratio: float):
    """Rows of rectangles with joints (0) between them, each of its own shade (110..255)."""
    tall = max(4, round(unit))
    wide = max(6, round(unit * ratio))
    joint = max(1, round(tall * rng.uniform(0.04, 0.12)))
    spread = rng.uniform(10, 110)
    field = np.zeros((height, width), np.uint8)
    start = -int(rng.integers(tall))
    columns = width // wide + 3
    offset = int(rng.integers(wide))
    for number, top in enumerate(range(start, height, tall)):
        shades = (255 - rng.random(columns, dtype=np.float32) * spread).astype(np.uint8)
        row = np.repeat(shades[:, None], wide, axis=1)
        row[:, :joint] = 0
        begin = round(offset + (number % 2) * shift * wide) % wide
        field[max(top, 0) : max(top + tall - joint, 0)] = row.reshape(-1)[begin : begin + width]
    field = cv2.addWeighted(field, 1.0, _window(rng, _material("concrete"), height, width), 0.3, -38)
    return cv2.blur(field, (2, 2)) if tall > 8 else field


def _brick(rng, height, width, unit):
    return _masonry_field(rng, height, width, unit * 0.6, 0.5, rng.uniform(2.2, 3.2))


def _tiles(rng, height, width, unit):
    return _masonry_field(rng, height, width, unit, 0.0, rng.uniform(0.8, 2.0))


def _wood(rng: np.random.Generator, height: int, width: int, unit: float) -> np.ndarray:
    """Long fibres, mostly level, with the joints of planks."""
    upright = rng.random() < 0.3
    if upright:
        height, width = width, height
    rows = max(4, int(height / max(1.0, unit / 24)))
    fibres = rng.integers(0, 256, (rows, int(width / (unit * 1.5)) + 4), dtype=np.uint8)
    field = cv2.resize(fibres, (width, height), interpolation=cv2.INTER_LINEAR)
    field = cv2.addWeighted(field, 0.5, _clouds(rng, height, width, unit * 2, 1), 0.6, -20)
    if rng.random() < 0.6:
        plank = max(6, round(unit * 1.5))
        for top in range(int(rng.integers(plank)), height, plank):
            field[top : top + max(1, plank // 30)] = 0
    return np.ascontiguousarray(field.T) if upright else field


def _metal(rng: np.random.Generator, height: int, width: int, unit: float) -> np.ndarray:
    """Brushed sheet under a lamp: fine level lines, and a bright band."""
    lines = rng.integers(90, 166, (height, max(2, width // 96)), dtype=np.uint8)
    field = cv2.resize(lines, (width, height), interpolation=cv2.INTER_LINEAR)
    shine = cv2.resize(rng.integers(0, 256, (2, 5), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.addWeighted(field, rng.uniform(0.3, 0.8), shine, 0.6, -10)


def _fabric(rng: np.random.Generator, height: int, width: int, unit: float) -> np.ndarray:
    """Threads that cross, and the folds of the cloth."""
    period = max(2.5, unit / 10)
    x = np.sin(np.arange(width, dtype=np.float32) * (2 * math.pi / period))
    y = np.sin(np.arange(height, dtype=np.float32) * (2 * math.pi / (period * rng.uniform(0.8, 1.3))))
    weave = cv2.convertScaleAbs(np.multiply.outer(y, x) + 1.0, alpha=127)
    folds = _clouds(rng, height, width, unit * 3, 1)
    return cv2.addWeighted(weave, rng.uniform(0.15, 0.4), folds, 0.7, 0)


def _paper(rng: np.random.Generator, height: int, width: int, unit: float) -> np.ndarray:
    """Fibres and stains, creased at times."""
    fibres = _window(rng, _material("concrete"), height, width)
    if rng.random() < 0.4:
        return cv2.addWeighted(_material_field(rng, "crumpled", height, width, unit * 2), 0.7, fibres, 0.3, 0)
    return cv2.addWeighted(_clouds(rng, height, width, unit * 3, 1), 0.5, fibres, 0.5, 0)


def _clouds(rng: np.random.Generator, height: int, width: int, unit: float, octaves: int = 3) -> np.ndarray:
    """Smooth noise: random grids, enlarged and added."""
    total = None
    for octave in range(octaves):
        step = max(1.5, unit / 2**octave)
        grid = (min(height, int(height / step) + 2), min(width, int(width / step) + 2))
        layer = cv2.resize(rng.integers(0, 256, grid, dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
        total = layer if total is None else cv2.addWeighted(total, 0.68, layer, 0.32, 0)
    return total


def _blurred(rng: np.random.Generator, height: int, width: int, unit: float, colors: np.ndarray) -> np.ndarray:
    """Things out of focus: walls, boxes, posts and lamps in the given colours, RGB `(height, width, 3)`."""
    short = 64
    factor = short / min(height, width)
    tall, wide = max(2, min(4 * short, round(height * factor))), max(2, min(4 * short, round(width * factor)))
    grid = np.clip(rng.uniform(30, 220, (3, 3, 1)) + rng.normal(0, 12, (3, 3, 3)), 0, 255).astype(np.uint8)
    canvas = cv2.resize(grid, (wide, tall), interpolation=cv2.INTER_CUBIC)
    count = 24
    shades = colors[rng.integers(len(colors), size=count)].mean(axis=1, keepdims=True)
    vivid = rng.random((count, 1)) < 0.3
    shades = np.where(vivid, colors[rng.integers(len(colors), size=count)], shades + rng.normal(0, 10, (count, 3)))
    shades = np.clip(shades * rng.uniform(0.3, 1.5, (count, 1)), 0, 255).tolist()
    places = rng.random((count, 2)) * (wide, tall)
    halves = (rng.exponential(0.1, (count, 2)) + 0.02) * short
    boxes = np.concatenate([places - halves, places + halves], axis=1).round().astype(int).tolist()
    for number, ((left, top, right, bottom), shade) in enumerate(zip(boxes, shades)):
        if number % 3:
            cv2.rectangle(canvas, (left, top), (right, bottom), shade, -1)
        else:
            axes = ((right - left) // 2, (bottom - top) // 2)
            cv2.ellipse(canvas, ((left + right) // 2, (top + bottom) // 2), axes, 0, 0, 360, shade, -1)
    for x, y in (rng.random((int(rng.integers(5)), 2)) * (wide, tall)).astype(int).tolist():
        cv2.circle(canvas, (x, y), int(rng.integers(2, 7)), (255, 250, 235), -1)
    blur = 2 * int(rng.integers(2, 6)) + 1
    canvas = cv2.blur(cv2.blur(canvas, (blur, blur)), (blur, blur))
    return cv2.resize(canvas, (width, height), interpolation=cv2.INTER_CUBIC)


def _of_material(name: str) -> Callable:
    def field(rng: np.random.Generator, height: int, width: int, unit: float) -> np.ndarray:
        return _material_field(rng, name, height, width, unit)

    return field


_PAINTERS: dict[str, Callable] = {
    "plain": _flat,
    "gradient": _ramp,
    "sign": _frame,
    "paper": _paper,
    "plaster": _of_material("plaster"),
    "concrete": _of_material("concrete"),
    "stone": _of_material("stone"),
    "wood": _wood,
    "brick": _brick,
    "tiles": _tiles,
    "stripes": _stripes,
    "fabric": _fabric,
    "metal": _metal,
    "leaves": _of_material("leaves"),
    "blurred": _blurred,
}


# ---- light, noise, and materials that are drawn once per process ----

_NOISE_SIGMA = 24.0  # of the noise tile, in levels


def _lit(rng: np.random.Generator, image: np.ndarray, strength: float) -> np.ndarray:
    """Uneven light: a lamp to one side, soft shadows."""
    height, width = image.shape[:2]
    lamps = 200 * (1 - rng.random((3, 3)) * 0.55 * strength)
    tint = 1 - rng.random(3) * 0.08 * strength
    grid = (lamps[..., None] * tint).astype(np.uint8)
    # A resize repeats the outermost half cell; enlarge more and keep the middle, so that no edge looks flat.
    large = cv2.resize(grid, (width * 3 // 2 + 1, height * 3 // 2 + 1), interpolation=cv2.INTER_CUBIC)
    top, left = height // 4, width // 4
    return cv2.multiply(image, large[top : top + height, left : left + width], scale=1 / 190)


@lru_cache(maxsize=1)
def _noise_tile() -> np.ndarray:
    """Fine noise around 128 with standard deviation 24, mostly equal in the three channels, uint8."""
    rng = np.random.default_rng(1)
    grey = rng.normal(0, 1, (_TILE, _TILE, 1)).astype(np.float32)
    coloured = rng.normal(0, 1, (_TILE, _TILE, 3)).astype(np.float32)
    return np.clip(128 + _NOISE_SIGMA * (0.9 * grey + 0.436 * coloured), 0, 255).astype(np.uint8)


def _window(rng: np.random.Generator, tile: np.ndarray, height: int, width: int) -> np.ndarray:
    """A part of a tile, repeated where the canvas is larger."""
    if height > _TILE or width > _TILE:
        tile = np.tile(tile, (-(-height // _TILE), -(-width // _TILE)) + (1,) * (tile.ndim - 2))
    top, left = rng.integers(0, (tile.shape[0] - height + 1, tile.shape[1] - width + 1)).tolist()
    return tile[top : top + height, left : left + width]


def _material_field(rng: np.random.Generator, name: str, height: int, width: int, unit: float) -> np.ndarray:
    """A part of a material's tile, turned at random, one piece of it about `unit` pixels large."""
    tile = _material(name)
    factor = min(_PIECE / unit, _TILE / max(height, width), 4.0)
    tall, wide = max(2, int(height * factor)), max(2, int(width * factor))
    part = _window(rng, tile, tall, wide)
    flip = int(rng.integers(4))
    if flip < 3:
        part = cv2.flip(part, flip - 1)
    return cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA if factor > 1.5 else cv2.INTER_LINEAR)


_PIECE = 40.0  # pixels of one leaf or stone in a tile


@lru_cache(maxsize=8)
def _material(name: str) -> np.ndarray:
    """The tile of a material: uint8 (768, 768), stretched to 0..255."""
    rng = np.random.default_rng(len(name))
    fine = rng.normal(0, 1, (_TILE, _TILE)).astype(np.float32)
    coarse = sum(
        cv2.resize(rng.normal(0, 1, (n, n)).astype(np.float32), (_TILE, _TILE), interpolation=cv2.INTER_CUBIC)
        * (8 / n) ** 0.5
        for n in (8, 20, 48, 110)
    )
    if name == "concrete":
        field = coarse + 0.5 * cv2.GaussianBlur(fine, (0, 0), 1.2) * 2
        field -= 4 * (cv2.GaussianBlur(fine, (0, 0), 1.6) > 0.48)  # pits
    elif name == "plaster":
        bumps = cv2.GaussianBlur(fine, (0, 0), 3) * 8 + coarse * 0.5
        field = cv2.Sobel(bumps, cv2.CV_32F, 1, 1, ksize=3) + 0.15 * bumps  # light from the upper left
    elif name == "leaves":
        field = np.zeros((_TILE, _TILE), np.float32)
        for depth in np.linspace(0.1, 1, 3500):
            axes = (int(_PIECE * rng.uniform(0.2, 0.6)), int(_PIECE * rng.uniform(0.07, 0.22)))
            place = rng.integers(0, _TILE, 2).tolist()
            shade = float(depth * rng.uniform(0.3, 1.0))
            cv2.ellipse(field, place, axes, float(rng.uniform(0, 180)), 0, 360, shade, -1, cv2.LINE_AA)
        field += 0.05 * coarse
    else:
        field = _cells(rng, name == "crumpled") + 0.1 * coarse
    low, high = np.percentile(field, (1, 99))
    return np.clip((field - low) * (255 / (high - low)), 0, 255).astype(np.uint8)


def _cells(rng: np.random.Generator, facets: bool) -> np.ndarray:
    """Nearest-point cells: facets that each lean another way (creased paper), or stones with dark joints."""
    seeds = np.full((_TILE, _TILE), 255, np.uint8)
    count = int((_TILE / _PIECE) ** 2)
    rows, columns = rng.integers(0, _TILE, (2, count))
    seeds[rows, columns] = 0
    _, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    shade = rng.normal(0, 0.5, labels.max() + 1).astype(np.float32)[labels]
    if facets:
        y, x = np.mgrid[:_TILE, :_TILE].astype(np.float32) / _PIECE
        lean = rng.normal(0, 0.6, (2, labels.max() + 1)).astype(np.float32)[:, labels]
        return cv2.GaussianBlur(shade + np.sin(x * lean[0] * 3 + y * lean[1] * 3), (0, 0), 2)
    stone = labels.astype(np.float32)
    joints = cv2.dilate(stone, np.ones((3, 3))) != cv2.erode(stone, np.ones((3, 3)))
    return cv2.GaussianBlur(np.where(joints, -1.5, shade), (0, 0), 1)


# ---- images of folders ----


class BackgroundPool:
    """The readable images of some folders.

    Files that are no image, truncated, over 64 MB or over 80 megapixels are counted, logged and left out. Every file
    is decoded once for that. Images are kept reduced to 1024 pixels, 256 MB of them at a time: a pool of a hundred
    images is served from memory, a larger one costs a file read per sample.

    Args:
        folders: searched with their subfolders; single files are taken too.

    Attributes:
        paths: of the images, sorted.
        rejected: reason -> how many files.

    Raises:
        SynthesisError: a folder does not exist, or no file is of use.
    """

    def __init__(self, folders: Sequence[str | Path]):
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
            logger.warning("%d of %d background images are left out: %s", len(examples), len(files), counts)
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
                image.thumbnail((side, side), Image.Resampling.BOX if image.mode != "P" else Image.Resampling.NEAREST)
                image = ImageOps.exif_transpose(image)
                if image.mode.startswith("I;16"):
                    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
                if image.has_transparency_data:
                    image = image.convert("RGBA")
                    ground = Image.new("RGBA", image.size, "white")
                    image = Image.alpha_composite(ground, image)
                return np.array(image.convert("RGB"))
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
