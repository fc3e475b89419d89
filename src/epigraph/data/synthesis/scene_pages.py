"""What a scene shows besides its words: walls, sky, ground, windows, plates for signs, light and shade.

Everything is painted before the first word, so that the erased scene is the page itself.
"""

import math
from dataclasses import replace

import cv2
import numpy as np

from .backgrounds import Background, BackgroundPool, paint, sample_background

_FIXED = 4  # fractional bits of OpenCV's drawing functions
# Relative frequency of what surfaces of a scene are made of; the rest of the page follows `backgrounds.KINDS`.
WALLS = {
    "plain": 0.12,
    "plaster": 0.16,
    "concrete": 0.12,
    "brick": 0.12,
    "tiles": 0.08,
    "stone": 0.06,
    "wood": 0.08,
    "metal": 0.05,
    "stripes": 0.03,
    "fabric": 0.03,
    "paper": 0.04,
    "leaves": 0.04,
    "blurred": 0.07,
}
GROUNDS = {"concrete": 0.4, "tiles": 0.2, "stone": 0.15, "leaves": 0.1, "wood": 0.1, "plaster": 0.05}
SKIES = {"plain": 0.3, "gradient": 0.5, "blurred": 0.2}
GLASS = {"blurred": 0.6, "gradient": 0.25, "plain": 0.15}


def compose_page(
    rng: np.random.Generator,
    size: tuple[int, int],
    pool: BackgroundPool | None = None,
    share: float = 0.5,
    built: float = 0.7,
) -> np.ndarray:
    """The picture behind the words, without light and shade: (height, width, 3) uint8 RGB.

    Args:
        pool: images of your own; `share` of the pages are one of them, untouched.
        built: share of the painted pages that show a street or a room: a wall with windows between sky and ground.
            The others are one surface, as a poster or a package seen from near.
    """
    height, width = size
    if pool is not None and rng.random() < share:
        return paint(sample_background(rng, pool, share=1.0), size).copy()
    if rng.random() >= built:
        return paint(sample_background(rng, scale=(0.04, 0.5)), size).copy()
    page = paint(sample_background(rng, kinds=WALLS, scale=(0.02, 0.12)), size).copy()
    tilt = rng.normal(0, 0.06)
    if rng.random() < 0.35:  # a second building, or the corner of this one
        x = width * rng.uniform(0.15, 0.85)
        lean = rng.normal(0, 0.02) * height
        side = 0 if rng.random() < 0.5 else width
        _surface(page, rng, WALLS, [(x + lean, 0), (side, 0), (side, height), (x - lean, height)], (0.02, 0.12))
    if rng.random() < 0.55:
        top = height * rng.uniform(0.05, 0.3)
        rise = tilt * width
        _surface(page, rng, SKIES, [(0, 0), (width, 0), (width, top + rise), (0, top - rise)], (0.2, 0.9))
    if rng.random() < 0.6:
        low = height * rng.uniform(0.75, 0.95)
        _surface(
            page,
            rng,
            GROUNDS,
            [(0, low + tilt * width), (width, low - tilt * width), (width, height), (0, height)],
            (0.02, 0.1),
        )
    _openings(page, rng, tilt)
    for _ in range(int(rng.integers(0, 4))):
        _line(page, rng)
    return page


def _openings(page: np.ndarray, rng: np.random.Generator, tilt: float) -> None:
    """Windows, doors or shelves in a row, and an awning or a fascia above them."""
    height, width = page.shape[:2]
    if rng.random() < 0.25:
        return
    count = int(rng.integers(1, 5))
    wide = width * rng.uniform(0.1, 0.8 / count)
    tall = height * rng.uniform(0.12, 0.4)
    left, top = width * rng.uniform(-0.1, 0.3), height * rng.uniform(0.15, 0.7)
    step = wide * rng.uniform(1.1, 1.7)
    frame = tuple(rng.integers(20, 240, 3).tolist())
    glass = sample_background(rng, kinds=GLASS, scale=(0.2, 0.8))
    for k in range(count):
        x = left + k * step
        y = top - 2 * tilt * (x - width / 2)
        slope = -2 * tilt * wide
        quad = [(x, y), (x + wide, y + slope), (x + wide, y + slope + tall), (x, y + tall)]
        _fill(page, quad, replace(glass, seed=glass.seed + k))
        thick = max(1, int(wide * 0.03))
        cv2.polylines(page, [_fixed(quad)], True, frame, thick, cv2.LINE_AA, _FIXED)
        if k == 0 and rng.random() < 0.4:
            middle = [((a[0] + b[0]) / 2, (a[1] + b[1]) / 2) for a, b in ((quad[0], quad[1]), (quad[3], quad[2]))]
            cv2.polylines(page, [_fixed(middle)], False, frame, thick, cv2.LINE_AA, _FIXED)
    if rng.random() < 0.5:
        deep = height * rng.uniform(0.06, 0.16)
        x0, x1 = left - 0.1 * wide, left + (count - 1) * step + 1.1 * wide
        y0, y1 = (top - 2 * tilt * (x - width / 2) for x in (x0, x1))
        spread = wide * rng.uniform(0, 0.15)
        kinds = {"plain": 0.5, "stripes": 0.3, "wood": 0.1, "metal": 0.1}
        quad = [(x0, y0 - deep), (x1, y1 - deep), (x1 + spread, y1), (x0 - spread, y0)]
        _surface(page, rng, kinds, quad, (0.1, 0.4))
        _shade(page, [(x0, y0), (x1, y1), (x1, y1 + deep), (x0, y0 + deep)], 0.6)


def _line(page: np.ndarray, rng: np.random.Generator) -> None:
    """A pole, a cable, a joint or a rail."""
    height, width = page.shape[:2]
    if rng.random() < 0.5:
        x = width * rng.random()
        ends = [(x, -5), (x + rng.normal(0, 0.03) * height, height + 5)]
    else:
        y = height * rng.random()
        ends = [(-5, y), (width + 5, y + rng.normal(0, 0.15) * width)]
    thick = int(rng.integers(1, 3)) if rng.random() < 0.6 else int(rng.integers(3, max(4, width // 50)))
    color = tuple((rng.integers(0, 200) + rng.integers(-15, 15, 3)).clip(0, 255).tolist())
    cv2.polylines(page, [_fixed(ends)], False, color, thick, cv2.LINE_AA, _FIXED)


def _surface(page: np.ndarray, rng: np.random.Generator, kinds: dict, polygon: list, scale: tuple) -> None:
    _fill(page, polygon, sample_background(rng, kinds=kinds, scale=scale))


def _fill(page: np.ndarray, polygon: list, background: Background) -> None:
    """Paint the part of the page inside a polygon."""
    points = np.array(polygon)
    height, width = page.shape[:2]
    left, top = np.clip(np.floor(points.min(0)), 0, (width, height)).astype(int).tolist()
    right, bottom = np.clip(np.ceil(points.max(0)), 0, (width, height)).astype(int).tolist()
    if right - left < 2 or bottom - top < 2:
        return
    inside = np.zeros((bottom - top, right - left), np.uint8)
    cv2.fillConvexPoly(inside, _fixed(points - (left, top)), 255, cv2.LINE_8, _FIXED)
    cv2.copyTo(paint(background, inside.shape), inside, page[top:bottom, left:right])


def _shade(page: np.ndarray, polygon: list, light: float) -> None:
    """Darken what is inside a polygon, softly."""
    soft = np.full((page.shape[0] // 4, page.shape[1] // 4), 255, np.uint8)
    cv2.fillConvexPoly(soft, _fixed(np.array(polygon) / 4), int(255 * light), cv2.LINE_AA, _FIXED)
    multiply(page, cv2.blur(soft, (3, 3))[..., None])


def draw_plate(
    page: np.ndarray, rng: np.random.Generator, quad: np.ndarray, size: tuple[float, float], background: Background
) -> None:
    """A plate for a sign, in place: board, label, light box or disc, with its frame and the shadow that it casts.

    Args:
        quad: (4, 2) where its corners are on the page.
        size: width and height in its own plane.
        background: what it is made of.
    """
    low, high = np.floor(quad.min(0)).astype(int) - 8, np.ceil(quad.max(0)).astype(int) + 8
    left, top = np.maximum(low, 0).tolist()
    right, bottom = np.minimum(high, page.shape[1::-1]).tolist()
    if right - left < 2 or bottom - top < 2:
        return
    longest = max(size)
    zoom = min(1.0, 512 / longest)
    wide, tall = max(4, round(size[0] * zoom)), max(4, round(size[1] * zoom))
    board = paint(background, (tall, wide)).copy()
    shape = np.zeros((tall, wide), np.uint8)
    short = min(wide, tall)
    draw = rng.random()
    radius = 0 if draw < 0.55 else round(short * rng.uniform(0.05, 0.5 if draw > 0.9 else 0.2))
    _rounded(shape, 0, radius, 255, -1)
    if rng.random() < 0.45 and short > 16:
        ink = (
            tuple(rng.integers(0, 256, 3).tolist())
            if rng.random() < 0.4
            else (255, 255, 255)
            if rng.random() < 0.5
            else (20, 20, 20)
        )
        _rounded(
            board, round(short * rng.uniform(0.0, 0.04)), radius, ink, max(1, round(short * rng.uniform(0.01, 0.035)))
        )
    corners = np.array([(-0.5, -0.5), (wide - 0.5, -0.5), (wide - 0.5, tall - 0.5), (-0.5, tall - 0.5)], np.float32)
    matrix = cv2.getPerspectiveTransform(corners, (quad - (left + 0.5, top + 0.5)).astype(np.float32))
    area = right - left, bottom - top
    cover = cv2.warpPerspective(shape, matrix, area)
    board = cv2.warpPerspective(board, matrix, area, borderMode=cv2.BORDER_REPLICATE)
    part = page[top:bottom, left:right]
    if rng.random() < 0.5:
        dx, dy = int(rng.integers(-4, 5)), int(rng.integers(1, 6))
        fallen = cv2.blur(cv2.warpAffine(cover, np.float32([[1, 0, dx], [0, 1, dy]]), area), (5, 5))
        dark = cv2.convertScaleAbs(fallen, alpha=-rng.uniform(0.2, 0.5), beta=0)
        multiply(part, (255 - dark)[..., None])
    mix = cv2.merge([cover] * 3)
    part[:] = cv2.add(cv2.multiply(board, mix, scale=1 / 255), cv2.multiply(part, 255 - mix, scale=1 / 255))


def _rounded(canvas: np.ndarray, inset: int, radius: int, color, thickness: int) -> None:
    """A rectangle with round corners."""
    right, bottom = canvas.shape[1] - 1 - inset, canvas.shape[0] - 1 - inset
    if radius <= inset or thickness < 0 and radius == 0:
        cv2.rectangle(canvas, (inset, inset), (right, bottom), color, thickness)
        return
    r = min(radius, (right - inset) // 2, (bottom - inset) // 2)
    centers = (
        (right - r, bottom - r, 0),
        (inset + r, bottom - r, 90),
        (inset + r, inset + r, 180),
        (right - r, inset + r, 270),
    )
    arcs = [cv2.ellipse2Poly((x, y), (r, r), 0, start, start + 90, 10) for x, y, start in centers]
    outline = np.concatenate(arcs)
    if thickness < 0:
        cv2.fillConvexPoly(canvas, outline, color, cv2.LINE_AA)
    else:
        cv2.polylines(canvas, [outline], True, color, thickness, cv2.LINE_AA)


def sample_light(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Light and shade over a whole page, (h, w, 3) uint8 at a quarter of its size; 255 leaves a pixel as it is."""
    height, width = max(2, size[0] // 4), max(2, size[1] // 4)
    lamps = rng.uniform(1 - 0.5 * rng.random(), 1.0, (3, 3, 1)) * (1 - 0.1 * rng.random(3) * rng.random())
    light = cv2.resize((lamps * 255).astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.25:  # the shadow of something beside the camera
        angle, place = rng.uniform(0, 2 * math.pi), rng.random(2) * (width, height)
        along = np.array([math.cos(angle), math.sin(angle)]) * 4 * max(height, width)
        across = np.array([-along[1], along[0]])
        half = np.array([place - along, place + along, place + along + across, place - along + across])
        soft = np.full((height, width), 255, np.uint8)
        cv2.fillConvexPoly(soft, _fixed(half), int(rng.uniform(110, 210)), cv2.LINE_AA, _FIXED)
        blur = int(rng.integers(0, 8)) * 2 + 1
        light = cv2.multiply(light, cv2.merge([cv2.blur(soft, (blur, blur))] * 3), scale=1 / 255)
    if rng.random() < 0.4:
        x = np.linspace(-1, 1, width, dtype=np.float32) ** 2
        y = np.linspace(-1, 1, height, dtype=np.float32) ** 2
        fall = 1 - rng.uniform(0.1, 0.35) * np.add.outer(y, x) / 2
        light = (light * fall[..., None]).astype(np.uint8)
    return light


def multiply(picture: np.ndarray, light: np.ndarray) -> None:
    """Multiply a picture (height, width, 3) with light of any size, (h, w, 1 or 3) with 255 as one, in place."""
    height, width = picture.shape[:2]
    if light.shape[:2] != (height, width):
        light = cv2.resize(light, (width, height), interpolation=cv2.INTER_LINEAR)
    if light.ndim == 2 or light.shape[2] == 1:
        light = cv2.merge([light.reshape(height, width)] * 3)
    picture[:] = cv2.multiply(picture, light, scale=1 / 255)


def _fixed(points) -> np.ndarray:
    """Points of OpenCV's drawing functions: fixed-point, counted from pixel centres."""
    return np.round((np.asarray(points) - 0.5) * (1 << _FIXED)).astype(np.int32)
