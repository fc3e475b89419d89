"""Readers: whatever formulas are stored in, one schema comes out.

The formula schema, a `datasets.Dataset`:

| column | content |
|---|---|
| `id` | string, unique within its split |
| `text` | LaTeX tokens separated by spaces |
| `image` | `datasets.Image` (stored as PNG, BMP or JPEG bytes, or as a path) |
| `strokes` | or, instead of `image`: list of flat `[x0, y0, x1, y1, ...]`, y down, any unit (`epigraph.data.ink`) |
| `split`, `source`, `writer`, `truth`, `symbols`, `text_source` | where known; `symbols` are `{"label", "strokes"}` |

Parquet files in this schema are read as they are; CROHME InkML folders, the official image layout of CoMER and image
folders with a metadata file are brought into it. Single bad files are left out, counted in a logged report, which
also stands in `dataset.info.description`.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from .ink_files import InkError, read_inkml
from .latex import LabelReport, LatexError, normalise, tokenize

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".bmp", ".png", ".jpg", ".jpeg")
# Bounds on archives and tables that come from outside.
MAX_MEMBER_BYTES = 20 * 2**20
MAX_ARCHIVE_BYTES = 4 * 2**30
MAX_ARCHIVE_MEMBERS = 1_000_000


def load_formulas(path: str | Path, split: str | None = None, source: str | None = None) -> Dataset:
    """Load handwritten formulas with their LaTeX, from any of the layouts below, in the formula schema.

    Args:
        path: one of
            * a parquet file in the schema, or a folder of such files;
            * a folder with InkML files at any depth (CROHME); the truth is brought to the normal form of captions;
            * a folder or `data.zip` in CoMER's official layout, `data/{train,2014,...}/caption.txt` with `img/*.bmp`;
            * a folder with images and `metadata.csv` or `metadata.jsonl` (columns `file_name` and `text`).
            Environment variables such as `${EPIGRAPH_DATA}` are expanded.
        split: keep these rows only. The `split` column of parquet files (or the start of their names); for the
            other layouts the name of the sub-folder.
        source: keep the rows with this value in the `source` column.

    Returns:
        The rows, in the order of the files. `info.description` tells what was left out and why.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: an unset variable in `path`, an unknown layout, split or source, no usable row.
    """
    path = expand_path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; {path.parent} holds {_listing(path.parent)}.")
    report = LabelReport()
    if parquet := _files(path, ".parquet"):
        dataset = _load_parquet(parquet, path, split)
    elif inkml := _files(path, ".inkml"):
        dataset = _in_memory(_inkml_rows(inkml, path, report), "strokes")
    elif path.suffix.lower() == ".zip":
        with _open_archive(path) as archive:
            dataset = _in_memory(_archive_rows(archive, path, report), "image")
    elif captions := sorted({*path.glob("caption.txt"), *path.glob("*/caption.txt"), *path.glob("*/*/caption.txt")}):
        dataset = _in_memory(_caption_rows(captions, path, report), "image")
    elif tables := sorted(file for kind in ("csv", "jsonl") for file in path.glob(f"**/metadata.{kind}")):
        dataset = _in_memory(_metadata_rows(tables, path, report), "image")
    else:
        raise ValueError(
            f"{path}: no formulas found; expected parquet or InkML files, caption.txt with img/, or metadata.csv or "
            f".jsonl, but it holds {_listing(path)}."
        )
    if report.labels:
        dataset.info.description = str(report)
        logger.log(logging.WARNING if report.rejected else logging.INFO, "%s: %s", path, report)
    # Parquet has been narrowed to the split while reading.
    for column, wanted in (("split", None if parquet else split), ("source", source)):
        if wanted is not None:
            dataset = _narrow(dataset, column, wanted, path)
    if not len(dataset):
        first = f", first {report.rejected[0][0]}: {report.rejected[0][1]}" if report.rejected else ""
        raise ValueError(f"{path}: no usable formula in it ({len(report.rejected)} rejected{first}).")
    return dataset


def normalise_labels(dataset: Dataset, vocabulary: Collection[str]) -> tuple[Dataset, LabelReport]:
    """Bring training labels to a tokenizer's dictionary and drop the rows that it cannot write.

    Labels are rewritten in normal form (`epigraph.data.latex.normalise`), unless that would only change the order of
    subscript and superscript.

    Args:
        dataset: formulas with `text` and `id`.
        vocabulary: the tokens, e.g. `tokenizer.get_vocab()`.

    Returns:
        The rows kept, and the report of what was dropped or replaced, per token and per row with the reason.

    Raises:
        ValueError: no row is left.
    """
    known = set(vocabulary)
    report = LabelReport()
    captions = []
    for name, text in zip(dataset["id"], dataset["text"], strict=True):
        caption = report.add(name, text, known)
        # Captions in the truth's own order of scripts are what the field compares with: not reordered.
        same = caption is not None and sorted(caption.split()) == sorted(text.split())
        captions.append(text if same else caption)
    kept = [index for index, caption in enumerate(captions) if caption]
    if not kept:
        name, reason = report.rejected[0]
        raise ValueError(f"none of the {report.labels} labels can be written, the first ({name}) because: {reason}.")
    if report.rejected or report.replaced or report.dropped:
        logger.warning("labels: %s", report)
    if captions == dataset["text"][:]:
        return dataset, report
    # Selecting last keeps the other columns where they are: no copy of images or ink.
    return dataset.remove_columns("text").add_column("text", captions).select(kept), report


def expand_path(path: str | Path) -> Path:
    """Expand `~` and `${VARIABLES}`.

    Raises:
        ValueError: a variable is not set.
    """
    expanded = os.path.expanduser(os.path.expandvars(path))
    if missing := re.search(r"\$\{?(\w+)\}?", expanded):
        raise ValueError(f"{path}: the environment variable {missing[1]} is not set; set it or write the full path.")
    return Path(expanded)


# -------------------------------------------------------------------------------------------------- parquet


def _load_parquet(files: list[Path], path: Path, split: str | None) -> Dataset:
    import datasets
    import pyarrow
    import pyarrow.parquet

    columns = {}
    for file in files:
        try:
            columns[file] = set(pyarrow.parquet.read_schema(file).names)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{file}: not a readable parquet file ({str(error).splitlines()[0]}).") from None
        if "text" not in columns[file] or not columns[file] & {"image", "strokes"}:
            raise ValueError(f"{file}: not formulas; it has the columns {', '.join(sorted(columns[file]))}, but "
                             "'text' and 'image' or 'strokes' are needed.")  # fmt: skip
    if len(set(map(frozenset, columns.values()))) > 1:
        raise ValueError(f"{path}: its parquet files have different columns; name one of {_listing(path)}.")

    filters = None
    if split is not None:
        if "split" in columns[files[0]]:
            splits = set()
            for file in files:
                splits.update(pyarrow.parquet.read_table(file, columns=["split"])["split"].unique().to_pylist())
            if split not in splits:
                raise ValueError(f"{path}: no split '{split}'; there are {_names(splits)}.")
            filters = [("split", "==", split)]
        else:
            # The Hub's naming: train-00000-of-00002.parquet.
            named = [file for file in files if re.fullmatch(rf"{re.escape(split)}(-.*)?", file.stem)]
            if not named:
                raise ValueError(f"{path}: no split '{split}'; the files are {_names(file.name for file in files)}.")
            files = named
    dataset = datasets.Dataset.from_parquet([str(file) for file in files], filters=filters)
    if "id" not in dataset.column_names:
        dataset = dataset.add_column("id", [str(index) for index in range(len(dataset))])
    if "image" in dataset.column_names and not isinstance(dataset.features["image"], datasets.Image):
        dataset = dataset.cast_column("image", datasets.Image())
    return dataset


# ---------------------------------------------------------------------------------------------------- InkML


def _inkml_rows(files: list[Path], path: Path, report: LabelReport) -> Iterator[dict]:
    for file in files:
        name = file.relative_to(path) if file != path else Path(file.name)
        report.labels += 1
        try:
            ink = read_inkml(file, name=str(name))
            if ink.label is None:
                raise InkError(f"{name}: it has no truth annotation.")
            # Without a vocabulary: names stay canonical and nothing is rejected for being unknown.
            label = normalise(ink.label, ())
            if not label.tokens:
                raise InkError(f"{name}: its truth is empty.")
        except (InkError, LatexError) as error:
            report.rejected.append((str(name), str(error).removeprefix(f"{name}: ")))
            continue
        report.dropped += label.dropped
        report.replaced += label.replaced
        yield {
            "id": name.with_suffix("").as_posix(),
            "text": " ".join(label.tokens),
            "split": name.parts[0] if len(name.parts) > 1 else None,
            "truth": ink.label,
            "strokes": [stroke.ravel().tolist() for stroke in ink.strokes],
            "symbols": [{"label": symbol, "strokes": indices} for symbol, indices in ink.symbols],
        }


# ------------------------------------------------------------------------------------- images with captions


def _caption_rows(files: list[Path], path: Path, report: LabelReport) -> Iterator[dict]:
    """CoMER's layout in folders: `<split>/caption.txt`, each line an image's name and its tokens."""
    for file in files:
        split = file.parent.name if file.parent != path else None
        for key, tokens in _caption_lines(file.read_bytes(), file, report):
            found = [f for suffix in IMAGE_SUFFIXES if (f := file.parent / "img" / f"{key}{suffix}").is_file()]
            if found:
                yield {"id": key, "text": tokens, "split": split, "image": {"path": str(found[0]), "bytes": None}}
            else:
                report.rejected.append((key, f"no image of that name in {file.parent / 'img'}"))


def _archive_rows(archive: zipfile.ZipFile, path: Path, report: LabelReport) -> Iterator[dict]:
    """The same from a zip file. Members are read in memory, so that their names never become paths."""
    names = set(archive.namelist())
    captions = sorted(name for name in names if PurePosixPath(name).name == "caption.txt")
    if not captions:
        raise ValueError(f"{path}: no caption.txt in it; expected CoMER's layout, <split>/caption.txt and img/*.bmp.")
    for caption in captions:
        folder = PurePosixPath(caption).parent
        for key, tokens in _caption_lines(_member(archive, caption, path), f"{path}/{caption}", report):
            found = [name for suffix in IMAGE_SUFFIXES if (name := f"{folder}/img/{key}{suffix}") in names]
            if found:
                image = {"path": None, "bytes": _member(archive, found[0], path)}
                yield {"id": key, "text": tokens, "split": folder.name or None, "image": image}
            else:
                report.rejected.append((key, f"no image of that name in {folder}/img"))


def _caption_lines(content: bytes, name: Path | str, report: LabelReport) -> Iterator[tuple[str, str]]:
    """Image key and tokens of every usable line."""
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not UTF-8 text ({error.reason} at byte {error.start}).") from None
    for number, line in enumerate(lines, start=1):
        key, *tokens = line.split() or [""]
        if not key:
            continue
        report.labels += 1
        if not tokens:
            report.rejected.append((key, f"no caption in line {number} of {name}"))
        elif PurePosixPath(key).name != key or "\\" in key:
            report.rejected.append((key, f"not a file name, in line {number} of {name}"))
        else:
            yield key, " ".join(tokens)


def _open_archive(path: Path) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path}: not a readable zip file ({error}).") from None
    members = archive.infolist()
    size = sum(member.file_size for member in members)
    if len(members) > MAX_ARCHIVE_MEMBERS or size > MAX_ARCHIVE_BYTES:
        archive.close()
        raise ValueError(
            f"{path}: {len(members):,} files of {size / 2**30:.1f} GB unpacked are more than the "
            f"{MAX_ARCHIVE_MEMBERS:,} files and {MAX_ARCHIVE_BYTES / 2**30:.0f} GB that are read; unpack it yourself."
        )
    return archive


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    if archive.getinfo(name).file_size > MAX_MEMBER_BYTES:
        raise ValueError(f"{path}/{name}: larger than {MAX_MEMBER_BYTES // 2**20} MB unpacked, which no formula is.")
    try:
        return archive.read(name)
    # RuntimeError: encrypted; NotImplementedError (one of them): a compression that Python lacks.
    except (zipfile.BadZipFile, RuntimeError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}/{name}: cannot be unpacked ({error}).") from None


def _metadata_rows(tables: list[Path], path: Path, report: LabelReport) -> Iterator[dict]:
    """The Hub's image folder: a table beside the images, of `file_name` and `text` (raw LaTeX or tokens)."""
    for table in tables:
        root = table.parent.resolve()
        split = table.parent.relative_to(path).parts[0] if table.parent != path else None
        for row in _table_rows(table):
            report.labels += 1
            name, text = row.get("file_name"), row.get("text")
            if not isinstance(name, str) or not isinstance(text, str):
                raise ValueError(f"{table}: needs the columns file_name and text; it has {_names(map(str, row))}.")
            image = (root / name).resolve()
            if not image.is_relative_to(root) or not image.is_file():
                report.rejected.append((name, f"no such image beside {table}"))
            elif not (tokens := tokenize(text)):
                report.rejected.append((name, f"no text in {table}"))
            else:
                yield {
                    "id": PurePosixPath(name).with_suffix("").as_posix(),
                    "text": " ".join(tokens),
                    "split": split,
                    "image": {"path": str(image), "bytes": None},
                }


def _table_rows(table: Path) -> Iterator[dict]:
    try:
        text = table.read_text("utf-8-sig")
        if table.suffix == ".csv":
            yield from csv.DictReader(io.StringIO(text), strict=True)
        else:
            yield from (dict(json.loads(line)) for line in text.splitlines() if line.strip())
    except (ValueError, TypeError, csv.Error, RecursionError) as error:
        raise ValueError(f"{table}: not readable as {table.suffix[1:]} ({error}).") from None


# -------------------------------------------------------------------------------------------------- helpers


def _in_memory(rows: Iterable[dict], kind: str) -> Dataset:
    """Rows of one kind ("strokes" or "image") as a data set, packed by the thousand to keep memory low."""
    import datasets
    import pyarrow
    from datasets.utils import tqdm

    text, whole = datasets.Value("string"), datasets.Value("int64")
    features = {"id": text, "text": text, "split": text}
    if kind == "strokes":
        features["truth"] = text
        features["strokes"] = datasets.List(datasets.List(datasets.Value("float32")))
        features["symbols"] = datasets.List({"label": text, "strokes": datasets.List(whole)})
    else:
        features["image"] = datasets.Image()
    features = datasets.Features(features)
    tables, chunk = [], []
    for row in tqdm(rows, desc="Reading formulas", unit=" formulas"):
        chunk.append(row)
        if len(chunk) == 1000:
            tables.append(pyarrow.Table.from_pylist(chunk, schema=features.arrow_schema))
            chunk = []
    tables.append(pyarrow.Table.from_pylist(chunk, schema=features.arrow_schema))
    return datasets.Dataset(pyarrow.concat_tables(tables))


def _narrow(dataset: Dataset, column: str, wanted: str, path: Path) -> Dataset:
    if column not in dataset.column_names:
        raise ValueError(f"{path}: asked for {column} '{wanted}', but the rows have no column '{column}'.")
    values = dataset[column]
    kept = [index for index, value in enumerate(values) if value == wanted]
    if not kept:
        raise ValueError(f"{path}: no {column} '{wanted}'; there are {_names(map(str, set(values)))}.")
    return dataset.select(kept)


def _files(path: Path, suffix: str) -> list[Path]:
    """The file itself or all files below, with this suffix, sorted."""
    if path.is_file():
        return [path] if path.suffix.lower() == suffix else []
    return sorted(file for file in path.rglob("*") if file.suffix.lower() == suffix and file.is_file())


def _listing(folder: Path) -> str:
    """The first entries of a folder, for an error message."""
    if not folder.is_dir():
        return "no such folder" if not folder.exists() else f"a file '{folder.suffix}'"
    return _names(entry.name for entry in folder.iterdir())


def _names(names: Iterable[str]) -> str:
    names = sorted(names)
    return (", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")) or "nothing"
