"""The in-context pool of E2STR: word images with their texts, found by likeness to what is to be read.

    pool = ContextPool.from_folder("examples", encode)
    pool.save("pool")
    for example in pool.search([image], k=2)[0]:
        print(example.text, example.similarity, example.source)

`encode(images)` takes PIL images in RGB and returns keys (n, width) and latents (n, latents, width), as arrays or
tensors. An attribute `encode.weights_sha256` (see `weights_hash`) binds a pool to these weights; without one the key
of a fixed picture does. Keys are compared by their cosine. Images stay on disk until they are asked for, latents are
computed on retrieval and kept while there is room.

The same image with the same text is one entry, however often it is added. The same image with another text is refused
unless it replaces the first: both would be equally near to every query, and teach it the opposite. A query never finds
itself, that is entries with exactly its pixels. Domains are pools of their own, or sources of one.

Changes reach the disk with `save`, which adds them to what other processes saved meanwhile.
"""

import logging
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from .pool_encoder import Identity, LatentCache, weights_hash
from .pool_entries import (
    ENCODE_BATCH,
    Added,
    Entries,
    Example,
    Refused,
    ShardWriter,
    array,
    check_source,
    check_text,
    copied,
    crop_picture,
    digest,
    now,
    open_crop,
    pixels_hash,
    rows_of,
    several,
    stored_image,
    words_of,
)
from .pool_history import History
from .pool_storage import (
    Manifest,
    Operation,
    Shard,
    ShardMissing,
    download,
    locked,
    place,
    read_manifest,
    read_shard,
    sweep,
    write_manifest,
    writing,
)

logger = logging.getLogger(__name__)
Encode = Callable[[list[Image.Image]], tuple]


class ContextPool:
    """Images, texts and keys that examples are found in; see the module's description.

    Args:
        encode: see there; None for a pool that is only looked at, changed by `remove`, or re-encoded.
        cache_bytes: how much memory latents may take between searches.

    Attributes:
        path: folder that `save()` writes to; None before the first.
        added: what the last `add`, `from_dataset` or `from_folder` took and refused.
    """

    def __init__(self, encode: Encode | None = None, cache_bytes: int = 2**28):
        self.encode = encode
        self.path: Path | None = None
        self.added = Added()
        self._name = uuid.uuid4().hex
        self._identity = Identity.of(encode) if encode else None  # of the encoder of the keys that are held
        self._history = History()
        self._entries = Entries()
        self._staging = tempfile.TemporaryDirectory(prefix="epigraph-pool-")
        self._latents = LatentCache(cache_bytes)
        self._mutex = threading.RLock()

    # ------------------------------------------------------------------------------------------------------- making

    @classmethod
    def from_dataset(cls, dataset: Iterable[dict], encode: Encode, source: str | None = None) -> "ContextPool":
        """A pool of the rows of a data set, streamed or not, or of any other rows with `image` and `text`.

        Args:
            dataset: rows with `image` and `text`, and where known `id` and `source`.
            encode: see the module.
            source: of all rows, in place of their own.

        What cannot be an entry is left out, counted in a warning and listed by name in `pool.added.refused`.

        Raises:
            ValueError: a row has no image or no text column.
        """
        return cls(encode)._filled(rows_of(dataset, source))

    @classmethod
    def from_folder(
        cls, path: str | Path, encode: Encode, split: str | None = None, source: str | None = None
    ) -> "ContextPool":
        """A pool of word images on disk, in any layout that `epigraph.data.words.load_words` reads.

        Args:
            path: the file or folder.
            encode: see the module.
            split, source: keep only these rows.

        What cannot be an entry is reported as `from_dataset` does, with what the reader leaves out.
        """
        return cls(encode)._filled(words_of(path, split, source))

    def _filled(self, items: Iterable[tuple | Refused]) -> "ContextPool":
        self._add(items, skip=True)
        if refused := self.added.refused:
            logger.warning(
                "%d of %d images are not in the pool, the first because %s All stand in pool.added.refused.",
                len(refused),
                len(refused) + len(self) + self.added.duplicates,
                refused[0].reason,
            )
        return self

    @classmethod
    def load(cls, path: str | Path, encode: Encode | None = None, cache_bytes: int = 2**28) -> "ContextPool":
        """Open a pool that `save` wrote, or one on the Hub (`owner/name`).

        Args:
            path: the folder, or the repository.
            encode: what made the keys; None for a pool to be looked at or re-encoded.
            cache_bytes: how much memory latents may take between searches.

        Raises:
            FileNotFoundError: there is no pool.
            ValueError: a damaged manifest or shard, by name, or keys of another encoder.
        """
        folder, bound = Path(path), True
        if not folder.exists() and str(path).count("/") == 1 and not str(path).startswith((".", "/", "~")):
            folder, bound = download(str(path)), False
        if read_manifest(folder) is None:
            raise FileNotFoundError(f"{path} holds no context pool (no manifest.json); name a folder that save wrote.")
        pool = cls(encode, cache_bytes)
        pool._open(folder)
        pool.path = folder if bound else None
        if not bound:  # a copy of its own: the cache of downloads is not to be written to
            pool._history.forget_folder()
        return pool

    def _open(self, folder: Path):
        """Take over what a folder holds; once more where a shard went away in between."""
        for attempt in (1, 2, 3):
            manifest = read_manifest(folder)
            try:
                self._check_encoder(manifest, folder)
                self._read_shards(folder, manifest)
                break
            except ShardMissing:
                if attempt == 3 or read_manifest(folder) == manifest:
                    raise
        self._name, self._history.saved = manifest.pool, manifest.operations
        if manifest.width and self._identity is None:
            self._identity = Identity.stated(manifest)
        self._fold()

    # ----------------------------------------------------------------------------------------------------- changing

    def add(self, images: Sequence, texts: Sequence[str], source: str = "", replace: bool = False) -> Added:
        """Add entries, all or none.

        Args:
            images: paths, bytes, PIL images or arrays of 8 bits.
            texts: what is written in each; 1 to `MAX_TEXT` printable characters.
            source: where they come from.
            replace: where an image is in the pool with another text, put this one in its place.

        Returns:
            The new ids and how many were in the pool already.

        Raises:
            ValueError: an image that cannot be read, a text that cannot be one, an image that stands in the pool with
                another text, or keys that are no keys; one sentence that names the image. Nothing was added then.
        """
        images, texts = several(images), [texts] if isinstance(texts, str) else list(texts)
        if len(images) != len(texts):
            raise ValueError(f"{len(images)} images and {len(texts)} texts were given; each image needs one text.")

        names = [_named(image, f"image {number}") for number, image in enumerate(images)]
        return self._add([*zip(names, images, texts, [source] * len(texts))], replace=replace)

    def _add(self, items: Iterable[tuple | Refused], skip: bool = False, replace: bool = False) -> Added:
        """Add (name, image, text, source); with `skip` what cannot be added is left out and reported."""
        with self._mutex:
            added, removed, fresh = Added(), [], {}
            writer = self._writer(added.refused if skip else None)
            at = now()
            with writer:
                for item in items:
                    if isinstance(item, Refused):
                        added.refused.append(item)
                        continue
                    name, image, text, source = item
                    try:
                        text, source = check_text(text, name), check_source(source, name)
                        picture, stored = open_crop(image, name)
                        pixels = pixels_hash(picture)
                        new, gone = self._entries.place_of(name, pixels, text, fresh, replace)
                    except ValueError as error:
                        if not skip:
                            raise
                        added.refused.append(Refused(name, str(error)))
                        continue
                    removed += gone
                    if not new:
                        added.duplicates += 1
                        continue
                    fresh[pixels] = text
                    row = {"id": digest(pixels.encode(), text.encode())[:16], "image": stored, "text": text}
                    row |= {"source": source, "added_at": at, "pixels": pixels}
                    writer.put(row, name, picture)
            added.ids = writer.ids
            if writer.shards or removed:
                self._commit(Operation(uuid.uuid4().hex, at, tuple(writer.shards), tuple(removed)))
            self.added = added
            return added

    def _writer(self, refused: list | None, encode: Encode | None = None) -> ShardWriter:
        if encode is None:
            encode = self._encoding("add to it")
        return ShardWriter(Path(self._staging.name), encode, self._entries.width, refused)

    def remove(self, ids: str | Sequence[str]):
        """Take entries out; KeyError where one is not in the pool, and none is taken out then."""
        ids = [ids] if isinstance(ids, str) else list(dict.fromkeys(ids))
        with self._mutex:
            self._entries.rows(ids)
            if ids:
                self._commit(Operation(uuid.uuid4().hex, now(), (), tuple(ids)))

    def undo(self) -> tuple[list[str], list[str]]:
        """Withdraw the last operation in force, also one that was saved: (ids that left, ids that came back).

        Raises:
            ValueError: there is nothing to undo; `compact` and `reencode` begin a new history.
        """
        with self._mutex:
            before = self.ids
            self._history.withdraw_last()
            self._fold()
            after = self.ids
            left, back = set(before) - set(after), set(after) - set(before)
            return [name for name in before if name in left], [name for name in after if name in back]

    def compact(self):
        """Leave behind removed entries and make few large shards of many small ones; the history begins anew."""
        with self._mutex:
            self._rewrite(None)

    def reencode(self, encode: Encode) -> "ContextPool":
        """Make all keys anew with another encoder, which the pool is bound to from then on; returns the pool.

        Nothing changes on disk before `save`.
        """
        with self._mutex:
            self._rewrite(encode)
        return self

    def _rewrite(self, encode: Encode | None):
        identity = self._identity if encode is None else Identity.of(encode)
        shards = self._with_shards(lambda: self._copied(self._entries, np.flatnonzero(self._entries.alive), encode))
        if encode is not None:
            self.encode, self._identity = encode, identity
            self._latents.clear()
        self._history.begin_with(Operation(uuid.uuid4().hex, now(), tuple(shards)))
        self._entries = Entries()
        self._read_shards(Path(self._staging.name), Manifest("", operations=self._history.pending))
        self._fold()

    def _copied(self, entries: Entries, rows: np.ndarray, encode: Encode | None) -> list[Shard]:
        """Entries in new shards, with their keys or with those of another encoder."""
        return copied(Path(self._staging.name), entries, rows, encode)

    # ---------------------------------------------------------------------------------------------------- searching

    def search(
        self, images: Sequence, k: int = 2, keys: np.ndarray | None = None, source: str | None = None
    ) -> list[list[Example]]:
        """The entries most like each image, most similar first.

        Args:
            images: the queries: paths, bytes, PIL images or arrays of 8 bits. Entries with the same pixels are not
                found.
            k: how many for each; fewer are found where the pool has fewer.
            keys: (queries, width) of the images, where they are known; they are encoded otherwise.
            source: only entries that came from there.

        Returns:
            A list of examples for each image; empty lists from an empty pool.

        Raises:
            ValueError: an image that cannot be read, keys of another width or not finite, negative k.
        """
        if k < 0:
            raise ValueError(f"k must be 0 or more, not {k}.")
        pictures = [crop_picture(image, _named(image, f"query {n}")) for n, image in enumerate(several(images))]
        with self._mutex:
            if not pictures or not k or not len(self):
                return [[] for _ in pictures]
            encode = self._encoding("search it")
            if keys is None:
                batches = range(0, len(pictures), ENCODE_BATCH)
                keys = np.concatenate([array(encode(pictures[i : i + ENCODE_BATCH])[0]) for i in batches])
            keys = array(keys)
            return self._with_shards(lambda: self._search(pictures, keys, k, source))

    def _search(self, pictures: list, keys: np.ndarray, k: int, source: str | None) -> list[list[Example]]:
        entries = self._entries
        own = [entries.with_pixels(pixels_hash(p)) for p in pictures]
        if len(keys) != len(pictures):
            raise ValueError(f"{len(pictures)} images were given with {len(keys)} keys; each needs one.")
        similarities, rows = entries.nearest(keys, k + max(map(len, own)), source)
        found = []
        for near, likes, excluded in zip(rows, similarities, own):
            excluded = set(excluded)
            kept = [(int(row), float(like)) for row, like in zip(near, likes) if row >= 0 and row not in excluded]
            found.append(kept[:k])
        latents = self._latents_of([row for kept in found for row, _ in kept])
        return [[self._example(row, like, latents[row]) for row, like in kept] for kept in found]

    def examples(self, ids: Sequence[str]) -> list[Example]:
        """Entries by id, in this order; KeyError where one is not in the pool. Without `encode`, without latents."""

        def look_up():
            rows = self._entries.rows(ids)
            latents = self._latents_of(rows) if self.encode else dict.fromkeys(rows)
            return [self._example(row, float("nan"), latents[row]) for row in rows]

        with self._mutex:
            return self._with_shards(look_up)

    def _example(self, row: int, similarity: float, latents) -> Example:
        entries = self._entries
        name = entries.id(row)
        values = [entries.value(row, column) for column in ("text", "source", "added_at")]

        def read():
            with self._mutex:
                try:
                    return stored_image(entries.images([row])[0], name)
                except ShardMissing:  # another process has rewritten the pool
                    self.refresh()
                    return stored_image(self._entries.images(self._entries.rows([name]))[0], name)

        return Example(name, values[0], similarity, values[1], values[2], latents, read)

    def _latents_of(self, rows: list[int]) -> dict[int, object]:
        """Latents by row: those that were kept, and the others computed now."""
        entries = self._entries
        found = {row: self._latents.get(int(entries.ids[row])) for row in dict.fromkeys(rows)}
        absent = [row for row, latents in found.items() if latents is None]
        encode = self._encoding("find examples in it") if absent else None
        for start in range(0, len(absent), ENCODE_BATCH):
            some = absent[start : start + ENCODE_BATCH]
            images = [stored_image(b, entries.id(row)) for row, b in zip(some, entries.images(some))]
            for row, latents in zip(some, encode(images)[1]):
                found[row] = self._latents.put(int(entries.ids[row]), latents)
        return found

    # ------------------------------------------------------------------------------------------------------- saving

    def save(self, path: str | Path | None = None, overwrite: bool = False):
        """Write the pool to a folder, together with what other processes saved there meanwhile.

        A process that is killed while it saves leaves the folder's former pool or the new one, whole.

        Args:
            path: the folder; by default the one that it was loaded from or saved to.
            overwrite: take the place of another pool in this folder.

        Raises:
            ValueError: no folder is known, the folder holds another pool, or its pool was re-encoded meanwhile.
            TimeoutError: another process held the folder for ten minutes.
            OSError: the folder cannot be written. What was to be saved is still in this pool.
        """
        with self._mutex:
            folder = Path(path) if path is not None else self.path
            if folder is None:
                raise ValueError("the pool has no folder yet; name one: save(path).")
            with writing(folder), locked(folder):
                manifest = self._merged(folder, overwrite)
                try:
                    for shard in manifest.shards:
                        home = self._entries.folders.get(shard.file, folder)
                        place(home / shard.file, folder, link=home == Path(self._staging.name))
                    write_manifest(folder, manifest)
                finally:  # also of what came before the disk was full
                    sweep(folder)
                # Still locked: the next process may rewrite what others have added, and delete their shards.
                self.path = folder
                self._history.written(manifest.operations)
                for shard in manifest.shards:
                    if self._entries.folders.get(shard.file) == Path(self._staging.name):
                        (Path(self._staging.name) / shard.file).unlink(missing_ok=True)
                self._read_shards(folder, manifest)
                self._fold()

    def _merged(self, folder: Path, overwrite: bool) -> Manifest:
        """The manifest that a folder gets: its own operations, those of others included, and then ours."""
        standing = read_manifest(folder)
        if standing and standing.pool != self._name:
            if not overwrite:
                raise ValueError(
                    f"{folder} holds another pool; load that one to add to it, save elsewhere, or give overwrite=True."
                )
            standing = None
        if standing is None:
            return self._manifest(self._history.operations)
        if not self._history.rewritten:
            self._check_encoder(standing, folder)
        here = self.path is not None and folder.resolve() == self.path.resolve()
        return self._manifest(
            self._history.merged(
                standing.operations, folder, here, self._without, lambda o: self._with_our_keys(o, standing, folder)
            )
        )

    def _without(self, operation: Operation) -> Operation:
        """What undoes an operation that a compaction by another process has absorbed."""
        ids = [name for shard in operation.shards for name in self._entries.ids_of(shard)]
        return Operation(uuid.uuid4().hex, now(), (), tuple(ids))

    def _with_our_keys(self, operation: Operation, standing: Manifest, folder: Path) -> Operation:
        """An operation that was saved with the former encoder while this pool was re-encoded."""
        if not operation.shards or self._identity.same(Identity.stated(standing)):
            return operation
        others = Entries()
        for shard in operation.shards:
            others.append(shard, *read_shard(folder, shard, standing.width))
            others.folders[shard.file] = folder
        rows = np.arange(len(others.ids))
        shards = self._copied(others, rows, self.encode)
        for shard in shards:
            self._entries.folders[shard.file] = Path(self._staging.name)
        return Operation(operation.id, operation.at, tuple(shards), operation.removed)

    def refresh(self):
        """Take over what other processes have saved to the pool's folder; own changes stay."""
        with self._mutex:
            if self.path is not None and not self._history.rewritten:
                self._open(self.path)

    def push_to_hub(self, repo_id: str, license: str | None = None, private: bool = False) -> str:
        """Publish the pool as a data set, with a card, in one commit; the commit's URL. `load(repo_id)` opens it.

        Removed entries and the history are left behind. Raises ConnectionError where the Hub refuses.
        """
        from .hub import commit, reaching

        with self._mutex, tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            shards = self._with_shards(lambda: self._copied(self._entries, np.flatnonzero(self._entries.alive), None))
            for shard in shards:
                place(Path(self._staging.name) / shard.file, folder, link=True)
                (Path(self._staging.name) / shard.file).unlink()
            operations = [Operation(uuid.uuid4().hex, now(), tuple(shards))] if shards else []
            write_manifest(folder, self._manifest(operations))
            (folder / "README.md").write_text(self.card(repo_id, license), encoding="utf-8")
            files = {path.name: path for path in sorted(folder.iterdir())}
            message = f"Context pool of {len(self)} entries"
            return reaching(repo_id, lambda api: commit(api, repo_id, files, message, private, "dataset"))

    def card(self, repo_id: str, license: str | None = None) -> str:
        """The README.md of the pool's repository."""
        from .cards import pool_card

        return pool_card(
            repo_id, license, self.sources(), self._entries.width, self._identity and self._identity.weights
        )

    # ------------------------------------------------------------------------------------------------ looking inside

    def __len__(self) -> int:
        return int(self._entries.alive.sum())

    def __contains__(self, name: str) -> bool:
        return self._entries.holds(name)

    def __repr__(self) -> str:
        unsaved = ", with changes to save" if self._history.unsaved else ""
        return f"ContextPool({len(self):,} entries{f' of {self.path}' if self.path else ''}{unsaved})"

    @property
    def ids(self) -> list[str]:
        """Of all entries, in the order in which they came."""
        return [self._entries.id(row) for row in np.flatnonzero(self._entries.alive)]

    @property
    def texts(self) -> list[str]:
        """Of all entries, in the order of `ids`."""
        return self._entries.texts()

    def same(self, images: Sequence) -> list[list[str]]:
        """For each image the ids of the entries with exactly its pixels, which a search for it does not find."""
        pictures = (crop_picture(image, f"image {number}") for number, image in enumerate(several(images)))
        rows = (self._entries.with_pixels(pixels_hash(picture)) for picture in pictures)
        return [[self._entries.id(row) for row in some] for some in rows]

    def sources(self) -> dict[str, int]:
        """How many entries came from where."""
        return self._entries.sources()

    # ----------------------------------------------------------------------------------------------------- machinery

    def _manifest(self, operations: list[Operation]) -> Manifest:
        identity = self._identity or Identity(None, [])
        return Manifest(self._name, identity.weights, identity.probe, self._entries.width, operations)

    def _commit(self, operation: Operation):
        self._read_shards(Path(self._staging.name), Manifest("", width=None, operations=[operation]))
        self._history.pending.append(operation)
        self._fold()

    def _read_shards(self, folder: Path, manifest: Manifest):
        """Open the shards that are not open yet."""
        absent = [shard for shard in manifest.shards if shard.file not in self._entries.shards]
        width = manifest.width or self._entries.width
        for shard in tqdm(absent, "opening the pool", unit="shard", disable=None if len(absent) > 20 else True):
            self._entries.append(shard, *read_shard(folder, shard, width))
        for shard in manifest.shards:
            self._entries.folders[shard.file] = folder

    def _with_shards(self, read: Callable):
        """What `read` gives; tried again where another process has rewritten the pool since it was looked at."""
        for attempt in (1, 2, 3):
            try:
                return read()
            except ShardMissing:
                if attempt == 3 or self.path is None:
                    raise
                self.refresh()

    def _fold(self):
        self._entries.fold(self._history.operations)

    def _encoding(self, purpose: str) -> Encode:
        if self.encode is None:
            raise ValueError(f"the pool has no encode; load it with ContextPool.load(path, encode) to {purpose}.")
        return self.encode

    def _check_encoder(self, manifest: Manifest, folder: Path):
        if self._identity and manifest.width:
            self._identity.check(manifest, folder)


def _named(image, otherwise: str) -> str:
    return str(image) if isinstance(image, (str, Path)) else otherwise


__all__ = ["Added", "ContextPool", "Example", "Refused", "weights_hash"]
