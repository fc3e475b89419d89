"""Styles drawn at random: which effects, how strong, and colours that can be told from their background.

The defaults follow word crops of photographs: one sans-serif face, one colour, little perspective, blur and JPEG
nearly always, everything else now and then.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from .backgrounds import KINDS, Background, BackgroundPool, common_hue, kind_weights, sample_background
from .drawing import painted
from .fonts import Face, SynthesisError
from .layout import face_metrics, glyph_size
from .shaping import shape
from .style import (
    Baseline,
    Border,
    Color,
    Degradation,
    Elastic,
    Extrusion,
    Fill,
    Font,
    Shadow,
    Style,
    check_size,
)

Range = tuple[float, float]
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class StyleOptions:
    """How often each effect occurs (a share, 0..1) and how strong it is (least, most). The defaults are what ships.

    Units are those of `Style`, where nothing else is said.

    Attributes:
        curve: share of words on an arc or a wave; `wave`: of these, on a wave.
        vertical: share of columns of upright letters, on canvases over 1.5 times as high as wide; words too long to
            lie there level always stand.
        perspective, elastic: share of bent words.
        spaced, stroked: share with letters set apart or emboldened.
        filled: share of words whose ink fills the canvas, `width` of the free width; `height`: part of the free
            height that ink takes.
        gradient, texture: share of letters that are filled with these.
        border, shadow, extrusion, blend, opacity: shares of effects.
        blur, motion, resample, noise, jpeg: shares of degradations.
        contrast: grey levels between letters and background.
        arc: rise as a share of the canvas's height; `wave_amplitude` the same.
        corner_y, corner_x: how far a corner of the canvas moves inwards at most, as a share of height and of width.
        blur_sigma, motion_length: pixels for each 32 pixels of canvas height.
        backgrounds: relative frequency of the painted kinds of background.
        pool_share: share of backgrounds from the pool of images, where one is given.
    """

    curve: float = 0.32
    wave: float = 0.25
    vertical: float = 0.6
    perspective: float = 0.4
    elastic: float = 0.12
    spaced: float = 0.25
    stroked: float = 0.1
    filled: float = 0.75
    gradient: float = 0.15
    texture: float = 0.15
    border: float = 0.12
    shadow: float = 0.2
    extrusion: float = 0.08
    blend: float = 0.12
    opacity: float = 0.12
    blur: float = 0.5
    motion: float = 0.08
    resample: float = 0.3
    noise: float = 0.4
    jpeg: float = 0.75
    height: Range = (0.7, 1.0)
    width: Range = (0.85, 1.0)
    spacing: Range = (0.02, 0.2)
    stroke: Range = (0.012, 0.03)
    contrast: Range = (45.0, 210.0)
    arc: Range = (0.08, 0.36)
    wave_amplitude: Range = (0.03, 0.1)
    elastic_amplitude: Range = (0.01, 0.03)
    corner_y: Range = (0.0, 0.34)
    corner_x: Range = (0.0, 0.06)
    border_width: Range = (0.05, 0.13)
    shadow_offset: Range = (0.04, 0.13)
    extrusion_depth: Range = (0.06, 0.2)
    blur_sigma: Range = (0.3, 1.4)
    motion_length: Range = (1.5, 4.0)
    resample_scale: Range = (0.3, 0.85)
    noise_sigma: Range = (1.0, 9.0)
    jpeg_quality: tuple[int, int] = (30, 95)
    backgrounds: Mapping[str, float] = field(default_factory=lambda: dict(KINDS))
    pool_share: float = 0.5

    def __post_init__(self):
        kind_weights(tuple(self.backgrounds.items()))

    @classmethod
    def plain(cls) -> "StyleOptions":
        """Clean straight words on one colour that fill the canvas, without any effect and degradation."""
        shares = (
            "curve vertical perspective elastic spaced stroked gradient texture border shadow extrusion blend opacity "
            "blur motion resample noise jpeg"
        )
        off = dict.fromkeys(shares.split(), 0.0)
        ink = {"filled": 1.0, "height": (0.7, 0.9), "width": (1.0, 1.0), "contrast": (110.0, 230.0)}
        return cls(**off, **ink, backgrounds={"plain": 1.0})


DEFAULTS = StyleOptions()


def sample_style(
    rng: np.random.Generator,
    faces: Sequence[Face],
    size: tuple[int, int],
    options: StyleOptions = DEFAULTS,
    backgrounds: BackgroundPool | Background | None = None,
    texts: Sequence[str] = (),
) -> Style:
    """Draw a style.

    Args:
        rng: the only source of chance.
        faces: one of them is taken.
        size: height and width of the canvas in pixels.
        backgrounds: images of your own behind the words, or the one background to use (which is calmed down where no
            colour would stand out from it).
        texts: words that the style is meant for: font size and baseline are chosen to suit the ink of all of them.
            Without them: as for a word of six letters.

    Raises:
        SynthesisError: the canvas is too small or too large, there is no face, or it lacks a character of `texts`.
    """
    size = check_size(size)
    if not faces:
        raise SynthesisError("there is no font to choose from; give at least one face.")
    face = faces[int(rng.random() * len(faces))]
    background = backgrounds
    if not isinstance(backgrounds, Background):
        background = sample_background(rng, backgrounds, options.pool_share, options.backgrounds)
    values = _geometry(rng, face, size, options, texts)
    decor = values["baseline"].kind != "vertical" or size[1] >= 48
    values |= _look(rng, background, size, options, values["font_size"] * size[0], decor)
    return Style(
        size=size,
        font=Font(face.path, face.index, face.digest, face.name),
        degradation=sample_degradation(rng, options, size[0] if size[0] <= size[1] else size[1]),
        seed=int(rng.integers(2**31)),
        **values,
    )


def sample_degradation(rng: np.random.Generator, options: StyleOptions, height: float) -> Degradation:
    """Draw what a camera does to a picture whose words are about `height` pixels high."""
    unit = height / 32
    blur = _between(rng, options.blur_sigma) * unit if rng.random() < options.blur else 0.0
    motion = _between(rng, options.motion_length) * unit if rng.random() < options.motion else 0.0
    low, high = options.jpeg_quality
    return Degradation(
        blur=round(blur, 3),
        motion=round(motion, 3),
        motion_angle=round(180.0 * rng.random(), 1),
        resample=round(_between(rng, options.resample_scale), 3) if rng.random() < options.resample else 0.0,
        noise=round(_between(rng, options.noise_sigma), 2) if rng.random() < options.noise else 0.0,
        jpeg=low + int(rng.random() * (high - low + 1)) if rng.random() < options.jpeg else 0,
    )


# ---- geometry ----


def _between(rng: np.random.Generator, limits: Range) -> float:
    return limits[0] + (limits[1] - limits[0]) * rng.random()


def _geometry(rng, face: Face, size: tuple[int, int], options: StyleOptions, texts: Sequence[str]) -> dict:
    height, width = size
    align = 0.5 + 0.5 * (rng.random() - rng.random())
    values = {"margin": round(_between(rng, (0.01, 0.06)), 3), "align": round(align, 3)}
    if rng.random() < options.elastic:
        phases = tuple(round(math.tau * rng.random(), 3) for _ in range(4))
        values["elastic"] = Elastic(
            round(_between(rng, options.elastic_amplitude), 4), round(_between(rng, (0.8, 2.0)), 3), phases
        )
    if rng.random() < options.spaced:
        values["spacing"] = round(_between(rng, options.spacing), 3)
    elif face.italic:
        # Slanted letters reach over their neighbours: boxes kept apart would tear the word.
        values["spacing"] = -0.001
    if rng.random() < options.stroked:
        values["stroke"] = round(_between(rng, options.stroke), 3)
    tall = height > 1.5 * width
    vertical = tall and _stands(face, texts, width, rng.random() < options.vertical)
    values["baseline"] = line = _baseline(rng, options, vertical, min(1.0, 0.5 * width / height))
    if rng.random() < options.perspective:
        values["corners"] = _corners(rng, options, tall, line.kind in ("arc", "wave"))
    top, bottom, length, shortest = _extent(face, texts, vertical, values.get("spacing", 0.0), glyph_size(min(size)))
    elastic = values["elastic"].amplitude if "elastic" in values else 0.0
    free = height * (1 - 2 * values["margin"] - 2 * elastic)
    along = width - height * 2 * (values["margin"] + elastic)
    share = _between(rng, options.height)
    cap = face_metrics(face.path, face.index).cap
    if vertical:
        em = min(share * max(along, 1.0) / (top + bottom), free / length)
        return values | {"font_size": _font_size(em * cap, height), "baseline_y": 0.5}
    swing = abs(line.amplitude) * height * (2 if line.kind == "wave" else 1)
    squeeze = _between(rng, (0.62, 0.9))
    em = min(share * max(free - swing, 0.4 * free) / (top + bottom), max(along, 1.0) / (length * squeeze))
    natural = length * em / max(along, 1.0)
    if rng.random() < options.filled:
        free_share = max(along, 1.0) / (shortest * em)
        values["max_stretch"] = round(min(max(_between(rng, options.width) * free_share, 1.0), 2.6), 3)
    # Short words use only the middle of an arc: without this they would stand too high.
    covered = min(natural * max(values.get("max_stretch", 1.0), 1.0), 1.0)
    sag = 0.5 * line.amplitude * (1 - covered**2) if line.kind == "arc" else 0.0
    slack = max(free - swing - (top + bottom) * em, 0.0)
    middle = 0.5 * height + 0.5 * (top - bottom) * em + (rng.random() - 0.5) * slack
    return values | {"font_size": _font_size(em * cap, height), "baseline_y": round(middle / height + sag, 4)}


def _font_size(cap: float, height: int) -> float:
    return min(max(round(cap / height, 4), 0.001), 1.0)


def _stands(face: Face, texts: Sequence[str], width: int, wished: bool) -> bool:
    """Whether words of a high canvas stand in a column: as wished or where too long to lie; joined letters never."""
    if any(shape(face.path, face.index, text, glyph_size(width)).sliced for text in texts):
        return False
    return wished or max(map(len, texts), default=1) > max(width / 12, 1)


def _corners(rng: np.random.Generator, options: StyleOptions, tall: bool, curved: bool) -> tuple:
    """The corners of the canvas, moved inwards, but on every side one of the two stays: the word loses no more room.

    On high canvases the shares of x and y change places. Curved words, which need the height, are moved by half.
    """
    ranges = options.corner_y, options.corner_x
    (low, high), across = ranges[::-1] if tall else ranges
    ys = [_between(rng, (low, high * (0.5 if curved else 1.0))) for _ in range(4)]
    if rng.random() < 0.5:  # the same slope above and below: a word that leans rather than one that recedes
        ys[2], ys[3] = ys[0], ys[1]
    xs = [_between(rng, across) for _ in range(4)]
    top, right, bottom, left = min(ys[:2]), min(xs[1:3]), min(ys[2:]), min(xs[0], xs[3])
    corners = (
        (xs[0] - left, ys[0] - top),
        (1 - xs[1] + right, ys[1] - top),
        (1 - xs[2] + right, 1 - ys[2] + bottom),
        (xs[3] - left, 1 - ys[3] + bottom),
    )
    return tuple((round(x, 4), round(y, 4)) for x, y in corners)


def _baseline(rng: np.random.Generator, options: StyleOptions, vertical: bool, gentle: float) -> Baseline:
    """A line whose swing, a share of the height, is made smaller by `gentle` where the canvas is not wide."""
    if vertical:
        return Baseline("vertical")
    if rng.random() >= options.curve:
        return Baseline()
    if rng.random() < options.wave:
        amplitude, length = _between(rng, options.wave_amplitude), _between(rng, (0.45, 1.2))
        return Baseline("wave", round(amplitude * gentle, 4), round(length, 3), round(math.tau * rng.random(), 3))
    rise = _between(rng, options.arc) * (gentle if rng.random() < 0.7 else -gentle)
    return Baseline("arc", round(rise, 4))


def _extent(
    face: Face, texts: Sequence[str], vertical: bool, spacing: float, probe: int
) -> tuple[float, float, float, float]:
    """Ink above and below the baseline (of columns: beside the middle), greatest and least length; in ems."""
    if not texts:
        metrics = face_metrics(face.path, face.index)
        return (0.5, 0.5, 6.0, 6.0) if vertical else (metrics.top, metrics.bottom, 3.3, 3.3)
    tops, bottoms, lengths = [], [], []
    for text in texts:
        line = shape(face.path, face.index, text, probe, 0.0, vertical)
        cells = line.cells
        if vertical:
            tops.append(0.5 * max(cell.bitmap.shape[1] for cell in cells))
            bottoms.append(tops[-1])
        else:
            tops.append(-min(cell.top for cell in cells))
            bottoms.append(max(cell.top + cell.bitmap.shape[0] for cell in cells))
        lengths.append(line.width + spacing * probe * (len(cells) - 1))
    # A dash alone would be blown up to the whole canvas.
    top = max(max(tops) / probe, 0.4)
    bottom = max(max(bottoms) / probe, 0.5 * top if vertical else 0.0)
    return top, bottom, max(max(lengths) / probe, 0.3), max(min(lengths) / probe, 0.3)


# ---- colours and effects ----


def _look(rng, background: Background, size, options: StyleOptions, cap: float, decor: bool) -> dict:
    """Background, fill and effects, such that letters differ from what is behind them by construction."""
    background, low, high = _readable(background, size, options.contrast[0])
    least, most = options.contrast
    bright_room, dark_room = 255.0 - high, low
    room = max(bright_room, dark_room)
    bright = rng.random() * (max(bright_room - least, 0) + max(dark_room - least, 0)) < max(bright_room - least, 0)
    if room < least:
        bright = bright_room > dark_room
    room = bright_room if bright else dark_room
    gap = min(least + (most - least) * rng.random(), room)
    values = {"background": background}
    kind = rng.random()
    outlined = decor and (room < least or rng.random() < options.border)
    extruded = decor and rng.random() < options.extrusion
    if rng.random() < options.opacity and gap > least and not (outlined or extruded):
        values["opacity"] = round(max(_between(rng, (0.55, 1.0)), least / gap), 3)
    level = high + gap if bright else low - gap
    if kind < options.texture + options.gradient:
        second = level + ((255.0 - level) if bright else -level) * rng.random()
        colors = _tint(rng, level), _tint(rng, second)
        if rng.random() < 0.5:
            colors = colors[::-1]
        textured = kind < options.texture
        values["fill"] = Fill(
            "texture" if textured else "gradient",
            colors,
            0.0 if textured else round(360 * rng.random(), 1),
            sample_background(rng, None, kinds=_FILLS, scale=(0.1, 0.6)) if textured else None,
        )
    elif rng.random() < options.blend and not (outlined or extruded) and room >= least:
        values |= _blended(rng, gap, low, high, bright)
    else:
        color = _tint(rng, level)
        values["fill"] = Fill("color", (color, color))
    if outlined:
        far = (
            level - max(80.0, level * rng.random()) if level > 127 else level + max(80.0, (255 - level) * rng.random())
        )
        values["border"] = Border(round(max(_between(rng, options.border_width), 0.8 / cap), 3), _tint(rng, far))
    if extruded:
        angle, depth = math.tau * rng.random(), _between(rng, options.extrusion_depth)
        side = level * _between(rng, (0.2, 0.55)) if level > 90 else level + _between(rng, (60, 120))
        dx, dy = round(depth * math.cos(angle), 3), round(depth * math.sin(angle), 3)
        values["extrusion"] = Extrusion(dx, dy, _tint(rng, side))
    if decor and rng.random() < options.shadow:
        values["shadow"] = _shadow(rng, options, bright)
    return values


_FILLS = dict.fromkeys(("plaster", "concrete", "stone", "wood", "metal", "fabric", "blurred"), 1.0)


def _readable(background: Background, size, least: float) -> tuple[Background, float, float]:
    """The background, calmed down where no colour would stand out from it, with its darkest and brightest grey."""
    for _ in range(3):
        gray = cv2.cvtColor(painted(background, size), cv2.COLOR_RGB2GRAY)
        levels = np.sort(cv2.resize(gray, (16, 8), interpolation=cv2.INTER_AREA), axis=None)
        low, high = float(levels[6]), float(levels[-7])
        if max(low, 255.0 - high) >= least + 15.0 or background.kind == "file":
            break
        background = replace(background, contrast=0.4 * background.contrast, light=0.4 * background.light)
    return background, low, high


def _tint(rng: np.random.Generator, level: float) -> Color:
    """A colour of a given luminance, often a grey, else of a hue that signs have."""
    level = min(max(level, 0.0), 255.0)
    strength = 0.08 * rng.random() if rng.random() < 0.55 else rng.random() ** 0.5
    hue = 6 * common_hue(rng)
    base = [255 * (1 - strength * (1 - min(max(abs((hue + shift) % 6 - 3) - 1, 0), 1))) for shift in (0, 4, 2)]
    luma = sum(weight * part for weight, part in zip(_LUMA, base))
    if level <= luma:
        color = [part * level / luma for part in base]
    else:
        share = (level - luma) / (255 - luma)
        color = [part + (255 - part) * share for part in base]
    return tuple(round(part) for part in color)


def _blended(rng: np.random.Generator, gap: float, low: float, high: float, bright: bool) -> dict:
    """A fill that, blended in its mode, comes out `gap` grey levels away from the background."""
    which = int(rng.random() * 3)
    if bright:
        share = gap / max(255 - high, 1)
        mode, level = [("screen", 255 * share), ("lighten", high + gap), ("hard light", 127.5 * (1 + share))][which]
    else:
        share = 1 - gap / max(low, 1)
        mode, level = [("multiply", 255 * share), ("darken", low - gap), ("hard light", 127.5 * share)][which]
    color = (round(level),) * 3 if mode == "hard light" else _tint(rng, level)
    return {"fill": Fill("color", (color, color)), "blend": mode}


def _shadow(rng: np.random.Generator, options: StyleOptions, bright: bool) -> Shadow:
    distance, angle = _between(rng, options.shadow_offset), _between(rng, (0.1, 0.9)) * math.pi
    return Shadow(
        round(distance * math.cos(angle), 3),
        round(distance * math.sin(angle), 3),
        round(0.08 * rng.random(), 3),
        _tint(rng, 40 * rng.random()),
        round(_between(rng, (0.3, 0.85) if bright else (0.15, 0.35)), 3),
    )
