"""A context pool on disk: parquet shards that are never changed, and a manifest that says which of them count.

    FOLDER/manifest.json          the operations in force, in order, and the encoder that the keys belong to
    FOLDER/shard-<hex>.parquet    entries: id, image, text, key, source, added_at, pixels
    FOLDER/pool.lock              held while a process writes

A pool is the fold of its operations, each of which takes entries out and brings the rows of some shards in. Writing
means: take the lock, put new shards beside the old ones, replace the manifest by a rename. A process that is killed at
any moment leaves the old manifest or the new one, either of them with all its shards. Readers need no lock.
"""

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

MANIFEST, LOCK = "manifest.json", "pool.lock"
FORMAT = 1
SHARD_ROWS = 10_000  # entries of a shard; a footer of this many is parsed in a millisecond
GROUP_ROWS = 128  # entries that are read together when one image is asked for
LOCK_SECONDS = 600.0
MAX_MANIFEST = 2**28  # bytes
MAX_WIDTH = 65_536
MAX_STRING = 1_000  # characters of a text or a source
SHARD_NAME = re.compile(r"shard-[0-9a-f]{32}\.parquet")
HASH = re.compile(r"[0-9a-f]{16}")


class ShardMissing(ValueError):
    """A shard that the manifest names is not there: damage, or another process has rewritten the pool."""


@dataclass(frozen=True)
class Shard:
    """A parquet file of entries.

    Attributes:
        file: its name inside the folder.
        rows: how many entries it holds.
        bytes: its size.
    """

    file: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class Operation:
    """One change of a pool: the entries `removed` (ids) leave, then the rows of `shards` come in."""

    id: str
    at: str
    shards: tuple[Shard, ...] = ()
    removed: tuple[str, ...] = ()


@dataclass
class Manifest:
    """What stands in manifest.json.

    Attributes:
        pool: names the pool across its copies and changes.
        encoder: hash of the weights that made the keys; None where the encoder did not say.
        probe: key of a fixed picture, by which encoders are compared that do not say their hash.
        width: of the keys; None while there is none.
        operations: in force, in order.
    """

    pool: str
    encoder: str | None = None
    probe: list[float] | None = None
    width: int | None = None
    operations: list[Operation] = field(default_factory=list)

    @property
    def shards(self) -> list[Shard]:
        """Of all operations, in order."""
        return [shard for operation in self.operations for shard in operation.shards]


def holds_pool(folder: Path) -> bool:
    """Whether a folder has a manifest, sound or damaged, that is not one of `epigraph synth`."""
    try:
        return read_manifest(folder) is not None
    except NoPoolError:
        return False
    except ValueError:
        return True


class NoPoolError(ValueError):
    """A folder with words, whose manifest.json is not that of a pool."""


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder, None where it has none; ValueError where it is damaged or of a later format."""
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST:
            raise ValueError(f"{path} is larger than {MAX_MANIFEST:,} bytes, which no pool writes; delete the folder.")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it, or build the pool again.") from None
    if isinstance(content, dict) and {"recipe", "num_samples"} <= content.keys():
        raise NoPoolError(
            f"{folder} is no pool but what epigraph synth wrote; make one of it: epigraph pool build POOL {folder}"
        )
    version = content.get("format") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise ValueError(f"{path} was written by a later version of epigraph (format {version}); update epigraph.")
    try:
        operations = [
            Operation(
                str(item["id"]),
                str(item["at"]),
                tuple(Shard(str(s["file"]), int(s["rows"]), int(s["bytes"])) for s in item["shards"]),
                tuple(str(name) for name in item["removed"]),
            )
            for item in content["operations"]
        ]
        probe, width = content["probe"], content["width"]
        manifest = Manifest(
            str(content["pool"]), content["encoder"], probe and [float(value) for value in probe], width, operations
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); restore it, or build the pool again.") from None
    sound = width is None or (isinstance(width, int) and 0 < width <= MAX_WIDTH)
    sound &= all(SHARD_NAME.fullmatch(shard.file) and 0 < shard.rows <= SHARD_ROWS for shard in manifest.shards)
    sound &= all(HASH.fullmatch(name) for operation in operations for name in operation.removed)
    if not sound or (manifest.shards and width is None):
        raise ValueError(f"{path} is damaged (names or sizes that no pool has); restore it, or build the pool again.")
    return manifest


def write_manifest(folder: Path, manifest: Manifest):
    """Put the manifest in the place of the former one, at once and for good."""
    content = {"format": FORMAT, **asdict(manifest)}
    unfinished = folder / f"{MANIFEST}.tmp"
    with open(unfinished, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, folder / MANIFEST)
    _sync_folder(folder)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system frees when a process dies; TimeoutError after `LOCK_SECONDS`."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise TimeoutError(
            f"{folder} has been written by another process for {LOCK_SECONDS:.0f} seconds; try again when it is done."
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Make the folder where it is missing; OSError that says what to do where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except TimeoutError:  # of the lock, which says enough
        raise
    except OSError as error:
        raise type(error)(
            f"{folder} could not be written ({error.strerror or error}); nothing is lost: give it room or rights and "
            "save again, or save to another folder."
        ) from error


def place(source: Path, folder: Path, link: bool = False):
    """Bring a finished shard into a folder; half of it is never there under its name.

    With `link` the two may share one file, for shards that will not be needed at `source`.
    """
    target = folder / source.name
    if target.exists():
        return
    if not source.exists():
        raise ShardMissing(f"{source} is missing, but the pool needs it; restore it, or load the pool again.")
    linked = False
    if link:
        with suppress(OSError):  # of another disk, or one without links
            os.link(source, target)
            linked = True
    if not linked:
        unfinished = folder / f"{source.name}.tmp"
        shutil.copyfile(source, unfinished)
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, target)
    _sync_folder(folder)


def sweep(folder: Path):
    """Delete shards that the manifest does not name, and what killed processes left. The lock must be held."""
    manifest = read_manifest(folder)
    wanted = {shard.file for shard in manifest.shards} if manifest else set()
    for path in folder.iterdir():
        name = path.name.removesuffix(".tmp")
        unfinished = name != path.name and (name == MANIFEST or SHARD_NAME.fullmatch(name))
        if unfinished or (SHARD_NAME.fullmatch(path.name) and path.name not in wanted):
            with suppress(OSError):  # what cannot be deleted is only in the way
                os.unlink(path)


def _sync_folder(folder: Path):
    """Make renames survive a loss of power, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def shard_schema(width: int):
    """Of the parquet files, as `datasets` reads them: images are shown as images."""
    from datasets import Features, Image, List, Value

    text = Value("string")
    columns = {"id": text, "image": Image(), "text": text, "key": List(Value("float32"), length=width)}
    return Features(columns | {"source": text, "added_at": text, "pixels": text}).arrow_schema


def write_shard(folder: Path, rows: list[dict], keys: np.ndarray) -> Shard:
    """Write entries as a new shard.

    Args:
        folder: where to.
        rows: id, image (encoded bytes), text, source, added_at and pixels of each.
        keys: (rows, width) float32.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    width = keys.shape[1]
    columns = {name: [row[name] for row in rows] for name in ("id", "text", "source", "added_at", "pixels")}
    columns["image"] = [{"bytes": row["image"], "path": None} for row in rows]
    columns["key"] = pa.FixedSizeListArray.from_arrays(pa.array(keys.astype(np.float32).ravel()), width)
    name = f"shard-{uuid.uuid4().hex}.parquet"
    with open(folder / name, "wb") as file:
        pq.write_table(
            pa.table(columns, schema=shard_schema(width)),
            file,
            row_group_size=GROUP_ROWS,
            compression="none",  # images are compressed, keys cannot be
            use_dictionary=["source", "added_at"],
            write_page_checksum=True,
            write_statistics=False,  # the least and the greatest image of every group, which nobody asks for
        )
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    return Shard(name, len(rows), size)


@contextmanager
def _reading(path: Path):
    """An open parquet file, whose every failure names it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except FileNotFoundError:
        raise ShardMissing(f"{path} is missing, but the pool's manifest names it; restore it.") from None
    except (pa.ArrowException, OSError, KeyError, AttributeError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(f"{path} is damaged ({reason}); restore it, or build the pool again.") from None


def read_shard(folder: Path, shard: Shard, width: int | None):
    """A shard without its images: arrow table with id, text, source, added_at, pixels, and keys (rows, width).

    `width` is what keys must have, None to take what there is. Raises:
        ShardMissing: it is not there.
        ValueError: it is damaged or holds other than the manifest says; one sentence with its path.
    """
    import pyarrow.compute as pc

    path = folder / shard.file
    with _reading(path) as file:
        table = file.read(["id", "text", "key", "source", "added_at", "pixels"])
        keys = table["key"].combine_chunks()
        table = table.drop_columns("key").combine_chunks()
        width = width or keys.type.list_size
        lacking = keys.null_count + sum(column.null_count for column in table.columns)
        values = keys.flatten().to_numpy(zero_copy_only=False)
        hashes = {"id": "^[0-9a-f]{16}$", "pixels": "^[0-9a-f]{32}$"}
        sound = all(pc.all(pc.match_substring_regex(table[c], form)).as_py() for c, form in hashes.items())
        sound &= all(pc.max(pc.utf8_length(table[c])).as_py() <= MAX_STRING for c in ("text", "source", "added_at"))
    if lacking or not sound or table.num_rows != shard.rows or values.size != shard.rows * width:
        raise ValueError(
            f"{path} is damaged (its entries are not the {shard.rows} with keys of width {width} that the manifest "
            "names); restore it, or build the pool again."
        )
    keys = values.astype(np.float32, copy=False).reshape(-1, width)
    if not np.isfinite(keys).all():
        raise ValueError(f"{path} is damaged (keys that are not finite); restore it, or build the pool again.")
    return table, keys


def read_images(folder: Path, shard: Shard, rows: list[int]) -> list[bytes]:
    """The encoded images of some rows of a shard; raises as `read_shard` does."""
    found = {}
    with _reading(folder / shard.file) as file:
        for group in sorted({row // GROUP_ROWS for row in rows}):
            images = file.read_row_group(group, columns=["image"])["image"]
            start = group * GROUP_ROWS
            found |= {row: images[row - start].as_py()["bytes"] for row in rows if row // GROUP_ROWS == group}
    return [found[row] for row in rows]


def download(repo_id: str) -> Path:
    """The folder that a pool of the Hub lies in."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(repo_id, repo_type="dataset", allow_patterns=["manifest.json", "shard-*.parquet"])
        )
    except Exception as error:  # each version of huggingface_hub has the errors of another HTTP client
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise FileNotFoundError(
            f"there is no folder {repo_id}, and no such pool on the Hub could be reached ({reason}); save one there."
        ) from error
