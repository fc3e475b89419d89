"""A contact sheet: samples with all their labels drawn over them, so that a person can judge them in seconds."""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .datasets import draw_sample
from .fonts import has_raqm, load_font

_TILE = 384  # pixels that a picture is at least enlarged to in width
_GAP = 8
_LINE = 24
_PAPER, _INK, _FAINT = (250, 250, 248), (20, 20, 20), (120, 120, 120)
# Neighbouring characters and words get colours far apart.
_COLORS = [(230, 57, 70), (0, 140, 255), (46, 184, 46), (255, 140, 0), (160, 60, 230), (0, 180, 180), (214, 48, 160)]

Tile = tuple[str | tuple, np.ndarray]  # caption, or caption and the style whose font has its characters; picture


def contact_sheet(make, seed: int = 0, count: int = 8) -> Image.Image:
    """Draw the first samples of a generator, one below the other.

    Words: each image, the erased one, character quads and polygon over it, the masks (letters by character, other
    effects grey) and the glyph image. Scenes: the same, with transcriptions. Formulas: ink, coloured by symbol.

    Args:
        make: the generator.
        seed: of the samples, as for `SynthesisDataset`.
        count: how many samples to draw, 1 to 200.

    Raises:
        ValueError: `count` is out of range; a sample cannot be made (`SynthesisError`).
    """
    if not 1 <= count <= 200:
        raise ValueError(f"a contact sheet shows 1 to 200 samples, not {count}")
    blocks = []
    for index in range(count):
        sample = draw_sample(make, seed, index)
        members = sample if isinstance(sample, list) else [sample]
        for number, member in enumerate(members):
            name = f"{index}" if len(members) == 1 else f"{index}.{number}"
            blocks.append(_block(name, *_described(member)))
    sheet = Image.new("RGB", (max(b.width for b in blocks), sum(b.height + _GAP for b in blocks)), _PAPER)
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height + _GAP
    return sheet


def _described(sample) -> tuple[str, list[list[Tile]]]:
    """Headline, and the tiles of a sample line by line."""
    if hasattr(sample, "strokes"):
        return sample.text, [[("ink, a colour for each symbol", _formula(sample))]]
    if hasattr(sample, "quality"):
        quads = sample.char_quads
        around = np.concatenate([quads[:, :2].reshape(-1, 2), quads[::-1, 2:].reshape(-1, 2)])
        outlined = _outlined(sample.image, [quads], [around])
        return _words(sample.style), [[((sample.text, sample.style), sample.image), ("quads", outlined)]]
    if hasattr(sample, "image"):
        effects = ", ".join(_effects(sample.styles))
        return f"{len(sample.texts)} words: {effects}", [list(_scene_tiles(sample))]
    return _words(sample.style), [list(_word_tiles(sample, k)) for k in range(len(sample.texts))]


def _words(style) -> str:
    effects = ", ".join(_effects([style]))
    return f"{style.font.name}: {effects}; background {style.background.kind}"


def _effects(styles: Sequence) -> Iterator[str]:
    """The effects of any of the styles, with how many styles have them."""
    present = [[name for name, on in style.effects().items() if on] for style in styles]
    for name in dict.fromkeys(sum(present, [])):
        yield name if len(styles) == 1 else f"{name} {sum(name in effects for effects in present)}"
    if not any(present):
        yield "no effect"


def _word_tiles(sample, k: int) -> Iterator[Tile]:
    image, mask, effects = sample.images[k], sample.masks[k], sample.effect_masks[k]
    yield (sample.texts[k], sample.style), image
    yield "erased", sample.background
    yield "quads and polygon", _outlined(image, [sample.char_quads[k]], [sample.polygons[k]])
    yield "letters, effects", _labelled(sample.char_maps[k], mask, effects)
    yield "glyph", sample.glyphs[k]


def _scene_tiles(sample) -> Iterator[Tile]:
    texts = [f"({text})" if ignored else text for text, ignored in zip(sample.texts, sample.ignore)]
    texts = list(zip(texts, sample.styles))
    glyph = np.repeat(sample.glyph[..., None], 3, 2)
    words = _labelled(sample.instances, sample.mask, sample.effect_mask)
    squares = np.vstack([np.hstack([sample.image, sample.erased]), np.hstack([words, glyph])])
    yield "scene, erased; words with effects in grey, glyph", squares
    yield "quads, polygons, (ignored)", _outlined(sample.image, sample.char_quads, sample.polygons, texts)


def _outlined(image: np.ndarray, quads: Sequence, polygons: Sequence, texts: Sequence[str] = ()) -> np.ndarray:
    """Enlarged and paled, with outlines: characters in turn of colour, words in black on white."""
    scale = max(2, _scale(image.shape[1]))
    canvas = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    canvas = (canvas // 2 + 127).astype(np.uint8)
    for word, polygon in enumerate(polygons):
        for thickness, color in ((3, (255, 255, 255)), (1, (0, 0, 0))):
            cv2.polylines(canvas, [_fixed(polygon * scale)], True, color, thickness, cv2.LINE_AA, shift=4)
        for number, quad in enumerate(quads[word]):
            cv2.polylines(canvas, [_fixed(quad * scale)], True, _color(number), 1, cv2.LINE_AA, shift=4)
    if not texts:
        return canvas
    drawing = Image.fromarray(canvas)
    for polygon, text in zip(polygons, texts):
        _write(drawing, np.clip(polygon.min(0) * scale - (0, 15), 0, None), text, (200, 0, 0))
    return np.asarray(drawing)


def _fixed(points: np.ndarray) -> np.ndarray:
    return np.round(np.asarray(points) * 16).astype(np.int32)


def _labelled(labels: np.ndarray, mask: np.ndarray, effects: np.ndarray) -> np.ndarray:
    """Coverage in the colour of its label on black; what only effects cover in grey."""
    palette = np.array([(255, 255, 255), *_COLORS], np.float32)
    colors = palette[np.where(labels > 0, (labels.astype(int) - 1) % len(_COLORS) + 1, 0)]
    share = mask[..., None] / 255
    return np.uint8(share * colors + (1 - share) * 0.4 * effects[..., None])


def _formula(sample) -> np.ndarray:
    """Ink as it is given to the model, but on white and with a colour for each symbol."""
    from ..ink import render

    whole = np.concatenate(sample.strokes)
    width, height = render(sample.strokes, symbol_height=48).size
    low, high = whole.min(0), whole.max(0)
    scale = min((side - 24) / max(extent, 1e-6) for side, extent in zip((width, height), high - low))
    canvas = np.full((height, max(width, _TILE), 3), 255, np.uint8)
    for number, (_, strokes) in enumerate(sample.symbols):
        for stroke in strokes:
            points = (np.asarray(sample.strokes[stroke]) - low) * scale + 12
            cv2.polylines(canvas, [_fixed(points)], False, _color(number), 3, cv2.LINE_AA, shift=4)
    return canvas


def _color(number: int) -> tuple[int, int, int]:
    return _COLORS[number % len(_COLORS)]


def _scale(width: int) -> int:
    return max(1, round(_TILE / width))


def _block(name: str, headline: str, lines: list[list[Tile]]) -> Image.Image:
    """One sample: its headline, and captioned tiles."""
    rows = [[(caption, _enlarged(picture, line[0][1].shape[1])) for caption, picture in line] for line in lines]
    width = max(sum(tile.width + _GAP for _, tile in row) for row in rows) + _GAP
    width = max(width, 640)
    height = _LINE + sum(max(tile.height for _, tile in row) + _LINE for row in rows)
    block = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(block)
    pen.text((_GAP, 4), f"{name}   {headline}", _INK, ImageFont.load_default(14))
    top = _LINE
    for row in rows:
        left = _GAP
        for caption, tile in row:
            _write(block, (left, top + 4), caption, _FAINT)
            block.paste(tile, (left, top + _LINE))
            left += tile.width + _GAP
        top += max(tile.height for _, tile in row) + _LINE
    return block


def _enlarged(picture: np.ndarray, width: int) -> Image.Image:
    """A picture at the size of its line: `width` pixels times a whole number."""
    wanted = width * _scale(width)
    image = Image.fromarray(picture).convert("RGB")
    return image.resize((wanted, round(wanted * picture.shape[0] / picture.shape[1])), Image.Resampling.NEAREST)


def _write(image: Image.Image, corner: Sequence[float], text: str | tuple, color: tuple[int, int, int]) -> None:
    text, style = text if isinstance(text, tuple) else (text, None)
    font = ImageFont.load_default(13)
    if not text.isascii():
        font = load_font(style.font.path, style.font.index, 14, has_raqm())
    ImageDraw.Draw(image).text(tuple(corner), text, color, font)
