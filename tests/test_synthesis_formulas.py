"""Handwritten formulas: labels, layout, and hands of ink and of fonts."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("skimage")
pytest.importorskip("datasets")

from epigraph.data.ink import render
from epigraph.data.latex import normalise, parse
from epigraph.data.synthesis.fonts import BUILTIN, SynthesisError, open_face
from epigraph.data.synthesis.formula_fonts import FontHands, trace
from epigraph.data.synthesis.formula_ink import InkSet
from epigraph.data.synthesis.formula_labels import FormulaCorpus, FormulaGrammar
from epigraph.data.synthesis.formula_layout import LABELS, FormulaLayout
from epigraph.data.synthesis.formulas import FormulaGenerator, FormulaSample

KNOWN = set(r"a b c x y n 0 1 2 3 + - = < ( ) , \frac \sqrt \cdot \in \sin \sum".split())
CAPTIONS = [
    r"\frac { x + 1 } { 2 } = y",
    "x ^ { 2 } + y ^ { 2 } = 1",
    r"\sqrt { a b } - ( x + 2 ) ^ { n }",
    "a _ { n } + a _ { n + 1 } < 3",
    r"\sqrt [ 3 ] { x } = \frac { a } { b } ( x , y )",
    "x + x = 2 x",
]


class PlainFonts(FontHands):
    """Pillow's own font alone, whatever is installed."""

    def __init__(self):
        super().__init__([open_face(BUILTIN)])
        self.others = []


def written(text: str, seed: int = 0) -> tuple[FormulaSample, dict[str, list[np.ndarray]]]:
    """A formula in Pillow's font, and the boxes (left, top, right, bottom) of its symbols by label."""
    rng = np.random.default_rng(seed)
    sample = FormulaGenerator(None, [], rotation=0.0, slant=0.0).written(parse(text), PlainFonts().pen(rng), rng)
    boxes: dict[str, list[np.ndarray]] = {}
    for label, indices in sample.symbols:
        points = np.concatenate([sample.strokes[index] for index in indices])
        boxes.setdefault(label, []).append(np.array([*points.min(0), *points.max(0)]))
    return sample, boxes


@pytest.fixture(scope="module")
def rows():
    """Two hundred formulas of three writers, all in Pillow's font."""
    corpus = FormulaCorpus(CAPTIONS, KNOWN | {"[", "]"}, exchange=0.3)
    make = FormulaGenerator(PlainFonts().pen, corpus)
    made = [make(np.random.default_rng([5, number])).row() for number in range(200)]
    return [row | {"writer": f"w{number % 3}"} for number, row in enumerate(made)]


@pytest.fixture(scope="module")
def ink(rows):
    return InkSet(rows)


# ----------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("labels", [FormulaCorpus(CAPTIONS, KNOWN, 30), FormulaGrammar(KNOWN | {"d", "[", "]"}, 30)])
def test_labels_are_in_normal_form_known_short_and_repeatable(labels):
    from epigraph.data.latex import write

    allowed = labels.known if isinstance(labels, FormulaGrammar) else KNOWN
    seen = set()
    for number in range(150):
        tokens = write(labels(np.random.default_rng([1, number])))
        assert tokens == write(labels(np.random.default_rng([1, number])))
        assert 0 < len(tokens) <= 30
        found = normalise(" ".join(tokens), allowed | {"{", "}", "^", "_"})
        assert found.tokens == tokens and not found.unknown
        seen.add(tuple(tokens))
    assert len(seen) > 50


def test_corpus_gives_formulas_that_it_does_not_hold_with_parts_that_it_holds():
    from epigraph.data.latex import write

    corpus = FormulaCorpus(CAPTIONS, KNOWN | {"[", "]"}, exchange=0.0, recombine=0.6)
    texts = Counter(" ".join(write(corpus(np.random.default_rng([2, n])))) for n in range(300))
    assert set(texts) - set(CAPTIONS)
    numerators = {text.split(r"\frac { ")[1].split(" }")[0] for text in texts if r"\frac {" in text}
    assert numerators <= {"x + 1", "a"}


def test_a_letter_is_exchanged_everywhere():
    corpus = FormulaCorpus(["x + x = y"], KNOWN, exchange=1.0, recombine=0.0)
    drawn = [[symbol.label for symbol in corpus(np.random.default_rng(n))] for n in range(40)]
    assert all(line[0] == line[2] for line in drawn)
    assert len({line[0] for line in drawn}) > 2
    assert sum(line[0] == line[4] for line in drawn) < 4  # two letters stay two unless chance finds no other


def test_rare_tokens_are_favoured_as_asked():
    captions = ["x"] * 1000 + [f"x + {n}" for n in range(10)] + [r"x \in y"]

    def share(rare):
        corpus = FormulaCorpus(captions, KNOWN | set("456789"), rare=rare, exchange=0.0, recombine=0.0)
        return sum(len(corpus(np.random.default_rng([3, n]))) == 3 for n in range(300)) / 300

    assert share(0.0) < 0.1 < 0.3 < share(0.8)


def test_captions_that_cannot_be_used_are_one_error():
    with pytest.raises(ValueError, match="no formula that is well-formed, short enough and writable"):
        FormulaCorpus([r"\frac { x", r"\alpha", "x + y + a + b"], KNOWN, max_length=5)
    with pytest.raises(SynthesisError, match="no formula fits 45 tokens"):
        FormulaGrammar({r"\infty"})(np.random.default_rng(0))


# ----------------------------------------------------------------------------------------------------- layout


@pytest.mark.parametrize("seed", range(5))
def test_parts_stand_where_they_belong(seed):
    _, boxes = written(r"\frac { 1 } { 2 }", seed)
    (bar,), (one,), (two,) = boxes["-"], boxes["1"], boxes["2"]
    assert one[3] < bar[3] + 10 and two[1] > bar[1] - 10 and one[3] < two[1]
    assert bar[0] < (one[0] + one[2]) / 2 < bar[2]

    _, boxes = written(r"x _ { 1 } ^ { 2 } \sqrt { a }", seed)
    x, sub, sup, root, inside = (boxes[label][0] for label in ("x", "1", "2", r"\sqrt", "a"))
    assert sup[3] < sub[1] and sup[1] < x[1] and sub[3] > x[3] and sub[3] - sub[1] < 100
    assert root[1] < inside[1] and root[0] < inside[0] and root[2] > (inside[0] + inside[2]) / 2

    _, boxes = written(r"( \frac { 1 } { 2 } )", seed)
    tall, _ = boxes["("][0], boxes[")"][0]
    assert tall[3] - tall[1] > 0.6 * (boxes["2"][0][3] - boxes["1"][0][1])


def test_every_stroke_belongs_to_one_symbol_and_every_symbol_to_a_token():
    text = r"\frac { x + 1 } { \sqrt { 2 } } < y \cdot 3"
    sample, _ = written(text)
    indices = [index for _, some in sample.symbols for index in some]
    assert sorted(indices) == list(range(len(sample.strokes)))
    tokens = Counter(LABELS.get(token, token) for token in text.split() if token not in "{}")
    assert Counter(label for label, _ in sample.symbols) == tokens
    assert sample.text == text
    assert render(sample.strokes).size[0] > 50


@pytest.mark.parametrize(
    "text, message",
    [
        (r"\overline { x }", r"'\\\\overline' cannot be laid out"),
        (r"\begin{matrix} x & y \end{matrix}", "matrix"),
        (r"{ } _ { 2 } x", "a script without a base"),
        (r"\frac { } { x }", "a fraction with an empty part"),
        (r"\sqrt { }", "a root of nothing"),
        (r"\aleph", r"no font has '\\\\aleph'"),
        ("", "an empty formula"),
    ],
)
def test_what_cannot_be_written_is_named(text, message):
    with pytest.raises(SynthesisError, match=message):
        written(text)


# ------------------------------------------------------------------------------------------------------ hands


def test_ink_set_learns_what_was_written(rows, ink):
    assert ink.matched >= 0.9 * len(rows)
    assert ink.writers == ["w0", "w1", "w2"]
    # Digits stand on the baseline, small letters are lower, commas hang below, fraction bars float.
    heights = {token: box[1] - box[0] for token, box in ink.boxes.items()}
    assert heights["x"] < 0.85 * heights["2"]
    assert abs(ink.boxes["2"][1]) < 0.15 and ink.boxes[","][1] > 0.08
    assert -0.75 < np.median(ink.distances["fraction.axis"]) < 0.0
    assert ink.distances["sup.edge.low"].max() < ink.distances["over.gap"].max() + 1.0
    assert {r"\frac", r"\sqrt", "<"} <= ink.tokens


def test_ink_is_taken_from_one_writer(rows, ink):
    glyphs = ink.glyphs["x"]
    own = {writer: {glyphs[index].width for index in some} for writer, some in ink.by_writer["x"].items()}
    for seed in range(10):
        pen = ink.pen(np.random.default_rng(seed))
        assert {glyph.width for glyph in pen._choice("x", 20)} <= own[pen.writer]
    with pytest.raises(SynthesisError, match="the ink set has no 'q'"):
        ink.pen(np.random.default_rng(0)).glyph("q")


@pytest.mark.parametrize("width", [80.0, 300.0, 900.0])
def test_roots_are_lengthened_at_their_bar(ink, width):
    for seed in range(5):
        glyph = ink.pen(np.random.default_rng(seed)).fitted(r"\sqrt", width / 100, 1.2, 0.5)
        assert glyph.width == pytest.approx(width / 100, rel=0.35)
        assert glyph.bottom - glyph.top == pytest.approx(1.2, rel=0.1)


def test_an_ink_set_without_segmentation_is_refused(rows):
    with pytest.raises(ValueError, match="of 0 formulas could be matched"):
        InkSet([row | {"symbols": []} for row in rows[:20]])
    wrong = [row | {"text": "x x x x x x x"} for row in rows[:20]]
    with pytest.raises(ValueError, match="at least ten are needed"):
        InkSet(wrong)


def test_skeletons_become_strokes_that_cross():
    plus = np.zeros((21, 21), bool)
    plus[10, 2:19] = plus[2:19, 10] = True
    plus[0, 0] = True
    strokes = trace(plus, shortest=3)
    assert sorted(len(stroke) for stroke in strokes) == [1, 17, 17]
    ring = np.zeros((9, 9), bool)
    ring[2, 2:7] = ring[6, 2:7] = ring[2:7, 2] = ring[2:7, 6] = True
    (loop,) = trace(ring, shortest=3)
    assert len(loop) == 17 and (loop[0] == loop[-1]).all()


def test_layout_is_a_function_of_the_pen(ink):
    def boxes():
        block = FormulaLayout(ink.pen(np.random.default_rng(4)))(parse(CAPTIONS[0]))
        return [leaf.box for leaf in block.leaves]

    assert boxes() == boxes()


# -------------------------------------------------------------------------------------------------- generators


def test_generator_from_an_ink_set_makes_training_rows(rows, tmp_path):
    import datasets

    from epigraph.data.collate import FormulaDataset
    from epigraph.data.ink import InkAugmentation
    from epigraph.data.readers import load_formulas

    path = tmp_path / "ink.parquet"
    datasets.Dataset.from_list(rows, features=FormulaSample.features()).to_parquet(path)
    make = FormulaGenerator.from_ink(path, grammar=0.2, max_length=25)
    made = [make(np.random.default_rng([6, number])).row() for number in range(60)]
    again = [make(np.random.default_rng([6, number])).row() for number in range(60)]
    assert made == again and len({row["id"] for row in made}) == 60
    assert {row["split"] for row in made} == {"train"} and {row["source"] for row in made} == {"synthetic"}
    assert max(len(row["text"].split()) for row in made) <= 25

    mixed = tmp_path / "made.parquet"
    datasets.Dataset.from_list(made, features=FormulaSample.features()).to_parquet(mixed)
    dataset = FormulaDataset(load_formulas(mixed, "train"), InkAugmentation(), seed=1)
    assert dataset.sizes().shape == (60, 2)
    assert dataset[(3, 0, 1.0)]["image"].getbbox() is not None

    datasets.Dataset.from_list(rows).remove_columns("symbols").to_parquet(tmp_path / "plain.parquet")
    with pytest.raises(ValueError, match="no column symbols; an ink set has segmented symbols"):
        FormulaGenerator.from_ink(tmp_path / "plain.parquet")


def test_generator_from_fonts_needs_nothing():
    make = FormulaGenerator.from_fonts()
    drawn = [make(np.random.default_rng([7, number])) for number in range(20)]
    assert all(sample.strokes and np.isfinite(np.concatenate(sample.strokes)).all() for sample in drawn)
    vary = FormulaGenerator.from_fonts(captions=["x + y"], grammar=0.0)
    assert len(vary(np.random.default_rng(0)).text.split()) == 3


@pytest.mark.data
@pytest.mark.slow
def test_real_ink_is_matched_with_its_labels():
    make = FormulaGenerator.from_ink("${EPIGRAPH_DATA}/crohme_ink.parquet")
    vocabulary = json.loads((Path(__file__).parent.parent / "checkpoints/comer-hme/tokenizer.json").read_text())
    vocabulary = set(vocabulary["model"]["vocab"])
    assert make.hands.__self__.matched > 8500
    samples = [make(np.random.default_rng([8, number])) for number in range(300)]
    assert all(vocabulary.issuperset(sample.text.split()) for sample in samples)
    sizes = np.array([render(sample.strokes).size for sample in samples])
    # Of the real ones the medians are 262 and 92 pixels.
    assert 180 < np.median(sizes[:, 0]) < 320 and 78 < np.median(sizes[:, 1]) < 110
