"""Write the first test image of every class of Fashion-MNIST, as examples of the PixelViT Space.

    python scripts/garment_examples.py

None is chosen by how well it is classified, and none was trained on.
"""

import argparse
import sys
from pathlib import Path

from prepare_images import FASHION_CLASSES, FASHION_FILES, FASHION_FOLDER, fashion, png


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("spaces/pixelvit/examples"), help="default: %(default)s")
    parser.add_argument("--folder", default=FASHION_FOLDER, help="of the four idx files (default: %(default)s)")
    arguments = parser.parse_args(argv)
    images, labels, _ = fashion(arguments.folder)
    first = FASHION_FILES["train"][1]
    arguments.output.mkdir(parents=True, exist_ok=True)
    for label, name in enumerate(FASHION_CLASSES):
        number = first + int((labels[first:] == label).argmax())
        path = arguments.output / f"{label}_{name.partition('/')[0].lower().replace(' ', '_')}.png"
        path.write_bytes(png(images[number]))
        print(f"{path}: test image {number - first}, {name}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
