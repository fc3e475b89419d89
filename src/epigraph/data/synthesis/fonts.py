"""Fonts for synthesis: those of the system or of given folders, with the characters that each of them can draw.

```python
from epigraph.data.synthesis.fonts import find_fonts

faces = find_fonts()                                          # everything installed that has A-Z, a-z and 0-9
faces = find_fonts(["my_fonts"], characters="абвгд")          # a folder of your own, Cyrillic
```

What a face can draw is read from its cmap once and kept in the user's cache folder (`$XDG_CACHE_HOME/epigraph`).
"""

import hashlib
import io
import json
import logging
import os
import string
import struct
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont, features
from PIL import __version__ as PIL_VERSION
from tqdm.auto import tqdm

logger = logging.getLogger(__name__)
logging.getLogger("fontTools").setLevel(logging.ERROR)  # it warns of odd dates in the fonts that Debian ships

BUILTIN = "built-in"  # as a path: Pillow's own font, Aileron, which is always there
SUFFIXES = (".otf", ".ttf", ".ttc", ".otc", ".woff", ".woff2")
LATIN = string.ascii_letters + string.digits
MAX_FILE_BYTES = 64 * 2**20  # the largest face of Noto CJK has 20 MB
MAX_FACES = 64  # of one collection
JOINERS = "\u200c\u200d"  # invisible, and part of the spelling of Persian and of Indian languages
_CACHE_VERSION = 3
_UNREADABLE = "unreadable"
_NO_BROTLI = "in woff2, which needs `pip install brotli`"
_PROBES = 64  # letters of a face that are drawn to see whether it draws anything


class SynthesisError(ValueError):
    """One sample cannot be made as asked; the message is one sentence that names the cause."""


class FontError(ValueError):
    """No font was found, or one cannot be read; the message is one sentence that names it."""


@dataclass(frozen=True)
class Face:
    """One face of a font file.

    Attributes:
        path: of the file, or `BUILTIN`.
        index: of the face in a collection, else 0; the named instances of a variable font (Light, Bold ...) follow in
            steps of 65,536, as FreeType counts them.
        name: family and style, as the file states them.
        characters: what it draws; no character of it comes out empty or as the box for missing ones.
        italic: the file calls it slanted, so that boxes of neighbouring glyphs may overlap.
        digest: first 16 hexadecimal digits of the file's SHA-256.
    """

    path: str
    index: int
    name: str
    characters: frozenset[str]
    italic: bool
    digest: str


def find_fonts(
    folders: str | Path | Sequence[str | Path] = (), characters: Iterable[str] = LATIN, names: str | Sequence[str] = ()
) -> list[Face]:
    """The faces that have all `characters`, sorted by name and digest: the same fonts give the same list anywhere.

    Unreadable files, fonts of symbols, key caps or bitmaps, and faces whose letters come out empty are counted in one
    log line.

    Args:
        folders: one or more, searched with their subfolders for otf, ttf, ttc, woff and woff2; font files and
            `BUILTIN` are taken too. Without any: the folders of the system and of the user.
        characters: every one of them must be drawn.
        names: if given, only faces whose name contains one of these, in any case.

    Raises:
        FontError: a folder does not exist, or no face is left.
    """
    folders = [folders] if isinstance(folders, (str, Path)) else folders
    names = [names] if isinstance(names, str) else names
    files = sorted({file for folder in folders or system_folders() for file in _files(folder, bool(folders))})
    wanted = frozenset(characters)
    faces, left_out = {}, Counter()
    for file, (digest, found) in zip(files, _scan_all(files)):
        if isinstance(found, str):
            left_out[found] += 1
            continue
        for face in _faces(file, digest, found):
            if not wanted <= face.characters:
                left_out["lacking characters"] += 1
            elif names and not any(name.lower() in face.name.lower() for name in names):
                left_out["of another name"] += 1
            else:
                faces.setdefault((face.name, face.digest, face.index), face)
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
    logger.info("%d faces found in %d font files; left out: %s", len(faces), len(files), counts or "none")
    if not faces:
        raise FontError(_nothing_found(folders, characters, names, len(files), counts))
    return [faces[key] for key in sorted(faces)]


@lru_cache(maxsize=4096)
def open_face(path: str | Path, index: int = 0) -> Face:
    """The face of one font file, or of Pillow's own font where `path` is `BUILTIN`.

    Raises:
        FontError: the file cannot be read, draws no letters, or has no face `index`.
    """
    ((digest, found),) = _scan_all([str(path)])
    if isinstance(found, str):
        raise FontError(f"the font {path} cannot be used: it is {found}.")
    faces = [face for face in _faces(str(path), digest, found) if face.index == index]
    if not faces:
        raise FontError(f"the font {path} has no usable face {index}, only {[face['index'] for face in found]}.")
    return faces[0]


@lru_cache(maxsize=512)
def load_font(path: str, index: int, size: int, raqm: bool) -> ImageFont.FreeTypeFont:
    """Pillow's font at `size` pixels per em, shaped by raqm or by Pillow's basic layout, which is faster.

    Raises:
        FontError: the file is missing, too large or no font.
    """
    engine = ImageFont.Layout.RAQM if raqm else ImageFont.Layout.BASIC
    if path == BUILTIN:
        return ImageFont.load_default(size).font_variant(layout_engine=engine)
    try:
        if os.path.getsize(path) > MAX_FILE_BYTES:
            raise FontError(f"the font {path} has more than {MAX_FILE_BYTES >> 20} MB; give another one.")
        return ImageFont.truetype(path, size, index, layout_engine=engine)
    except OSError as error:
        raise FontError(f"the font {path} cannot be opened ({error}); give another one.") from None


def has_raqm() -> bool:
    """Whether Pillow can shape scripts that join, combine or run from right to left."""
    return features.check("raqm")


def system_folders() -> list[Path]:
    """The folders where Linux, macOS and Windows keep fonts, as far as they exist."""
    home = Path.home()
    if sys.platform == "darwin":
        folders = [home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts")]
    elif sys.platform == "win32":
        local = Path(os.environ.get("LOCALAPPDATA", home / "AppData/Local"))
        folders = [Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts", local / "Microsoft/Windows/Fonts"]
    else:
        shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
        data = os.environ.get("XDG_DATA_HOME") or home / ".local/share"
        folders = [home / ".fonts", *(Path(folder) / "fonts" for folder in (data, *shared.split(":")))]
    return [folder for folder in folders if folder.is_dir()]


def _files(folder: str | Path, given: bool) -> Iterator[str]:
    if str(folder) == BUILTIN or os.path.isfile(folder):
        yield str(folder)
        return
    if given and not os.path.isdir(folder):
        raise FontError(f"the font folder {folder} does not exist; give a folder or a font file.")
    for root, _, names in os.walk(folder):
        kept = {name for name in names if name.lower().endswith(SUFFIXES)}
        # npm's packages hold every font in both formats, of which woff is read without further packages.
        yield from (os.path.join(root, name) for name in kept if not (name[-1] == "2" and name[:-1] in kept))


def _nothing_found(folders, characters: str, names, files: int, counts: str) -> str:
    where = ", ".join(str(folder) for folder in folders) or "the system's font folders"
    wish = f" whose name has {' or '.join(names)}" if names else ""
    shown = "".join(characters)
    shown = shown if len(shown) <= 70 else f"{shown[:70]}..."
    return (
        f"no font{wish} with all of {shown!r} was found in {where} ({files} font files; left out: "
        f"{counts or 'none'}); "
        "install some, on Debian and Ubuntu `apt install fonts-dejavu-core fonts-liberation2 fonts-lato` "
        f"(docs/fonts.md lists more), or give a folder with fonts; in its place {BUILTIN} stands for Pillow's own."
    )


def _faces(path: str, digest: str, found: list[dict]) -> Iterator[Face]:
    for face in found:
        yield Face(path, face["index"], face["name"], _expand(tuple(face["ranges"])), face["italic"], digest)


# ---- reading what a file can draw ----


def _scan(path: str) -> tuple[str, list[dict] | str]:
    """Digest of the file and its faces as JSON values, or why it is of no use."""
    try:
        if path != BUILTIN and os.path.getsize(path) > MAX_FILE_BYTES:
            return "", "too large"
        content = ImageFont.load_default(16).path.getvalue() if path == BUILTIN else Path(path).read_bytes()
    except OSError:
        return "", _UNREADABLE
    digest = hashlib.sha256(content).hexdigest()[:16]
    # Whatever a damaged file makes fontTools or FreeType raise (struct.error, AssertionError, KeyError ...), it is
    # one bad file among many.
    try:
        if content[:4] in (b"wOFF", b"wOF2") and struct.unpack(">L", content[16:20])[0] > MAX_FILE_BYTES:
            return digest, "too large"
        count = min(struct.unpack(">L", content[8:12])[0], MAX_FACES) if content[:4] == b"ttcf" else 1
        results = [face for index in range(count) for face in _scan_face(path, content, index)]
    except Exception as error:
        logger.debug("the font %s is unreadable: %s", path, error)
        return digest, _UNREADABLE
    faces = [result for result in results if isinstance(result, dict)]
    return digest, faces or results[0]


def _scan_face(path: str, content: bytes, index: int) -> list[dict | str]:
    """The face and the named instances (weights ...) that it has besides if it is variable, or why it is of no use."""
    # FreeType goes first: of web fonts it unpacks no more than their header states, which was checked.
    font = load_font.__wrapped__(path, index, 24, False)
    if content[:4] == b"wOF2" and not (find_spec("brotli") or find_spec("brotlicffi")):
        return [_NO_BROTLI]
    covered = _read_cmap(content, index)
    if isinstance(covered, str):
        return [covered]
    points, slanted, instances = covered
    letters = [point for point in sorted(points) if chr(point).isalnum()][:_PROBES]
    drawn = _drawn(font, letters)
    characters = points - set(letters) | {point for point, _ in drawn}
    if not letters:
        return ["of symbols only"]
    if {ord("C"), ord("L"), ord("T")} <= points and all(_is_framed(font, letter) for letter in "CLT"):
        return ["of key caps or framed letters"]
    probes = [shape for _, shape in drawn]
    if 3 * len(set(probes)) < len(probes) or len(probes) < 2:  # one sign for all letters is no writing
        return ["without letters of their own"]
    ranges = _compress(characters)
    faces = {}
    for number in (index + (instance << 16) for instance in range(min(instances, MAX_FACES) + 1)):
        family, style = (part or "" for part in load_font.__wrapped__(path, number, 24, False).getname())
        italic = slanted or "italic" in style.lower() or "oblique" in style.lower()
        name = f"{family} {style}".strip()
        faces.setdefault(name, {"index": number, "name": name, "italic": italic, "ranges": ranges})
    return list(faces.values())


def _read_cmap(content: bytes, index: int) -> tuple[set[int], bool, int] | str:
    """Code points with a glyph that is neither .notdef nor empty, whether the face is slanted, named instances."""
    with TTFont(io.BytesIO(content), lazy=True, fontNumber=index) as font:
        if not any(tag in font for tag in ("glyf", "CFF ", "CFF2")):
            return "of bitmaps only"
        cmap = font.getBestCmap()  # None where the only table maps a private symbol encoding
        pictorial = "OS/2" in font and font["OS/2"].panose.bFamilyType == 5
        if not cmap or pictorial:
            return "of symbols only"
        notdef = font.getGlyphOrder()[0]
        has_ink = _ink_test(font)
        points = set()
        for point, glyph in cmap.items():
            if glyph == notdef or not _may_draw(point):
                continue
            if has_ink(font.getGlyphID(glyph)) or chr(point) in JOINERS:
                points.add(point)
        slanted = "post" in font and bool(font["post"].italicAngle) or bool(font["head"].macStyle & 2)
        instances = len(font["fvar"].instances) if "fvar" in font else 0
    return points, slanted, instances


def _ink_test(font: TTFont) -> Callable[[int], bool]:
    """Whether the glyph of a number has an outline, as far as the file tells without drawing it."""
    if "loca" in font:
        ends = list(font["loca"])
        return lambda number: ends[number + 1] > ends[number]
    if "CFF " not in font:
        return lambda number: True
    programs = font["CFF "].cff[0].CharStrings.charStringsIndex
    # Nothing but an end, or a width before it: too short to draw and without a call (10, 29) of something that does.
    return lambda number: len(program := programs[number].bytecode) > 4 or 10 in program or 29 in program


def _is_framed(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Whether a line around an open letter, as of a key, shuts most of its box in."""
    mask, _ = font.getmask2(letter, "L", anchor="ls")
    width, height = mask.size
    picture = Image.new("L", (width + 2, height + 2))
    picture.paste(Image.frombytes("L", mask.size, bytes(mask)).point(lambda level: 255 * (level > 64)), (1, 1))
    ImageDraw.floodfill(picture, (0, 0), 128)
    return picture.histogram()[0] > 0.4 * width * height


def _may_draw(point: int) -> bool:
    """Not a space, a control, a surrogate, a private or an unassigned code point; joiners are let through."""
    character = chr(point)
    return unicodedata.category(character)[0] not in "CZ" or character in JOINERS


def _drawn(font: ImageFont.FreeTypeFont, points: Iterable[int]) -> list[tuple[int, bytes]]:
    """The code points that come out as something else than nothing or the box for missing glyphs, with their shape."""
    missing = _shape_of(font, "\uffff")
    shapes = ((point, _shape_of(font, chr(point))) for point in points)
    return [(point, shape) for point, shape in shapes if any(shape) and shape != missing]


def _shape_of(font: ImageFont.FreeTypeFont, character: str) -> bytes:
    return bytes(font.getmask(character))


def _compress(points: set[int]) -> list[int]:
    """Code points as first, last, first, last ... of their runs."""
    ordered = sorted(points)
    ranges = []
    for before, point in zip([-2, *ordered], ordered):
        if point != before + 1:
            ranges += [point, point]
        ranges[-1] = point
    return ranges


@lru_cache(maxsize=1024)
def _expand(ranges: tuple[int, ...]) -> frozenset[str]:
    # Cached because the styles of a family share their coverage.
    return frozenset(chr(point) for a, b in zip(ranges[::2], ranges[1::2]) for point in range(a, b + 1))


# ---- what was read once is kept on disk ----


def _scan_all(files: Sequence[str]) -> list[tuple[str, list[dict] | str]]:
    """Digest and faces, or the reason why there are none, of every file; from the cache where the file is the same."""
    cache, results, new = _read_cache(_cache_file()), [], False
    stamps = [_stamp(file) for file in files]
    unknown = sum(stamp is None or cache.get(file, [None])[0] != stamp for file, stamp in zip(files, stamps))
    with tqdm(total=unknown, desc="Reading fonts", disable=None if unknown > 50 else True) as bar:
        for file, stamp in zip(files, stamps):
            entry = cache.get(file)
            if entry is None or entry[0] != stamp:
                entry = [stamp, *_scan(file)]
                bar.update()
                if stamp is not None and entry[2] not in (_UNREADABLE, _NO_BROTLI):  # either may be mended outside
                    cache[file] = entry
                    new = True
            results.append((entry[1], entry[2]))
    if new:
        _write_cache(_cache_file(), cache)
    return results


def _stamp(file: str) -> list[int] | None:
    """Time of change and size; Pillow's font has Pillow's version, a missing file nothing."""
    if file == BUILTIN:
        return [PIL_VERSION]
    try:
        stat = os.stat(file)
    except OSError:
        return None
    return [stat.st_mtime_ns, stat.st_size]


def _cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "epigraph" / "fonts.json"


@lru_cache(maxsize=1)
def _read_cache(file: Path) -> dict[str, list]:
    """Path -> [stamp, digest, faces or reason]; what is damaged or of another version counts as not there."""
    try:
        stored = json.loads(file.read_bytes())
        if stored["version"] != _CACHE_VERSION:
            return {}
        return {path: entry for path, entry in stored["files"].items() if _is_entry(entry)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _is_entry(entry) -> bool:
    """Whether a stored entry has the form that `_scan_all` wrote."""
    stamp, digest, found = entry
    if isinstance(found, str):
        return isinstance(stamp, list) and isinstance(digest, str)
    forms = [("index", int), ("name", str), ("italic", bool), ("ranges", list)]
    return bool(found) and all(
        all(isinstance(face[key], form) for key, form in forms)
        and len(face["ranges"]) % 2 == 0
        and all(isinstance(point, int) and 0 <= point < 0x110000 for point in face["ranges"])
        for face in found
    )


def _write_cache(file: Path, cache: dict[str, list]) -> None:
    """Several processes may do so at once: each writes a file of its own and moves it into place."""
    kept = {path: entry for path, entry in cache.items() if path == BUILTIN or os.path.exists(path)}
    temporary = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".tmp", delete=False) as stream:
            temporary = stream.name
            json.dump({"version": _CACHE_VERSION, "files": kept}, stream, separators=(",", ":"))
        os.replace(temporary, file)
    except OSError as error:  # a read-only home costs the two seconds of reading again, nothing else
        logger.debug("the font cache %s cannot be written: %s", file, error)
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
