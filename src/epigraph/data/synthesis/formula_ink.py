"""Hands that write formulas: real symbols of an ink set with the distances measured in it, or the glyphs of a font.

From an ink set with segmented symbols everything is learnt that a layout needs: every formula is laid out with typical
boxes, its symbols are matched with that layout, and each line's baseline and unit (height of its digits) are fitted to
its symbols. A sample is kept in units of its own line, at its own height above that line's baseline, so that writing
with it scatters as hands do.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable
from statistics import NormalDist

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..ink import as_strokes, as_symbols, thin_out
from ..latex import LatexError, parse
from .fonts import SynthesisError
from .formula_layout import DISTANCES, FENCES, TYPICAL_BOXES, FormulaLayout, Glyph, Leaf, reach_of

logger = logging.getLogger(__name__)

_LEVELS = np.linspace(0.05, 0.95, 19)  # of the quantiles that are kept of a distance; beyond them are misreadings
_SCORES = np.array([NormalDist().inv_cdf(level) for level in _LEVELS])
_FEWEST = 30  # values of a distance below which the common gap, or the printed default, serves
UNKNOWN_WRITER = "wda39a3ee"  # the hash of an empty name
_STRETCHED = {r"\frac", r"\sqrt", *FENCES, *FENCES.values(), r"\sum", r"\int", "/"}  # their size is not their line's
_BOUNDS = {r"\sum": (0.4, 2.2), r"\int": (0.4, 2.5), "-": (0.3, 3.0)}  # of height, as share of the typical one
_SPACING = 0.03  # units between kept points of a sample
_FALLBACK_BOX = (-1.0, 0.0, 0.6)  # digits, capitals, letters with ascenders


class TypicalPen:
    """Boxes without ink and the middle of every distance: what is expected of a formula before it is seen."""

    def __init__(self, boxes: dict[str, tuple[float, float, float]], distances: dict[str, np.ndarray]):
        self.boxes, self.three_dots = boxes, False
        self.middle = {name: float(np.median(values)) for name, values in distances.items()}

    def glyph(self, token: str) -> Glyph:
        """As `Pen.glyph`, for any token."""
        top, bottom, width = self.boxes.get(token, _FALLBACK_BOX)
        return Glyph(width, top, bottom)

    def fitted(self, token: str, width: float, height: float, lead: float = 0.0) -> Glyph:
        """As `Pen.fitted`."""
        return Glyph(width, 0.0, height)

    def distance(self, name: str) -> float:
        """As `Pen.distance`."""
        return self.middle.get(name, self.middle["gap"])


class InkSet:
    """Segmented symbols in line units, by token and writer, and the distances at which their writers put them.

    Args:
        rows: formulas with `text`, `strokes`, `symbols` and, where known, `writer`; use training rows only.
        limit: most samples kept of one token, the first ones met.

    Raises:
        ValueError: fewer than ten formulas could be matched with their segmentation.
    """

    def __init__(self, rows: Iterable[dict], limit: int = 4000):
        formulas = [formula for row in rows if (formula := _Formula.of(row)) is not None]
        boxes, distances = dict(TYPICAL_BOXES), {name: np.array(values) for name, values in DISTANCES.items()}
        # Typical boxes come from a first look at a part; what is kept is matched with those.
        for part in (formulas[:: max(1, len(formulas) // 1200)], formulas):
            pen, samples, values = TypicalPen(boxes, distances), defaultdict(list), defaultdict(list)
            matched = sum(formula.measure(pen, samples, values) for formula in part)
            boxes = boxes | {
                token: tuple(np.median([sample.box for sample in kept], axis=0).tolist())
                for token, kept in samples.items()
                if len(kept) >= 3 or token not in boxes
            }
            distances = distances | {name: np.array(seen) for name, seen in values.items() if len(seen) >= _FEWEST}
        if matched < 10:
            raise ValueError(
                f"the ink set: {matched} of {len(formulas)} formulas could be matched with their segmented symbols; "
                "at least ten are needed, with columns text, strokes and symbols."
            )
        logger.info("ink set: %d of %d formulas matched with their symbols", matched, len(formulas))
        self.boxes, self.matched = boxes, matched
        self.distances = {
            name: np.quantile(values, _LEVELS) if name in distances else values for name, values in distances.items()
        }
        self._keep(samples, limit)

    def _keep(self, samples: dict[str, list[_Sample]], limit: int) -> None:
        """Put the samples that stand where their token usually stands into flat arrays."""
        self.glyphs: dict[str, list[Glyph]] = {}
        self.by_writer: dict[str, dict[str, list[int]]] = {}
        written: dict[str, int] = defaultdict(int)
        for token, found in samples.items():
            typical = np.array(self.boxes[token])
            least, most = _BOUNDS.get(token, (0.55, 1.8))
            narrow, broad = np.quantile([sample.box[2] for sample in found], [0.1, 0.9]) * (0.5, 1.6)
            for sample in found:
                high, low, wide = sample.box
                taller = (low - high + 0.15) / (typical[1] - typical[0] + 0.15)
                off = abs(high + low - typical[0] - typical[1]) / 2
                # What is out of place or shape there is mostly another symbol, or one that has been crossed out.
                odd = not (least < taller < most and narrow <= wide <= broad + 0.1) or off > 0.4 * most / 1.8
                if token in (r"\frac", r"\sqrt"):
                    odd = token == r"\sqrt" and not _covers(sample.strokes)
                kept = self.glyphs.setdefault(token, [])
                if odd or len(kept) >= limit:
                    continue
                self.by_writer.setdefault(token, {}).setdefault(sample.writer, []).append(len(kept))
                kept.append(Glyph(sample.box[2], high, low, tuple(sample.strokes)))
                written[sample.writer] += 1
        self.glyphs = {token: kept for token, kept in self.glyphs.items() if kept}
        # Who wrote little lends single symbols only.
        self.writers = sorted(writer for writer, count in written.items() if writer and count >= 40)
        self.shares = np.array([written[writer] for writer in self.writers], float) ** 0.5

    @property
    def tokens(self) -> set[str]:
        """What can be written."""
        return set(self.glyphs) | ({r"\cdots"} if r"\cdot" in self.glyphs else set())

    def pen(self, rng: np.random.Generator) -> InkPen:
        """The hand of a random writer."""
        return InkPen(self, rng)


class _Sample:
    """One symbol as it stood on its line: strokes and (top, bottom, width) in line units."""

    __slots__ = ("strokes", "box", "writer")

    def __init__(self, strokes: list[np.ndarray], baseline: float, unit: float, writer: str):
        points = np.concatenate(strokes)
        (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
        origin = np.array([left, baseline])
        self.strokes = [thin_out(((stroke - origin) / unit).astype(np.float32), _SPACING) for stroke in strokes]
        self.box = ((top - baseline) / unit, (bottom - baseline) / unit, (right - left) / unit)
        self.writer = writer


def _covers(strokes: list[np.ndarray]) -> bool:
    """Whether a root's bar runs along its top, so that it can be made longer."""
    points = np.concatenate(strokes)
    place = (points - points.min(0)) / np.maximum(np.ptp(points, axis=0), 1e-6)
    bar = place[place[:, 0] > 0.65, 1]
    return bool(len(bar) and bar.max() < 0.4)


class _Formula:
    """One formula of the ink set: its tree, its strokes and the box of each segmented symbol."""

    def __init__(self, line, strokes: list[np.ndarray], pairs: list[tuple[str, list[int]]], writer: str, three: bool):
        self.line, self.strokes, self.pairs, self.writer, self.three_dots = line, strokes, pairs, writer, three
        low = np.array([stroke.min(0) for stroke in strokes])
        high = np.array([stroke.max(0) for stroke in strokes])
        self.boxes = np.array([[*low[indices].min(0), *high[indices].max(0)] for _, indices in pairs], np.float64)

    @classmethod
    def of(cls, row: dict) -> _Formula | None:
        """None where the label and the segmentation cannot belong together."""
        try:
            line = parse(row["text"])
            strokes = as_strokes(row["strokes"])
        except (LatexError, ValueError):
            return None
        pairs = as_symbols(row["symbols"], len(strokes))
        if not pairs:
            return None
        dots = sum(label == r"\ldots" for label, _ in pairs)
        tokens = row["text"].split()
        three = r"\cdots" in tokens and dots < tokens.count(r"\cdots") + tokens.count(r"\ldots")
        writer = row.get("writer") or ""
        return cls(line, strokes, pairs, "" if writer == UNKNOWN_WRITER else writer, three)

    def measure(self, pen: TypicalPen, samples: dict[str, list], values: dict[str, list]) -> bool:
        """Add this formula's samples and distances; False where label and ink do not match."""
        pen.three_dots = self.three_dots
        layout = FormulaLayout(pen)
        try:
            block = layout(self.line)
        except SynthesisError:
            return False
        match = self._match(block.leaves)
        if match is None:
            return False
        boxes = self.boxes[match]  # by leaf: left, top, right, bottom
        height = float(self.boxes[:, 3].max() - self.boxes[:, 1].min())
        width = float(self.boxes[:, 2].max() - self.boxes[:, 0].min())
        guess = height / max(block.bottom - block.top, 0.1) if height > 0.15 * width else width / (block.right or 1.0)
        leaves = sorted(block.leaves, key=lambda leaf: leaf.index)
        lines = _fit_lines(leaves, boxes, layout.units, guess, pen)
        for leaf, found in zip(leaves, match):
            baseline, unit, _ = lines[leaf.line]
            strokes = [self.strokes[index] for index in self.pairs[found][1]]
            if leaf.token == r"\frac":
                baseline = (boxes[leaf.index][1] + boxes[leaf.index][3]) / 2
            token = r"\cdot" if leaf.token == r"\cdots." else leaf.token
            samples[token].append(_Sample(strokes, baseline, unit, self.writer))
        for part in layout.parts:
            _measure_part(part, boxes, lines, values)
        return True

    def _match(self, leaves: list[Leaf]) -> list[int] | None:
        """For each leaf, by index, the segmented symbol that is it."""
        wanted, found = defaultdict(list), defaultdict(list)
        for leaf in leaves:
            wanted[leaf.label].append(leaf)
        for number, (label, _) in enumerate(self.pairs):
            found[label].append(number)
        if {label: len(some) for label, some in wanted.items()} != {label: len(some) for label, some in found.items()}:
            return None
        expected = np.empty((len(leaves), 4))
        for leaf in leaves:
            expected[leaf.index] = leaf.box
        seen = self.boxes
        match = [0] * len(leaves)
        # The ink is stretched onto the expected frame; sizes of symbols count as well as their places.
        low, high = seen[:, :2].min(0), seen[:, 2:].max(0)
        begin, end = expected[:, :2].min(0), expected[:, 2:].max(0)
        stretch = np.maximum(end - begin, 0.3) / np.maximum(high - low, 1e-6)
        moved = (seen - np.tile(low, 2)) * np.tile(stretch, 2) + np.tile(begin, 2)
        for label, some in wanted.items():
            if len(some) == 1:
                match[some[0].index] = found[label][0]
                continue
            indices = [leaf.index for leaf in some]
            cost = np.abs(expected[indices][:, None] - moved[found[label]][None]).sum(-1)
            rows, columns = linear_sum_assignment(cost)
            for row, column in zip(rows.tolist(), columns.tolist()):
                match[indices[row]] = found[label][column]
        centres = (seen[match, 0] + seen[match, 2]) / 2
        order: dict[int, float] = {}
        slack = 0.04 * float(np.ptp(seen[:, 0::2]))
        for leaf in sorted(leaves, key=lambda leaf: (leaf.line, leaf.x)):
            if centres[leaf.index] < order.get(leaf.line, -np.inf) - slack:
                return None  # a line that would run backwards
            order[leaf.line] = float(centres[leaf.index])
        return match


def _fit_lines(leaves, boxes, units, guess, pen) -> list[tuple[float, float, bool]]:
    """Baseline, unit and whether it is well founded, of every line, from the tops and bottoms of its symbols."""
    rows: dict[int, list] = defaultdict(list)
    for leaf in leaves:
        if leaf.token not in _STRETCHED:
            rows[leaf.line].append(leaf)
    fitted = []
    for number, unit in enumerate(units):
        expected = unit * guess
        some = rows.get(number, [])
        if not some:
            fitted.append((0.0, expected, False))
            continue
        typical = np.array([edge for leaf in some for edge in (leaf.glyph.top, leaf.glyph.bottom)])
        actual = np.array([edge for leaf in some for edge in boxes[leaf.index][1::2]])
        centred = typical - typical.mean()
        # A weak pull to the expected unit decides only where dots and bars alone make a line.
        size = (centred @ (actual - actual.mean()) + 0.1 * expected) / (centred @ centred + 0.1)
        size = float(np.clip(size, 0.3 * expected, 3.0 * expected))
        fitted.append((float(actual.mean() - size * typical.mean()), size, bool(centred @ centred > 0.25)))
    return fitted


def _union(leaves: list[Leaf], boxes: np.ndarray) -> tuple[float, float, float, float]:
    some = boxes[[leaf.index for leaf in leaves]]
    return (*some[:, :2].min(0).tolist(), *some[:, 2:].max(0).tolist())


def _measure_part(part, boxes: np.ndarray, lines: list, values: dict[str, list]) -> None:
    """Turn one relation into the distances that `FormulaLayout` draws."""
    baseline, unit, founded = lines[part.line]
    part_baseline, part_unit, part_founded = lines[part.part_line]
    left, top, right, bottom = _union(part.owner, boxes)
    x0, y0, x1, y1 = _union(part.part, boxes)
    kind, put = part.kind, lambda name, value: values[name].append(value)
    if kind.startswith("gap"):
        put(kind, (x0 - right) / unit)
        put("gap", (x0 - right) / unit)
        return
    if kind == "fence":
        if bottom - top > 1.6 * unit:
            put("fence.top", (y0 - top) / (bottom - top))
            put("fence.foot", (y1 - bottom) / (bottom - top))
        return
    if founded and part_founded and part.line != part.part_line:
        put(f"{kind}.size", part_unit / unit)
    unit = unit if founded else part_unit
    if kind in ("sup", "sub"):
        put(f"{kind}.gap", (x0 - right) / unit)
        if founded:
            reach = reach_of(kind, (top - baseline) / unit, (bottom - baseline) / unit)
            put(f"{kind}.edge.{reach}", ((y1 - top) if kind == "sup" else (y0 - bottom)) / unit)
    elif kind in ("over", "under"):
        put(f"{kind}.gap", (top - y1 if kind == "over" else y0 - bottom) / unit)
        put(f"{kind}.shift", (x0 + x1 - left - right) / 2 / unit)
    elif kind == "fraction.over":
        put(kind, (right - left - x1 + x0) / unit)
    elif kind.startswith("fraction"):
        put(f"{kind}.gap", (top - y1 if kind == "fraction.top" else y0 - bottom) / unit)
        put(f"{kind}.shift", (x0 + x1 - left - right) / 2 / unit)
        if founded and kind == "fraction.top":
            put("fraction.axis", ((top + bottom) / 2 - baseline) / unit)
    elif kind == "root":
        put("root.lead", (x0 - left) / unit)
        put("root.clear", (y0 - top) / unit)
        put("root.foot", (bottom - y1) / unit)
        put("root.tail", (right - x1) / unit)
        if founded and part_founded:
            put("root.rise", (part_baseline - baseline) / unit)
    elif kind == "index":
        put("index.height", ((y0 + y1) / 2 - top) / max(bottom - top, 1e-6))
        put("index.inset", (x1 - left) / unit)


# ----------------------------------------------------------------------------------------------- writing with ink


class InkPen:
    """A writer of an ink set, for one formula: own symbols where there are some, others' where not.

    Args:
        ink: the set.
        rng: source of all randomness.
        consistency: share of the variance of a distance that belongs to the formula, not to the single place, 0..1.
        jitter: standard deviation of each symbol's own change of size (natural logarithm) and slant.
    """

    def __init__(self, ink: InkSet, rng: np.random.Generator, consistency: float = 0.5, jitter: float = 0.04):
        self.ink, self.rng, self.jitter = ink, rng, jitter
        self.common, self.own = consistency**0.5, (1.0 - consistency) ** 0.5
        self.levels: dict[str, float] = {}
        self.hands = list(rng.choice(ink.writers, size=2, p=ink.shares / ink.shares.sum())) if ink.writers else []
        self.writer = self.hands[0] if self.hands else ""
        self.three_dots = bool(rng.random() < 0.5 or r"\cdots" not in ink.glyphs) and r"\cdot" in ink.glyphs

    def glyph(self, token: str) -> Glyph:
        """As `Pen.glyph`."""
        return self._varied(self._choice(token, 1)[0])

    def _choice(self, token: str, count: int) -> list[Glyph]:
        """Random samples of `token`: the writer's, else another's."""
        glyphs = self.ink.glyphs.get(token)
        if not glyphs:
            raise SynthesisError(f"the ink set has no {token!r}; leave the formula out, or write with fonts.")
        for hand in self.hands:
            if own := self.ink.by_writer[token].get(hand):
                return [glyphs[own[self.rng.integers(len(own))]] for _ in range(count)]
        return [glyphs[self.rng.integers(len(glyphs))] for _ in range(count)]

    def _varied(self, glyph: Glyph) -> Glyph:
        """The same symbol written once more: as large as before or nearly, leaning a little differently."""
        wider, higher, lean = (self.jitter * self.rng.standard_normal(3)).tolist()
        centre = (glyph.top + glyph.bottom) / 2
        matrix = np.array([[1.0 + wider, 0.0], [-lean, 1.0 + higher]], np.float32)
        offset = np.array([0.0, centre], np.float32)
        return _boxed([(stroke - offset) @ matrix + offset for stroke in glyph.strokes])

    def fitted(self, token: str, width: float, height: float, lead: float = 0.0) -> Glyph:
        """As `Pen.fitted`: of several samples the one that has to be stretched least."""
        tries = self._choice(token, 6)
        if token == r"\frac":
            best = min(tries, key=lambda glyph: abs(np.log((glyph.width + 0.05) / width)))
            wider = width / max(best.width, 0.05)
            centre = (best.top + best.bottom) / 2
            factor = np.array([wider, min(wider, 1.5)], np.float32)
            return _boxed([(stroke - np.array([0.0, centre], np.float32)) * factor for stroke in best.strokes])
        glyphs = self.ink.glyphs[token]
        tries += [glyphs[self.rng.integers(len(glyphs))] for _ in range(6)]
        aspect = width / height
        best = min(
            tries, key=lambda glyph: abs(np.log(max(glyph.width, 0.05) / (glyph.bottom - glyph.top + 0.05) / aspect))
        )
        higher = height / max(best.bottom - best.top, 0.05)
        strokes = [(stroke - np.array([0.0, best.top], np.float32)) * np.float32(higher) for stroke in best.strokes]
        if token == r"\sqrt":
            strokes = _lengthened(strokes, width, lead)
        else:
            # A fence that is twice as tall is hardly wider.
            narrower = max(min(1.0, 1.6 * width / max(best.width * higher, 1e-6)), 0.35)
            strokes = [stroke * np.array([narrower, 1.0], np.float32) for stroke in strokes]
        return _boxed(strokes)

    def distance(self, name: str) -> float:
        """As `Pen.distance`."""
        table = self.ink.distances.get(name)
        if table is None:
            table = self.ink.distances["gap"]
        family = "gap" if name.startswith("gap") else name
        if family not in self.levels:
            self.levels[family] = float(self.rng.standard_normal())
        level = self.common * self.levels[family] + self.own * float(self.rng.standard_normal())
        return float(np.interp(level, _SCORES, table))


def _boxed(strokes: list[np.ndarray]) -> Glyph:
    """A glyph of strokes, moved to begin at x = 0."""
    points = strokes[0] if len(strokes) == 1 else np.concatenate(strokes)
    (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
    origin = np.array([left, 0.0], np.float32)
    return Glyph(right - left, top, bottom, tuple(stroke - origin for stroke in strokes))


def _lengthened(strokes: list[np.ndarray], width: float, lead: float) -> list[np.ndarray]:
    """A root as wide as asked: its hook made to fit `lead` as far as it goes without distortion, its bar the rest."""
    points = np.concatenate(strokes)
    extent, height = points.max(0).tolist()
    # The bar begins where the ink first comes near the top, right of the hook's foot.
    foot = float(points[points[:, 1].argmax(), 0])
    near = points[(points[:, 1] < 0.2 * height) & (points[:, 0] >= foot), 0]
    knee = float(near.min()) if len(near) else 0.5 * extent
    hook = float(np.clip(lead / max(knee, 1e-6), 0.4, 1.3))
    bar = max(width - knee * hook, 0.2 * width) / max(extent - knee, 0.1 * extent, 1e-6)
    result = []
    for stroke in strokes:
        x = stroke[:, 0]
        x = np.where(x > knee, knee * hook + (x - knee) * bar, x * hook)
        result.append(np.column_stack([x, stroke[:, 1]]).astype(np.float32))
    return result
