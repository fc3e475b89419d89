r"""Handwritten formulas as ink: labels from a corpus or a grammar, laid out loosely, written with real symbols.

```python
import numpy as np
from epigraph.data.synthesis.formulas import FormulaGenerator

make = FormulaGenerator.from_ink("crohme_ink.parquet")  # labels and symbols of its training formulas
sample = make(np.random.default_rng(0))
sample.text, sample.strokes, sample.symbols  # "x ^ { 2 }", [array (points, 2), ...], [("x", [0, 1]), ("2", [2])]
```

The output is ink, so that training varies it as it varies what was written by hand (`epigraph.data.ink`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..latex import Symbol, write
from .fonts import Face
from .formula_ink import InkSet
from .formula_labels import FormulaCorpus, FormulaGrammar, as_shares
from .formula_layout import FormulaLayout, Pen


@dataclass
class FormulaSample:
    """One written formula.

    Attributes:
        text: its label in normal form, tokens separated by spaces.
        strokes: arrays `(points, 2)` float32, y down; digits of the main line are about 100 high.
        symbols: `(label, indices of strokes)`, labelled as CROHME's segmentation labels (`-` for a fraction bar).
        writer: whose hand it is, where known.
    """

    text: str
    strokes: list[np.ndarray]
    symbols: list[tuple[str, list[int]]]
    writer: str = ""

    @cached_property
    def id(self) -> str:
        """A name made from the content."""
        digest = hashlib.sha256(self.text.encode())
        for stroke in self.strokes:
            digest.update(stroke.tobytes())
        return f"formula-{digest.hexdigest()[:16]}"

    def row(self) -> dict:
        """The sample as a row of the formula schema (`epigraph.data.readers`), `features` being its columns."""
        return {
            "id": self.id,
            "text": self.text,
            "split": "train",
            "source": "synthetic",
            "writer": self.writer,
            "strokes": [stroke.ravel().tolist() for stroke in self.strokes],
            "symbols": [{"label": label, "strokes": indices} for label, indices in self.symbols],
        }

    @staticmethod
    def features():
        """`datasets.Features` of the rows."""
        import datasets

        text = datasets.Value("string")
        return datasets.Features(
            {
                **dict.fromkeys(("id", "text", "split", "source", "writer"), text),
                "strokes": datasets.List(datasets.List(datasets.Value("float32"))),
                "symbols": datasets.List({"label": text, "strokes": datasets.List(datasets.Value("int64"))}),
            }
        )


def _checked(captions, grammar: float, max_length: int, rare: float) -> None:
    if isinstance(captions, str):
        raise ValueError(
            f"captions are a list of formulas, not the text {captions!r:.60}; a file: read_captions(path)."
        )
    if not (0 <= grammar <= 1 and 0 <= rare <= 1 and max_length >= 1):
        raise ValueError(
            f"grammar {grammar}, rare {rare} and max_length {max_length} cannot be: the first two are shares, 0 to 1, "
            "the last at least 1."
        )


class FormulaGenerator:
    """Draw formulas; the sample is a function of the generator's settings and of `rng`.

    Args:
        hands: makes the pen of one formula, `InkSet.pen` or `FontHands.pen`.
        labels: draws a formula, `FormulaCorpus` or `FormulaGrammar`, or several of them.
        shares: how often each of the labels is drawn; all alike by default.
        rotation: standard deviation of the direction of the line, in degrees.
        slant: standard deviation of the slant, as dx per dy.
    """

    def __init__(
        self,
        hands: Callable[[np.random.Generator], Pen],
        labels: Callable | Sequence[Callable],
        shares: Sequence[float] | None = None,
        rotation: float = 1.0,
        slant: float = 0.05,
    ):
        self.hands, self.labels = hands, list(labels) if isinstance(labels, Sequence) else [labels]
        self.shares = as_shares(shares or [1.0] * len(self.labels))
        self.rotation, self.slant = rotation, slant

    @classmethod
    def from_ink(
        cls,
        path: str | Path,
        split: str | None = "train",
        captions: Iterable[str] | None = None,
        grammar: float = 0.25,
        max_length: int = 45,
        rare: float = 0.3,
    ) -> FormulaGenerator:
        """Labels and symbols from the training formulas of an ink set.

        Args:
            path: of formulas with `symbols`, as `epigraph.data.readers.load_formulas` takes it.
            split: name of the training split.
            captions: labels to vary, by default those of the ink set.
            grammar: share of formulas that come from the grammar, 0..1.
            max_length: most tokens of a formula.
            rare: how much rare tokens are favoured, 0..1.

        Raises:
            ValueError: as `load_formulas`, `InkSet` and `FormulaCorpus`.
        """
        from ..readers import load_formulas

        _checked(captions, grammar, max_length, rare)
        rows = load_formulas(path, split)
        if missing := {"strokes", "symbols"} - set(rows.column_names):
            raise ValueError(f"{path}: no column {' and '.join(sorted(missing))}; an ink set has segmented symbols.")
        wanted = [name for name in ("text", "strokes", "symbols", "writer") if name in rows.column_names]
        ink = InkSet(rows.select_columns(wanted))
        known = ink.tokens
        corpus = FormulaCorpus(rows["text"][:] if captions is None else captions, known, max_length, rare)
        labels = [corpus, FormulaGrammar(known, max_length, rare)]
        return cls(ink.pen, labels, [1.0 - grammar, grammar])

    def features(self):
        """The `datasets.Features` of `FormulaSample.row()`."""
        return FormulaSample.features()

    @classmethod
    def from_fonts(
        cls,
        faces: Sequence[Face] = (),
        captions: Iterable[str] | None = None,
        grammar: float = 0.25,
        max_length: int = 45,
        rare: float = 0.3,
    ) -> FormulaGenerator:
        """Formulas without an ink set, written with the skeletons of fonts.

        Args:
            faces: as `FontHands` takes them, by default Pillow's own font.
            others: as for `from_ink`; without captions all formulas come from the grammar.
        """
        from .formula_fonts import FontHands

        _checked(captions, grammar, max_length, rare)
        hands = FontHands(faces)
        rules = FormulaGrammar(hands.tokens, max_length, rare)
        if captions is None:
            return cls(hands.pen, rules)
        return cls(
            hands.pen, [FormulaCorpus(captions, hands.tokens, max_length, rare), rules], [1.0 - grammar, grammar]
        )

    def __call__(self, rng: np.random.Generator) -> FormulaSample:
        """Draw a formula and write it.

        Raises:
            SynthesisError: this one cannot be written; draw another.
        """
        labels = self.labels[0] if len(self.labels) == 1 else self.labels[rng.choice(len(self.labels), p=self.shares)]
        formula = labels(rng)
        pen = self.hands(rng)
        return self.written(formula, pen, rng)

    def written(self, formula: Sequence[Symbol], pen: Pen, rng: np.random.Generator) -> FormulaSample:
        """Write a given formula with a given pen.

        Raises:
            SynthesisError: it cannot be laid out, or the pen lacks a symbol.
        """
        block = FormulaLayout(pen)(formula)
        angle, slant = np.deg2rad(self.rotation) * rng.standard_normal(), self.slant * rng.standard_normal()
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        matrix = (100.0 * np.array([[1.0, 0.0], [-slant, 1.0]]) @ turn).astype(np.float32)
        strokes: list[np.ndarray] = []
        symbols = []
        origin = np.array([block.left, block.top])
        for leaf in sorted(block.leaves, key=lambda leaf: leaf.index):
            offset = np.array([leaf.x, leaf.y]) - origin
            first = len(strokes)
            for stroke in leaf.glyph.strokes:
                strokes.append(np.round((stroke * leaf.scale + offset).astype(np.float32) @ matrix, 1))
            symbols.append((leaf.label, list(range(first, len(strokes)))))
        return FormulaSample(" ".join(write(list(formula))), strokes, symbols, getattr(pen, "writer", ""))
