"""Tables of word images: file names and their texts, in any of the forms in use."""

from collections.abc import Iterator
from pathlib import Path

from .readers import names_of, table_bytes, table_rows

TABLES = ("metadata.csv", "metadata.jsonl", "metadata.tsv", "labels.csv", "labels.jsonl", "labels.tsv", "labels.txt",
          "gt.txt")  # fmt: skip


def lines_of_tables(tables: list[Path], path: Path, split: str | None, source: str | None) -> list[dict]:
    """Lines of tables that lie beside their images.

    Args:
        tables: files, at any depth of `path` or `path` itself.
        path: what was named, for messages, and for `source` and `split` where a table does not say them: the folder
            that it lies in, and the first below `path`.
        split, source: keep these lines only.

    Returns:
        `file_name`, `text`, `id`, `source`, `split`, and `root`, the folder that the file's name starts from.

    Raises:
        ValueError: a table that cannot be read, or a line without a file name or a text, by number; no lines.
    """
    rows = []
    for table in tables:
        root = table.parent.resolve()
        below = table.parent.relative_to(path).parts if path.is_dir() and table.parent != path else ()
        for line in _table_lines(table):
            row = {
                "file_name": line["file_name"],
                "text": line["text"],
                "id": line.get("id") or "/".join((*below, str(line["file_name"]))),
                "source": line.get("source") or (below[-1] if below else root.name),
                "split": line.get("split") or (below[0] if below else None),
                "root": str(root),
            }
            rows.append(row)
    for kind, wanted in (("split", split), ("source", source)):
        if wanted is not None:
            values = {str(row[kind]) for row in rows}
            rows = [row for row in rows if row[kind] == wanted]
            if not rows:
                raise ValueError(f"{path}: no {kind} '{wanted}'; there are {names_of(values)}.")
    if not rows:
        raise ValueError(f"{path}: no lines in {names_of(str(table) for table in tables)}: no words.")
    return rows


def _table_lines(table: Path) -> Iterator[dict]:
    """Lines of a table, each with `file_name` and `text`."""
    if table.suffix in (".csv", ".jsonl"):
        lines = table_rows(table)
    else:
        lines = _tabbed_lines(table)
    for number, line in enumerate(lines, start=1):
        name, text = line.get("file_name"), line.get("text")
        if not isinstance(name, str) or not isinstance(text, str) or not name:
            raise ValueError(
                f"{table}: row {number} lacks a file_name or a text; it has {names_of(str(key) for key in line)}."
            )
        yield line


def _tabbed_lines(table: Path) -> Iterator[dict]:
    """Lines of values between tabs, which stand as they are: quotes are characters of words."""
    try:
        lines = table_bytes(table).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{table}: not UTF-8 text ({error.reason} at byte {error.start}).") from None
    header = lines[0].split("\t") if lines else []
    named = {"file_name", "text"} <= set(header)
    for number, line in enumerate(lines[named:], start=1 + named):
        if not line.strip():
            continue
        values = line.split("\t") if named else line.split("\t" if "\t" in line else " ", 1)
        if len(values) != (len(header) if named else 2):
            needed = f"{len(header)}" if named else "2, file name and text"
            raise ValueError(f"{table}: line {number} has {len(values)} values between tabs; it needs {needed}.")
        yield dict(zip(header if named else ("file_name", "text"), values))


__all__ = ["TABLES", "lines_of_tables"]
