"""Readers of word crops: whatever images of words and their texts are stored in, one schema comes out.

The word schema, a `datasets.Dataset` or, streamed, a `datasets.IterableDataset`:

| column | content |
|---|---|
| `id` | string, unique within its split |
| `image` | `datasets.Image` |
| `text` | what the image shows, as it is labelled: case, punctuation and spaces are kept |
| `source`, `split` | strings, where known |
| `case_sensitive`, `alnum` | of parquet files that have them: the labels tell the case; only letters and digits |

Records that cannot be used are left out, counted and named in a logged report, which also stands in
`dataset.info.description`. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import logging
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from PIL import Image, UnidentifiedImageError

from ..inputs import IMAGE_FORMATS, MAX_PIXELS, first_line, to_image
from .lmdb_words import MAX_IMAGE_BYTES, MAX_LABEL_BYTES, LMDBError, WordLMDB
from .protocols import MAX_LABEL_LENGTH, to_ascii
from .readers import (
    column_values,
    expand_path,
    files_below,
    listing,
    load_parquet,
    names_of,
    narrow,
    parquet_selection,
)
from .word_tables import TABLES, lines_of_tables

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset

logger = logging.getLogger(__name__)

WORD_COLUMNS = (("image",), ("text",))
SHARD = 5_000  # records that one worker of a stream reads in a row
Half = Literal["pool", "queries"]
HALVES = get_args(Half)


@dataclass
class WordReport:
    """What became of the records of a data set: how many were read, and (id, reason) of those left out."""

    records: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.records} records, {self.records - len(self.left_out)} kept, {len(self.left_out)} left out"]
        reasons = {}
        for name, reason in self.left_out:
            # What stands in brackets is a detail of one record.
            reasons.setdefault(reason.split(" (")[0], []).append(name)
        for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1])):
            more = f" and {len(names) - 20} more" if len(names) > 20 else ""
            lines.append(f"  {reason}: {len(names)}, namely {', '.join(names[:20])}{more}")
        return "\n".join(lines)


def load_words(
    path: str | Path, split: str | None = None, source: str | None = None, streaming: bool = False
) -> Dataset | IterableDataset:
    """Load images of words with their texts, from any of the layouts below, in the word schema.

    Args:
        path: one of
            * a parquet file with the columns `image` and `text`, or a folder of such files;
            * an LMDB of the field (`num-samples`, `image-000000001`, `label-000000001`, ...), or a folder with such
              data bases at any depth, as MJ, ST, Union14M and the benchmark sets are distributed. The folder of
              `data.mdb` is the `source`, the first folder below `path` the `split`. Without `streaming` the records
              are copied once into the cache of `datasets`, where they take as much room again;
            * a folder with images and a table at any depth: `metadata` or `labels` as `.csv`, `.jsonl` or `.tsv` with
              the columns `file_name` and `text` (and, if you like, `id`, `source`, `split`), or `labels.txt` or
              `gt.txt` (also `labels.tsv`) with lines of file name, tab and text (of a line without a tab the first
              space parts them, as in mmocr's lists); or the table itself, by any name with one of these endings.
            Environment variables such as `${EPIGRAPH_DATA}` are expanded.
        split: keep these rows only.
        source: keep these rows only.
        streaming: give an `IterableDataset`, which reads where the data lie, in any number of workers; each opens the
            files for itself. What it leaves out is logged while it reads; here that is every damaged image.

    Returns:
        The rows, in the order of the files. Every image of LMDBs has been decoded once; of images in folders only the
        headers are read, of parquet nothing: `check_images` finds what is damaged, `load_checked_words` does both.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: an unset variable in `path`, an unknown layout, a damaged data base, no such split or source, no
            usable record.
    """
    return _load(path, split, source, streaming)[0]


def load_checked_words(
    path: str | Path,
    split: str | None = None,
    source: str | None = None,
    limit: int | None = None,
    half: Half | None = None,
) -> tuple[Dataset, WordReport]:
    """`load_words`, with every image decoded once, and a report of what could not be used, whatever the layout.

    Args:
        path, split, source: as in `load_words`, which also says what is raised.
        half: "pool" or "queries": these words of `pool_and_queries` only.
        limit: look at so many of the rows only, the first; of LMDBs and tables what was left out still counts.

    Raises:
        ValueError: also where no row can be used.
    """
    dataset, report = _load(path, split, source, False)
    dataset = half_of(dataset, half, path)
    if limit is not None:
        dataset = dataset.select(range(min(len(dataset), limit)))
    checked, found = check_images(dataset)
    if not len(checked):
        name, reason = (report.left_out + found.left_out)[0]
        raise ValueError(f"{path}: no usable word in it; the first, {name}: {reason}.")
    left_out = [*report.left_out, *found.left_out]
    return checked, WordReport(len(checked) + len(left_out), left_out)


def _load(
    path: str | Path, split: str | None, source: str | None, streaming: bool
) -> tuple[Dataset | IterableDataset, WordReport]:
    """What `load_words` gives, and what it left out; nothing yet of parquet files and streams."""
    path = _existing(path)
    if not streaming and (files := files_below(path, ".parquet")):
        return _parquet(files, path, split, source), WordReport()
    rows, shards, features = _records(path, split, source)
    if streaming:
        return _stream(rows, shards, features), WordReport()
    dataset = _from_lmdb(shards) if rows is lmdb_rows else _in_memory(rows(shards))
    return _without_problems(dataset, path)


def every_word(path: str | Path, split: str | None = None, source: str | None = None) -> Iterator[dict]:
    """All records of what `load_words` reads, one after another where they lie, images as they are stored.

    Those that cannot be used are among them: `problem` says why, and is None for the others.
    """
    rows, shards, _ = _records(_existing(path), split, source)
    return rows(shards)


def _existing(path: str | Path) -> Path:
    path = expand_path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; {path.parent} holds {listing(path.parent)}.")
    return path


def _records(path: Path, split: str | None, source: str | None) -> tuple[Callable, list[dict], Features | None]:
    """What reads the layout of these data, the pieces that it reads, and of parquet the columns."""
    if files := files_below(path, ".parquet"):
        return parquet_rows, *_parquet_shards(files, path, split, source)
    bases = [file for suffix in (".mdb", ".lmdb") for file in files_below(path, suffix) if file.name != "lock.mdb"]
    if bases:
        return lmdb_rows, _lmdb_shards(bases, path, split, source), None
    named = path.is_file() and path.suffix in {Path(name).suffix for name in TABLES}
    if tables := [path] if named else sorted(file for name in TABLES for file in path.rglob(name)):
        return file_rows, _table_shards(tables, path, split, source), None
    raise ValueError(
        f"{path}: no words found; expected parquet files, data.mdb, or images with one of {', '.join(TABLES)}, "
        f"but it holds {listing(path)}."
    )


def open_word(content: bytes, name: str) -> Image.Image:
    """The image in a file's bytes, decoded: grey, RGB or RGBA, 8 bits each, upright.

    Raises:
        ValueError: no image, a damaged one, one without pixels, or one of more than `MAX_PIXELS`.
    """
    if not content:
        raise ValueError(f"{name}: the image is empty.")
    return to_image(_header(io.BytesIO(content), name), name)


def check_images(dataset: Dataset) -> tuple[Dataset, WordReport]:
    """The rows whose images can be decoded and whose texts are not empty, and a report of the others."""
    import datasets

    report, kept = WordReport(len(dataset)), []
    encoded = dataset.select_columns(["id", "image", "text"]).cast_column("image", datasets.Image(decode=False))
    for number, row in enumerate(encoded):
        if problem := _problem(row["image"], row["text"]):
            report.left_out.append((row["id"], problem))
        else:
            kept.append(number)
    _log(report, "words")
    return (dataset if len(kept) == len(dataset) else dataset.select(kept)), report


def keep_words(dataset: Dataset, alnum: bool = False, min_length: int = 1) -> Dataset:
    """The rows whose texts pass the filters that make the sub-sets of benchmarks (docs/protocols.md).

    Args:
        alnum: only texts of ASCII letters and digits. Of the 1095 words of ICDAR 2013 this leaves the 1015.
        min_length: fewest characters. With `alnum`, 3 leaves the 857.
    """
    texts = dataset["text"][:]
    kept = [
        number
        for number, text in enumerate(texts)
        if len(text) >= min_length and (not alnum or re.fullmatch("[0-9A-Za-z]+", text))
    ]
    return dataset.select(kept)


def pool_and_queries(words: Dataset) -> tuple[Dataset, Dataset]:
    """The two halves of a source that is never trained on: examples to read with, and words to be read.

    By the SHA-1 of the id's UTF-8 bytes as a number: even, and the word is an example. Of an id with a `#` the part
    before the first counts, which names what the word was cut from, so that no receipt stands in both halves. What
    half a word is in depends on nothing else.

    Args:
        words: with ids, as `load_words` gives them, of one source or several.

    Returns:
        The pool's rows and those of the queries, both in their order; either may be empty.
    """
    halves = [], []
    for number, name in enumerate(words["id"]):
        digest = hashlib.sha1(name.split("#")[0].encode(), usedforsecurity=False).digest()
        halves[int.from_bytes(digest, "big") % 2].append(number)
    return words.select(halves[0]), words.select(halves[1])


def half_of(words: Dataset, half: Half | None, path: str | Path) -> Dataset:
    """One of `pool_and_queries` by its name, all words where none is named; ValueError where no word is in it."""
    if half is None:
        return words
    chosen = pool_and_queries(words)[HALVES.index(half)]
    if not len(chosen):
        raise ValueError(f"{path}: none of its {len(words)} words is in the half '{half}'.")
    return chosen


def training_label(
    text: str, characters: Collection[str], max_length: int = MAX_LABEL_LENGTH
) -> tuple[str | None, str | None]:
    """A label as a model with these characters can learn it, or None and the reason why it cannot.

    White space goes, unless the space is one of the characters; capitals become small where the model has none. A
    character that the model lacks is replaced by its ASCII form (NFKD: é becomes e) where the model has that;
    otherwise the label is refused rather than cut, because the image would show what the label does not say.
    """
    label, unknown = [], []
    text = unicodedata.normalize("NFC", text)
    if not any(character.isupper() for character in characters):
        text = text.lower()
    for character in (" ".join if " " in characters else "".join)(text.split()):
        if character in characters:
            label.append(character)
        elif (plain := to_ascii(character)) and all(letter in characters for letter in plain):
            label.append(plain)
        elif not re.fullmatch("[\u0300-\u036f]", character):  # accents that stand for themselves
            unknown.append(character)
    if unknown:
        return None, f"outside the character set ({' '.join(dict.fromkeys(unknown))})"
    label = "".join(label)
    if len(label) > max_length:
        return None, f"longer than {max_length} characters"
    return (label, None) if label else (None, "no text")


def training_labels(
    dataset: Dataset, characters: Collection[str], max_length: int = MAX_LABEL_LENGTH
) -> tuple[Dataset, WordReport]:
    """The rows that a model can learn, with their labels as `training_label` makes them, and a report of the others.

    Raises:
        ValueError: no row is left.
    """
    report, labels, kept = WordReport(len(dataset)), [], []
    for number, (name, text) in enumerate(zip(dataset["id"], dataset["text"])):
        label, reason = training_label(text or "", characters, max_length)
        labels.append(label or "")
        if reason:
            report.left_out.append((name, reason))
        else:
            kept.append(number)
    if not kept:
        raise ValueError(f"none of the {len(dataset)} labels can be written: {report.left_out[:1]}.")
    _log(report, "labels")
    if labels != dataset["text"][:]:
        dataset = dataset.remove_columns("text").add_column("text", labels)
    return (dataset if len(kept) == len(dataset) else dataset.select(kept)), report


# ------------------------------------------------------------------------------------------------------------ parquet


def _parquet(files: list[Path], path: Path, split: str | None, source: str | None) -> Dataset:
    dataset = load_parquet(files, path, split, "words", WORD_COLUMNS)
    return dataset if source is None else narrow(dataset, "source", source, path)


def _parquet_shards(
    files: list[Path], path: Path, split: str | None, source: str | None
) -> tuple[list[dict], Features]:
    """The row groups, each with what is wanted of it, and the columns."""
    import datasets
    import pyarrow.parquet

    files, filters, columns = parquet_selection(files, path, split, "words", WORD_COLUMNS)
    if source is not None:
        if "source" not in columns:
            raise ValueError(f"{path}: asked for source '{source}', but the rows have no column 'source'.")
        if source not in (sources := column_values(files, "source")):
            raise ValueError(f"{path}: no source '{source}'; there are {names_of(map(str, sources))}.")
        filters.append(("source", "==", source))
    features = datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(files[0]))
    features["image"], shards, count = datasets.Image(), [], 0
    for file in files:
        opened = pyarrow.parquet.ParquetFile(file)
        for group in range(opened.num_row_groups):
            shards.append({"base": str(file), "group": group, "filters": filters, "first": count})
            if "id" not in columns:  # rows are then numbered as they would be without streaming
                table = opened.read_row_group(group, columns=[column for column, *_ in filters] or ["text"])
                count += sum(_wanted(row, filters) for row in table.to_pylist())
    return shards, datasets.Features({"id": datasets.Value("string"), **features})


def parquet_rows(shards: list[dict]) -> Iterator[dict]:
    """The rows of these row groups, with all their columns; `problem` says why one cannot be used."""
    import pyarrow.parquet

    for shard in shards:
        number = shard["first"]
        with pyarrow.parquet.ParquetFile(shard["base"]) as file:
            batches = file.iter_batches(batch_size=100, row_groups=[shard["group"]])
            for row in (row for batch in batches for row in batch.to_pylist() if _wanted(row, shard["filters"])):
                image = row["image"] if isinstance(row["image"], dict) else {"bytes": row["image"], "path": None}
                problem = _problem(image, row["text"])
                yield {"id": str(number), **row, "image": None if problem else image, "problem": problem}
                number += 1


def _wanted(row: dict, filters: list[tuple]) -> bool:
    return all(row[column] == value for column, _, value in filters)


# --------------------------------------------------------------------------------------------------------------- LMDB


def _lmdb_shards(bases: list[Path], path: Path, split: str | None, source: str | None) -> list[dict]:
    """Pieces of the data bases, of which each can be read on its own: `base`, `source`, `split`, `start`, `stop`."""
    places = []
    for base in bases:
        folder = base.parent if base.name == "data.mdb" else base.with_suffix("")
        parts = folder.relative_to(path).parts if path.is_dir() and folder != path else ()
        places.append((base, parts[-1] if parts else folder.resolve().name, parts[0] if len(parts) > 1 else None))
    for number, (kind, wanted) in enumerate((("source", source), ("split", split)), start=1):
        if wanted is not None:
            values = {str(place[number]) for place in places}
            places = [place for place in places if place[number] == wanted]
            if not places:
                raise ValueError(f"{path}: no {kind} '{wanted}'; there are {names_of(values)}.")
    shards = []
    for base, name, part in places:
        prefix = base.relative_to(path).parent.as_posix() if path.is_dir() and len(bases) > 1 else ""
        opened = WordLMDB(base)
        count = len(opened) + opened.uncounted()
        for start in range(1, count + 1, SHARD):
            stop = min(start + SHARD, count + 1)
            shards.append({"base": str(base), "prefix": prefix and f"{prefix}/", "source": name, "split": part,
                           "start": start, "stop": stop, "stated": len(opened)})  # fmt: skip
    if not shards:
        raise ValueError(f"{path}: num-samples is 0 in {names_of(str(base) for base, *_ in places)}: no words.")
    return shards


def lmdb_rows(shards: list[dict]) -> Iterator[dict]:
    """The records of these pieces of data bases in the word schema; `problem` says why one cannot be used."""
    for shard in shards:
        for index, image, label in WordLMDB(shard["base"]).records(shard["start"], shard["stop"]):
            text, problem = _label(label)
            if index > shard["stated"]:
                problem = "behind the last record that num-samples counts"
            elif image is None:
                problem = f"no image under its key (image-{index:09d})"
            elif len(image) > MAX_IMAGE_BYTES:
                image, problem = None, f"image of more than {MAX_IMAGE_BYTES // 2**20} MB"
            problem = problem or _problem({"bytes": image, "path": None}, text)
            yield {
                "id": f"{shard['prefix']}{index:09d}",
                "image": None if problem else {"bytes": image, "path": None},
                "text": text,
                "source": shard["source"],
                "split": shard["split"],
                "problem": problem,
            }


def _label(stored: bytes | None) -> tuple[str | None, str | None]:
    """The text in a record, and what is wrong with it."""
    if stored is None:
        return None, "no label under its key"
    if len(stored) > MAX_LABEL_BYTES:
        return None, f"label of more than {MAX_LABEL_BYTES} bytes"
    try:
        return stored.decode(), None
    except UnicodeDecodeError as error:
        return None, f"label that is not UTF-8 ({error.reason} at byte {error.start})"


def _from_lmdb(shards: list[dict]) -> Dataset:
    """Copied once into the cache of `datasets`, and found there until a data base changes."""
    import datasets

    states = {base: Path(base).stat() for base in {shard["base"] for shard in shards}}
    key = [
        shards,
        sorted((str(Path(base).resolve()), state.st_size, state.st_mtime_ns) for base, state in states.items()),
    ]
    fingerprint = hashlib.sha256(json.dumps(["words 1", *key]).encode()).hexdigest()[:16]
    try:
        return datasets.Dataset.from_generator(
            lmdb_rows, features=_features(), gen_kwargs={"shards": shards}, fingerprint=fingerprint
        )
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, LMDBError):
            raise error.__cause__ from None
        raise


# ------------------------------------------------------------------------------------------------- images and a table


def _table_shards(tables: list[Path], path: Path, split: str | None, source: str | None) -> list[dict]:
    """Lines of the tables by the thousand: `rows`, as `lines_of_tables` gives them."""
    lines = lines_of_tables(tables, path, split, source)
    return [{"rows": lines[start : start + SHARD]} for start in range(0, len(lines), SHARD)]


def file_rows(shards: list[dict]) -> Iterator[dict]:
    """The lines of these pieces of tables in the word schema; `problem` says why one cannot be used."""
    for shard in shards:
        for row in shard["rows"]:
            root = Path(row["root"])
            image = (root / row["file_name"]).resolve()
            if not image.is_relative_to(root) or not image.is_file():
                problem = "no such image beside the table"
            elif not row["text"].strip():
                problem = "no text"
            else:
                problem = _header_problem(image)
            yield {
                "id": row["id"],
                "image": None if problem else {"bytes": None, "path": str(image)},
                "text": row["text"],
                "source": row["source"],
                "split": row["split"],
                "problem": problem,
            }


# ------------------------------------------------------------------------------------------------------------ helpers


def _header(source, name: str) -> Image.Image:
    """An image file not yet decoded, with a sensible size. Only formats that are listed, and never ink."""
    try:
        image = Image.open(source, formats=sorted(set(IMAGE_FORMATS.values())))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        detail = "" if isinstance(error, UnidentifiedImageError) else f" ({first_line(error)})"
        raise ValueError(f"{name}: not an image, or damaged at its beginning{detail}.") from None
    if not 0 < image.width * image.height <= MAX_PIXELS:
        raise ValueError(f"{name}: the image has no pixels or too many ({image.width} x {image.height}).")
    return image


def _header_problem(file: Path) -> str | None:
    try:
        _header(file, "").close()
    except ValueError as error:
        return _reason(error)
    return None


def _problem(image: dict | None, text: str | None) -> str | None:
    """Why a record cannot be used, or None."""
    if text is None or not text.strip():
        return "no text"
    if image is None or (image["bytes"] is None and image["path"] is None):
        return "no image"
    try:
        open_word(Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"], "")
    except ValueError as error:
        return _reason(error)
    except OSError as error:
        return f"image file that cannot be read ({error.strerror})"
    return None


def _reason(error: ValueError) -> str:
    return str(error).removeprefix(": ").rstrip(".")


def _features() -> Features:
    import datasets

    text = datasets.Value("string")
    columns = {"id": text, "image": datasets.Image(), "text": text, "source": text, "split": text, "problem": text}
    return datasets.Features(columns)


def _in_memory(rows: Iterator[dict]) -> Dataset:
    """Paths, texts and problems as a data set; packed by the thousand to keep memory low."""
    import datasets
    import pyarrow
    from datasets.utils import tqdm

    schema = _features().arrow_schema
    rows = iter(tqdm(rows, desc="Reading words", unit=" words"))
    tables = []
    while chunk := list(itertools.islice(rows, 1000)):
        tables.append(pyarrow.Table.from_pylist(chunk, schema=schema))
    return datasets.Dataset(pyarrow.concat_tables(tables))


def _without_problems(dataset: Dataset, path: Path) -> tuple[Dataset, WordReport]:
    """The usable rows, and the report of the others."""
    problems = dataset["problem"][:]
    bad = [number for number, problem in enumerate(problems) if problem]
    names = dataset.select(bad)["id"][:] if bad else []
    report = WordReport(len(problems), [(name, problems[number]) for name, number in zip(names, bad)])
    _log(report, path)
    dataset = dataset.remove_columns("problem")
    if bad:
        dataset = dataset.select([number for number, problem in enumerate(problems) if not problem])
    if not len(dataset):
        raise ValueError(f"{path}: no usable word in it; the first, {names[0]}: {problems[bad[0]]}.")
    dataset.info.description = str(report)
    return dataset, report


def _stream(rows, shards: list[dict], features: Features | None = None) -> IterableDataset:
    import datasets

    # The pieces are what workers share out and what a shuffle reorders, so that there must be several.
    features = features or datasets.Features({name: kind for name, kind in _features().items() if name != "problem"})
    return datasets.IterableDataset.from_generator(
        _usable_rows, features=features, gen_kwargs={"shards": [(rows, shard) for shard in shards]}
    )


def _usable_rows(shards: list[tuple]) -> Iterator[dict]:
    """What a stream gives; every piece that lacks records is logged."""
    for rows, shard in shards:
        report = WordReport()
        for row in rows([shard]):
            report.records += 1
            if problem := row.pop("problem"):
                report.left_out.append((row["id"], problem))
            else:
                yield row
        _log(report, shard.get("base", "words"))


def _log(report: WordReport, name):
    logger.log(logging.WARNING if report.left_out else logging.INFO, "%s: %s", name, report)


__all__ = [
    "Half",
    "WordReport",
    "check_images",
    "half_of",
    "keep_words",
    "load_checked_words",
    "load_words",
    "open_word",
    "pool_and_queries",
    "training_label",
    "training_labels",
]
