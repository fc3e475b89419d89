"""Labels of formulas: a corpus that is varied, or a grammar.

Both are called with a random generator and give a formula as a line of `epigraph.data.latex.Symbol`s.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from ..latex import LatexError, Symbol, normalise, parse, write
from .fonts import SynthesisError
from .formula_layout import FENCES, KIND

# Tokens that may stand for each other without making nonsense of a formula.
CLASSES = {
    "lower": "a b c e f g h i j k l m n o p q r s t u v w x y z",  # d is the differential's
    "upper": "A B C E F G H I L M N P R S T V X Y",
    "greek": r"\alpha \beta \gamma \theta \phi \lambda \mu \sigma",
    "digit": "0 1 2 3 4 5 6 7 8 9",
    "relation": r"= < > \leq \geq \neq",
    "operator": r"+ - \times \div \pm \cdot",
    "function": r"\sin \cos \tan",
}
_CLASS = {token: name for name, tokens in CLASSES.items() for token in tokens.split()}
_NAMED = {name for name in CLASSES if name in ("lower", "upper", "greek")}  # one letter stays one letter throughout
# How often tokens occur where no corpus says so: rounded counts in thousand tokens of CROHME's training captions.
_COUNTS = {
    "x": 50, "y": 18, "a": 25, "b": 16, "n": 22, "z": 11, "i": 10, "c": 9, "t": 7, "f": 7, "k": 6, "p": 6, "r": 5,
    "m": 5, "e": 5, "u": 3, "g": 3, "q": 3, "j": 3, "v": 3, "h": 3, "s": 2, "1": 62, "2": 62, "3": 25, "0": 18,
    "4": 16, "5": 10, "6": 8, "7": 7, "8": 7, "9": 7, "+": 54, "-": 43, r"\times": 6, r"\div": 2, r"\pm": 2,
    r"\cdot": 2, "=": 36, r"\leq": 2, r"\geq": 2, r"\sin": 8, r"\cos": 6, r"\tan": 3, r"\theta": 5, r"\alpha": 4,
    r"\beta": 3, "A": 3, "B": 2, "C": 3, "X": 3, "R": 2,
}  # fmt: skip
MAX_CAPTIONS = 1_000_000
MAX_CAPTION_BYTES = 64 * 2**20


class TokenWeights:
    """How often the tokens of a class are drawn.

    Args:
        counts: of tokens in a corpus.
        known: tokens that may be drawn.
        rare: 0 draws as often as in the corpus, 1 all tokens of a class alike.
    """

    def __init__(self, counts: dict[str, int], known: Iterable[str], rare: float):
        known = set(known)
        self.tables: dict[str, tuple[list[str], np.ndarray]] = {}
        for name, tokens in CLASSES.items():
            kept = [token for token in tokens.split() if token in known]
            if kept:
                weights = np.array([counts.get(token, 0) + 0.5 for token in kept]) ** (1.0 - rare)
                self.tables[name] = kept, np.cumsum(weights / weights.sum())

    def draw(self, name: str, rng: np.random.Generator) -> str | None:
        """A token of a class; None where no token of it is known."""
        if name not in self.tables:
            return None
        tokens, limits = self.tables[name]
        return tokens[min(int(np.searchsorted(limits, rng.random())), len(tokens) - 1)]


# ------------------------------------------------------------------------------------------------------ corpus


class FormulaCorpus:
    """New formulas out of given ones: letters and digits exchanged, parts taken over from other formulas.

    Every local neighbourhood is one of a real formula, so that what a decoder learns of the language stays true.

    Args:
        captions: LaTeX or space-separated tokens; what is not well-formed, or holds other tokens, is left out.
        known: tokens that may be written.
        max_length: most tokens of a formula.
        rare: how much rare tokens are favoured, 0 (as in the corpus) to 1.
        exchange: chance of a formula to have its letters exchanged, of a digit, operator ... to be.
        recombine: chance of every part (numerator, script, radicand, fenced part, side of an equation) to come from
            another formula.

    Raises:
        ValueError: no usable caption.
    """

    def __init__(
        self,
        captions: Iterable[str],
        known: Iterable[str],
        max_length: int = 45,
        rare: float = 0.3,
        exchange: float = 0.5,
        recombine: float = 0.25,
    ):
        known = set(known) | {"{", "}", "^", "_", r"\limits"}
        self.exchange, self.recombine, self.max_length = exchange, recombine, max_length
        self.formulas: list[list[Symbol]] = []
        counts: Counter[str] = Counter()
        tokens_of = []
        times = []
        for number, (caption, count) in enumerate(Counter(captions).items()):
            if number >= MAX_CAPTIONS:
                break
            try:
                tokens = normalise(caption, known).tokens
            except LatexError:
                continue
            if tokens and len(tokens) <= max_length and known.issuperset(tokens):
                self.formulas.append(parse(tokens))
                tokens_of.append(set(tokens))
                times.append(count)
                counts.update({token: count * among for token, among in Counter(tokens).items()})
        if not self.formulas:
            raise ValueError("the corpus has no formula that is well-formed, short enough and writable with this ink.")
        self.weights = TokenWeights(counts, known, rare)
        rarest = np.array([min(counts[token] for token in tokens) for tokens in tokens_of], float)
        chances = np.array(times) ** (1.0 - rare) * (1000.0 / np.minimum(rarest, 1000.0)) ** rare
        self.limits = np.cumsum(chances / chances.sum())
        self.parts: dict[tuple[str, str], list[list[Symbol]]] = defaultdict(list)
        for formula in self.formulas:
            for key, line in _parts(formula):
                self.parts[key].append(line)

    def __call__(self, rng: np.random.Generator) -> list[Symbol]:
        """A formula as a line of symbols, of at most `max_length` tokens."""
        source = self.formulas[min(int(np.searchsorted(self.limits, rng.random())), len(self.formulas) - 1)]
        for share in (self.recombine, self.recombine / 2, 0.0):
            formula = self._recombined(source, share, rng) if share else source
            if len(write(formula)) <= self.max_length:
                break
        return self._exchanged(formula, rng)

    def _recombined(
        self, line: list[Symbol], share: float, rng: np.random.Generator, top: bool = True
    ) -> list[Symbol]:
        """A copy in which parts come from other formulas."""
        spans = {}
        for key, first, last in _spans(line, top):
            if rng.random() < share and not any(first < stop and start < last for start, stop in spans):
                spans[first, last] = self._other(key, line[first:last], rng)
        result, place = [], 0
        for (first, last), other in sorted(spans.items()):
            result += [self._branched(symbol, share, rng) for symbol in line[place:first]] + other
            place = last
        return result + [self._branched(symbol, share, rng) for symbol in line[place:]]

    def _branched(self, symbol: Symbol, share: float, rng: np.random.Generator) -> Symbol:
        branches = []
        for relation, line in symbol.branches:
            if rng.random() < share:
                line = self._other((_owner(symbol), relation), line, rng)
            elif line:
                line = self._recombined(line, share, rng, top=False)
            branches.append((relation, line))
        return Symbol(symbol.label, branches)

    def _other(self, key: tuple[str, str], line: list[Symbol], rng: np.random.Generator) -> list[Symbol]:
        others = self.parts.get(key)
        return others[rng.integers(len(others))] if others else line

    def _exchanged(self, line: list[Symbol], rng: np.random.Generator) -> list[Symbol]:
        """A copy with tokens exchanged within their classes; a letter becomes the same letter everywhere."""
        renamed: dict[str, str] = {}
        rename, taken = rng.random() < self.exchange, set()
        single = self.exchange * rng.random()

        def exchanged(line: list[Symbol]) -> list[Symbol]:
            result = []
            for symbol in line:
                label = symbol.label
                name = _CLASS.get(label)
                if name in _NAMED and rename:
                    if label not in renamed:
                        drawn = (self.weights.draw(name, rng) for _ in range(8))
                        renamed[label] = next((new for new in drawn if new and new not in taken), label)
                        taken.add(renamed[label])
                    label = renamed[label]
                elif name is not None and name not in _NAMED and rng.random() < single:
                    label = self.weights.draw(name, rng) or label
                result.append(Symbol(label, [(relation, exchanged(part)) for relation, part in symbol.branches]))
            return result

        return exchanged(line)


def _owner(symbol: Symbol) -> str:
    """What sort of symbol a part belongs to: operators and functions each their own, letters and digits by kind."""
    kind = KIND.get(symbol.label, "letter")
    return symbol.label if kind in ("big", "function", "fraction", "root") else kind


def _spans(line: Sequence[Symbol], top: bool) -> list[tuple[tuple[str, str], int, int]]:
    """Exchangeable stretches of a line: what stands between fences, and the sides of its relations."""
    spans, open_at = [], []
    for place, symbol in enumerate(line):
        if open_at and FENCES[line[open_at[-1]].label] == symbol.label:
            first = open_at.pop()
            if place - first > 1:
                spans.append(((line[first].label, "fenced"), first + 1, place))
        elif symbol.label in FENCES:
            open_at.append(place)
    relations = [place for place, symbol in enumerate(line) if KIND.get(symbol.label) == "relation"]
    if top and relations and relations[0] > 0 and not open_at:
        inside = any(first <= relations[0] < last for _, first, last in spans)
        if not inside:
            spans.append((("side", "left"), 0, relations[0]))
            if relations[-1] + 1 < len(line):
                spans.append((("side", "right"), relations[-1] + 1, len(line)))
    return spans


def _parts(line: Sequence[Symbol], top: bool = True) -> Iterable[tuple[tuple[str, str], list[Symbol]]]:
    for key, first, last in _spans(line, top):
        yield key, list(line[first:last])
    for symbol in line:
        for relation, part in symbol.branches:
            if part:
                yield (_owner(symbol), relation), part
                yield from _parts(part, top=False)


def read_captions(path: str | Path, split: str | None = "train") -> list[str]:
    """Formulas for `FormulaCorpus`, from a text file or from a data set.

    Args:
        path: a file ending in txt or tex with a formula on each line, after the last tab where there are some (as in
            CROHME's `caption.txt`); or anything that `epigraph.data.readers.load_formulas` takes. Variables expand.
        split: of a data set.

    Raises:
        ValueError: the text is over 64 MB, not UTF-8 or without a line; or as `load_formulas`.
        OSError: it cannot be read.
    """
    from ..readers import expand_path, load_formulas

    file = expand_path(path)
    if file.suffix.lower() not in (".txt", ".tex"):
        return load_formulas(file, split)["text"][:]
    if file.stat().st_size > MAX_CAPTION_BYTES:
        raise ValueError(f"{path}: formulas of over 64 MB; give a part of them.")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8; convert it, one formula on each line.") from None
    captions = [line.rpartition("\t")[2].strip() for line in lines]
    if not any(captions):
        raise ValueError(f"{path}: no formula; give one on each line.")
    return [caption for caption in captions if caption]


# ----------------------------------------------------------------------------------------------------- grammar


class FormulaGrammar:
    r"""Random formulas without a corpus, over the tokens that may be written.

    Polynomials, fractions, roots, sums, integrals, limits, functions, sequences, sets and quantified statements in
    about the shares of school and first-year mathematics; what needs an unknown token is not drawn.

    Args:
        known: tokens that may be written.
        max_length: most tokens of a formula.
        rare: how much rare tokens are favoured, 0 to 1; also the share of formulas with a quantifier or a set.
    """

    def __init__(self, known: Iterable[str], max_length: int = 45, rare: float = 0.3):
        self.known, self.max_length, self.rare = set(known), max_length, rare
        self.weights = TokenWeights(_COUNTS, self.known, rare)
        self._shares: dict[str, tuple[list[Callable], np.ndarray]] = {}

    def __call__(self, rng: np.random.Generator) -> list[Symbol]:
        """A formula as a line of symbols.

        Raises:
            SynthesisError: no formula of the grammar can be written with the known tokens within the length.
        """
        for attempt in range(40):
            # Where little fits, formulas become plainer.
            tokens = self._formula(rng, depth=3 if attempt < 10 else 1).split()
            if 0 < len(tokens) <= self.max_length and self.known.issuperset(set(tokens) - {"{", "}", "^", "_"}):
                return parse(tokens)
        raise SynthesisError(f"no formula fits {self.max_length} tokens of these {len(self.known)}; allow more.")

    def _formula(self, rng: np.random.Generator, depth: int) -> str:
        kind = rng.choice(6, p=as_shares([4, 5, 0.4, 1, 2 * self.rare, 0.6]))
        if kind == 0:
            return self._sum(rng, depth)
        if kind == 1:
            right = self._sum(rng, depth - 1) if rng.random() < 0.8 else self._number(rng)
            return f"{self._sum(rng, depth)} {self._one('relation', rng)} {right}"
        if kind == 2:
            return self._sequence(rng)
        if kind == 3:
            return f"{self._letter(rng)} ( {self._letter(rng)} ) = {self._sum(rng, depth)}"
        if kind == 4:
            return self._quantified(rng)
        return self._number(rng, longest=5)

    def _quantified(self, rng: np.random.Generator) -> str:
        x, upper = self._letter(rng), self._one("upper", rng)
        return rng.choice([
            rf"\forall {x} \in {upper}",
            rf"\exists {x} \in {upper}",
            rf"{x} \in {upper}",
            rf"\forall {x} \exists {self._letter(rng)}",
            rf"\forall {x} \in {upper} , {self._sum(rng, 1)} {self._one('relation', rng)} {self._number(rng)}",
            rf"\exists {x} , {self._sum(rng, 1)} {self._one('relation', rng)} {self._atom(rng)}",
            rf"{x} \in \{{ {self._number(rng)} , {self._number(rng)} , \ldots , {self._letter(rng)} \}}",
            rf"{upper} = \{{ {x} | {self._sum(rng, 1)} > {self._number(rng)} \}}",
        ])  # fmt: skip

    def _sequence(self, rng: np.random.Generator) -> str:
        x, last = self._letter(rng), self._letter(rng)
        mark = rng.choice(["_", "^"])
        joint, dots = (", ", r"\ldots") if rng.random() < 0.5 else ("+ ", r"\cdots")
        return f"{x} {mark} {{ 1 }} {joint}{x} {mark} {{ 2 }} {joint}{dots} {joint}{x} {mark} {{ {last} }}"

    def _sum(self, rng: np.random.Generator, depth: int) -> str:
        terms = 1 + int(rng.choice(4, p=[0.3, 0.42, 0.2, 0.08]))
        text = "- " if rng.random() < 0.08 else ""
        text += self._term(rng, depth)
        for _ in range(terms - 1):
            text += f" {self._one('operator', rng)} {self._term(rng, depth)}"
        return text

    def _term(self, rng: np.random.Generator, depth: int) -> str:
        if depth <= 0:
            return self._scripted(rng)
        kind = rng.choice(9, p=as_shares([4.5, 2.2, 1.0, 1.0, 0.7, 0.6, 0.35, 0.8, 0.4]))
        inner = depth - 1
        if kind == 0:
            return " ".join(self._scripted(rng) for _ in range(1 + int(rng.random() < 0.35)))
        if kind == 1:
            return rf"\frac {{ {self._short(rng, inner)} }} {{ {self._short(rng, inner)} }}"
        if kind == 2:
            index = rf"[ {rng.choice(['3', '3', '4', '5', 'n'])} ] " if rng.random() < 0.15 else ""
            return rf"\sqrt {index}{{ {self._short(rng, inner)} }}"
        if kind == 3:
            power = rng.choice(["", "", "^ { 2 } ", "^ { 3 } "])
            argument = rng.choice([self._atom(rng), f"( {self._short(rng, inner)} )"])
            return f"{self._one('function', rng)} {power}{argument}"
        if kind == 4:
            name = self._letter(rng)
            return (
                rf"\sum _ {{ {name} = {rng.choice(['0', '1'])} }} ^ {{ {self._bound(rng)} }} {self._term(rng, inner)}"
            )
        if kind == 5:
            bounds = "" if rng.random() < 0.4 else f"_ {{ {self._bound(rng)} }} ^ {{ {self._bound(rng)} }} "
            return rf"\int {bounds}{self._term(rng, inner)} d {self._letter(rng)}"
        if kind == 6:
            name = self._letter(rng)
            return rf"\lim _ {{ {name} \rightarrow {self._bound(rng)} }} {self._term(rng, inner)}"
        if kind == 7:
            left, right = [("(", ")"), ("[", "]"), ("|", "|")][rng.choice(3, p=[0.8, 0.1, 0.1])]
            power = f" ^ {{ {self._short(rng, 0)} }}" if rng.random() < 0.4 else ""
            return f"{left} {self._sum(rng, inner)} {right}{power}"
        base = f" _ {{ {self._atom(rng)} }}" if rng.random() < 0.5 else ""
        return rf"\log{base} {self._atom(rng)}"

    def _short(self, rng: np.random.Generator, depth: int) -> str:
        return self._term(rng, depth) if rng.random() < 0.6 else self._sum(rng, depth)

    def _scripted(self, rng: np.random.Generator) -> str:
        atom = self._atom(rng)
        which = rng.choice(4, p=[0.55, 0.27, 0.13, 0.05])
        script = self._atom(rng) if rng.random() < 0.8 else f"{self._atom(rng)} {rng.choice(['+', '-'])} 1"
        if which == 0:
            return atom
        if which == 1 or atom[0].isdigit():
            return f"{atom} ^ {{ {script} }}"
        if which == 2:
            return f"{atom} _ {{ {script} }}"
        return f"{atom} _ {{ {script} }} ^ {{ {self._atom(rng)} }}"

    def _atom(self, rng: np.random.Generator) -> str:
        return self._number(rng) if rng.random() < 0.4 else self._letter(rng)

    def _bound(self, rng: np.random.Generator) -> str:
        return rng.choice([self._letter(rng), self._number(rng), r"\infty", r"\pi"], p=[0.4, 0.25, 0.3, 0.05])

    def _letter(self, rng: np.random.Generator) -> str:
        return self._one(rng.choice(["lower", "upper", "greek"], p=[0.78, 0.1, 0.12]), rng)

    def _number(self, rng: np.random.Generator, longest: int = 3) -> str:
        length = 1 + min(int(rng.geometric(0.72)) - 1, longest - 1)
        digits = [self._one("digit", rng) for _ in range(length)]
        if length > 2 and rng.random() < 0.3:
            digits[1] = "."
        return " ".join(digits)

    def _one(self, name: str, rng: np.random.Generator) -> str:
        """A token of a class; where none is known, one that makes the formula be drawn anew."""
        return self.weights.draw(name, rng) or r"\unknown"


def as_shares(weights: Sequence[float]) -> np.ndarray:
    """The weights, scaled to the sum 1."""
    return np.array(weights) / sum(weights)
