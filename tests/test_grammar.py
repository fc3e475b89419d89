"""The grammar that CoMER's search keeps to, in both reading directions."""

import pytest
import torch
from comer_goldens import build, golden

from epigraph.models.generation_comer import CoMERGrammar, grammar_from_vocabulary
from epigraph.models.tokenization import CROHME_SYMBOLS, latex_tokenizer

VOCABULARY = latex_tokenizer().get_vocab()
TOKENS = {index: token for token, index in VOCABULARY.items()}
FORMULAS = [
    "x",
    "x ^ { 2 } + y _ { i } ^ { 2 }",
    "\\frac { 1 } { 2 }",
    "\\frac { \\frac { a } { b } } { \\sqrt { c } }",
    "\\sqrt { x } \\sqrt [ 3 ] { x }",
    "\\sqrt [ n _ { i } ] { \\sqrt [ m ] { y } }",
    "\\int \\limits _ { a } ^ { b } x d x",
    "[ a , b ) \\{ c \\}",
    "( [ x ) ]",
    "\\lim _ { n \\rightarrow \\infty } \\sum _ { k = 1 } ^ { n } \\frac { k } { n }",
    "^ { 2 } x",
]
BROKEN = [
    "{ x }",
    "x }",
    "x ^ 2",
    "x ^",
    "\\frac { 1 }",
    "\\frac { 1 } x { 2 }",
    "\\frac { 1 } { 2 } { 3 }",
    "\\sqrt x",
    "\\sqrt [ 3 ] x",
    "\\sqrt [ 3 { x }",
    "\\sqrt [ [ 3 ] ] { x }",
    "x ^ { }",
    "\\frac { } { 2 }",
    "\\int \\limits x",
    "x ^ { \\frac { a } }",
    "\\sqrt { x",
]


@pytest.fixture(scope="module")
def grammar():
    return CoMERGrammar(grammar_from_vocabulary(VOCABULARY), len(VOCABULARY))


def accepts(grammar, sequences, backwards):
    """(sequences,) bool: whether each list of ids, in reading order, can be written in a direction."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    state = grammar.start(torch.full((len(sequences),), backwards))
    good = torch.ones(len(sequences), dtype=torch.bool)
    complete = torch.zeros(len(sequences), dtype=torch.bool)
    table = torch.zeros(len(sequences), int(lengths.max()) + 1, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        table[row, : len(sequence)] = torch.tensor(sequence[::-1] if backwards else sequence)
    for step in range(table.shape[1]):
        complete |= (lengths == step) & grammar.complete(state)
        tokens = table[:, step]
        allowed = grammar.allowed(state, 1000).gather(1, tokens[:, None]).squeeze(1)
        good &= allowed | (step >= lengths)
        state = grammar.advance(state, tokens)
    return good & complete


def ids(formula):
    return [VOCABULARY[token] for token in formula.split()]


def well_formed(tokens):
    """An independent check by recursive descent: braces and arities of a list of token strings."""

    def group(at):
        assert tokens[at] == "{"
        end = content(at + 1, "}")
        assert end > at + 2  # not empty
        return end

    def content(at, closing):
        while at < len(tokens) and tokens[at] != closing:
            token, at = tokens[at], at + 1
            assert token not in "{}"
            if token == "\\limits":
                assert tokens[at] in "^_"
            elif token in "^_":
                at = group(at)
            elif token == "\\frac":
                at = group(group(at))
            elif token == "\\sqrt":
                at = group(content(at + 1, "]") if tokens[at] == "[" else at)
        assert (at < len(tokens)) == (closing is not None)
        return at + 1

    try:
        content(0, None)
    except (AssertionError, IndexError):
        return False
    return True


@pytest.mark.parametrize("backwards", [False, True])
def test_formulas(grammar, backwards):
    for formula in FORMULAS:
        assert well_formed(formula.split()), formula
    for formula in BROKEN:
        assert not well_formed(formula.split()), formula
    assert accepts(grammar, [ids(formula) for formula in FORMULAS], backwards).all()
    assert not accepts(grammar, [ids(formula) for formula in BROKEN], backwards).any()


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("longest", [1, 2, 5, 17, 60])
def test_random_walks_end_in_time(grammar, backwards, longest):
    """Whatever allowed token is taken, a complete formula fits the budget, and the other direction accepts it."""
    generator = torch.manual_seed(longest)
    roles = grammar_from_vocabulary(VOCABULARY)
    weights = torch.ones(len(VOCABULARY))
    for name in ("open", "close", "scripts", "two", "root", "before_scripts", "index_open", "index_close"):
        weights[roles[name]] = 15.0  # symbols would else be nearly all of it
    rows = 400
    state = grammar.start(torch.full((rows,), backwards))
    written, writing = [[] for _ in range(rows)], torch.ones(rows, dtype=torch.bool)
    for step in range(longest):
        allowed = grammar.allowed(state, longest - step - 1)
        may_stop = grammar.complete(state)
        assert (allowed.any(1) | may_stop)[writing].all()
        writing &= ~(may_stop & (torch.rand(rows, generator=generator) < 0.05))
        writing &= allowed.any(1)
        choices = torch.where(writing[:, None], allowed * weights, 1.0)
        tokens = choices.multinomial(1, generator=generator).squeeze(1)
        for row in writing.nonzero().squeeze(1).tolist():
            written[row].append(tokens[row].item())
        state = grammar.advance(state, tokens)
    formulas = [tokens[::-1] if backwards else tokens for tokens in written if tokens]
    assert len(formulas) > rows / 2 and max(map(len, formulas)) == longest
    assert all(well_formed([TOKENS[token] for token in formula]) for formula in formulas)
    assert accepts(grammar, formulas, not backwards).all()


@pytest.mark.parametrize("backwards", [False, True])
def test_depth_is_bounded(grammar, backwards):
    deep = ids("x ^ { " * 32 + "x" + " }" * 32)
    deeper = ids("x ^ { " * 33 + "x" + " }" * 33)
    assert accepts(grammar, [deep, deeper], backwards).tolist() == [True, False]


def test_vocabularies():
    roles = grammar_from_vocabulary(VOCABULARY)
    assert roles["open"] == VOCABULARY["{"] and roles["two"] == [VOCABULARY["\\frac"]]
    assert sorted(roles["banned"]) == [0, 1, 2]
    assert grammar_from_vocabulary({letter: index for index, letter in enumerate("abc{}")}) is None
    assert grammar_from_vocabulary({"^": 0, "x": 1}) is None
    small = {token: index for index, token in enumerate(["{", "}", "^", "x", "\\hat", "<unk>"])}
    grammar = CoMERGrammar(grammar_from_vocabulary(small), len(small))
    assert accepts(grammar, [[4, 0, 3, 2, 0, 3, 1, 1], [3, 5], [4, 3]], True).tolist() == [True, False, False]
    with pytest.raises(ValueError, match="names token 112"):
        CoMERGrammar(roles, 50)


@pytest.mark.data
@pytest.mark.parametrize("backwards", [False, True])
def test_real_captions(grammar, backwards, data_dir):
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(data_dir / "crohme_ink.parquet", columns=["text", "in_vocab"])
    captions = [row["text"] for row in table.to_pylist() if row["in_vocab"]]
    assert len(captions) > 10_000
    assert accepts(grammar, [ids(caption) for caption in captions], backwards).all()


@pytest.mark.parametrize("direction", ["joint", "l2r", "r2l"])
@pytest.mark.parametrize("max_length", [3, 8, 30])
def test_generated_formulas_are_well_formed(direction, max_length):
    """Of weights that write nonsense, all of an n-best list, cut short or not."""
    tensors, _ = golden("both")
    model = build("both", mask_padding=True)
    assert len(CROHME_SYMBOLS) + 3 == model.config.vocab_size
    inputs = {"pixel_values": tensors["img"], "pixel_mask": ~tensors["img_mask"], "max_length": max_length}
    inputs |= {"direction": direction, "num_beams": 8, "num_return_sequences": 8}

    def readings(grammar):
        sequences = model.generate(**inputs, grammar=grammar).tolist()
        return [[TOKENS[token] for token in sequence if token] for sequence in sequences]

    model.lm_head.bias.data[ids("{ } \\frac \\sqrt ^")] += 15.0
    assert not all(map(well_formed, readings(False)))
    model.config.grammar = grammar_from_vocabulary(VOCABULARY)
    found = readings(None)
    assert all(map(well_formed, found)), [" ".join(tokens) for tokens in found if not well_formed(tokens)]
    assert any("{" in tokens for tokens in found) or max_length == 3
    assert readings(False) != found == readings(grammar_from_vocabulary(VOCABULARY))
