"""Ink files: strokes, truth and segmentation from InkML and JSON, with bounds on everything that comes from outside.

A stroke is a float32 array `(points, 2)`, x to the right and y down, in whatever unit the device used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

MAX_COORDINATE = 1e7  # beyond it float32 no longer resolves one device unit
# Bounds on files: the longest formula of CROHME has 6,600 points and 115 strokes.
MAX_FILE_BYTES = 10 * 2**20
MAX_POINTS = 50_000
MAX_STROKES = 5_000


class InkError(ValueError):
    """Ink that cannot be read or drawn; the message is one sentence that names the input."""


@dataclass
class Ink:
    """One handwritten expression.

    Attributes:
        strokes: one float32 array `(points, 2)` per pen-down movement, x right, y down, in device units.
        label: the truth as the file states it (raw LaTeX), or None.
        name: what to call this ink in messages, usually the file name.
        symbols: `(label, stroke indices)` for every symbol of a hand-made segmentation; empty if there is none.
        notes: what else the file says of the whole ink, by kind: `writer`, `splitTagOriginal` ...
    """

    strokes: list[np.ndarray]
    label: str | None = None
    name: str = "ink"
    symbols: list[tuple[str, list[int]]] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)


def as_strokes(strokes: Iterable, name: str = "ink") -> list[np.ndarray]:
    """Check strokes and bring them to float32 arrays `(points, 2)`.

    Args:
        strokes: per stroke either `(points, 2)` or a flat `[x0, y0, x1, y1, ...]`, as the formula schema stores it.
        name: what to call the ink in an error.

    Raises:
        InkError: no point at all, an odd number of coordinates, or one that is not finite or beyond `MAX_COORDINATE`.
    """
    arrays = []
    for index, stroke in enumerate(strokes):
        try:
            with np.errstate(over="ignore"):  # what overflows becomes infinite and is refused below
                array = np.asarray(stroke, dtype=np.float32)
        except (TypeError, ValueError, OverflowError) as error:
            raise InkError(f"{name}: stroke {index} holds something that is not a number ({error}).") from None
        if array.ndim == 1 and array.size % 2 == 0:
            array = array.reshape(-1, 2)
        if array.ndim != 2 or array.shape[1] != 2:
            raise InkError(f"{name}: stroke {index} is not a list of x, y pairs (its shape is {array.shape}).")
        if len(array):
            arrays.append(array)
    if not arrays:
        raise InkError(f"{name}: there is no stroke in it.")
    # `not (<=)` also catches NaN.
    if not float(np.abs(np.concatenate(arrays)).max()) <= MAX_COORDINATE:
        raise InkError(f"{name}: a coordinate is not finite or larger than {MAX_COORDINATE:.0e}.")
    return arrays


def read_ink(path: str | Path) -> Ink:
    """Read one ink file, InkML (`.inkml`) or JSON strokes (`.json`).

    Raises:
        InkError: another suffix, or as `read_inkml` and `read_json`.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".inkml":
        return read_inkml(path)
    if suffix == ".json":
        return read_json(path)
    raise InkError(f"{path}: ink is read from .inkml and .json files, not from '{suffix or 'a file without suffix'}'.")


def read_json(source: str | Path | bytes, name: str | None = None) -> Ink:
    """Read strokes from JSON.

    Three forms are understood: `[[[x, y], ...], ...]`, flat strokes `[[x0, y0, x1, y1, ...], ...]`, and
    `{"strokes": either, "text": truth}`.

    Args:
        source: a path, or the content as bytes.
        name: what to call the ink in messages; by default the file name.

    Raises:
        InkError: the file is missing, empty, over 10 MB, not such JSON, has no strokes, more than 5,000 strokes or
            50,000 points, or coordinates that are not finite.
    """
    content, name = _content(source, name)
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InkError(f"{name}: not valid JSON ({error}).") from None
    text = None
    if isinstance(data, dict):
        text, data = data.get("text"), data.get("strokes")
    if not isinstance(data, list) or not all(isinstance(stroke, list) for stroke in data):
        raise InkError(f"{name}: expected a list of strokes, or an object with 'strokes' (and 'text').")
    if text is not None and not isinstance(text, str):
        raise InkError(f"{name}: 'text' is not a string.")
    strokes = as_strokes(data, name)
    _check_bounds(len(data), sum(len(stroke) for stroke in strokes), name)
    return Ink(strokes, label=text, name=name)


def read_inkml(source: str | Path | bytes, name: str | None = None) -> Ink:
    """Read strokes, truth and segmentation from InkML as CROHME, MathWriting and office programs write it.

    Namespaces and prefixes do not matter, nor whether traces stand in groups, nor what brushes and channels there are
    beside X and Y, which are taken to have the same unit. Of the InkML specification (W3C Recommendation, 2011) what
    bears on the drawing is kept to: the order and orientation of the channels, by trace format and context (sections
    3.1 and 4.2), difference-coded points (`'` and `"`, section 3.2.1), traces that continue others or that the pen
    made above the paper (3.2.1). Entities are never expanded.

    Args:
        source: a path, or the content as bytes.
        name: what to call the ink in messages; by default the file name.

    Raises:
        InkError: the file is missing, empty, over 10 MB, malformed, declares entities, has no strokes, more than
            5,000 strokes or 50,000 points, or coordinates that are not finite numbers.
    """
    content, name = _content(source, name)
    try:
        root = fromstring(content)
    except DefusedXmlException:
        raise InkError(f"{name}: the InkML declares entities, which are refused; remove its DOCTYPE.") from None
    # ValueError and LookupError: an encoding that is not what the declaration says, or is unknown.
    except (ParseError, ValueError, LookupError) as error:
        raise InkError(f"{name}: not well-formed XML ({error}).") from None
    if _tag(root) != "ink":
        raise InkError(f"{name}: not InkML, its root element is <{_tag(root)}>.")

    traces = [element for element in root.iter() if _tag(element) == "trace"]
    _check_bounds(len(traces), sum((trace.text or "").count(",") + 1 for trace in traces), name)
    formats = _Formats(root)
    strokes, index_of = [], {}
    for texts, parts in _whole_traces(traces):
        first = _identity(parts[0])
        points = _trace_points(",".join(texts), formats.of(parts[0]), f"{name}: trace {first or len(strokes)}")
        if points:
            index_of |= {_identity(part) or str(len(strokes)): len(strokes) for part in parts}
            strokes.append(points)
    return Ink(as_strokes(strokes, name), _truth(root), name, _segmentation(root, index_of), _notes(root))


def _whole_traces(traces: list[Element]) -> Iterator[tuple[list[str], list[Element]]]:
    """Texts and elements of every stroke: traces that continue others belong to these, pen-up traces to none."""
    strokes, stroke_of = [], {}
    for trace in traces:
        if trace.get("type") == "penUp":
            continue
        before = stroke_of.get((trace.get("priorRef") or "").lstrip("#"))
        if before is None or trace.get("continuation") not in ("middle", "end"):
            strokes.append(before := ([], []))
        before[0].append(trace.text or "")
        before[1].append(trace)
        if identity := _identity(trace):
            stroke_of[identity] = before
    return iter(strokes)


@dataclass(frozen=True)
class _Format:
    """Which columns of a point are x and y, and the factors, 1 or -1, that make them point right and down."""

    columns: tuple[int, int] = (0, 1)
    signs: tuple[int, int] = (1, 1)


class _Formats:
    """The format of each trace: by its context or that of a group around it, else the first that the file states."""

    def __init__(self, root: Element):
        elements = list(root.iter())
        self.by_id = {_identity(element): element for element in elements if _identity(element)}
        self.first = next((_format(element) for element in elements if _tag(element) == "traceFormat"), _Format())
        self.contexts, self.known = {}, {}
        for element in elements:  # from the outside in
            for child in element:
                self.contexts[child] = child.get("contextRef") or self.contexts.get(element)

    def of(self, trace: Element) -> _Format:
        context = self.contexts[trace]
        if context not in self.known:
            self.known[context] = self._referred(context) or self.first
        return self.known[context]

    def _referred(self, reference: str | None, depth: int = 0) -> _Format | None:
        """That of a context, an ink source or a format; references that go in circles end."""
        element = self.by_id.get((reference or "").lstrip("#"))
        if element is None or depth > 8:
            return None
        inside = [element, *element]
        inside += [inner for child in element if _tag(child) == "inkSource" for inner in child]
        for candidate in inside:
            if _tag(candidate) == "traceFormat":
                return _format(candidate)
        references = (element.get(kind) for kind in ("traceFormatRef", "inkSourceRef", "contextRef"))
        return next(filter(None, (self._referred(other, depth + 1) for other in references)), None)


def _format(element: Element) -> _Format:
    """What a traceFormat states; without both X and Y, the specification's default: X, Y."""
    channels = {}
    for channel in element.iter():
        if _tag(channel) == "channel":
            channels.setdefault(channel.get("name"), (len(channels), channel.get("orientation")))
    if not {"X", "Y"} <= set(channels):
        return _Format()
    (x, across), (y, down) = channels["X"], channels["Y"]
    return _Format((x, y), (-1 if across == "-ve" else 1, -1 if down == "-ve" else 1))


def _content(source: str | Path | bytes, name: str | None) -> tuple[bytes, str]:
    """The bytes of a file, bounded, and what to call it."""
    if isinstance(source, bytes):
        content, name = source, name or "ink"
    else:
        name = name or Path(source).name
        try:
            with open(source, "rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise InkError(f"{source}: cannot be read ({error.strerror}).") from None
    if not content.strip():
        raise InkError(f"{name}: the file is empty.")
    if len(content) > MAX_FILE_BYTES:
        raise InkError(f"{name}: larger than {MAX_FILE_BYTES // 2**20} MB, which no formula is.")
    return content, name


def _check_bounds(strokes: int, points: int, name: str) -> None:
    if strokes > MAX_STROKES:
        raise InkError(f"{name}: {strokes:,} strokes are more than the {MAX_STROKES:,} that are read.")
    if points > MAX_POINTS:
        raise InkError(f"{name}: {points:,} points are more than the {MAX_POINTS:,} that are read; thin the ink out.")


def _tag(element: Element) -> str:
    """Element name without its namespace (comments have none)."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _identity(element: Element) -> str | None:
    return element.get("id") or element.get("{http://www.w3.org/XML/1998/namespace}id")


def _notes(element: Element) -> dict[str, str]:
    """The annotations of an element by their type."""
    return {child.get("type", ""): (child.text or "").strip() for child in element if _tag(child) == "annotation"}


def _truth(element: Element) -> str | None:
    """The annotation of an element that holds its truth: `truth` in CROHME, `normalizedLabel` in MathWriting."""
    notes = _notes(element)
    return notes.get("truth") or notes.get("normalizedLabel") or notes.get("label") or None


def _segmentation(root: Element, index_of: dict[str, int]) -> list[tuple[str, list[int]]]:
    """Label and stroke indices of every trace group that views traces directly, however deep it is nested."""
    symbols = []
    for group in (element for element in root.iter() if _tag(element) == "traceGroup"):
        names = [(child.get("traceDataRef") or "").lstrip("#") for child in group if _tag(child) == "traceView"]
        names += [_identity(child) for child in group if _tag(child) == "trace"]
        indices = list(dict.fromkeys(index_of[name] for name in names if name in index_of))
        label = _truth(group)
        if label and indices:
            symbols.append((label, indices))
    return symbols


_VALUE = re.compile(
    r"""([!'"]?)([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?\#[0-9a-fA-F]{1,12}|[TF*?])""", re.ASCII
)


_PLAIN = re.compile(r"[-+.0-9eE,\s]*", re.ASCII)


def _plain_points(text: str, layout: _Format) -> list[tuple[float, float]] | None:
    """What `_trace_points` gives, several times as fast, for traces of numbers alone, as most are; None for others."""
    (x, y), (across, down) = layout.columns, layout.signs
    if not _PLAIN.fullmatch(text):
        return None
    try:
        points = [values for values in map(str.split, text.split(",")) if values]
        return [(across * float(values[x]), down * float(values[y])) for values in points]
    except (ValueError, IndexError):
        return None


def _trace_points(text: str, layout: _Format, place: str) -> list[tuple[float, float]]:
    """Points of one trace: values separated by space, points by comma; the other columns are skipped."""
    if (points := _plain_points(text, layout)) is not None:
        return points
    points = []
    order = {"!": 0, "'": 1, '"': 2}
    orders = [0, 0]  # per axis: whether the file gives the value, its difference, or the difference of that
    values, speeds = [0.0, 0.0], [0.0, 0.0]
    for point in text.split(","):
        if not (point := point.strip()):
            continue
        found = _VALUE.findall(point)
        marked = [found[column] for column in layout.columns if column < len(found)]
        missing = {"T", "F", "?"} if points else {"T", "F", "?", "*"}
        if len(marked) < 2 or missing & {number for _, number in marked} or _VALUE.sub("", point).strip():
            raise InkError(f"{place} holds '{point[:40]}' where x and y were expected.")
        for axis, (mark, number) in enumerate(marked):
            orders[axis] = order[mark] if mark else orders[axis]
            if number == "*":  # as before
                speeds[axis] = 0.0
            elif orders[axis] == 0:
                speeds[axis], values[axis] = _number(number) - values[axis], _number(number)
            else:
                speeds[axis] = _number(number) + (speeds[axis] if orders[axis] == 2 else 0.0)
                values[axis] += speeds[axis]
        points.append((layout.signs[0] * values[0], layout.signs[1] * values[1]))
    return points


def _number(text: str) -> float:
    """A decimal, or a hexadecimal after "#"."""
    return float(int(text.replace("#", ""), 16)) if "#" in text else float(text)
