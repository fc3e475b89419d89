"""LaTeX labels: tokens, the caption's normal form, the layout graph."""

import random

import pytest

from epigraph.data.latex import MAX_DEPTH, LabelReport, LatexError, is_valid, layout_graph, normalise, tokenize

VOCABULARY = (
    r"( ) + , - . / 0 1 2 3 < = > [ ] a b d i m n x y z \alpha \cdots \frac \geq \in \int \ldots \leq \lim \limits "
    r"\log \neq \pi \prime \rightarrow \sin \sqrt \sum \theta \times \{ \} ^ _ { | }"
).split()

# ----------------------------------------------------------------------------------------------------
# tokenize


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        (r"$x^2_{a}$", ["$", "x", "^", "2", "_", "{", "a", "}", "$"]),
        (r"\frac12", [r"\frac", "1", "2"]),
        (r"\left\{ a\right.", [r"\left", r"\{", "a", r"\right", "."]),
        (r"a\,b\ c", ["a", r"\,", "b", "\\ ", "c"]),
        (r"m\ltN\gt_0", ["m", r"\lt", "N", r"\gt", "_", "0"]),
        (r"\begin {matrix}a&b\\c", [r"\begin {matrix}", "a", "&", "b", r"\\", "c"]),
        ("x\n\t y", ["x", "y"]),
        ("x\\", ["x", "\\"]),
    ],
)
def test_tokenize(text, tokens):
    assert tokenize(text) == tokens


# ----------------------------------------------------------------------------------------------------
# normalise


@pytest.mark.parametrize(
    ("raw", "caption"),
    [
        (r"$x^2$", "x ^ { 2 }"),
        (r"x^2_a", "x _ { a } ^ { 2 }"),
        (r"{x}_{{a}b}", "x _ { a b }"),
        (r"{ { { a + b } } }", "a + b"),
        (r"{x+y}^2", "x + y ^ { 2 }"),
        (r"{x^a}^b", "{ x ^ { a } } ^ { b }"),
        (r"{x_a}^b", "x _ { a } ^ { b }"),
        (r"{x^a}_b^2", "{ x _ { b } ^ { a } } ^ { 2 }"),
        (r"\frac12", r"\frac { 1 } { 2 }"),
        (r"\frac a{b+1}", r"\frac { a } { b + 1 }"),
        (r"\dfrac{a}b", r"\frac { a } { b }"),
        (r"x^\frac12", r"x ^ { \frac { 1 } { 2 } }"),
        (r"\frac\frac1 2 3", r"\frac { \frac { 1 } { 2 } } { 3 }"),
        (r"{a+1 \over b}^2", r"\frac { a + 1 } { b } ^ { 2 }"),
        (r"\sqrt x", r"\sqrt { x }"),
        (r"\sqrt[3]{x}", r"\sqrt [ 3 ] { x }"),
        (r"\sqrt[{[a]}] x", r"\sqrt [ { [ a ] } ] { x }"),
        (r"\sum\limits_{i=1}^n i", r"\sum _ { i = 1 } ^ { n } i"),
        (r"\int\limits^b_a x", r"\int \limits _ { a } ^ { b } x"),
        (r"\int^b_a x", r"\int _ { a } ^ { b } x"),
        (r"\lim\limits_{x\to0}x", r"\lim _ { x \rightarrow 0 } x"),
        (r"\left( x \right)", "( x )"),
        (r"\Bigg\lbrack x \Big\rbrack", "[ x ]"),
        (r"\left.\frac a b\right|_{x=0}", r"\frac { a } { b } | _ { x = 0 }"),
        (r"\mathrm d\mbox{ x }\,{\rm dy}\;", "d x d y"),
        (r"x' + y''", r"x ^ { \prime } + y ^ { \prime \prime }"),
        (r"x'^2", r"x ^ { \prime 2 }"),
        (r"x^{'}", r"x ^ { \prime }"),
        (r"x^\prime_1", r"x _ { 1 } ^ { \prime }"),
        (r"a\le b\ge x\ne y\lt z\gt 0", r"a \leq b \geq x \neq y < z > 0"),
        (r"a \not= b", r"a \neq b"),
        (r"1,\dots,n", r"1 , \ldots , n"),
        (r"{}_2 x", "{ } _ { 2 } x"),
        (r"x^{}_{} + 1", "x + 1"),
        (r"a\hspace{1em}b", "a b"),
        (r"\{\lbrace x\}", r"\{ \{ x \}"),
        ("", ""),
    ],
)
def test_normalise(raw, caption):
    label = normalise(raw, VOCABULARY)
    assert " ".join(label.tokens) == caption
    assert label.unknown == []
    assert normalise(caption, VOCABULARY).tokens == label.tokens
    assert layout_graph(raw) == layout_graph(caption)


def test_normalise_tables_and_accents():
    raw = r"\left\{\begin{array}{ll} \hat x & y^2 \\ 1 & \overline{ab} \end{array}\right."
    expected = r"\{ \begin{array} \hat { x } & y ^ { 2 } \\ 1 & \overline { a b } \end{array}"
    assert " ".join(normalise(raw, VOCABULARY).tokens) == expected


def test_normalise_reports_what_it_did():
    label = normalise(r"$\left( q \to \sum\limits_i' \to q\,\vtop \right)$", VOCABULARY)
    assert label.dropped == {
        ("math delimiter", "$"): 2,
        ("delimiter size", r"\left"): 1,
        ("delimiter size", r"\right"): 1,
        ("spacing", r"\,"): 1,
        ("default position of the scripts", r"\limits"): 1,
    }
    assert label.replaced == {(r"\to", r"\rightarrow"): 2, ("'", r"\prime"): 1}
    assert label.unknown == ["q", r"\vtop"]


def test_normalise_uses_the_names_of_the_vocabulary():
    label = normalise(r"x \rightarrow y \to 0 < 1 '", ["x", "y", r"\to", "0", r"\lt", "1", "'", "^", "{", "}"])
    assert " ".join(label.tokens) == r"x \to y \to 0 \lt 1 ^ { ' }"
    assert label.unknown == []
    assert label.replaced == {}


def test_label_report_counts_and_rejects():
    report = LabelReport()
    assert report.add("one", r"$\left(x\right)$", VOCABULARY) == "( x )"
    assert report.add("two", r"$Q \to Q$", VOCABULARY) is None
    assert report.add("three", r"$\frac{a}$", VOCABULARY) is None
    assert report.labels == 3
    assert [name for name, _ in report.rejected] == ["two", "three"]
    assert report.unknown == {"Q": 1}
    assert report.dropped["math delimiter", "$"] == 4
    text = str(report)
    assert "3 labels, 1 kept, 2 rejected" in text
    assert "not in the vocabulary: Q" in text
    assert r"'\\frac' lacks an argument" in text


# ----------------------------------------------------------------------------------------------------
# layout_graph


def test_layout_graph_places_and_labels():
    graph = layout_graph(r"\sqrt[n]{a} \frac{b}{x_1^2} \sum_i")
    assert graph.nodes == {
        "0": r"\sqrt",
        "0Above.0": "n",
        "0Inside.0": "a",
        "1": "-",
        "1Above.0": "b",
        "1Below.0": "x",
        "1Below.0Sub.0": "1",
        "1Below.0Sup.0": "2",
        "2": r"\sum",
        "2Below.0": "i",
    }


EQUAL = [
    ("x_a^b", "x^b_a"),
    (r"\sum_a^b", r"\sum\limits^b_a"),
    (r"\lim_{x \to 0}", r"\lim\limits_{x \rightarrow 0}"),
    ("{{x}}^{{2}}", "x^2"),
    ("{a+b}", "a+b"),
    ("{a+b}^2", "a+b^2"),
    (r"\left(x\right)", "(x)"),
    (r"\mathrm{d}x", "dx"),
    (r"\mbox{A}", "A"),
    (r"a\over b", r"\frac{a}{b}"),
    (r"a \ne b \le x", r"a \neq b \leq x"),
    ("x'", r"x^\prime"),
    ("x''", r"x^{\prime\prime}"),
    ("f^{'}", "f'"),
    ("{x_a}^b", "x_a^b"),
    (r"\tfrac12", r"\frac{1}{2}"),
    ("1 2", "12"),
    (r"\begin{matrix}a&b\end{matrix}", r"\begin{matrix} {a} & b \end{matrix}"),
    ("x^{}", "x"),
    (r"x \quad y", "xy"),
]

UNEQUAL = [
    ("x^2", "x_2"),
    ("x^2", "x2"),
    ("x_a^b", "x_b^a"),
    ("x^{ab}", "x^ab"),
    ("x^{a^b}", "{x^a}^b"),
    ("{x^a}^b", "x^{ab}"),
    ("{x^a}^b", "x^a"),
    (r"\frac{a}{b}", r"\frac{b}{a}"),
    (r"\frac{a}{b}", "a/b"),
    (r"\frac{a}{bc}", r"\frac{a}{b}c"),
    (r"\frac{a}{b}^2", r"\frac{a}{b^2}"),
    (r"\sqrt{ab}", r"\sqrt{a}b"),
    (r"\sqrt[3]{x}", r"\sqrt{x}"),
    (r"\sqrt[3]{x}", r"\sqrt[x]{3}"),
    (r"\sqrt[3]{x}", r"3\sqrt{x}"),
    (r"\sqrt{x}^2", r"\sqrt{x^2}"),
    (r"\int\limits_a^b", r"\int_a^b"),
    (r"\sum_a", r"\sum^a"),
    (r"\sum_a", r"\sum a"),
    ("(a)^2", "(a^2)"),
    ("ab", "ba"),
    ("ab", "a"),
    ("x", "X"),
    (r"\cdots", r"\ldots"),
    (r"\sin", "sin"),
    (r"\overline{ab}", r"\overline{a}b"),
    (r"\begin{matrix}a&b\end{matrix}", r"\begin{matrix}a\\b\end{matrix}"),
    (r"{a\over b}c", r"a\over bc"),
    ("", "x"),
]


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_equal_layouts(one, other):
    assert layout_graph(one) == layout_graph(other)
    assert layout_graph(one).errors(layout_graph(other)) == 0


@pytest.mark.parametrize(("one", "other"), UNEQUAL)
def test_unequal_layouts(one, other):
    assert layout_graph(one) != layout_graph(other)
    assert layout_graph(one).errors(layout_graph(other)) > 0


def test_tokens_and_text_give_the_same_graph():
    text = r"x ^ { 2 } + \frac { 1 } { 2 }"
    assert layout_graph(text) == layout_graph(text.split()) == layout_graph(tuple(text.split()))


@pytest.mark.parametrize(
    ("prediction", "reference", "errors"),
    [
        ("a+b", "a+c", 1),  # one node label
        ("a+b", "a+bc", 2),  # a node and the edge to it
        ("x^2", "x_2", 4),  # one symbol at a wrong place, one place empty
        ("x^2", r"y^3", 2),
        ("", "x", 1),  # the first symbol has no edge to it
        ("", "xy", 3),
        (r"\frac{a}{b}", "-", 4),  # the bar is the symbol -
    ],
)
def test_label_errors(prediction, reference, errors):
    assert layout_graph(prediction).errors(layout_graph(reference)) == errors
    assert layout_graph(reference).errors(layout_graph(prediction)) == errors


# text, and whether braces and arguments are nevertheless in order
BROKEN = [
    ("{", False),
    ("}", False),
    ("x ^ { 2", False),
    ("x 2 }", False),
    (r"\frac { a }", False),
    (r"\frac { a } ^ { b }", False),
    (r"\frac", False),
    (r"\sqrt", False),
    (r"\sqrt [ 3 ]", False),
    (r"\sqrt [ 3 { x }", False),
    ("x ^", False),
    ("x ^ _ { 2 }", False),
    ("{ x ^ } 2", False),
    (r"a \over b \over c", False),
    (r"a & b", False),
    (r"\begin{matrix} a & b", False),
    (r"\begin{matrix} a } \end{matrix}", False),
    (r"\begin{matrix} a \end{array}", False),
    (r"a \end{matrix}", False),
    ("x \\", False),
    ("x ^ { 2 } ^ { 3 }", True),
    ("x _ { 2 } ^ { 1 } _ { 3 }", True),
    ("x ^ 2 '", True),
    (r"x \limits _ { 2 }", True),
    (r"\int _ { 2 } \limits ^ { 3 }", True),
    (r"\limits", True),
]


@pytest.mark.parametrize(("text", "valid"), BROKEN)
def test_broken_formulas(text, valid):
    with pytest.raises(LatexError, match="not a well-formed formula"):
        layout_graph(text)
    with pytest.raises(LatexError, match="not a well-formed formula"):
        normalise(text, VOCABULARY)
    assert is_valid(text) is valid


@pytest.mark.parametrize(
    "text",
    ["", "x", "x ^ { 2 }", r"\frac { } { }", r"\sqrt [ n ] { \frac { a } { b } }", "( ]", r"x ^ \frac 1 2"],
)
def test_is_valid(text):
    assert is_valid(text)
    assert is_valid(text.split())


@pytest.mark.parametrize(
    "text",
    [
        "{" * 10_000 + "x" + "}" * 10_000,
        "{" * 10_000,
        "x^{" * 10_000 + "x" + "}" * 10_000,
        r"\frac" * 10_000,
        r"\sqrt" * 10_000 + "x",
        r"\sqrt[" * 10_000,
        r"\overline\sqrt" * 10_000,
        r"\begin{matrix}" * 10_000,
        r"\hat{x^{\frac{1}{" * 5_000,
    ],
)
def test_deep_nesting_is_a_latex_error(text):
    with pytest.raises(LatexError, match=f"more than {MAX_DEPTH} levels"):
        layout_graph(text)
    with pytest.raises(LatexError):
        normalise(text, VOCABULARY)
    assert not is_valid(text)


def test_long_formulas_and_the_deepest_pass():
    assert len(layout_graph("x^2+" * 20_000).nodes) == 60_000
    deep = MAX_DEPTH - 1  # the formula itself is the first level
    nested = "x^{" * deep + "x" + "}" * deep
    assert len(layout_graph(nested).nodes) == deep + 1
    assert is_valid(normalise(nested, VOCABULARY).tokens)


# ----------------------------------------------------------------------------------------------------
# Properties on random formulas: a spelling changes nothing, a mutation always changes something

PLAIN = [t for t in VOCABULARY if t not in (r"\frac", r"\sqrt", r"\limits", "[", "]", "^", "_", "{", "}", r"\prime")]
SPELLINGS = {r"\rightarrow": [r"\to"], "<": [r"\lt "], r"\neq": [r"\ne", r"\not="], r"\leq": [r"\le"]}


def random_formula(rng, depth=3):
    """A random formula as a list of (symbol, arguments, sub, sup)."""
    formula = []
    for _ in range(rng.randint(1, 4)):
        part = lambda odds: random_formula(rng, depth - 1) if depth and rng.random() < odds else None  # noqa: E731
        kind = rng.random() if depth else 1.0
        if kind < 0.15:
            symbol, arguments = r"\frac", [random_formula(rng, depth - 1), random_formula(rng, depth - 1)]
        elif kind < 0.3:
            symbol, arguments = r"\sqrt", [random_formula(rng, depth - 1)]
        else:
            symbol, arguments = rng.choice(PLAIN), []
        formula.append((symbol, arguments, part(0.25), part(0.25)))
    return formula


def caption(formula):
    """The one normal form."""
    tokens = []
    for symbol, arguments, sub, sup in formula:
        tokens.append(symbol)
        for mark, part in [("", a) for a in arguments] + [("_", sub), ("^", sup)]:
            tokens += [mark, "{", caption(part), "}"] if part else []
    return " ".join(t for t in tokens if t)


def respell(formula, rng):
    """One of the many ways in which people write it."""
    text = ""
    for symbol, arguments, sub, sup in formula:
        name = rng.choice([symbol, *SPELLINGS.get(symbol, [])])
        nucleus = name + " " + "".join("{" + respell(a, rng) + "}" for a in arguments)
        if symbol in "()|" and rng.random() < 0.5:
            nucleus = r"\left" + nucleus
        if symbol in "abdimnxyz" and rng.random() < 0.3:
            nucleus = r"\mathrm{" + nucleus + "}"
        if rng.random() < 0.2:
            nucleus = "{{" + nucleus + "}}"
        elif symbol in (r"\sum", r"\lim") and rng.random() < 0.5:
            nucleus += r"\limits "
        scripts = [(mark, part) for mark, part in [("_", sub), ("^", sup)] if part]
        rng.shuffle(scripts)
        for mark, part in scripts:
            bare = len(part) == 1 and part[0][1:] == ([], None, None) and rng.random() < 0.5
            nucleus += mark + (part[0][0] + " " if bare else "{" + respell(part, rng) + "}")
        text += nucleus + rng.choice(["", "", r"\, ", " ", "{}"])
    return text


def test_spellings_of_random_formulas():
    rng = random.Random(0)
    for _ in range(300):
        formula = random_formula(rng)
        text, spelling = caption(formula), "$" + respell(formula, rng) + "$"
        assert layout_graph(spelling) == layout_graph(text), (spelling, text)
        assert " ".join(normalise(spelling, VOCABULARY).tokens) == text
        assert is_valid(spelling)
        assert is_valid(text)


def mutate(tokens, rng, vocabulary):
    r"""A caption of another formula, or of none; None where the chosen mutation has no place in this caption.

    What would keep the meaning cannot arise: tokens are replaced by other tokens, swapped parts differ, and
    ``\limits`` is never inserted.
    """
    tokens = list(tokens)
    kind = rng.choice(["delete", "replace", "insert", "turn", "swap symbols", "swap arguments"])
    position = rng.randrange(len(tokens))
    if kind == "delete":
        del tokens[position]
    elif kind == "replace":
        tokens[position] = rng.choice([t for t in vocabulary if t not in (tokens[position], r"\limits")])
    elif kind == "insert":
        tokens.insert(position, rng.choice([t for t in vocabulary if t != r"\limits"]))
    elif kind == "turn":  # a subscript becomes a superscript or the other way round
        places = [i for i, t in enumerate(tokens) if t in ("_", "^")]
        if not places:
            return None
        position = rng.choice(places)
        tokens[position] = "^" if tokens[position] == "_" else "_"
    elif kind == "swap symbols":
        structure = {"{", "}", "[", "]", "_", "^", r"\frac", r"\sqrt", r"\limits"}
        padded = [*tokens, "end"]
        places = [
            i for i in range(len(tokens) - 1) if not structure & set(padded[i : i + 3]) and tokens[i] != tokens[i + 1]
        ]
        if not places:
            return None
        position = rng.choice(places)
        tokens[position], tokens[position + 1] = tokens[position + 1], tokens[position]
    else:
        groups = [(i, _group_end(tokens, i)) for i, t in enumerate(tokens) if t == "{"]
        ends = dict(groups)
        pairs = []  # two groups side by side, or with one script mark between them
        for start, end in groups:
            for other in (end, end + 1):
                if other in ends and (other == end or tokens[end] in ("_", "^")):
                    if tokens[start:end] != tokens[other : ends[other]]:
                        pairs.append((start, end, other, ends[other]))
        pairs = [p for p in pairs if tokens[p[0] - 1] in ("_", "^") or tokens[p[0] - 1] == r"\frac"]
        pairs = [p for p in pairs if (tokens[p[0] - 1] == r"\frac") == (p[1] == p[2])]
        if not pairs:
            return None
        start, end, other, other_end = rng.choice(pairs)
        tokens[start:other_end] = tokens[other:other_end] + tokens[end:other] + tokens[start:end]
    return tokens


def _group_end(tokens, start):
    depth = 0
    for position in range(start, len(tokens)):
        depth += (tokens[position] == "{") - (tokens[position] == "}")
        if not depth:
            return position + 1
    raise AssertionError("unbalanced caption")


def same_formula(one, other):
    try:
        return layout_graph(one) == layout_graph(other)
    except LatexError:
        return False


def test_mutations_of_random_formulas():
    rng = random.Random(1)
    mutated = 0
    while mutated < 500:
        tokens = caption(random_formula(rng)).split()
        other = mutate(tokens, rng, VOCABULARY)
        if other is not None:
            mutated += 1
            assert not same_formula(other, tokens), (" ".join(tokens), " ".join(other))


# ----------------------------------------------------------------------------------------------------
# Real labels


@pytest.fixture(scope="module")
def labels(data_dir):
    import pyarrow.parquet as parquet  # comes with datasets, which the other tests of this file do without

    columns = ["id", "text", "truth", "text_source", "in_vocab"]
    return parquet.read_table(data_dir / "crohme_ink.parquet", columns=columns).to_pylist()


@pytest.mark.data
def test_truth_equals_official_captions(labels):
    rows = [row for row in labels if row["text_source"] == "wap"]
    assert len(rows) > 9000
    equal = sum(same_formula(row["truth"], row["text"]) for row in rows)
    assert equal >= 0.99 * len(rows), f"{equal} of {len(rows)}"


@pytest.mark.data
def test_captions_are_tokens_and_valid(labels):
    for row in labels:
        assert tokenize(row["text"]) == row["text"].split()
        assert is_valid(row["text"].split()), row["id"]


@pytest.mark.data
def test_normalise_writes_the_official_captions(labels):
    rows = [row for row in labels if row["text_source"] == "wap" and row["in_vocab"]]
    vocabulary = {token for row in rows for token in row["text"].split()}
    report = LabelReport()
    exact = sum(report.add(row["id"], row["truth"], vocabulary) == row["text"] for row in rows)
    assert exact >= 0.98 * len(rows), f"{exact} of {len(rows)}\n{report}"
    assert len(report.rejected) < 0.001 * len(rows), str(report)


@pytest.mark.data
def test_mutated_labels_are_unequal(labels):
    rows = [row for row in labels if row["text_source"] == "wap" and row["in_vocab"]]
    vocabulary = sorted({token for row in rows for token in row["text"].split()})
    rng = random.Random(2)
    mutated = 0
    while mutated < 200:
        row = rng.choice(rows)
        other = mutate(row["text"].split(), rng, vocabulary)
        if other is not None:
            mutated += 1
            assert not same_formula(other, row["text"]), (row["text"], " ".join(other))
