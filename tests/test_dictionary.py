"""Dictionaries: read from a file, learnt from captions, given to a tokenizer, named in a recipe."""

import json
import logging
import os
from pathlib import Path

import pytest
from datasets import Dataset
from drawings import TEXTS
from transformers import AutoProcessor

from epigraph import pretraining
from epigraph.data.dictionary import learn_symbols, read_dictionary, symbols_of
from epigraph.data.readers import load_formulas, normalise_labels
from epigraph.models.grammar_comer import grammar_from_vocabulary
from epigraph.models.processing import comer_processor
from epigraph.models.tokenization import CROHME_SYMBOLS, latex_tokenizer

CAPTIONS = [r"$\dfrac12 + x^2$", r"\frac { 1 } { x } \le 3", r"x \leq \hat{y}", r"\sum_{i=1}^{n} \text{i}", r"\Omega"]
SYMBOLS = sorted(r"\frac { } 1 2 + x ^ \leq 3 \hat y \sum _ i = n \Omega".split())


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n\n", ""])
def test_a_dictionary_file(tmp_path, ending):
    path = tmp_path / "dictionary.txt"
    line = "\r\n" if ending == "\r\n" else "\n"
    path.write_bytes(b"\xef\xbb\xbf" + line.join(CROHME_SYMBOLS).encode() + ending.encode())
    assert read_dictionary(path) == list(CROHME_SYMBOLS)
    vocabulary = latex_tokenizer(read_dictionary(path)).get_vocab()
    assert vocabulary == latex_tokenizer().get_vocab(), "ids follow the lines"


@pytest.mark.parametrize(
    "content, message",
    [
        (b"x\ny\nx\n", "'x' in the lines 1 and 3"),
        (b"x\n\ny\n", "0 symbols in line 2"),
        (b"", "0 symbols in line 1"),
        (b"x\ty\n", "2 symbols in line 1"),
        (b"x\n<eos>\n", "<eos> in line 2"),
        (b"\xff\xfe", "not UTF-8"),
        ("\n".join(f"s{number}" for number in range(6000)).encode(), "more than 5,000 symbols"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_dictionary(tmp_path, content, message):
    path = tmp_path / "dictionary.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_dictionary(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("symbols", [["x", ""], ["x y"], [3], ["x", "x"]])
def test_a_tokenizer_refuses_what_is_no_symbol(symbols):
    with pytest.raises(ValueError, match="is no symbol|stands twice"):
        latex_tokenizer(symbols)


def test_learnt_symbols_write_the_captions_whatever_their_order():
    symbols = learn_symbols(CAPTIONS)
    assert symbols == SYMBOLS == learn_symbols(reversed(CAPTIONS)) == learn_symbols(CAPTIONS * 3)
    rows = Dataset.from_dict({"id": list("abcde"), "text": CAPTIONS})
    processor = comer_processor(symbols)
    kept, report = normalise_labels(rows, processor.tokenizer.get_vocab())
    assert not report.rejected and kept["text"][1] == r"\frac { 1 } { x } \leq 3"
    for text in kept["text"]:
        assert processor.decode_labels(processor.encode_labels([text]).tolist()) == [text]
    grammar = grammar_from_vocabulary(processor.tokenizer.get_vocab())
    named = {name: processor.tokenizer.convert_ids_to_tokens(ids) for name, ids in grammar.items()}
    assert (named["open"], named["close"], named["scripts"]) == ("{", "}", ["^", "_"])
    assert (named["one"], named["two"]) == ([r"\hat"], [r"\frac"])


def test_what_is_rare_or_wrong_is_said(caplog):
    with caplog.at_level(logging.INFO):
        symbols = learn_symbols([*CAPTIONS, "x ^ {", "x x x"], min_count=2)
    assert symbols == ["1", r"\frac", r"\leq", "^", "x", "{", "}"]
    assert "left out as rare" in caplog.text and r"\Omega" in caplog.text
    assert "1 no LaTeX" in caplog.text and "'x ^ {'" in caplog.text
    with pytest.raises(ValueError, match="1 are no LaTeX, the first 'x }'"):
        learn_symbols(["x }"])
    with pytest.raises(ValueError, match="no symbol stands in 9 of the 5 captions"):
        learn_symbols(CAPTIONS, min_count=9)
    with pytest.raises(ValueError, match="are they LaTeX"):
        learn_symbols(chr(number) for number in range(0x4E00, 0x4E00 + 6000))


def test_what_a_recipe_means(tmp_path, monkeypatch):
    monkeypatch.setenv("MINE", str(tmp_path))
    (tmp_path / "dictionary.txt").write_text("x\ny\n")
    assert symbols_of(["a", "b"], CAPTIONS) == ["a", "b"]
    assert symbols_of("${MINE}/dictionary.txt", CAPTIONS) == ["x", "y"]
    assert symbols_of("auto", CAPTIONS) == SYMBOLS
    with pytest.raises(ValueError, match="nowhere.txt cannot be read"):
        symbols_of("nowhere.txt", CAPTIONS)


@pytest.mark.parametrize("setting", ["auto", "dictionary.txt", ["1", "+", "^", "x", "{", "}", r"\sin", "a", "2"]])
def test_a_recipe_trains_with_its_dictionary(tmp_path, setting):
    symbols = sorted({token for text in TEXTS for token in text.split()})
    if setting == "dictionary.txt":
        (tmp_path / setting).write_text("\n".join(symbols))
        setting = str(tmp_path / setting)
    strokes = [[[float(v) for point in stroke for v in point] for stroke in drawing] for drawing in TEXTS.values()]
    data = tmp_path / "ink.parquet"
    Dataset.from_dict({"id": list("abcd"), "text": list(TEXTS), "strokes": strokes}).to_parquet(data)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 16}
    sizes |= {"growth_rate": 4, "dense_layers": [1, 1, 1], "coverage_channels": 4}
    arguments = {
        "output_dir": tmp_path / "run",
        "train_data": data,
        "model": json.dumps({"model_type": "comer", **sizes}),
        "processor": json.dumps({"symbols": setting, "scale": 0.5}),
        "max_steps": 1,
        "num_workers": 0,
    }
    pretraining.main([part for name, value in arguments.items() for part in (f"--{name}", str(value))])
    processor = AutoProcessor.from_pretrained(tmp_path / "run" / "final")
    vocabulary = processor.tokenizer.get_vocab()
    expected = setting if isinstance(setting, list) else symbols
    assert sorted(vocabulary, key=vocabulary.get)[3:] == expected
    config = json.loads((tmp_path / "run" / "final" / "config.json").read_text())
    assert config["vocab_size"] == len(vocabulary) == len(expected) + 3 and config["grammar"]["open"]


@pytest.mark.data
def test_captions_of_crohme_give_a_dictionary_that_writes_them():
    rows = load_formulas(Path(os.environ["EPIGRAPH_DATA"]) / "crohme_ink.parquet", split="train")
    symbols = learn_symbols(rows["text"])
    assert set(symbols) == set(CROHME_SYMBOLS) - {r"\Pi"}, "which no training caption has"
    kept, report = normalise_labels(rows, symbols)
    assert not report.rejected and len(kept) == len(rows) == 8835
    tokenizer = latex_tokenizer(symbols)
    assert {token for text in kept["text"] for token in text.split()} == set(symbols)
    texts = kept["text"][:50]
    assert [tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts] == texts
