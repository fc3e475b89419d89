"""What one visitor has: words that were read, and a pool of examples that nobody else sees.

The pool is a folder of the visit's own, gone when the visit is. It travels as a zip archive of such a folder, which
`epigraph pool` opens as well. Of an archive that comes from outside only pictures and texts are taken, each of them
checked; keys are made anew.
"""

import base64
import io
import struct
import tempfile
import zipfile
import zlib
from dataclasses import dataclass, field
from itertools import count, groupby
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from epigraph.context_pool import ContextPool
from epigraph.inputs import first_line, open_input
from epigraph.pool_entries import MAX_CROP_PIXELS
from epigraph.pool_storage import HASH, MANIFEST, SHARD_NAME, read_manifest
from epigraph.reading import WordReading, read_all
from epigraph.reading_words import prepare

MOST_WORDS = 24  # that a visit shows; all of them are read anew when the pool changes
MOST_ENTRIES = 300
MOST_BYTES = 12_000_000  # of their pictures
MOST_ON_DISK = 32_000_000  # of a visit, what was removed and can be brought back included
LARGE = 500_000  # bytes; more in a JPEG of this size are not picture
MOST_UNPACKED = 20_000_000  # bytes of an archive, as much as can be uploaded
MOST_FILES = 1_000  # of an archive
MOST_ROWS = 3_000  # of an archive, those that were removed included
MOST_NAMES = 1_000_000  # bytes of an archive's manifest
NAMES = ("id", "image", "text", "source")  # of a shard's columns, those that are looked at
ROWS_AT_ONCE = 4  # a row of a forged file may be as large as the file
MAX_SIDE = 512  # pixels; larger pictures are reduced: a word is read at 32 x 128
LATENTS = 2**22  # bytes of memory that a pool keeps for its examples
N_BEST = 4
THUMBNAIL = (160, 48)


def picture_of(item: str | Path | bytes, name: str) -> Image.Image:
    """An image file as it is read and kept: RGB, upright, on white, no side longer than `MAX_SIDE`.

    Raises:
        ValueError: it cannot be read; one sentence that names it.
    """
    picture = prepare(Path(item).read_bytes() if isinstance(item, (str, Path)) else item, name)
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return picture


def uri(picture: Image.Image, size: tuple[int, int] | None = None) -> str:
    """A picture inside the page, as it is or as a thumbnail."""
    file = io.BytesIO()
    if size is None:
        picture.save(file, "PNG")
    else:
        small = picture.copy()
        small.thumbnail(size, Image.Resampling.LANCZOS)
        small.save(file, "JPEG", quality=80)
    return f"data:image/{'png' if size is None else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}"


# ---------------------------------------------------------------------------------------------------------- archives


def packed(folder: Path) -> bytes:
    """The pool of a folder as a zip archive. What was removed from it, and its history, are left behind."""
    with tempfile.TemporaryDirectory(prefix="epigraph-visit-") as name:
        copy = ContextPool.load(folder)
        copy.compact()
        copy.save(name)
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:  # shards are compressed pictures
            for path in sorted(Path(name).iterdir()):
                if path.name == MANIFEST or SHARD_NAME.fullmatch(path.name):
                    archive.write(path, f"pool/{path.name}")
    return content.getvalue()


def unpacked(path: str | Path, name: str) -> list[tuple[bytes, str, str]]:
    """Image, text and source of the entries of a pool that `packed`, or somebody from a folder, has zipped.

    Args:
        path: the archive.
        name: what to call it in errors.

    Raises:
        ValueError: it is no such archive, or too large; one sentence that names it.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="epigraph-visit-") as folder, zipfile.ZipFile(path) as archive:
            _extract(archive, Path(folder))
            try:
                return _entries(Path(folder))
            except (pa.ArrowException, OSError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"a shard is damaged ({type(error).__name__})") from None
    except ValueError as error:
        reason = str(error)
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, OSError) as error:
        reason = f"no zip archive, or a damaged one ({first_line(error)})"
    raise ValueError(f"{name}: {reason.rstrip('.')}. Upload a pool as this page saves it.")


def _extract(archive: zipfile.ZipFile, folder: Path):
    """Manifest and shards; names, numbers and sizes are checked first, so that nothing is written elsewhere."""
    members = [member for member in archive.infolist() if not member.is_dir()]
    if len(members) > MOST_FILES or sum(member.file_size for member in members) > MOST_UNPACKED:
        raise ValueError(f"it holds more than {MOST_FILES:,} files or {MOST_UNPACKED / 1e6:.0f} MB")
    if {member.compress_type for member in members} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise ValueError("it is compressed in an unusual way")
    wanted = {}
    for member in members:
        place = PurePosixPath(member.filename)
        if place.name == MANIFEST or SHARD_NAME.fullmatch(place.name):
            if place.name in wanted:
                raise ValueError("it holds several pools")
            wanted[place.name] = member
    if MANIFEST not in wanted:
        raise ValueError(f"it holds no context pool (no {MANIFEST})")
    if wanted[MANIFEST].file_size > MOST_NAMES:
        raise ValueError(f"its {MANIFEST} is larger than {MOST_NAMES:,} bytes")
    for name, member in wanted.items():
        (folder / name).write_bytes(archive.read(member))


def _entries(folder: Path) -> list[tuple[bytes, str, str]]:
    """Those in force, in order."""
    try:
        manifest = read_manifest(folder)
    except ValueError as error:
        raise ValueError(str(error).replace(f"{folder}/", "its ")) from None
    if sum(shard.rows for shard in manifest.shards) > MOST_ROWS:
        raise ValueError(f"it has more than {MOST_ROWS:,} entries, and {MOST_ENTRIES} have room here")
    found, size = {}, 0
    for operation in manifest.operations:
        for gone in operation.removed:
            found.pop(gone, None)
        for shard in operation.shards:
            for row in _rows(folder / shard.file, shard.rows):
                entry = row["image"]["bytes"], row["text"], row["source"]
                size += sum(map(len, entry))
                if size > MOST_UNPACKED or not HASH.fullmatch(row["id"]):
                    raise ValueError("a shard has entries that no pool has")
                found.setdefault(row["id"], entry)
    if len(found) > MOST_ENTRIES:
        raise ValueError(f"it has {len(found):,} entries, and {MOST_ENTRIES} have room here")
    return list(found.values())


def _rows(path: Path, rows: int):
    """Of a shard. Keys are not looked at, and nothing is decompressed: a small file cannot become a large one."""
    columns = {"id", "image.bytes", "image.path", "text", "source"}
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        meta = file.metadata
        numbers = [n for n in range(len(file.schema)) if file.schema.column(n).path.split(".")[0] in NAMES]
        chunks = [meta.row_group(group).column(n) for group in range(meta.num_row_groups) for n in numbers]
        if (
            meta.num_rows != rows
            or {file.schema.column(n).path for n in numbers} != columns
            or any(file.schema.column(n).max_repetition_level for n in numbers)
            or any(chunk.compression != "UNCOMPRESSED" for chunk in chunks)
        ):
            raise ValueError("a shard is not what its manifest says, or not as pools are saved")
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=list(NAMES)):
            yield from batch.to_pylist()


# ------------------------------------------------------------------------------------------------------------- visits


@dataclass(eq=False)
class Word:
    """A word image of a visit.

    Attributes:
        number: names it on the page.
        name: of its file.
        picture: as it is read and kept.
        reading: the last one.
        before: what was read before the last change of the pool, where that was something else.
    """

    number: int
    name: str
    picture: Image.Image = field(repr=False)
    reading: WordReading | None = None
    before: WordReading | None = None


@dataclass(frozen=True)
class Known:
    """Of an entry of the pool: its picture inside the page, and the bytes that it is kept in."""

    thumbnail: str
    bytes: int


class Visit:
    """A visitor's words and pool.

    Args:
        model, processor: what reads.
        encode: `epigraph.encoder` of these.

    Attributes:
        words: the last `MOST_WORDS`, those that came together in their order, the latest first.
        chosen: the word that is looked at, None where there is none.
        pool: the examples.
        k: how many examples a word is read with.
    """

    def __init__(self, model, processor, encode):
        self.model, self.processor = model, processor
        self._folder = tempfile.TemporaryDirectory(prefix="epigraph-visit-")
        self.pool = ContextPool(encode, cache_bytes=LATENTS)
        self.words: list[Word] = []
        self.chosen: Word | None = None
        self.k = 2
        self._known: dict[str, Known] = {}  # of entries, and of removed ones, by id
        self._numbers = count(1)
        self._steps: list[int] = []  # operations of the pool that each change of the visitor's took

    def close(self):
        """Delete the pool."""
        self._folder.cleanup()

    @property
    def folder(self) -> Path:
        """That the pool lies in."""
        return Path(self._folder.name)

    @property
    def entries(self) -> list[tuple[str, str, str]]:
        """Id, text and thumbnail of the pool's entries, in the order in which they came."""
        return [(name, text, self._known[name].thumbnail) for name, text in zip(self.pool.ids, self.pool.texts)]

    def label(self, word: Word) -> str | None:
        """What the visitor said that a word says."""
        ids = self.pool.same([word.picture])[0] if len(self.pool) else []
        return self.pool.texts[self.pool.ids.index(ids[0])] if ids else None

    # ------------------------------------------------------------------------------------------------------- reading

    def read(self, pictures: list[tuple[str, Image.Image]]):
        """Read names and pictures, and choose the first of them."""
        new = [Word(next(self._numbers), name, picture) for name, picture in pictures]
        self._read(new)
        self.words = (new + self.words)[:MOST_WORDS]
        self.chosen = new[0] if new else self.chosen
        if self.chosen not in self.words:
            self.chosen = self.words[0] if self.words else None

    def read_anew(self) -> list[Word]:
        """Read all words with the pool as it is now; those that say something else than before."""
        before = [word.reading for word in self.words]
        self._read(self.words)
        for word, former in zip(self.words, before):
            word.before = former if former.text != word.reading.text else None
        return [word for word in self.words if word.before]

    def _read(self, words: list[Word]):
        readings = read_all(
            [word.picture for word in words],
            self.model,
            self.processor,
            names=[word.name for word in words],
            n_best=N_BEST,
            pool=self.pool,
            k=self.k,
            explain=True,
        )
        for word, reading in zip(words, readings):
            word.reading = reading

    # ------------------------------------------------------------------------------------------------------- the pool

    def teach(self, word: Word, text: str) -> bool:
        """Put a word into the pool with its right text, in the place of a former one; False where it stands there.

        Raises:
            ValueError: the text cannot be that of an example, or the pool is full.
        """
        return self.add([(encoded(word.picture), text, "corrected")]) > 0

    def add(self, entries: list[tuple[bytes, str, str]]) -> int:
        """Put images with their texts and sources into the pool, all or none; how many are new.

        Raises:
            ValueError: one cannot be an example, or there is no room; one sentence.
        """
        rows = [(*self._checked(number, image, text), source) for number, (image, text, source) in enumerate(entries)]
        if self._bytes(self.pool.ids) + sum(len(image) for image, *_ in rows) > MOST_BYTES:
            raise ValueError(f"A pool of this page has room for {MOST_BYTES / 1e6:.0f} MB; remove some words first.")
        before, steps = set(self.pool.ids), 0
        try:
            for source, some in groupby(sorted(rows, key=lambda row: row[3]), key=lambda row: row[3]):
                images, texts, pictures, _ = zip(*some)
                steps += bool(self.pool.add(images, texts, source, replace=True).ids)
                for image, picture, (name,) in zip(images, pictures, self.pool.same(pictures)):
                    self._known[name] = Known(uri(picture, THUMBNAIL), len(image))
            if len(self.pool) > MOST_ENTRIES:
                raise ValueError(f"A pool of this page has room for {MOST_ENTRIES} words; remove some first.")
        except ValueError:
            for _ in range(steps):
                self.pool.undo()
            raise
        self._changed(steps)
        return len(set(self.pool.ids) - before)

    def _checked(self, number: int, image: bytes, text: str) -> tuple[bytes, str, Image.Image]:
        """An image as it is kept, its text and its picture; ValueError where the model could not write the text."""
        if text.strip():  # what else a text must be is known to the pool
            try:
                self.processor.text_ids(text.strip())
            except ValueError as error:
                raise ValueError(f"This model cannot write {error}") from None
        name = f"entry {number + 1}"
        opened = open_input(image, name)  # not decoded yet
        if isinstance(opened, Image.Image) and opened.width * opened.height > MAX_CROP_PIXELS:
            raise ValueError(f"{name}: {opened.width} x {opened.height} pixels are more than a pool has.")
        picture = picture_of(image, name)
        as_it_is = image.startswith(b"\xff\xd8") and len(image) < LARGE and max(picture.size) < MAX_SIDE
        return image if as_it_is else encoded(picture), text, picture

    def remove(self, name: str):
        """Take an entry out; KeyError where there is none with this id."""
        self.pool.remove(name)
        self._changed(1)

    def clear(self):
        """Take all entries out."""
        if len(self.pool):
            self.pool.remove(self.pool.ids)
            self._changed(1)

    @property
    def can_undo(self) -> bool:
        """Whether there is a change of the pool to take back."""
        return bool(self._steps)

    def undo(self):
        """Take back the last change of the pool, if there is one."""
        for _ in range(self._steps.pop() if self._steps else 0):
            self.pool.undo()
        self._changed(0)

    def _changed(self, steps: int):
        """Save a change that took so many operations; make room where too much is kept that was removed."""
        self._steps += [steps] if steps else []
        self.pool.save(self.folder)
        if sum(path.stat().st_size for path in self.folder.iterdir()) > MOST_ON_DISK:
            self.pool.compact()
            self.pool.save()
            self._steps.clear()

    def _bytes(self, ids: list[str]) -> int:
        return sum(self._known[name].bytes for name in ids)


def encoded(picture: Image.Image) -> bytes:
    """A picture as PNG."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
