"""What backgrounds are painted with: textures as fields of grey, pictures, light and grain.

Every field painter takes `(rng, height, width, unit)`, `unit` being the size of one brick, plank ... in pixels, and
returns uint8 `(height, width)`; `backgrounds.paint` gives the greys their colours. A picture painter takes colours,
float `(k, 3)`, instead of the unit and returns uint8 `(height, width, 3)`.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np

_TILE = 768  # pixels along the side of the noise and material tiles
_PIECE = 40.0  # pixels of one leaf or stone in a tile
_NOISE_SIGMA = 24.0  # of the noise tile, in levels


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


def _blurred(rng: np.random.Generator, height: int, width: int, colors: np.ndarray) -> np.ndarray:
    """Things out of focus: walls, boxes, posts and lamps in the given colours, RGB `(height, width, 3)`."""
    short = 48
    factor = short / min(height, width)
    tall, wide = max(2, min(4 * short, round(height * factor))), max(2, min(4 * short, round(width * factor)))
    grid = np.clip(rng.uniform(30, 220, (3, 3, 1)) + rng.normal(0, 12, (3, 3, 3)), 0, 255).astype(np.uint8)
    canvas = cv2.resize(grid, (wide, tall), interpolation=cv2.INTER_CUBIC)
    count = 20
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


def _street(rng: np.random.Generator, height: int, width: int, colors: np.ndarray) -> np.ndarray:
    """A passage between shop fronts, seen along it, RGB `(height, width, 3)`."""
    extent = np.array([width, height])
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
    far = (rng.uniform((0.25, 0.35), (0.75, 0.6)) + (corners * 2 - 1) * rng.uniform(0.08, 0.3, 2)) * extent
    near = (corners + rng.normal(0, 0.15, (4, 2))) * extent
    mixed = 0.75 * rng.uniform(20, 235, (5, 1)) + 0.25 * colors[rng.integers(len(colors), size=5)]
    walls = np.clip(mixed + rng.normal(0, 6, (5, 3)), 0, 255)
    image = np.empty((height, width, 3), np.uint8)
    image[:] = walls[4]
    # Surfaces (ceiling, right wall, floor, left wall) first, then panels of (surface, depth, place across it).
    count = int(rng.integers(6, 18))
    surface = np.concatenate([np.arange(4), np.sort(rng.choice(4, count, p=(0.15, 0.35, 0.15, 0.35)))])
    depth, across = np.sort(rng.random((2, count + 4, 2)) ** [[[0.7]], [[1.0]]], axis=2)
    depth[:4], across[:4] = (0, 1), (0, 1)
    shades = np.where(rng.random((count, 1)) < 0.6, colors[rng.integers(len(colors), size=count)], walls[surface[4:]])
    shades = np.concatenate([walls[:4], np.clip(shades * rng.uniform(0.4, 1.4, (count, 1)), 0, 255)]).tolist()
    d, t = depth[:, (0, 0, 1, 1), None], across[:, (0, 1, 1, 0), None]
    a, b = surface[:, None], (surface[:, None] + 1) % 4
    points = (1 - d) * ((1 - t) * near[a] + t * near[b]) + d * ((1 - t) * far[a] + t * far[b])
    for polygon, shade in zip(np.round(points * 16).astype(np.int32, order="C"), shades):
        cv2.fillConvexPoly(image, polygon, shade, cv2.LINE_AA, 4)
    places = rng.random((4, 2)) * (width, max(1.0, far[0, 1]))
    lamps = np.concatenate([places, rng.exponential((0.03, 0.015), (4, 2)) * extent + 1], axis=1).astype(int).tolist()
    for x, y, wide, tall in lamps[: int(rng.integers(0, 5))]:
        cv2.ellipse(image, (x, y), (wide, tall), 0, 0, 360, (255, 252, 240), -1, cv2.LINE_AA)
    dirt = cv2.merge([_window(rng, _material("concrete"), height, width)] * 3)
    image = cv2.addWeighted(image, 1.0, dirt, 0.08, -10)
    blur = 1 + 2 * int(rng.integers(0, 3)) * max(1, min(height, width) // 256)
    return cv2.blur(image, (blur, blur)) if blur > 1 else image


def _of_material(name: str) -> Callable:
    def field(rng: np.random.Generator, height: int, width: int, unit: float) -> np.ndarray:
        return _material_field(rng, name, height, width, unit)

    return field


FIELDS: dict[str, Callable] = {
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
}


PICTURES: dict[str, Callable] = {"blurred": _blurred, "street": _street}


# ---- light, noise, and materials that are drawn once per process ----


def light(rng: np.random.Generator, image: np.ndarray, strength: float) -> np.ndarray:
    """Uneven light: a lamp to one side, soft shadows."""
    height, width = image.shape[:2]
    lamps = 200 * (1 - rng.random((3, 3)) * 0.55 * strength)
    tint = 1 - rng.random(3) * 0.08 * strength
    grid = (lamps[..., None] * tint).astype(np.uint8)
    # A resize repeats the outermost half cell; the middle of a larger one has no flat edges.
    smooth = cv2.resize(grid, (24, 24), interpolation=cv2.INTER_CUBIC)[4:20, 4:20]
    return cv2.multiply(image, cv2.resize(smooth, (width, height), interpolation=cv2.INTER_LINEAR), scale=1 / 190)


def grain(rng: np.random.Generator, image: np.ndarray, sigma: float) -> np.ndarray:
    """Fine noise of a surface, with a standard deviation of `sigma` levels."""
    amount = sigma / _NOISE_SIGMA
    return cv2.addWeighted(image, 1.0, _window(rng, _noise_tile(), *image.shape[:2]), amount, -128.0 * amount)


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
