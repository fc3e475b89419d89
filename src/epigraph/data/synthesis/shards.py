"""Samples as parquet or WebDataset files, made by many processes, with a manifest that says what they were made from.

A shard's bytes depend on the plan and its number alone. It is written beside its place, synced and renamed, so that a
run that is killed at any time leaves whole shards only, and the next run makes those that are missing.
"""

import hashlib
import io
import json
import logging
import multiprocessing
import os
import platform
import signal
import tarfile
import threading
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from tqdm.auto import tqdm

from .datasets import ATTEMPTS, draw_sample, reason_of, row_features, sample_rows
from .fonts import SynthesisError

FORMATS = {"parquet": "parquet", "webdataset": "tar"}
_ROW_GROUP = 100  # rows; the Hub's viewer wants small ones where there are images
_MAGIC = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardPlan:
    """What is to be made and where; picklable.

    Attributes:
        make: the generator, with `features()`.
        out: folder of the shards and their manifest.
        num_samples: of all shards together. A group counts as one sample and gives a row for each member.
        shard_size: samples in a shard.
        seed: of the samples.
        attempts: how often a rejected sample is drawn again before it is left out.
        format: parquet or webdataset.
        description: JSON values that go into the manifest: `recipe` with its `kind`, `inputs` with digests ...
    """

    make: object
    out: Path
    num_samples: int
    shard_size: int = 1000
    seed: int = 0
    attempts: int = ATTEMPTS
    format: str = "parquet"
    description: dict = field(default_factory=lambda: {"recipe": {"kind": "text"}})

    def __post_init__(self):
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, not {self.format!r}")
        if min(self.num_samples, self.shard_size, self.attempts) < 1 or self.seed < 0:
            raise ValueError("num_samples, shard_size and attempts must be at least 1, and seed at least 0")

    def __len__(self) -> int:
        """Number of shards."""
        return -(-self.num_samples // self.shard_size)

    def shard(self, index: int) -> Path:
        """Path of a shard, named as the Hub names them."""
        return self.out / "data" / f"train-{index:05d}-of-{len(self):05d}.{FORMATS[self.format]}"

    def record(self, index: int) -> Path:
        """What the manifest will say of a shard; it is there when the shard is whole."""
        return self.out / ".records" / f"{index:05d}.json"

    def missing(self) -> list[int]:
        """Shards that are still to be made."""
        return [index for index in range(len(self)) if not self._whole(index)]

    def _whole(self, index: int) -> bool:
        try:
            return json.loads(self.record(index).read_text())["bytes"] == self.shard(index).stat().st_size
        except (OSError, ValueError, KeyError):
            return False

    def header(self) -> dict:
        """The part of the manifest that is known beforehand."""
        return {
            "format": self.format,
            "num_samples": self.num_samples,
            "shard_size": self.shard_size,
            "seed": self.seed,
            "attempts": self.attempts,
            **self.description,
            "versions": versions(),
        }


def versions() -> dict[str, str]:
    """Of everything that pixels and files depend on."""
    from PIL import features

    packages = (
        *("epigraph", "numpy", "scipy", "opencv-python-headless", "pillow", "fonttools", "ziamath", "scikit-image"),
        *("shapely", "pyclipper", "datasets", "pyarrow"),
    )
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    libraries = ("freetype2", "raqm", "harfbuzz", "zlib", "jpg")
    return found | {name: features.version(name) or "none" for name in libraries}


def replace_file(path: Path, content: bytes) -> None:
    """Put a file in place at once; a crash leaves the old one or none."""
    with _in_place(path) as file:
        file.write(content)


@contextmanager
def _in_place(path: Path):
    """A temporary file that is synced and gets its name when the block ends, and is removed when the block raises."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb+") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # the name too is to outlive a loss of power
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


@contextmanager
def _told(path: Path):
    """Let an error of the disk say which file it is about."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(
            f"{path} cannot be written ({error.strerror}); whole shards are kept: see to it, and run the same command "
            "again"
        ) from error


def _as_json(value) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


# ---------------------------------------------------------------------- one shard


class _Parquet:
    """Rows into a parquet file with the features of `datasets` in it."""

    def __init__(self, file, features):
        from datasets.arrow_writer import ParquetWriter

        self.features = features
        self.writer = ParquetWriter(features=features, stream=file, writer_batch_size=_ROW_GROUP)

    def encode(self, row: dict) -> dict:
        return self.features.encode_example(row)

    def write(self, key: str, encoded: dict) -> None:
        self.writer.write(encoded)

    def close(self) -> None:
        self.writer.finalize(close_stream=False)


class _WebDataset:
    """Rows into a tar file: a member for every image, the other columns as one JSON."""

    def __init__(self, file, features):
        self.features = features
        self.tar = tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)

    def encode(self, row: dict) -> dict[str, bytes]:
        from datasets import Image

        members, rest = {}, {}
        for name, feature in self.features.items():
            value = row[name]
            if isinstance(feature, Image):
                members |= [_member(name, value)]
            elif isinstance(getattr(feature, "feature", None), Image):
                members |= [_member(f"{name}_{number}", image) for number, image in enumerate(value)]
            else:
                rest[name] = value
        return members | {"json": json.dumps(rest, ensure_ascii=False, default=lambda array: array.tolist()).encode()}

    def write(self, key: str, encoded: dict[str, bytes]) -> None:
        for name, content in encoded.items():
            member = tarfile.TarInfo(f"{key}.{name}")  # owner 0 and time 0: the same bytes on every machine
            member.size = len(content)
            self.tar.addfile(member, io.BytesIO(content))

    def close(self) -> None:
        self.tar.close()


def _member(name: str, image: bytes | dict) -> tuple[str, bytes]:
    """File name and content of an image as rows hold it: its bytes, alone or as `datasets` keeps them."""
    content = image["bytes"] if isinstance(image, dict) else image
    extension = next(extension for magic, extension in _MAGIC.items() if content.startswith(magic))
    return f"{name}.{extension}", content


def write_shard(plan: ShardPlan, index: int, tick=lambda: None) -> dict:
    """Make shard `index` and put it in its place; what the manifest says of it.

    A sample that cannot be made is left out and counted. `tick` is called after each.

    Raises:
        SynthesisError: not one sample of the shard could be made.
        OSError: the disk is full, or the folder cannot be written.
    """
    path = plan.shard(index)
    samples = range(index * plan.shard_size, min((index + 1) * plan.shard_size, plan.num_samples))
    rejected, skipped = Counter(), Counter()
    with _told(path), _in_place(path) as file:
        kind = _Parquet if plan.format == "parquet" else _WebDataset
        with closing(kind(file, row_features(plan.make))) as writer:
            rows = _fill(writer, plan, samples, rejected, skipped, tick)
        if not rows:
            reasons = ", ".join(reason for reason, _ in (rejected + skipped).most_common(2))
            raise SynthesisError(f"none of the {len(samples)} samples of {path.name} could be made: {reasons}")
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.seek(0, os.SEEK_END)
    counts = {"rejected": dict(sorted(rejected.items())), "skipped": dict(sorted(skipped.items()))}
    name = path.relative_to(plan.out).as_posix()
    record = {"file": name, "samples": len(samples), "rows": rows, "bytes": size, "sha256": digest, **counts}
    replace_file(plan.record(index), _as_json(record))
    return record


def _fill(writer, plan: ShardPlan, samples: range, rejected: Counter, skipped: Counter, tick) -> int:
    rows = 0
    for number in samples:
        try:
            members = sample_rows(draw_sample(plan.make, plan.seed, number, plan.attempts, rejected))
            encoded = [writer.encode({"index": number, **row}) for row in members]
        except SynthesisError:
            skipped["no attempt succeeded"] += 1
        except MemoryError:
            raise
        except Exception as error:  # whatever is wrong with one sample, the others are made
            if not skipped:
                _log.warning("sample %d of seed %d is left out", number, plan.seed, exc_info=True)
            skipped[f"{type(error).__name__}: {reason_of(error)}"] += 1
        else:
            for member, row in enumerate(encoded):
                writer.write(f"{number:09d}" + (f"_{member}" if len(encoded) > 1 else ""), row)
            rows += len(encoded)
        tick()
    return rows


# ---------------------------------------------------------------------- the folder


def prepare_folder(plan: ShardPlan) -> None:
    """Create the folder and a manifest without shards, or see that those that are there are of the same plan.

    Raises:
        ValueError: the folder holds other files, or shards made from something else; it tells what differs.
        OSError: the folder cannot be made.
    """
    header, manifest = plan.header(), plan.out / "manifest.json"
    if manifest.exists():
        check_header(header, manifest)
    elif plan.out.exists() and any(path.suffix != ".partial" for path in plan.out.iterdir()):
        raise ValueError(f"{plan.out} holds files but no manifest.json; name an empty or a new folder")
    try:
        for folder in (plan.shard(0).parent, plan.record(0).parent):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"the folder {plan.out} cannot be made ({error.strerror}); name another one") from error
    if not manifest.exists():
        replace_file(manifest, _as_json(header))


def check_header(header: dict, manifest: Path) -> None:
    """See that a manifest was begun with `header`; ValueError in one sentence that tells what differs."""
    try:
        there = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{manifest} cannot be read ({error}); name another folder") from None
    results = {"shards", "rows", "rejected", "skipped"}
    header = json.loads(json.dumps(header))  # tuples as lists
    found = list(_differences({key: value for key, value in there.items() if key not in results}, header))
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise ValueError(
            f"{manifest.parent} was made from something else ({'; '.join(found[:3])}{more}); "
            "name another folder, or delete that one"
        )


def _differences(there, here, path: str = ""):
    if isinstance(there, dict) and isinstance(here, dict):
        for key in dict.fromkeys([*there, *here]):
            yield from _differences(there.get(key), here.get(key), f"{path}.{key}" if path else key)
    elif isinstance(there, list) and isinstance(here, list) and len(there) != len(here):
        yield f"{path}: {len(there)} there, {len(here)} now"
    elif isinstance(there, list) and isinstance(here, list):
        for number, pair in enumerate(zip(there, here)):
            yield from _differences(*pair, f"{path}[{number}]")
    elif there != here:
        yield f"{path}: {json.dumps(there)[:80]} there, {json.dumps(here)[:80]} now"


def finish_folder(plan: ShardPlan) -> dict:
    """Write the manifest and the dataset card of a folder whose shards are all there; the manifest.

    Raises:
        ValueError: shards are missing.
    """
    from ...cards import dataset_card

    if missing := plan.missing():
        raise ValueError(f"{plan.out} lacks {len(missing)} of {len(plan)} shards; run the same command again")
    shards = [json.loads(plan.record(index).read_text()) for index in range(len(plan))]
    totals = {name: Counter() for name in ("rejected", "skipped")}
    for shard in shards:
        for name, total in totals.items():
            total.update(shard[name])
    rows = sum(shard["rows"] for shard in shards)
    counts = {name: dict(total.most_common()) for name, total in totals.items()}
    manifest = {**plan.header(), "rows": rows, **counts, "shards": shards}
    replace_file(plan.out / "README.md", dataset_card(manifest).encode())
    replace_file(plan.out / "manifest.json", _as_json(manifest))
    return manifest


def write_shards(plan: ShardPlan, workers: int | None = None, progress: bool = True) -> dict:
    """Make every shard that is missing, then the manifest and the dataset card.

    Args:
        plan: what to make.
        workers: processes, each with one thread; by default one for each CPU that this process may use. With 1, this
            process does the work.
        progress: show a bar that counts samples.

    Returns the manifest. Whole shards stay when it is interrupted or raises, and the same call goes on from there.

    Raises:
        ValueError: the folder holds something else; a shard came out empty (`SynthesisError`).
        OSError: the folder cannot be written, or a process was killed.
    """
    prepare_folder(plan)
    for left in [*plan.out.glob(".*.partial"), *plan.out.glob("*/.*.partial")]:  # by a run that was killed
        left.unlink()
    missing = plan.missing()
    sizes = [min(plan.shard_size, plan.num_samples - index * plan.shard_size) for index in missing]
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = min(workers or cpus, len(missing))
    done = plan.num_samples - sum(sizes)
    with tqdm(total=plan.num_samples, initial=done, unit=" samples", disable=not progress, dynamic_ncols=True) as bar:
        if workers > 1:
            _write_in_processes(plan, missing, workers, bar)
        else:
            for index in missing:
                write_shard(plan, index, bar.update)
    return finish_folder(plan)


# ---------------------------------------------------------------------- many processes


def _write_in_processes(plan: ShardPlan, missing: list[int], workers: int, bar) -> None:
    # A fork server imports the package once for all of them; where there is none, each process imports it itself.
    forkserver = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if forkserver else "spawn")
    if forkserver:
        context.set_forkserver_preload([__name__])
    counter, stop = context.Value("q", 0), context.Value("b", 0, lock=False)
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(plan, counter, stop))
    pending, shown = {pool.submit(_work, index) for index in missing}, 0
    try:
        while pending:
            done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            counted = counter.value
            if counted > shown:  # an update by nothing would print the bar again
                bar.update(counted - shown)
                shown = counted
            for future in done:
                future.result()
    except BrokenProcessPool:
        raise OSError(
            f"{plan.out}: a process was killed, perhaps for want of memory; whole shards are kept: run the same "
            "command again, with fewer --workers"
        ) from None
    finally:
        stop.value = 1
        pool.shutdown(cancel_futures=True)


def _start_worker(plan: ShardPlan, counter, stop) -> None:
    """One thread, deaf to the keyboard (the parent tells it to stop), and gone when the parent is."""
    import cv2
    import pyarrow

    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    pyarrow.set_cpu_count(1)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    _worker = plan, counter, stop


def _work(index: int) -> None:
    plan, counter, stop = _worker

    def tick():
        with counter.get_lock():
            counter.value += 1
        if stop.value:
            raise InterruptedError("the run was stopped")

    write_shard(plan, index, tick)
