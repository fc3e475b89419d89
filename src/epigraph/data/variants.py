"""Changes to images that a reader should not mind: other polarity, other size, a larger page, paper under a camera.

`scripts/evaluate.py --variant NAME` measures on images so changed. A change is a function of name and seed alone.
"""

from __future__ import annotations

import io
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageFilter, ImageOps

Variant = Literal["inverted", "doubled", "halved", "page", "photo", "lined", "squared"]
SYMBOL_HEIGHT = 28  # pixels of the images that are changed; paper and rules are in proportion to it
MAX_SIDE = 3000  # of a photograph, in pixels


def vary(image: Image.Image, variant: Variant, seed: int = 0) -> Image.Image:
    """One image, changed.

    Args:
        image: of a formula, on a plain ground, dark or light.
        variant: "inverted"; "doubled" and "halved" in size; "page", set at a random place on a blank page with
            3 times the sides; "photo", written in dark ink on paper, under uneven light, often with a shadow or the
            edge of a dark table, seen a little askew by a noisy camera, kept as JPEG; "lined" and "squared", the
            same on ruled paper.
        seed: of all that is random.

    Returns:
        A grey image, of photographs an RGB one.

    Raises:
        ValueError: there is no such variant.
    """
    if variant not in get_args(Variant):
        raise ValueError(f"variant must be one of {', '.join(get_args(Variant))}, not {variant!r}.")
    rng = np.random.default_rng([seed, get_args(Variant).index(variant)])
    image = image.convert("L")
    if variant == "inverted":
        return ImageOps.invert(image)
    if variant in ("doubled", "halved"):
        factor = 2 if variant == "doubled" else 0.5
        return image.resize([max(1, round(side * factor)) for side in image.size], Image.Resampling.BICUBIC)
    if variant == "page":
        page = Image.new("L", (3 * image.width, 3 * image.height), _ground(image))
        page.paste(image, (int(rng.integers(2 * image.width + 1)), int(rng.integers(2 * image.height + 1))))
        return page
    return _photograph(image, variant, rng)


def _ground(image: Image.Image) -> int:
    """The grey of the page, 0..255: the median of the border."""
    grey = np.asarray(image)
    return int(np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])))


def _photograph(image: Image.Image, paper: str, rng: np.random.Generator) -> Image.Image:
    """(height, width) grey to RGB: ink and rules on a sheet, then light, camera and file."""
    if _ground(image) > 127:
        image = ImageOps.invert(image)
    factor = min(rng.uniform(1.5, 3.0), MAX_SIDE / 2 / max(image.size))
    symbol = SYMBOL_HEIGHT * factor
    left, top, right, bottom = (rng.uniform(0.7, 3.0, 4) * symbol).round().astype(int).tolist()
    ink = image.resize([max(1, round(side * factor)) for side in image.size], Image.Resampling.BICUBIC)
    sheet = Image.new("L", (ink.width + left + right, ink.height + top + bottom))
    sheet.paste(ink, (left, top))
    # A pen presses harder here than there.
    coverage = np.asarray(sheet, np.float32) / 255 * (0.9 + 0.1 * _clouds(sheet.size, 3 * symbol, rng))
    rules = _rules(sheet.size, paper, symbol, rng)

    colour = np.array([244, 241, 232], np.float32) + rng.uniform(-8, 8, 3)
    pen = np.array([(30, 30, 34), (28, 42, 110), (70, 70, 75)][rng.integers(3)], np.float32)
    rule = np.array([(160, 185, 215), (185, 185, 190)][rng.integers(2)], np.float32)
    colour = np.broadcast_to(colour, (*coverage.shape, 3)) * (1 + 0.012 * _clouds(sheet.size, 3, rng))[..., None]
    colour = colour + rules[..., None] * (rule - colour)
    colour = colour + coverage[..., None] * (pen - colour)
    colour = colour * _light(sheet.size, symbol, rng)[..., None]
    photograph = _askew(Image.fromarray(colour.clip(0, 255).astype(np.uint8)), symbol, rng)

    photograph = photograph.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.2)))
    noise = rng.standard_normal((photograph.height, photograph.width, 3)) * rng.uniform(2, 7)
    noisy = (np.asarray(photograph) + noise).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=int(rng.integers(50, 90)))
    return Image.open(file).convert("RGB")


def _clouds(size: tuple[int, int], grain: float, rng: np.random.Generator) -> np.ndarray:
    """(height, width) of smooth noise in about -2..2, its lumps `grain` pixels wide."""
    coarse = [max(2, round(side / grain) + 1) for side in size]
    noise = rng.standard_normal(coarse[::-1]).astype(np.float32)
    return np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC))


def _rules(size: tuple[int, int], paper: str, symbol: float, rng: np.random.Generator) -> np.ndarray:
    """(height, width) in 0..1, how much of each pixel a rule covers."""
    rules = np.zeros(size[::-1], np.float32)
    spacing = symbol * (rng.uniform(1.4, 2.2) if paper == "lined" else rng.uniform(0.8, 1.3))
    width = symbol * rng.uniform(0.03, 0.07)
    for axis, wanted in ((0, paper in ("lined", "squared")), (1, paper == "squared")):
        if wanted:
            place = (np.arange(rules.shape[axis]) + rng.uniform(0, spacing)) % spacing - spacing / 2
            line = (width / 2 - np.abs(place) + 0.5).clip(0, min(1, width)) * rng.uniform(0.6, 1.0)
            rules = np.maximum(rules, line[:, None] if axis == 0 else line[None])
    return rules


def _light(size: tuple[int, int], symbol: float, rng: np.random.Generator) -> np.ndarray:
    """(height, width), what of the light arrives: falling off to one side and the corners, often with a shadow."""
    x, y = np.meshgrid(*(np.linspace(-1, 1, side, dtype=np.float32) for side in size))
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 - rng.uniform(0.05, 0.25) * (1 + np.cos(angle) * x + np.sin(angle) * y) / 2
    light *= 1 - rng.uniform(0, 0.2) * (x**2 + y**2) / 2
    if rng.random() < 0.6:
        angle = rng.uniform(0, 2 * np.pi)
        distance = (np.cos(angle) * x * size[0] + np.sin(angle) * y * size[1]) / 2 / symbol  # from the middle
        edge = rng.uniform(-0.3, 0.5) * max(size) / 2 / symbol
        depth, softness = rng.uniform(0.2, 0.45), rng.uniform(0.1, 1.0)  # softness in symbol heights
        light *= 1 - depth / (1 + np.exp(-np.clip((distance - edge) / softness * 4, -30, 30)))
    return light


def _askew(sheet: Image.Image, symbol: float, rng: np.random.Generator) -> Image.Image:
    """Turned by at most 2 degrees, in slight perspective; in one of three, a dark table beside the sheet."""
    table = tuple(int(value) for value in rng.uniform([30, 20, 10], [90, 70, 60]))
    if rng.random() < 1 / 3:
        width = round(rng.uniform(0.5, 2.0) * symbol)
        sides = [0, 0, 0, 0]
        sides[rng.integers(4)] = width
        sheet = ImageOps.expand(sheet, tuple(sides), fill=table)
    width, height = sheet.size
    angle = np.deg2rad(rng.uniform(-2, 2))
    corners = np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]]) * [width / 2, height / 2]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = corners @ turn.T + rng.uniform(-0.1, 0.1, (4, 2)) * symbol + [width / 2, height / 2]
    # What the turned frame sees beyond the sheet is more of the same sheet: mirrored, then cut away.
    border = int(np.ceil(max(-moved.min(), *(moved - [width, height]).max(0), 1)))
    grown = np.pad(np.asarray(sheet), ((border, border), (border, border), (0, 0)), mode="reflect")
    quad = (moved + border).ravel().tolist()
    return Image.fromarray(grown).transform((width, height), Image.Transform.QUAD, quad, Image.Resampling.BICUBIC)


__all__ = ["Variant", "vary"]
