"""Draw the example words of the scene-text Space: an ordinary face, and two that the shipped model has never seen.

    sudo apt install fonts-dejavu-core fonts-aenigma
    python scripts/word_examples.py

The two faces are left out of `recipes/words_e2str.yaml`. No word is chosen by how well it is read.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONTS = Path("/usr/share/fonts/truetype")
WORDS = ["market", "theatre", "Market", "street", "marine", "tea"]
LETTERINGS = {
    "ordinary": "dejavu/DejaVuSans-Bold.ttf",
    "rounded": "aenigma/sequence.ttf",
    "discs": "aenigma/18holes.ttf",
}
SIGNS = [  # ink, ground, degrees
    ("#fff7e0", "#7a1f1f", -3),
    ("#20324a", "#e9dfc7", 2),
    ("#f4d35e", "#1f3d36", 0),
    ("#111111", "#d9d9d4", 3),
    ("#ffffff", "#2b59a3", -2),
    ("#5b2333", "#f2efe6", 1),
]
HEIGHT, MARGIN = 72, 14  # pixels


def draw(word: str, font: Path, ink: str, ground: str, angle: float) -> Image.Image:
    """A word of `HEIGHT` pixels on its ground, turned by an angle in degrees."""
    face = ImageFont.truetype(str(font), 2 * HEIGHT)
    left, top, right, bottom = face.getbbox(word)
    sign = Image.new("RGB", (right - left + 6 * MARGIN, bottom - top + 6 * MARGIN), ground)
    ImageDraw.Draw(sign).text((3 * MARGIN - left, 3 * MARGIN - top), word, font=face, fill=ink)
    sign = sign.rotate(angle, Image.Resampling.BICUBIC, fillcolor=ground)
    return sign.resize((round(sign.width * HEIGHT / sign.height), HEIGHT), Image.Resampling.LANCZOS)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("spaces/scene-text/examples"), help="default: %(default)s")
    parser.add_argument("--fonts", type=Path, default=FONTS, help="folder of the faces (default: %(default)s)")
    arguments = parser.parse_args(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for lettering, font in LETTERINGS.items():
        for number, (word, sign) in enumerate(zip(WORDS, SIGNS), start=1):
            path = arguments.output / f"{lettering}_{number}_{word}.png"
            draw(word, arguments.fonts / font, *sign).save(path, optimize=True)
            print(path)


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"error: {error}; install the fonts that --help names.")
