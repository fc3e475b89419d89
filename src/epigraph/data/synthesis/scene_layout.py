"""Where the words of a scene go: groups of lines, as signs and posters have them, on planes seen by one camera.

A group is set in a plane of its own, in pixels around its middle, and then seen through a :class:`View`: bent along an
arc if it is, turned in space, projected. Corners of glyphs go through the same mapping, so that every label is exact.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...polygons import edge_curves, resample
from .layout import Layout, face_metrics, lay_out
from .shaping import shape
from .style import Style


@dataclass(frozen=True)
class View:
    """From the plane of a group to the page.

    Attributes:
        center: where the middle of the group is seen, in pixels of the page.
        scale: pixels of the page for one of the plane, at that middle.
        turn: (3, 2) the plane's two axes in the camera's space: x to the right, y down, z away.
        focal: in pixels.
        curvature: of the arc along which lines are bent, 1 / pixels; positive with the middle up.
    """

    center: tuple[float, float]
    scale: float
    turn: np.ndarray
    focal: float
    curvature: float = 0.0

    def bend(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2) of the plane, their x measured along the arc: where they lie in the plane."""
        if abs(self.curvature) < 1e-6:
            return points
        radius = 1 / self.curvature
        angle, reach = points[..., 0] * self.curvature, radius - points[..., 1]
        return np.stack([reach * np.sin(angle), radius - reach * np.cos(angle)], axis=-1)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2) of the plane as the page shows them."""
        space = points @ (self.turn.T * self.scale)
        return space[..., :2] / (1 + space[..., 2:] / self.focal) + self.center

    def effects(self) -> dict[str, bool]:
        """Whether lines are bent, and whether the plane leans by over 5 degrees."""
        leans = np.abs(self.turn[2]).max() > math.sin(math.radians(5))
        return {"curve": abs(self.curvature) >= 1e-6, "perspective": bool(leans)}

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2) of a group's lines on the page: bent, then projected."""
        return self.project(self.bend(points))


def turned(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """The axes of a plane that is turned about the vertical, the level and the line of sight; degrees -> (3, 2)."""
    (sy, cy), (sp, cp), (sr, cr) = [(math.sin(math.radians(a)), math.cos(math.radians(a))) for a in (yaw, pitch, roll)]
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return (about_z @ about_x @ about_y)[:, :2]


@dataclass
class SetWord:
    """A word laid out on its own canvas, and where that canvas lies in the plane of its group."""

    text: str
    style: Style
    layout: Layout
    x: float = 0.0
    y: float = 0.0

    @property
    def ink(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of its polygon on the canvas."""
        low, high = self.layout.polygon.min(0), self.layout.polygon.max(0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])

    def seen(self, view: View) -> Layout:
        """The word's layout on the page."""
        move = (self.x, self.y)
        polygon = self.layout.polygon
        if view.curvature:
            low, _, high, _ = self.ink
            points = min(12, max(3, 2 + math.ceil(math.degrees(abs(view.curvature) * (high - low)) / 9)))
            edges = edge_curves(polygon)
            polygon = np.concatenate([resample(edges[0], points), resample(edges[1], points)[::-1]])
        quads = view(self.layout.quads + move)
        span = np.linalg.norm(self.layout.quads[:, 3] - self.layout.quads[:, 0], axis=1).mean()
        zoom = np.linalg.norm(quads[:, 3] - quads[:, 0], axis=1).mean() / max(span, 1e-6)
        return Layout(
            self.layout.bitmaps,
            quads,
            view(self.layout.char_quads + move).astype(np.float32),
            view(polygon + move).astype(np.float32),
            self.layout.cap * float(zoom),
        )


@dataclass
class Group:
    """Words that belong together, in their plane around (0, 0).

    Attributes:
        words: what is set.
        size: width and height of the ink of all words in the plane, before bending.
        style: what its words have in common.
        cap: the largest cap height, in pixels of the plane.
        curvature: see `View`.
        plate: whether the group stands on a plate of its own.
        border: free width around the words, in cap heights, that nothing else may take.
    """

    words: list[SetWord]
    size: tuple[float, float]
    style: Style
    cap: float
    curvature: float = 0.0
    plate: bool = False
    border: float = 0.5

    def board(self, view: View) -> np.ndarray:
        """The rectangle around the bent words with its border, in the plane: (4, 2)."""
        half_width, half_height = self.size[0] / 2, self.size[1] / 2
        x = np.linspace(-half_width, half_width, 9 if self.curvature else 2)
        outline = np.concatenate([np.stack([x, np.full(len(x), y)], axis=1) for y in (-half_height, half_height)])
        bent = view.bend(outline)
        (left, top), (right, bottom) = bent.min(0) - self.border * self.cap, bent.max(0) + self.border * self.cap
        return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])

    def patch(self, view: View, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of the part of a page (height, width) that its words and effects may touch."""
        seen = view.project(self.board(view))
        reach = 0.5 * self.cap * view.scale + 6
        left, top = np.maximum(np.floor(seen.min(0) - reach), 0).astype(int).tolist()
        right, bottom = np.minimum(np.ceil(seen.max(0) + reach), size[::-1]).astype(int).tolist()
        return left, top, right, bottom

    def restyle(self, values: dict) -> None:
        """Change fields of the style of all words; only such as do not move letters."""
        self.style = replace(self.style, **values)
        for word in self.words:
            word.style = replace(word.style, **values)


def widths(style: Style, texts: Sequence[str]) -> list[float]:
    """About how wide words are, in cap heights."""
    font = style.font
    em = 1 / face_metrics(font.path, font.index).cap
    spacing = max(style.spacing, 0.0)
    return [em * (shape(font.path, font.index, text, 64).width / 64 + spacing * len(text)) for text in texts]


def set_word(text: str, style: Style, cap: float) -> SetWord:
    """Lay out one word with letters `cap` pixels high on a canvas that just holds it.

    Raises:
        SynthesisError: the font cannot draw it.
    """
    font = style.font
    metrics = face_metrics(font.path, font.index)
    em = cap / metrics.cap
    pad = 0.25 * cap + 2
    if style.baseline.kind == "vertical":
        line = shape(font.path, font.index, text, 64, vertical=True)
        height, width = math.ceil(line.width * em / 64 * 1.1 + 2 * pad), math.ceil(1.3 * em + 2 * pad)
        height += math.ceil(style.spacing * em * len(text))
    else:
        line = shape(font.path, font.index, text, 64)
        height = math.ceil((metrics.top + metrics.bottom) * em + 2 * pad)
        width = math.ceil(line.width * em / 64 + (max(style.spacing, 0.0) * em + 2) * len(text) + 2 * pad)
    size = max(height, 8), max(width, 8)
    style = replace(
        style,
        size=size,
        font_size=min(cap / size[0], 1.0),
        baseline_y=min((pad + metrics.top * em) / size[0], 1.0),
        margin=min(1.0 / size[0], 0.1),
        max_stretch=1.0,
        corners=None,
    )
    return SetWord(text, style, lay_out(style, text))


def stack(
    lines: Sequence[Sequence[SetWord]], caps: Sequence[float], align: float, leading: float, gap: float
) -> tuple[list[SetWord], tuple[float, float]]:
    """Set words in lines below one another, around (0, 0).

    Args:
        lines: words of each line, in reading order.
        caps: cap height of each line in pixels.
        align: 0 left, 0.5 centred, 1 right.
        leading: free height between the ink of two lines, in cap heights of the lower one.
        gap: free width between two words, in cap heights.

    Returns:
        The words with their places, and width and height of all their ink.
    """
    top, rows = 0.0, []
    for line, cap in zip(lines, caps):
        baselines = [word.style.baseline_y * word.style.size[0] for word in line]
        if line[0].style.baseline.kind == "vertical":
            baselines = [word.ink[1] for word in line]
        ascent = max(base - word.ink[1] for word, base in zip(line, baselines))
        descent = max(word.ink[3] - base for word, base in zip(line, baselines))
        top += leading * cap if rows else 0.0
        x = 0.0
        for word, base in list(zip(line, baselines))[:: -1 if _runs_left(line[0]) else 1]:
            left, _, right, _ = word.ink
            word.x, word.y = x - left, top + ascent - base
            x += right - left + gap * cap
        rows.append((line, x - gap * cap))
        top += ascent + descent
    width = max(row_width for _, row_width in rows)
    for line, row_width in rows:
        for word in line:
            word.x += align * (width - row_width) - width / 2
            word.y -= top / 2
    return [word for line in lines for word in line], (width, top)


def _runs_left(word: SetWord) -> bool:
    quads = word.layout.quads
    return len(quads) > 1 and word.style.baseline.kind != "vertical" and quads[0, 0, 0] > quads[-1, 0, 0]
