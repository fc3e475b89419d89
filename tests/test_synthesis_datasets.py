"""Samples by index and as streams: the same whoever asks, in whatever order, before and after an interruption."""

import pickle
from collections import Counter

import numpy as np
import pytest
from fake_samples import FakeGenerator
from torch.utils.data import DataLoader

from epigraph.data.synthesis.datasets import SynthesisDataset, SynthesisStream, reason_of
from epigraph.data.synthesis.fonts import SynthesisError


def same(left, right):
    return len(left) == len(right) and all(a == b for a, b in zip(left, right))


@pytest.fixture(scope="module")
def samples():
    dataset = SynthesisDataset(FakeGenerator(), 40, seed=3)
    return [dataset[index] for index in range(40)]


def test_a_sample_depends_on_seed_and_index_alone(samples):
    dataset = SynthesisDataset(FakeGenerator(), 40, seed=3)
    assert len(dataset) == 40
    assert same([dataset[index] for index in reversed(range(40))], samples[::-1])
    assert dataset[np.int64(5)] == samples[5] and dataset[-1] == samples[-1]
    longer = SynthesisDataset(FakeGenerator(), 1000, seed=3)
    assert longer[39] == samples[39], "the length changes no sample"
    other = SynthesisDataset(FakeGenerator(), 40, seed=4)
    assert not any(other[index] == samples[index] for index in range(40))
    assert len({sample.images.tobytes() for sample in samples}) == 40


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_give_the_same_samples(samples, workers):
    dataset = SynthesisDataset(FakeGenerator(), 40, seed=3)
    batches = list(DataLoader(dataset, batch_size=8, num_workers=workers, collate_fn=list))
    assert same(sum(batches, []), samples)
    for batch_size in (4, 1):
        stream = SynthesisStream(FakeGenerator(), 40, seed=3, batch_size=batch_size)
        batches = list(DataLoader(stream, batch_size=batch_size, num_workers=workers, collate_fn=list))
        assert same(sum(batches, []), samples), "in the order of the index"


def test_a_copy_sent_to_another_process_gives_the_same_samples(samples):
    for dataset in (SynthesisDataset(FakeGenerator(), 40, seed=3), SynthesisStream(FakeGenerator(), 40, seed=3)):
        copy = iter(pickle.loads(pickle.dumps(dataset)))
        assert same([next(copy) for _ in range(5)], samples[:5])


def test_rejected_attempts_are_drawn_again_and_counted_by_reason():
    dataset = SynthesisDataset(FakeGenerator(rejected=0.5), 200)
    list(dataset)
    (reason, count), = dataset.rejected.items()  # fmt: skip
    assert reason == "the word … does not fit … pixels"
    assert 120 < count < 290, "about one for each sample"
    assert reason_of(KeyError("x")) == "…"
    assert reason_of(OSError("the font /fonts/a.ttf, or ~/b.ttf: and/or 3")) == "the font …, or …: and/or …"
    hopeless = SynthesisDataset(FakeGenerator(rejected=1.0), 10, attempts=7)
    with pytest.raises(SynthesisError, match="sample 4 of seed 0 was rejected 7 times, at last because: the word 'w"):
        hopeless[4]
    assert hopeless.rejected.total() == 7


def test_other_errors_are_not_hidden():
    with pytest.raises(KeyError):
        SynthesisDataset(FakeGenerator(rejected=0.0, broken=1.0), 10)[0]


def test_transform_is_applied(samples):
    dataset = SynthesisDataset(FakeGenerator(), 40, seed=3, transform=lambda sample: sample.row()["text"])
    stream = SynthesisStream(FakeGenerator(), 40, seed=3, transform=lambda sample: sample.row()["text"])
    assert dataset[7] == samples[7].row()["text"] and next(iter(stream)) == samples[0].row()["text"]


@pytest.mark.parametrize(
    "error, make",
    [
        (IndexError, lambda: SynthesisDataset(FakeGenerator(), 40)[40]),
        (IndexError, lambda: SynthesisDataset(FakeGenerator(), 40)[-41]),
        (ValueError, lambda: SynthesisDataset(FakeGenerator(), 0)),
        (ValueError, lambda: SynthesisDataset(FakeGenerator(), 1, seed=-1)),
        (ValueError, lambda: SynthesisDataset("words", 1)),
        (ValueError, lambda: SynthesisStream(FakeGenerator(), rank=2, world_size=2)),
        (ValueError, lambda: SynthesisStream(FakeGenerator(), attempts=0)),
    ],
)
def test_what_cannot_be_is_refused(error, make):
    with pytest.raises(error):
        make()


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_share_a_stream_without_overlap(samples, workers):
    shares = []
    for rank in range(3):
        stream = SynthesisStream(FakeGenerator(), 40, seed=3, batch_size=4, rank=rank, world_size=3)
        shares.append(list(DataLoader(stream, batch_size=4, num_workers=workers, collate_fn=list)))
    assert same(shares[1][0], samples[4:8]) and same(shares[0][1], samples[12:16])
    seen = Counter(sample.images.tobytes() for share in shares for batch in share for sample in batch)
    assert seen == Counter(sample.images.tobytes() for sample in samples)


def test_a_stream_goes_on_where_it_stood(samples):
    stream = iter(SynthesisStream(FakeGenerator(), seed=3, start=30))
    assert same([next(stream) for _ in range(10)], samples[30:]), "endless, from any index"
    for rank in range(2):
        arguments = {"length": 40, "seed": 3, "batch_size": 4, "rank": rank, "world_size": 2}
        whole = list(SynthesisStream(FakeGenerator(), **arguments))
        stream = SynthesisStream(FakeGenerator(), **arguments)
        iterator = iter(stream)
        first = [next(iterator) for _ in range(7)]
        resumed = SynthesisStream(FakeGenerator(), **arguments)
        resumed.load_state_dict(stream.state_dict())
        assert same(first + list(resumed), whole)
        assert same(list(resumed), whole), "the next round begins at the start"


def test_datasets_library(samples):
    from datasets import Image

    rows = SynthesisDataset(FakeGenerator(), 200, seed=3).to_iterable_dataset()
    assert isinstance(rows.features["image"], Image) and rows.num_shards == 4
    listed = list(rows.take(40))
    assert [row["index"] for row in listed] == list(range(40))
    assert all(np.array_equal(row["image"], sample.images[0]) for row, sample in zip(listed, samples))
    assert listed[3]["images"][1].size == (12, 8) and np.shape(listed[3]["quads"]) == (2, 2, 4)

    iterator = iter(rows)
    for _ in range(100):
        next(iterator)
    state = rows.state_dict()
    resumed = SynthesisDataset(FakeGenerator(), 200, seed=3).to_iterable_dataset()
    resumed.load_state_dict(state)
    assert [row["index"] for row in resumed] == list(range(100, 200))


def test_a_group_is_a_row_for_each_member():
    rows = list(SynthesisDataset(FakeGenerator(members=3), 4).to_iterable_dataset())
    assert [row["index"] for row in rows] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert len({row["text"] for row in rows}) == 12
