"""The leak check: copies are found however they were stored, other words are not, and the script says so."""

import csv
import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

datasets = pytest.importorskip("datasets")

from epigraph.data.leaks import find_leaks, find_near, perceptual_hash  # noqa: E402
from epigraph.data.words import load_words  # noqa: E402

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
TEXTS = ["Hotel", "exit", "Museum", "SALE", "Bakery", "stop!", "Window", "open", "Taxi", "library", "Garden", "12:30"]


def word_image(text, seed):
    """A word on a slope of light with some noise, as a photographed sign has it."""
    rng = np.random.default_rng(seed)
    font = ImageFont.load_default(36)
    width = int(font.getlength(text)) + 16
    light = np.add.outer(np.linspace(0, rng.uniform(-60, 60), 52), np.linspace(0, rng.uniform(-60, 60), width)) + 128
    image = Image.fromarray(np.clip(light + rng.normal(0, 6, light.shape), 0, 255).astype(np.uint8)).convert("RGB")
    ImageDraw.Draw(image).text((8, 4), text, font=font, fill=tuple(rng.integers(0, 2, 3).tolist()))
    return image


def rows(images, texts=None):
    columns = {"id": [f"w{number}" for number in range(len(images))], "image": images}
    features = {"id": datasets.Value("string"), "image": datasets.Image()}
    if texts:
        columns["text"], features["text"] = texts, datasets.Value("string")
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def stored(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


CHANGES = {
    "same": lambda image: image,
    "jpeg": lambda image: stored(image, "JPEG", quality=30),
    "resized": lambda image: image.resize((128, 32), Image.Resampling.BICUBIC),
    "larger": lambda image: image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC),
    "grey": lambda image: image.convert("L"),
    "16 bits": lambda image: Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257),
    "palette": lambda image: stored(image.convert("P")),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "alpha": lambda image: image.convert("RGBA"),
}


@pytest.fixture(scope="module")
def training():
    return rows([word_image(text, seed) for seed, text in enumerate(TEXTS)], TEXTS)


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_found_however_they_are_stored(training, change):
    test = rows([CHANGES[change](training[number]["image"]) for number in (2, 7, 11)])
    leaks, unread = find_leaks(training, test)
    assert [(leak.test, leak.train) for leak in leaks] == [("w0", "w2"), ("w1", "w7"), ("w2", "w11")]
    assert all(leak.train_text and leak.test_text is None and leak.correlation > 0.9 for leak in leaks) and not unread


def test_other_words_are_no_leaks(training):
    others = ["river", "Bank", "TOWER", "free", "Phone", "gate 4", "Summer", "left", "Police", "bridge"]
    assert find_leaks(training, rows([word_image(text, 100 + n) for n, text in enumerate(others)]))[0] == []


def test_images_of_one_colour_are_like_nothing():
    plain = rows([Image.new("RGB", (40, 16), color) for color in ("white", "black", "#123456")])
    assert perceptual_hash(plain[0]["image"]) == perceptual_hash(plain[2]["image"]) == 0
    assert find_leaks(plain, plain) == ([], [])


def test_hashes_have_63_bits_and_near_ones_are_those_within_the_distance():
    hashes = [perceptual_hash(word_image(text, seed)) for seed, text in enumerate(TEXTS)]
    assert len(set(hashes)) == len(TEXTS) and max(hashes).bit_length() <= 63
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 2**63, count, np.uint64) for count in (300, 20))
    train[5], train[7] = test[3] ^ np.uint64(0b1011), test[3]
    found = list(find_near(train, test, 22))
    expected = [
        (number, other, (int(value) ^ int(hashed)).bit_count())
        for number, value in enumerate(test)
        for other, hashed in enumerate(train)
        if (int(value) ^ int(hashed)).bit_count() <= 22
    ]
    assert found == expected and (3, 5, 3) in found and (3, 7, 0) in found and len(found) > 2


def test_blocks_of_training_hashes_lose_nothing(monkeypatch):
    train = np.arange(50, dtype=np.uint64)
    whole = list(find_near(train, train[::7], 1))
    monkeypatch.setattr("epigraph.data.leaks.BLOCK", 8)
    assert list(find_near(train, train[::7], 1)) == whole


def test_several_copies_are_all_named_the_likest_first(training):
    copies = rows([training[0]["image"], CHANGES["blurred"](training[3]["image"]), training[3]["image"]])
    leaks, _ = find_leaks(copies, rows([training[3]["image"]]))
    assert [leak.train for leak in leaks] == ["w2", "w1"] and leaks[0].distance == 0
    assert leaks[0].correlation == pytest.approx(1.0) and leaks[1].correlation < leaks[0].correlation


def test_unreadable_images_are_named_and_the_others_compared(training):
    content = training.cast_column("image", datasets.Image(decode=False))[1]["image"]["bytes"]
    broken = datasets.Dataset.from_dict({"id": ["bad", "good"], "image": [{"bytes": content[:50], "path": None},
                                         {"bytes": content, "path": None}]})  # fmt: skip
    broken = broken.cast_column("image", datasets.Image())
    leaks, unread = find_leaks(training, broken)
    assert [(leak.test, leak.train) for leak in leaks] == [("good", "w1")]
    assert [name for name, _ in unread] == ["test bad"]
    assert find_leaks(training, broken.select([0]))[0] == []


def script():
    sys.path.insert(0, str(SCRIPTS))
    try:
        import check_leaks
    finally:
        sys.path.remove(str(SCRIPTS))
    return check_leaks


def test_script_lists_leaks_and_tells_by_its_status(training, tmp_path, capsys):
    training.to_parquet(tmp_path / "train.parquet")
    mixed = [CHANGES["jpeg"](training[4]["image"]), word_image("else", 50)]
    rows(mixed, ["Bakery", "else"]).to_parquet(tmp_path / "test.parquet")
    rows(mixed[1:], ["else"]).to_parquet(tmp_path / "clean.parquet")
    main, output = script().main, tmp_path / "leaks.csv"
    assert main([str(tmp_path / "train.parquet"), str(tmp_path / "test.parquet"), "--output", str(output)]) == 1
    printed = capsys.readouterr().out
    assert "w0 'Bakery' = w4 'Bakery'" in printed
    assert "1 of 2 test images look like one of 12 training images; 0 not read" in printed
    (row,) = csv.DictReader(output.open())
    assert row["test"] == "w0" and row["train"] == "w4" and float(row["correlation"]) > 0.9
    assert main([str(tmp_path / "train.parquet"), str(tmp_path / "clean.parquet")]) == 0
    with pytest.raises(ValueError, match="no split 'x'"):
        main([str(tmp_path / "train.parquet"), str(tmp_path / "test.parquet"), "--test-split", "x"])


@pytest.mark.data
def test_real_crops_are_found_after_compression():
    folder = os.environ.get("EPIGRAPH_DATA")
    if not folder or not (Path(folder) / "words.parquet").is_file():
        pytest.skip("EPIGRAPH_DATA does not hold words.parquet")
    train = load_words(Path(folder) / "words.parquet", "train", "svt")
    test = rows([CHANGES["jpeg"](train[number]["image"].convert("RGB")) for number in range(0, 200, 10)])
    leaks, unread = find_leaks(train, test)
    wanted = {(f"w{place}", train[number]["id"]) for place, number in enumerate(range(0, 200, 10))}
    assert wanted <= {(leak.test, leak.train) for leak in leaks} and not unread
