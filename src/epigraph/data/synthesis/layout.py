"""Where every character of a word lands: one quad and one homography per glyph bitmap.

A glyph is never resampled together with the canvas. The corners of its ink box go through the baseline curve, the
elastic field and the homography of the style, and its bitmap is warped once into the quad they make: the quads are
exact by construction, and a word costs as many small warps as it has characters.

Coordinates are pixels of the canvas, (x, y), y down, pixel centres at +0.5; quads run clockwise from the glyph's own
top left.
"""

from collections.abc import Sequence

import cv2
import numpy as np


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
    # Bilinear sampling skips source pixels where it shrinks by 2 or more: such bitmaps are averaged down first.
    sizes = np.array([bitmap.shape for bitmap in bitmaps], np.float64)
    sides = np.linalg.norm(quads - np.roll(quads, -1, 1), axis=2)
    target = np.stack([np.maximum(sides[:, 1], sides[:, 3]), np.maximum(sides[:, 0], sides[:, 2])], 1)
    shrink = sizes / np.maximum(target, 1.0)
    bitmaps = list(bitmaps)
    for index in np.flatnonzero((shrink > 2.0).any(1)):
        h, w = np.maximum(sizes[index] // np.maximum(shrink[index], 1.0), 1).astype(int)
        bitmaps[index] = cv2.resize(bitmaps[index], (int(w), int(h)), interpolation=cv2.INTER_AREA)
        sizes[index] = h, w
    return bitmaps, sizes
