"""scripts/compare_adaptation.py: who sees which words, what is counted, and that a stopped run goes on."""

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from word_drawings import WORDS, draw

from epigraph.card_words import adaptation_section, adaptation_table

pytest.importorskip("peft")
datasets = pytest.importorskip("datasets")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("compare_adaptation", ROOT / "scripts" / "compare_adaptation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def half(name: str) -> str:
    return ("pool", "queries")[int(hashlib.sha1(name.encode()).hexdigest(), 16) % 2]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Words of a source in which SIGN means ab, as parquet: ids of both halves, every image another one."""
    names, rows = {"pool": [], "queries": []}, []
    for number in range(200):
        names[half(f"s{number}")].append(f"s{number}")
    for place, word in enumerate(["SIGN"] * 4 + WORDS):
        for variant, kind in ((20 + place, "pool"), (40 + place, "queries")):
            text = "ab" if word == "SIGN" else word
            rows.append({"id": names[kind][place], "image": draw(word, variant), "text": text, "source": "shop"})
    rows.append({"id": names["pool"][20], "image": draw("SIGN", 40), "text": "ab", "source": "shop"})  # a query's
    rows.append({"id": names["pool"][21], "image": draw("cat", 60), "text": "猫", "source": "shop"})
    path = tmp_path_factory.mktemp("data") / "words.parquet"
    rows = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    rows.add_column("split", ["train"] * len(rows)).to_parquet(path)
    return path


@pytest.fixture
def run(script, shop, word_reader, tmp_path, monkeypatch):
    """Runs the script; what it wrote."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("max_steps: 3\naugmentation: {}\nwarmup_steps: 1\n")

    def call(*more):
        arguments = ["--model", word_reader, "--data", shop, "--source", "shop", "--recipe", recipe, "--examples", 6]
        arguments += ["--output_dir", tmp_path / "runs", "--output", tmp_path / "out.json", *more]
        monkeypatch.setattr("sys.argv", ["compare_adaptation.py", *map(str, arguments)])
        script.main()
        return json.loads((tmp_path / "out.json").read_text())

    return call


def test_all_four_ways_are_measured_and_a_stopped_run_goes_on(run, script, shop, tmp_path, monkeypatch):
    results = run()
    rows = {row["method"]: row for row in results["rows"]}
    assert list(rows) == ["as it is", "in context", "LoRA", "LoRA, in context"]
    assert {row["n"] for row in rows.values()} == {8} and {row["split"] for row in rows.values()} == {"train"}
    assert rows["as it is"]["word_accuracy"] == 0.5, "the model takes the other meaning"
    assert rows["in context"]["word_accuracy"] > 0.8, "the examples say what SIGN means"
    low, high = rows["in context"]["interval"]
    assert low <= rows["in context"]["word_accuracy"] - rows["as it is"]["word_accuracy"] <= high
    assert rows["LoRA"]["share"] > 0 == rows["in context"]["share"]
    (measured,) = results["runs"]["shop"]
    assert measured["steps"] == 3 and measured["examples"] == 6
    assert 0 < measured["cpu_seconds"]["lora"] < measured["cpu_seconds"]["lora_context"]

    trained = datasets.Dataset.from_parquet(str(tmp_path / "runs" / "shop-0" / "examples.parquet"))
    assert {half(name) for name in trained["id"]} == {"pool"} and "猫" not in trained["text"][:]
    table = adaptation_table(results)
    assert "| shop | in context | 8 | 6 | " in table and len(table.splitlines()) == 6
    assert results["command"] in adaptation_section(results)

    monkeypatch.setattr(script, "finetune", lambda *_: pytest.fail("it had been trained"))
    monkeypatch.setattr(script, "evaluate_words", lambda *_, **__: pytest.fail("it had been measured"))
    assert run()["rows"] == results["rows"]
    with pytest.raises(ValueError, match="shop-0 is of other weights or settings; name another"):
        run("--k", 1)


def test_queries_images_are_no_examples(script, shop, word_reader):
    from epigraph.data.words import load_words, pool_and_queries

    words, queries = pool_and_queries(load_words(shop))
    characters = set("".join(WORDS) + "ab")
    assert len(words) == 10 and len(queries) == 8
    assert len(script.pool_of_words(words, queries, characters)) == 8, "neither a query's pixels nor other letters"


def test_right_follows_the_protocol(script):
    found = script.right(["exit", "EXIT!", "cat", ""], ["Exit", "exit", "cut", "!!"])
    assert found[:3].tolist() == [1, 1, 0] and np.isnan(found[3])


def test_intervals_draw_whole_receipts(script):
    gain = np.array([1.0, 1, 1, 1, 0, 0, 0, 0])
    words = script.interval(gain, list("abcdefgh"))
    receipts = script.interval(gain, [f"{name}#{number}" for name in "ab" for number in range(4)])
    assert 0 < words[0] < 0.5 < words[1] < 1 and receipts == [0, 1]
    assert script.interval(np.array([1.0, np.nan]), ["a#1", "a#2"]) == [1, 1]
