"""The in-context pool: what goes in, what is found, what stays on disk whatever happens."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("faiss", reason="faiss-cpu is not installed")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")

from epigraph import pool_entries
from epigraph.context_pool import ContextPool, weights_hash
from epigraph.pool_encoder import LatentCache

WIDTH = 8


def picture(number: int, size=(12, 6)) -> Image.Image:
    """A picture of its own for each number."""
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


class Encoder:
    """Random features of pixels, the same for the same seed; remembers how many images it saw."""

    def __init__(self, seed=0, width=WIDTH, name=None, torch=False):
        self.matrix = np.random.default_rng(seed).standard_normal((192, width)).astype(np.float32)
        self.seen, self.torch = 0, torch
        if name:
            self.weights_sha256 = name

    def __call__(self, images):
        self.seen += len(images)
        pixels = np.stack([np.asarray(image.resize((8, 8))).ravel() / 255 - 0.5 for image in images])
        keys = pixels.astype(np.float32) @ self.matrix
        keys /= np.linalg.norm(keys, axis=1, keepdims=True)
        latents = np.stack([keys, 2 * keys], 1)
        return (torch.from_numpy(keys), torch.from_numpy(latents)) if self.torch else (keys, latents)


def pool_of(*numbers, encode=None, source=""):
    pool = ContextPool(encode or Encoder())
    pool.add([picture(n) for n in numbers], [f"word{n}" for n in numbers], source=source)
    return pool


def texts(pool):
    return [example.text for example in pool.examples(pool.ids)]


def test_finds_the_most_similar_first_with_what_explains_it():
    encode = Encoder()
    pool = pool_of(*range(40), encode=encode, source="shop")
    query = picture(3)
    query.putpixel((0, 0), (1, 2, 3))
    found = pool.search([query, picture(99)], k=3)
    keys = {n: encode([picture(n)])[0][0] for n in range(40)}
    for image, examples in zip([query, picture(99)], found):
        key = encode([image])[0][0]
        best = sorted(keys, key=lambda n: -float(key @ keys[n]))[:3]
        assert [example.text for example in examples] == [f"word{n}" for n in best]
        assert [example.similarity for example in examples] == pytest.approx([key @ keys[n] for n in best], abs=1e-5)
        for number, example in zip(best, examples):
            assert np.array_equal(np.asarray(example.image), np.asarray(picture(number)))
            np.testing.assert_allclose(example.latents[1], 2 * keys[number], atol=1e-5)
            assert example.id in pool and example.source == "shop" and example.added_at.startswith("20")
    assert found[0][0].text == "word3"


def test_a_query_never_finds_itself():
    pool = pool_of(*range(10))
    for number in range(10):
        (examples,) = pool.search([picture(number)], k=9)
        assert len(examples) == 9 and f"word{number}" not in {example.text for example in examples}
    assert pool_of(1).search([picture(1)], k=2) == [[]]


def test_fewer_entries_than_asked_for_and_none():
    encode = Encoder()
    assert len(pool_of(1, 2).search([picture(7)], k=50)[0]) == 2
    empty = ContextPool(encode)
    assert len(empty) == 0 and empty.search([picture(1), picture(2)], k=2) == [[], []]
    assert pool_of(1).search([], k=2) == [] and pool_of(1).search([picture(2)], k=0) == [[]]
    with pytest.raises(ValueError, match="k must be 0 or more, not -1"):
        empty.search([picture(1)], k=-1)


def test_an_empty_pool_is_saved_and_loaded_and_filled(tmp_path):
    ContextPool(Encoder()).save(tmp_path / "pool")
    pool = ContextPool.load(tmp_path / "pool", Encoder(seed=5))  # no keys yet, so that any encoder will do
    assert len(pool) == 0
    pool.add([picture(1)], ["one"])
    pool.save()
    assert texts(ContextPool.load(tmp_path / "pool", Encoder(seed=5))) == ["one"]


def test_save_and_load(tmp_path):
    pool = pool_of(*range(5), source="a")
    pool.save(tmp_path / "pool")
    loaded = ContextPool.load(tmp_path / "pool", Encoder())
    assert loaded.ids == pool.ids and texts(loaded) == texts(pool) and loaded.sources() == {"a": 5}
    expected, found = pool.search([picture(9)], k=3)[0], loaded.search([picture(9)], k=3)[0]
    assert expected == found
    assert not list((tmp_path / "pool").glob("*.tmp"))


# ------------------------------------------------------------------------------------------- what may be an entry


def test_the_same_image_and_text_are_one_entry():
    pool = pool_of(1, 2)
    added = pool.add([picture(2), picture(3), picture(3)], ["word2", "word3", "word3"])
    assert added.duplicates == 2 and len(added.ids) == 1 and sorted(texts(pool)) == ["word1", "word2", "word3"]


def test_the_same_image_with_another_text_is_refused_or_replaces():
    pool = pool_of(1, 2)
    with pytest.raises(ValueError, match=r"image 1: the same image stands in the pool as 'word2' \(id \w{16}\)"):
        pool.add([picture(3), picture(2)], ["word3", "other"])
    assert texts(pool) == ["word1", "word2"], "nothing of a refused call is added"
    with pytest.raises(ValueError, match="'a' and as 'b'"):
        pool.add([picture(3), picture(3)], ["a", "b"], replace=True)
    pool.add([picture(2)], ["other"], replace=True)
    assert texts(pool) == ["word1", "other"]
    pool.undo()
    assert texts(pool) == ["word1", "word2"]


@pytest.mark.parametrize(
    "text, message",
    [("", "its text is ''"), ("  ", "its text is"), (None, "its text is None"), (7, "its text is 7")]
    + [("x" * 49, "49 characters, and at most 48"), ("a\nb", "cannot be printed")],
)
def test_texts_that_cannot_be_one(text, message):
    pool = pool_of(1)
    with pytest.raises(ValueError, match=f"image 1: .*{message}"):
        pool.add([picture(2), picture(3)], ["two", text])
    assert len(pool) == 1
    pool.add([picture(4)], ["x" * 48])
    assert len(pool) == 2


def test_images_that_cannot_be_read_are_named(tmp_path):
    broken = tmp_path / "broken.png"
    picture(1).save(broken)
    broken.write_bytes(broken.read_bytes()[:-60])
    pool = pool_of(1)
    for image, message in [
        (broken, r"broken\.png: the image is damaged"),
        (tmp_path / "absent.png", r"absent\.png: no such file"),
        (b"no image", "image 0: not an image"),
        (np.zeros((0, 5), np.uint8), "image 0: .*no image"),
        (Image.new("RGB", (0, 5)), "image 0: 0 x 5 pixels"),
        (Image.new("L", (4001, 1000)), "image 0: 4001 x 1000 pixels"),
        (np.zeros((4, 4)), "image 0: an array of shape .* float64"),
        (None, "image 0: there is no image"),
    ]:
        with pytest.raises(ValueError, match=message):
            pool.add([image], ["text"])
        with pytest.raises(ValueError):
            pool.search([image])
    assert len(pool) == 1
    with pytest.raises(ValueError, match="2 images and 1 texts"):
        pool.add([picture(2), picture(3)], ["two"])


def test_every_mode_of_image_is_kept_as_it_is_seen(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    images = {
        "grey": Image.fromarray(grey),
        "16 bit": Image.fromarray(grey[::-1].astype(np.uint16) * 257),
        "palette": Image.fromarray(grey).convert("RGB").quantize(16),
        "cmyk": picture(5).convert("CMYK"),
        "alpha": Image.new("RGBA", (8, 4), (255, 0, 0, 0)),
        "array": np.full((3, 5, 9), 7, np.uint8),
        "jpeg": tmp_path / "photo.jpg",
    }
    picture(6, (40, 20)).save(images["jpeg"])
    pool = ContextPool(Encoder())
    pool.add(list(images.values()), list(images))
    pool.save(tmp_path / "pool")
    kept = {e.text: np.asarray(e.image) for e in ContextPool.load(tmp_path / "pool", Encoder()).examples(pool.ids)}
    assert len(kept) == len(images) and all(image.shape[2] == 3 for image in kept.values())
    assert np.array_equal(kept["grey"][..., 0], grey) and np.array_equal(kept["16 bit"][..., 0], grey[::-1])
    assert (kept["alpha"] == 255).all(), "what is transparent is white"
    assert np.array_equal(kept["jpeg"], np.asarray(Image.open(images["jpeg"])))
    assert kept["array"].shape == (5, 9, 3)
    for image, text in zip(images.values(), images):  # none of them finds itself
        assert text not in [example.text for example in pool.search([image], k=10)[0]]


def test_keys_that_are_none(tmp_path):
    pool = pool_of(1, 2)
    for seen, message in [
        (lambda images: (np.full((len(images), WIDTH), np.nan), None), "image 0: its key is not finite"),
        (lambda images: (np.zeros((len(images), WIDTH)), None), "image 0: its key is not finite or zero"),
        (Encoder(width=5), r"shape \(1, 5\)"),
        (lambda images: (np.ones((1 + len(images), WIDTH)), None), r"shape \(2, 8\) for 1 images"),
    ]:
        pool.encode = seen
        with pytest.raises(ValueError, match=message):
            pool.add([picture(3)], ["three"])
    assert len(pool) == 2 and not list(Path(pool._staging.name).glob("*"))[1:]
    for keys, message in [
        (np.ones((1, 5)), r"shape \(1, 5\), those of the pool a width of 8"),
        (np.full((1, WIDTH), np.inf), "query 0: its key is not finite"),
        (np.ones((2, WIDTH)), "1 images were given with 2 keys"),
    ]:
        with pytest.raises(ValueError, match=message):
            pool.search([picture(3)], keys=keys)


def test_a_data_set_is_taken_and_what_is_refused_is_reported(caplog):
    import datasets

    rows = {"image": [picture(n) for n in range(5)], "text": [f"word{n}" for n in range(5)]}
    rows |= {"source": ["a", "a", "b", "b", "b"], "id": [f"crop-{n}" for n in range(5)]}
    rows["text"][3] = ""
    features = datasets.Features({n: datasets.Value("string") for n in ("text", "source", "id")})
    features["image"] = datasets.Image()
    dataset = datasets.Dataset.from_dict(rows, features=features)
    with caplog.at_level(logging.WARNING):
        pool = ContextPool.from_dataset(dataset, Encoder())
    assert pool.sources() == {"a": 2, "b": 2} and texts(pool) == ["word0", "word1", "word2", "word4"]
    assert [refused.name for refused in pool.added.refused] == ["crop-3"]
    assert "1 of 5 images are not in the pool, the first because crop-3: its text" in caplog.text
    streamed = ContextPool.from_dataset(dataset.to_iterable_dataset(), Encoder(), source="all")
    assert streamed.ids == pool.ids and streamed.sources() == {"all": 4}
    (examples,) = pool.search([picture(9)], k=5, source="b")
    assert [example.source for example in examples] == ["b", "b"]
    assert pool.search([picture(9)], source="nowhere") == [[]]
    with pytest.raises(ValueError, match="row 0 has no column 'text', only image"):
        ContextPool.from_dataset([{"image": picture(1)}], Encoder())


# ------------------------------------------------------------------------------------ removing, undoing, compacting


def test_removed_entries_are_not_found_and_come_back_by_undo(tmp_path):
    pool = pool_of(1, 2, 3)
    pool.save(tmp_path)
    first, second, _ = pool.ids
    pool.remove([first, second])
    assert texts(pool) == ["word3"] and first not in pool
    assert [example.text for example in pool.search([picture(9)], k=5)[0]] == ["word3"]
    with pytest.raises(KeyError, match=first):
        pool.remove([pool.ids[0], first])
    assert len(pool) == 1
    pool.save()
    loaded = ContextPool.load(tmp_path, Encoder())
    assert texts(loaded) == ["word3"]
    assert loaded.undo() == ([], [first, second]) and len(loaded) == 3
    loaded.save()
    again = ContextPool.load(tmp_path, Encoder())
    assert sorted(texts(again)) == ["word1", "word2", "word3"]
    assert len(again.undo()[0]) == 3 and len(again) == 0
    with pytest.raises(ValueError, match="nothing to undo"):
        again.undo()


def test_what_was_removed_may_be_added_again():
    pool = pool_of(1, 2)
    pool.remove(pool.ids[0])
    pool.add([picture(1)], ["word1"])
    assert sorted(texts(pool)) == ["word1", "word2"]
    pool.undo()
    assert texts(pool) == ["word2"]
    pool.undo()
    assert sorted(texts(pool)) == ["word1", "word2"]


def test_compacting_leaves_the_entries_and_drops_the_rest(tmp_path):
    pool = ContextPool(Encoder())
    for number in range(6):
        pool.add([picture(number)], [f"word{number}"], source=f"s{number % 2}")
    pool.save(tmp_path)
    pool.remove(pool.ids[:2])

    def content(pool):
        return [(e.id, e.text, e.source, e.added_at, e.image.tobytes()) for e in pool.examples(pool.ids)]

    before = content(pool)
    found = pool.search([picture(9)], k=4)
    pool.compact()
    with pytest.raises(ValueError, match="nothing to undo"):
        pool.undo()
    pool.save()
    assert len(list(tmp_path.glob("shard-*.parquet"))) == 1
    pool = ContextPool.load(tmp_path, Encoder())
    assert content(pool) == before
    assert pool.search([picture(9)], k=4) == found


def test_latents_are_computed_once_and_kept_within_bounds():
    encode = Encoder(torch=True)
    pool = ContextPool(encode, cache_bytes=3 * 2 * WIDTH * 4)
    pool.add([picture(n) for n in range(6)], list("abcdef"))
    encode.seen = 0
    pool.search([picture(9)], k=2)
    assert encode.seen == 3
    found = pool.search([picture(9)], k=2)
    assert encode.seen == 4, "only the query"
    assert torch.is_tensor(found[0][0].latents) and found[0][0].latents.shape == (2, WIDTH)
    pool.search([picture(9)], k=6)
    assert len(pool._latents) == 3 and pool._latents.held == pool._latents.limit


def test_latents_of_an_entry_are_counted_once():
    cache = LatentCache(100)
    for _ in range(5):
        cache.put(1, np.zeros(10, np.float32))
    assert cache.held == 40 and len(cache) == 1
    cache.put(2, np.zeros(10, np.float32))
    assert cache.get(1) is not None
    cache.put(3, np.zeros(10, np.float32))
    assert cache.get(2) is None and cache.get(1) is not None, "the least recently used one went"
    cache.put(4, np.zeros(1000, np.float32))
    assert not len(cache) and cache.held == 0, "what has no room alone is not kept"


def test_one_image_is_a_list_of_one(tmp_path):
    picture(1).save(tmp_path / "one.png")
    pool = ContextPool(Encoder())
    pool.add(tmp_path / "one.png", "one")
    pool.add(picture(2), "two")
    assert pool.texts == texts(pool) == ["one", "two"]
    assert [[e.text for e in found] for found in pool.search(picture(2))] == [["one"]]
    assert pool.same(str(tmp_path / "one.png")) == [pool.ids[:1]] and pool.same([picture(3)]) == [[]]
    pool.remove(pool.ids[0])
    assert pool.texts == ["two"]


@pytest.mark.slow
def test_a_hundred_thousand_entries(tmp_path, monkeypatch):
    """What `scripts/benchmark_pool.py` times with a million: the right ones are found, and changed."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "scripts")
    import benchmark_pool

    benchmark_pool.write_pool(tmp_path, 100_000, 16)
    keys = np.concatenate([benchmark_pool.random_keys(10_000, 16, start) for start in range(0, 100_000, 10_000)])

    def encode(images):
        return keys[: len(images)], np.zeros((len(images), 2, 16), np.float32)

    encode.weights_sha256 = "random"
    pool = ContextPool.load(tmp_path, encode)
    queries = keys[[5, 70_000, 99_999]] + 0.01
    nearest = np.argsort(-(queries @ keys.T), axis=1)[:, :3]
    images = [picture(number) for number in range(3)]
    found = pool.search(images, k=3, keys=queries)
    assert [[e.text for e in examples] for examples in found] == [[f"word{n}" for n in row] for row in nearest]
    pool.remove(found[1][0].id)
    pool.add(picture(7), "new")
    assert len(pool) == 100_000 and pool.search(images, k=2, keys=queries)[1] == found[1][1:]
    pool.save()
    assert ContextPool.load(tmp_path, encode).texts == pool.texts


def test_more_keys_than_one_block_holds(monkeypatch):
    monkeypatch.setattr(pool_entries, "BLOCK_ROWS", 7)
    keys = np.random.default_rng(0).standard_normal((40, WIDTH)).astype(np.float32)
    index = pool_entries.KeyIndex(WIDTH)
    for start in range(0, 40, 9):
        index.add(keys[start : start + 9])
    queries, wanted = keys[:3] + 0.1, np.arange(40) % 3 > 0
    for mask in (None, wanted, np.zeros(40, bool)):
        products, rows = index.search(queries, 6, mask)
        allowed = np.arange(40) if mask is None else np.flatnonzero(mask)
        for query, found in zip(queries, rows):
            best = allowed[np.argsort(-(keys[allowed] @ query), kind="stable")][:6]
            assert found.tolist() == [*best.tolist(), *[-1] * (6 - len(best))]
    np.testing.assert_array_equal(index.keys([0, 39, 7]), keys[[0, 39, 7]])


# -------------------------------------------------------------------------------------------------- the encoder


def test_a_pool_of_another_encoder_is_refused_and_encoded_anew(tmp_path):
    pool_of(1, 2, encode=Encoder(0)).save(tmp_path / "unnamed")
    pool_of(1, 2, encode=Encoder(0, name="aaa")).save(tmp_path / "named")
    assert len(ContextPool.load(tmp_path / "named", Encoder(0))) == 2, "no hash, but the same keys"
    for folder, other in [("unnamed", Encoder(1)), ("named", Encoder(0, name="bbb")), ("unnamed", Encoder(0, 12))]:
        with pytest.raises(ValueError, match=r"made by another encoder .*reencode\(encode\)"):
            ContextPool.load(tmp_path / folder, other)
    pool = ContextPool.load(tmp_path / "named")
    assert len(pool) == 2
    with pytest.raises(ValueError, match="has no encode"):
        pool.search([picture(3)])
    other = Encoder(3, width=12, name="ccc")
    pool.reencode(other)
    assert len(ContextPool.load(tmp_path / "named", Encoder(0, name="aaa"))) == 2, "not before save"
    pool.save()
    pool = ContextPool.load(tmp_path / "named", other)
    (found,) = pool.search([picture(3)])
    fresh = pool_of(1, 2, encode=other)
    assert [(e.text, e.similarity) for e in found] == [(e.text, e.similarity) for e in fresh.search([picture(3)])[0]]


def test_the_hash_of_weights_sees_every_weight():
    first, second = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    assert weights_hash(first) != weights_hash(second)
    second.load_state_dict(first.state_dict())
    assert weights_hash(first) == weights_hash(second) != weights_hash(first.bfloat16())
    with torch.no_grad():
        second.bias[1] += 1e-6
    assert weights_hash(second) != weights_hash(torch.nn.Linear(3, 2))


def test_a_folder_becomes_a_pool(tmp_path, caplog):
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "labels.csv").write_text("file_name,text,source\n0.png,zero,a\n1.png,one,b\n2.png,zwei zwei,b\n")
    pool = ContextPool.from_folder(tmp_path, Encoder())
    assert texts(pool) == ["zero", "one", "zwei zwei"] and pool.sources() == {"a": 1, "b": 2}
    assert ContextPool.from_folder(tmp_path, Encoder(), source="a").ids == pool.ids[:1]


def test_the_card_is_whole_whatever_sources_are_called():
    pool, encode = pool_of(1), Encoder()
    pool.add([picture(2)], ["word2"], source="a|b\nc")
    assert "| a b c | 1 |" in pool.card("me/words")
    encode.weights_sha256 = None
    assert "(weights of unknown hash, keys" in ContextPool(encode).card("me/words")
    encode.weights_sha256 = "abc"
    assert "(weights `abc`, keys" in ContextPool(encode).card("me/words")


def test_queries_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"^\S+bad\.png: not an image"):
        pool_of(1).search([picture(2), tmp_path / "bad.png"])
    with pytest.raises(ValueError, match="^query 1: there is no image"):
        pool_of(1).search([picture(2), None])


def test_what_the_reader_of_a_folder_leaves_out_is_listed(tmp_path, caplog):
    for number in range(2):
        picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").write_bytes(b"no image")
    (tmp_path / "labels.csv").write_text(f"file_name,text\n0.png,zero\n9.png,nine\n1.png,{'x' * 49}\n2.png,two\n")
    pool = ContextPool.from_folder(tmp_path, Encoder())
    assert texts(pool) == ["zero"]
    assert [refused.name for refused in pool.added.refused] == ["9.png", "1.png", "2.png"]
    assert pool.added.refused[0].reason == "9.png: no such image beside the table."
    assert "3 of 4 images are not in the pool" in caplog.text


def test_the_benchmark_measures_what_it_says(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "scripts")
    import benchmark_pool

    monkeypatch.setattr(benchmark_pool, "SHARD_ROWS", 200)
    benchmark_pool.write_pool(tmp_path, 500, 16)
    assert len(list(tmp_path.glob("shard-*"))) == 3
    on_disk = benchmark_pool.measure(tmp_path, 16, ivf=False)
    in_memory = benchmark_pool.measure_keys(2000, 16, ivf=True)
    assert {"open_mib", "search_1_cpu_seconds", "examples_8_cold_cpu_seconds", "peak_mib"} <= set(on_disk)
    assert {"keys_mib", "search_32_cpu_seconds", "ivf_search_1_cpu_seconds"} <= set(in_memory)
    assert 0 < in_memory["ivf_share_found"] <= 1 and on_disk["peak_mib"] > 10


def test_with_the_encoder_of_a_model(tmp_path):
    from epigraph.models.configuration_e2str import E2STRConfig
    from epigraph.models.modeling_e2str import E2STRModel

    torch.manual_seed(0)
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = E2STRModel(E2STRConfig(vision_config=vision, resampler_config={"num_hidden_layers": 1})).eval()

    @torch.no_grad()
    def encode(images):
        arrays = np.stack([np.asarray(image.resize((128, 32))) for image in images])
        return model.encode(torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1)

    encode.weights_sha256 = weights_hash(model.vision_model, model.resampler)
    images = [picture(number, (50, 20)) for number in range(8)]
    pool = ContextPool(encode)
    pool.add(images, [f"word{number}" for number in range(8)])
    pool.save(tmp_path)
    keys, latents = encode(images)
    best, expected = (keys @ keys.T).fill_diagonal_(-2).topk(2)
    for found, values, numbers in zip(ContextPool.load(tmp_path, encode).search(images, k=2), best, expected):
        assert [example.text for example in found] == [f"word{number}" for number in numbers.tolist()]
        assert [example.similarity for example in found] == pytest.approx(values.tolist(), abs=1e-5)
        torch.testing.assert_close(found[0].latents, latents[numbers[0]], atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        model.resampler.norm.bias[0] += 1e-3
    encode.weights_sha256 = weights_hash(model.vision_model, model.resampler)
    with pytest.raises(ValueError, match="made by another encoder"):
        ContextPool.load(tmp_path, encode)
