"""Samples that are made as they are asked for: by index, as an endless stream, and as a `datasets.IterableDataset`.

A generator is any picklable callable `make(rng) -> sample`; `WordGenerator`, `SceneGenerator` and `FormulaGenerator`
are the ones of this package. Sample `index` is drawn with the random numbers of (seed, index, attempt) and nothing
else, so that it is the same in every process, in any order, today and after a run that was cut off.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from operator import index as as_index

import numpy as np
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from .fonts import SynthesisError

ATTEMPTS = 20
_SPAN = 64  # samples in a shard of a `datasets.IterableDataset`: what resuming may have to draw again
_PARTICULARS = re.compile(r"""'[^']*'|"[^"]*"|(?<![\w/])~?/[^\s,;:()]+|[-+]?\d[\d.,]*""")


def draw_sample(make: Callable, seed: int, index: int, attempts: int = ATTEMPTS, rejected: Counter | None = None):
    """Sample `index` of `seed`: the first attempt that does not raise `SynthesisError`.

    Every rejected attempt is counted in `rejected` by its reason (`reason_of`).

    Raises:
        SynthesisError: none of the attempts succeeded; it names the last reason.
    """
    for attempt in range(attempts):
        try:
            return make(np.random.default_rng((seed, index, attempt)))
        except SynthesisError as error:
            last = error
            if rejected is not None:
                rejected[reason_of(error)] += 1
    raise SynthesisError(
        f"sample {index} of seed {seed} was rejected {attempts} times, at last because: {last}; "
        "see that the fonts have the characters of the words and that the words fit the size"
    )


def reason_of(error: Exception) -> str:
    """The message of an error without the names, paths and numbers in it, so that the same cause is counted once."""
    return _PARTICULARS.sub("…", str(error))[:200]


def sample_rows(sample) -> list[dict]:
    """The rows of a sample as shards store them: one, or one for each member of a group."""
    return [member.row() for member in (sample if isinstance(sample, list) else [sample])]


def _checked(make, seed: int, attempts: int):
    if not callable(make):
        raise ValueError(f"make must be a callable that takes a random generator, not {make!r}")
    if seed < 0 or attempts < 1:
        raise ValueError(f"seed must not be negative and attempts at least 1, not {seed} and {attempts}")


class SynthesisDataset(Dataset):
    """`length` samples by index, for a `DataLoader` with any number of workers or for direct use.

        dataset = SynthesisDataset(WordGenerator(find_fonts(), WordSampler()), length=1_000_000)
        loader = DataLoader(dataset, batch_size=64, shuffle=True, num_workers=8, collate_fn=my_collate)

    Args:
        make: `make(rng: np.random.Generator) -> sample`; picklable, for workers that are spawned.
        length: how many samples there are.
        seed: other seeds give other samples.
        attempts: how often a rejected sample is drawn again.
        transform: applied to every sample.

    `rejected` counts rejected attempts by reason, in the process that made them: each `DataLoader` worker has its own.

    Raises IndexError beyond `length`, and SynthesisError where no attempt succeeded.
    """

    def __init__(self, make, length: int, seed: int = 0, attempts: int = ATTEMPTS, transform: Callable | None = None):
        _checked(make, seed, attempts)
        if length < 1:
            raise ValueError(f"length must be at least 1, not {length}")
        self.make, self.length, self.seed, self.attempts, self.transform = make, length, seed, attempts, transform
        self.rejected = Counter()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):
        index = as_index(index)
        if not -self.length <= index < self.length:
            raise IndexError(f"index {index} is beyond the {self.length} samples")
        sample = draw_sample(self.make, self.seed, index % self.length, self.attempts, self.rejected)
        return sample if self.transform is None else self.transform(sample)

    def to_iterable_dataset(self):
        """A `datasets.IterableDataset` of the rows, images decoded, that `shuffle`, `state_dict` and workers act on.

        Its shards are runs of indices, so that a resumed state draws at most a few dozen samples again. `transform` is
        not applied; use `map`.
        """
        from datasets import IterableDataset as HubIterableDataset

        size = max(_SPAN, self.length // 2**16)
        spans = [(start, min(start + size, self.length)) for start in range(0, self.length, size)]
        arguments = {"make": self.make, "seed": self.seed, "attempts": self.attempts, "spans": spans}
        return HubIterableDataset.from_generator(
            _rows_of_spans, features=row_features(self.make), gen_kwargs=arguments
        )


def row_features(make):
    """The `datasets.Features` of shards: the index of the sample, and what the generator's rows hold."""
    from datasets import Features, Value

    return Features({"index": Value("int64"), **make.features()})


def _rows_of_spans(make, seed: int, attempts: int, spans: list[tuple[int, int]]) -> Iterator[dict]:
    for start, end in spans:
        for index in range(start, end):
            for row in sample_rows(draw_sample(make, seed, index, attempts)):
                yield {"index": index, **row}


class SynthesisStream(IterableDataset):
    """Samples in the order of their index, without end or up to `length`, shared among processes and workers.

        stream = SynthesisStream(make, batch_size=64, rank=rank, world_size=world_size)
        loader = DataLoader(stream, batch_size=64, num_workers=8, collate_fn=my_collate)

    With `batch_size` that of the loader, process `rank` gets batches rank, rank + world_size ..., whatever the number
    of workers. A run that has used n batches in each process goes on with `start=n * batch_size * world_size`; without
    workers, or with torchdata's StatefulDataLoader, `state_dict` and `load_state_dict` do the same.

    Args:
        make, seed, attempts, transform: as for `SynthesisDataset`, whose sample `index` is the same.
        length: index at which the stream ends; None for never.
        start: index of the first sample.
        batch_size: how many neighbouring samples stay together; 1 deals them out singly.
        rank, world_size: of this process. Leave them where another library splits the data among processes, as
            accelerate's `prepare` does.
    """

    def __init__(
        self,
        make,
        length: int | None = None,
        seed: int = 0,
        attempts: int = ATTEMPTS,
        start: int = 0,
        batch_size: int = 1,
        rank: int = 0,
        world_size: int = 1,
        transform: Callable | None = None,
    ):
        _checked(make, seed, attempts)
        if start < 0 or batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"start {start}, batch_size {batch_size}, rank {rank} of world_size {world_size} cannot be: start is "
                "at least 0, batch_size at least 1, rank from 0 to world_size - 1"
            )
        self.make, self.length, self.seed, self.attempts, self.transform = make, length, seed, attempts, transform
        self.start, self.batch_size, self.rank, self.world_size = start, batch_size, rank, world_size
        self.taken = 0  # samples that this copy, of one worker of one process, has given
        self._resumed = 0
        self.rejected = Counter()

    def __iter__(self):
        self.taken, self._resumed = self._resumed, 0
        worker = get_worker_info()
        workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        while (index := self._index(self.taken, number, workers)) is not None:
            # Counted before it is handed out: a state is asked for while the consumer holds the sample.
            self.taken += 1
            sample = draw_sample(self.make, self.seed, index, self.attempts, self.rejected)
            yield sample if self.transform is None else self.transform(sample)

    def _index(self, taken: int, worker: int, workers: int) -> int | None:
        """Index of the sample after `taken` ones of this worker; None behind the end."""
        block, offset = divmod(taken, self.batch_size)
        block = (block * workers + worker) * self.world_size + self.rank
        index = self.start + block * self.batch_size + offset
        return index if self.length is None or index < self.length else None

    def state_dict(self) -> dict:
        """Where the stream stands: for `load_state_dict` of one with the same arguments."""
        return {"start": self.start, "taken": self.taken}

    def load_state_dict(self, state: dict) -> None:
        """Let the next iteration go on where `state_dict` was called; later ones begin at the start again."""
        self.start, self.taken, self._resumed = state["start"], state["taken"], state["taken"]
