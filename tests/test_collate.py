"""Batches: the official bucketing, a reproducible order, and each process's share."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from epigraph.data.collate import FormulaBatches, FormulaCollator, FormulaDataset, FormulaLoader, bucket_by_area
from epigraph.data.ink import InkAugmentation, InkError
from epigraph.models.processing import comer_processor

FIXTURES = Path(__file__).parent / "fixtures" / "comer"


@pytest.mark.parametrize("batch_size", [4, 8])
def test_bucketing_is_the_official_one(batch_size):
    golden = json.loads((FIXTURES / "preprocess.json").read_text())
    rows = golden["bucket_in"]
    batches = bucket_by_area([row["w"] * row["h"] for row in rows], [row["len"] for row in rows], batch_size)
    assert [[rows[index]["name"] for index in batch] for batch in batches] == golden[f"bucket_out_bs{batch_size}"]


@pytest.fixture
def batches():
    rng = np.random.default_rng(0)
    sizes, lengths = rng.integers(20, 300, (100, 2)), rng.integers(1, 40, 100)
    return FormulaBatches(sizes, lengths, 8, 320_000, max_label_length=35, max_image_pixels=60_000, zoom=(0.7, 1.4))


def test_an_epoch_holds_every_usable_example_once(batches):
    keys = [key for batch in batches.epoch(3) for key in batch]
    assert sorted(index for index, _, _ in keys) == np.flatnonzero(batches.usable).tolist()
    assert 0 < batches.usable.sum() < 100
    assert {epoch for _, epoch, _ in keys} == {3}


def test_order_is_a_function_of_seed_and_epoch(batches):
    assert batches.epoch(1) == batches.epoch(1)
    assert batches.epoch(1) != batches.epoch(2)


def test_batches_are_of_like_size(batches):
    areas = batches.areas
    spread = [np.ptp(np.log(areas[[index for index, _, _ in batch]])) for batch in batches.epoch(0)]
    assert np.median(spread) < 0.6 * np.ptp(np.log(areas[batches.usable]))


def test_images_of_a_batch_share_their_zoom(batches):
    for batch in batches.epoch(0):
        assert len({zoom for _, _, zoom in batch}) == 1
        assert 0.7 <= batch[0][2] <= 1.4


def test_no_usable_example_is_an_error():
    with pytest.raises(ValueError, match="No training example"):
        FormulaBatches([(500, 500)], [3], 8, 320_000, max_image_pixels=1000)


@pytest.fixture
def dataset():
    datasets = pytest.importorskip("datasets")
    rng = np.random.default_rng(1)
    rows = [
        {"text": "x + 1", "strokes": [rng.uniform(0, 50 + 9 * row, 12).tolist() for _ in range(3)]} for row in range(9)
    ]
    return FormulaDataset(datasets.Dataset.from_list(rows), InkAugmentation(), seed=5)


def test_a_row_that_cannot_be_drawn_is_named():
    datasets = pytest.importorskip("datasets")
    rows = [{"id": name, "text": "x", "strokes": strokes} for name, strokes in {"a": [[0.0, 1.0]], "b": [[]]}.items()]
    with pytest.raises(InkError, match="row b: there is no stroke"):
        FormulaDataset(datasets.Dataset.from_list(rows))


def test_variation_depends_on_seed_epoch_and_index_only(dataset):
    first = dataset[(2, 1, 1.0)]["image"]
    assert dataset[(2, 1, 1.0)]["image"].tobytes() == first.tobytes()
    assert dataset[(2, 2, 1.0)]["image"].tobytes() != first.tobytes()
    plain = dataset[2]["image"]
    assert plain.size == tuple(int(side) for side in dataset.sizes()[2][::-1])


def test_processes_share_each_global_batch(dataset):
    sizes = dataset.sizes()
    order = FormulaBatches(sizes, [3] * 9, 4, 10_000_000)
    processor = comer_processor()
    whole = list(FormulaLoader(dataset, order, processor)(0))
    parts = [list(FormulaLoader(dataset, order, processor)(0, rank=rank, world=2)) for rank in (0, 1)]
    kept = [batch for batch in whole if len(batch["labels"]) >= 2]
    assert len(kept) == len(parts[0]) == len(parts[1])
    for batch, first, second in zip(kept, *parts):
        assert len(first["labels"]) + len(second["labels"]) == len(batch["labels"])
        ink = lambda images: sorted(images["pixel_values"].sum((1, 2, 3)).tolist())  # noqa: E731
        assert sorted(ink(first) + ink(second)) == pytest.approx(ink(batch))


def test_a_loader_starts_anywhere(dataset):
    order = FormulaBatches(dataset.sizes(), [3] * 9, 2, 10_000_000)
    loader = FormulaLoader(dataset, order, comer_processor())
    whole, rest = list(loader(4)), list(loader(4, start=2))
    assert len(rest) == len(whole) - 2
    assert all((a["pixel_values"] == b["pixel_values"]).all() for a, b in zip(whole[2:], rest))


def test_a_row_that_cannot_be_used_is_named():
    blank = {"image": Image.new("L", (40, 20)), "text": "x", "name": "row seven"}
    good = {"image": Image.radial_gradient("L"), "text": "x", "name": "row six"}
    collate = FormulaCollator(comer_processor())
    with pytest.raises(ValueError, match="row seven: Image 0 cannot be read: it is blank"):
        collate([good, blank])
    with pytest.raises(ValueError, match="row six: .*qq"):
        collate([good | {"text": "qq"}])
