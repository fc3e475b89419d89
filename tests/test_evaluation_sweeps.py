"""Sweeps: each setting is what a run of its own measures, nothing is computed twice, and intervals by hand."""

import json

import pytest
from fake_samples import png
from word_drawings import draw

datasets = pytest.importorskip("datasets")
pytest.importorskip("faiss", reason="faiss-cpu is not installed")

import numpy as np  # noqa: E402

from epigraph import evaluation  # noqa: E402
from epigraph.context_pool import ContextPool  # noqa: E402
from epigraph.evaluation_sweeps import T95, interval, summarise, sweep_table  # noqa: E402
from epigraph.models.modeling_e2str import E2STRForTextRecognition  # noqa: E402


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(path, words, variants, texts=None, source="signs"):
    rows = {"image": [png(np.asarray(draw(*of))) for of in zip(words, variants)], "text": texts or words}
    rows |= {"id": [f"{path.stem}{n}" for n in range(len(words))], "source": [source] * len(words)}
    datasets.Dataset.from_dict(rows | {"split": ["test"] * len(words)}).to_parquet(path)
    return path


@pytest.fixture
def words(tmp_path):
    """SIGN says ab here, which only examples tell; `cat` is labelled with what nobody reads."""
    names = ["SIGN", "SIGN", "Exit", "42", "cat", "No!"]
    return write(tmp_path / "words.parquet", names, [21, 22, 23, 24, 25, 26], ["ab", "ab", "Exit", "42", "dog", "No!"])


@pytest.fixture
def examples(tmp_path):
    names = ["SIGN", "cat", "42", "SIGN", "Exit", "No!"]
    return write(tmp_path / "pool.parquet", names, range(1, 7), ["ab", "cat", "42", "ab", "Exit", "No!"])


def run(model, data, pool, output, *arguments):
    given = ["--model", model, "--data", data, "--output", output, "--pool", pool, "--num_beams", "1", *arguments]
    evaluation.main([str(argument) for argument in given])
    return json.loads(output.read_text())


ALL = ["--context", "none", "knn", "random", "wrong", "copy", "--k", "1", "2", "--pool_size", "3", "5", "--pool-seed",
       "0", "1"]  # fmt: skip


@pytest.fixture
def swept(word_reader, words, examples, tmp_path):
    return run(word_reader, words, examples, tmp_path / "sweep.json", *ALL)


def test_every_setting_is_what_a_run_of_its_own_measures(swept, word_reader, words, examples, tmp_path, capsys):
    rows = [row for row in swept["rows"] if row["metric"] == "word_accuracy"]
    assert len(rows) == 1 + 2 * 2 * (3 * 2 + 1), "copy has no k"
    assert len({tuple(row[key] for key in ("context", "k", "pool_size", "pool_seed")) for row in rows}) == len(rows)
    assert len({row["value"] for row in rows}) > 2, "contexts make a difference here"
    chosen = [row for row in rows if (row["pool_size"], row["pool_seed"]) == (5, 1)]
    assert {row["context"] for row in chosen} == {"knn", "random", "wrong", "copy"}
    for row in chosen:
        given = ["--context", row["context"], "--pool-size", "5", "--pool-seed", "1"]
        given += [] if row["context"] == "copy" else ["--k", row["k"]]
        beams = [] if row["context"] == "copy" else ["--num_beams", "1"]
        output = tmp_path / "single.json"
        given = ["--model", word_reader, "--data", words, "--pool", examples, "--output", output, *given, *beams]
        evaluation.main([str(argument) for argument in given])
        alone = json.loads(output.read_text())
        same = [
            {key: of[key] for key in ("metric", "value", "n", "context", "k", "pool_seed")} for of in alone["rows"]
        ]
        ours = [
            of
            for of in swept["rows"]
            if all(of[key] == row[key] for key in ("context", "k", "pool_size", "pool_seed"))
        ]
        assert [{key: of[key] for key in same[0]} for of in ours] == same
        found = alone["breakdowns"]["context"]
        new, theirs = row["label_not_in_pool"], found["label_not_in_pool"]
        assert (new["n"], new["value"]) == (theirs["n"], theirs["word_accuracy"])
        assert row["pool_sha256"] == found["pool"]["sha256"] and row["entries"] == 5
        if row["context"] != "copy":
            assert row["plain"] == found["plain"][0]["value"] and new["plain"] == theirs["plain"]
        assert row["gained"] - row["lost"] == pytest.approx((row["value"] - row["plain"]) * row["n"])
        assert new["gained"] - new["lost"] == pytest.approx(((new["value"] or 0) - (new["plain"] or 0)) * new["n"])


def test_contexts_differ_as_they_should(word_reader, words, examples, tmp_path, capsys):
    results = run(word_reader, words, examples, tmp_path / "sweep.json", "--context", "none", "knn", "wrong", "copy",
                  "--k", "1", "2")  # fmt: skip
    value = {(row["context"], row["k"]): row for row in results["rows"] if row["metric"] == "word_accuracy"}
    plain = value["none", None]["value"]
    assert value["knn", 1]["value"] == 5 / 6 > plain and value["knn", 1]["gained"] > 0 == value["knn", 1]["lost"]
    assert value["copy", 1]["value"] == 5 / 6, "the pool has all of the words, and dog for nobody"
    assert value["wrong", 1]["value"] < 5 / 6
    assert value["knn", 1]["label_not_in_pool"] == {"n": 1, "value": 0.0, "plain": 0.0, "gained": 0, "lost": 0}
    assert "plain" not in value["none", None] and value["none", None]["pool_size"] is None
    printed = capsys.readouterr().out
    assert "signs, test, 6 words, protocol 36" in printed and "| knn | 1 | all | 1 | 83.33 ± " in printed


def test_nothing_is_computed_twice(word_reader, words, examples, tmp_path, monkeypatch):
    encoded, generated = [], []
    encode, generate = E2STRForTextRecognition.encode, E2STRForTextRecognition.generate

    def encoding(self, pixels):
        encoded.append(len(pixels))
        return encode(self, pixels)

    def generating(self, **settings):
        generated.append(len(settings["contexts"]))
        return generate(self, **settings)

    monkeypatch.setattr(E2STRForTextRecognition, "encode", encoding)
    monkeypatch.setattr(E2STRForTextRecognition, "generate", generating)
    output = tmp_path / "sweep.json"
    settings = ["--context", "none", "knn", "wrong", "--k", "1", "2", "--pool_size", "6", "--pool_seed", "0", "1", "2"]
    first = run(word_reader, words, examples, output, *settings)
    # The pool is the same in all draws, and so is knn in it. Besides the images there is the one that tells encoders.
    assert sum(encoded) == 6 + 6 + 1
    assert sum(generated) <= 6 * (1 + 2 + 2 * 3)
    encoded.clear(), generated.clear()
    again = run(word_reader, words, examples, output, *settings)
    assert again["command"] == first["command"]
    assert again["rows"] == first["rows"] and not encoded and not generated, "all of it was there"
    more = run(word_reader, words, examples, output, "--context", "knn", "--k", "2", "3", "--pool_size", "6")
    assert more["rows"][: len(first["rows"])] == first["rows"] and len(more["rows"]) == len(first["rows"]) + 3
    assert sum(generated) == 6 + 6, "without examples, and k 3"
    commands = more["command"].split("\n")
    assert commands[0] == first["command"] and len(commands) == 2 and "--k 2 3" in commands[1]


def test_a_run_that_is_stopped_goes_on(swept, word_reader, words, examples, tmp_path, monkeypatch):
    output, written = tmp_path / "stopped.json", []

    def stopping(path, results):
        write_json(path, results)
        written.append(len(results["rows"]))
        if len(written) == 3:
            raise KeyboardInterrupt

    from epigraph import evaluation_sweeps

    write_json = evaluation_sweeps.write_json
    monkeypatch.setattr(evaluation_sweeps, "write_json", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(word_reader, words, examples, output, *ALL)
    assert written == [3, 6, 9] and len(json.loads(output.read_text())["rows"]) == 9
    monkeypatch.undo()
    assert run(word_reader, words, examples, output, *ALL)["rows"] == swept["rows"]


def test_files_of_another_sweep_stay_as_they_are(swept, word_reader, words, examples, tmp_path):
    output = tmp_path / "sweep.json"
    before = output.read_bytes()
    other = write(tmp_path / "other.parquet", ["cat", "42"], [1, 2])
    for data, pool, more, named in (
        (other, examples, [], "data_sha256"),
        (words, other, [], "pool"),
        (words, examples, ["--gate", "0.5"], "gate"),
        (words, examples, ["--limit", "3"], "limit"),
    ):
        with pytest.raises(ValueError, match=f"sweep.json holds a sweep with another {named} .*name another file"):
            run(word_reader, data, pool, output, *ALL, *more)
    assert output.read_bytes() == before
    output.write_text(json.dumps({"rows": []}))
    with pytest.raises(ValueError, match="is there and holds no sweep"):
        run(word_reader, words, examples, output, *ALL)


def test_one_more_setting_is_added_to_a_sweep_and_replaces_nothing(word_reader, words, examples, tmp_path):
    output = tmp_path / "sweep.json"
    swept = run(word_reader, words, examples, output, "--context", "none", "knn", "--k", "1")
    unreadable = {"value": 1 / 6, "n": 6, "first": ["words3: it is too small."]}
    output.write_text(json.dumps(swept | {"breakdowns": swept["breakdowns"] | {"unreadable": unreadable}}))
    again = run(word_reader, words, examples, output, "--context", "knn", "--k", "1")
    assert again["rows"] == swept["rows"], "it was measured before"
    assert again["breakdowns"]["unreadable"] == unreadable, "nothing was read that would say otherwise"
    more = run(word_reader, words, examples, output, "--context", "knn", "--k", "2")
    rows, added = more["rows"][: len(swept["rows"])], more["rows"][len(swept["rows"]) :]
    assert rows == swept["rows"] and {(row["context"], row["k"]) for row in added} == {("knn", 2)}
    rows = [row | {"half": "queries"} for row in more["rows"]]
    assert sweep_table(more | {"rows": rows}).startswith("signs, test, queries, 6 words, protocol 36; ")


def test_what_a_sweep_refuses(word_reader, words, examples, tmp_path):
    two = write(tmp_path / "two.parquet", ["cat"], [1])
    rows = datasets.load_dataset("parquet", data_files=[str(words), str(two)], split="train", cache_dir=str(tmp_path))
    rows = rows.remove_columns("source").add_column("source", ["a"] * 6 + ["b"])
    rows.to_parquet(tmp_path / "mixed.parquet")
    with pytest.raises(ValueError, match="a sweep measures one source and split"):
        run(word_reader, tmp_path / "mixed.parquet", examples, tmp_path / "r.json", *ALL)
    with pytest.raises(ValueError, match="a sweep compares under one protocol"):
        run(word_reader, words, examples, tmp_path / "r.json", *ALL, "--protocol", "36", "94")
    with pytest.raises(ValueError, match="there is no --context near; there are none, knn"):
        run(word_reader, words, examples, tmp_path / "r.json", "--context", "near", "knn")
    assert not (tmp_path / "r.json").exists()


def test_saved_pools_and_gates(word_reader, words, examples, tmp_path):
    import epigraph
    from epigraph.reading import load

    ContextPool.from_folder(examples, epigraph.encoder(*load(word_reader))).save(tmp_path / "saved")
    arguments = ["--context", "none", "knn", "random", "--pool_size", "4"]
    saved = run(word_reader, words, tmp_path / "saved", tmp_path / "a.json", *arguments)
    assert {row["entries"] for row in saved["rows"] if row["context"] != "none"} == {4}
    closed = run(word_reader, words, examples, tmp_path / "b.json", *arguments, "--gate", "0")
    assert len({row["value"] for row in closed["rows"] if row["metric"] == "word_accuracy"}) == 1, "nobody gets any"


def test_intervals_by_hand():
    alone = interval([0.8], [0.16], [400])
    assert alone.value == 0.8 and alone.plus_minus == pytest.approx(1.96 * (0.16 / 400) ** 0.5)
    three = interval([0.5, 0.6, 0.7], [0.0] * 3, [10] * 3)
    assert three.value == pytest.approx(0.6) and three.plus_minus == pytest.approx(4.303 * 0.1 / 3**0.5)
    both = interval([0.5, 0.6, 0.7], [0.25, 0.24, 0.21], [100] * 3)
    assert both.plus_minus**2 == pytest.approx((4.303 * 0.1) ** 2 / 3 + 1.96**2 * (0.70 / 3) / 100)
    assert interval([0.5, 0.6, 0.0], [0.2] * 3, [5, 5, 0]).value == pytest.approx(0.55), "a draw without such words"
    assert interval([0.0], [0.0], [0]).value is None and T95[1] == 4.303


def test_the_intervals_hold_what_they_promise():
    """Over many experiments with known truth, 95 % of the intervals hold it, or a few more."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        easy = rng.normal(0.7, 0.1, 300).clip(0.05, 0.95)  # words
        rights = [rng.random(300) < (easy + shift).clip(0, 1) for shift in rng.normal(0, 0.03, 3)]  # draws
        rates = [right.mean() for right in rights]
        found = interval(rates, [rate * (1 - rate) for rate in rates], [300] * 3)
        held += abs(found.value - 0.7) <= found.plus_minus
    assert 0.93 * 400 <= held


def test_gains_are_paired(swept):
    (entry,) = [of for of in summarise(swept["rows"]) if (of["context"], of["k"], of["pool_size"]) == ("knn", 2, 5)]
    rows = [row for row in swept["rows"] if (row["context"], row["k"], row["pool_size"]) == ("knn", 2, 5)]
    rows = [row for row in rows if row["metric"] == "word_accuracy"]
    assert entry["seeds"] == [0, 1] and entry["n"] == 6
    gains = [row["value"] - row["plain"] for row in rows]
    assert entry["gain"]["value"] == pytest.approx(np.mean(gains))
    variances = [(row["gained"] + row["lost"]) / 6 - gain**2 for row, gain in zip(rows, gains)]
    squared = 1.96**2 * np.mean(variances) / 6 + 12.706**2 * np.var(gains, ddof=1) / 2
    assert entry["gain"]["plus_minus"] == pytest.approx(squared**0.5)
    order = [line.split("|")[1].strip() for line in sweep_table(swept).splitlines()[4:]]
    assert order == ["none"] + ["knn"] * 4 + ["random"] * 4 + ["wrong"] * 4 + ["copy"] * 2
