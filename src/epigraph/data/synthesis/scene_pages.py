"""What a scene shows besides its words: walls, sky, ground, windows, plates for signs, light and shade.

Everything is painted before the first word, so that the erased scene is the page itself.
"""

import colorsys
import math
from functools import lru_cache

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
_TILE = 768  # pixels along the side of the tiles of clutter


def compose_page(
    rng: np.random.Generator,
    size: tuple[int, int],
    pool: BackgroundPool | None = None,
    share: float = 0.5,
    built: float = 0.8,
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
    tilt = rng.normal(0, 0.06)
    if rng.random() < 0.3:  # a crowded place: shelves, a row of shops, the inside of one
        page = clutter(rng, size)
        for _ in range(int(rng.integers(1, 4))):
            _panel(page, rng, tilt)
        return page
    page = paint(_wall(rng, WALLS, (0.02, 0.12)), size).copy()
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
    for _ in range(int(rng.integers(0, 3))):
        _line(page, rng)
    return page


def _openings(page: np.ndarray, rng: np.random.Generator, tilt: float) -> None:
    """Windows, doors or shelves in a row, and an awning or a fascia above them."""
    height, width = page.shape[:2]
    if rng.random() < 0.15:
        return
    count = int(rng.integers(1, 5))
    wide = width * rng.uniform(0.12, 1.0 / count)
    tall = height * rng.uniform(0.15, 0.5)
    left, top = width * rng.uniform(-0.1, 0.3), height * rng.uniform(0.15, 0.7)
    step = wide * rng.uniform(1.05, 1.5)
    frame = _muted(rng)
    inside = clutter(rng, (max(8, round(tall * 1.4)), max(8, round(min(count * step, 1.5 * width)))))
    thick = max(1, int(wide * rng.uniform(0.01, 0.05)))
    for k in range(count):
        x = left + k * step
        y = top - 2 * tilt * (x - width / 2)
        slope = -2 * tilt * wide
        quad = [(x, y), (x + wide, y + slope), (x + wide, y + slope + tall), (x, y + tall)]
        _fill(page, quad, inside[:, round(k * step) % max(1, inside.shape[1] // 2) :])
        cv2.polylines(page, [_fixed(quad)], True, frame, thick, cv2.LINE_AA, _FIXED)
        if rng.random() < 0.4:
            middle = [((a[0] + b[0]) / 2, (a[1] + b[1]) / 2) for a, b in ((quad[0], quad[1]), (quad[3], quad[2]))]
            cv2.polylines(page, [_fixed(middle)], False, frame, thick, cv2.LINE_AA, _FIXED)
    if rng.random() < 0.6:
        deep = height * rng.uniform(0.06, 0.16)
        x0, x1 = left - 0.1 * wide, left + (count - 1) * step + 1.1 * wide
        y0, y1 = (top - 2 * tilt * (x - width / 2) for x in (x0, x1))
        spread = wide * rng.uniform(0, 0.15)
        kinds = {"plain": 0.5, "stripes": 0.3, "wood": 0.1, "metal": 0.1}
        quad = [(x0, y0 - deep), (x1, y1 - deep), (x1 + spread, y1), (x0 - spread, y0)]
        _surface(page, rng, kinds, quad, (0.1, 0.4))
        _shade(page, [(x0, y0), (x1, y1), (x1, y1 + deep), (x0, y0 + deep)], 0.6)


def _panel(page: np.ndarray, rng: np.random.Generator, tilt: float) -> None:
    """A calm part of a crowded place: a pillar, a wall, a counter, a ceiling."""
    height, width = page.shape[:2]
    if rng.random() < 0.5:
        x, wide = width * rng.uniform(-0.1, 0.9), width * rng.uniform(0.1, 0.5)
        lean = rng.normal(0, 0.03) * height
        quad = [(x + lean, 0), (x + wide + lean, 0), (x + wide, height), (x, height)]
    else:
        y, tall = height * rng.uniform(-0.1, 0.9), height * rng.uniform(0.1, 0.4)
        rise = 2 * tilt * width
        quad = [(0, y + rise), (width, y - rise), (width, y + tall - rise * rng.uniform(0, 1)), (0, y + tall)]
    _surface(page, rng, WALLS, quad, (0.02, 0.15))


def clutter(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A part of a crowded place, in and out of focus, light or dark: (height, width, 3) uint8 RGB."""
    height, width = size
    tile = _clutter_tile(("shelves", "interior", "street")[int(rng.integers(3))])
    zoom = min(math.exp(rng.uniform(math.log(0.5), math.log(2.0))), _TILE / max(size))
    tall, wide = max(2, int(height * zoom)), max(2, int(width * zoom))
    top, left = rng.integers(0, (_TILE - tall + 1, _TILE - wide + 1)).tolist()
    part = tile[top : top + tall, left : left + wide]
    if rng.random() < 0.5:
        part = cv2.flip(part, 1)
    part = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA if zoom > 1 else cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        blur = 2 * int(rng.integers(1, 5)) + 1
        part = cv2.blur(part, (blur, blur))
    order = rng.permutation(3).tolist() if rng.random() < 0.5 else [0, 1, 2]  # other goods, other paint
    gain, shift = rng.uniform(0.5, 1.1), rng.uniform(-20, 40)
    return cv2.convertScaleAbs(cv2.merge([part[..., k] for k in order]), alpha=gain, beta=max(shift, 0.0))


@lru_cache(maxsize=3)
def _clutter_tile(name: str) -> np.ndarray:
    """A large picture of many small things, drawn once per process: (768, 768, 3) uint8."""
    rng = np.random.default_rng(len(name))
    tile = np.zeros((_TILE, _TILE, 3), np.uint8)
    if name == "shelves":
        _draw_shelves(tile, rng)
    elif name == "street":
        _draw_street(tile, rng)
    else:
        _draw_interior(tile, rng)
    # Light from somewhere, dirt, and the softness of a lens take the look of a drawing away.
    light = cv2.resize(
        rng.integers(120, 256, (9, 9, 1), dtype=np.uint8), (_TILE, _TILE), interpolation=cv2.INTER_CUBIC
    )
    fine = cv2.resize(rng.integers(205, 256, (96, 96), dtype=np.uint8), (_TILE, _TILE), interpolation=cv2.INTER_CUBIC)
    multiply(tile, cv2.multiply(light, fine, scale=1 / 240)[..., None])
    return cv2.GaussianBlur(tile, (0, 0), 0.8)


def _draw_shelves(tile: np.ndarray, rng: np.random.Generator) -> None:
    """Rows of packages of a few kinds each, on boards with a shadow below."""
    y = 0
    while y < _TILE:
        tall = int(rng.uniform(35, 90))
        tile[y : y + tall] = rng.integers(15, 70)
        x = 0
        while x < _TILE:
            wide, high, color = int(rng.uniform(10, 45)), int(tall * rng.uniform(0.5, 0.9)), _vivid(rng)
            label = tuple(255 - part for part in color) if rng.random() < 0.3 else _muted(rng)
            kind = rng.random()
            for _ in range(int(rng.integers(1, 7))):
                low, high_edge = (x, y + tall - high), (x + wide - 2, y + tall - 4)
                cv2.rectangle(tile, low, high_edge, color, -1)
                cv2.rectangle(tile, low, (x + max(1, wide // 5), y + tall - 4), _scaled(color, 0.6), -1)
                middle = (x + wide // 2, y + tall - high // 2)
                if kind < 0.5:
                    cv2.rectangle(
                        tile, (x + 2, middle[1] - high // 6), (x + wide - 4, middle[1] + high // 6), label, -1
                    )
                elif kind < 0.8:
                    cv2.circle(tile, middle, max(2, wide // 3), label, -1, cv2.LINE_AA)
                x += wide
            x += int(rng.exponential(6))
        cv2.rectangle(tile, (0, y + tall - 4), (_TILE, y + tall + 3), _muted(rng), -1)
        tile[y + tall + 3 : y + tall + 12] = 20
        y += tall + 4


def _draw_interior(tile: np.ndarray, rng: np.random.Generator) -> None:
    """A dim hall: large surfaces, smaller and smaller things on them, lamps, figures."""
    tile[:] = cv2.resize(
        rng.integers(10, 120, (5, 5, 3), dtype=np.uint8), (_TILE, _TILE), interpolation=cv2.INTER_CUBIC
    )
    centers = rng.random((9, 2)) * _TILE
    for size in np.geomspace(300, 7, 700):
        # Small things crowd around a few places, as goods on counters do.
        near = rng.normal(centers[int(rng.integers(len(centers)))], 60 if size < 60 else 400)
        x, y = (near % (_TILE + 80) - 80).astype(int).tolist()
        wide, tall = (size * rng.uniform(0.2, 1.0, 2)).astype(int).tolist()
        color = _scaled(_vivid(rng) if rng.random() < 0.12 else _muted(rng), rng.uniform(0.2, 1.0))
        slope = int(wide * rng.normal(0, 0.12))
        quad = [(x, y), (x + wide, y + slope), (x + wide, y + slope + tall), (x, y + tall)]
        cv2.fillConvexPoly(tile, np.array(quad), color, cv2.LINE_AA)
        if rng.random() < 0.2:
            cv2.polylines(tile, [np.array(quad)], True, _muted(rng), 1, cv2.LINE_AA)
    for x, y in rng.integers(0, _TILE, (60, 2)).tolist():
        if rng.random() < 0.5:  # a lamp
            cv2.ellipse(
                tile, (x, y), (int(rng.integers(3, 14)), int(rng.integers(2, 5))), 0, 0, 360, (255, 250, 235), -1, 16
            )
        else:  # somebody
            tall, color = int(rng.integers(30, 110)), _scaled(_muted(rng), rng.uniform(0.2, 0.9))
            cv2.ellipse(tile, (x, y), (tall // 7, tall // 3), 0, 0, 360, color, -1, cv2.LINE_AA)
            cv2.rectangle(tile, (x - tall // 9, y), (x + tall // 9, y + tall // 2), _scaled(color, 0.6), -1)
            cv2.circle(tile, (x, y - tall // 3 - tall // 14), tall // 12, (190, 140, 115), -1, cv2.LINE_AA)


def _draw_street(tile: np.ndarray, rng: np.random.Generator) -> None:
    """House fronts with rows of windows, and trees before them."""
    tile[:] = (190, 205, 225)
    for _ in range(26):
        x, y = int(rng.integers(-60, _TILE)), int(rng.integers(-20, _TILE))
        wide, tall, wall = int(rng.integers(80, 260)), int(rng.integers(120, 400)), _muted(rng)
        cv2.rectangle(tile, (x, y), (x + wide, y + tall), wall, -1)
        cv2.rectangle(tile, (x, y), (x + wide, y + int(rng.integers(4, 14))), _scaled(wall, 0.7), -1)
        columns, rows = int(rng.integers(2, 8)), int(rng.integers(2, 9))
        glass, trim = _scaled(_muted(rng), 0.4), _scaled(wall, 1.25)
        w, h = wide / columns, tall / rows
        for row in range(rows):
            for column in range(columns):
                a, b = (
                    (int(x + (column + 0.2) * w), int(y + (row + 0.25) * h)),
                    (int(x + (column + 0.8) * w), int(y + (row + 0.85) * h)),
                )
                cv2.rectangle(tile, a, b, _scaled(glass, rng.uniform(0.5, 2.0)), -1)
                cv2.rectangle(tile, a, b, trim, 1)
    for _ in range(14):
        x, y, size = int(rng.integers(0, _TILE)), int(rng.integers(0, _TILE)), int(rng.integers(25, 90))
        cv2.line(tile, (x, y), (x, y + 2 * size), (60, 45, 35), max(2, size // 8))
        for depth in np.linspace(0.35, 1.0, 14 * size):
            dx, dy = rng.normal(0, size / 2.2, 2).astype(int).tolist()
            color = _scaled((95, 135, 60), depth * rng.uniform(0.4, 1.1))
            cv2.circle(tile, (x + dx, y + dy), int(rng.integers(2, 6)), color, -1, cv2.LINE_AA)


def _vivid(rng: np.random.Generator) -> tuple[int, int, int]:
    """A colour of packages and posters."""
    return _rgb(rng.random(), rng.uniform(0.5, 1.0), rng.uniform(0.45, 1.0))


def _muted(rng: np.random.Generator) -> tuple[int, int, int]:
    """A colour of walls, frames and clothes: mostly grey, beige or brown."""
    hue = rng.normal(0.09, 0.05) if rng.random() < 0.7 else rng.random()
    return _rgb(hue, rng.random() ** 2 * 0.5, rng.uniform(0.12, 0.95))


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, saturation, value))


def _scaled(color: tuple[int, int, int], by: float) -> tuple[int, int, int]:
    return tuple(min(255, round(part * by)) for part in color)


def _wall(rng: np.random.Generator, kinds: dict, scale: tuple[float, float]) -> Background:
    """A surface, mostly of a colour that people paint walls with."""
    return sample_background(rng, kinds=kinds, scale=scale, color=_muted(rng) if rng.random() < 0.6 else None)


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
    points = np.array(polygon)
    low, high = np.clip(points.min(0), 0, page.shape[1::-1]), np.clip(points.max(0), 0, page.shape[1::-1])
    wide, tall = np.ceil(high - low).astype(int).tolist()
    if wide > 2 and tall > 2:
        _fill(page, polygon, paint(_wall(rng, kinds, scale), (tall + 2, wide + 2)))


def _fill(page: np.ndarray, polygon: list, picture: np.ndarray) -> None:
    """Copy a picture, its top left corner first, to the part of the page inside a polygon."""
    points = np.array(polygon)
    height, width = page.shape[:2]
    left, top = np.clip(np.floor(points.min(0)), 0, (width, height)).astype(int).tolist()
    right, bottom = np.clip(np.ceil(points.max(0)), 0, (width, height)).astype(int).tolist()
    if right - left < 2 or bottom - top < 2:
        return
    if picture.shape[0] < bottom - top or picture.shape[1] < right - left:
        picture = cv2.resize(picture, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
    inside = np.zeros((bottom - top, right - left), np.uint8)
    cv2.fillConvexPoly(inside, _fixed(points - (left, top)), 255, cv2.LINE_8, _FIXED)
    cv2.copyTo(picture[: bottom - top, : right - left], inside, page[top:bottom, left:right])


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


def sample_tone(rng: np.random.Generator) -> np.ndarray:
    """How a camera turns light into levels: exposure, contrast and colour balance, a table (256, 1, 3) for cv2.LUT."""
    levels = np.linspace(0, 1, 256)[:, None] ** math.exp(rng.normal(-0.12, 0.2))
    steep = rng.uniform(0.0, 0.6)
    levels = (1 - steep) * levels + steep * levels * levels * (3 - 2 * levels)
    gains = rng.uniform(0.95, 1.25) * (1 + rng.normal(0, 0.03, 3))
    return np.clip(255 * (levels * gains + rng.uniform(0, 0.06)), 0, 255).round().astype(np.uint8)[:, None]


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
