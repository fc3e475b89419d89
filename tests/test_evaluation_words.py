"""Evaluation of words: protocols by hand, what is left out, examples in context and controls, and real models."""

import json
import logging

import numpy as np
import pytest
from fake_samples import FakeRecogniser, encode_letters, png, word_picture, write_words
from word_drawings import WORDS, draw

datasets = pytest.importorskip("datasets")
pytest.importorskip("faiss", reason="faiss-cpu is not installed")

from epigraph import evaluation, evaluation_words  # noqa: E402
from epigraph.cards import metrics_table, read_results, results_section  # noqa: E402
from epigraph.context_pool import ContextPool  # noqa: E402
from epigraph.data.protocols import benchmark_subset  # noqa: E402
from epigraph.data.words import load_checked_words  # noqa: E402
from epigraph.metrics import averages, word_breakdowns, word_rows  # noqa: E402


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    """What looks like a model's folder from outside."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"weights")
    return path


@pytest.fixture
def recogniser(monkeypatch):
    """In the place of every model: `recogniser(answers, learnt)`."""

    def use(answers=None, learnt=None):
        fake = FakeRecogniser(answers, learnt)
        monkeypatch.setattr(evaluation_words, "load", lambda *_: (fake, None))
        monkeypatch.setattr(evaluation_words, "read_all", fake.read_all)
        monkeypatch.setattr(evaluation_words, "encoder", lambda *_: encode_letters)
        return fake

    return use


def run(folder, data, *arguments):
    output = data.parent / "results.json"
    given = ["--model", folder, "--data", data, "--task", "word", "--output", output, *arguments]
    evaluation.main([str(argument) for argument in given])
    return json.loads(output.read_text())


def values(results, metric="word_accuracy"):
    return {row["protocol"]: (row["value"], row["n"]) for row in results["rows"] if row["metric"] == metric}


# ----------------------------------------------------------------------------------------------------------- protocols

LONG = "aishahaleyes.blogspot.com!"  # 26 characters, of which protocol 36 would keep 23
SAID = {"It's": "its", "x^2": "x2", "Café": "cafe", LONG: LONG, "!?": "", "word": "word"}
BY_HAND = {
    "36": (4 / 4, {"longer than 25 characters": 1, "no character of the protocol": 1}),
    "62": (2 / 4, {"longer than 25 characters": 1, "no character of the protocol": 1}),  # x2 and word
    "94": (1 / 5, {"longer than 25 characters": 1}),  # word
    "standard": (2 / 6, {}),  # the long one and word
    "literature": (4 / 6, {}),  # mmocr keeps ^ and deletes é; of !? nothing remains, and nothing was read
    "literature_ignore_case": (2 / 6, {}),
    "literature_openocr": (4 / 5, {"longer than 25 characters": 1}),  # all but Café, of which it keeps caf
    "literature_anyascii": (2 / 6, {}),
    "literature_unicase": (3 / 6, {}),  # Café, too
}


def test_protocols_by_hand_in_one_run(folder, recogniser, tmp_path):
    fake = recogniser(SAID)
    results = run(folder, write_words(tmp_path / "words.parquet", [*SAID]), "--protocol", *BY_HAND)
    assert len(fake.calls) == 1, "words are read once, however many protocols there are"
    accuracies = values(results)
    for protocol, (accuracy, left_out) in BY_HAND.items():
        assert accuracies[protocol] == (pytest.approx(accuracy), 6 - sum(left_out.values()))
        rows = [row for row in results["rows"] if row["protocol"] == protocol]
        assert [row["metric"] for row in rows] == ["word_accuracy", "ned", "cer"]
        assert all(row.get("left_out", {}) == left_out for row in rows)
    assert [(entry["protocol"], entry["left_out"]) for entry in results["breakdowns"]["protocols"]] == [
        (protocol, left_out) for protocol, (_, left_out) in BY_HAND.items()
    ]
    deleted = {entry["protocol"]: entry["deleted"] for entry in results["breakdowns"]["protocols"]}
    assert deleted["36"]["labels"] == 4 and deleted["36"]["characters"] == {
        "'": 1, "^": 1, ".": 2, "!": 2, "?": 1,
    }  # fmt: skip
    assert deleted["94"] == {"labels": 0, "characters": {}}, "é becomes e"
    assert deleted["literature"]["characters"] == {"'": 1, "é": 1, ".": 2, "!": 2, "?": 1}, "^ is kept"


def test_default_protocol_and_the_edit_distances(folder, recogniser, tmp_path):
    recogniser({"kitten": "sitting", "Hall": "hall", "abc": ""})
    results = run(folder, write_words(tmp_path / "words.parquet", ["kitten", "Hall", "abc"]))
    assert values(results) == {"36": (pytest.approx(1 / 3), 3)}
    assert values(results, "ned") == {"36": (pytest.approx((4 / 7 + 1 + 0) / 3), 3)}
    assert values(results, "cer") == {"36": (pytest.approx((3 + 0 + 3) / 13), 3)}


def test_json_has_the_fixed_form(folder, recogniser, tmp_path, capsys):
    recogniser({"two": "too"})
    data = write_words(tmp_path / "words.parquet", ["one", "two", "three"], source=["a", "a", "b"])
    results = run(folder, data, "--split", "test")
    assert set(results) == {"model", "command", "versions", "weights_sha256", "data_sha256", "rows", "breakdowns"}
    assert results == read_results(tmp_path / "results.json")
    for row in results["rows"]:
        assert {"metric", "value", "n", "source", "split", "protocol"} <= set(row) and row["context"] == "none"
        assert 0 <= row["value"] <= 1 and row["split"] == "test" and row["protocol"] == "36"
    assert len({(row["metric"], row["source"]) for row in results["rows"]}) == len(results["rows"]) == 6
    assert len(results["data_sha256"]) == len(results["weights_sha256"]) == 64
    assert results["breakdowns"]["unreadable"] == {"value": 0.0, "n": 3, "first": []}
    assert results["breakdowns"]["records"] == {"n": 3, "left_out": 0, "reasons": {}, "first": []}
    (accuracy, *_) = results["breakdowns"]["averages"]
    assert accuracy == {"metric": "word_accuracy", "protocol": "36", "sets": 2, "n": 3, "arithmetic": 0.75,
                        "weighted": pytest.approx(2 / 3)}  # fmt: skip
    assert [(row["bin"], row["n"], row["word_accuracy"]) for row in results["breakdowns"]["length"]] == [
        ("1-3", 2, 0.5),
        ("4-6", 1, 1.0),
    ]
    assert [(row["source"], row["word_accuracy"]) for row in results["breakdowns"]["source"]] == [("a", 0.5), ("b", 1)]
    printed = capsys.readouterr().out
    assert "| a | test | 36 | 2 | 50.00 % |" in printed and "arithmetic 75.00 %, weighted 66.67 %" in printed
    assert "| a | test | 36 | 2 | 50.00 % |" in results_section([results]), "cards take it"


def test_average_error_rates_are_weighted_by_characters():
    rows = word_rows(["ab", "x"], ["abcd", "x"], ["a", "b"], ["test"] * 2)
    (cer,) = [row for row in averages(rows) if row["metric"] == "cer"]
    assert cer["arithmetic"] == pytest.approx((2 / 4 + 0) / 2) and cer["weighted"] == pytest.approx(2 / 5)
    found = word_breakdowns(["", "?"], ["?!", "!"], ["a", "b"], "36")
    assert found == {"length": [], "source": []}, "nothing that the protocol counts"


def test_sets_that_the_protocol_leaves_out_as_a_whole_have_no_value(folder, recogniser, tmp_path, capsys):
    recogniser()
    results = run(folder, write_words(tmp_path / "words.parquet", ["a", "?!"], source=["x", "y"]))
    assert [(row["value"], row["n"]) for row in results["rows"] if row["source"] == "y"] == [(None, 0)] * 3
    assert results["breakdowns"]["averages"][0]["sets"] == 1
    assert "| y | test | 36 | 0 |  |  |  |" in capsys.readouterr().out
    assert "| y |" in metrics_table(results)


# ------------------------------------------------------------------------------------------------ sub-sets and records


@pytest.mark.parametrize(
    ("source", "words", "expected"),
    [
        ("icdar13", 1095, "ICDAR 2013, 1095 words: all words"),
        ("IC13_1015", 1015, "ICDAR 2013, 1015 words: letters and digits only"),
        ("ICDAR2013", 857, "ICDAR 2013, 857 words: letters and digits only, at least 3 characters"),
        ("IC15_2077", 2077, "ICDAR 2015, 2077 words: all words"),
        ("ic15", 1811, "ICDAR 2015, 1811 words: without other characters and the most slanted and curved"),
        ("icdar15", 4468, "ICDAR 2015, 4468 words: none of the sub-sets in use"),
        ("iiit5k", 3000, None),
        ("topic13", 857, None),
    ],
)
def test_subsets_are_named(source, words, expected):
    assert benchmark_subset(source, words) == expected


def test_filters_make_the_subsets_and_are_recorded(folder, recogniser, tmp_path):
    recogniser()
    texts = ["Ab", "It's", "1st", "word", "日本x"]
    data = write_words(tmp_path / "words.parquet", texts, source=["icdar13"] * 5)
    results = run(folder, data, "--only_alnum", "--min-length", "3", "--labels", "original")
    assert values(results) == {"36": (1.0, 2)}
    recorded = results["breakdowns"]["data"]
    sets = recorded.pop("sets")
    expected = {"labels": "original", "half": None, "only_alnum": True, "min_length": 3, "filtered": 3}
    assert recorded == expected
    assert sets[0]["words"] == 2 and sets[0]["subset"] == "ICDAR 2013, 2 words: none of the sub-sets in use"
    assert results["rows"][0]["subset"] == sets[0]["subset"]
    with pytest.raises(ValueError, match="none of the 5 words passes only_alnum and min_length"):
        run(folder, data, "--min_length", "20")


@pytest.mark.data
@pytest.mark.parametrize(("arguments", "words"), [((), 1095), (("--only_alnum",), 1015),
                                                  (("--only_alnum", "--min_length", "3"), 857)])  # fmt: skip
def test_icdar_2013_has_its_sizes(folder, recogniser, data_dir, tmp_path, monkeypatch, arguments, words):
    fake = recogniser()

    def silent(inputs, *_, names, **__):
        return [type("Reading", (), {"text": "", "error": None, "score": None})() for _ in names]

    monkeypatch.setattr(fake, "read_all", silent)
    monkeypatch.setattr(evaluation_words, "read_all", silent)
    output = tmp_path / "results.json"
    given = ["--model", folder, "--data", data_dir / "words.parquet", "--split", "test", "--source", "icdar13"]
    given += ["--task", "word", "--protocol", "standard", "--output", output, *arguments]
    evaluation.main([str(argument) for argument in given])
    results = json.loads(output.read_text())
    assert {row["n"] for row in results["rows"]} == {words}
    assert results["rows"][0]["subset"].startswith(f"ICDAR 2013, {words} words: ")
    assert "none" not in results["rows"][0]["subset"] and results["breakdowns"]["records"]["left_out"] == 0


def test_damaged_records_are_left_out_counted_and_named(folder, recogniser, tmp_path, capsys):
    recogniser()
    good = png(word_picture("good"))
    rows = {
        "image": [good, good[: len(good) // 2], None, good],
        "text": ["good", "cut", "none", " "],
        "id": list("wxyz"),
    }
    data = tmp_path / "words.parquet"
    datasets.Dataset.from_dict(rows).to_parquet(data)
    results = run(folder, data)
    assert values(results) == {"36": (1.0, 1)}
    records = results["breakdowns"]["records"]
    assert (records["n"], records["left_out"]) == (4, 3)
    assert records["reasons"] == {"the image is damaged": 1, "no image": 1, "no text": 1}
    assert [line.split(":")[0] for line in records["first"]] == ["x", "y", "z"]
    assert "1 of 4 records cannot be used: no image" in capsys.readouterr().out
    datasets.Dataset.from_dict({name: column[1:] for name, column in rows.items()}).to_parquet(data)
    with pytest.raises(ValueError, match="words.parquet: no usable word in it; the first, x: the image is damaged"):
        run(folder, data)


def test_lmdb_with_missing_keys_is_measured_and_reported(folder, recogniser, tmp_path):
    lmdb = pytest.importorskip("lmdb")
    recogniser({"three": "tree"})
    base = tmp_path / "data" / "SVT"
    base.mkdir(parents=True)
    with lmdb.open(str(base), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"num-samples", b"5")
        for index, text in enumerate(["one", "two", "three"], start=1):
            transaction.put(b"image-%09d" % index, png(word_picture(text)))
            transaction.put(b"label-%09d" % index, text.encode())
        transaction.put(b"image-%09d" % 4, png(word_picture("four")))
        transaction.put(b"label-%09d" % 5, b"five")
    results = run(folder, tmp_path / "data")
    assert values(results) == {"36": (pytest.approx(2 / 3), 3)}
    assert {(row["source"], row["split"]) for row in results["rows"]} == {("SVT", None)}
    assert results["breakdowns"]["records"] == {
        "n": 5,
        "left_out": 2,
        "reasons": {"no label under its key": 1, "no image under its key": 1},
        "first": ["000000004: no label under its key", "000000005: no image under its key (image-000000005)"],
    }


def test_folders_with_a_table_are_measured(folder, recogniser, tmp_path):
    recogniser({"two": "too"})
    shop = tmp_path / "shop"
    shop.mkdir()
    for text in ("one", "two"):
        (shop / f"{text}.png").write_bytes(png(word_picture(text)))
    (shop / "cut.png").write_bytes(png(word_picture("cut"))[:60])
    (shop / "metadata.csv").write_text("file_name,text\none.png,one\ntwo.png,two\ncut.png,cut\ngone.png,x\n")
    _, report = load_checked_words(shop)
    assert report.records == 4 and [name for name, _ in report.left_out] == ["gone.png", "cut.png"]
    results = run(folder, shop)
    assert values(results) == {"36": (0.5, 2)} and results["breakdowns"]["records"]["left_out"] == 2
    assert results["breakdowns"]["records"]["n"] == 4


def test_halves_of_a_source_are_pool_and_queries(folder, recogniser, tmp_path):
    recogniser()
    ids = ["word_1.png", "word_2.png", "001#19", "007#3"]  # the second and third are the pool
    data = write_words(tmp_path / "words.parquet", ["one", "two", "three", "four"], id=ids)
    results = run(folder, data, "--half", "queries", "--context", "knn", "--pool", data, "--pool-half", "pool")
    assert values(results) == {"36": (1.0, 2)} and results["breakdowns"]["data"]["half"] == "queries"
    pool = results["breakdowns"]["context"]["pool"]
    assert (pool["half"], pool["size"], pool["test_images"]) == ("pool", 2, 0)


def test_limit_takes_the_first_words(folder, recogniser, tmp_path):
    recogniser({"a": "b"})
    results = run(folder, write_words(tmp_path / "words.parquet", ["a", "c", "d"]), "--limit", "2")
    assert values(results) == {"36": (0.5, 2)} and "--limit 2" in results["command"]


# ------------------------------------------------------------------------------------------------- examples in context


CONTEXT_WORDS = ["l0st", "r00m", "gate", "t0wn"]
UNSURE = {"l0st": "lost", "r00m": "room", "t0wn": "town"}
LEARNT = {("l0st", "sl0t"): "l0st", ("r00m", "m00r"): "m00r", ("gate", "gaten"): "gaten"}


@pytest.fixture
def context_data(tmp_path):
    """Four words, and a pool in which each has its nearest example; the label of one word stands in it."""
    pool = write_words(tmp_path / "pool.parquet", ["sl0t", "m00r", "gaten", "t0wn", "zzz", "qqq"], seed=3)
    return write_words(tmp_path / "words.parquet", CONTEXT_WORDS), pool


def test_gains_losses_and_copies_by_hand(folder, recogniser, context_data, capsys):
    data, pool = context_data
    fake = recogniser(UNSURE, LEARNT)
    results = run(folder, data, "--context", "knn", "--pool", pool, "--k", "1", "--gate", "0.9")
    assert fake.calls == [{"k": 1, "gate": 0.9, "task": "word", "batch_size": 8, "progress": True}]
    found = results["breakdowns"]["context"]
    # l0st becomes right, r00m copies and stays wrong, gate was right and copies, t0wn finds itself and stays wrong.
    assert values(results) == {"36": (0.25, 4)}
    assert {row["value"] for row in found["plain"] if row["metric"] == "word_accuracy"} == {0.25}
    assert found["with_examples"] == {"n": 4, "word_accuracy": 0.25, "plain": 0.25}
    assert found["label_in_pool"] == {"n": 1, "word_accuracy": 0.0, "plain": 0.0}
    assert found["label_not_in_pool"] == {"n": 3, "word_accuracy": pytest.approx(1 / 3), "plain": pytest.approx(1 / 3)}
    assert found["copied"] == {"n": 2, "word_accuracy": 0.0, "plain": 0.5} and found["spoiled"] == {"n": 1}
    assert found["mode"] == "knn" and found["k"] == 1 and found["gate"] == 0.9
    described = found["pool"]
    assert (described["size"], described["entries"], described["test_images"]) == (6, 6, 0)
    assert len(described["sha256"]) == 64 and described["path"] == str(pool)
    row = results["rows"][0]
    assert (row["context"], row["k"], row["pool_size"], row["pool_seed"]) == ("knn", 1, 6, 0)
    printed = capsys.readouterr().out
    assert "| whose label stands in the pool | 1 | 0.00 % | 0.00 % |" in printed and "knn" in metrics_table(results)


def test_copy_answers_with_the_nearest_text_and_reads_nothing(folder, recogniser, context_data):
    data, pool = context_data
    fake = recogniser(UNSURE, LEARNT)
    results = run(folder, data, "--context", "copy", "--pool", pool)
    assert not fake.calls and values(results) == {"36": (0.25, 4)}, "t0wn, whose label stands in the pool"
    found = results["breakdowns"]["context"]
    assert found["copied"] == {"n": 4, "word_accuracy": 0.25} and found["label_in_pool"]["word_accuracy"] == 1.0
    assert "plain" not in found and results["rows"][0]["k"] == 1


def test_controls_run_from_the_command_line_and_seeds_change_them(folder, recogniser, context_data):
    data, pool = context_data
    recogniser(UNSURE, LEARNT)
    for mode in ("random", "wrong"):
        answers = [run(folder, data, "--context", mode, "--pool", pool, "--k", "3", "--pool-seed", seed)
                   for seed in (0, 0, 1)]  # fmt: skip
        assert answers[0]["rows"] == answers[1]["rows"]
        assert {row["context"] for row in answers[2]["rows"]} == {mode}
        assert answers[2]["breakdowns"]["context"]["seed"] == 1


# ----------------------------------------------------------------------------------------------------- pools as chosen


def test_words_that_are_measured_are_taken_out_of_the_pool(folder, recogniser, tmp_path, caplog):
    recogniser()
    data = write_words(tmp_path / "words.parquet", ["one", "two"])
    rows = write_words(tmp_path / "pool.parquet", ["one", "three", "four"])  # the same picture of "one"
    saved = tmp_path / "saved"
    ContextPool.from_folder(rows, encode_letters).save(saved)
    for pool in (rows, saved):
        with caplog.at_level(logging.WARNING, logger="epigraph"):
            results = run(folder, data, "--context", "knn", "--pool", pool)
        found = results["breakdowns"]["context"]
        assert found["pool"]["test_images"] == 1 and found["pool"]["size"] == 2 and found["pool"]["entries"] == 3
        assert "holds 1 images that are measured; they are left out" in caplog.text
        caplog.clear()
    assert len(ContextPool.load(saved, encode_letters)) == 3, "on disk it stays as it was"
    with pytest.raises(ValueError, match="0 entries can be used; of 2, 2 are test images"):
        run(folder, data, "--context", "knn", "--pool", data)


def test_examples_that_look_like_the_word_are_reported(folder, recogniser, tmp_path):
    recogniser()
    data = write_words(tmp_path / "words.parquet", ["one", "two"])
    brighter = (word_picture("one").astype(int) + 1).clip(0, 255).astype(np.uint8)
    brighter[0] = word_picture("one")[0]
    rows = {"image": [png(brighter), png(word_picture("owt", 5))], "text": ["one", "owt"], "id": ["copy", "other"]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "pool.parquet")
    found = run(folder, data, "--context", "knn", "--pool", tmp_path / "pool.parquet")["breakdowns"]["context"]
    assert found["pool"]["test_images"] == 0 and found["alike"]["n"] == 1 == found["not_alike"]["n"]
    assert found["alike"]["first"][0].startswith("w0 and ")


def test_an_empty_pool_is_plain_reading(folder, recogniser, tmp_path):
    recogniser({"two": "too"})
    ContextPool(encode_letters).save(tmp_path / "empty")
    data = write_words(tmp_path / "words.parquet", ["one", "two"])
    for mode in ("knn", "random", "wrong", "copy"):
        results = run(folder, data, "--context", mode, "--pool", tmp_path / "empty")
        assert results["breakdowns"]["context"]["with_examples"]["n"] == 0
        assert values(results) == {"36": (0.0 if mode == "copy" else 0.5, 2)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol", "37"], "no protocol '37' for words; there are 36, 62"),
        (["--context", "knn"], "--context knn needs a --pool"),
        (["--pool", "x"], "--pool is for reading with examples; add --context knn"),
        (["--k", "3"], "--k is for reading with examples"),
        (["--context", "copy", "--pool", "x", "--k", "3"], "--k means nothing to --context copy"),
        (["--context", "knn", "--pool", "no/where/here"], "no/where/here holds no context pool"),
        (["--context", "knn", "--pool", "x", "--k", "0"], "--k must be at least 1"),
        (["--context", "knn", "--pool", "x", "--pool-size", "0"], "--pool_size must be at least 1"),
        (["--context", "knn", "--pool", "x", "--pool-seed", "-1"], "--pool_seed must be at least 0"),
        (["--context", "knn", "--pool", "x", "--gate", "1.5"], "--gate is a probability and must be between 0 and 1"),
        (["--variant", "photo"], "--variant is for models that read formulas"),
        (["--split", "nowhere"], "no split 'nowhere'; there are test"),
    ],
)
def test_wrong_arguments_are_one_sentence(folder, recogniser, tmp_path, arguments, message):
    recogniser()
    with pytest.raises((ValueError, OSError), match=message):
        run(folder, write_words(tmp_path / "words.parquet", ["one"]), *arguments)
    assert not (tmp_path / "results.json").exists()


def test_settings_of_words_are_refused_for_formulas(reader, tmp_path):
    data = write_words(tmp_path / "words.parquet", ["one"])
    for arguments, message in (
        (["--protocol", "36"], "--protocol 36 is for words"),
        (["--context", "knn", "--pool", "x"], "--context is for models that read words"),
        (["--only_alnum"], "--only_alnum is for models that read words"),
        (["--task", "word"], "does not read word"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluation.main(["--model", str(reader), "--data", str(data), *arguments])


# --------------------------------------------------------------------------------------------------------- real models


@pytest.fixture(scope="module")
def tiny_e2str(tmp_path_factory):
    """Folder of an E2STR with random weights and its processor."""
    import torch

    from epigraph.models.configuration_e2str import E2STRConfig
    from epigraph.models.modeling_e2str import E2STRForTextRecognition
    from epigraph.models.processing_e2str import e2str_processor

    torch.manual_seed(0)
    processor = e2str_processor()
    vision = {"image_size": [32, 128], "patch_size": 16, "hidden_size": 16, "num_hidden_layers": 1,
              "num_attention_heads": 2, "intermediate_size": 16}  # fmt: skip
    text = {"vocab_size": len(processor.tokenizer), "hidden_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "ffn_dim": 16, "word_embed_proj_dim": 16}  # fmt: skip
    resampler = {"num_latents": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
    config = E2STRConfig(vision_config=vision, text_config=text, resampler_config=resampler,
                         num_cross_attention_heads=2, cross_attention_head_dim=8,
                         image_token_id=processor.image_token_id,
                         end_of_chunk_token_id=processor.end_of_chunk_token_id)  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "tiny-e2str"
    E2STRForTextRecognition(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def evaluate(model, data, output, *arguments):
    given = ["--model", model, "--data", data, "--output", output, *arguments]
    evaluation.main([str(argument) for argument in given])
    return json.loads(output.read_text())


def test_e2str_is_measured_in_every_mode(tiny_e2str, tmp_path):
    data = write_words(tmp_path / "words.parquet", ["one", "two", "three"])
    pool = write_words(tmp_path / "pool.parquet", ["four", "five", "six", "seven"], seed=2)
    plain = evaluate(tiny_e2str, data, tmp_path / "none.json")
    assert {(row["n"], row["protocol"], row["context"]) for row in plain["rows"]} == {(3, "36", "none")}
    for mode in ("knn", "random", "wrong", "copy"):
        results = evaluate(tiny_e2str, data, tmp_path / f"{mode}.json", "--context", mode, "--pool", pool)
        found = results["breakdowns"]["context"]
        assert found["with_examples"]["n"] == 3 and found["pool"]["size"] == 4
        if mode != "copy":
            keys = ("metric", "value", "n", "source")
            assert [[row[key] for key in keys] for row in found["plain"]] == [
                [row[key] for key in keys] for row in plain["rows"]
            ], "the plain reading beside it is the plain reading"
        assert results["weights_sha256"] == plain["weights_sha256"]
    gated = evaluate(tiny_e2str, data, tmp_path / "gate.json", "--context", "knn", "--pool", pool, "--gate", "0")
    assert gated["breakdowns"]["context"]["with_examples"]["n"] == 0


def test_scores_of_words_and_characters_are_held_against_the_truth(word_reader, tmp_path, capsys):
    rows = {
        "image": [png(np.asarray(draw(word))) for word in WORDS],
        "text": [*WORDS[:3], "other"],
        "id": list("abcd"),
    }
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "words.parquet")
    found = evaluate(word_reader, tmp_path / "words.parquet", tmp_path / "r.json")["breakdowns"]
    assert found["reliability"]["n"] == 4 and found["reliability"]["at_least"][0]["word_accuracy"] == 0.75
    assert found["char_reliability"]["n"] == 3 + 4 + 2 + 2 and found["char_reliability"]["calibration"] is None
    assert found["char_reliability"]["at_least"][0]["character_accuracy"] < 1, "of No! for other"
    printed = capsys.readouterr().out
    assert "| readings with a score of at least | share of all | word accuracy |" in printed
    assert "| characters with a score of at least |" in printed


def test_adapters_are_measured_as_their_base(tiny_e2str, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny_e2str)}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    arguments = evaluation.EvaluationArguments(model=str(tmp_path), data="words.parquet")
    assert evaluation._task(arguments, tmp_path) == "word" == evaluation._task(arguments, tiny_e2str)


def test_batches_change_no_result(tiny_e2str, tmp_path):
    data = write_words(tmp_path / "words.parquet", ["one", "two", "three", "four", "five"])
    pool = write_words(tmp_path / "pool.parquet", ["six", "seven", "eight"], seed=2)
    rows = [
        evaluate(tiny_e2str, data, tmp_path / "r.json", "--context", "wrong", "--pool", pool, "--batch_size", size)
        for size in (1, 4)
    ]
    assert rows[0]["rows"] == rows[1]["rows"]


def test_the_function_for_training_restores_the_mode_and_counts_what_it_cannot_read(tiny_e2str):
    from epigraph.reading import load

    model, processor = load(tiny_e2str, "word")
    model.train()
    good = png(word_picture("one"))
    rows = {"id": list("abc"), "image": [good, good[:100], None], "text": ["one", "two", "three"]}
    rows = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    measured = evaluation_words.evaluate_words(model, processor, rows, batch_size=2)
    readings = measured["readings"]
    assert model.training and [bool(reading.error) for reading in readings] == [False, True, True]
    assert [reading.name for reading in readings] == ["a", "b", "c"] and readings[2].text == ""
    assert measured["metrics"]["word_accuracy"] == (readings[0].text == "one") / 3


def test_pools_of_other_models_are_refused(tiny_e2str, tmp_path):
    data = write_words(tmp_path / "words.parquet", ["one"])
    rows = write_words(tmp_path / "pool.parquet", ["two", "three"], seed=2)
    ContextPool.from_folder(rows, encode_letters).save(tmp_path / "saved")
    with pytest.raises(ValueError, match="reencode"):
        evaluate(tiny_e2str, data, tmp_path / "r.json", "--context", "knn", "--pool", tmp_path / "saved")


@pytest.mark.data
def test_the_shared_words_are_measured(tiny_e2str, data_dir, tmp_path):
    results = evaluate(tiny_e2str, data_dir / "words.parquet", tmp_path / "r.json", "--source", "icdar13", "--limit",
                       "6", "--context", "knn", "--pool", data_dir / "words.parquet", "--pool-source", "svt",
                       "--pool-size", "8", "--protocol", "36", "literature")  # fmt: skip
    assert {row["n"] for row in results["rows"]} <= {5, 6}
    found = results["breakdowns"]["context"]
    assert found["pool"]["path"] == "${EPIGRAPH_DATA}/words.parquet"
    assert found["pool"]["size"] == 8 and found["pool"]["entries"] == 257 and found["pool"]["sources"] == {"svt": 8}
