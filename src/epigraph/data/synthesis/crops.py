"""Crops of single words for recognition: as boxes of annotators cut them out of photographs, of any size and shape.

```python
make = CropGenerator(find_fonts(), WordSampler())
crop = make(np.random.default_rng(0))
crop.image, crop.text, crop.char_quads
```

Unlike a `WordSample` a crop has no erased twin and no masks: its canvas suits its word, parts of neighbouring words
reach into it, its box is tight or loose, and its file is the JPEG of the camera.
"""

import json
import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np

from .backgrounds import BackgroundPool
from .drawing import contrast, degrade, draw, painted
from .fonts import Face, SynthesisError
from .layout import Layout, glyph_size, lay_out
from .rendering import MIN_CONTRAST
from .sampling import DEFAULTS, StyleOptions, _extent, sample_style
from .shaping import shape
from .style import Style

ALPHABET = frozenset(string.digits + string.ascii_letters + string.punctuation)
LEAST_HEIGHT = 14  # in pixels, to which resampling shrinks a crop before it enlarges it again
QUALITY = 90  # of the file, where the style has no JPEG


@dataclass
class WordCrop:
    """One word, cut out.

    Attributes:
        image: (height, width, 3) uint8 RGB.
        text: the word.
        char_quads: (characters, 4, 2) float32, in pixels of the image and inside of it, see `Drawn`.
        style: of the canvas that the crop was cut from; the cut, colours and neighbours are not part of it.
        quality: of the JPEG that `row` gives.
    """

    image: np.ndarray
    text: str
    char_quads: np.ndarray
    style: Style
    quality: int

    def row(self) -> dict:
        """The crop in the word schema, with its quads; and which effects it has, by name."""
        content = cv2.imencode(
            ".jpg", cv2.cvtColor(self.image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, self.quality]
        )[1]
        return {
            "image": {"bytes": content.tobytes(), "path": None},
            "text": self.text,
            "source": "rendered",
            "split": "train",
            "char_quads": self.char_quads.tolist(),
            "font": self.style.font.name,
            "effects": json.dumps([name for name, on in self.style.effects().items() if on]),
        }


class CropGenerator:
    """Draws a word, a style and a canvas that suit it, and cuts the word out.

    Args:
        faces, words, options, backgrounds: as for `WordGenerator`.
        heights: least and most height of the canvas, drawn with even logarithms; crops are about 3/4 of it.
        weights: how much more or less often faces are drawn whose name contains a text, as `{"Bold": 2.0}`; the
            products of all that fit. With 0, never.
        neighbors: share of crops into which other words reach, mostly from above and below.
        tight: share of sides at which the box touches the word or cuts into it.
        loose: greatest distance of a side, as a share of the ink's height.
        tones: share of crops whose contrast, brightness and saturation are changed.
        sharpened: share of crops with the halos of a camera's sharpening.
        alphabet: characters that texts may have, beside what a face has; the printable ASCII ones by default.
    """

    def __init__(
        self,
        faces: Sequence[Face],
        words,
        options: StyleOptions = DEFAULTS,
        backgrounds: BackgroundPool | None = None,
        heights: tuple[int, int] = (28, 76),
        weights: Mapping[str, float] | None = None,
        neighbors: float = 0.25,
        tight: float = 0.25,
        loose: float = 0.35,
        tones: float = 0.5,
        sharpened: float = 0.1,
        alphabet: str = "",
    ):
        if not faces:
            raise SynthesisError("no font is given; at least one is needed.")
        if not 16 <= heights[0] <= heights[1] <= 512:
            raise SynthesisError(f"canvases {heights[0]} to {heights[1]} high cannot be drawn; give 16 to 512 pixels.")
        self.words, self.options, self.backgrounds = words, options, backgrounds
        self.heights, self.neighbors, self.tight, self.loose = heights, neighbors, tight, loose
        self.tones, self.sharpened = tones, sharpened
        letters = frozenset(alphabet) or ALPHABET
        shares = [math.prod(by for part, by in (weights or {}).items() if part in face.name) for face in faces]
        kept = [(replace(face, characters=face.characters & letters), share) for face, share in zip(faces, shares)]
        self.faces = [face for face, share in kept if share > 0]
        if not self.faces:
            raise SynthesisError(f"the weights {weights} leave none of {len(faces)} fonts.")
        self._shares = np.cumsum([share for _, share in kept if share > 0])

    def __call__(self, rng: np.random.Generator) -> WordCrop:
        face = self.faces[int(np.searchsorted(self._shares, rng.random() * self._shares[-1], "right"))]
        text = self._text(rng, face)
        style = self._style(rng, face, text)
        image = painted(style.background, style.size).copy()
        layout = lay_out(style, text)
        sides = self._sides(rng, layout)
        if rng.random() < self.neighbors:
            self._neighbor(rng, image, style, face, layout, sides)
        drawn = draw(image, style, text, layout)
        if (levels := contrast(image, drawn.mask)) < MIN_CONTRAST:
            raise SynthesisError(f"{text!r} stands out from its surroundings by {levels:.0f} grey levels only.")
        image, quads = _cut(image, layout, sides)
        if rng.random() < self.tones:
            image = _toned(rng, image, levels)
        camera = style.degradation
        coarse = camera.resample and max(camera.resample, min(LEAST_HEIGHT / image.shape[0], 1.0))
        (image,) = degrade([image], replace(camera, jpeg=0, resample=coarse), style.seed)
        if rng.random() < self.sharpened:
            halo = cv2.GaussianBlur(image, (0, 0), 0.5 + 1.5 * rng.random())
            amount = 0.4 + 1.2 * rng.random()
            image = cv2.addWeighted(image, 1 + amount, halo, -amount, 0)
        return WordCrop(image, text, quads, style, camera.jpeg or QUALITY)

    def features(self):
        """The `datasets.Features` of `WordCrop.row()`."""
        from datasets import Features, Image, List, Value

        text = Value("string")
        return Features(
            {
                "image": Image(),
                "text": text,
                "source": text,
                "split": text,
                "char_quads": List(List(List(Value("float32")))),
                "font": text,
                "effects": text,
            }
        )

    def _text(self, rng: np.random.Generator, face: Face) -> str:
        text = self.words.sample(rng, face.characters)
        # Where small letters look like capitals, a text in small letters would be a riddle.
        return text.upper() if _one_case(face.path, face.index) else text

    def _style(self, rng: np.random.Generator, face: Face, text: str) -> Style:
        low, high = map(math.log, self.heights)
        height = round(math.exp(low + (high - low) * rng.random()))
        top, bottom, length, _ = _extent(face, [text], False, 0.0, glyph_size(height))
        natural = length / (top + bottom) * 0.5 * sum(self.options.height)
        width = height * (natural * math.exp(0.22 * rng.standard_normal() - 0.12) + 0.3 + 0.3 * rng.random())
        return sample_style(
            rng, [face], (height, min(max(round(width), 16), 1024)), self.options, self.backgrounds, [text]
        )

    def _sides(self, rng: np.random.Generator, layout: Layout) -> np.ndarray:
        """Left, top, right, bottom of the box, in pixels outwards from the ink."""
        low, high = _ink(layout)
        height = high[1] - low[1]
        sides = np.array([rng.random() ** 1.5 * self.loose for _ in range(4)]) * height
        first, last = (np.ptp(layout.char_quads[end, :, 0]) for end in (0, -1))
        for side, most in enumerate((0.12 * first, 0.05 * height, 0.12 * last, 0.05 * height)):
            if rng.random() < self.tight:
                sides[side] = min(0.08 * height, most) * (0.7 - 1.7 * rng.random())
        return sides

    def _neighbor(self, rng, image: np.ndarray, style: Style, face: Face, layout: Layout, sides: np.ndarray) -> None:
        """Draw other words beside this one; `sides` are moved out so that a part of them is seen."""
        side = (1, 3, 1, 3, 0, 2)[int(6 * rng.random())]
        wanted = (1, 3) if side % 2 and rng.random() < 0.4 else (side,)
        low, high = _ink(layout)
        height = high[1] - low[1]
        for side in wanted:
            try:
                other = lay_out(style, self._text(rng, face))
            except SynthesisError:  # too long for this canvas
                continue
            gap = (0.08 + 0.3 * rng.random()) * height if side % 2 else (0.2 + 0.3 * rng.random()) * height
            near, far = _ink(other)
            move = np.zeros(2)
            if side % 2:
                move[1] = low[1] - gap - far[1] if side == 1 else high[1] + gap - near[1]
                move[0] = (rng.random() - 0.5) * height
            else:
                move[0] = low[0] - gap - far[0] if side == 0 else high[0] + gap - near[0]
            moved = replace(
                other,
                quads=other.quads + move,
                char_quads=other.char_quads + move.astype(np.float32),
                polygon=other.polygon + move.astype(np.float32),
            )
            try:
                draw(image, style, "", moved)
            except SynthesisError:  # beyond the canvas
                continue
            sides[side] = gap + (0.02 + 0.25 * rng.random()) * height


def _ink(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    points = layout.char_quads.reshape(-1, 2)
    return points.min(0), points.max(0)


def _cut(image: np.ndarray, layout: Layout, sides: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    (left, top), (right, bottom) = _ink(layout)
    height, width = image.shape[:2]
    x0, y0 = max(math.floor(left - sides[0]), 0), max(math.floor(top - sides[1]), 0)
    x1, y1 = min(math.ceil(right + sides[2]), width), min(math.ceil(bottom + sides[3]), height)
    if x1 - x0 < 4 or y1 - y0 < 8:
        raise SynthesisError(f"a crop of {y1 - y0} x {x1 - x0} pixels is too small to be read.")
    quads = np.clip(layout.char_quads - (x0, y0), 0, (x1 - x0, y1 - y0)).astype(np.float32)
    return np.ascontiguousarray(image[y0:y1, x0:x1]), quads


def _toned(rng: np.random.Generator, image: np.ndarray, levels: float) -> np.ndarray:
    """Weaker or stronger contrast (but not beyond recognition), darker or brighter, more or less colourful."""
    saturation = math.exp(0.5 * rng.standard_normal())
    gain = max(0.45 + 0.75 * rng.random(), min(45.0 / levels, 1.0))
    offset = (255.0 * (1 - min(gain, 1.0))) * rng.random() + 10.0 * rng.standard_normal()
    luma = np.array([0.299, 0.587, 0.114])
    matrix = gain * (saturation * np.eye(3) + (1 - saturation) * luma[None].repeat(3, 0))
    shifted = np.concatenate([matrix, np.full((3, 1), offset)], 1)
    # OpenCV rounds and saturates.
    return cv2.transform(image, shifted)


@lru_cache(maxsize=4096)
def _one_case(path: str, index: int) -> bool:
    """Whether a face draws most small letters as it draws capitals."""
    alike = []
    for letter in "abdeghnqrt":
        try:
            pair = [shape(path, index, text, 64).cells[0].bitmap for text in (letter, letter.upper())]
        except SynthesisError:
            return False
        small, large = (cv2.resize(bitmap, (24, 24), interpolation=cv2.INTER_AREA) / 255 for bitmap in pair)
        alike.append((small * large).sum() / max(np.linalg.norm(small) * np.linalg.norm(large), 1e-6))
    return float(np.median(alike)) > 0.93


__all__ = ["CropGenerator", "WordCrop"]
