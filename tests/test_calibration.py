"""Scores: the fit finds what made the data, the measures are what they say, and the tool changes one field."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from drawings import BAR, PLUS, STEPS, WAVE
from fake_samples import ReadWord, png
from huggingface_hub.errors import StrictDataclassClassValidationError
from word_drawings import WORDS, draw

import epigraph
from epigraph import pretraining
from epigraph.calibration import characters_right, cross_validated, fit, losses, outcomes, probabilities, reliability
from epigraph.cards import reliability_table
from epigraph.models.configuration_comer import CoMERConfig
from epigraph.models.configuration_e2str import E2STRConfig

ROOT = Path(__file__).resolve().parent.parent
FAST = {"num_beams": 2, "max_length": 10}
LINE = {"slope": 0.6, "intercept": 0.8}


def readings(n, seed=0, line=LINE):
    """Log-probabilities of readings, and whether each is right, drawn by the line."""
    rng = np.random.default_rng(seed)
    logs = -rng.exponential(3, n) - 0.01
    return logs, rng.random(n) < probabilities(logs, line)


def test_probabilities_are_the_logistic_function_of_the_log_odds():
    for log in (-0.001, -0.7, -5.0, -40.0):
        odds = math.log(math.exp(log) / (1 - math.exp(log)))
        expected = 1 / (1 + math.exp(-(0.6 * odds + 0.8)))
        assert probabilities([log], LINE)[0] == pytest.approx(expected, rel=1e-9)
        assert probabilities([log], None)[0] == pytest.approx(math.exp(log), rel=1e-9), "the model's own"
    with np.errstate(all="raise", under="ignore"):
        edges = probabilities([0.0, -1e-20, -800.0, -math.inf], LINE)
    assert np.all((0 <= edges) & (edges <= 1)) and edges[0] > 0.999999 and edges[3] == 0
    assert np.all(np.diff(probabilities(np.linspace(-30, -0.01, 200), LINE)) > 0), "likelier is never less"


def test_the_fit_finds_the_line_that_made_the_data():
    found = fit(*readings(20_000))
    assert found["slope"] == pytest.approx(0.6, abs=0.03) and found["intercept"] == pytest.approx(0.8, abs=0.08)
    logs, right = readings(2000, seed=1)
    best = losses(probabilities(logs, fit(logs, right)), right)["log_loss"]
    for slope, intercept in ((0.05, 0), (-0.05, 0), (0, 0.1), (0, -0.1)):
        line = fit(logs, right)
        line = {"slope": line["slope"] + slope, "intercept": line["intercept"] + intercept}
        assert losses(probabilities(logs, line), right)["log_loss"] > best


def test_readings_that_can_be_told_apart_without_error_give_a_finite_line():
    line = fit([-0.01] * 30 + [-9.0] * 30, [True] * 30 + [False] * 30)
    sure, unsure = probabilities([-0.01, -9.0], line)
    assert (sure, unsure) == pytest.approx((31 / 32, 1 / 32), abs=1e-3), "Platt's targets"


@pytest.mark.parametrize(
    "logs, right, message",
    [
        ([-1.0, -2.0], [True, True], "2 of 2 readings are right"),
        ([-1.0, -2.0], [False, False], "0 of 2 readings are right"),
        ([-1.0, -9.0] * 20, [False, True] * 20, "not right more often"),
    ],
)
def test_what_cannot_be_fitted_is_said(logs, right, message):
    with pytest.raises(ValueError, match=message):
        fit(logs, right)


def test_cross_validation_fits_on_the_other_folds():
    logs, right = readings(600)
    found = cross_validated(logs, right)
    assert np.array_equal(found, cross_validated(logs, right)), "the folds are the same each time"
    changed = right.copy()
    changed[0] = not changed[0]
    assert found[0] == cross_validated(logs, changed)[0], "its own truth has no say"
    assert not np.array_equal(found, cross_validated(logs, changed))
    before, after = losses(np.exp(logs), right), losses(found, right)
    assert all(after[name] < before[name] for name in after)


def test_reliability_of_a_small_case_by_hand():
    scores = [0.05, 0.15, 0.85, 0.95, 0.95, 1.0]
    right = [False, True, True, True, False, True]
    found = reliability(scores, right)
    assert found["n"] == 6
    assert [(row["bin"], row["n"]) for row in found["bins"]] == [
        ("0.0-0.1", 1),
        ("0.1-0.2", 1),
        ("0.8-0.9", 1),
        ("0.9-1.0", 3),
    ]
    assert found["bins"][3]["score"] == pytest.approx(2.9 / 3) and found["bins"][3]["right"] == pytest.approx(2 / 3)
    assert found["ece"] == pytest.approx((0.05 + 0.85 + 0.15 + 3 * (2.9 / 3 - 2 / 3)) / 6)
    assert found["brier"] == pytest.approx((0.05**2 + 0.85**2 + 0.15**2 + 0.05**2 + 0.95**2) / 6)
    chances = [0.95, 0.15, 0.85, 0.95, 0.05, 1.0]
    assert found["log_loss"] == pytest.approx(-sum(map(math.log, chances)) / 6)
    # Right ones above wrong ones: .15 over .05; .85 over .05; .95 over .05 and half over .95; 1.0 over both.
    assert found["auroc"] == pytest.approx(5.5 / 8)
    assert found["at_least"][0] == {"score": 0.5, "coverage": 4 / 6, "n": 4, "exprate": 0.75}
    assert found["at_least"][2] == {"score": 0.9, "coverage": 0.5, "n": 3, "exprate": pytest.approx(2 / 3)}


def test_reliability_where_there_is_little_to_say():
    found = reliability([0.3], [True])
    assert found["auroc"] is None
    assert found["at_least"][0] == {"score": 0.5, "coverage": 0.0, "n": 0, "exprate": None}
    json.dumps(found, allow_nan=False)
    assert reliability([0.0, 0.0], [True, False])["log_loss"] < 15, "a wrong certainty does not make it infinite"


def test_the_table_shows_what_was_measured():
    found = {"calibration": LINE, **reliability([0.05, 0.85, 0.95, 0.95], [False, True, True, False])}
    table = reliability_table({"breakdowns": {"reliability": found}})
    assert "| 0.9-1.0 | 2 | 95.0 % | 50.0 % |" in table and "| 0.8 | 75.0 % | 66.7 % |" in table
    assert f"ECE {found['ece']:.4f}" in table and "(calibrated)" in table
    assert reliability_table({"breakdowns": {}}) == reliability_table({}) == "", "results of before"


@pytest.mark.parametrize(
    "wrong",
    [
        {"slope": 1.0},
        {"slope": 1.0, "intercept": 0.0, "power": 2.0},
        {"slope": 0.0, "intercept": 1.0},
        {"slope": float("nan"), "intercept": 0.0},
        {"slope": 1.0, "intercept": float("inf")},
    ],
)
def test_a_calibration_that_cannot_be_is_refused(wrong):
    with pytest.raises(StrictDataclassClassValidationError, match="score_calibration"):
        CoMERConfig(score_calibration=wrong)


@pytest.mark.parametrize(
    "text, label, expected",
    [
        ("Cafe", "cafe", [True] * 4),
        ("coffe", "coffee", [True] * 5),  # what is missing is nobody's fault
        ("it's", "its", [True, True, None, True]),  # 36 does not compare it
        ("kitchen", "kitten", [True] * 3 + [False] * 2 + [True] * 2),
        ("xyz", "abc", [False] * 3),
        ("!?", "a", [None, None]),
        ("", "a", []),
    ],
)
def test_characters_are_right_where_they_stay(text, label, expected):
    found = characters_right(text, label)
    assert [value is None for value in found] == [value is None for value in expected]
    assert sum(map(bool, found)) == sum(map(bool, expected)) and (text == "kitchen" or found == expected)


def test_outcomes_of_words_and_characters():
    readings = [
        ReadWord("a", "Exit", 0.9, char_scores=(0.9, 0.8, 0.7, 0.95)),
        ReadWord("b", "n0!", 0.2, char_scores=(0.6, 0.3, 0.1)),
        ReadWord("c", "pieces", 0.5, char_scores=(0.6, 0.3)),
        ReadWord("d", "", None, error="d: no image"),
        ReadWord("e", "x", 0.4, char_scores=(0.4,)),
    ]
    words, characters = outcomes(readings, ["EXIT", "No!", "piece", "d", "?!"])
    assert words == [(0.9, True), (0.2, False), (0.5, False)], "the protocol leaves out the last label"
    assert characters == [(0.9, True), (0.8, True), (0.7, True), (0.95, True), (0.6, True), (0.3, False)]
    table = reliability(*zip(*characters), "character_accuracy")
    assert table["at_least"][0] == {"score": 0.5, "coverage": 5 / 6, "n": 5, "character_accuracy": 1.0}
    shown = reliability_table({"breakdowns": {"char_reliability": {"calibration": None, **table}}})
    assert shown.startswith("| score of the character | n |") and "| characters with a score of at least |" in shown
    assert "Scores of characters (not calibrated): log-loss" in shown


# ------------------------------------------------------------------------------------------------------ the tool


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import calibrate

    monkeypatch.setattr(calibrate, "LEAST", 20)
    return calibrate


def calibrated(folder, line):
    """The folder, with a calibration in its config.json."""
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "score_calibration": line}))
    return folder


@pytest.fixture
def folder(reader, tmp_path):
    return shutil.copytree(reader, tmp_path / "reader-hme")


@pytest.fixture
def data(tmp_path):
    """Drawings that the model knows, and others, which it cannot but misread; one that cannot be read."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(20):
        text, drawing = [("+", PLUS), (r"\sin x", WAVE), ("a ^ { 2 }", STEPS), ("1", BAR)][number % 4]
        noise = 40 * (number % 3 == 0)
        strokes = [(np.array(stroke) + noise * rng.random((len(stroke), 2))).ravel() for stroke in drawing]
        rows.append({"text": "0" if noise else text, "strokes": strokes, "split": "dev"})
    rows += [{"text": "+", "strokes": [[1.0, 2.0, 3.0]], "split": "dev"}]
    path = tmp_path / "ink.parquet"
    Dataset.from_list([{"id": str(number), **row} for number, row in enumerate(rows)]).to_parquet(path)
    return path


def test_the_tool_changes_one_field_and_scores_follow(script, folder, data, tmp_path, capsys):
    drawings = [PLUS, WAVE, STEPS, BAR]
    before = epigraph.read(drawings, calibrated(folder, {"slope": 3.0, "intercept": -2.0}), **FAST)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    script.main(["--model", str(folder), "--data", str(data), "--split", "dev"])
    printed = capsys.readouterr().out
    assert "20 readings" in printed and "1 of 21 formulas could not be read" in printed and "Brier" in printed

    settings = json.loads((folder / "config.json").read_text())
    calibration = settings.pop("score_calibration")
    old = json.loads(files["config.json"])
    old.pop("score_calibration", None)
    assert settings == old and {path.name for path in folder.iterdir()} == set(files)
    assert all((folder / name).read_bytes() == content for name, content in files.items() if name != "config.json")

    after = epigraph.read(drawings, folder, n_best=2, **FAST)
    logs = [result.n_best[0].log_probability for result in after]
    assert [result.score for result in after] == pytest.approx(probabilities(logs, calibration).tolist(), abs=1e-6)
    assert logs == [result.n_best[0].log_probability for result in before], "the model itself is as it was"
    assert [result.text for result in after] == [result.text for result in before]
    assert all(sum(candidate.score for candidate in result.n_best) <= 1 for result in after)

    CoMERConfig.from_pretrained(folder).save_pretrained(tmp_path / "copy")
    copy = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert copy["score_calibration"] == calibration, "it travels with the model"


@pytest.fixture
def word_data(tmp_path):
    """Drawn words that the model knows, and noise, which it cannot but misread; one image is damaged."""
    rng, rows = np.random.default_rng(0), []
    for number in range(60):
        word = WORDS[number % 4]
        image = np.asarray(draw(word, 1 + number)).copy()
        if number % 3 == 0:
            image = rng.integers(0, 256, image.shape, np.uint8)
        rows.append({"id": str(number), "image": png(image), "text": word, "split": "dev", "source": "drawn"})
    rows.append({"id": "cut", "image": rows[0]["image"][:90], "text": "cut", "split": "dev", "source": "drawn"})
    path = tmp_path / "words.parquet"
    Dataset.from_list(rows).to_parquet(path)
    return path


def test_words_get_a_calibration_and_their_characters_another(script, word_reader, word_data, tmp_path, capsys):
    folder = shutil.copytree(word_reader, tmp_path / "reader")
    pictures = [draw(word) for word in WORDS]
    own = epigraph.read(pictures, folder, n_best=2)
    before = json.loads((folder / "config.json").read_text())
    script.main(["--model", str(folder), "--data", str(word_data), "--split", "dev", "--source", "drawn"])
    printed = capsys.readouterr().out
    assert "1 of 61 words could not be read" in printed and "60 readings" in printed and "characters, " in printed
    after = json.loads((folder / "config.json").read_text())
    lines = [after.pop(name) for name in ("score_calibration", "char_score_calibration")]
    assert after == {name: value for name, value in before.items() if not name.endswith("score_calibration")}
    assert lines[0] != lines[1]
    for was, now in zip(own, epigraph.read(pictures, folder, n_best=2)):
        assert now.text == was.text
        assert now.score == pytest.approx(probabilities([math.log(was.score)], lines[0])[0])
        assert now.char_scores == pytest.approx(probabilities(np.log(was.char_scores), lines[1]))
        assert sum(candidate.score for candidate in now.n_best) <= 1
    again = (folder / "config.json").read_bytes()
    script.main(["--model", str(folder), "--data", str(word_data)])
    assert (folder / "config.json").read_bytes() == again, "fitted to the model's own scores, whatever stood there"


def test_words_that_training_held_out(script, word_reader, word_data, tmp_path, capsys, monkeypatch):
    from epigraph.data.word_batches import WordSource
    from epigraph.reading import load

    folder = shutil.copytree(word_reader, tmp_path / "reader")
    _, processor = load(folder)
    characters = set(processor.tokenizer.get_vocab()) - set(processor.tokenizer.all_special_tokens)
    _, kept = WordSource(str(word_data), "dev", "drawn", held_out=0.5).load(characters)
    script.main(["--model", str(folder), "--data", str(word_data), "--source", "drawn", "--held_out", "0.5"])
    assert 20 < len(kept) < 40 and f" of {len(kept)} words could not be read" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong", [{"slope": 1.0}, {"slope": -1.0, "intercept": 0.0}, {"slope": 1.0, "intercept": math.inf}]
)
def test_configurations_of_words_hold_two_finite_numbers(wrong):
    for name in ("score_calibration", "char_score_calibration"):
        with pytest.raises(StrictDataclassClassValidationError, match=name):
            E2STRConfig(**{name: wrong})


@pytest.mark.parametrize("case", ["few", "hub", "split"])
def test_the_tool_refuses_in_a_sentence_and_changes_nothing(script, folder, data, tmp_path, case):
    before = (folder / "config.json").read_bytes()
    few = tmp_path / "few.parquet"
    Dataset.from_parquet(str(data)).select(range(8)).to_parquet(few)
    arguments, message = {
        "few": (["--model", str(folder), "--data", str(few)], "8 readings are too few"),
        "hub": (["--model", "somebody/model", "--data", str(data)], "no such folder"),
        "split": (["--model", str(folder), "--data", str(data), "--split", "tset"], "tset"),
    }[case]
    with pytest.raises(ValueError, match=message):
        script.main(arguments)
    assert (folder / "config.json").read_bytes() == before


def test_an_adapter_has_no_config_to_write_to(script, data, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="config.json: cannot be written; calibration needs a whole model"):
        script.main(["--model", str(tmp_path / "adapter"), "--data", str(data)])


def test_training_on_drops_the_calibration_of_other_weights(folder, tmp_path):
    calibrated(folder, LINE)
    data = tmp_path / "ink.parquet"
    strokes = [np.array(stroke, dtype=float).ravel() for stroke in PLUS]
    Dataset.from_list([{"id": name, "text": "+", "strokes": strokes} for name in "ab"]).to_parquet(data)
    arguments = {"output_dir": tmp_path / "run", "train_data": data, "model": folder, "max_steps": 1, "num_workers": 0}
    pretraining.main([part for name, value in arguments.items() for part in (f"--{name}", str(value))])
    assert json.loads((tmp_path / "run" / "final" / "config.json").read_text())["score_calibration"] is None
