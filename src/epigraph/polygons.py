"""Geometry of text instances: polygons from annotations, their reading order, edges and overlap.

A polygon is an array (points, 2) of (x, y) in pixels, x to the right, y down, pixel centres at +0.5. In reading order
it is a quad clockwise from the text's own top left corner, or a curve of 2n points: the top edge in reading
direction, then the bottom edge back, as CTW1500 and Total-Text have it. Rotation is in the order of the points: the
quad of an upside-down word starts at its bottom right corner on the page.
"""

import numpy as np
import shapely

MAX_POINTS = 1024  # of one polygon from outside: the finest public annotations have under 100
MAX_COORDINATE = 65536.0  # pixels; beyond, an annotation is broken, and float32 loses a hundredth of a pixel


class PolygonError(ValueError):
    """A polygon that cannot be a text instance, told in one sentence."""


def check_polygon(polygon, size: tuple[int, int] | None = None, name: str = "polygon") -> np.ndarray:
    """A polygon from outside as (points, 2) float64, its points in the order they came.

    Args:
        polygon: (points, 2), or the flat x0, y0, x1, y1, ... of annotation files.
        size: (height, width) of the image. Parts outside the image are allowed, as annotations often have them.
        name: what the error calls it.

    Raises:
        PolygonError: not 4 to 1024 points, not finite, over 65536 pixels from the origin, self-intersecting, of no
            area, or wholly outside the image.
    """
    try:
        points = np.asarray(polygon, np.float64)
    except (TypeError, ValueError):
        raise PolygonError(f"{name} is no list of points; give x, y pairs") from None
    if points.ndim == 1 and points.size % 2 == 0:
        points = points.reshape(-1, 2)
    if points.ndim != 2 or points.shape[1] != 2:
        raise PolygonError(f"{name} has the shape {points.shape}; give x, y pairs")
    if not 4 <= len(points) <= MAX_POINTS:
        raise PolygonError(f"{name} has {len(points)} points; a text instance has 4 to {MAX_POINTS}")
    if not np.isfinite(points).all():
        raise PolygonError(f"{name} has coordinates that are not finite; leave it out")
    if np.abs(points).max() > MAX_COORDINATE:
        raise PolygonError(f"{name} reaches {np.abs(points).max():.0f} px; the limit is {MAX_COORDINATE:.0f}")
    shape = shapely.Polygon(points)
    if not shape.is_valid:
        raise PolygonError(f"{name} is self-intersecting or flat; give its points in order around the text")
    if shape.area < 1:
        raise PolygonError(f"{name} has an area of {shape.area:.2g} px; a text instance has at least one")
    if size is not None and not shape.intersects(shapely.box(0, 0, size[1], size[0])):
        raise PolygonError(f"{name} lies outside the image of {size[1]} x {size[0]} px")
    return points


def signed_area(polygon: np.ndarray) -> float:
    """Area in square pixels, positive for points that go clockwise on the screen."""
    x, y = polygon[:, 0], polygon[:, 1]
    return 0.5 * float(x @ np.roll(y, -1) - y @ np.roll(x, -1))


def reading_order(polygon: np.ndarray, upright: bool = False) -> np.ndarray:
    """The same polygon clockwise from the top left corner of its text.

    The first point is taken for that corner, as annotators are told to set it, and points that run the other way
    round are turned about it. An odd number of points has no two edges of its own: see :func:`instance_polygon`.

    Args:
        polygon: (2n, 2).
        upright: the first point may be any corner; take the one from which the text reads most to the right.
    """
    if signed_area(polygon) < 0:
        polygon = np.concatenate([polygon[:1], polygon[:0:-1]])
    if upright:
        half = len(polygon) // 2
        starts = range(4) if half == 2 else (0, half)

        def rightwards(start):
            top_left, top_right, bottom_right, bottom_left = np.roll(polygon, -start, axis=0)[[0, half - 1, half, -1]]
            reading = top_right - top_left + bottom_right - bottom_left
            return reading[0] / max(np.hypot(*reading), 1e-9)

        polygon = np.roll(polygon, -max(starts, key=rightwards), axis=0)
    return polygon


def min_area_quad(polygon: np.ndarray) -> np.ndarray:
    """The smallest rotated rectangle around a polygon, (4, 2), clockwise, read as far to the right as it can be."""
    corners = np.asarray(shapely.Polygon(polygon).minimum_rotated_rectangle.exterior.coords)[:4]
    return reading_order(corners, upright=True)


def resample(curve: np.ndarray, positions: int | np.ndarray) -> np.ndarray:
    """Points on a polyline by arc length.

    Args:
        curve: (n, 2).
        positions: how many points, ends included, or their places as shares 0..1 of the length.
    """
    if isinstance(positions, int):
        positions = np.linspace(0, 1, positions)
    along = arc_length(curve)
    return np.stack([np.interp(positions, along, curve[:, 0]), np.interp(positions, along, curve[:, 1])], axis=1)


def arc_length(curve: np.ndarray) -> np.ndarray:
    """Share 0..1 of a polyline's length at each of its points: (n, 2) -> (n,)."""
    steps = np.diff(curve, axis=0)
    along = np.concatenate([[0.0], np.cumsum(np.hypot(steps[:, 0], steps[:, 1]))])
    return along / max(along[-1], 1e-9)


def edge_curves(polygon: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Top and bottom edge of a polygon in reading order, both in reading direction: (2n, 2) -> (n, 2), (n, 2)."""
    half = len(polygon) // 2
    return polygon[:half], polygon[half:][::-1]


def extent(polygon: np.ndarray) -> tuple[float, float]:
    """Width and height in pixels as its reader sees them: mean length of the two edges, mean distance between them."""
    top, bottom = edge_curves(polygon)
    steps = np.hypot(*np.diff(np.stack([top, bottom]), axis=1).reshape(-1, 2).T)
    across = np.hypot(*(resample(bottom, 9) - resample(top, 9)).T) if len(top) > 2 else np.hypot(*(bottom - top).T)
    return float(steps.sum() / 2), float(across.mean())


def ribbon(polygon: np.ndarray, points: int = 8) -> np.ndarray:
    """Any simple polygon around a line of text, straight or bent, as a curve of 2 x ``points`` points.

    For annotations that follow no convention (CUTE80: any number of points, several of them on the short ends). The
    two ends are where the outline folds back on itself: the pair of boundary places between which the two sides run
    closest together. Reading goes to the right; where the ends stand above one another, down.
    """
    outline = polygon if signed_area(polygon) > 0 else polygon[::-1]
    closed = np.concatenate([outline, outline[:1]])
    steps = 128
    dense = resample(closed, steps + 1)[:-1]
    start = np.arange(steps)[:, None, None]
    forward = np.arange(steps // 4, 3 * steps // 4 + 1)[None, :, None]
    shares = np.linspace(0, 1, 17)
    one = dense[np.rint(start + forward * shares).astype(int) % steps]
    other = dense[np.rint(start - (steps - forward) * shares).astype(int) % steps]
    apart = np.linalg.norm(one - other, axis=-1)  # (start, forward, shares)
    first, ahead = np.unravel_index(apart.mean(axis=-1).argmin(), apart.shape[:2])
    width = float(np.median(apart[first, ahead, 5:12]))
    length = shapely.Polygon(outline).length
    ends = [first / steps, ((first + forward[0, ahead, 0]) % steps) / steps]
    reading = dense[int(ends[1] * steps)] - dense[int(ends[0] * steps)]
    if reading[0] < -0.2 * abs(reading[1]) or (abs(reading[0]) <= 0.2 * abs(reading[1]) and reading[1] < 0):
        ends.reverse()
    corner = min(0.5 * width / length, 0.2)  # an end is as long as the ribbon is wide, half of it on either side
    span = (ends[1] - ends[0]) % 1
    top = np.linspace(ends[0] + corner, ends[0] + span - corner, points)
    bottom = np.linspace(ends[0] + span + corner, ends[0] + 1 - corner, points)
    return resample(closed, np.concatenate([top, bottom]) % 1)


def instance_polygon(polygon: np.ndarray) -> np.ndarray:
    """Any checked polygon with its two edges known: (n, 2) -> (4, 2) or (2m, 2) in reading order.

    Convex quads and curves of 2n points keep what their annotator said (:func:`reading_order`). Others, as an odd
    number of points, a concave quad, or points whose halves cannot be the two edges, become the smallest rectangle
    around them, or, where that is mostly air, a :func:`ribbon`.
    """
    if len(polygon) % 2 == 0:
        ordered = reading_order(polygon)
        top, bottom = edge_curves(ordered)
        if len(top) > 2:
            top, bottom = resample(top, 9), resample(bottom, 9)
        if (_turns(top[:-1], top[1:], bottom[1:], bottom[:-1]) > 0).all():
            return ordered
    quad = min_area_quad(polygon)
    return quad if abs(signed_area(polygon)) > 0.8 * abs(signed_area(quad)) else ribbon(polygon)


def _turns(*corners: np.ndarray) -> np.ndarray:
    """Twice the signed area of the triangle at each corner of n quads: (n, 2) four times -> (4, n)."""
    ring = np.stack([*corners, *corners[:2]])
    sides = np.diff(ring, axis=0)
    return sides[:-1, :, 0] * sides[1:, :, 1] - sides[:-1, :, 1] * sides[1:, :, 0]


def iou(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two simple polygons, 0..1."""
    one, other = shapely.Polygon(first), shapely.Polygon(second)
    union = one.union(other).area
    return one.intersection(other).area / union if union else 0.0
