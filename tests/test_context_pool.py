"""The in-context pool: what goes in, what is found, what stays on disk whatever happens."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("faiss", reason="faiss-cpu is not installed")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")

from epigraph import context_pool, pool_entries, pool_storage
from epigraph.context_pool import ContextPool, weights_hash

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
