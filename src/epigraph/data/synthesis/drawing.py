"""One word drawn onto a picture in its style, with its labels; and what a camera does to the whole afterwards."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import cv2
import numpy as np

from .backgrounds import Background, paint
from .fonts import SynthesisError
from .layout import Layout, lay_out, warp_cells
from .style import Degradation, Fill, Style


@dataclass(frozen=True)
class Drawn:
    """The labels of one drawn word, on the canvas of its style (height, width).

    Attributes:
        mask: (height, width) uint8, coverage by the letters alone.
        effect_mask: (height, width) uint8, coverage by letters, border, extrusion and shadow: outside of it no pixel
            was touched.
        char_map: (height, width) uint8, 0 where the mask is 0, else 1 + index of the character.
        char_quads: (n, 4, 2) float32, a quad around each character, clockwise from its own top left.
        polygon: (4, 2) or (2m, 2) float32, around the letters: the top edge in reading order, the bottom one back.
        box: left, top, right, bottom of the part in which the effect mask is not 0.
    """

    mask: np.ndarray
    effect_mask: np.ndarray
    char_map: np.ndarray
    char_quads: np.ndarray
    polygon: np.ndarray
    box: tuple[int, int, int, int]


def draw(patch: np.ndarray, style: Style, text: str, layout: Layout | None = None) -> Drawn:
    """Draw a word in place.

    Args:
        patch: (height, width, 3) uint8 or float32 RGB of the style's size; a view of a larger picture is fine. The
            style's own background and degradation are not used.
        layout: where the letters are on the patch, which then has any size; default: where the style puts them.

    Raises:
        SynthesisError: the patch has another size, the font lacks a character, or the word does not fit.
    """
    size = patch.shape[:2]
    if layout is None:
        if patch.shape != (*style.size, 3):
            raise SynthesisError(
                f"a patch of shape {patch.shape} is not the (height, width, 3) of the size {style.size}."
            )
        layout = lay_out(style, text)
    mask, char_map = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    warp_cells(mask, layout.bitmaps, layout.quads, char_map)
    box = x0, y0, x1, y1 = _region(style, layout, size)
    ink, part = mask[y0:y1, x0:x1], patch[y0:y1, x0:x1]
    planes = np.ascontiguousarray(part.transpose(2, 0, 1), np.float32)
    covered = ink
    for layer, color, opacity in _layers(style, ink, layout.cap):
        covered = cv2.max(covered, layer)
        planes += (_column(color) - planes) * (layer * np.float32(opacity / 255))
    fill = _blend(style.blend, planes, _fill(style.fill, box, size))
    planes += (fill - planes) * (ink * np.float32(style.opacity / 255))
    if patch.dtype == np.uint8:
        planes = np.rint(planes, out=planes).astype(np.uint8)
    part[:] = cv2.merge(list(planes))
    effect_mask = np.zeros(size, np.uint8)
    effect_mask[y0:y1, x0:x1] = covered
    return Drawn(mask, effect_mask, char_map, layout.char_quads, layout.polygon, box)


def degrade(images: Sequence[np.ndarray], degradation: Degradation, seed: int) -> list[np.ndarray]:
    """Blur, resample, add noise to and compress pictures of one size, all of them in exactly the same way.

    Args:
        images: (height, width, 3) uint8.
        seed: of the one noise field that all of them get.

    Returns:
        New arrays, or the same ones where the degradation does nothing.
    """
    images = list(images)
    if not images:
        return images
    height, width = images[0].shape[:2]
    if degradation.blur > 0:
        images = [cv2.GaussianBlur(image, (0, 0), degradation.blur) for image in images]
    if degradation.motion > 0:
        kernel = _motion_kernel(degradation.motion, degradation.motion_angle)
        images = [cv2.filter2D(image, -1, kernel) for image in images]
    if degradation.resample > 0:
        small = max(1, round(width * degradation.resample)), max(1, round(height * degradation.resample))
        images = [cv2.resize(image, small, interpolation=cv2.INTER_AREA) for image in images]
        images = [cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR) for image in images]
    if degradation.noise > 0:
        noise = _noise(seed, height, width)
        images = [cv2.addWeighted(image, 1, noise, degradation.noise, 0, dtype=cv2.CV_8U) for image in images]
    if degradation.jpeg > 0:
        options = [cv2.IMWRITE_JPEG_QUALITY, degradation.jpeg]
        files = [cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1] for image in images]
        images = [cv2.imdecode(file, cv2.IMREAD_COLOR_RGB) for file in files]
    return images


def _noise(seed: int, height: int, width: int) -> np.ndarray:
    """Noise of a sensor, (height, width, 3) float32 of mean 0 and standard deviation 1: fine grey and coarser colour.

    Random bytes looked up in the quantiles of the normal distribution cost a third of NumPy's normal numbers, or less.
    """
    rng = np.random.default_rng(seed)
    half = (height + 1) // 2, (width + 1) // 2
    gray, color = (
        cv2.LUT(np.frombuffer(rng.bytes(math.prod(shape)), np.uint8).reshape(shape), _quantiles() * np.float32(share))
        for shape, share in (((height, width), 0.8), ((*half, 3), 0.6))
    )
    color = cv2.resize(color, (width, height), interpolation=cv2.INTER_NEAREST)
    return cv2.add(color, cv2.merge([gray, gray, gray]))


@lru_cache(maxsize=1)
def _quantiles() -> np.ndarray:
    normal = NormalDist()
    values = np.array([normal.inv_cdf((number + 0.5) / 256) for number in range(256)], np.float32)
    return values / values.std()


def contrast(image: np.ndarray, mask: np.ndarray) -> float:
    """Grey levels between the letters and what lies right around them.

    The difference of their means; or, where it is greater, how much farther the surroundings are from the letters'
    mean than the letters themselves: a dark outline on a bright wall may average to the grey of the letters.

    Args:
        image: (height, width, 3) uint8 RGB.
        mask: (height, width) uint8 coverage by the letters.
    """
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    inside = cv2.compare(mask, 0.5 * cv2.minMaxLoc(mask)[1], cv2.CMP_GT)
    around = cv2.compare(cv2.subtract(cv2.dilate(mask, _disc(2)), mask), 127, cv2.CMP_GT)
    level = cv2.mean(gray, inside)[0]
    away = cv2.absdiff(gray, (level, 0, 0, 0))
    apart = cv2.mean(away, around)[0] - cv2.mean(away, inside)[0]
    return max(apart, abs(level - cv2.mean(gray, around)[0]))


def _region(style: Style, layout: Layout, size: tuple[int, int]) -> tuple[int, int, int, int]:
    reach = 1.0
    if style.border:
        reach += style.border.width * layout.cap + 1
    if style.extrusion:
        reach += max(abs(style.extrusion.dx), abs(style.extrusion.dy)) * layout.cap + 1
    if style.shadow:
        shadow = style.shadow
        reach += (max(abs(shadow.dx), abs(shadow.dy)) + 3 * shadow.blur) * layout.cap + 2
    low, high = layout.quads.min((0, 1)) - reach, layout.quads.max((0, 1)) + reach
    x0, y0 = max(int(low[0]), 0), max(int(low[1]), 0)
    x1, y1 = min(math.ceil(high[0]), size[1]), min(math.ceil(high[1]), size[0])
    if x1 <= x0 or y1 <= y0:
        raise SynthesisError("the word lies outside its canvas; move the corners of the style into it.")
    return x0, y0, x1, y1


def _layers(style: Style, ink: np.ndarray, cap: float) -> list[tuple[np.ndarray, tuple, float]]:
    """(coverage, colour, opacity) of what lies below the fill, the lowest first."""
    layers, outline = [], ink
    if style.border:
        outline = _grown(ink, style.border.width * cap)
        layers.append((outline, style.border.color, 1.0))
    if style.extrusion:
        line = _line(round(style.extrusion.dx * cap), round(style.extrusion.dy * cap))
        outline = cv2.dilate(outline, line)
        layers.append((outline, style.extrusion.color, 1.0))
    if style.shadow:
        shadow = style.shadow
        move = np.array([[1, 0, shadow.dx * cap], [0, 1, shadow.dy * cap]], np.float32)
        fallen = cv2.warpAffine(outline, move, outline.shape[::-1])
        if shadow.blur * cap > 0.2:
            fallen = cv2.GaussianBlur(fallen, (0, 0), shadow.blur * cap, borderType=cv2.BORDER_CONSTANT)
        layers.append((fallen, shadow.color, shadow.opacity))
    return layers[::-1]


def _grown(ink: np.ndarray, radius: float) -> np.ndarray:
    """Grown by a radius that need not be whole: between the two whole ones."""
    whole = int(radius)
    near = cv2.dilate(ink, _disc(whole)) if whole else ink
    rest = radius - whole
    return cv2.addWeighted(near, 1 - rest, cv2.dilate(ink, _disc(whole + 1)), rest, 0) if rest > 0.05 else near


@lru_cache(maxsize=64)
def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


@lru_cache(maxsize=256)
def _line(dx: int, dy: int) -> np.ndarray:
    """A structuring element whose dilation sweeps ink along (dx, dy)."""
    reach = max(abs(dx), abs(dy), 1)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.uint8)
    cv2.line(kernel, (reach, reach), (reach - dx, reach - dy), 1)
    return kernel


@lru_cache(maxsize=256)
def _motion_kernel(length: float, angle: float) -> np.ndarray:
    reach = max(1, math.ceil(length / 2))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    step = 0.5 * length * math.cos(math.radians(angle)), 0.5 * length * math.sin(math.radians(angle))
    ends = [tuple(round(16 * (reach + sign * part)) for part in step) for sign in (-1, 1)]
    cv2.line(kernel, *ends, 1.0, 1, cv2.LINE_AA, 4)
    kernel[reach, reach] = 1.0
    return kernel / kernel.sum()


def _column(color: Sequence[float]) -> np.ndarray:
    return np.array(color, np.float32).reshape(3, 1, 1)


def _fill(fill: Fill, box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """(3, 1, 1) or (3, height, width) float32 of the box."""
    first = _column(fill.colors[0])
    if fill.kind == "color":
        return first
    x0, y0, x1, y1 = box
    if fill.kind == "gradient":
        share = _ramp(size, fill.angle)[y0:y1, x0:x1]
    else:
        share = _pattern(fill.texture, size)[y0:y1, x0:x1]
    return first + (_column(fill.colors[1]) - first) * share


@lru_cache(maxsize=8)
def painted(background: Background, size: tuple[int, int]) -> np.ndarray:
    """`paint`, kept for the next word on the same background; (height, width, 3) uint8, read-only."""
    image = paint(background, size)
    image.flags.writeable = False
    return image


@lru_cache(maxsize=16)
def _ramp(size: tuple[int, int], angle: float) -> np.ndarray:
    """0..1 across the canvas in a direction."""
    height, width = size
    dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    reach = abs(dx) * width + abs(dy) * height
    x = (np.arange(width, dtype=np.float32) + 0.5 - 0.5 * width) * np.float32(dx / reach)
    y = (np.arange(height, dtype=np.float32) + 0.5 - 0.5 * height) * np.float32(dy / reach) + np.float32(0.5)
    return x + y[:, None]


@lru_cache(maxsize=16)
def _pattern(texture: Background, size: tuple[int, int]) -> np.ndarray:
    """Light and dark of a texture as 0..1."""
    gray = cv2.cvtColor(painted(texture, size), cv2.COLOR_RGB2GRAY)
    low, high, _, _ = cv2.minMaxLoc(gray)
    return (gray - np.float32(low)) * np.float32(1 / max(high - low, 1.0))


def _blend(mode: str, below: np.ndarray, fill: np.ndarray) -> np.ndarray:
    """The colour that a fill has over what lies below it, both 0..255."""
    if mode == "normal":
        return fill
    if mode == "multiply":
        return below * fill * np.float32(1 / 255)
    if mode == "screen":
        return 255 - (255 - below) * (255 - fill) * np.float32(1 / 255)
    if mode == "darken":
        return np.minimum(below, fill)
    if mode == "lighten":
        return np.maximum(below, fill)
    dark = 2 * below * fill * np.float32(1 / 255)
    light = 255 - 2 * (255 - below) * (255 - fill) * np.float32(1 / 255)
    return np.where(fill < 127.5, dark, light)
