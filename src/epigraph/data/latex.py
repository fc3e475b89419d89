"""LaTeX formulas as data: tokens, the normal form of a caption, and the layout graph that the symLG protocol compares.

Three things are called "the same formula" in the field, and each has its function here:

* :func:`tokenize` splits raw LaTeX into TeX tokens;
* :func:`normalise` maps raw LaTeX to the one spelling that captions use: a brace pair around every argument and no
  other, subscript before superscript, no spacing, fonts or delimiter sizes, one name per symbol;
* :func:`layout_graph` builds the symbol layout graph of CROHME's symbolic evaluation (symLG), in which two spellings
  that put the same symbols at the same places are equal.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

MAX_DEPTH = 100  # nesting of groups and arguments; handwritten formulas stay below 15, and the parser recurses

_TOKEN = re.compile(r"\\(?:begin|end)\s*\{[A-Za-z]+\*?\}|\\[A-Za-z]+|\\.|\S", re.DOTALL)
# CROHME's InkML writes "\lt" and "\gt" where "<" and ">" stood, gluing them to the letter that followed
_GLUED_COMPARISON = re.compile(r"(\\[lg]t)([A-Za-z])(?![A-Za-z])")

# Relations of a command's arguments, in the order of its arguments.
_ARGUMENTS = {
    r"\frac": ("Above", "Below"),
    r"\binom": ("Above", "Below"),
    r"\stackrel": ("Above", "Inside"),
    r"\overset": ("Above", "Inside"),
    r"\underset": ("Below", "Inside"),
    r"\sqrt": ("Inside",),
} | dict.fromkeys(
    r"\acute \bar \breve \check \ddot \dot \grave \hat \mathring \overbrace \overleftarrow \overline \overrightarrow "
    r"\tilde \underbrace \underline \vec \widehat \widetilde".split(),
    ("Inside",),
)
_INFIX = {r"\over": r"\frac", r"\choose": r"\binom"}
# Operators whose scripts TeX's display style puts under and over them, with or without \limits
_UNDER_OVER = set(
    r"\sum \prod \coprod \bigcap \bigcup \bigsqcup \bigvee \bigwedge \bigodot \bigotimes \bigoplus \biguplus "
    r"\lim \liminf \limsup \max \min \sup \inf \det \gcd \Pr \injlim \projlim".split()
)
# Operators whose scripts stand beside them unless \limits asks otherwise
_SIDE_SCRIPTS = set(
    r"\int \iint \iiint \oint \arccos \arcsin \arctan \arg \cos \cosh \cot \coth \csc \deg \dim \exp \hom \ker \lg "
    r"\ln \log \sec \sin \sinh \tan \tanh".split()
)
_SCRIPTS = {"_": "Sub", "^": "Sup"}
_LIMITS = {"_": "Below", "^": "Above"}

_SYNONYMS = {
    r"\lt": "<",
    r"\gt": ">",
    r"\to": r"\rightarrow",
    r"\longrightarrow": r"\rightarrow",
    r"\ne": r"\neq",
    r"\le": r"\leq",
    r"\ge": r"\geq",
    r"\dots": r"\ldots",
    r"\dotsc": r"\ldots",
    r"\dotsb": r"\cdots",
    r"\lbrack": "[",
    r"\rbrack": "]",
    r"\lbrace": r"\{",
    r"\rbrace": r"\}",
    r"\vert": "|",
    r"\lvert": "|",
    r"\rvert": "|",
    r"\mid": "|",
    r"\Vert": r"\|",
    r"\colon": ":",
    r"\ast": "*",
    r"\dfrac": r"\frac",
    r"\tfrac": r"\frac",
    r"\cfrac": r"\frac",
    r"\dbinom": r"\binom",
    r"\tbinom": r"\binom",
    "'": r"\prime",
}

_DROPPED = {
    "math delimiter": r"$ \( \) \[ \]",
    "spacing": r"~ \, \: \; \! \> \quad \qquad \hfill \null \thinspace \medspace \thickspace \negthinspace",
    "delimiter size": r"\left \right \middle \big \Big \bigg \Bigg \bigl \bigr \Bigl \Bigr \biggl \biggr \Biggl "
    r"\Biggr \bigm \Bigm",
    "font": r"\rm \it \bf \sf \tt \cal \mit \boldmath \mbox \hbox \text \textrm \textit \textbf \textsf \textnormal "
    r"\mathrm \mathit \mathbf \mathsf \mathtt \mathcal \mathfrak \mathscr \mathbb \mathnormal \boldsymbol \bm "
    r"\operatorname \ensuremath",
    "style": r"\displaystyle \textstyle \scriptstyle \scriptscriptstyle \nolimits \relax \nonumber \notag \hline",
}
_DROP_REASON = {token: reason for reason, tokens in _DROPPED.items() for token in tokens.split()} | {"\\ ": "spacing"}
_NEGATED = {"=": r"\neq", r"\in": r"\notin"}
_DROP_WITH_ARGUMENT = {r"\hspace", r"\vspace", r"\label", r"\tag", r"\phantom", r"\hphantom", r"\vphantom"}


class LatexError(ValueError):
    """The text is not a well-formed formula: TeX would stop at it, or it is nested deeper than ``MAX_DEPTH``."""


def tokenize(text: str) -> list[str]:
    r"""Split raw LaTeX into tokens: one per command, escaped character, ``\begin{...}``, ``\end{...}`` or character.

    White space only separates tokens, so a space-separated caption gives its own tokens back. Nothing is dropped.

    >>> tokenize(r"$x^2 \lt \frac12$")
    ['$', 'x', '^', '2', '\\lt', '\\frac', '1', '2', '$']
    """
    return _TOKEN.findall(_GLUED_COMPARISON.sub(r"\1 \2", text))


# ----------------------------------------------------------------------------------------------------
# Parsing: LaTeX -> lines of symbols, each with branches


@dataclass(slots=True)
class Symbol:
    """A written symbol. ``branches`` are (relation, line) pairs in reading order; a line is a list of symbols."""

    label: str
    branches: list = field(default_factory=list)


def _simplify(tokens: Iterable[str]) -> tuple[list[str], Counter, Counter]:
    """Leave out what puts no ink on the paper and give every symbol one name.

    Returns the tokens that are left, a count of (reason, token) left out and a count of (old name, new name).
    """
    tokens = list(tokens)
    kept, dropped, renamed = [], Counter(), Counter()
    position = 0
    while position < len(tokens):
        token, following = tokens[position], tokens[position + 1 : position + 2]
        position += 1
        if token in _DROP_WITH_ARGUMENT:
            dropped["spacing", token] += 1
            position = _skip_argument(tokens, position)
        elif token in _DROP_REASON:
            dropped[_DROP_REASON[token], token] += 1
            if token in (r"\left", r"\right", r"\middle") and following == ["."]:
                position += 1  # the empty delimiter
        elif token == r"\not" and following and following[0] in _NEGATED:
            kept.append(_NEGATED[following[0]])
            position += 1
        elif token in _SYNONYMS and token != "'":  # whether ' is a superscript or a symbol only the parser can tell
            renamed[token, _SYNONYMS[token]] += 1
            kept.append(_SYNONYMS[token])
        else:
            kept.append(token)
    return kept, dropped, renamed


def _skip_argument(tokens: list[str], position: int) -> int:
    """Position after the token or brace group that starts at ``position``."""
    depth = 0
    while position < len(tokens):
        depth += (tokens[position] == "{") - (tokens[position] == "}")
        position += 1
        if depth <= 0:
            break
    return position


class _Parser:
    """Recursive descent over simplified tokens; ``fault`` is the first thing TeX refuses although it is balanced."""

    def __init__(self, tokens: list[str]):
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.fault: LatexError | None = None

    def parse(self) -> list[Symbol]:
        line = self._line(end=None)
        if self.position < len(self.tokens):
            raise self._error(f"{self._peek()!r} closes nothing")
        return line

    def _error(self, problem: str) -> LatexError:
        excerpt = " ".join(self.tokens[max(0, self.position - 8) : self.position + 8])
        return LatexError(f"not a well-formed formula: {problem}, at token {self.position + 1}, near {excerpt!r}")

    def _peek(self) -> str | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def _enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self._error(f"more than {MAX_DEPTH} levels of nesting")

    def _line(self, end: str | None) -> list[Symbol]:
        """Symbols up to ``end``, which is consumed; without ``end``, up to what closes or separates groups."""
        self._enter()
        line: list[Symbol] = []
        numerator = infix = None
        while (token := self._peek()) is not None and token != end and not _closes(token):
            if token in _INFIX:
                if infix:
                    raise self._error(f"two of {', '.join(_INFIX)} in one group")
                self.position += 1
                infix, numerator, line = token, line, []
            else:
                self._atom(line)
        if end is not None:
            if token != end:
                raise self._error(f"{end!r} is missing")
            self.position += 1
        self.depth -= 1
        return [Symbol(_INFIX[infix], [("Above", numerator), ("Below", line)])] if infix else line

    def _atom(self, line: list[Symbol]) -> None:
        """Append one symbol or group with its scripts; the script of a group belongs to the group's last symbol."""
        nucleus = []
        if self._peek() == "'":  # nothing stands before it, so it is no superscript
            self.position += 1
            nucleus = [Symbol(r"\prime")]
        elif self._peek() not in (*_SCRIPTS, r"\limits"):
            nucleus = self._nucleus()
        line.extend(nucleus)
        if self._peek() in (*_SCRIPTS, r"\limits", "'"):
            if not nucleus:
                line.append(Symbol(""))  # TeX's empty nucleus, as in {}_2 F
            self._scripts(line[-1])
            if not nucleus and not line[-1].branches:
                line.pop()

    def _nucleus(self) -> list[Symbol]:
        """A symbol, a command with its arguments, a table, or a group, whose symbols belong to the line around it."""
        token = self._peek()
        self.position += 1
        if token == "{":
            return self._line(end="}")
        if token == "\\":
            raise self._error("a backslash without a command")
        if token.startswith(r"\begin{"):
            return [self._table(token)]
        symbol = Symbol(token)
        if token == r"\sqrt" and self._peek() == "[":
            self.position += 1
            symbol.branches.append(("Above", self._line(end="]")))
        for relation in _ARGUMENTS.get(token, ()):
            symbol.branches.append((relation, self._argument(token)))
        return [symbol]

    def _argument(self, command: str) -> list[Symbol]:
        token = self._peek()
        if token is None or _closes(token) or token == r"\limits" or token in _SCRIPTS or token in _INFIX:
            raise self._error(f"{command!r} lacks an argument")
        if token == "{":
            return self._nucleus()
        if token == "'":
            self.position += 1
            return [Symbol(r"\prime")]
        self._enter()
        line = self._nucleus()
        self.depth -= 1
        return line

    def _scripts(self, base: Symbol) -> None:
        limits = base.label in _UNDER_OVER
        scripts: dict[str, list[Symbol]] = {}
        closed = set()  # primes join the superscript that follows them; two explicit scripts of a kind are an error
        while (token := self._peek()) in _SCRIPTS or token in (r"\limits", "'"):
            self.position += 1
            if token == r"\limits":
                if scripts or base.label not in _UNDER_OVER | _SIDE_SCRIPTS:
                    self.fault = self.fault or self._error(r"'\\limits' belongs directly after an operator")
                limits = True
                continue
            mark = "^" if token == "'" else token
            if mark in closed:
                self.fault = self.fault or self._error(f"double {'superscript' if mark == '^' else 'subscript'}")
            if token == "'":
                script = [Symbol(r"\prime")]
            else:
                closed.add(token)
                script = self._argument(token)
            scripts.setdefault(mark, []).extend(script)
        relations = _LIMITS if limits else _SCRIPTS
        base.branches.extend((relations[mark], scripts[mark]) for mark in _SCRIPTS if scripts.get(mark))

    def _table(self, begin: str) -> Symbol:
        name = begin[begin.index("{") :]
        end = rf"\end{name}"
        if name.startswith("{array") and self._peek() == "{":  # the column specification
            self.position = _skip_argument(self.tokens, self.position)
        table = Symbol(begin)
        row = column = 0
        while True:
            table.branches.append((f"Cell{row}-{column}", self._line(end=None)))
            separator = self._peek()
            if separator not in ("&", r"\\", end):
                raise self._error(f"{end!r} is missing")
            self.position += 1
            if separator == end:
                return table
            row, column = (row, column + 1) if separator == "&" else (row + 1, 0)


def _closes(token: str) -> bool:
    return token in ("}", "&", r"\\") or token.startswith(r"\end{")


def _parse(tokens: list[str]) -> list[Symbol]:
    parser = _Parser(tokens)
    line = parser.parse()
    if parser.fault:
        raise parser.fault
    return line


def is_valid(tokens: Iterable[str] | str) -> bool:
    r"""Whether braces balance and every command, ``^`` and ``_`` has its arguments, within ``MAX_DEPTH``.

    Double scripts and a stray ``\limits``, which only :func:`layout_graph` and :func:`normalise` refuse, pass.
    """
    try:
        _Parser(_simplify(_tokens(tokens))[0]).parse()
    except LatexError:
        return False
    return True


def parse(tokens: Iterable[str] | str) -> list[Symbol]:
    """The symbols of a formula's main line, each with its branches; `write` is the way back.

    Raises:
        LatexError: as :func:`layout_graph`.
    """
    return _parse(_simplify(_tokens(tokens))[0])


def _tokens(tokens_or_text: Iterable[str] | str) -> list[str]:
    return tokenize(tokens_or_text) if isinstance(tokens_or_text, str) else list(tokens_or_text)


# ----------------------------------------------------------------------------------------------------
# The caption's normal form


@dataclass
class NormalisedLabel:
    """A label in normal form.

    ``tokens`` is the caption; ``dropped`` counts (reason, token), ``replaced`` counts (raw name, name in the caption)
    and ``unknown`` lists the distinct caption tokens that the vocabulary lacks, in order of appearance.
    """

    tokens: list[str]
    dropped: Counter
    replaced: Counter
    unknown: list[str]


def normalise(text: str, vocabulary: Collection[str]) -> NormalisedLabel:
    r"""Rewrite raw LaTeX as a caption over ``vocabulary``, the way the field's official captions are written.

    Every argument of a script and of a command stands in braces and no other braces remain (``{a \over b}`` becomes
    ``\frac { a } { b }``), ``_`` precedes ``^``, ``\limits`` stays only where it moves the scripts (``\int``), math
    delimiters, spacing, fonts and delimiter sizes are dropped, and of two names for one symbol the one that the
    vocabulary has is used.

    Args:
        text: raw LaTeX, with or without ``$``.
        vocabulary: the tokens of the tokenizer's dictionary, e.g. ``tokenizer.get_vocab()``.

    Raises:
        LatexError: the text is not a well-formed formula.
    """
    simple, dropped, renamed = _simplify(tokenize(text))
    written = write(_parse(simple))
    surplus = simple.count(r"\limits") - written.count(r"\limits")
    if surplus > 0:
        dropped["default position of the scripts", r"\limits"] += surplus
    known = vocabulary if isinstance(vocabulary, (set, frozenset, dict)) else set(vocabulary)
    names = {name: variant for variant, name in reversed(_SYNONYMS.items()) if variant in known and name not in known}
    if "'" in simple:
        renamed["'", r"\prime"] += simple.count("'")
    replaced = Counter(
        {(old, names.get(new, new)): n for (old, new), n in renamed.items() if old != names.get(new, new)}
    )
    tokens = [names.get(token, token) for token in written]
    return NormalisedLabel(tokens, dropped, replaced, list(dict.fromkeys(t for t in tokens if t not in known)))


def write(line: list[Symbol]) -> list[str]:
    """Tokens of a line of symbols, in normal form."""
    return [token for symbol in line for token in _write_symbol(symbol)]


def _write_symbol(symbol: Symbol) -> list[str]:
    branches = symbol.branches
    if symbol.label.startswith(r"\begin{"):
        cells = [branch for branch in branches if branch[0].startswith("Cell")]
        written, branches = _write_table(symbol.label, cells), branches[len(cells) :]
    else:
        written = [symbol.label] if symbol.label else ["{", "}"]
        if symbol.label == r"\sqrt" and branches[0][0] == "Above":
            index, branches = write(branches[0][1]), branches[1:]
            written += ["[", *(["{", *index, "}"] if "]" in index else index), "]"]
        arity = len(_ARGUMENTS.get(symbol.label, ()))
        for _, argument in branches[:arity]:
            written += ["{", *write(argument), "}"]
        branches = branches[arity:]
    for number, (limits, scripts) in enumerate(_script_rounds(branches)):
        if number:  # a script of a group that ends in a scripted symbol
            written = ["{", *written, "}"]
        if limits and symbol.label not in _UNDER_OVER:
            written.append(r"\limits")
        for mark in _SCRIPTS:
            if mark in scripts:
                written += [mark, "{", *write(scripts[mark]), "}"]
    return written


def _script_rounds(branches: list) -> list[tuple[bool, dict[str, list[Symbol]]]]:
    """Group scripts into what one symbol can carry at once: at most one of each mark, all limits or none."""
    rounds: list[tuple[bool, dict[str, list[Symbol]]]] = []
    for relation, line in branches:
        limits = relation in _LIMITS.values()
        mark = "_" if relation in ("Sub", "Below") else "^"
        for other_limits, scripts in rounds:
            if other_limits == limits and mark not in scripts:
                scripts[mark] = line
                break
        else:
            rounds.append((limits, {mark: line}))
    return rounds


def _write_table(begin: str, cells: list) -> list[str]:
    written = [begin]
    for number, (place, line) in enumerate(cells):
        if number:
            written.append(r"\\" if place.endswith("-0") else "&")
        written += write(line)
    return [*written, begin.replace("begin", "end", 1)]


@dataclass
class LabelReport:
    """What became of the labels of a data set; readers print it.

    ``dropped`` counts (reason, token), ``replaced`` counts (raw name, name in the caption), ``unknown`` counts labels
    per token that the vocabulary lacks, ``rejected`` lists (name of the example, why it has no caption).
    """

    labels: int = 0
    dropped: Counter = field(default_factory=Counter)
    replaced: Counter = field(default_factory=Counter)
    unknown: Counter = field(default_factory=Counter)
    rejected: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, text: str, vocabulary: Collection[str]) -> str | None:
        """Normalise one label and count; the space-separated caption, or None where the vocabulary cannot write it."""
        self.labels += 1
        try:
            label = normalise(text, vocabulary)
        except LatexError as error:
            self.rejected.append((name, str(error)))
            return None
        self.dropped += label.dropped
        self.replaced += label.replaced
        self.unknown.update(label.unknown)
        if label.unknown:
            self.rejected.append((name, f"not in the vocabulary: {' '.join(label.unknown)}"))
            return None
        return " ".join(label.tokens)

    def __str__(self) -> str:
        lines = [f"{self.labels} labels, {self.labels - len(self.rejected)} kept, {len(self.rejected)} rejected"]
        lines += [f"  dropped {token!r} ({reason}): {n}" for (reason, token), n in self.dropped.most_common()]
        lines += [f"  replaced {old!r} by {new!r}: {n}" for (old, new), n in self.replaced.most_common()]
        lines += [f"  not in the vocabulary {token!r}: {n} labels" for token, n in self.unknown.most_common()]
        lines += [f"  rejected {name}: {reason}" for name, reason in self.rejected[:10]]
        if len(self.rejected) > 10:
            lines.append(f"  ... and {len(self.rejected) - 10} more rejected")
        return "\n".join(lines)


# ----------------------------------------------------------------------------------------------------
# The symbol layout graph


@dataclass(frozen=True)
class LayoutGraph:
    """Symbols at places. Two formulas are the same formula under symLG exactly if their graphs are equal.

    ``nodes`` maps a place to the label of the symbol there. A place is the path from the first symbol of the formula,
    with steps along a line as a number: ``"4Sup.0"`` is the first symbol of the superscript of the fifth symbol. The
    last step of the path is the edge that leads to the symbol ("Right" within a line), so edges need no second table.
    """

    nodes: dict[str, str]

    def errors(self, reference: "LayoutGraph") -> int:
        """Wrong labels of nodes and edges, as CROHME counts them: a wrong symbol at a right place is one error, a
        symbol at a place that only one of the graphs has is two (its node and the edge that leads to it)."""
        count = sum(
            self.nodes[place] != reference.nodes[place] for place in self.nodes.keys() & reference.nodes.keys()
        )
        return count + sum(1 if place == "0" else 2 for place in self.nodes.keys() ^ reference.nodes.keys())


def layout_graph(tokens: Iterable[str] | str) -> LayoutGraph:
    r"""Symbol layout graph of a formula, equivalent to CROHME's symLG (LaTeX -> MathML -> label graph).

    Relations are Right, Sub, Sup, Above, Below, Inside and, in tables, cells. A fraction bar is a symbol ``-`` with
    its parts Above and Below; a root holds its radicand Inside and its index Above; scripts of a group or a bracket
    belong to its last symbol. Scripts of ``\sum``, ``\lim`` and their like are Below and Above whether or not
    ``\limits`` is written, those of ``\int`` and of functions only with it, as in TeX's display style (the official
    captions keep ``\limits`` in just this case). The order of sub- and superscript, redundant braces, fonts, spacing,
    delimiter sizes and the choice among synonyms leave no trace.

    Args:
        tokens: tokens, or raw or space-separated LaTeX.

    Raises:
        LatexError: unbalanced braces, a missing argument, a double script or nesting beyond ``MAX_DEPTH``.
    """
    nodes: dict[str, str] = {}
    _place(_parse(_simplify(_tokens(tokens))[0]), "", nodes)
    return LayoutGraph(nodes)


def _place(line: list[Symbol], prefix: str, nodes: dict[str, str]) -> None:
    for number, symbol in enumerate(line):
        place = f"{prefix}{number}"
        nodes[place] = "-" if symbol.label == r"\frac" else symbol.label
        taken = Counter()
        for relation, branch in symbol.branches:
            taken[relation] += 1
            again = f"*{taken[relation]}" if taken[relation] > 1 else ""  # {x^a}^b: a second, outer superscript
            _place(branch, f"{place}{relation}{again}.", nodes)
