"""Evaluation: the rows and breakdowns of the JSON, bad rows, and a file that is written whole or not at all."""

import json
import os
import shlex
from pathlib import Path

import pytest
from datasets import Dataset, Image
from drawings import PLUS, STEPS, TEXTS, WAVE

from epigraph import evaluation, reading
from epigraph.cards import metrics_table, read_results, reliability_table, results_section, weights_sha256
from epigraph.data.ink import render
from epigraph.metrics import formula_metrics

FAST = ["--num_beams", "2", "--max_length", "10"]


def flat(strokes):
    return [[float(value) for point in stroke for value in point] for stroke in strokes]


def png(strokes, tmp_path):
    path = tmp_path / "drawing.png"
    render(strokes).save(path)
    return path.read_bytes()


@pytest.fixture
def ink(tmp_path):
    """Four drawings: one with another caption, one of another split, one whose strokes are broken."""
    rows = {
        "id": ["plus", "wave", "steps", "bar"],
        "text": ["+", r"\sin y", "a ^ { 2 }", "1"],
        "strokes": [flat(PLUS), flat(WAVE), flat(STEPS), [[1.0, 2.0, 3.0]]],
        "split": ["test", "test", "dev", "test"],
        "source": ["here", "here", "here", "there"],
    }
    path = tmp_path / "ink.parquet"
    Dataset.from_dict(rows).to_parquet(path)
    return path


@pytest.fixture
def bitmaps(tmp_path):
    """The four drawings as images, and a damaged one."""
    images = [{"bytes": png(strokes, tmp_path), "path": None} for strokes in TEXTS.values()]
    images.append({"bytes": images[0]["bytes"][:50], "path": None})
    path = tmp_path / "bitmaps.parquet"
    Dataset.from_dict({"text": [*TEXTS, "+"], "image": images}).to_parquet(path)
    return path


def run(reader, data, output, *arguments):
    evaluation.main(["--model", str(reader), "--data", str(data), "--output", str(output), *FAST, *arguments])
    return json.loads(output.read_text())


def test_results_have_the_fixed_form(reader, ink, tmp_path, capsys):
    output = tmp_path / "new" / "results.json"
    results = run(reader, ink, output)
    assert set(results) == {"model", "command", "versions", "weights_sha256", "data_sha256", "rows", "breakdowns"}
    assert results == read_results(output), "cards can be filled from it"
    assert results["weights_sha256"] == weights_sha256(reader)
    assert {"python", "epigraph", "torch", "transformers", "datasets"} == set(results["versions"])
    assert [path.name for path in output.parent.iterdir()] == ["results.json"], "nothing is left lying about"

    values = {(row["source"], row["split"], row["metric"]): (row["value"], row["n"]) for row in results["rows"]}
    assert len(values) == len(results["rows"]) == 3 * 5
    assert {row["protocol"] for row in results["rows"]} == {"standard"}
    assert values["here", "test", "exprate"] == (0.5, 2) and values["here", "test", "exprate_1"] == (1.0, 2)
    assert values["here", "dev", "exprate"] == (1.0, 1)
    assert values["there", "test", "exprate"] == (0.0, 1), "a row that cannot be read is wrong"

    breakdowns = results["breakdowns"]
    assert sum(row["n"] for row in breakdowns["length"]) == sum(row["n"] for row in breakdowns["depth"]) == 4
    assert breakdowns["unreadable"]["value"] == 0.25 and "bar" in breakdowns["unreadable"]["first"][0]
    assert breakdowns["unbalanced"] == {"value": 0.0, "n": 4}
    scores = breakdowns["reliability"]
    assert scores["calibration"] is None and scores["n"] == 3 == sum(row["n"] for row in scores["bins"])
    assert sum(row["n"] * row["right"] for row in scores["bins"]) == 2, "what cannot be read has no score"
    assert [row["score"] for row in scores["at_least"]] == [0.5, 0.8, 0.9] and 0 <= scores["auroc"] <= 1
    printed = capsys.readouterr().out
    assert "50.00 %" in printed and "bar" in printed
    assert "readings with a score of at least" in printed and f"ECE {scores['ece']:.4f}" in printed


def test_cards_show_how_far_scores_can_be_trusted_and_older_results_still_render(reader, ink, tmp_path):
    results = run(reader, ink, tmp_path / "results.json")
    section = results_section([results])
    assert reliability_table(results) in section and "| score | n | mean score | right |" in section
    del results["breakdowns"]["reliability"]
    assert "mean score" not in results_section([results]) and metrics_table(results) in results_section([results])
    results["breakdowns"]["reliability"] = None
    assert "mean score" not in results_section([results]), "nothing could be read"


def test_the_recorded_command_repeats_the_run(reader, ink, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = run(reader, ink, tmp_path / "results.json", "--split", "test", "--source", "here")
    python, script, *arguments = shlex.split(results["command"])
    assert (python, script) == ("python", "scripts/evaluate.py")
    assert (Path(__file__).resolve().parent.parent / script).is_file()
    evaluation.main(arguments)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert {row["n"] for row in results["rows"]} == {2}


def test_paths_are_recorded_as_others_can_use_them(tmp_path, monkeypatch):
    monkeypatch.setenv("EPIGRAPH_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    assert evaluation.portable(str(tmp_path / "data" / "ink.parquet")) == "${EPIGRAPH_DATA}/ink.parquet"
    assert evaluation.portable(str(tmp_path / "runs" / "a")) == "runs/a"
    assert evaluation.portable("owner/name") == "owner/name" and evaluation.portable("--split") == "--split"


def test_bitmaps_are_read_and_damaged_ones_are_wrong_answers(reader, bitmaps, tmp_path):
    results = run(reader, bitmaps, tmp_path / "results.json")
    value = {row["metric"]: row["value"] for row in results["rows"]}
    assert value["exprate"] == value["exprate_symlg"] == 0.8
    assert {(row["source"], row["split"], row["n"]) for row in results["rows"]} == {("bitmaps", None, 5)}
    assert results["breakdowns"]["unreadable"]["value"] == 0.2
    assert run(reader, bitmaps, tmp_path / "first.json", "--limit", "4")["rows"][0]["value"] == 1.0


def test_the_function_for_training_agrees_and_restores_the_mode(reader, bitmaps):
    model, processor = reading.load(reader)
    model.train()
    dataset = Dataset.from_parquet(str(bitmaps)).cast_column("image", Image())
    dataset = dataset.add_column("id", [str(number) for number in range(5)])
    measured = evaluation.evaluate_formulas(model, processor, dataset, num_beams=1, direction="l2r", max_length=10)
    predictions = [result.text for result in measured["readings"]]
    assert predictions == [*TEXTS, ""] and model.training
    assert measured["metrics"] == {**formula_metrics(predictions, dataset["text"][:]), "unbalanced": 0.0}


def test_share_of_unbalanced_answers():
    assert evaluation._unbalanced(["x ^ {", r"\frac { a }", "x", ""]) == 0.5


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--split", "tset"], "tset"),
        (["--limit", "0"], "limit"),
        (["--batch_size", "0"], "batch_size"),
        (["--model", "nowhere"], "nowhere"),
        (["--data", "nowhere.parquet"], "nowhere.parquet"),
        (["--data", "${UNSET_FOLDER}/x.parquet"], "UNSET_FOLDER"),
    ],
)
def test_wrong_arguments_are_one_sentence(reader, ink, tmp_path, arguments, message):
    with pytest.raises((ValueError, OSError), match=message):
        run(reader, ink, tmp_path / "results.json", *arguments)
    assert not (tmp_path / "results.json").exists()


def test_ink_task_needs_strokes(reader, bitmaps, tmp_path):
    with pytest.raises(ValueError, match="strokes"):
        run(reader, bitmaps, tmp_path / "results.json", "--task", "ink")


def test_an_output_that_cannot_be_written_is_refused_before_the_work(reader, ink, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(evaluation, "load", lambda *_: pytest.fail("the model was loaded first"))
    with pytest.raises(ValueError, match="--output .*results.json"):
        run(reader, ink, tmp_path / "file" / "results.json")


def test_a_full_disk_loses_nothing(reader, ink, tmp_path, monkeypatch, capsys):
    output = tmp_path / "results.json"
    output.write_text("earlier results")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="results.json: could not be written .No space left"):
        run(reader, ink, output, "--limit", "1")
    assert output.read_text() == "earlier results" and len(list(tmp_path.iterdir())) == 2
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"][0]["n"] == 1, "printed instead"


def test_data_sha256_sees_names_and_contents(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a").write_bytes(b"one")
    first = evaluation.data_sha256(folder)
    assert evaluation.data_sha256(folder / "a") != first
    (folder / "a").rename(folder / "b")
    second = evaluation.data_sha256(folder)
    (folder / "b").write_bytes(b"two")
    assert len({first, second, evaluation.data_sha256(folder)}) == 3


@pytest.mark.data
@pytest.mark.parametrize("name", ["crohme_ink.parquet", "crohme_bitmaps_2014.parquet"])
def test_the_shared_files_are_evaluated(reader, data_dir, tmp_path, name):
    results = run(reader, data_dir / name, tmp_path / "results.json", "--split", "test_2014", "--limit", "12")
    assert {row["n"] for row in results["rows"]} == {12} and results["breakdowns"]["unreadable"]["value"] == 0
    assert "${EPIGRAPH_DATA}" in results["command"] and len(results["data_sha256"]) == 64
