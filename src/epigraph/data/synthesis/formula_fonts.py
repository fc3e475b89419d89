"""Formulas without an ink set: glyphs of fonts, handwriting by preference, thinned to strokes.

A glyph is drawn large, thinned to its skeleton (scikit-image) and traced into polylines that go straight on where they
cross, as pens do. Bars and roots are drawn, fences stretched.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from .fonts import BUILTIN, Face, FontError, SynthesisError, load_font, open_face
from .formula_layout import DISTANCES, Glyph
from .shaping import draw_run

logger = logging.getLogger(__name__)

_SIZE = 96  # pixels per em at which glyphs are thinned
_SCORES = np.array([-1.645, 0.0, 1.645])
_CHARACTERS = {
    r"\Delta": "Δ", r"\Gamma": "Γ", r"\Lambda": "Λ", r"\Omega": "Ω", r"\Phi": "Φ", r"\Pi": "Π", r"\Psi": "Ψ",
    r"\Sigma": "Σ", r"\Theta": "Θ", r"\alpha": "α", r"\beta": "β", r"\gamma": "γ", r"\delta": "δ", r"\epsilon": "ε",
    r"\eta": "η", r"\theta": "θ", r"\kappa": "κ", r"\lambda": "λ", r"\mu": "μ", r"\nu": "ν", r"\xi": "ξ", r"\pi": "π",
    r"\rho": "ρ", r"\sigma": "σ", r"\tau": "τ", r"\phi": "φ", r"\chi": "χ", r"\psi": "ψ", r"\omega": "ω",
    r"\cdot": "·", r"\cdots": "⋯", r"\ldots": "…", r"\div": "÷", r"\exists": "∃", r"\forall": "∀", r"\geq": "≥",
    r"\in": "∈", r"\infty": "∞", r"\int": "∫", r"\leq": "≤", r"\neq": "≠", r"\pm": "±", r"\prime": "′",
    r"\rightarrow": "→", r"\sum": "∑", r"\prod": "∏", r"\times": "×", r"\{": "{", r"\}": "}", r"\partial": "∂",
    r"\notin": "∉", r"\approx": "≈", r"\equiv": "≡", r"\subset": "⊂", r"\cup": "∪", r"\cap": "∩", "-": "−", "*": "∗",
}  # fmt: skip
_WORDS = {rf"\{name}" for name in "sin cos tan cot log ln lim exp max min".split()}
_LARGER = {r"\sum": 1.4, r"\prod": 1.4, r"\int": 1.6}  # than in running text, as in displayed formulas
DRAWN = {r"\frac", r"\sqrt"}


class FontHands:
    """Hands that write as fonts do, one face for each formula.

    Args:
        faces: to choose from, handwriting by preference (`epigraph.data.synthesis.fonts.find_fonts`). What the face
            of a formula lacks, mathematical signs mostly, the others supply, then the mathematical font of ziamath
            where that is installed, then Pillow's own font.
    """

    def __init__(self, faces: Sequence[Face] = ()):
        import skimage.morphology  # noqa: F401 - here, where its want is one error, not one for each sample

        self.faces = list(faces) or [open_face(BUILTIN)]
        self.others = [face for face in (*_math_fonts(), open_face(BUILTIN)) if face not in self.faces]

    @property
    def tokens(self) -> set[str]:
        """What can be written: letters, digits, and the mathematical signs that one of the faces has."""
        characters = frozenset().union(*(face.characters for face in (*self.faces, *self.others)))
        named = {token for token, character in _CHARACTERS.items() if character in characters}
        plain = {chr(code) for code in range(0x21, 0x7F)} & characters
        return (named | plain | _WORDS | DRAWN) - set("\\{}^_$#%&~\"'`")

    def pen(self, rng: np.random.Generator) -> FontPen:
        """A pen with the glyphs of a random face."""
        first = self.faces[rng.integers(len(self.faces))]
        return FontPen([first, *self.others, *self.faces], rng)


@lru_cache(maxsize=1)
def _math_fonts() -> tuple[Face, ...]:
    spec = importlib.util.find_spec("ziamath")
    found = sorted(Path(spec.origin).parent.glob("fonts/*.ttf")) if spec and spec.origin else []
    try:
        return tuple(open_face(str(path)) for path in found)
    except FontError as error:
        logger.warning("the font of ziamath is left out: %s", error)
        return ()


class FontPen:
    """The glyphs of one face, each a little different every time.

    Args:
        faces: the first that has a character supplies it.
        rng: source of all randomness.
    """

    three_dots = False

    def __init__(self, faces: Sequence[Face], rng: np.random.Generator):
        self.faces, self.rng, self.writer = faces, rng, faces[0].name
        self.levels: dict[str, float] = {}

    def glyph(self, token: str) -> Glyph:
        """As `Pen.glyph`.

        Raises:
            SynthesisError: no face has it.
        """
        text = token[1:] if token in _WORDS else _CHARACTERS.get(token, token)
        if len(token) == 1 and not any(text in face.characters for face in self.faces):
            text = token  # a hyphen where there is no minus
        needed = {*text, "0"}  # the digit gives the size
        face = next((face for face in self.faces if needed <= face.characters), None)
        if face is None or (token.startswith("\\") and text == token):
            raise SynthesisError(f"no font has {token!r}; leave the formula out, or give fonts that draw {text!r}.")
        return self._varied(_thinned(face.path, face.index, text), _LARGER.get(token, 1.0))

    def _varied(self, glyph: Glyph, larger: float) -> Glyph:
        size, wider, lean, raised = (0.06 * self.rng.standard_normal(4)).tolist()
        higher = larger * (1.0 + size)
        middle = (glyph.top + glyph.bottom) / 2
        # What is larger than in the font grows about its own middle, not from the baseline.
        offset = np.array([0.0, middle], np.float32) if larger > 1.0 else np.zeros(2, np.float32)
        matrix = np.array([[higher * (1.0 + wider), 0.0], [-lean, higher]], np.float32)
        lift = np.array([0.0, offset[1] + raised], np.float32)
        return _boxed([(stroke - offset) @ matrix + lift for stroke in glyph.strokes])

    def fitted(self, token: str, width: float, height: float, lead: float = 0.0) -> Glyph:
        """As `Pen.fitted`."""
        sway = (0.03 * self.rng.standard_normal(6)).tolist()
        if token == r"\frac":
            x = np.linspace(0.0, width, 5)
            return _boxed([np.column_stack([x, np.array(sway[:5])]).astype(np.float32)])
        if token == r"\sqrt":
            foot, lead = lead * (0.55 + sway[0]), lead * (0.9 + sway[1])
            path = [(0, 0.55 + sway[2]), (0.25 * lead, 0.5), (foot, 1.0), (lead, 0.0), (lead + width / 2, sway[3])]
            points = np.array([*path, (max(width, 1.1 * lead), sway[4])], np.float32) * np.float32([1.0, height])
            return _boxed([points])
        glyph = self.glyph(token)
        factor = np.array([width / max(glyph.width, 0.05), height / max(glyph.bottom - glyph.top, 0.05)], np.float32)
        factor[0] = np.clip(factor[0], 0.7, 1.4)
        corner = np.array([0.0, glyph.top], np.float32)
        return _boxed([(stroke - corner) * factor for stroke in glyph.strokes])

    def distance(self, name: str) -> float:
        """As `Pen.distance`, from the printed table."""
        table = DISTANCES.get(name) or DISTANCES.get(_pair_of(name)) or DISTANCES["gap"]
        family = "gap" if name.startswith("gap") else name
        if family not in self.levels:
            self.levels[family] = float(self.rng.standard_normal())
        level = 0.7 * self.levels[family] + 0.7 * float(self.rng.standard_normal())
        return float(np.interp(level, _SCORES, table))


def _pair_of(name: str) -> str:
    """The wider of the two sides decides: a relation keeps its distance whatever stands beside it."""
    return next((f"gap.{kind}" for kind in ("relation", "operator") if f".{kind}" in name), "gap")


def _boxed(strokes: list[np.ndarray]) -> Glyph:
    points = np.concatenate(strokes)
    (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
    origin = np.array([left, 0.0], np.float32)
    return Glyph(right - left, top, bottom, tuple((stroke - origin).astype(np.float32) for stroke in strokes))


# ------------------------------------------------------------------------------------------------------- thinning


@lru_cache(maxsize=20_000)
def _thinned(path: str, index: int, text: str) -> Glyph:
    """A character or word as strokes, in units of the height of the face's digits."""
    from skimage.morphology import skeletonize

    font = load_font(path, index, _SIZE, False)
    zero = font.getbbox("0", anchor="ls")
    unit = max(float(zero[3] - zero[1]), 1.0)
    bitmap, left, top = draw_run(font, text)
    paths = trace(skeletonize(bitmap > 100), shortest=0.12 * unit)
    if not paths:
        raise SynthesisError(f"{text!r} comes out empty in the font {path}; give another one.")
    offset = np.array([left + 0.5, top + 0.5])
    return _boxed([((_smooth(points) + offset) / unit).astype(np.float32) for points in paths])


def _smooth(points: np.ndarray) -> np.ndarray:
    """A running mean over five pixels; the ends stay."""
    if len(points) < 6:
        return points
    padded = np.concatenate([points[:1], points[:1], points, points[-1:], points[-1:]])
    mean = sum(padded[start : start + len(points)] for start in range(5)) / 5
    mean[0], mean[-1] = points[0], points[-1]
    return np.concatenate([mean[:-1:3], mean[-1:]])


def trace(skeleton: np.ndarray, shortest: float) -> list[np.ndarray]:
    """Polylines of a one-pixel skeleton.

    Args:
        skeleton: bool `(height, width)`.
        shortest: spurs shorter than this many pixels, which thinning leaves at corners, are dropped.

    Returns:
        Arrays `(points, 2)` of x and y; paths go straight on through crossings, a dot is one point.
    """
    neighbours = _neighbours(skeleton)
    edges = _edges(neighbours)
    spurs = [
        number
        for number, edge in enumerate(edges)
        if len(edge) < shortest and {len(neighbours[edge[0]]) > 2, len(neighbours[edge[-1]]) > 2} == {True, False}
    ]
    edges = [edge for number, edge in enumerate(edges) if number not in spurs]
    return [np.array(path, np.float64)[:, ::-1] for path in _joined(edges)]


def _neighbours(skeleton: np.ndarray) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Of every pixel; diagonal ones only where no straight step leads there, so that corners make no crossings."""
    pixels = set(map(tuple, np.argwhere(skeleton).tolist()))
    found = {}
    for y, x in pixels:
        near = [(y + dy, x + dx) for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)) if (y + dy, x + dx) in pixels]
        for dy, dx in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            if (y + dy, x + dx) in pixels and (y + dy, x) not in pixels and (y, x + dx) not in pixels:
                near.append((y + dy, x + dx))
        found[y, x] = near
    return found


def _edges(neighbours: dict) -> list[list[tuple[int, int]]]:
    """Paths between ends and crossings, closed loops, and single pixels."""
    edges, walked = [], set()

    def walk(start, following):
        path = [start, following]
        walked.add((start, following))
        while len(neighbours[path[-1]]) == 2 and path[-1] != start:
            first, second = neighbours[path[-1]]
            path.append(second if first == path[-2] else first)
        walked.add((path[-1], path[-2]))
        edges.append(path)
        return path

    seen = set()
    for pixel in sorted(neighbours):
        near = neighbours[pixel]
        if not near:
            edges.append([pixel])
        elif len(near) != 2:
            for other in near:
                if (pixel, other) not in walked:
                    seen.update(walk(pixel, other))
    for pixel in sorted(neighbours):
        if pixel not in seen and len(neighbours[pixel]) == 2:
            seen.update(walk(pixel, neighbours[pixel][0]))
    return edges


def _joined(edges: list[list[tuple[int, int]]]) -> list[list[tuple[int, int]]]:
    """Join edges that go on straight at a common end, the straightest first."""
    paths = [list(edge) for edge in edges]
    while True:
        ends: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for number, path in enumerate(paths):
            if path[0] != path[-1]:
                ends.setdefault(path[0], []).append((number, 0))
                ends.setdefault(path[-1], []).append((number, -1))
        best = None
        for meeting in ends.values():
            for place, one in enumerate(meeting):
                for other in meeting[place + 1 :]:
                    if one[0] != other[0]:
                        bend = float(_direction(paths, one) @ _direction(paths, other))
                        # Two ends that meet alone are one line, whatever its angle.
                        if (bend < -0.3 or len(meeting) == 2) and (best is None or bend < best[0]):
                            best = bend, one, other
        if best is None:
            return paths
        _, (first, start), (second, end) = best
        head = paths[first] if start == -1 else paths[first][::-1]
        tail = paths[second] if end == 0 else paths[second][::-1]
        paths[first] = head + tail[1:]
        del paths[second]


def _direction(paths: list, end: tuple[int, int]) -> np.ndarray:
    """From an end of a path into it, over up to eight pixels."""
    number, side = end
    path = paths[number]
    inner = path[min(8, len(path) - 1)] if side == 0 else path[-min(9, len(path))]
    step = np.subtract(inner, path[side]).astype(float)
    return step / max(float(np.hypot(*step)), 1e-9)
