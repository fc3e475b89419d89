r"""Where the symbols of a handwritten formula stand: boxes within boxes, loosely.

A formula is a tree of lines (`epigraph.data.latex.parse`). Every line has a baseline and a *unit*, the height of its
digits; a `Pen` supplies the glyphs, in units relative to the baseline, and draws every distance of the layout (gap
between neighbours, size and place of scripts, clearance of fraction bars ...) from how one writes by hand.

Why not a typesetter: ziamath 0.13 was tried. It sets `( \frac { a } { b } ) ^ { 2 }` right, but LaTeX goes
through MathML, which joins the digits of a number and gives no way back from glyphs to tokens; its distances are those
of one printed font, where real hands scatter; and it is slower than all the rest of a formula. Its font serves as the
last resort for glyphs (`formula_fonts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..latex import Symbol
from .fonts import SynthesisError

FENCES = {"(": ")", "[": "]", r"\{": r"\}", "|": "|"}
_CLOSING = {close: open for open, close in FENCES.items()}
_KINDS = {
    "relation": r"= < > \lt \gt \leq \geq \neq \rightarrow \in \notin \approx \equiv \sim \subset \subseteq",
    "operator": r"+ - \pm \times \div \cdot * \cup \cap \mp",
    "open": r"( [ \{",
    "close": r") ] \}",
    "point": ". , : ! ;",
    "function": r"\sin \cos \tan \log \lim \ln \exp \max \min",
    "big": r"\sum \int \prod \oint \iint \bigcup \bigcap",
    "digit": "0 1 2 3 4 5 6 7 8 9",
    "fraction": r"\frac",
    "root": r"\sqrt",
}
KIND = {token: kind for kind, tokens in _KINDS.items() for token in tokens.split()}

# Digits are one unit high. Top, bottom (y down, baseline 0) and width of what is not, for a start; where an ink set is
# given its own medians are used.
_BOXES = {
    (-0.62, 0.0, 0.6): r"a c e m n o r s u v w x z \alpha \pi \sigma",
    (-0.62, 0.38, 0.55): r"g p q y \mu \gamma",
    (-0.9, 0.0, 0.25): "i",
    (-0.9, 0.38, 0.4): "j",
    (-1.0, 0.35, 0.6): r"f \beta \phi",
    (-1.1, 0.2, 0.35): r"( ) [ ] \{ \} / \|",
    (-1.1, 0.2, 0.05): "|",
    (-0.7, -0.1, 0.6): r"+ \times \div \pm \neq \leq \geq < > \in \notin",
    (-0.55, -0.25, 0.6): r"=",
    (-0.42, -0.36, 0.6): r"- \frac",
    (-0.55, -0.2, 0.8): r"\rightarrow \infty",
    (-0.05, 0.02, 0.05): r". \ldots.",
    (-0.42, -0.36, 0.05): r"\cdot \cdots.",
    (-0.05, 0.03, 0.8): r"\ldots",
    (-0.42, -0.34, 0.8): r"\cdots",
    (-0.1, 0.25, 0.15): ",",
    (-0.75, 0.0, 0.9): r"\cos",
    (-1.0, 0.0, 1.1): r"\sin \tan \lim",
    (-1.0, 0.4, 1.1): r"\log",
    (-1.2, 0.25, 0.9): r"\sum",
    (-1.5, 0.5, 0.6): r"\int",
    (-1.1, -0.75, 0.15): r"\prime",
    (-1.2, 0.2, 1.2): r"\sqrt",
}
TYPICAL_BOXES = {token: box for box, tokens in _BOXES.items() for token in tokens.split()}

# Distances in units of the line: 5th percentile, median, 95th percentile, rounded from CROHME's training formulas.
DISTANCES: dict[str, tuple[float, float, float]] = {
    "gap": (0.0, 0.25, 0.6),
    "gap.operator": (0.1, 0.42, 0.95),
    "gap.relation": (0.15, 0.53, 1.5),
    "sup.size": (0.35, 0.55, 0.8),
    "sub.size": (0.35, 0.5, 0.85),
    "sup.gap": (-0.1, 0.15, 0.5),
    "sub.gap": (-0.2, 0.15, 0.45),
    "sup.edge.low": (-0.3, -0.05, 0.25),  # from the top of the base to the bottom of the script
    "sup.edge.high": (-0.15, 0.2, 0.6),
    "sub.edge.low": (-0.55, -0.2, 0.0),  # from the bottom of the base to the top of the script
    "sub.edge.high": (-0.9, -0.5, -0.05),
    "over.size": (0.35, 0.6, 0.9),
    "under.size": (0.35, 0.55, 0.85),
    "over.gap": (-0.1, 0.2, 0.45),
    "under.gap": (0.0, 0.2, 0.55),
    "over.shift": (-0.3, 0.1, 0.8),
    "under.shift": (-0.3, 0.05, 0.6),
    "fraction.top.size": (0.5, 0.75, 1.1),
    "fraction.bottom.size": (0.5, 0.75, 1.0),
    "fraction.top.gap": (0.0, 0.2, 0.55),
    "fraction.bottom.gap": (0.05, 0.25, 0.6),
    "fraction.top.shift": (-0.5, -0.05, 0.25),
    "fraction.bottom.shift": (-0.4, 0.0, 0.4),
    "fraction.over": (-0.3, 0.3, 1.2),
    "fraction.axis": (-0.65, -0.35, 0.0),
    "root.size": (0.65, 0.9, 1.2),
    "root.rise": (-0.2, 0.05, 0.4),
    "root.lead": (0.5, 0.9, 1.6),
    "root.clear": (0.2, 0.45, 0.85),
    "root.foot": (-0.45, 0.05, 0.4),
    "root.tail": (-0.3, 0.3, 1.2),
    "index.size": (0.35, 0.55, 0.8),
    "index.height": (0.1, 0.3, 0.5),  # of the index's centre below the top of the root, as share of the root's height
    "index.inset": (0.1, 0.5, 1.0),  # of the index's right edge behind the left edge of the root
    "fence.top": (-0.2, 0.0, 0.2),  # of a fence beside tall content, as share of that content's height
    "fence.foot": (-0.25, 0.0, 0.25),
}


@dataclass(frozen=True, slots=True)
class Glyph:
    """One symbol's ink: `strokes`, arrays `(points, 2)`, x from 0 to `width`, y from `top` to `bottom`, baseline 0."""

    width: float
    top: float
    bottom: float
    strokes: tuple[np.ndarray, ...] = ()


class Pen(Protocol):
    """Whose hand writes: glyphs and distances, both random, both of one writer within a formula."""

    def glyph(self, token: str) -> Glyph:
        """Ink of `token` in line units; `SynthesisError` where there is none."""

    def fitted(self, token: str, width: float, height: float, lead: float = 0.0) -> Glyph:
        """Ink of a stretched token (bar, root, tall fence) for a box of this size, from the box's top left corner.
        The box need not be filled where that would distort the ink beyond what hands do. `lead` is the room for the
        hook of a root, to the left of what stands under its bar."""

    def distance(self, name: str) -> float:
        """One of `DISTANCES`, or `gap.<kind>.<kind>`, in units of the line."""


@dataclass(slots=True)
class Leaf:
    """A symbol that has its place: its glyph's strokes times `scale`, plus `(x, y)`."""

    token: str
    label: str
    glyph: Glyph
    x: float
    y: float
    scale: float
    line: int
    index: int

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        glyph, scale = self.glyph, self.scale
        return self.x, self.y + glyph.top * scale, self.x + glyph.width * scale, self.y + glyph.bottom * scale


class Block:
    """Leaves that move together, and the box around their ink (`left`, `top`, `right`, `bottom`)."""

    __slots__ = ("leaves", "left", "top", "right", "bottom", "kinds")

    def __init__(self, leaves: list[Leaf], box: tuple[float, float, float, float], kinds: tuple[str, str]):
        self.leaves, self.kinds = leaves, kinds
        self.left, self.top, self.right, self.bottom = box

    def move(self, dx: float, dy: float) -> Block:
        """Shift everything; returns itself."""
        for leaf in self.leaves:
            leaf.x += dx
            leaf.y += dy
        self.left, self.top, self.right, self.bottom = self.left + dx, self.top + dy, self.right + dx, self.bottom + dy
        return self

    def add(self, other: Block) -> None:
        """Take in another block."""
        self.leaves = self.leaves + other.leaves
        self.left, self.top = min(self.left, other.left), min(self.top, other.top)
        self.right, self.bottom = max(self.right, other.right), max(self.bottom, other.bottom)


@dataclass(slots=True)
class Part:
    """What stood in which relation to what, for measuring: leaves of the owner and of the part, and their lines."""

    kind: str
    owner: list[Leaf]
    part: list[Leaf]
    line: int
    part_line: int


def reach_of(kind: str, top: float, bottom: float) -> str:
    """Whether a base from `top` to `bottom` (line units) reaches above or below the small letters, as "high" or "low",
    which is what the place of its superscript or subscript depends on."""
    return "high" if (-top > 0.8 if kind == "sup" else bottom > 0.2) else "low"


@dataclass
class FormulaLayout:
    """Lay out formulas with `pen`.

    Attributes:
        parts: relations met, in order.
        units: unit of every line, by its number; the main line is 0 with unit 1.
    """

    pen: Pen
    parts: list[Part] = field(default_factory=list)
    units: list[float] = field(default_factory=list)
    leaves: int = 0

    def __call__(self, formula: Sequence[Symbol]) -> Block:
        """All symbols of the formula, main baseline at y = 0, digits of the main line one unit high.

        Raises:
            SynthesisError: a construct that cannot be laid out, or no ink for a symbol.
        """
        self.parts, self.units, self.leaves = [], [], 0
        if not formula:
            raise SynthesisError("an empty formula cannot be written; give it at least one symbol.")
        return self._line(formula, 1.0)

    # -------------------------------------------------------------------------------------------- lines

    def _line(self, symbols: Sequence[Symbol], unit: float) -> Block:
        number = len(self.units)
        self.units.append(unit)
        blocks: list[Block | None] = [
            None if symbol.label in FENCES or symbol.label in _CLOSING else self._symbol(symbol, unit, number)
            for symbol in symbols
        ]
        self._fences(symbols, blocks, unit, number)
        line = blocks[0]
        for block in blocks[1:]:
            last, first = line.kinds[1], block.kinds[0]
            gap = max(self.pen.distance(f"gap.{last}.{first}"), -0.25) * unit
            self.parts.append(Part(f"gap.{last}.{first}", line.leaves, block.leaves, number, number))
            block.move(line.right + gap - block.left, 0.0)
            line.add(block)
            line.kinds = line.kinds[0], block.kinds[1]
        return line

    def _fences(self, symbols: Sequence[Symbol], blocks: list[Block | None], unit: float, number: int) -> None:
        """Fences grow with what stands between them; inner pairs first."""
        waiting: list[int] = []
        partner: dict[int, int] = {}
        order = []
        for place, symbol in enumerate(symbols):
            if blocks[place] is not None:
                continue
            if waiting and FENCES.get(symbols[waiting[-1]].label) == symbol.label:
                partner[place] = waiting.pop()
                order.append(place)
            elif symbol.label in FENCES:
                waiting.append(place)
            else:
                order.append(place)
        for place in order:
            pair = [place]
            content = []
            if place in partner:
                pair = [partner[place], place]
                content = [block for block in blocks[pair[0] + 1 : place] if block is not None]
            for which in pair:
                kind = "open" if which != place else "close"
                blocks[which] = self._fence(symbols[which], content, unit, number, kind)
        for place in waiting:
            if blocks[place] is None:
                blocks[place] = self._fence(symbols[place], [], unit, number, "open")

    def _fence(self, symbol: Symbol, content: list[Block], unit: float, number: int, kind: str) -> Block:
        glyph = self.pen.glyph(symbol.label)
        leaf = self._leaf(symbol.label, glyph, unit, number)
        if content:
            top, bottom = min(block.top for block in content), max(block.bottom for block in content)
            tall = bottom - top
            inner = [other for block in content for other in block.leaves]
            self.parts.append(Part("fence", inner, [leaf], number, number))
            if tall > 1.6 * unit and tall > 1.2 * (glyph.bottom - glyph.top) * unit:
                top += self.pen.distance("fence.top") * tall
                bottom += self.pen.distance("fence.foot") * tall
                leaf.glyph = self.pen.fitted(symbol.label, glyph.width * unit * (bottom - top) ** 0.3, bottom - top)
                leaf.y, leaf.scale = top, 1.0
        return self._scripted(symbol, Block([leaf], leaf.box, (kind, kind)), symbol.branches, unit, number)

    def _leaf(self, token: str, glyph: Glyph, scale: float, number: int, x: float = 0.0, y: float = 0.0) -> Leaf:
        self.leaves += 1
        return Leaf(token, LABELS.get(token, token), glyph, x, y, scale, number, self.leaves - 1)

    # ------------------------------------------------------------------------------------------ symbols

    def _symbol(self, symbol: Symbol, unit: float, number: int) -> Block:
        label, branches = symbol.label, symbol.branches
        if label == r"\frac":
            block, branches = self._fraction(branches[0][1], branches[1][1], unit, number), branches[2:]
        elif label == r"\sqrt":
            index, branches = (branches[0][1], branches[1:]) if branches[0][0] == "Above" else ([], branches)
            block, branches = self._root(branches[0][1], index, unit, number), branches[1:]
        elif label == "" or label.startswith(r"\begin") or any(name == "Inside" for name, _ in branches):
            raise SynthesisError(f"{label or 'a script without a base'!r} cannot be laid out by hand; leave it out.")
        elif label == r"\cdots" and getattr(self.pen, "three_dots", False):
            block = self._dots(unit, number)
        else:
            leaf = self._leaf(label, self.pen.glyph(label), unit, number)
            kind = KIND.get(label, "letter")
            block = Block([leaf], leaf.box, (kind, kind))
        return self._scripted(symbol, block, branches, unit, number)

    def _dots(self, unit: float, number: int) -> Block:
        """Three dots that are segmented one by one, as in half of CROHME."""
        block = None
        for _ in range(3):
            leaf = self._leaf(r"\cdots.", self.pen.glyph(r"\cdot"), unit, number)
            dot = Block([leaf], leaf.box, ("letter", "letter"))
            if block is None:
                block = dot
            else:
                block.add(dot.move(block.right + 0.8 * self.pen.distance("gap") * unit + 0.1 * unit - dot.left, 0.0))
        return block

    def _part(self, kind: str, owner: Block, symbols: Sequence[Symbol], unit: float, number: int) -> Block:
        """A line of a size of its own that belongs to `owner`."""
        part_line = len(self.units)
        # Smaller than this nobody writes: what is nested deeply stays as large as its surroundings.
        block = self._line(symbols, max(unit * self.pen.distance(f"{kind}.size"), min(0.42, 0.9 * unit)))
        self.parts.append(Part(kind, owner.leaves, block.leaves, number, part_line))
        return block

    def _scripted(self, symbol: Symbol, base: Block, branches: list, unit: float, number: int) -> Block:
        """Put scripts beside or over and under their base."""
        left, top, right, bottom = base.left, base.top, base.right, base.bottom
        owner = Block(base.leaves, (left, top, right, bottom), base.kinds)
        draw = self.pen.distance
        beside: dict[str, Block] = {}
        for relation, line in branches:
            if not line:
                raise SynthesisError(f"an empty script of {symbol.label!r} cannot be written; leave it out.")
            if relation in ("Above", "Below"):
                kind = "over" if relation == "Above" else "under"
                block = self._part(kind, owner, line, unit, number)
                centre = (left + right - block.left - block.right) / 2 + draw(f"{kind}.shift") * unit
                gap = draw(f"{kind}.gap") * unit
                block.move(centre, top - gap - block.bottom if kind == "over" else bottom + gap - block.top)
            else:
                kind = "sup" if relation == "Sup" else "sub"
                block = self._part(kind, owner, line, unit, number)
                edge = draw(f"{kind}.edge.{reach_of(kind, top / unit, bottom / unit)}") * unit
                # Scripts that a reader could take for neighbours on the line, or for accents, are moved out.
                if kind == "sup":
                    dy = min(
                        top + edge - block.bottom, (top + bottom) / 2 - block.bottom, top - 0.12 * unit - block.top
                    )
                else:
                    foot = min(bottom, max(0.05 * unit, bottom - 0.4 * unit))
                    dy = max(
                        bottom + edge - block.top, (top + bottom) / 2 - block.top, foot + 0.15 * unit - block.bottom
                    )
                gap = max(draw(f"{kind}.gap"), -0.1 if kind == "sup" else -0.3)
                block.move(right + gap * unit - block.left, dy)
                beside[kind] = block
            base.add(block)
        if len(beside) == 2:
            overlap = beside["sup"].bottom + 0.08 * unit - beside["sub"].top
            if overlap > 0:
                beside["sup"].move(0.0, -overlap / 2)
                beside["sub"].move(0.0, overlap / 2)
                base.top, base.bottom = min(base.top, beside["sup"].top), max(base.bottom, beside["sub"].bottom)
        return base

    def _fraction(self, above: list[Symbol], below: list[Symbol], unit: float, number: int) -> Block:
        if not above or not below:
            raise SynthesisError("a fraction with an empty part cannot be written; fill both.")
        draw = self.pen.distance
        bar = self._leaf(r"\frac", Glyph(1.0, 0.0, 0.0), 1.0, number)
        owner = Block([bar], (0.0, 0.0, 0.0, 0.0), ("fraction", "fraction"))
        top = self._part("fraction.top", owner, above, unit, number)
        bottom = self._part("fraction.bottom", owner, below, unit, number)
        widest = max(top.right - top.left, bottom.right - bottom.left)
        length = max(widest + draw("fraction.over") * unit, 0.85 * widest, 0.6 * unit)
        bar.glyph = self.pen.fitted(r"\frac", length, 0.0)
        axis = draw("fraction.axis") * unit
        bar.y = axis
        block = Block([bar], bar.box, ("fraction", "fraction"))
        centre = (block.left + block.right) / 2
        for part, kind in ((top, "fraction.top"), (bottom, "fraction.bottom")):
            room = max(0.0, length - (part.right - part.left))
            shift = float(np.clip(draw(f"{kind}.shift") * unit, -room / 2 - 0.2 * unit, room / 2 + 0.2 * unit))
            gap = draw(f"{kind}.gap") * unit
            dy = block.top - gap - part.bottom if part is top else block.bottom + gap - part.top
            part.move(centre + shift - (part.left + part.right) / 2, dy)
        self.parts.append(Part("fraction.over", owner.leaves, top.leaves + bottom.leaves, number, number))
        block.add(top)
        block.add(bottom)
        return block

    def _root(self, inside: list[Symbol], index: list[Symbol], unit: float, number: int) -> Block:
        if not inside:
            raise SynthesisError("a root of nothing cannot be written; fill it.")
        draw = self.pen.distance
        sign = self._leaf(r"\sqrt", Glyph(1.0, 0.0, 0.0), 1.0, number)
        owner = Block([sign], (0.0, 0.0, 0.0, 0.0), ("root", "root"))
        content = self._part("root", owner, inside, unit, number)
        content.move(0.0, draw("root.rise") * unit)
        lead, tail = draw("root.lead") * unit, draw("root.tail") * unit
        top = content.top - draw("root.clear") * unit
        bottom = max(content.bottom + draw("root.foot") * unit, top + 0.8 * unit)
        width = lead + content.right - content.left + max(tail, -0.15 * (content.right - content.left))
        sign.glyph = self.pen.fitted(r"\sqrt", width, bottom - top, lead)
        sign.y = top
        content.move(lead - content.left, 0.0)
        block = Block([sign], sign.box, ("root", "root"))
        if index:
            small = self._part("index", owner, index, unit, number)
            middle = block.top + draw("index.height") * (block.bottom - block.top)
            inset = draw("index.inset") * unit
            small.move(block.left + inset - small.right, middle - (small.top + small.bottom) / 2)
            block.add(small)
        block.add(content)
        return block


# What the segmentation of CROHME calls the ink of a token.
LABELS = {
    r"\frac": "-", "<": r"\lt", ">": r"\gt", r"\cdot": ".", r"\cdots.": ".", r"\cdots": r"\ldots"
}  # fmt: skip
