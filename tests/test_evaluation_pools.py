"""Pools as words are measured with them: what each mode of context finds, and how entries are chosen by chance."""

import json

import numpy as np
import pytest
from fake_samples import encode_letters, png, word_picture, write_words, written_in
from PIL import Image
from typer.testing import CliRunner

datasets = pytest.importorskip("datasets")
pytest.importorskip("faiss", reason="faiss-cpu is not installed")

import epigraph_cli  # noqa: E402
from epigraph.context_pool import ContextPool  # noqa: E402
from epigraph.evaluation_pools import NearestExamples, RandomExamples, WrongTexts, open_pool  # noqa: E402


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def pool_of(*texts, seed=7):
    pool = ContextPool(encode_letters)
    pool.add([Image.fromarray(word_picture(text, seed)) for text in texts], list(texts))
    return pool


def test_context_modes_find_what_they_say():
    pool = pool_of("listen", "silent", "tinsel", "zzz", "qqq")
    query = Image.fromarray(word_picture("enlist"))
    (found,) = NearestExamples(pool).search([query], 3)
    assert {example.text for example in found} == {"listen", "silent", "tinsel"}
    (wrong,) = WrongTexts(pool, 3).search([query], 3)
    assert [example.id for example in wrong] == [example.id for example in found]
    assert [example.similarity for example in wrong] == [example.similarity for example in found]
    for right, changed in zip(found, wrong):
        assert changed.text != right.text and changed.text in pool.texts
        assert np.array_equal(np.asarray(changed.image), np.asarray(right.image))
    drawn = [RandomExamples(pool, seed).search([query], 2)[0] for seed in range(40)]
    assert all(len({example.id for example in examples}) == 2 for examples in drawn)
    assert {example.text for examples in drawn for example in examples} == set(pool.texts), "and with their own texts"
    assert all(written_in(example.image) == example.text for examples in drawn for example in examples)


def test_what_chance_gives_depends_on_seed_and_word_only():
    pool = pool_of(*(f"word{number}" for number in range(12)))
    queries = [Image.fromarray(word_picture(f"query{number}")) for number in range(6)]
    for kind in (RandomExamples, WrongTexts):
        together = kind(pool, 1).search(queries, 3)
        alone = [kind(pool, 1).search([query], 3)[0] for query in queries]
        named = [[(example.id, example.text) for example in examples] for examples in together]
        assert named == [[(example.id, example.text) for example in examples] for examples in alone]
        other = kind(pool, 2).search(queries, 3)
        assert named != [[(example.id, example.text) for example in examples] for examples in other]
    texts = {}
    for examples in WrongTexts(pool, 1).search(queries, 12):
        for example in examples:
            assert texts.setdefault(example.id, example.text) == example.text, "one wrong text for every word"


def test_random_examples_are_never_the_word_itself_and_small_pools_give_fewer():
    pool = pool_of("a", "b", "c")
    query = Image.fromarray(word_picture("b", 7))
    for seed in range(10):
        (found,) = RandomExamples(pool, seed).search([query], 5)
        assert sorted(example.text for example in found) == ["a", "c"]
    assert RandomExamples(ContextPool(encode_letters)).search([query], 2) == [[]]


def test_texts_that_differ_in_case_only_are_not_wrong():
    with pytest.raises(ValueError, match="needs different texts"):
        WrongTexts(pool_of("Hall", "hall", "HALL"))
    pool = pool_of("Hall", "hall", "exit")
    for examples in WrongTexts(pool).search([Image.fromarray(word_picture("hall"))], 3):
        assert {(example.text == "exit") for example in examples if written_in(example.image) != "exit"} == {True}


def test_pools_of_a_size_are_drawn_by_seed_and_nested(tmp_path):
    texts = [f"word{number}" for number in range(20)]
    rows = write_words(tmp_path / "pool.parquet", texts, source=["a", "b"] * 10)
    ContextPool.from_folder(rows, encode_letters).save(tmp_path / "saved")
    for path in (rows, tmp_path / "saved"):
        drawn = {(size, seed): open_pool(str(path), encode_letters, size=size, seed=seed)
                 for size in (5, 9) for seed in (0, 1)}  # fmt: skip
        assert all(len(opened.pool) == size and opened.entries == 20 for (size, _), opened in drawn.items())
        for seed in (0, 1):
            assert set(drawn[5, seed].pool.ids) < set(drawn[9, seed].pool.ids)
        assert set(drawn[9, 0].pool.ids) != set(drawn[9, 1].pool.ids)
        assert open_pool(str(path), encode_letters, size=5).sha256() == drawn[5, 0].sha256() != drawn[5, 1].sha256()
        with pytest.raises(ValueError, match="20 entries can be used, of which 21 were to be chosen"):
            open_pool(str(path), encode_letters, size=21)
    whole = [open_pool(str(path), encode_letters).sha256() for path in (rows, tmp_path / "saved")]
    assert whole[0] == whole[1], "the same entries, however they are stored"
    assert len(open_pool(str(rows), encode_letters, source="a").pool) == 10
    with pytest.raises(ValueError, match="a saved pool is taken as a whole"):
        open_pool(str(tmp_path / "saved"), encode_letters, source="a")


def test_what_cannot_be_an_entry_is_counted(tmp_path):
    texts = ["good", "bad", "x", "fine"]
    rows = {"image": [png(word_picture(text)) for text in texts], "text": ["good", "bad", "y" * 60, "fine"]}
    rows["image"][1] = rows["image"][1][:50]
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "pool.parquet")
    opened = open_pool(str(tmp_path / "pool.parquet"), encode_letters)
    assert opened.refused == 2 and len(opened.pool) == 2 and opened.entries == 4
    with pytest.raises(ValueError, match="2 entries can be used, of which 3 were .*; of 4, 0 are test .* 2 cannot be"):
        open_pool(str(tmp_path / "pool.parquet"), encode_letters, size=3)


def test_what_synth_wrote_is_words_and_not_a_saved_pool(tmp_path):
    (tmp_path / "data").mkdir()
    write_words(
        tmp_path / "data" / "00000.parquet", ["one", "two", "three"], id=["word_1.png", "word_2.png", "001#19"]
    )
    written = {"format": "parquet", "num_samples": 3, "recipe": {"kind": "crops"}, "shards": []}
    (tmp_path / "manifest.json").write_text(json.dumps(written))
    assert sorted(open_pool(str(tmp_path), encode_letters, half="pool").pool.texts) == ["three", "two"]
    with pytest.raises(ValueError, match="is no pool but what epigraph synth wrote; make one of it: epigraph pool"):
        ContextPool.load(tmp_path, encode_letters)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        open_pool(str(tmp_path), encode_letters)


def test_pools_are_made_of_the_half_that_is_meant_for_them(tmp_path, monkeypatch):
    ids = ["word_1.png", "word_2.png", "001#19", "007#3"]  # the second and third are the pool
    data = write_words(tmp_path / "words.parquet", ["one", "two", "three", "four"], id=ids)
    assert sorted(open_pool(str(data), encode_letters, half="pool").pool.texts) == ["three", "two"]
    assert open_pool(str(data), encode_letters, half="queries", size=1).entries == 2
    monkeypatch.setattr(epigraph_cli, "encoder_of", lambda *_: encode_letters)
    done = CliRunner().invoke(epigraph_cli.app, ["pool", "build", str(tmp_path / "pool"), str(data), "--half", "pool"])
    assert done.exit_code == 0 and "2 entries" in done.stdout, done.output
    saved = ContextPool.load(tmp_path / "pool", encode_letters)
    assert sorted(saved.texts) == ["three", "two"]
    with pytest.raises(ValueError, match="taken as a whole; leave pool_split, pool_source and pool_half out"):
        open_pool(str(tmp_path / "pool"), encode_letters, half="pool")
