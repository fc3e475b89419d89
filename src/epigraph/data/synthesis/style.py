"""The style of a text image as one record: everything about the picture but the words.

```python
style = sample_style(np.random.default_rng(0), find_fonts(), size=(32, 128))
Style.from_json(json.loads(json.dumps(style.to_json()))) == style
```

Lengths are shares: of the canvas's height where no other unit is said, of the cap height for border, shadow and
extrusion, of the em for spacing and stroke. Colours are RGB, 0..255.
"""

import copy
import dataclasses
import hashlib
import math
import operator
import os
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .backgrounds import TEXTURES, Background
from .fonts import BUILTIN, FontError, SynthesisError, find_fonts

Color = tuple[int, int, int]
Paths = str | os.PathLike | Sequence[str | os.PathLike]
MAX_SIDE = 4096
BLENDS = ("normal", "multiply", "screen", "hard light", "darken", "lighten")


@dataclass(frozen=True)
class Font:
    """A face by its file: `path` and `index` open it; `digest` and `name` tell which one it was."""

    path: str
    index: int
    digest: str
    name: str


@dataclass(frozen=True)
class Fill:
    """What the letters are filled with.

    Attributes:
        kind: `"color"` (the first of the colours), `"gradient"` (from the first to the second across the canvas) or
            `"texture"` (the light and dark of `texture` between the two colours).
        colors: two colours.
        angle: direction of the gradient in degrees, 0 from left to right, 90 from top to bottom.
        texture: what gives the pattern of a texture.
    """

    kind: str
    colors: tuple[Color, Color]
    angle: float = 0.0
    texture: Background | None = None


@dataclass(frozen=True)
class Border:
    """An outline around the letters, `width` cap heights wide."""

    width: float
    color: Color


@dataclass(frozen=True)
class Shadow:
    """A shadow moved by (`dx`, `dy`) cap heights, blurred with a standard deviation of `blur` cap heights."""

    dx: float
    dy: float
    blur: float
    color: Color
    opacity: float


@dataclass(frozen=True)
class Extrusion:
    """Letters that stick out of the wall: swept along (`dx`, `dy`) cap heights behind their face."""

    dx: float
    dy: float
    color: Color


@dataclass(frozen=True)
class Baseline:
    """The line on which letters stand.

    Attributes:
        kind: `"straight"`, `"arc"`, `"wave"` or `"vertical"` (upright letters in one column).
        amplitude: rise of an arc over the whole canvas (positive: its middle is up), or of a wave.
        wavelength: of a wave, in canvas widths.
        phase: of a wave, in radians.
    """

    kind: str = "straight"
    amplitude: float = 0.0
    wavelength: float = 1.0
    phase: float = 0.0


@dataclass(frozen=True)
class Elastic:
    """A smooth field that shifts the corners of every letter.

    Attributes:
        amplitude: greatest shift in each direction.
        wavelength: how far one swing reaches.
        phases: of the four swings: x along x, x along y, y along x, y along y; radians.
    """

    amplitude: float
    wavelength: float
    phases: tuple[float, float, float, float]


@dataclass(frozen=True)
class Degradation:
    """What a camera and a file format do to the finished picture, in this order; 0 is off.

    Attributes:
        blur: standard deviation of a Gaussian in pixels.
        motion: length of a motion blur in pixels.
        motion_angle: its direction in degrees.
        resample: the picture is shrunk by this factor (0..1) and enlarged again.
        noise: standard deviation of the noise, in grey levels.
        jpeg: quality 1..100.
    """

    blur: float = 0.0
    motion: float = 0.0
    motion_angle: float = 0.0
    resample: float = 0.0
    noise: float = 0.0
    jpeg: int = 0


@dataclass(frozen=True)
class Style:
    """Everything about a text image but its words; `render(style, words)` is a pure function of it.

    Attributes:
        size: height and width of the canvas in pixels.
        font: the face.
        font_size: cap height of the letters.
        baseline_y: where the baseline's middle is, from the top (for vertical text unused).
        align: where the word lies in the width that it leaves free, 0 left to 1 right (vertical: top to bottom).
        margin: kept free on all sides.
        spacing: ems added between letters. From 0 on, the boxes of neighbouring letters are kept apart; below, letters
            stand as the font says and may overlap.
        max_stretch: a word narrower than the canvas is widened up to this factor to fill it, as word crops that were
            resized to one shape are.
        stroke: ems by which outlines grow.
        fill, border, shadow, extrusion: how letters look.
        baseline, elastic: how they bend.
        corners: where the corners of the canvas land, as shares of width and height: top left, top right, bottom
            right, bottom left; None for no perspective.
        blend: one of `BLENDS`: how the fill meets the background.
        opacity: of the fill, 0..1.
        background: what lies behind.
        degradation: applied to the images and to the erased background alike.
        seed: of the noise.
    """

    size: tuple[int, int]
    font: Font
    font_size: float
    baseline_y: float
    background: Background
    fill: Fill
    align: float = 0.5
    margin: float = 0.04
    spacing: float = 0.0
    max_stretch: float = 1.0
    stroke: float = 0.0
    border: Border | None = None
    shadow: Shadow | None = None
    extrusion: Extrusion | None = None
    baseline: Baseline = Baseline()
    elastic: Elastic | None = None
    corners: tuple[tuple[float, float], ...] | None = None
    blend: str = "normal"
    opacity: float = 1.0
    degradation: Degradation = Degradation()
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "size", check_size(self.size))
        if self.blend not in BLENDS:
            raise SynthesisError(f"{self.blend!r} is no blend mode; choose one of {', '.join(BLENDS)}.")
        if self.baseline.kind not in ("straight", "arc", "wave", "vertical"):
            raise SynthesisError(f"{self.baseline.kind!r} is no baseline; choose straight, arc, wave or vertical.")
        if self.fill.kind not in ("color", "gradient", "texture"):
            raise SynthesisError(f"{self.fill.kind!r} is no fill; choose color, gradient or texture.")
        if (self.fill.kind == "texture") != (self.fill.texture is not None):
            raise SynthesisError(
                f"a fill of kind {self.fill.kind!r} has a texture if and only if the kind is 'texture'."
            )
        if not 0 < self.font_size <= 1 or not 0 < self.max_stretch or not 0 < self.opacity <= 1:
            raise SynthesisError(
                f"a font size of {self.font_size}, a stretch of {self.max_stretch} and an opacity of {self.opacity} "
                "cannot be drawn; font size and opacity are in 0..1, the stretch is over 0."
            )
        if self.corners is not None and len(self.corners) != 4:
            raise SynthesisError(f"corners has {len(self.corners)} points; a canvas has 4.")

    def to_json(self) -> dict:
        """The record as plain dicts, lists, strings and numbers.

        It names no folder of this machine: fonts and pictures stand there as their digest and file name.
        """
        values = dataclasses.asdict(self)
        values["font"]["path"] = self.font.path if self.font.path == BUILTIN else os.path.basename(self.font.path)
        for part in _pictures(values):
            part["path"] = f"{file_digest(part['path'])} {os.path.basename(part['path'])}"
        return values

    @classmethod
    def from_json(cls, values: dict, fonts: Paths = (), backgrounds: Paths = ()) -> "Style":
        """The record that `to_json` wrote, exactly, with the font and the pictures where they are on this machine.

        Args:
            values: what `to_json` gave.
            fonts: files and folders in which the font is looked for, by its digest; by default those of the system.
            backgrounds: the same for pictures of a `BackgroundPool`; there is no default.

        Raises:
            SynthesisError: a field is missing, unknown or of the wrong kind, or a file is not there; it is named.
        """
        style = _build(cls, values, "style")
        if style.font.path == BUILTIN:
            path = BUILTIN
        else:
            path = _fonts_by_digest(_as_tuple(fonts)).get(style.font.digest)
        if path is None:
            where = ", ".join(_as_tuple(fonts)) or "the system's font folders"
            raise SynthesisError(
                f"the font {style.font.name} ({style.font.path}, digest {style.font.digest}) is not in {where}; "
                "install this very version of it, or name its folder with fonts=[...]."
            )
        values = copy.deepcopy(values)
        values["font"]["path"] = path
        for part in _pictures(values):
            part["path"] = _found_picture(part["path"], _as_tuple(backgrounds))
        return _build(cls, values, "style")

    def effects(self) -> dict[str, bool]:
        """Which effects this style has, by name."""
        degradation = self.degradation
        return {
            "curve": self.baseline.kind in ("arc", "wave"),
            "vertical": self.baseline.kind == "vertical",
            "perspective": self.corners is not None,
            "elastic": self.elastic is not None,
            "texture": self.fill.kind == "texture" or self.background.kind in TEXTURES,
            "gradient": self.fill.kind == "gradient" or self.background.kind == "gradient",
            "stroke": self.stroke > 0,
            "border": self.border is not None,
            "shadow": self.shadow is not None,
            "extrusion": self.extrusion is not None,
            "blend": self.blend != "normal",
            "opacity": self.opacity < 1,
            "blur": degradation.blur > 0,
            "motion": degradation.motion > 0,
            "resample": degradation.resample > 0,
            "noise": degradation.noise > 0,
            "jpeg": degradation.jpeg > 0,
        }


def check_size(size: Sequence[int], least: int = 8, most: int = MAX_SIDE) -> tuple[int, int]:
    """Height and width of a canvas as a pair of Python's integers, from whole numbers of any kind (NumPy's ...).

    Raises:
        SynthesisError: it is no pair of whole numbers in `least`..`most`.
    """
    try:
        height, width = (operator.index(side) for side in size)
        if least <= height <= most and least <= width <= most:
            return height, width
    except (TypeError, ValueError):  # no pair, or of something else
        pass
    sides = size if isinstance(size, (tuple, list)) else [size]
    shown = " x ".join(map(str, sides))
    raise SynthesisError(
        f"a canvas of {shown:.60} pixels cannot be drawn; give height and width as whole numbers in {least}..{most}."
    )


def _as_tuple(paths: Paths) -> tuple[str, ...]:
    return tuple(map(str, [paths] if isinstance(paths, (str, os.PathLike)) else paths))


def _pictures(values: dict) -> list[dict]:
    """The backgrounds of a record, as dicts, that are files."""
    parts = (values["background"], values["fill"]["texture"])
    return [part for part in parts if part is not None and part.get("path")]


@lru_cache(maxsize=100_000)
def file_digest(path: str) -> str:
    """First 16 hexadecimal digits of a file's SHA-256, read once in a process.

    Raises:
        SynthesisError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise SynthesisError(f"the background {path} cannot be read ({error.strerror}).") from None


@lru_cache(maxsize=16)
def _fonts_by_digest(folders: tuple[str, ...]) -> dict[str, str]:
    try:
        return {face.digest: face.path for face in reversed(find_fonts(folders, characters=""))}
    except FontError:
        return {}


@lru_cache(maxsize=4096)
def _found_picture(described: str, folders: tuple[str, ...]) -> str:
    """Path of the picture that `to_json` described as digest and file name."""
    digest, _, name = described.partition(" ")
    for folder in map(Path, folders):
        for file in [folder] if folder.is_file() else sorted(folder.rglob("*")):
            if file.name == name and file.is_file() and file_digest(str(file)) == digest:
                return str(file)
    where = f"is not in {', '.join(folders)}" if folders else "is needed"
    raise SynthesisError(
        f"the background {name} (digest {digest}) {where}; name the folder that has it with backgrounds=[...]."
    )


@lru_cache(maxsize=64)
def _hints(cls: type) -> dict:
    return typing.get_type_hints(cls)


def _build(kind, value, where: str):
    """`value`, as JSON gives it, as the annotated type `kind`."""
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        return _build(next(part for part in kind.__args__ if part is not type(None)), value, where)
    if dataclasses.is_dataclass(kind):
        return _build_record(kind, value, where)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise SynthesisError(f"{where} is {value!r:.60}; it is a list.")
        parts = kind.__args__
        if parts[-1] is Ellipsis:
            parts = parts[:1] * len(value)
        if len(parts) != len(value):
            raise SynthesisError(f"{where} has {len(value)} entries; {len(parts)} are expected.")
        return tuple(_build(part, item, f"{where}[{i}]") for i, (part, item) in enumerate(zip(parts, value)))
    right = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if not right or (isinstance(value, bool) and kind is not bool):
        raise SynthesisError(f"{where} is {value!r:.60}; it is a {kind.__name__}.")
    if isinstance(value, (int, float)) and not math.isfinite(value):
        raise SynthesisError(f"{where} is {value}; it is a finite number.")
    return float(value) if kind is float else value


def _build_record(kind: type, value, where: str):
    if not isinstance(value, dict):
        raise SynthesisError(f"{where} is {value!r:.60}; it is an object with the fields of {kind.__name__}.")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := value.keys() - fields.keys():
        raise SynthesisError(f"{where} has a field {min(unknown)!r} that {kind.__name__} does not know.")
    needed = {
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    if missing := needed - value.keys():
        raise SynthesisError(f"{where} lacks the field {min(missing)!r}.")
    hints = _hints(kind)
    return kind(**{name: _build(hints[name], item, f"{where}.{name}") for name, item in value.items()})
