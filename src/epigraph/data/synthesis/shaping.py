"""A line of text as glyph bitmaps with their places, one cell for every character that a reader would count.

```python
from epigraph.data.synthesis.fonts import BUILTIN
from epigraph.data.synthesis.shaping import shape

line = shape(BUILTIN, 0, "epigraph", size=48)
[(cell.text, cell.left, cell.top, cell.bitmap.shape) for cell in line.cells]
```

Most scripts are set glyph by glyph from a cache. Scripts whose letters join, stack or move (Arabic, Devanagari, Thai,
Hebrew with points ...) are shaped as a whole by Pillow's raqm and cut between the characters.
"""

import unicodedata
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import regex
from PIL import Image, ImageDraw, ImageFont

from .fonts import JOINERS, SynthesisError, has_raqm, load_font, open_face

MAX_CHARACTERS = 200
MAX_SIZE = 1024  # pixels per em
MAX_FONTS = 2048  # face, size and stroke, with glyphs in the cache
CACHE_BYTES = 128 * 2**20  # of glyph bitmaps in one process

_SHAPED = regex.compile(
    r"[\p{Arabic}\p{Syriac}\p{Nko}\p{Mongolian}\p{Mandaic}\p{Adlam}\p{Thaana}\p{Devanagari}\p{Bengali}\p{Gurmukhi}"
    r"\p{Gujarati}\p{Oriya}\p{Tamil}\p{Telugu}\p{Kannada}\p{Malayalam}\p{Sinhala}\p{Thai}\p{Lao}\p{Tibetan}"
    r"\p{Myanmar}\p{Khmer}\p{Javanese}\p{Balinese}\u0591-\u05c7]"
)
_JOINING = regex.compile(r"[\p{Arabic}\p{Syriac}\p{Nko}\p{Mongolian}\p{Mandaic}\p{Adlam}]")
_RIGHT_TO_LEFT = regex.compile(r"[\p{Bidi_Class=R}\p{Bidi_Class=AL}]")
_ARABIC_LETTER = regex.compile(r"\p{Bidi_Class=AL}")
_LEFT_TO_RIGHT = regex.compile(r"\p{Bidi_Class=L}")
_CLUSTER = regex.compile(r"\X")
# Numbers keep their own direction inside a line from right to left (Unicode's bidirectional algorithm, W2 to W5): with
# signs and units in Hebrew, without in Arabic.
_HEBREW_NUMBER = regex.compile(r"[%#$°\p{Sc}]*\p{Nd}+(?:[.,:/+-]\p{Nd}+)*[%#$°\p{Sc}]*")
_ARABIC_NUMBER = regex.compile(r"\p{Nd}+(?:[.,:/]\p{Nd}+)*")
_EMOJI = regex.compile(r"[\p{Emoji_Presentation}\p{Emoji_Modifier}\p{Regional_Indicator}\ufe0f\u20e3]")
_COLUMN_GAP = 0.08  # em between the cells of a column
_PAD = 2  # pixels around a glyph's box, which may round its faint outermost ones away


@dataclass(frozen=True, slots=True)
class Cell:
    """One character (grapheme cluster) of a line, in pixels; the line's pen starts at (0, 0) on the baseline, y down.

    Attributes:
        text: the cluster.
        bitmap: uint8 `(height, width)` coverage, read-only.
        left: x of the bitmap's left edge on the line.
        top: y of its top edge; negative above the baseline.
        pen: where the pen stood: x, or y from the top for vertical lines. The least x of the cell where text runs
            from right to left.
        advance: how far the pen moves.
    """

    text: str
    bitmap: np.ndarray
    left: float
    top: float
    pen: float
    advance: float


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text as cells in reading order, in pixels.

    Attributes:
        cells: one for every character; spaces move the pen only.
        width: sum of the advances (for vertical lines: of the steps down).
        sliced: the cells are neighbouring slices of one picture, which side by side give it back.
        rtl: the text runs from right to left, so that the first cell is the rightmost.
        ascent, descent: of the font, both counted positive.
    """

    cells: list[Cell]
    width: float
    sliced: bool
    rtl: bool
    ascent: float
    descent: float


def check_text(text: str) -> str:
    """The text in normal form C without spaces around it.

    Raises:
        SynthesisError: it is empty, has over 200 characters, or holds a control character, a private or unassigned
            one, an emoji, or letters of both directions.
    """
    if not isinstance(text, str):
        raise SynthesisError(f"a text is a string, not {type(text).__name__}.")
    text = text.strip()
    if not text:
        raise SynthesisError("the text is empty; give at least one character that is not a space.")
    if len(text) > MAX_CHARACTERS:
        raise SynthesisError(f"the text {text[:20]!r}... has {len(text)} characters; {MAX_CHARACTERS} are the most.")
    if text.isascii() and text.isprintable():
        return text
    text = unicodedata.normalize("NFC", text)
    for character in text:
        if unicodedata.category(character)[0] == "C" and character not in JOINERS:
            raise SynthesisError(f"the text {text!r} holds {_name(character)}, which nothing can draw; leave it out.")
    if unicodedata.category(text[0])[0] == "M":
        raise SynthesisError(f"the text {text!r} begins with {_name(text[0])}, a mark without a letter; leave it out.")
    if emoji := _EMOJI.search(text):
        raise SynthesisError(f"the text {text!r} holds {_name(emoji[0])}; emoji are not drawn, leave them out.")
    if _RIGHT_TO_LEFT.search(text) and (other := _LEFT_TO_RIGHT.search(text)):
        raise SynthesisError(
            f"the text {text!r} runs from right to left and holds {_name(other[0])}, which does not; draw them apart."
        )
    return text


def shape(face_path: str, index: int, text: str, size: int, stroke: float = 0.0, vertical: bool = False) -> Line:
    """Lay out one line.

    Args:
        face_path, index: as in `Face`.
        text: see `check_text`.
        size: pixels per em, 1..1024. Bitmaps are cached by size, so use few of them.
        stroke: pixels by which outlines grow on every side; advances stay the same.
        vertical: cells upright in one column, centred on x = 0, the first one's line box beginning at y = 0.

    Raises:
        SynthesisError: the text cannot be drawn, with the first reason.
        FontError: the font cannot be opened.
    """
    text = check_text(text)
    font = _glyph_cache(face_path, index, size, stroke)
    if vertical:
        return _column(font, text)
    ascii_only = text.isascii()
    rtl = not ascii_only and bool(_RIGHT_TO_LEFT.search(text))
    if not ascii_only and _SHAPED.search(text) or rtl and any(map(unicodedata.mirrored, text)):
        return _sliced(font, text, rtl)
    if rtl:
        return _turned(font, text)
    cells, pen, glyphs = [], 0.0, font.glyphs
    for cluster in text if ascii_only else _CLUSTER.findall(text):
        glyph = glyphs.get(cluster) or font.draw(cluster)
        bitmap, left, top, advance = glyph
        if bitmap is not None:
            cells.append(Cell(cluster, bitmap, pen + left, top, pen, advance))
        pen += advance
    return Line(cells, pen, False, False, font.ascent, font.descent)


def _name(character: str) -> str:
    return f"{character!r} (U+{ord(character):04X} {unicodedata.name(character, 'no name')})"


class _Glyphs:
    """Glyph bitmaps of one face at one size and stroke: cluster -> (bitmap or None, left, top, advance)."""

    def __init__(self, path: str, index: int, size: int, stroke: float):
        if not 1 <= size <= MAX_SIZE or size != int(size):
            raise SynthesisError(f"a font size of {size} pixels cannot be drawn; give an integer in 1..{MAX_SIZE}.")
        if not 0 <= stroke <= size:
            raise SynthesisError(f"a stroke of {stroke} pixels does not suit size {size}; give 0..{size}.")
        self.face = open_face(path, index)
        self.size = int(size)
        self.stroke = stroke
        self.ascent, self.descent = map(float, self.basic().getmetrics())
        self.glyphs = {}
        self.bytes = 0

    def basic(self) -> ImageFont.FreeTypeFont:
        """The font with Pillow's own layout, enough for single characters. Not kept here: open fonts are many."""
        return load_font(self.face.path, self.face.index, self.size, False)

    def draw(self, cluster: str) -> tuple[np.ndarray | None, float, float, float]:
        """Draw a cluster that is not cached yet, and cache it."""
        if cluster.isspace():
            glyph = (None, 0.0, 0.0, float(self.basic().getlength(" ")))
        else:
            self.check(cluster)
            font = self.basic() if len(cluster) == 1 and cluster in self.face.characters else self.raqm(cluster)
            bitmap, left, top = _trim(*draw_run(font, cluster, self.stroke))
            if not bitmap.size:  # hinting rounds the dash of a very thin face to nothing at some sizes
                bitmap, left, top = self.reduced(cluster)
            if not bitmap.size:
                raise SynthesisError(f"the font {self.face.name} draws nothing for {_name(cluster[0])}.")
            glyph = (bitmap, float(left), float(top), float(font.getlength(cluster)))
            _spend(self, bitmap.nbytes)
        self.glyphs[cluster] = glyph
        return glyph

    def reduced(self, cluster: str) -> tuple[np.ndarray, int, int]:
        """A cluster drawn twice as large, then shrunk."""
        font = load_font(self.face.path, self.face.index, 2 * self.size, len(cluster) > 1)
        bitmap, left, top = draw_run(font, cluster, 2 * self.stroke)
        bitmap = np.pad(bitmap, ((top % 2, 1), (left % 2, 1)))
        image = Image.fromarray(bitmap).reduce(2)
        return _trim(np.asarray(image), left // 2, top // 2)

    def raqm(self, text: str) -> ImageFont.FreeTypeFont:
        """The font with the shaping engine that the text needs."""
        if not has_raqm():
            raise SynthesisError(
                f"{text!r} needs the text shaper raqm, which this Pillow lacks; install Pillow's own wheel from PyPI, "
                "or draw text without combining or joining letters."
            )
        return load_font(self.face.path, self.face.index, self.size, True)

    def check(self, text: str) -> None:
        """Refuse what the face would draw as a box."""
        have = self.face.characters
        for character in text:
            if character in have or character.isspace() or character in JOINERS:
                continue
            parts = unicodedata.normalize("NFD", character)
            if len(parts) == 1 or not have.issuperset(parts):
                raise SynthesisError(f"the font {self.face.name} has no glyph for {_name(character)}.")


_caches: OrderedDict[tuple, _Glyphs] = OrderedDict()
_cached_bytes = 0


def _glyph_cache(path: str, index: int, size: int, stroke: float) -> _Glyphs:
    key = (path, index, size, stroke)
    glyphs = _caches.get(key)
    if glyphs is None:
        glyphs = _caches[key] = _Glyphs(path, index, size, stroke)
        if len(_caches) > MAX_FONTS:
            _spend(glyphs, 0, drop=1)
    else:
        _caches.move_to_end(key)
    return glyphs


def _spend(glyphs: _Glyphs, amount: int, drop: int = 0) -> None:
    """Count bytes of a bitmap; beyond the bound the fonts that were not used for the longest time lose theirs."""
    global _cached_bytes
    glyphs.bytes += amount
    _cached_bytes += amount
    while (_cached_bytes > CACHE_BYTES or drop > 0) and len(_caches) > 1:
        _cached_bytes -= _caches.popitem(last=False)[1].bytes
        drop -= 1
    if _cached_bytes > CACHE_BYTES:
        _cached_bytes -= glyphs.bytes - amount
        glyphs.bytes = amount
        glyphs.glyphs.clear()


def draw_run(font: ImageFont.FreeTypeFont, text: str, stroke: float = 0.0) -> tuple[np.ndarray, int, int]:
    """Pillow's picture of a whole run.

    Returns:
        uint8 `(height, width)` coverage, and x and y of its left and top edge from the pen on the baseline.
    """
    left, top, right, bottom = font.getbbox(text, anchor="ls", stroke_width=stroke)
    left, top = int(left) - _PAD, int(top) - _PAD
    image = Image.new("L", (int(right) + _PAD + 1 - left, int(bottom) + _PAD + 1 - top))
    ImageDraw.Draw(image).text((-left, -top), text, 255, font, anchor="ls", stroke_width=stroke)
    return np.array(image), left, top


# ---- right to left, joined, vertical ----


def _turned(font: _Glyphs, text: str) -> Line:
    """A line from right to left whose letters neither join nor combine."""
    runs, glyphs = [], {}
    for run, forward in _runs(text):
        clusters = _CLUSTER.findall(run)
        glyphs |= {cluster: font.glyphs.get(cluster) or font.draw(cluster) for cluster in clusters}
        runs.append((clusters, np.cumsum([0.0, *(glyphs[cluster][3] for cluster in clusters)]), forward))
    cells = []
    for cluster, pen, advance in _places(runs, True):
        bitmap, left, top, _ = glyphs[cluster]
        if bitmap is not None:
            cells.append(Cell(cluster, bitmap, pen + left, top, pen, advance))
    return Line(cells, float(sum(cuts[-1] for _, cuts, _ in runs)), False, True, font.ascent, font.descent)


def _runs(text: str) -> list[tuple[str, bool]]:
    """The runs of a line from right to left in reading order, and whether each runs from left to right."""
    number = _ARABIC_NUMBER if _ARABIC_LETTER.search(text) else _HEBREW_NUMBER
    runs, end = [], 0
    for match in number.finditer(text):
        runs += [(text[end : match.start()], False), (match[0], True)]
        end = match.end()
    return [run for run in [*runs, (text[end:], False)] if run[0]]


def _places(runs: list[tuple[list[str], np.ndarray, bool]], rtl: bool) -> list[tuple[str, float, float]]:
    """Cluster, least x and width in reading order, from runs of (clusters, ends of the clusters, left to right?)."""
    places = []
    end = float(sum(cuts[-1] for _, cuts, _ in runs)) if rtl else 0.0
    for clusters, cuts, forward in runs:
        start = end - cuts[-1] if rtl else end
        for cluster, a, b in zip(clusters, cuts, cuts[1:]):
            places.append((cluster, float(start + a if forward else end - b), float(b - a)))
        end = start if rtl else end + cuts[-1]
    return places


def _sliced(font: _Glyphs, text: str, rtl: bool) -> Line:
    """Shape the whole line at once and cut the picture between the clusters."""
    cells, width = font.glyphs.get(("line", text)) or (None, 0.0)
    if cells is None:
        cells, width = font.glyphs[("line", text)] = _cut(font, text, rtl)
        _spend(font, sum(cell.bitmap.nbytes for cell in cells))
    return Line(list(cells), width, True, rtl, font.ascent, font.descent)


def _cut(glyphs: _Glyphs, text: str, rtl: bool) -> tuple[list[Cell], float]:
    glyphs.check(text)
    font = glyphs.raqm(text)
    bitmap, left, top = _trim(*draw_run(font, text, glyphs.stroke))
    runs = []
    for run, forward in _runs(text) if rtl else [(text, True)]:
        clusters = _CLUSTER.findall(run)
        runs.append((clusters, _ends(font, clusters, bool(_JOINING.search(run))), forward))
    places = [place for place in _places(runs, rtl) if not place[0].isspace()]
    order = sorted(range(len(places)), key=lambda number: places[number][1])
    # The columns of a space, which overhanging ink may cross, stay with the cell on its left.
    edges = [0, *(round(places[number][1] - left) for number in order[1:]), bitmap.shape[1]]
    cells = [None] * len(places)
    for number, a, b in zip(order, edges, edges[1:]):
        cluster, pen, advance = places[number]
        if a < 0 or b <= a or not bitmap[:, a:b].any():
            raise SynthesisError(f"{cluster!r} in {text!r} has no ink of its own in the font {glyphs.face.name}.")
        cells[number] = Cell(cluster, bitmap[:, a:b], float(left + a), float(top), pen, advance)
    return cells, float(sum(cuts[-1] for _, cuts, _ in runs))


def _ends(font: ImageFont.FreeTypeFont, clusters: list[str], joining: bool) -> np.ndarray:
    """Where each cluster of a run ends, from the run's start: `(clusters + 1,)`, rising.

    A cut is right where the widths of the two parts add up to the whole. Joined letters keep their form at the cut if
    a zero-width joiner stands there; inside a ligature nothing adds up, and the parts share its width.
    """
    total = font.getlength("".join(clusters))
    ends = [0.0]
    for count in range(1, len(clusters)):
        first, second = "".join(clusters[:count]), "".join(clusters[count:])
        parts = [(font.getlength(first), font.getlength(second))]
        if joining:
            parts.append((font.getlength(first + JOINERS[1]), font.getlength(JOINERS[1] + second)))
        a, b = min(parts, key=lambda part: abs(sum(part) - total))
        ends.append(max(ends[-1], total * a / (a + b) if a + b else 0.0))
    return np.array([*ends, total])


def _column(font: _Glyphs, text: str) -> Line:
    """Cells below one another in equal steps."""
    if _JOINING.search(text):
        raise SynthesisError(f"{text!r} is written in joined letters, which cannot stand in a column; draw it level.")
    glyphs = [(cluster, font.glyphs.get(cluster) or font.draw(cluster)) for cluster in _CLUSTER.findall(text)]
    inked = [glyph for _, glyph in glyphs if glyph[0] is not None]
    above = max(-top for _, _, top, _ in inked)
    step = above + max(top + bitmap.shape[0] for bitmap, _, top, _ in inked) + _COLUMN_GAP * font.size
    cells, pen = [], 0.0
    for cluster, (bitmap, _, top, _) in glyphs:
        if bitmap is None:
            pen += step / 2
            continue
        cells.append(Cell(cluster, bitmap, -bitmap.shape[1] / 2, pen + above + top, pen, step))
        pen += step
    return Line(cells, pen, False, False, font.ascent, font.descent)


def _trim(bitmap: np.ndarray, left: int, top: int) -> tuple[np.ndarray, int, int]:
    """Without empty rows and columns at the edges, read-only; `(0, 0)` where nothing was drawn."""
    rows, columns = bitmap.any(axis=1).nonzero()[0], bitmap.any(axis=0).nonzero()[0]
    if not len(rows):
        return bitmap[:0, :0], left, top
    bitmap = bitmap[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
    bitmap.flags.writeable = False
    return bitmap, left + int(columns[0]), top + int(rows[0])
