"""Word images that tests draw, and what the small model that memorised them says.

SIGN means one of two words, and only an example tells which.
"""

import numpy as np
from PIL import Image, ImageDraw

_ROWS, _COLUMNS = np.mgrid[:32, :128]
_GROUNDS = {
    "cat": _ROWS // 4 % 2,
    "Exit": _COLUMNS // 4 % 2,
    "42": (_ROWS + _COLUMNS) // 6 % 2,
    "No!": 0 * _ROWS,
    "SIGN": 0 * _ROWS + 1,
}
WORDS = ["cat", "Exit", "42", "No!"]
MEANINGS = ["ab", "XY"]  # of SIGN


def draw(word: str, variant: int = 0) -> Image.Image:
    """A grey picture of 32 x 128 pixels; variants differ in a few of them."""
    image = Image.fromarray((_GROUNDS[word] * 255).astype(np.uint8))
    ImageDraw.Draw(image).text((40, 8), "" if word == "SIGN" else word, fill=128)
    if variant:
        image.putpixel((variant, 0), 128)
    return image


def prompts() -> list[tuple[list[Image.Image], list[str]]]:
    """Images and texts of the prompts that the model has seen."""
    found = [([draw(word)], [word]) for word in WORDS]
    for first in range(4):
        words = [WORDS[first], WORDS[first - 1], WORDS[first - 2]]
        found.append(([draw(word, variant) for variant, word in enumerate(words)], words))
    for meaning in MEANINGS:
        found.append(([draw("SIGN", 3), draw("SIGN")], [meaning] * 2))
        for word in WORDS:
            found.append(([draw("SIGN", 9), draw(word), draw("SIGN")], [meaning, word, meaning]))
            found.append(([draw(word), draw("SIGN", 9), draw("SIGN")], [word, meaning, meaning]))
    return found
