"""Formula metrics by token edits and by layout graph."""

import random
from pathlib import Path

import pytest

from epigraph.metrics import (
    exprate,
    exprate_symlg,
    formula_breakdowns,
    formula_metrics,
    symlg_errors,
    token_errors,
)

NAMES = ["exprate", "exprate_1", "exprate_2", "exprate_3", "exprate_symlg"]
REFERENCES = [
    "x ^ { 2 }",
    r"\frac { a } { b }",
    r"\sum _ { i = 1 } ^ { n } i",
    "a + b",
    r"\sqrt { x }",
]
PREDICTIONS = [
    "x ^ { 2 }",  # exact
    r"\frac { a } { c }",  # one token
    r"\sum ^ { n } _ { i = 1 } i",  # the same formula, other tokens
    "",  # nothing: three tokens
    r"\sqrt { x",  # one token, and not a formula
]


@pytest.mark.parametrize(
    ("prediction", "reference", "errors"),
    [
        ("a b", "a b", 0),
        ("a  b ", "a b", 0),
        ("a c", "a b", 1),
        ("a", "a b", 1),
        ("a b c", "a b", 1),
        ("b a", "a b", 2),
        (r"\alpha", r"\beta", 1),
        ("", r"\frac { a } { b }", 7),
        ("", "", 0),
    ],
)
def test_token_errors(prediction, reference, errors):
    assert token_errors(prediction, reference) == errors


@pytest.mark.parametrize(
    ("prediction", "reference", "errors"),
    [
        ("x ^ { b } _ { a }", "x _ { a } ^ { b }", 0),
        ("x^b_a", "x _ { a } ^ { b }", 0),
        ("x _ { a }", "x _ { b }", 1),
        ("x", "x y", 2),
        ("x ^ {", "x ^ { 2 }", None),
        ("x ^ { 2 } ^ { 3 }", "x ^ { 2 3 }", None),
        ("", "x", 1),
        # references that are no formula: only their exact tokens are right
        ("x ^ {", "x ^ {", 0),
        ("x ^  {", "x ^ {", 0),
        ("x ^", "x ^ {", None),
    ],
)
def test_symlg_errors(prediction, reference, errors):
    assert symlg_errors(prediction, reference) == errors


def test_formula_metrics():
    assert formula_metrics(PREDICTIONS, REFERENCES) == {
        "exprate": 1 / 5,
        "exprate_1": 3 / 5,
        "exprate_2": 3 / 5,
        "exprate_3": 4 / 5,
        "exprate_symlg": 2 / 5,
    }
    assert list(formula_metrics(["x"], ["x"])) == NAMES
    assert formula_metrics([""], ["x"])["exprate_symlg"] == 0.0


def test_rates_agree_with_the_summary():
    summary = formula_metrics(PREDICTIONS, REFERENCES)
    assert exprate(PREDICTIONS, REFERENCES) == summary["exprate"]
    assert exprate(PREDICTIONS, REFERENCES, max_errors=3) == summary["exprate_3"]
    assert exprate_symlg(PREDICTIONS, REFERENCES) == summary["exprate_symlg"]
    assert exprate_symlg(PREDICTIONS, REFERENCES, max_errors=1) == 3 / 5  # the wrong denominator is one label
    assert exprate_symlg(PREDICTIONS, REFERENCES, max_errors=99) == 4 / 5  # what is no formula stays wrong


def test_exact_match_implies_symlg_match_whatever_the_tokens():
    rng = random.Random(0)
    vocabulary = r"x 2 { } _ ^ \frac \sqrt \limits [ ] & \\ \over '".split()
    for _ in range(500):
        text = " ".join(rng.choices(vocabulary, k=rng.randint(0, 8)))
        assert symlg_errors(text, text) == 0
        other = " ".join(rng.choices(vocabulary, k=rng.randint(0, 8)))
        metrics = formula_metrics([text, other], [text, text])
        assert metrics["exprate"] <= metrics["exprate_symlg"]
        assert metrics["exprate"] <= metrics["exprate_1"] <= metrics["exprate_2"] <= metrics["exprate_3"] <= 1


def test_breakdowns():
    breakdowns = formula_breakdowns(PREDICTIONS, REFERENCES)
    assert list(breakdowns) == ["length", "depth"]
    assert [(row["bin"], row["n"]) for row in breakdowns["length"]] == [("1-5", 3), ("6-10", 1), ("11-20", 1)]
    assert [(row["bin"], row["n"]) for row in breakdowns["depth"]] == [("0", 1), ("1", 4)]
    assert breakdowns["length"][0]["exprate"] == 1 / 3
    assert breakdowns["length"][2]["exprate_symlg"] == 1.0
    for rows in breakdowns.values():
        assert all(list(row) == ["bin", "n", *NAMES] for row in rows)
        for name in NAMES:  # the bins add up to the whole
            mean = sum(row["n"] * row[name] for row in rows) / len(REFERENCES)
            assert mean == pytest.approx(formula_metrics(PREDICTIONS, REFERENCES)[name])


def test_breakdowns_of_long_and_deep_formulas():
    deep = "x ^ { " * 6 + "x" + " }" * 6
    rows = formula_breakdowns([deep, ""], [deep, " ".join("x" * 60)])
    assert [row["bin"] for row in rows["length"]] == ["21-30", "51+"]
    assert [row["bin"] for row in rows["depth"]] == ["0", "4+"]
    assert formula_breakdowns(["x"], [""])["length"][0] == {"bin": "0", "n": 1} | dict.fromkeys(NAMES, 0.0) | {
        "exprate_1": 1.0,
        "exprate_2": 1.0,
        "exprate_3": 1.0,
    }


@pytest.mark.parametrize("function", [exprate, exprate_symlg, formula_metrics, formula_breakdowns])
@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "nothing to measure"),
        (["x"], ["x", "y"], "1 predictions for 2 references"),
        ("x", "x", "lists of strings"),
    ],
)
def test_clear_errors(function, predictions, references, message):
    with pytest.raises(ValueError, match=message):
        function(predictions, references)


def test_evaluate_loads_the_metric():
    evaluate = pytest.importorskip("evaluate", reason="the evaluate extra is not installed")
    metric = evaluate.load(str(Path(__file__).resolve().parent.parent / "metrics" / "exprate"))
    assert metric.compute(predictions=PREDICTIONS, references=REFERENCES) == formula_metrics(PREDICTIONS, REFERENCES)
