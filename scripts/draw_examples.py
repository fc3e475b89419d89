"""Draw the demo formulas of examples/handwritten-math as pen strokes, in a hand of our own.

    python scripts/draw_examples.py [OUT_DIR]

Every glyph is a few points that a pen passes through; a smooth curve joins them, a small layout places the glyphs,
and seeded wobble makes each formula look written. Nothing is taken from any data set.
"""

import json
import sys
import zlib
from pathlib import Path

import numpy as np

from epigraph.data.ink import augment, jitter
from epigraph.data.latex import tokenize

FORMULAS = {
    "pythagoras": r"x ^ { 2 } + y ^ { 2 } = z ^ { 2 }",
    "fraction": r"\frac { a } { b }",
    "root": r"\sqrt { 2 }",
    "sum": r"\sum _ { i = 1 } ^ { n } i",
    "euler": r"e ^ { i \pi } + 1 = 0",
    "halves": r"\frac { 1 } { 2 } + \frac { 1 } { 3 }",
    "sine": r"\sin \theta",
    "product": r"2 \times 3 = 6",
    "index": r"a _ { n }",
    "integral": r"\int _ { 0 } ^ { 1 } x d x",
    "binomial": r"( a + b ) ^ { 2 }",
    "circle": r"\sqrt { x ^ { 2 } + y ^ { 2 } }",
    "derivative": r"\frac { d y } { d x } = 4 x",
    "function": r"f ( x ) = \cos x - 7",
}

# Points on the pen's path, x to the right, y up, baseline at 0, a digit 1 high. A point given twice is a corner.
GLYPHS = {
    "0": ["32 98, 12 85, 2 50, 12 10, 32 0, 52 12, 60 50, 50 88, 30 100, 20 94"],
    "1": ["4 70, 18 84, 30 100, 30 100, 29 50, 28 0"],
    "2": ["4 76, 14 95, 34 99, 48 82, 42 56, 22 25, 2 2, 2 2, 22 5, 40 0, 58 4"],
    "3": ["6 88, 26 100, 46 86, 42 64, 20 53, 20 53, 46 44, 52 20, 34 1, 10 4, 0 14"],
    "4": ["28 100, 16 66, 2 36, 2 36, 30 35, 58 38", "44 70, 42 35, 40 -4"],
    "6": ["46 98, 22 75, 6 42, 6 14, 24 0, 46 8, 50 28, 34 42, 14 34, 7 20"],
    "7": ["2 92, 25 94, 55 98, 55 98, 38 55, 24 0", "14 50, 46 53"],
    "a": ["46 50, 30 60, 10 50, 2 24, 12 2, 30 6, 44 30, 48 58, 48 58, 44 25, 50 3, 62 8"],
    "b": ["6 104, 5 50, 5 4, 5 4, 10 35, 28 54, 46 42, 46 15, 28 -1, 8 5"],
    "c": ["44 48, 28 58, 8 44, 4 18, 18 0, 42 8"],
    "d": ["44 48, 26 56, 6 42, 4 14, 20 0, 38 12, 48 50, 52 102, 52 102, 48 50, 48 8, 60 2"],
    "e": ["4 28, 24 32, 42 44, 34 60, 16 56, 4 32, 10 6, 28 -1, 48 12"],
    "f": ["50 92, 38 102, 26 90, 22 50, 20 10, 12 -30, 0 -28", "4 52, 24 54, 42 56"],
    "i": ["8 56, 7 30, 10 5, 22 4", "10 84, 11 82"],
    "n": ["4 56, 7 30, 6 2, 6 2, 10 34, 26 56, 38 46, 40 20, 42 2, 54 6"],
    "o": ["26 58, 8 46, 4 18, 18 0, 38 8, 44 36, 34 56, 20 58"],
    "s": ["40 50, 24 58, 10 48, 20 32, 36 20, 32 4, 14 -1, 2 8"],
    "x": ["2 50, 14 58, 25 42, 24 16, 12 0, 0 6", "50 56, 38 58, 27 42, 27 16, 36 0, 50 6"],
    "y": ["4 56, 8 28, 20 16, 36 26, 46 56, 46 56, 42 10, 32 -28, 14 -36, 6 -22"],
    "z": ["4 52, 22 58, 46 56, 46 56, 26 28, 2 2, 2 2, 24 6, 50 2", "10 28, 40 31"],
    "+": ["0 40, 26 41, 52 42", "27 68, 26 40, 25 12"],
    "-": ["0 40, 26 42, 52 41"],
    "=": ["0 52, 26 53, 52 54", "2 28, 28 29, 54 30"],
    "(": ["22 108, 6 75, 2 40, 8 5, 24 -20"],
    ")": ["2 108, 18 75, 22 40, 16 5, 0 -20"],
    r"\times": ["4 62, 24 40, 46 18", "44 64, 24 41, 4 16"],
    r"\pi": ["0 50, 12 58, 35 55, 62 60", "20 55, 18 25, 6 0", "44 57, 42 25, 46 3, 58 5"],
    r"\theta": ["26 100, 8 80, 2 45, 10 8, 26 0, 44 15, 50 55, 42 88, 24 100", "4 50, 26 50, 48 52"],
    r"\sum": ["78 122, 40 122, 4 120, 4 120, 26 80, 46 44, 46 44, 24 6, 0 -30, 0 -30, 40 -32, 82 -30"],
    r"\int": ["62 126, 52 140, 40 125, 34 60, 28 -10, 16 -42, 2 -36, 0 -24"],
}
WORDS = {r"\sin": "sin", r"\cos": "cos"}
LOOSE = {"+", "-", "=", r"\times"}  # a little more air around them
SCRIPT_SIZE = 0.62

Strokes = list[np.ndarray]


def curve(points: str, per_segment: int = 10) -> np.ndarray:
    """Catmull-Rom spline through "x y, x y, ..." in hundredths of a digit's height."""
    knots = np.array([pair.split() for pair in points.split(",")], dtype=float) / 100
    knots = np.concatenate([knots[:1], knots, knots[-1:]])
    t = np.linspace(0, 1, per_segment, endpoint=False)[:, None]
    pieces = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(knots, knots[1:], knots[2:], knots[3:], strict=False)
        if not np.array_equal(b, c)
    ]
    return np.concatenate([*pieces, knots[-1:]])


def bounds(strokes: Strokes) -> tuple[float, float, float, float]:
    """Left, bottom, right, top."""
    points = np.concatenate(strokes)
    return (*points.min(0), *points.max(0))


def place(strokes: Strokes, x: float, y: float, scale: float = 1.0) -> Strokes:
    """Scaled, with the left edge at x and the baseline at y."""
    left = bounds(strokes)[0]
    return [(stroke - (left, 0)) * scale + (x, y) for stroke in strokes]


class Hand:
    """Writes token lists as strokes (y up), each glyph a little differently."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)

    def glyph(self, token: str) -> Strokes:
        strokes = [curve(points) for points in GLYPHS[token]]
        group = [list(range(len(strokes)))]
        strokes = jitter(strokes, group, self.rng, shift=0.025, rotation=5.0, scale=0.1)
        return jitter(strokes, [[i] for i in range(len(strokes))], self.rng, shift=0.012, rotation=2.0, scale=0.03)

    def line(self, tokens: list[str]) -> Strokes:
        """Symbols from left to right, scripts attached to what stands before them."""
        tokens = list(tokens)
        written, x = [], 0.0
        while tokens:
            token = tokens.pop(0)
            symbol = self.symbol(token, tokens)
            scripts = {}
            while tokens and tokens[0] in ("_", "^"):
                mark = tokens.pop(0)
                scripts[mark] = self.line(argument(tokens))
            air = 0.16 if token in LOOSE else 0.0
            symbol = place(self.with_scripts(token, symbol, scripts), x + air, 0.0)
            written += symbol
            x = bounds(symbol)[2] + air + self.rng.uniform(0.15, 0.27)
        return written

    def symbol(self, token: str, tokens: list[str]) -> Strokes:
        if token == r"\frac":
            return self.fraction(self.line(argument(tokens)), self.line(argument(tokens)))
        if token == r"\sqrt":
            return self.root(self.line(argument(tokens)))
        if token in WORDS:
            return self.line(list(WORDS[token]))
        return self.glyph(token)

    def with_scripts(self, token: str, symbol: Strokes, scripts: dict[str, Strokes]) -> Strokes:
        left, bottom, right, top = bounds(symbol)
        for mark, script in scripts.items():
            script_left, script_bottom, script_right, script_top = (SCRIPT_SIZE * side for side in bounds(script))
            if token == r"\sum":
                x = (left + right - script_right + script_left) / 2
                y = top + 0.16 - script_bottom if mark == "^" else bottom - 0.16 - script_top
            else:
                slack = 0.12 if mark == "^" else 0.06
                x = right + (slack - 0.3 * (token == r"\int" and mark == "_"))
                y = top - 0.25 - script_bottom if mark == "^" else min(bottom, 0) + 0.18 - script_top
            symbol = symbol + place(script, x, y, SCRIPT_SIZE)
        return symbol

    def fraction(self, above: Strokes, below: Strokes) -> Strokes:
        axis = 0.4
        (a_left, a_bottom, a_right, _), (b_left, _, b_right, b_top) = bounds(above), bounds(below)
        width = max(a_right - a_left, b_right - b_left) + 0.3
        bar = curve(f"0 {100 * axis}, {50 * width} {100 * axis + 1}, {100 * width} {100 * axis + 3}")
        above = place(above, (width - a_right + a_left) / 2, axis + 0.2 - a_bottom)
        below = place(below, (width - b_right + b_left) / 2, axis - 0.2 - b_top)
        return [*above, bar, *below]

    def root(self, inside: Strokes) -> Strokes:
        left, bottom, right, top = bounds(inside)
        roof, foot, end = 100 * (top + 0.18), 100 * (bottom - 0.06), 100 * (right - left) + 62
        sign = curve(
            f"0 {foot + 40}, 10 {foot + 48}, 10 {foot + 48}, 24 {foot}, 24 {foot}, "
            f"42 {roof}, 42 {roof}, {(42 + end) / 2} {roof + 2}, {end} {roof + 1}"
        )
        return [sign, *place(inside, 0.5, 0.0)]

    def write(self, text: str) -> Strokes:
        """A whole formula as the ink of a 1000-dots-per-digit tablet, y down."""
        strokes = [(stroke * (1000, -1000)).astype(np.float32) for stroke in self.line(tokenize(text))]
        return augment(
            strokes, self.rng, rotation=2.0, shear=0.15, stretch=0.1, stroke_shift=0.0, stroke_scale=0.0, elastic=0.03
        )


def argument(tokens: list[str]) -> list[str]:
    """Take `{ ... }` from the front of the tokens."""
    depth, taken = 0, []
    while tokens:
        token = tokens.pop(0)
        depth += {"{": 1, "}": -1}.get(token, 0)
        taken.append(token)
        if depth == 0:
            return taken[1:-1]
    raise ValueError("a brace is not closed")


def main(out: str = "examples/handwritten-math") -> None:
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in FORMULAS.items():
        strokes = Hand(seed=zlib.crc32(name.encode())).write(text)
        corner = np.concatenate(strokes).min(0)
        flat = [np.round(stroke - corner).astype(int).ravel().tolist() for stroke in strokes]
        (folder / f"{name}.json").write_text(json.dumps({"text": text, "strokes": flat}) + "\n")
        print(f"{folder / name}.json: {text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
