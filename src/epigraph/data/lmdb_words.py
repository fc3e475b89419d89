"""LMDB in the layout of the field: `num-samples`, and from 1 on `image-%09d` and `label-%09d`.

Read-only and without locks, so that it works on read-only file systems and beside other readers; what is stored is
taken as an image file and as UTF-8 text, never unpickled.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_IMAGE_BYTES = 20 * 2**20
MAX_LABEL_BYTES = 40_000
OPEN_AT_ONCE = 64  # data bases that one process keeps open


class LMDBError(ValueError):
    """A data base that cannot be read."""


class WordLMDB:
    """The records of one data base; indices run from 1 to `len`, as its keys do.

    An object can be sent to other processes, as to the workers of a loader: each opens the file for itself.

    Args:
        path: `data.mdb`, or a file of another name without a folder of its own.

    Raises:
        LMDBError: no such file, not an LMDB, cut off, or without a sensible `num-samples`.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with self._transaction() as transaction:
            stated, entries = transaction.get(b"num-samples"), transaction.stat()["entries"]
            stated = None if stated is None else bytes(stated[:20])
        try:
            self.length = int((stated or b"").decode("ascii"))
        except ValueError:
            shown = "no" if stated is None else f"the unreadable value {stated!r} as"
            raise LMDBError(f"{path}: it has {shown} num-samples; it is not in the layout of word sets.") from None
        # Half of the keys may be missing, which is reported key by key; more is another file or a mistaken number.
        if not 0 <= self.length <= entries:
            raise LMDBError(
                f"{path}: num-samples states {self.length:,} records, but there are {entries:,} keys; it is damaged, "
                "or was not written to the end."
            )

    def __len__(self) -> int:
        return self.length

    def records(self, start: int = 1, stop: int | None = None) -> Iterator[tuple[int, bytes | None, bytes | None]]:
        """Index, image and label as they are stored, None where a key is missing, of `start` up to before `stop`.

        Values that are larger than any word's are given as far as the limit plus one byte.
        """
        for first in range(start, self.length + 1 if stop is None else stop, 100):
            last = min(first + 100, self.length + 1 if stop is None else stop)
            with self._transaction() as transaction:  # short ones: nothing is held while the consumer works
                found = [self._get(transaction, index) for index in range(first, last)]
            yield from found

    def uncounted(self) -> int:
        """How many records follow those that `num-samples` counts, which it was not raised for."""
        number = self.length
        with self._transaction() as transaction:
            while transaction.get(b"image-%09d" % (number + 1)) is not None:
                number += 1
        return number - self.length

    def record(self, index: int) -> tuple[int, bytes | None, bytes | None]:
        """One of `records`."""
        return next(self.records(index, index + 1))

    def _get(self, transaction, index: int) -> tuple[int, bytes | None, bytes | None]:
        image = transaction.get(b"image-%09d" % index)
        label = transaction.get(b"label-%09d" % index)
        return (
            index,
            None if image is None else bytes(image[: MAX_IMAGE_BYTES + 1]),
            None if label is None else bytes(label[: MAX_LABEL_BYTES + 1]),
        )

    @contextmanager
    def _transaction(self):
        import lmdb

        try:
            with _environment(self.path).begin(buffers=True) as transaction:
                yield transaction
        except (lmdb.Error, OSError) as error:
            raise LMDBError(f"{self.path}: not a readable LMDB ({error}).") from None


# Of this process: device and inode -> (state of the file, environment). LMDB forbids a second environment of one file,
# whatever its path; and inodes of files that were deleted come again.
_OPEN = {}


def _environment(path: Path):
    """The environment of a file, opened anew where the file is another by now."""
    import lmdb

    found = path.stat()
    key, state = (found.st_dev, found.st_ino), (found.st_size, found.st_mtime_ns)
    if key in _OPEN and _OPEN[key][0] != state:
        _OPEN.pop(key)[1].close()
    if key not in _OPEN:
        if len(_OPEN) >= OPEN_AT_ONCE:
            _OPEN.pop(next(iter(_OPEN)))[1].close()
        environment = lmdb.open(str(path), subdir=False, readonly=True, lock=False, create=False, readahead=False)
        # A page behind the end of a file that was cut off would end the process.
        needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        if needed > found.st_size:
            environment.close()
            raise OSError(f"cut off: it should have {needed:,} bytes, but has {found.st_size:,}")
        _OPEN[key] = state, environment
    return _OPEN[key][1]


def _close_all():
    while _OPEN:
        _OPEN.popitem()[1][1].close()


# Environments do not survive a fork, and the child could not open what the parent has open.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_close_all)


__all__ = ["LMDBError", "MAX_IMAGE_BYTES", "MAX_LABEL_BYTES", "WordLMDB"]
