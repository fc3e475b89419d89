"""What a context pool holds in memory: keys that are searched, and of each entry what finds and checks it."""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from .inputs import to_image
from .pool_storage import GROUP_ROWS, HASH, MAX_STRING, SHARD_ROWS, Operation, Shard, read_images, write_shard

MAX_TEXT = 48  # characters; as many tokens as E2STR reads
MAX_CROP_PIXELS = 4_000_000  # far more than a word needs
ENCODE_BATCH = 32
SHARD_BYTES = 2**28  # of images that are held before they become a shard
BLOCK_ROWS = 65_536  # keys of one FAISS index, so that adding never copies all of them


@dataclass(frozen=True)
class Refused:
    """What cannot be an entry: its `name`, and the `reason` in a sentence that starts with the name."""

    name: str
    reason: str


@dataclass(frozen=True)
class Example:
    """An entry of a pool, as `search` found it.

    Attributes:
        id: 16 hexadecimal digits, made of the pixels and the text.
        text: what is written in the image.
        similarity: cosine between its key and the query's, -1..1; nan where nothing was compared.
        source: where it came from, "" if nobody said.
        added_at: when it was added, ISO 8601 in UTC.
        latents: (latents, width) as `encode` gave them; None of a pool that was opened without one.
        image: PIL image in RGB, read from disk when asked for.
    """

    id: str
    text: str
    similarity: float
    source: str
    added_at: str
    latents: object = field(repr=False, compare=False)
    _image: Callable[[], Image.Image] = field(repr=False, compare=False)

    @property
    def image(self) -> Image.Image:
        """PIL image in RGB, read from disk."""
        return self._image()


@dataclass
class Added:
    """What became of what was to be added.

    Attributes:
        ids: of the new entries, in order.
        duplicates: how many were in the pool already, image and text.
        refused: what cannot be an entry, each with its name and the reason.
    """

    ids: list[str] = field(default_factory=list)
    duplicates: int = 0
    refused: list[Refused] = field(default_factory=list)


class KeyIndex:
    """Exact search by inner product: flat FAISS indices of 65,536 keys each.

    An inverted file is faster and misses neighbours (`scripts/benchmark_pool.py --ivf` says how much of either). It
    pays where searching all keys takes longer than reading the word, which a million of them do not.

    Args:
        width: of the keys.
    """

    def __init__(self, width: int):
        self.width = width
        self.blocks = []

    def add(self, keys: np.ndarray):
        """Append (n, width) float32."""
        import faiss

        while len(keys):
            if not self.blocks or self.blocks[-1].ntotal == BLOCK_ROWS:
                self.blocks.append(faiss.IndexFlatIP(self.width))
            room = BLOCK_ROWS - self.blocks[-1].ntotal
            self.blocks[-1].add(np.ascontiguousarray(keys[:room]))
            keys = keys[room:]

    def search(self, queries: np.ndarray, k: int, wanted: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The best rows of each query, best first; equal ones in the order in which they were added.

        Args:
            queries: (n, width) float32.
            k: how many.
            wanted: (rows,) bool, those that may be found; all by default.

        Returns:
            Products and rows, each (n, k); row -1 where there are fewer than k.
        """
        import faiss

        products = [np.full((len(queries), k), -np.inf, np.float32)]
        rows = [np.full((len(queries), k), -1)]
        for number, block in enumerate(self.blocks):
            start, settings = number * BLOCK_ROWS, None
            some = None if wanted is None else wanted[start : start + block.ntotal]
            if some is not None and not some.all():
                if not some.any():
                    continue
                bits = np.packbits(some, bitorder="little")
                settings = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
            found, places = block.search(queries, min(k, block.ntotal), params=settings)
            products.append(np.where(places < 0, -np.inf, found))
            rows.append(np.where(places < 0, -1, places + start))
        products, rows = np.concatenate(products[::-1], 1), np.concatenate(rows[::-1], 1)
        order = np.lexsort((np.where(rows < 0, np.iinfo(np.int64).max, rows), -products))[:, :k]
        return np.take_along_axis(products, order, 1), np.take_along_axis(rows, order, 1)

    def keys(self, rows: Sequence[int]) -> np.ndarray:
        """(n, width) float32 of some rows."""
        found = [self.blocks[row // BLOCK_ROWS].reconstruct(int(row % BLOCK_ROWS)) for row in rows]
        return np.stack(found) if found else np.empty((0, self.width), np.float32)


class Entries:
    """The rows of all shards that were opened, one after another, and which of them are in force.

    Attributes:
        ids, pixels: (rows,) uint64, hashes of pixels and text, and of pixels.
        alive: (rows,) bool, whether a row is an entry of the pool now.
        index: the keys, None while there are none.
        shards: first row and shard by file name.
        folders: where shards lie, by file name.
    """

    def __init__(self):
        self.ids = np.empty(0, np.uint64)
        self.pixels = np.empty(0, np.uint64)
        self.alive = np.empty(0, bool)
        self.index: KeyIndex | None = None
        self.shards: dict[str, tuple[int, Shard]] = {}
        self.folders: dict[str, Path] = {}
        self._starts: list[int] = []
        self._opened: list[Shard] = []
        self._tables = []
        self._by_pixels = (np.empty(0, np.uint64), np.empty(0, np.int64))  # hashes in order, and their rows
        self._source_names: dict[str, int] = {}
        self._sources = np.empty(0, np.int32)

    @property
    def width(self) -> int | None:
        """Of the keys."""
        return self.index.width if self.index else None

    def append(self, shard: Shard, table, keys: np.ndarray):
        """Add the rows of a shard (see `pool_storage.read_shard`); they count once `fold` has said so."""
        if self.index is None:
            self.index = KeyIndex(keys.shape[1])
        start = len(self.ids)
        self.index.add(unit(keys))
        self.ids = np.concatenate([self.ids, _numbers(table["id"])])
        self.pixels = np.concatenate([self.pixels, _numbers(table["pixels"])])
        self.alive = np.concatenate([self.alive, np.zeros(shard.rows, bool)])
        names = self._source_names
        codes = [names.setdefault(name, len(names)) for name in table["source"].to_pylist()]
        self._sources = np.concatenate([self._sources, np.array(codes, np.int32)])
        self.shards[shard.file] = (start, shard)
        self._starts.append(start)
        self._opened.append(shard)
        self._tables.append(table.select(["text", "source", "added_at", "pixels"]))

    def fold(self, operations: Iterable[Operation]):
        """Find out which rows are in force. Of equal entries, which two writers may have added, the first is."""
        self.alive[:] = False
        for operation in operations:
            if operation.removed:
                gone = np.array([int(name, 16) for name in operation.removed], np.uint64)
                self.alive &= ~np.isin(self.ids, gone)
            for shard in operation.shards:
                start, _ = self.shards[shard.file]
                self.alive[start : start + shard.rows] = True
        rows = np.flatnonzero(self.alive)
        _, first = np.unique(self.ids[rows], return_index=True)
        if len(first) < len(rows):
            rows = np.sort(rows[first])
            self.alive[:] = False
            self.alive[rows] = True
        order = np.argsort(self.pixels[rows], kind="stable")
        self._by_pixels = (self.pixels[rows][order], rows[order])

    def nearest(self, keys: np.ndarray, k: int, source: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and rows of the entries nearest to keys (n, width), each (n, k); row -1 where there are fewer."""
        if keys.shape[1:] != (self.width,):
            raise ValueError(
                f"the queries' keys have the shape {keys.shape}, those of the pool a width of {self.width}; search "
                "with the encoder that the pool was made with."
            )
        check_finite(keys, [f"query {number}" for number in range(len(keys))])
        wanted = None if self.alive.all() else self.alive
        if source is not None:
            wanted = self.alive & (self._sources == self._source_names.get(source, -1))
        return self.index.search(unit(keys), min(k, len(self.ids)), wanted)

    def with_pixels(self, pixels: str) -> list[int]:
        """The rows of entries with these pixels."""
        hashes, rows = self._by_pixels
        number = np.uint64(int(pixels[:16], 16))
        return rows[np.searchsorted(hashes, number) : np.searchsorted(hashes, number, "right")].tolist()

    def rows(self, names: Sequence[str]) -> list[int]:
        """Of ids; KeyError where no entry has one."""
        alive = np.flatnonzero(self.alive)
        known = dict(zip(self.ids[alive].tolist(), alive.tolist())) if len(names) > 100 else None
        return [self._row(name, known) for name in names]

    def _row(self, name: str, known: dict[int, int] | None) -> int:
        if HASH.fullmatch(str(name)):
            number = int(name, 16)
            rows = np.flatnonzero((self.ids == np.uint64(number)) & self.alive) if known is None else ()
            row = known.get(number) if known is not None else next(iter(rows.tolist()), None)
            if row is not None:
                return row
        raise KeyError(f"the pool has no entry with the id {name!r}")

    def holds(self, name: str) -> bool:
        """Whether an entry has this id."""
        with suppress(KeyError):
            return bool(self.rows([name]))
        return False

    def id(self, row: int) -> str:
        """Of a row."""
        return f"{int(self.ids[row]):016x}"

    def ids_of(self, shard: Shard) -> list[str]:
        """Of all rows of a shard."""
        start = self.shards[shard.file][0]
        return [self.id(row) for row in range(start, start + shard.rows)]

    def shard_of(self, row: int) -> tuple[Shard, int]:
        """The shard that a row lies in, and its first row."""
        number = int(np.searchsorted(self._starts, row, "right")) - 1
        return self._opened[number], self._starts[number]

    def value(self, row: int, column: str) -> str:
        """`text`, `source`, `added_at` or `pixels` of a row."""
        number = int(np.searchsorted(self._starts, row, "right")) - 1
        return self._tables[number][column][row - self._starts[number]].as_py()

    def place_of(self, name: str, pixels: str, text: str, fresh: dict, replace: bool) -> tuple[bool, list[str]]:
        """Whether an image is new here, and the ids of entries that it takes the place of.

        Args:
            name: of the image, for errors.
            pixels: their hash.
            text: what it is to be added with.
            fresh: texts by hash of pixels of those that are to be added with it.
            replace: it may take the place of the same image with another text.

        Raises:
            ValueError: it stands here or there with another text.
        """
        if pixels in fresh:
            if fresh[pixels] != text:
                raise ValueError(
                    f"{name}: the same image is to be added as {fresh[pixels]!r} and as {text!r}; keep the right one."
                )
            return False, []
        standing = self.with_pixels(pixels)
        others = [row for row in standing if self.value(row, "text") != text]
        if others and not replace:
            raise ValueError(
                f"{name}: the same image stands in the pool as {self.value(others[0], 'text')!r} "
                f"(id {self.id(others[0])}), and is to be added as {text!r}; give replace=True to correct it."
            )
        return len(others) == len(standing), [self.id(row) for row in others]

    def texts(self) -> list[str]:
        """Of the rows in force, in order."""
        found = []
        for start, table in zip(self._starts, self._tables):
            alive = self.alive[start : start + table.num_rows]
            found += [text for text, wanted in zip(table["text"].to_pylist(), alive) if wanted]
        return found

    def images(self, rows: Sequence[int]) -> list[bytes]:
        """Encoded images of rows, read from the shards they lie in."""
        by_shard, found = {}, {}
        for row in rows:
            by_shard.setdefault(self.shard_of(row), []).append(row)
        for (shard, start), some in by_shard.items():
            images = read_images(self.folders[shard.file], shard, [row - start for row in some])
            found |= dict(zip(some, images))
        return [found[row] for row in rows]

    def whole(self, rows: np.ndarray) -> Iterator[tuple[dict, np.ndarray]]:
        """All columns of rows, images included, each with its key; a hundred are read at a time."""
        for start in range(0, len(rows), GROUP_ROWS):
            some = [int(row) for row in rows[start : start + GROUP_ROWS]]
            for row, image, key in zip(some, self.images(some), self.index.keys(some)):
                columns = ("text", "source", "added_at", "pixels")
                yield {"id": self.id(row), "image": image} | {c: self.value(row, c) for c in columns}, key

    def sources(self) -> dict[str, int]:
        """How many entries came from where."""
        counts = np.bincount(self._sources[self.alive], minlength=len(self._source_names))
        return {name: int(counts[code]) for name, code in self._source_names.items() if counts[code]}


class ShardWriter:
    """Encodes images in batches and writes shards. Where its `with` block fails, none of them is left.

    Args:
        folder: where to.
        encode: gives keys of PIL images; None where `put_key` brings them.
        width: that keys must have; None takes that of the first.
        refused: takes images whose keys are not finite; None makes them an error.

    Attributes:
        shards: what was written.
        ids: of the entries in them.
    """

    def __init__(self, folder: Path, encode: Callable | None, width: int | None, refused: list[Refused] | None):
        self.folder, self.encode, self.width, self.refused = folder, encode, width, refused
        self.shards: list[Shard] = []
        self.ids: list[str] = []
        self._waiting: list[tuple[dict, str, Image.Image]] = []
        self._rows: list[dict] = []
        self._keys: list[np.ndarray] = []
        self._bytes = 0

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self._encode_waiting()
                self._write()
                return
        except BaseException:
            self._discard()
            raise
        self._discard()

    def put(self, row: dict, name: str, picture: Image.Image):
        """An entry whose key `encode` gives."""
        self._waiting.append((row, name, picture))
        if len(self._waiting) == ENCODE_BATCH:
            self._encode_waiting()

    def put_key(self, row: dict, key: np.ndarray):
        """An entry with its key, (width,)."""
        self._rows.append(row)
        self._keys.append(key)
        self._bytes += len(row["image"])
        if len(self._rows) == SHARD_ROWS or self._bytes > SHARD_BYTES:
            self._write()

    def _encode_waiting(self):
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        keys = array(self.encode([picture for _, _, picture in waiting])[0])
        self.width = self.width or keys.shape[-1]
        if keys.shape != (len(waiting), self.width):
            raise ValueError(
                f"encode gave keys of shape {keys.shape} for {len(waiting)} images ({waiting[0][1]} ...), but "
                f"{(len(waiting), self.width)} was expected; it must be the encoder that the pool was made with."
            )
        for (row, name, _), key in zip(waiting, keys):
            try:
                check_finite(key[None], [name])
            except ValueError as error:
                if self.refused is None:
                    raise
                self.refused.append(Refused(name, str(error)))
                continue
            self.put_key(row, unit(key[None])[0])

    def _write(self):
        if self._rows:
            self.shards.append(write_shard(self.folder, self._rows, np.stack(self._keys)))
            self.ids += [row["id"] for row in self._rows]
            self._rows, self._keys, self._bytes = [], [], 0

    def _discard(self):
        for shard in self.shards:
            (self.folder / shard.file).unlink(missing_ok=True)


def copied(folder: Path, entries: Entries, rows: np.ndarray, encode: Callable | None) -> list[Shard]:
    """Rows of entries as new shards in a folder, with their keys or with those that another encoder gives."""
    writer, quiet = ShardWriter(folder, encode, None, None), None if encode else True
    with writer:
        for row, key in tqdm(entries.whole(rows), "rewriting the pool", len(rows), unit="image", disable=quiet):
            if encode is None:
                writer.put_key(row, key)
            else:
                writer.put(row, f"entry {row['id']}", stored_image(row["image"], row["id"]))
    return writer.shards


def rows_of(dataset: Iterable[dict], source: str | None) -> Iterator[tuple]:
    """(name, image, text, source) of the rows of a data set, whose images stay encoded; `source` before their own.

    Raises ValueError where a row has no image or no text column.
    """
    columns = getattr(dataset, "column_names", None)
    if columns and hasattr(dataset, "cast_column"):
        import datasets

        if "image" in columns and isinstance((dataset.features or {}).get("image"), datasets.Image):
            dataset = dataset.cast_column("image", datasets.Image(decode=False))
    total = len(dataset) if hasattr(dataset, "__len__") else None
    for number, row in enumerate(tqdm(dataset, "encoding the pool", total, unit="image", disable=None)):
        if missing := [name for name in ("image", "text") if name not in row]:
            raise ValueError(f"row {number} has no column {missing[0]!r}, only {', '.join(row)}; rename it.")
        own = row.get("source") or ""
        yield str(row.get("id") or f"row {number}"), row["image"], row["text"], source or own


def words_of(path: str | Path, split: str | None, source: str | None) -> Iterator[tuple | Refused]:
    """(name, image, text, source) of word images on disk, and in their turn those that the reader cannot use."""
    from .data.words import every_word

    for row in tqdm(every_word(path, split, source), "encoding the pool", unit="image", disable=None):
        if row["problem"]:
            yield Refused(row["id"], f"{row['id']}: {row['problem']}.")
        else:
            yield row["id"], row["image"], row["text"], row.get("source") or ""


def check_text(text, name: str) -> str:
    """A text without space around it; ValueError naming the image where it cannot be one of an entry."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{name}: its text is {text!r}; an entry needs the word that is written in the image.")
    text = text.strip()
    if len(text) > MAX_TEXT:
        raise ValueError(f"{name}: its text has {len(text)} characters, and at most {MAX_TEXT} are read; crop words.")
    if not text.isprintable():
        raise ValueError(f"{name}: its text {text!r} has characters that cannot be printed; take them out.")
    return text


def check_source(source, name: str) -> str:
    """Where an entry comes from, "" where nobody says; ValueError naming the image where it is no such thing."""
    if source is not None and (not isinstance(source, str) or len(source) > MAX_STRING):
        raise ValueError(f"{name}: its source must be a string of at most {MAX_STRING:,} characters.")
    return source or ""


def several(images) -> list:
    """Images as a list, also where there is only one."""
    return [images] if isinstance(images, (str, bytes, Path, Image.Image)) else list(images)


def crop_picture(item, name: str) -> Image.Image:
    """A picture in RGB, what is transparent on white.

    Takes what `inputs.to_image` takes, and `{"bytes", "path"}` as `datasets` gives images that it does not decode.
    Raises ValueError naming it where it is no picture, empty or larger than `MAX_CROP_PIXELS`.
    """
    return _on_white(item, name).convert("RGB")


def _on_white(item, name: str) -> Image.Image:
    """See `crop_picture`; what is grey stays grey."""
    if isinstance(item, dict):
        item = item.get("bytes") or item.get("path")
    if item is None:
        raise ValueError(f"{name}: there is no image.")
    opened = to_image(item, name)
    if isinstance(opened, np.ndarray):
        opened = _picture(opened, name)
    if not 0 < opened.width * opened.height <= MAX_CROP_PIXELS:
        raise ValueError(
            f"{name}: {opened.width} x {opened.height} pixels; a word image has 1 to {MAX_CROP_PIXELS:,}, so crop it."
        )
    if opened.mode == "RGBA":
        white = Image.new("RGBA", opened.size, "white")
        opened = Image.alpha_composite(white, opened).convert("RGB")
    return opened


def open_crop(item, name: str) -> tuple[Image.Image, bytes]:
    """What `crop_picture` gives, and the bytes to keep it as: its own JPEG, or PNG."""
    opened = _on_white(item, name)
    picture = opened.convert("RGB")
    if isinstance(item, dict):
        item = item.get("bytes") or item.get("path")
    content = item if isinstance(item, bytes) else b""
    if isinstance(item, (str, Path)) and Path(item).suffix.lower() in (".jpg", ".jpeg"):
        content = Path(item).read_bytes()
    if content.startswith(b"\xff\xd8"):
        with suppress(OSError, ValueError, SyntaxError):
            # Turned by its header, or in other colours, it would be another picture to who reads the pool.
            if Image.open(io.BytesIO(content), formats=["JPEG"]).convert("RGB").tobytes() == picture.tobytes():
                return picture, content
    encoded = io.BytesIO()
    (opened if opened.mode == "L" else picture).save(encoded, "PNG")
    return picture, encoded.getvalue()


def _picture(pixels: np.ndarray, name: str) -> Image.Image:
    """Of an array of 8 bits, channels first or last."""
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    if pixels.ndim == 3 and pixels.shape[-1] not in (1, 3, 4) and pixels.shape[0] in (1, 3, 4):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.dtype != np.uint8 or (pixels.ndim == 3 and pixels.shape[-1] not in (3, 4)):
        raise ValueError(
            f"{name}: an array of shape {pixels.shape} and type {pixels.dtype}; pictures are uint8, (height, width) "
            "or (height, width, 3)."
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


def stored_image(content: bytes, name: str) -> Image.Image:
    """An image of the pool, in RGB; ValueError naming the entry where it is damaged."""
    return crop_picture(content, f"entry {name}")


def array(keys) -> np.ndarray:
    """Keys as float32, whether arrays or tensors on any device."""
    if hasattr(keys, "detach"):
        keys = keys.detach().cpu().float().numpy()
    return np.asarray(keys, np.float32)


def unit(keys: np.ndarray) -> np.ndarray:
    """Keys (n, width) scaled to length 1."""
    lengths = np.linalg.norm(keys, axis=1, keepdims=True)
    # Dividing keys that have the length already would only change their last bits.
    return np.where(np.abs(lengths - 1) < 1e-5, keys, keys / lengths).astype(np.float32)


def check_finite(keys: np.ndarray, names: Sequence[str]):
    """ValueError naming the first of keys (n, width) that is not finite or has no direction."""
    sound = np.isfinite(keys).all(1) & (np.abs(keys).sum(1) > 0)
    if not sound.all():
        name = names[int(np.argmin(sound))]
        raise ValueError(f"{name}: its key is not finite or zero; look at the picture, or at the encoder's weights.")


def digest(*parts: bytes) -> str:
    """32 hexadecimal digits of a sha256."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()[:32]


def pixels_hash(picture: Image.Image) -> str:
    """By which pictures with the same pixels are found."""
    return digest(f"{picture.width}x{picture.height}".encode(), picture.tobytes())


def probe_picture() -> Image.Image:
    """The picture whose key tells encoders apart: stripes that get narrower, and a slope."""
    across, down = np.arange(128), np.arange(32)[:, None]
    stripes = 127 + 120 * np.sin(across**1.5 / 40 + down / 5)
    slope = np.broadcast_to(2 * across, stripes.shape)
    return Image.fromarray(np.stack([stripes, stripes[::-1], slope], -1).astype(np.uint8))


def now() -> str:
    """ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _numbers(column) -> np.ndarray:
    """The first 16 hexadecimal digits of each string as uint64."""
    return np.array([int(text[:16], 16) for text in column.to_pylist()], np.uint64)
