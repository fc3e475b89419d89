"""Glyph targets: the words of an image in one plain font at their places, white on black, and nothing else.

It is what ODM (Duan et al. 2024, section 3.2) learns to see in an image, and its label generator, which was not
published: it needs no more than a polygon and a text for each word, so it works on any annotation, real or rendered.

```python
from epigraph.data.synthesis.glyph_targets import glyph_target

target = glyph_target((720, 1280), polygons, texts)        # ICDAR15, CTW1500, Total-Text ...
target.image, target.instances, target.skipped
```

The ink box of the text fills its polygon: a quad by one homography, a curve of 2n points by one for each stretch
between its points. Sizes are (height, width); polygons are those of :mod:`epigraph.polygons`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import hypot

import cv2
import numpy as np

from ...polygons import PolygonError, arc_length, check_polygon, edge_curves, instance_polygon
from .fonts import BUILTIN, Face, FontError, SynthesisError, find_fonts, open_face
from .shaping import Cell, check_text, shape
from .style import check_size

IGNORED = ("###", "")  # texts that say: something is written here, but nobody can or shall read it
PLAIN_FAMILIES = ("Noto Sans", "Open Sans", "DejaVu Sans", "Liberation Sans")  # the order of preference
MAX_SIDE = 16384  # of a canvas
_SIZES = (24, 32, 48, 64, 96, 128, 192)  # pixels per em; few, so that glyph bitmaps are cached
_VERTICAL_GAP = 0.12  # em between the characters of a vertical word


@dataclass(frozen=True)
class GlyphTarget:
    """What :func:`glyph_target` makes of an annotated image.

    Attributes:
        image: (height, width) uint8, coverage 0..255 by the plain glyphs of all words.
        instances: (height, width) uint16, 0 or 1 + index of the word whose ink is the strongest there. Setting the
            image to 0 where it is 1 + i takes word i out of the target, and no other.
        skipped: index of and reason for each word that is not drawn.
    """

    image: np.ndarray
    instances: np.ndarray
    skipped: list[tuple[int, str]] = field(default_factory=list)


def glyph_target(
    size: tuple[int, int],
    polygons: Sequence,
    texts: Sequence[str],
    ignore: Sequence[bool] | None = None,
    vertical: Sequence[bool | None] | None = None,
    font: Face | None = None,
    strict: bool = False,
) -> GlyphTarget:
    """The glyph target of one image from its annotation.

    Args:
        size: (height, width) of the image.
        polygons: one for each word, (points, 2) or flat x0, y0, x1, y1, ...; see :mod:`epigraph.polygons`. An odd
            number of points becomes a rectangle or a band of even width.
        texts: one for each polygon. "###" and "" are skipped, as in ICDAR and SVT, and so is what no font can draw.
        ignore: True for words that are skipped whatever their text.
        vertical: for each word whether its characters stand below one another; None, here or for all, finds out.
        font: draws every word; default: Pillow's own font, or an installed one for characters that it lacks.
        strict: raise instead of skipping, except for "###", "" and `ignore`.

    Raises:
        SynthesisError: the size is no pair of whole numbers in 1..16384, the lists differ in length, over 65535 words.
        PolygonError, SynthesisError: with `strict`, for the first word that cannot be drawn.
    """
    size = check_size(size, 1, MAX_SIDE)
    for name, given in {"texts": texts, "ignore": ignore, "vertical": vertical}.items():
        if given is not None and len(given) != len(polygons):
            raise SynthesisError(f"{len(polygons)} polygons and {len(given)} {name}; give one for each polygon")
    if len(polygons) > 65535:
        raise SynthesisError(f"{len(polygons)} words do not fit into one instance map; the limit is 65535")
    target = GlyphTarget(np.zeros(size, np.uint8), np.zeros(size, np.uint16))
    for index, (polygon, text) in enumerate(zip(polygons, texts)):
        if text in IGNORED or (ignore is not None and ignore[index]):
            target.skipped.append((index, "not to be read"))
            continue
        try:
            points = instance_polygon(check_polygon(polygon, size, f"polygon {index}"))
            _draw(target.image, points, text, font, vertical and vertical[index], target.instances, index + 1)
        except (PolygonError, SynthesisError, FontError) as error:
            if strict:
                raise
            target.skipped.append((index, str(error)))
    return target


def draw_glyphs(
    canvas: np.ndarray, polygon: np.ndarray, text: str, font: Face | None = None, vertical: bool | None = None
) -> None:
    """Draw one word in a plain font into its polygon, in place, keeping the greater coverage.

    Args:
        canvas: (height, width) uint8.
        polygon: (2n, 2) in reading order, in pixels of the canvas; what lies outside is cut off. Not checked:
            :func:`epigraph.polygons.check_polygon` does that for polygons of unknown origin.
        text: one word or line.
        font: default: Pillow's own font, or an installed one where that lacks a character.
        vertical: characters stand below one another; default: where the polygon is over 1.5 times as high as wide
            and a column of the characters fits its shape better than a line.

    Raises:
        SynthesisError: the text is empty, too long or has control characters; no font has all its characters.
    """
    _draw(canvas, np.asarray(polygon, np.float64), text, font, vertical)


def plain_face(text: str) -> Face:
    """The face that draws a text in glyph targets: Pillow's own, else the first installed one that covers it.

    The same fonts give the same choice: Noto Sans, Open Sans, DejaVu Sans, Liberation Sans and their sister families
    for single scripts come first, upright regular faces before others.

    Raises:
        SynthesisError: no installed face has all characters.
    """
    wanted = frozenset(text) - {" "}
    builtin = _builtin()
    if wanted <= builtin.characters:
        return builtin
    for face in _fallbacks():
        if wanted <= face.characters:
            return face
    nearest = max(_fallbacks(), key=lambda face: len(wanted & face.characters), default=builtin)
    missing = " ".join(f"{character} (U+{ord(character):04X})" for character in sorted(wanted - nearest.characters))
    raise SynthesisError(f"no installed font draws {text!r}: {nearest.name} comes nearest and lacks {missing}")


@lru_cache(maxsize=1)
def _builtin() -> Face:
    return open_face(BUILTIN)


@lru_cache(maxsize=1)
def _fallbacks() -> list[Face]:
    def rank(face):
        family = next((k for k, name in enumerate(PLAIN_FAMILIES) if face.name.startswith(name)), len(PLAIN_FAMILIES))
        regular = any(word in face.name for word in ("Regular", "Book"))
        return family, face.italic, not regular, len(face.name), face.name, face.digest, face.index

    try:
        return sorted(find_fonts(characters=""), key=rank)
    except FontError:
        return []


def _draw(canvas, polygon, text, font, vertical, instances=None, label=0):
    text = check_text(text)
    font = font or plain_face(text)
    if len(polygon) == 4:
        quad = polygon.tolist()
        width, height = _quad_extent(quad)
        _warp(canvas, _flat_word(text, font, width, height, vertical), quad, instances, label)
        return
    cuts, edges = _stretches(polygon)
    steps = edges[:, 1:] - edges[:, :-1]
    width = 0.5 * float(np.hypot(steps[..., 0], steps[..., 1]).sum())
    height = float(np.hypot(*(edges[0] - edges[1]).T).mean())
    flat = _flat_word(text, font, width, height, vertical)
    for strip, quad in zip(*_strips(flat, cuts, edges, steps)):
        _warp(canvas, strip, quad, instances, label)


def _warp(canvas: np.ndarray, flat: np.ndarray, quad: list[list[float]], instances, label: int) -> None:
    """The whole bitmap into the quad, keeping the greater coverage; pixels that it wins get the label."""
    xs, ys = [x for x, _ in quad], [y for _, y in quad]
    left, top = max(int(min(xs)) - 1, 0), max(int(min(ys)) - 1, 0)
    right, bottom = min(int(max(xs)) + 2, canvas.shape[1]), min(int(max(ys)) + 2, canvas.shape[0])
    if right <= left or bottom <= top:
        return
    right_edge, bottom_edge = flat.shape[1] - 0.5, flat.shape[0] - 0.5  # OpenCV counts from the pixel centres
    source = ((-0.5, -0.5), (right_edge, -0.5), (right_edge, bottom_edge), (-0.5, bottom_edge))
    landing = [(x - left - 0.5, y - top - 0.5) for x, y in quad]
    matrix = cv2.getPerspectiveTransform(np.array(source, np.float32), np.array(landing, np.float32))
    ink = cv2.warpPerspective(flat, matrix, (right - left, bottom - top))
    part = canvas[top:bottom, left:right]
    if instances is not None:
        np.copyto(instances[top:bottom, left:right], label, where=ink > part)
    np.maximum(part, ink, out=part)


def _quad_extent(quad: list[list[float]]) -> tuple[float, float]:
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = quad
    width = 0.5 * (hypot(bx - ax, by - ay) + hypot(cx - dx, cy - dy))
    return width, 0.5 * (hypot(dx - ax, dy - ay) + hypot(cx - bx, cy - by))


def _flat_word(text: str, face: Face, width: float, height: float, vertical: bool | None) -> np.ndarray:
    """The word on a straight line or in a column, trimmed to its ink, at most about as large as it will be drawn."""
    narrow = height > 1.5 * width
    across = min(height, 2 * width) if narrow else height
    line = shape(face.path, face.index, text, next((size for size in _SIZES if size >= 1.4 * across), _SIZES[-1]))
    may_stand = len(line.cells) > 1 and not line.sliced  # letters that join do not stand below one another
    if may_stand and (vertical or (vertical is None and narrow)):
        flat, column = _paste(line.cells), _paste(line.cells, standing=True)
        misfit = [abs(np.log(image.shape[0] * width / (image.shape[1] * height))) for image in (flat, column)]
        if vertical or misfit[1] < misfit[0]:
            flat = column
    else:
        flat = _paste(line.cells)
    rows, columns = flat.shape
    small = max(1, min(columns, round(width))), max(1, min(rows, round(height)))
    if columns > 1.3 * small[0] or rows > 1.3 * small[1]:  # bilinear sampling would skip pixels
        flat = cv2.resize(flat, small, interpolation=cv2.INTER_AREA)
    return flat


def _paste(cells: Sequence[Cell], standing: bool = False) -> np.ndarray:
    """The ink of all cells in one bitmap, on their line or centred below one another."""
    placed = [(cell.bitmap, round(cell.left), round(cell.top), *cell.bitmap.shape) for cell in cells]
    if standing:
        step = max(y + rows for _, _, y, rows, _ in placed) - min(y for _, _, y, _, _ in placed)
        step += max(1, round(_VERTICAL_GAP * step))
        placed = [
            (ink, -(columns // 2), y + k * step, rows, columns) for k, (ink, _, y, rows, columns) in enumerate(placed)
        ]
    left, top = min([x for _, x, _, _, _ in placed]), min([y for _, _, y, _, _ in placed])
    right = max([x + columns for _, x, _, _, columns in placed])
    bottom = max([y + rows for _, _, y, rows, _ in placed])
    flat = np.zeros((bottom - top, right - left), np.uint8)
    for ink, x, y, rows, columns in placed:
        part = flat[y - top : y - top + rows, x - left : x - left + columns]
        np.maximum(part, ink, out=part)
    return flat


def _stretches(polygon: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where to cut a curve so that both edges are straight in between: shares 0..1 (n,), the edges there (2, n, 2)."""
    top, bottom = edge_curves(polygon)
    along = arc_length(top), arc_length(bottom)
    cuts = np.sort(np.concatenate(along))
    cuts = cuts[np.concatenate([[True], cuts[1:] - cuts[:-1] > 0.01])]  # a closer cut bends no letter visibly
    cuts[-1] = 1.0
    edges = np.empty((2, len(cuts), 2))
    for k, curve in enumerate((top, bottom)):
        edges[k, :, 0] = np.interp(cuts, along[k], curve[:, 0])
        edges[k, :, 1] = np.interp(cuts, along[k], curve[:, 1])
    return cuts, edges


def _strips(flat: np.ndarray, cuts: np.ndarray, edges: np.ndarray, steps: np.ndarray):
    """Upright strips of the flat word between the cuts, and the quads (n, 4, 2) of the curve that they fill.

    Each strip takes a pixel of its neighbours along, or a dark seam would show where both fade out.
    """
    columns = cuts * flat.shape[1]
    first = np.maximum(np.floor(columns[:-1]) - 1, 0)
    last = np.minimum(np.ceil(columns[1:]) + 1, flat.shape[1])
    per_column = steps / (columns[1:] - columns[:-1])[:, None]
    starts = edges[:, :-1] + (first - columns[:-1])[:, None] * per_column
    ends = edges[:, 1:] + (last - columns[1:])[:, None] * per_column
    quads = np.stack([starts[0], ends[0], ends[1], starts[1]], axis=1)
    return [flat[:, a:b] for a, b in zip(first.astype(int).tolist(), last.astype(int).tolist())], quads.tolist()
