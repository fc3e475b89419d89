"""Where every character of a word lands: one quad and one homography per glyph bitmap.

A glyph is never resampled together with the canvas. The corners of its ink box go through the baseline curve, the
elastic field and the homography of the style, and its bitmap is warped once into the quad they make: the quads are
exact by construction, and a word costs as many small warps as it has characters.

Coordinates are pixels of the canvas, (x, y), y down, pixel centres at +0.5; quads run clockwise from the glyph's own
top left.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np

from .fonts import SynthesisError
from .shaping import shape

if TYPE_CHECKING:
    from .style import Style

SIZES = (48, 96, 192, 384)  # pixels per em at which glyphs are drawn and cached: few, so that the cache serves
MIN_CAP = 5.0  # pixels; smaller capitals cannot be told apart
MIN_ADVANCE = 3.0  # pixels for each character
MIN_SQUEEZE = 0.5
MAX_PIECES = 12  # of a polygon's long edge
MAX_BEND = 0.6  # height of the letters in radii of the baseline
PAD = 0.6  # pixels around the ink of a character that belong to its quad


def quad_homographies(sizes: np.ndarray, quads: np.ndarray) -> np.ndarray:
    """Homographies that map boxes onto quads, in closed form (Heckbert 1989, section 2.2.3).

    Args:
        sizes: (n, 2) height and width of each box, in pixels; a box spans (0, 0) to (width, height).
        quads: (n, 4, 2) corners to land on: top left, top right, bottom right, bottom left.

    Returns:
        (n, 3, 3) float64. A degenerate quad (three corners on a line) gives values that are not finite.
    """
    sizes = np.asarray(sizes, np.float64)
    q = np.asarray(quads, np.float64)
    p0, p1, p2, p3 = q[:, 0], q[:, 1], q[:, 2], q[:, 3]
    d1, d2, d3 = p1 - p2, p3 - p2, p0 - p1 + p2 - p3
    with np.errstate(divide="ignore", invalid="ignore"):
        det = d1[:, 0] * d2[:, 1] - d2[:, 0] * d1[:, 1]
        g = (d3[:, 0] * d2[:, 1] - d2[:, 0] * d3[:, 1]) / det
        h = (d1[:, 0] * d3[:, 1] - d3[:, 0] * d1[:, 1]) / det
        out = np.empty((len(q), 3, 3))
        # Columns are scaled by the box, so that the unit square of the derivation becomes the box.
        out[:, :2, 0] = (p1 - p0 + g[:, None] * p1) / sizes[:, 1:]
        out[:, :2, 1] = (p3 - p0 + h[:, None] * p3) / sizes[:, :1]
        out[:, :2, 2] = p0
        out[:, 2, 0] = g / sizes[:, 1]
        out[:, 2, 1] = h / sizes[:, 0]
        out[:, 2, 2] = 1.0
    return out


def map_points(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a (3, 3) homography to points (..., 2); the same shape comes back."""
    mapped = points @ homography[:, :2].T + homography[:, 2]
    return mapped[..., :2] / mapped[..., 2:]


def warp_cells(
    canvas: np.ndarray, bitmaps: Sequence[np.ndarray], quads: np.ndarray, owners: np.ndarray | None = None
) -> None:
    """Warp glyph bitmaps into their quads, in place, keeping the greater coverage where they meet.

    Args:
        canvas: (height, width) uint8 coverage, drawn into. Parts of a quad outside it are cut off.
        bitmaps: n arrays (h, w) uint8 coverage, trimmed to their ink.
        quads: (n, 4, 2) where the corners of each bitmap land.
        owners: (height, width) uint8 or uint16, or None: gets 1 + index of the bitmap where that one's coverage is
            the greatest, and is left alone where there is none.
    """
    if len(bitmaps) == 0:
        return
    height, width = canvas.shape
    quads = np.asarray(quads, np.float64)
    bitmaps, sizes = _reduced(bitmaps, quads)
    matrices = quad_homographies(sizes, quads)
    # OpenCV counts from pixel centres, quads from pixel edges: shift by half a pixel on both sides.
    matrices[:, :, 2] += 0.5 * (matrices[:, :, 0] + matrices[:, :, 1])
    # Bilinear sampling fades over half a source pixel beyond the bitmap: one pixel more on every side holds it.
    low = np.clip(np.floor(quads.min(1)) - 1, 0, (width, height))
    high = np.clip(np.ceil(quads.max(1)) + 1, 0, (width, height))
    matrices[:, :2] -= (low + 0.5)[:, :, None] * matrices[:, 2:]
    drawn = np.flatnonzero((high > low).all(1) & np.isfinite(matrices).all((1, 2)))
    boxes = np.concatenate([low[drawn], high[drawn]], 1).astype(np.intp)
    for index, (x0, y0, x1, y1) in zip(drawn.tolist(), boxes.tolist(), strict=True):
        ink = cv2.warpPerspective(bitmaps[index], matrices[index], (x1 - x0, y1 - y0))
        part = canvas[y0:y1, x0:x1]
        if owners is not None:
            np.copyto(owners[y0:y1, x0:x1], index + 1, where=ink > part)
        np.maximum(part, ink, out=part)


def _reduced(bitmaps: Sequence[np.ndarray], quads: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    # Bilinear sampling skips source pixels where it shrinks by over 2: such bitmaps are averaged down first.
    bitmaps = list(bitmaps)
    sizes = np.array([bitmap.shape for bitmap in bitmaps], np.float64)
    sides = np.abs(quads - quads[:, [1, 2, 3, 0]]).max(2)
    target = np.maximum(sides[:, 1::-1], sides[:, 3:1:-1])
    small = np.maximum(np.rint(1.5 * target), 1)
    for index in np.flatnonzero((sizes > 2.2 * target).any(1) & (sizes > small).any(1)).tolist():
        h, w = np.minimum(small[index], sizes[index]).astype(int).tolist()
        bitmaps[index] = cv2.resize(bitmaps[index], (w, h), interpolation=cv2.INTER_AREA)
        sizes[index] = h, w
    return bitmaps, sizes


@dataclass(frozen=True)
class Layout:
    """A word's place on its canvas.

    Attributes:
        bitmaps: n glyph bitmaps, in reading order.
        quads: (n, 4, 2) where `warp_cells` puts them.
        char_quads: (n, 4, 2) float32: each glyph's quad, half a pixel wider on every side than its ink box so that
            its anti-aliased edge is inside, and not beyond the middle of the gap to its neighbour.
        polygon: (4, 2) or (2m, 2) float32: the ink of the word, its top edge in reading order, then the bottom one
            back.
        cap: cap height in pixels, the unit of border, shadow and extrusion.
    """

    bitmaps: list[np.ndarray]
    quads: np.ndarray
    char_quads: np.ndarray
    polygon: np.ndarray
    cap: float


@dataclass(frozen=True)
class FaceMetrics:
    """Of a face, in ems: height of capitals, of the tallest usual letter, and depth of descenders."""

    cap: float
    top: float
    bottom: float


@lru_cache(maxsize=4096)
def face_metrics(path: str, index: int) -> FaceMetrics:
    """Measured on H, d and g; where a face lacks them, the usual proportions."""
    try:
        line = shape(path, index, "Hdg", 128)
    except SynthesisError:
        return FaceMetrics(0.7, 0.75, 0.22)
    tops = [-cell.top / 128 for cell in line.cells]
    bottom = max(cell.top + cell.bitmap.shape[0] for cell in line.cells) / 128
    return FaceMetrics(max(tops[0], 0.2), max(tops[:2]), bottom)


def glyph_size(em: float) -> int:
    """The size at which to take glyphs from the cache for a size of `em` pixels."""
    return next((size for size in SIZES if size >= em), SIZES[-1])


def lay_out(style: "Style", text: str) -> Layout:
    """Place a word as its style says; a word that would leave the canvas is moved, then made smaller.

    Raises:
        SynthesisError: the font lacks a character, or the word fits only with letters too small to read.
    """
    room = _room(style)
    if room[1, 0] - room[0, 0] < MIN_ADVANCE * len(text) and style.baseline.kind != "vertical":
        raise _misfit(style, text, (room[1, 0] - room[0, 0]) / len(text))
    scale = 1.0
    for _ in range(4):
        flat = _set_line(style, text, scale)
        points = _bend(style, flat.points)
        ink = np.concatenate([points[: len(flat.bitmaps) * 4], points[len(flat.bitmaps) * 8 :]])
        low, high = ink.min(0), ink.max(0)
        fit = ((room[1] - room[0]) / (high - low)).min()
        if fit >= 0.999 or flat.cap < MIN_CAP:
            break
        scale *= 0.98 * fit
    if fit < 0.999 or flat.cap < MIN_CAP:
        raise _misfit(style, text, (high[0] - low[0]) / len(text))
    points += np.clip(0.0, room[0] - low, room[1] - high)
    points = _project(style, points)
    n = len(flat.bitmaps)
    quads, char_quads = points[: 8 * n].reshape(2, n, 4, 2)
    return Layout(flat.bitmaps, quads, char_quads.astype(np.float32), points[8 * n :].astype(np.float32), flat.cap)


@dataclass(frozen=True)
class _Flat:
    """A word before its baseline bends: x on the canvas, y from the baseline."""

    bitmaps: list[np.ndarray]
    points: np.ndarray  # (8n + 2m, 2): corners of the warped boxes, of the characters' boxes, and the polygon
    cap: float


def _room(style: "Style") -> np.ndarray:
    """Where points may lie before the elastic field and the homography: [[left, top], [right, bottom]]."""
    height, width = style.size
    free = height * (style.margin + (style.elastic.amplitude if style.elastic else 0.0))
    return np.array([[free, free], [width - free, height - free]])


def _misfit(style: "Style", text: str, advance: float) -> SynthesisError:
    height, width = style.size
    return SynthesisError(
        f"the text {text[:30]!r} of {len(text)} characters does not fit {height} x {width} pixels: {advance:.1f} "
        f"pixels for each, where {MIN_ADVANCE} and a cap height of {MIN_CAP} can be read; give a wider canvas or a "
        "shorter text."
    )


def _set_line(style: "Style", text: str, scale: float) -> _Flat:
    height, width = style.size
    font = style.font
    cap = style.font_size * height * scale
    em = cap / face_metrics(font.path, font.index).cap
    size = glyph_size(em)
    vertical = style.baseline.kind == "vertical"
    line = shape(font.path, font.index, text, size, round(style.stroke * size), vertical)
    bitmaps = [cell.bitmap for cell in line.cells]
    boxes = np.array([(c.left, c.top, c.left + c.bitmap.shape[1], c.top + c.bitmap.shape[0]) for c in line.cells])
    order = boxes[:, 0].argsort(kind="stable") if line.rtl or line.sliced else None
    if order is not None:
        boxes = boxes[order]
    zoom = em / size
    room = _room(style)
    available = room[1] - room[0]
    pads = 0.5, 0.5
    shrink = _shrink(style)
    if vertical:
        stretch = 1.0
        pads = max(0.5, PAD / (zoom * shrink[0])), max(0.5, PAD / (zoom * shrink[1]))
        _space(boxes[:, 1::2], style.spacing * size, 2.4 * pads[1])
    else:
        stretch = _stretch(style, boxes, zoom, available[0] * scale)
        pads = max(0.5, PAD / (zoom * stretch * shrink[0])), max(0.5, PAD / (zoom * shrink[1]))
        if not line.sliced:
            _space(boxes[:, 0::2], style.spacing * size, 2.4 * pads[0])
            stretch = _stretch(style, boxes, zoom, available[0] * scale)
    padded = boxes + (-pads[0], -pads[1], pads[0], pads[1])
    first, last = (1, 3) if vertical else (0, 2)
    middles = 0.5 * (boxes[1:, first] + boxes[:-1, last])
    np.minimum(padded[:-1, last], np.maximum(middles, boxes[:-1, last]), out=padded[:-1, last])
    np.maximum(padded[1:, first], np.minimum(middles, boxes[1:, first]), out=padded[1:, first])
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    drawn = boxes
    if line.sliced:
        bitmaps, drawn = _joined(bitmaps, boxes, order)
    points = np.concatenate([_corners(drawn, order), _corners(padded, order), _outline(style, boxes)])
    if vertical:
        points *= zoom
        length = (high[1] - low[1]) * zoom
        points += 0.5 * width, room[0, 1] + style.align * (available[1] - length) - low[1] * zoom
    else:
        points *= zoom * stretch, zoom
        length = (high[0] - low[0]) * zoom * stretch
        points[:, 0] += room[0, 0] + style.align * (available[0] - length) - low[0] * zoom * stretch
    return _Flat(bitmaps, points, cap)


def _stretch(style: "Style", boxes: np.ndarray, zoom: float, available: float) -> float:
    natural = (boxes[:, 2].max() - boxes[:, 0].min()) * zoom
    return min(max(available / natural, MIN_SQUEEZE), max(style.max_stretch, MIN_SQUEEZE))


def _space(spans: np.ndarray, spacing: float, gap: float) -> None:
    """Add spacing between boxes, (n, 2) least and greatest x or y in order; from 0 on, no gap below that. In place."""
    steps = np.full(len(spans), spacing)
    steps[0] = 0.0
    if spacing >= 0.0:
        steps[1:] += np.maximum(gap - spacing - (spans[1:, 0] - spans[:-1, 1]), 0.0)
    spans += steps.cumsum()[:, None]


def _joined(bitmaps: list, boxes: np.ndarray, order: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Slices of one picture with a column of their neighbours on each side: faded edges would show as seams."""
    slices, drawn, out = [bitmaps[i] for i in order], boxes.copy(), list(bitmaps)
    for place, i in enumerate(order):
        parts = [piece[:, -1:] for piece in slices[place - 1 : place]] + slices[place : place + 1]
        parts += [piece[:, :1] for piece in slices[place + 1 : place + 2]]
        out[i] = np.hstack(parts)
    drawn[1:, 0] -= 1
    drawn[:-1, 2] += 1
    return out, drawn


def _corners(boxes: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    """(n, 4) boxes left, top, right, bottom as (4n, 2) corners, in reading order again."""
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]]
    if order is not None:
        corners[order] = corners.copy()
    return corners.reshape(-1, 2)


def _outline(style: "Style", boxes: np.ndarray) -> np.ndarray:
    """The box around the ink; where the line bends, its long edges are cut at letters' ends, and so hold them."""
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    bends = style.baseline.kind in ("arc", "wave") or style.elastic and style.baseline.kind == "straight"
    x = np.array([low[0], high[0]])
    if bends and len(boxes) > MAX_PIECES:
        x = np.linspace(low[0], high[0], MAX_PIECES + 1)
    elif bends:  # where letters end too, as long as they are few
        x = np.sort(boxes[:, ::2].ravel() if 2 * len(boxes) <= MAX_PIECES else np.append(boxes[:, 0], high[0]))
    out = np.empty((2, len(x), 2))
    out[0, :, 0], out[1, :, 0] = x, x[::-1]
    out[0, :, 1], out[1, :, 1] = low[1], high[1]
    return out.reshape(-1, 2)


def _bend(style: "Style", points: np.ndarray) -> np.ndarray:
    """Flat points onto the baseline curve."""
    height, width = style.size
    line = style.baseline
    if line.kind == "vertical":
        return points
    x, y = points[:, 0], points[:, 1]
    out = np.empty_like(points)
    base = style.baseline_y * height
    if line.kind == "arc" and line.amplitude:
        rise = line.amplitude * height
        radius = (width * width / 4 + rise * rise) / (2 * rise)
        angle = (x - 0.5 * width) / radius
        sine, cosine = np.sin(angle), np.cos(angle)
        out[:, 0] = 0.5 * width + (radius - y) * sine
        # Centred on its chord and its top, as the whole canvas sees it.
        out[:, 1] = base - 0.5 * rise + radius - (radius - y) * cosine
    elif line.kind == "wave" and line.amplitude:
        turn = 2 * math.pi / (line.wavelength * width)
        # Where a wave bends more sharply than letters are high, their sides would cross.
        limit = MAX_BEND / (turn * turn * max(np.abs(y).max(), 1.0))
        swing = min(max(line.amplitude * height, -limit), limit)
        angle = np.arctan(swing * turn * np.cos(turn * x + line.phase))
        out[:, 0] = x - y * np.sin(angle)
        out[:, 1] = base + swing * np.sin(turn * x + line.phase) + y * np.cos(angle)
    else:
        out[:, 0] = x
        out[:, 1] = base + y
    return out


def _project(style: "Style", points: np.ndarray) -> np.ndarray:
    """Through the elastic field and the homography."""
    height, width = style.size
    if style.elastic:
        field = style.elastic
        turn = 2 * math.pi / (field.wavelength * height)
        a, b, c, d = field.phases
        x, y = points[:, 0] * turn, points[:, 1] * turn
        shift = np.stack([np.sin(x + a) + np.sin(y + b), np.sin(x + c) + np.sin(y + d)], 1)
        points = points + shift * (0.5 * field.amplitude * height)
    if style.corners is None:
        return points
    return map_points(_homography(style.size, style.corners), points)


@lru_cache(maxsize=256)
def _homography(size: tuple[int, int], corners: tuple[tuple[float, float], ...]) -> np.ndarray:
    quad = np.array(corners) * (size[1], size[0])
    homography = quad_homographies(np.array([size]), quad[None])[0]
    sides = np.roll(quad, -1, 0) - quad
    turns = sides[:, 0] * np.roll(sides[:, 1], -1) - sides[:, 1] * np.roll(sides[:, 0], -1)
    if not (turns > 1e-3).all() or not np.isfinite(homography).all():
        raise SynthesisError(f"the corners {corners} make no convex quad, clockwise from the top left.")
    return homography


def _shrink(style: "Style") -> tuple[float, float]:
    """The least factor by which the homography and the elastic field scale widths and heights."""
    across, along = 1.0, 1.0
    if style.corners is not None:
        height, width = style.size
        (ax, ay), (bx, by), (cx, cy), (dx, dy) = style.corners
        top, bottom = math.hypot(bx - ax, (by - ay) * height / width), math.hypot(cx - dx, (cy - dy) * height / width)
        left, right = math.hypot((dx - ax) * width / height, dy - ay), math.hypot((cx - bx) * width / height, cy - by)
        across, along = min(top, bottom, 1.0), min(left, right, 1.0)
    if style.elastic:
        bend = 1.0 - math.pi * style.elastic.amplitude / style.elastic.wavelength
        across, along = across * bend, along * bend
    return max(across, 0.2), max(along, 0.2)
