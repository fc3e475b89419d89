"""Word images in exact style pairs: one style and one background, several words, and every label that goes with them.

```python
make = WordGenerator(find_fonts(), WordSampler())
sample = make(np.random.default_rng(0))
sample.images, sample.background, sample.masks, sample.char_quads, sample.texts
```
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from . import drawing
from .backgrounds import Background, BackgroundPool, sample_background
from .drawing import contrast, draw, painted
from .fonts import Face, SynthesisError
from .glyph_targets import draw_glyphs
from .sampling import DEFAULTS, StyleOptions, sample_style
from .style import Style, check_size

MIN_CONTRAST = 20.0  # grey levels between a word and what is around it, before degradation


@dataclass
class WordSample:
    """k words in one style on one background.

    Attributes:
        images: (k, height, width, 3) uint8 RGB.
        background: (height, width, 3) uint8 RGB: the same picture without text, degraded in the same way.
        masks: (k, height, width) uint8, coverage by the letters before degradation.
        effect_masks: (k, height, width) uint8, coverage by everything drawn: letters, border, extrusion, shadow.
        glyphs: (k, height, width) uint8, the word in a plain font at the same place, white on black.
        char_maps: (k, height, width) uint8, 0 or 1 + index of the character.
        char_quads: k arrays (characters, 4, 2) float32, see `Drawn`.
        polygons: k arrays (4, 2) or (2m, 2) float32, see `Drawn`.
        texts: the k words.
        style: the record that, with the words, gives all of this again.
    """

    images: np.ndarray
    background: np.ndarray
    masks: np.ndarray
    effect_masks: np.ndarray
    glyphs: np.ndarray
    char_maps: np.ndarray
    char_quads: list[np.ndarray]
    polygons: list[np.ndarray]
    texts: list[str]
    style: Style

    def row(self) -> dict:
        """The sample as a row of the `features()` of `WordGenerator`: pictures as PNG, the style as JSON."""
        return {
            "images": [_png(image) for image in self.images],
            "background": _png(self.background),
            "masks": [_png(image) for image in self.masks],
            "effect_masks": [_png(image) for image in self.effect_masks],
            "glyphs": [_png(image) for image in self.glyphs],
            "char_maps": [_png(image) for image in self.char_maps],
            "char_quads": [quads.tolist() for quads in self.char_quads],
            "polygons": [polygon.tolist() for polygon in self.polygons],
            "texts": self.texts,
            "style": json.dumps(self.style.to_json()),
        }


def render(style: Style, contents: str | Sequence[str], degrade: bool = True) -> WordSample:
    """Draw words in a style: a pure function, the same arguments and library versions give the same pixels.

    Args:
        style: the record.
        contents: one word or several.
        degrade: blur, noise, JPEG ... as the style says; without, the images equal the background wherever the effect
            mask is 0.

    Raises:
        SynthesisError: no word is given, the font lacks a character, or a word does not fit.
    """
    sample = _compose(style, [contents] if isinstance(contents, str) else list(contents))
    return _degraded(sample) if degrade else sample


class WordGenerator:
    """Draws words, a style that suits them, and their images; called with a random generator.

    Args:
        faces: of `find_fonts`.
        words: `sample(rng, characters) -> str`, as `WordSampler` has it.
        options: how often effects occur, and how strong.
        size: height and width of the images.
        contents: number of different words in one style.
        backgrounds: images of your own; painted ones without.

    A call raises SynthesisError where a sample cannot be made, or cannot be read for want of contrast: draw again.
    """

    def __init__(
        self,
        faces: Sequence[Face],
        words,
        options: StyleOptions = DEFAULTS,
        size: tuple[int, int] = (32, 128),
        contents: int = 2,
        backgrounds: BackgroundPool | None = None,
    ):
        if contents < 1 or not faces:
            raise SynthesisError(
                f"{contents} contents and {len(faces)} fonts are given; at least one of each is needed."
            )
        self.faces, self.words, self.options, self.size = list(faces), words, options, check_size(size)
        self.contents, self.backgrounds = contents, backgrounds

    def __call__(self, rng: np.random.Generator) -> WordSample:
        face = self.faces[int(rng.random() * len(self.faces))]
        texts = _different(self.words, rng, face, self.contents)
        style = sample_style(rng, [face], self.size, self.options, self.backgrounds, texts)
        return _degraded(_readable(_compose(style, texts)))

    def features(self):
        """The `datasets.Features` of `WordSample.row()`."""
        return word_features()


class GroupGenerator(WordGenerator):
    """Every combination of styles, words and backgrounds: for losses that hold two of them fixed.

    Args:
        looks: number of styles, apart from the background.
        scenes: number of backgrounds, of about the same brightness so that every look can be read on each.
        others: as for `WordGenerator`; the `contents` words are the same in all members.

    A call gives looks x scenes `WordSample`s, look by look; their styles tell them apart.
    """

    def __init__(self, *args, looks: int = 2, scenes: int = 2, **kwargs):
        super().__init__(*args, **kwargs)
        if looks < 1 or scenes < 1:
            raise SynthesisError(f"a group of {looks} looks on {scenes} backgrounds is empty; give 1 or more of each.")
        self.looks, self.scenes = looks, scenes

    def __call__(self, rng: np.random.Generator) -> list[WordSample]:
        faces = [self.faces[int(rng.random() * len(self.faces))] for _ in range(self.looks)]
        common = frozenset.intersection(*(face.characters for face in faces))
        texts = _different(self.words, rng, replace(faces[0], characters=common), self.contents)
        scenes = [self._background(rng)]
        for _ in range(20 * self.scenes):
            if len(scenes) == self.scenes:
                break
            scene = self._background(rng)
            if abs(painted(scene, self.size).mean() - painted(scenes[0], self.size).mean()) < 30:
                scenes.append(scene)
        else:
            raise SynthesisError(f"no {self.scenes} backgrounds of about the same brightness were found.")
        members = []
        for face in faces:
            style = sample_style(rng, [face], self.size, self.options, scenes[0], texts)
            members += [replace(style, background=scene) for scene in [style.background, *scenes[1:]]]
        return [_degraded(_readable(_compose(style, texts))) for style in members]

    def _background(self, rng: np.random.Generator) -> Background:
        return sample_background(rng, self.backgrounds, self.options.pool_share, self.options.backgrounds)


def word_features():
    """The `datasets.Features` of `WordSample.row()`."""
    from datasets import Features, Image, List, Value

    points = List(List(Value("float32")))
    return Features(
        {
            "images": List(Image()),
            "background": Image(),
            "masks": List(Image()),
            "effect_masks": List(Image()),
            "glyphs": List(Image()),
            "char_maps": List(Image()),
            "char_quads": List(List(points)),
            "polygons": List(points),
            "texts": List(Value("string")),
            "style": Value("string"),
        }
    )


def _different(words, rng: np.random.Generator, face: Face, count: int) -> list[str]:
    """Words that all differ, of lengths that look well in one font size, as far as the sampler has them."""
    texts, others = [], []
    for _ in range(8 * count):
        text = words.sample(rng, face.characters)
        alike = not texts or abs(len(text) - len(texts[0])) <= max(2, len(texts[0]) // 2)
        if text not in texts:
            (texts if alike else others).append(text)
        if len(texts) == count:
            return texts
    texts += [text for text in dict.fromkeys(others) if text not in texts]
    if len(texts) < count:
        raise SynthesisError(f"the word list gives no {count} different words for the font {face.name}.")
    return texts[:count]


def _compose(style: Style, texts: list[str]) -> WordSample:
    if not texts:
        raise SynthesisError("there is no word to draw; give at least one.")
    background = painted(style.background, style.size)
    count = len(texts)
    images = np.empty((count, *style.size, 3), np.uint8)
    images[:] = background
    glyphs = np.zeros((count, *style.size), np.uint8)
    words = [draw(image, style, text) for image, text in zip(images, texts)]
    for canvas, word, text in zip(glyphs, words, texts):
        draw_glyphs(canvas, word.polygon, text, vertical=style.baseline.kind == "vertical")
    return WordSample(
        images,
        background,
        np.array([word.mask for word in words]),
        np.array([word.effect_mask for word in words]),
        glyphs,
        np.array([word.char_map for word in words]),
        [word.char_quads for word in words],
        [word.polygon for word in words],
        texts,
        style,
    )


def _readable(sample: WordSample) -> WordSample:
    for image, mask, text in zip(sample.images, sample.masks, sample.texts):
        if (levels := contrast(image, mask)) < MIN_CONTRAST:
            raise SynthesisError(f"{text!r} stands out from its surroundings by {levels:.0f} grey levels only.")
    return sample


def _degraded(sample: WordSample) -> WordSample:
    *images, background = drawing.degrade(
        [*sample.images, sample.background], sample.style.degradation, sample.style.seed
    )
    return replace(sample, images=np.array(images), background=background)


def _png(image: np.ndarray) -> dict:
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return {"bytes": cv2.imencode(".png", image)[1].tobytes(), "path": None}
