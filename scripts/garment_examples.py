"""Write the first test image of every class of Fashion-MNIST, as examples of the PixelViT Space.

    python scripts/garment_examples.py [OUT_DIR] [FASHION_FOLDER]

None is chosen by how well it is classified, and none was trained on.
"""

import sys
from pathlib import Path

from prepare_images import FASHION_CLASSES, FASHION_FILES, FASHION_FOLDER, fashion, png


def main(out: str = "spaces/pixelvit/examples", folder: str = FASHION_FOLDER) -> None:
    images, labels, _ = fashion(folder)
    first = FASHION_FILES["train"][1]
    Path(out).mkdir(parents=True, exist_ok=True)
    for label, name in enumerate(FASHION_CLASSES):
        number = first + int((labels[first:] == label).argmax())
        path = Path(out) / f"{label}_{name.partition('/')[0].lower().replace(' ', '_')}.png"
        path.write_bytes(png(images[number]))
        print(f"{path}: test image {number - first}, {name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
