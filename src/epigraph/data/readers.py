"""Readers: whatever formulas are stored in, one schema comes out.

The formula schema, a `datasets.Dataset`:

| column | content |
|---|---|
| `id` | string, unique within its split |
| `text` | LaTeX tokens separated by spaces |
| `image` | `datasets.Image` (stored as PNG, BMP or JPEG bytes, or as a path) |
| `strokes` | or, instead of `image`: list of flat `[x0, y0, x1, y1, ...]`, y down, any unit (`epigraph.data.ink`) |
| `split`, `source`, `writer`, `truth`, `symbols`, `text_source` | where known; `symbols` are `{"label", "strokes"}` |

Parquet files in this schema are read as they are; InkML folders (CROHME, MathWriting), the image layouts of CoMER and
HME100K, and image folders with a metadata file are brought into it. Single bad files are left out, counted in a logged
report, which also stands in `dataset.info.description`.

The layouts of data sets that are not at hand here, MathWriting and HME100K, are followed as their publications and the
code of others describe them.
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
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING

from PIL import Image

from .ink_files import InkError, read_inkml
from .latex import LabelReport, LatexError, normalise, tokenize

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

FORMULA_COLUMNS = (("text",), ("image", "strokes"))
IMAGE_SUFFIXES = (".bmp", ".png", ".jpg", ".jpeg")
# Bounds on archives and tables that come from outside.
MAX_MEMBER_BYTES = 20 * 2**20
MAX_TABLE_BYTES = 500 * 2**20
MAX_ARCHIVE_BYTES = 4 * 2**30
MAX_ARCHIVE_MEMBERS = 1_000_000


def load_formulas(path: str | Path, split: str | None = None, source: str | None = None) -> Dataset:
    """Load handwritten formulas with their LaTeX, from any of the layouts below, in the formula schema.

    Args:
        path: one of
            * a parquet file in the schema, or a folder of such files;
            * a folder with InkML files at any depth (CROHME, MathWriting's `{train,valid,test,symbols,synthetic}`);
              the truth, in MathWriting its `normalizedLabel`, is brought to the normal form of captions;
            * a folder or `data.zip` in CoMER's official layout, `data/{train,2014,...}/caption.txt` with `img/*.bmp`;
            * a folder or zip file in HME100K's layout, `train_labels.txt` with `train_images/*.jpg`, and the same for
              `test`, at any of the first three levels;
            * a folder with images and `metadata.csv` or `metadata.jsonl` (columns `file_name` and `text`).
            Environment variables such as `${EPIGRAPH_DATA}` are expanded.
        split: keep these rows only. The `split` column of parquet files (or the start of their names); for the
            other layouts the name of the sub-folder, in HME100K `train` or `test`. Files of InkML without a
            sub-folder have the split that they name (MathWriting's `splitTagOriginal`).
        source: keep the rows with this value in the `source` column.

    Returns:
        The rows, in the order of the files. `info.description` tells what was left out and why.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: an unset variable in `path`, an unknown layout, split or source, no usable row.
    """
    path = expand_path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; {path.parent} holds {listing(path.parent)}.")
    report = LabelReport()
    if parquet := files_below(path, ".parquet"):
        dataset = load_parquet(parquet, path, split, "formulas", FORMULA_COLUMNS)
    elif inkml := files_below(path, ".inkml"):
        inkml = _inkml_of_split(inkml, path, split)
        dataset = _in_memory(_inkml_rows(inkml, path, report), "strokes", len(inkml))
    elif path.suffix.lower() == ".zip":
        with _open_archive(path) as archive:
            dataset = _in_memory(_archive_rows(archive, path, report), "image")
    elif captions := _caption_files(path):
        dataset = _in_memory(_caption_rows(captions, path, report), "image")
    elif tables := sorted(file for kind in ("csv", "jsonl") for file in path.glob(f"**/metadata.{kind}")):
        dataset = _in_memory(_metadata_rows(tables, path, report), "image")
    else:
        raise ValueError(
            f"{path}: no formulas found; expected parquet or InkML files, caption.txt with img/, train_labels.txt "
            f"with train_images/, or metadata.csv or .jsonl, but it holds {listing(path)}."
        )
    if report.labels:
        dataset.info.description = str(report)
        logger.log(logging.WARNING if report.rejected else logging.INFO, "%s: %s", path, report)
    # Parquet has been narrowed to the split while reading.
    for column, wanted in (("split", None if parquet else split), ("source", source)):
        if wanted is not None:
            dataset = narrow(dataset, column, wanted, path)
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


def load_parquet(
    files: list[Path], path: Path, split: str | None, kind: str, needed: tuple[tuple[str, ...], ...]
) -> Dataset:
    """Rows of parquet files, narrowed to `split`; see `parquet_selection` for arguments and what is raised."""
    import datasets
    import pyarrow

    files, filters, _ = parquet_selection(files, path, split, kind, needed)
    dataset = datasets.Dataset.from_parquet([str(file) for file in files], filters=filters or None)
    if "id" not in dataset.column_names:
        dataset = dataset.add_column("id", [str(index) for index in range(len(dataset))])
    if "image" in dataset.column_names and not isinstance(dataset.features["image"], datasets.Image):
        try:
            dataset = dataset.cast_column("image", datasets.Image())
        except pyarrow.ArrowException:
            kind = getattr(dataset.features["image"], "dtype", "something else")
            raise ValueError(
                f"{path}: its column image holds {kind} and no image files; embed them as PNG, say."
            ) from None
    return dataset


def parquet_selection(
    files: list[Path], path: Path, split: str | None, kind: str, needed: tuple[tuple[str, ...], ...]
) -> tuple[list[Path], list[tuple], set[str]]:
    """Which files and rows make a split: its column `split`, or what the files' names begin with. Reads no rows.

    Args:
        files: `path` itself, or what was found below.
        split: these rows only; None for all.
        kind: what the rows are, for messages.
        needed: columns that a file must have, of each group one.

    Returns:
        The files, the filters for `pyarrow`, and the names of the columns.

    Raises:
        ValueError: a file that is not parquet or does not fit, files of different columns, no rows, no such split.
    """
    import pyarrow
    import pyarrow.parquet

    columns, count = {}, 0
    for file in files:
        try:
            metadata = pyarrow.parquet.read_metadata(file)
            columns[file] = set(metadata.schema.to_arrow_schema().names)
            count += metadata.num_rows
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{file}: not a readable parquet file ({str(error).splitlines()[0]}).") from None
        if not all(columns[file].intersection(group) for group in needed):
            names = " and ".join(" or ".join(map(repr, group)) for group in needed)
            raise ValueError(f"{file}: not {kind}; it has the columns {', '.join(sorted(columns[file]))}, but "
                             f"{names} are needed.")  # fmt: skip
    if not count:
        raise ValueError(f"{path}: there are no rows in it.")
    if len(set(map(frozenset, columns.values()))) > 1:
        raise ValueError(f"{path}: its parquet files have different columns; name one of {listing(path)}.")

    own = columns[files[0]]
    if split is None:
        return files, [], own
    if "split" in own:
        splits = column_values(files, "split")
        if split not in splits:
            raise ValueError(f"{path}: no split '{split}'; there are {names_of(map(str, splits))}.")
        return files, [("split", "==", split)], own
    # The Hub's naming: train-00000-of-00002.parquet.
    named = [file for file in files if re.fullmatch(rf"{re.escape(split)}(-.*)?", file.stem)]
    if not named:
        raise ValueError(f"{path}: no split '{split}'; the files are {names_of(file.name for file in files)}.")
    return named, [], own


def column_values(files: list[Path], column: str) -> set:
    """All values that stand in a column of parquet files, `None` among them where one is missing."""
    import pyarrow.parquet

    tables = [pyarrow.parquet.read_table(file, columns=[column])[column] for file in files]
    return {value for table in tables for value in table.unique().to_pylist()}


# ---------------------------------------------------------------------------------------------------- InkML


def _inkml_of_split(files: list[Path], path: Path, split: str | None) -> list[Path]:
    """Those in the split's sub-folder, so that the others need not be read, and those in none."""
    if split is None or path.is_file():
        return files
    folders = {file: file.relative_to(path).parts[0] if file.parent != path else None for file in files}
    kept = [file for file, folder in folders.items() if folder in (split, None)]
    if not kept:
        raise ValueError(f"{path}: no split '{split}'; there are {names_of(set(folders.values()))}.")
    return kept


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
            "split": name.parts[0] if len(name.parts) > 1 else ink.notes.get("splitTagOriginal") or None,
            "writer": ink.notes.get("writer") or None,
            "truth": ink.label,
            "strokes": [stroke.ravel().tolist() for stroke in ink.strokes],
            "symbols": [{"label": symbol, "strokes": indices} for symbol, indices in ink.symbols],
        }


# ------------------------------------------------------------------------------------- images with captions


def _caption_files(path: Path) -> list[Path]:
    """Files of captions in the first three levels whose images stand beside them; see `_images_of`."""
    found = {file for level in ("", "*/", "*/*/") for file in path.glob(f"{level}caption.txt")}
    found |= {file for level in ("", "*/", "*/*/") for file in path.glob(f"{level}*_labels.txt")}
    return sorted(file for file in found if file.name == "caption.txt" or _images_of(file)[0].is_dir())


def _images_of(captions: PurePath) -> tuple[PurePath, str | None]:
    """The folder of the images and the split: `img` beside CoMER's `train/caption.txt`, and for HME100K's
    `train_labels.txt`, wherever it lies, `train_images`."""
    if captions.name == "caption.txt":
        return captions.parent / "img", captions.parent.name or None
    split = captions.name.removesuffix("_labels.txt")
    return captions.parent / f"{split}_images", split


def _caption_rows(files: list[Path], path: Path, report: LabelReport) -> Iterator[dict]:
    """Folders of images with a file of captions, each line an image's name and its tokens."""
    for file in files:
        images, split = _images_of(file)
        names = {entry.name for entry in os.scandir(images)} if images.is_dir() else set()
        for key, tokens in _caption_lines(table_bytes(file), file, report):
            image = _named_image(key, names, images, report)
            if image and _is_image(images / image, key, report):
                yield {
                    "id": _without_suffix(key),
                    "text": tokens,
                    "split": split if file.parent != path or file.name != "caption.txt" else None,
                    "image": {"path": str(images / image), "bytes": None},
                }


def _archive_rows(archive: zipfile.ZipFile, path: Path, report: LabelReport) -> Iterator[dict]:
    """The same from a zip file. Members are read in memory, so that their names never become paths."""
    members = {PurePosixPath(name): name for name in archive.namelist()}
    folders = {member.parent for member in members}
    captions = sorted(
        member
        for member in members
        if member.name == "caption.txt" or (member.name.endswith("_labels.txt") and _images_of(member)[0] in folders)
    )
    if not captions:
        raise ValueError(
            f"{path}: no captions in it; expected CoMER's layout, <split>/caption.txt and img/*.bmp, or HME100K's, "
            "train_labels.txt and train_images/*.jpg."
        )
    for file in captions:
        images, split = _images_of(file)
        names = {member.name for member in members if member.parent == images}
        for key, tokens in _caption_lines(_member(archive, members[file], path), f"{path}/{file}", report):
            if image := _named_image(key, names, images, report):
                content = _member(archive, members[images / image], path)
                if _is_image(io.BytesIO(content), key, report):
                    content = {"path": None, "bytes": content}
                    yield {"id": _without_suffix(key), "text": tokens, "split": split, "image": content}


def _named_image(key: str, names: set[str], folder: PurePath, report: LabelReport) -> str | None:
    """The image that a caption names, with its suffix or without."""
    for name in (key, *(f"{key}{suffix}" for suffix in IMAGE_SUFFIXES)):
        if name in names and PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES:
            return name
    report.rejected.append((key, f"no image of that name in {folder}"))
    return None


def _is_image(source: Path | io.BytesIO, key: str, report: LabelReport) -> bool:
    """Whether the file begins as an image does; a damaged end is found only where the image is decoded."""
    try:
        Image.open(source, formats=("BMP", "PNG", "JPEG")).close()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        report.rejected.append((key, f"its image cannot be read ({type(error).__name__})"))
        return False
    return True


def _without_suffix(key: str) -> str:
    """Names of images may hold dots, so that only what is a suffix goes."""
    suffix = PurePosixPath(key).suffix
    return key.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else key


def table_bytes(file: Path) -> bytes:
    """A file of captions, bounded."""
    if file.stat().st_size > MAX_TABLE_BYTES:
        raise ValueError(f"{file}: larger than {MAX_TABLE_BYTES // 2**20} MB; divide the data into several folders.")
    return file.read_bytes()


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
        for row in table_rows(table):
            report.labels += 1
            name, text = row.get("file_name"), row.get("text")
            if not isinstance(name, str) or not isinstance(text, str):
                raise ValueError(f"{table}: needs the columns file_name and text; it has {names_of(map(str, row))}.")
            image = (root / name).resolve()
            if not image.is_relative_to(root) or not image.is_file():
                report.rejected.append((name, f"no such image beside {table}"))
            elif not (tokens := tokenize(text)):
                report.rejected.append((name, f"no text in {table}"))
            elif _is_image(image, name, report):
                yield {
                    "id": PurePosixPath(name).with_suffix("").as_posix(),
                    "text": " ".join(tokens),
                    "split": split,
                    "image": {"path": str(image), "bytes": None},
                }


def table_rows(table: Path) -> Iterator[dict]:
    """The rows of a `.csv` or `.jsonl` table; ValueError where it is damaged."""
    try:
        text = table_bytes(table).decode("utf-8-sig")
        if table.suffix == ".csv":
            yield from csv.DictReader(io.StringIO(text), strict=True)
        else:
            yield from (dict(json.loads(line)) for line in text.splitlines() if line.strip())
    except (ValueError, TypeError, csv.Error, RecursionError) as error:
        raise ValueError(f"{table}: not readable as {table.suffix[1:]} ({error}).") from None


# -------------------------------------------------------------------------------------------------- helpers


def _in_memory(rows: Iterable[dict], kind: str, total: int | None = None) -> Dataset:
    """Rows of one kind ("strokes" or "image") as a data set, packed by the thousand to keep memory low."""
    import datasets
    import pyarrow
    from datasets.utils import tqdm

    text, whole = datasets.Value("string"), datasets.Value("int64")
    features = {"id": text, "text": text, "split": text}
    if kind == "strokes":
        features["writer"] = features["truth"] = text
        features["strokes"] = datasets.List(datasets.List(datasets.Value("float32")))
        features["symbols"] = datasets.List({"label": text, "strokes": datasets.List(whole)})
    else:
        features["image"] = datasets.Image()
    features = datasets.Features(features)
    tables, chunk = [], []
    for row in tqdm(rows, desc="Reading formulas", unit=" formulas", total=total):
        chunk.append(row)
        if len(chunk) == 1000:
            tables.append(pyarrow.Table.from_pylist(chunk, schema=features.arrow_schema))
            chunk = []
    tables.append(pyarrow.Table.from_pylist(chunk, schema=features.arrow_schema))
    return datasets.Dataset(pyarrow.concat_tables(tables))


def narrow(dataset: Dataset, column: str, wanted: str, path: Path) -> Dataset:
    """The rows with this value in a column; ValueError that names the values there are, where none has it."""
    if column not in dataset.column_names:
        raise ValueError(f"{path}: asked for {column} '{wanted}', but the rows have no column '{column}'.")
    values = dataset[column]
    kept = [index for index, value in enumerate(values) if value == wanted]
    if not kept:
        raise ValueError(f"{path}: no {column} '{wanted}'; there are {names_of(map(str, set(values)))}.")
    return dataset.select(kept)


def files_below(path: Path, suffix: str) -> list[Path]:
    """The file itself or all files below, with this suffix, sorted."""
    if path.is_file():
        return [path] if path.suffix.lower() == suffix else []
    return sorted(file for file in path.rglob("*") if file.suffix.lower() == suffix and file.is_file())


def listing(folder: Path) -> str:
    """The first entries of a folder, for an error message."""
    if not folder.is_dir():
        return "no such folder" if not folder.exists() else f"a file '{folder.suffix}'"
    return names_of(entry.name for entry in folder.iterdir())


def names_of(names: Iterable[str]) -> str:
    """The first names, for an error message."""
    names = sorted(names)
    return (", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")) or "nothing"
