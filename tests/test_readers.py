"""Readers: every layout gives the one schema; what is bad is named, counted and left out."""

import io
import json
import logging
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

datasets = pytest.importorskip("datasets")

from epigraph.data.readers import expand_path, load_formulas, normalise_labels  # noqa: E402

STROKES = [[0.0, 0.0, 1.0, 10.0], [5.0, 5.0]]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows).to_parquet(path)


def ink_rows():
    places = [("train", "a"), ("train", "b"), ("test", "a")]
    return [
        {"id": str(index), "text": "x ^ { 2 }", "split": split, "source": source, "strokes": STROKES}
        for index, (split, source) in enumerate(places)
    ]


def picture(value=255, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 6), value, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def write_inkml(path, truth, trace="1 2, 3 4"):
    path.parent.mkdir(parents=True, exist_ok=True)
    note = "" if truth is None else f"<annotation type='truth'>{truth}</annotation>"
    path.write_text(f"<ink>{note}<trace id='0'>{trace}</trace></ink>")


# ---------------------------------------------------------------------------------------------- parquet


def test_parquet_narrows_to_split_and_source(tmp_path):
    path = tmp_path / "ink.parquet"
    write_parquet(path, ink_rows())
    assert load_formulas(path)["id"][:] == ["0", "1", "2"]
    assert load_formulas(path, split="train")["id"][:] == ["0", "1"]
    row = load_formulas(path, split="train", source="b")[0]
    assert row["id"] == "1" and row["strokes"] == STROKES
    with pytest.raises(ValueError, match="no split 'dev'; there are test, train"):
        load_formulas(path, split="dev")
    with pytest.raises(ValueError, match="no source 'b'; there are a"):
        load_formulas(path, split="test", source="b")


def test_parquet_decodes_raw_image_bytes(tmp_path):
    path = tmp_path / "images.parquet"
    write_parquet(path, [{"text": "x", "image": picture()}])
    row = load_formulas(path)[0]
    assert row["image"].size == (6, 4) and row["id"] == "0"


def test_parquet_folder_with_the_hubs_file_names(tmp_path):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        write_parquet(tmp_path / "data" / f"{name}.parquet", [{"id": name, "text": "x", "strokes": STROKES}])
    assert len(load_formulas(tmp_path)) == 3
    assert load_formulas(tmp_path, split="train")["id"][:] == ["train-00000-of-00002", "train-00001-of-00002"]
    with pytest.raises(ValueError, match="no split 'dev'; the files are test-00000-of-00001.parquet, train-00000"):
        load_formulas(tmp_path, split="dev")
    with pytest.raises(ValueError, match="no column 'source'"):
        load_formulas(tmp_path, source="crohme")


def test_parquet_that_is_something_else(tmp_path):
    write_parquet(tmp_path / "a" / "scenes.parquet", [{"polygons": [1]}])
    with pytest.raises(ValueError, match="scenes.parquet: not formulas; it has the columns polygons"):
        load_formulas(tmp_path / "a")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(ValueError, match="b.parquet: not a readable parquet file"):
        load_formulas(tmp_path / "b.parquet")
    write_parquet(tmp_path / "c" / "ink.parquet", ink_rows())
    write_parquet(tmp_path / "c" / "images.parquet", [{"text": "x", "image": picture()}])
    with pytest.raises(ValueError, match="different columns; name one of images.parquet, ink.parquet"):
        load_formulas(tmp_path / "c")


# ------------------------------------------------------------------------------------------------ InkML


def test_inkml_folder_is_normalised_and_bad_files_are_reported(tmp_path, caplog):
    write_inkml(tmp_path / "train" / "w1" / "good.inkml", "$x^2$")
    write_inkml(tmp_path / "train" / "w1" / "mute.inkml", None)
    write_inkml(tmp_path / "train" / "w2" / "unbalanced.inkml", "$x^{2$")
    write_inkml(tmp_path / "train" / "w2" / "nan.inkml", "x", trace="1 nan")
    write_inkml(tmp_path / "test" / "also.inkml", "a+b")
    (tmp_path / "test" / "empty.inkml").write_bytes(b"")
    with caplog.at_level(logging.WARNING, logger="epigraph"):
        rows = load_formulas(tmp_path)
    assert rows["id"][:] == ["test/also", "train/w1/good"]
    assert rows["text"][:] == ["a + b", "x ^ { 2 }"]
    assert rows["truth"][:] == ["a+b", "$x^2$"]
    assert rows["split"][:] == ["test", "train"]
    assert rows[1]["strokes"] == [[1, 2, 3, 4]]
    for report in (rows.info.description, caplog.text):
        assert "6 labels, 2 kept, 4 rejected" in report
        for name in ("mute.inkml", "unbalanced.inkml", "nan.inkml", "empty.inkml"):
            assert name in report
    assert load_formulas(tmp_path, split="train")["id"][:] == ["train/w1/good"]
    with pytest.raises(ValueError, match="no split 'dev'; there are test, train"):
        load_formulas(tmp_path, split="dev")


def test_inkml_folder_without_one_good_file(tmp_path):
    (tmp_path / "empty.inkml").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no usable formula in it \(1 rejected, first empty.inkml: the fi"):
        load_formulas(tmp_path)


@pytest.mark.data
def test_inkml_of_every_sub_collection_gives_the_captions_of_the_shared_data():
    folder = Path(os.environ["EPIGRAPH_DATA"])
    shared = {row["id"]: row for row in load_formulas(folder / "crohme_ink.parquet", split="train")}
    rows = load_formulas(folder / "inkml_samples")
    assert len(rows) == 12 and "13 labels, 12 kept, 1 rejected" in rows.info.description
    compared = [(row, shared[key]) for row in rows if (key := row["id"].split("_", 1)[1]) in shared]
    assert len(compared) >= 10
    for row, known in compared:
        assert row["text"] == known["text"]
        assert [len(stroke) for stroke in row["strokes"]] == [len(stroke) for stroke in known["strokes"]]


# ------------------------------------------------------------------------------------ images with captions

CAPTIONS = "good\tx ^ { 2 }\nlost\ta\nmute\n../../secret\tb\nother\t\\frac { a } { b }\n\n"


def check_caption_rows(rows):
    assert rows["id"][:] == ["good", "other"]
    assert rows["text"][:] == ["x ^ { 2 }", "\\frac { a } { b }"]
    assert set(rows["split"][:]) == {"2014"}
    assert [image.size for image in rows["image"]] == [(6, 4), (6, 4)]
    report = rows.info.description
    assert "lost: no image of that name" in report and "mute: no caption" in report
    assert "secret: not a file name" in report


def test_comer_layout_as_folders(tmp_path):
    for split in ("train", "2014"):
        (tmp_path / "data" / split / "img").mkdir(parents=True)
        (tmp_path / "data" / split / "caption.txt").write_text(CAPTIONS)
        (tmp_path / "data" / split / "img" / "good.bmp").write_bytes(picture(kind="BMP"))
        (tmp_path / "data" / split / "img" / "other.png").write_bytes(picture())
    (tmp_path / "secret.bmp").write_bytes(picture())
    check_caption_rows(load_formulas(tmp_path, split="2014"))
    check_caption_rows(load_formulas(tmp_path / "data", split="2014"))
    one = load_formulas(tmp_path / "data" / "2014")
    assert one["id"][:] == ["good", "other"] and one["split"][:] == [None, None]
    with pytest.raises(ValueError, match="no split '2016'; there are 2014, train"):
        load_formulas(tmp_path, split="2016")


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_comer_layout_as_zip(tmp_path):
    members = {"data/2014/caption.txt": CAPTIONS, "data/2014/img/good.bmp": picture(kind="BMP")}
    members |= {"data/2014/img/other.png": picture(), "data/secret.bmp": picture(), "../evil.txt": b"x"}
    path = zipped(tmp_path / "data.zip", members)
    check_caption_rows(load_formulas(path))
    check_caption_rows(load_formulas(path, split="2014"))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data.zip"]  # nothing is unpacked to disk


def test_bad_zip_files(tmp_path, monkeypatch):
    (tmp_path / "broken.zip").write_bytes(b"PK not a zip")
    with pytest.raises(ValueError, match="broken.zip: not a readable zip"):
        load_formulas(tmp_path / "broken.zip")
    with pytest.raises(ValueError, match="other.zip: no captions in it; expected CoMER's"):
        load_formulas(zipped(tmp_path / "other.zip", {"readme": b"x"}))
    with pytest.raises(ValueError, match=r"bomb.zip/train/caption.txt: larger than 20 MB"):
        load_formulas(zipped(tmp_path / "bomb.zip", {"train/caption.txt": b"0" * (21 * 2**20)}))
    with pytest.raises(ValueError, match=r"latin.zip/train/caption.txt: not UTF-8"):
        load_formulas(zipped(tmp_path / "latin.zip", {"train/caption.txt": "é".encode("latin-1")}))
    path = zipped(tmp_path / "torn.zip", {"train/caption.txt": os.urandom(5000)})
    content = bytearray(path.read_bytes())
    content[100:2000] = bytes(1900)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"torn.zip/train/caption.txt: cannot be unpacked"):
        load_formulas(path)
    monkeypatch.setattr("epigraph.data.readers.MAX_ARCHIVE_BYTES", 100)
    with pytest.raises(ValueError, match="are more than the .* unpack it yourself"):
        load_formulas(zipped(tmp_path / "large.zip", {"train/caption.txt": b"a b\n" * 100}))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_image_folder_with_metadata(tmp_path, kind):
    folder = tmp_path / "images" / "train"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.png").write_bytes(picture())
    (tmp_path / "outside.png").write_bytes(picture())
    rows = [("deep/a.png", r"\frac12, x"), ("b.png", "y"), ("../../outside.png", "z"), ("deep/a.png", " ")]
    if kind == "csv":
        lines = ["file_name,text", *(f'{name},"{text}"' for name, text in rows)]
    else:
        lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
    (folder / f"metadata.{kind}").write_text("\n".join(lines))
    loaded = load_formulas(tmp_path / "images")
    assert loaded["id"][:] == ["deep/a"] and loaded["split"][:] == ["train"]
    assert loaded["text"][:] == [r"\frac 1 2 , x"]
    assert loaded[0]["image"].size == (6, 4)
    report = loaded.info.description
    assert "4 labels, 1 kept, 3 rejected" in report and "b.png: no such image" in report
    assert "outside.png: no such image" in report and "no text" in report


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("metadata.csv", b"name,label\na,b\n", "needs the columns file_name and text; it has label, name"),
        ("metadata.csv", b"file_name,text\n\xff\xfe,b\n", "not readable as csv"),
        ("metadata.jsonl", b"{broken\n", "not readable as jsonl"),
        ("metadata.jsonl", b"3\n", "not readable as jsonl"),
    ],
)
def test_bad_metadata(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught:
        load_formulas(tmp_path)
    assert name in str(caught.value)


# ------------------------------------------------------------------------------------------------ paths


def test_paths_that_lead_nowhere(tmp_path, monkeypatch):
    (tmp_path / "readme.md").write_text("x")
    with pytest.raises(ValueError, match="no formulas found; .* but it holds readme.md"):
        load_formulas(tmp_path)
    with pytest.raises(FileNotFoundError, match="crohme: no such file or folder; .* holds readme.md"):
        load_formulas(tmp_path / "crohme")
    monkeypatch.delenv("EPIGRAPH_NOWHERE", raising=False)
    with pytest.raises(ValueError, match="the environment variable EPIGRAPH_NOWHERE is not set"):
        load_formulas("${EPIGRAPH_NOWHERE}/ink.parquet")
    monkeypatch.setenv("EPIGRAPH_NOWHERE", str(tmp_path))
    assert expand_path("${EPIGRAPH_NOWHERE}/ink.parquet") == tmp_path / "ink.parquet"


# ----------------------------------------------------------------------------------------------- labels


def test_labels_are_brought_to_a_dictionary_with_reasons():
    texts = ["x ^ 2", "x ^ { 2 } _ { a }", r"\mathrm { x }", r"\aleph", "x ^ { 2", r"x \aleph"]
    rows = datasets.Dataset.from_list([{"id": f"row{i}", "text": text} for i, text in enumerate(texts)])
    kept, report = normalise_labels(rows, {"x", "2", "a", "^", "_", "{", "}"})
    # Braces are added where they are missing; the order of scripts alone is no reason to rewrite.
    assert kept["id"][:] == ["row0", "row1", "row2"]
    assert kept["text"][:] == ["x ^ { 2 }", "x ^ { 2 } _ { a }", "x"]
    assert report.labels == 6 and len(report.rejected) == 3
    assert dict(report.rejected)["row3"] == r"not in the vocabulary: \aleph"
    assert report.unknown == {r"\aleph": 2}
    assert "row4" in dict(report.rejected)
    with pytest.raises(ValueError, match="none of the 6 labels can be written"):
        normalise_labels(rows, {"y"})


@pytest.mark.data
def test_official_captions_stay_as_they_are():
    folder = Path(os.environ["EPIGRAPH_DATA"])
    rows = load_formulas(folder / "crohme_bitmaps_2014.parquet")
    vocabulary = {token for text in rows["text"] for token in text.split()}
    kept, report = normalise_labels(rows, vocabulary)
    assert len(kept) == report.labels == 986 and not report.rejected
    assert kept["text"][:] == rows["text"][:]
    assert kept[0]["image"].size == rows[0]["image"].size


# ---------------------------------------------------------------------------------- MathWriting and HME100K


def write_mathwriting(root):
    """Its folders and annotations, with ink and labels of our own."""
    trace = "<trace id='0'>10.5 2 0, 11 30.25 16</trace><trace id='1'>0 15 200.5, 20 15 210</trace>"
    channels = "".join(f"<channel name='{name}' type='decimal'/>" for name in "XYT")
    for split, name, label, normal in [
        ("train", "00a1", r"\dfrac{1}2", r"\frac{1}{2}"),
        ("train", "00a2", r"x\, y", "xy"),
        ("valid", "00b1", r"\mathbb{R}^n", r"\mathbb{R}^{n}"),
        ("test", "00c1", "a+b", None),
        ("symbols", "00d1", r"\alpha", None),
        ("synthetic", "00e1", "z_1", "z_{1}"),
    ]:
        notes = {"sampleId": name, "splitTagOriginal": split, "inkCreationMethod": "human", "label": label}
        notes |= {} if normal is None else {"normalizedLabel": normal}
        text = "".join(f"<annotation type='{kind}'>{value}</annotation>" for kind, value in notes.items())
        path = root / split / f"{name}.inkml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "<?xml version='1.0' encoding='UTF-8'?><ink xmlns='http://www.w3.org/2003/InkML'>"
            f"{text}<traceFormat>{channels}</traceFormat>{trace}</ink>"
        )
    (root / "symbols.jsonl").write_text("{}")


def test_mathwriting(tmp_path):
    write_mathwriting(tmp_path)
    dataset = load_formulas(tmp_path)
    assert sorted(set(dataset["split"])) == ["symbols", "synthetic", "test", "train", "valid"]
    train = load_formulas(tmp_path, split="train")
    assert train["text"][:] == [r"\frac { 1 } { 2 }", "x y"] and train["id"][:] == ["train/00a1", "train/00a2"]
    assert train[0]["strokes"] == [[10.5, 2, 11, 30.25], [0, 15, 20, 15]] and train[0]["truth"] == r"\frac{1}{2}"
    assert load_formulas(tmp_path, split="test")["text"][:] == ["a + b"], "the label where there is no normal one"
    assert load_formulas(tmp_path / "train", split="train")["text"][:] == train["text"][:], "its files say the split"
    with pytest.raises(ValueError, match="no split 'dev'; there are symbols, synthetic, test, train, valid"):
        load_formulas(tmp_path, split="dev")


def test_only_the_splits_files_are_read_and_bad_ones_are_named(tmp_path):
    write_mathwriting(tmp_path)
    (tmp_path / "train" / "00a0.inkml").write_bytes(b"<ink><trace>")
    (tmp_path / "train" / "00a9.inkml").write_bytes(b"")
    (tmp_path / "valid" / "00b0.inkml").write_bytes(b"<ink><trace>")
    train = load_formulas(tmp_path, split="train")
    assert len(train) == 2
    assert "4 labels, 2 kept, 2 rejected" in train.info.description and "train/00a0" in train.info.description
    assert "valid" not in train.info.description


def test_a_writer_is_kept(tmp_path):
    (tmp_path / "a.inkml").write_text(
        "<ink><annotation type='writer'>w7</annotation><annotation type='truth'>x</annotation><trace>1 2</trace></ink>"
    )
    write_inkml(tmp_path / "b.inkml", "y")
    assert load_formulas(tmp_path)["writer"][:] == ["w7", None]


def write_hme100k(root, nested=False):
    for split, lines in {
        "train": ["train_0.jpg\tx ^ { 2 }", "train_1.jpg\t\\frac { 1 } { 2 }", "train_2.jpg\t", "train_9.jpg\tz"],
        "test": ["test_0.jpg\ta + b", "test_1\tc", "gone.jpg\td", "../train/train_0.jpg\te"],
    }.items():
        folder = root / split if nested else root
        (folder / f"{split}_images").mkdir(parents=True)
        (folder / f"{split}_labels.txt").write_text("\n".join(lines) + "\n")
        (folder / f"{split}_images" / f"{split}_9.jpg").write_bytes(b"not a picture")
        for index in range(3):
            (folder / f"{split}_images" / f"{split}_{index}.jpg").write_bytes(picture(50 * index, "JPEG"))


@pytest.mark.parametrize("nested", [False, True])
def test_hme100k(tmp_path, nested):
    write_hme100k(tmp_path, nested)
    (tmp_path / "class_labels.txt").write_text("no images stand beside this one")
    train = load_formulas(tmp_path, split="train")
    assert train["id"][:] == ["train_0", "train_1"]
    assert train["text"][:] == ["x ^ { 2 }", r"\frac { 1 } { 2 }"]
    assert train[1]["image"].size == (6, 4)
    dataset = load_formulas(tmp_path)
    assert dataset["split"][:] == ["test", "test", "train", "train"] and dataset["id"][:2] == ["test_0", "test_1"]
    described = dataset.info.description
    assert "8 labels, 4 kept, 4 rejected" in described and "train_9.jpg: its image cannot be read" in described
    assert "train_2.jpg: no caption in line 3" in described
    assert "gone.jpg: no image of that name" in described and "../train/train_0.jpg: not a file name" in described


def test_hme100k_zipped(tmp_path):
    write_hme100k(tmp_path / "files")
    path = tmp_path / "train.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted((tmp_path / "files").rglob("*")):
            if "train" in file.name and file.is_file():
                archive.write(file, f"./train/{file.relative_to(tmp_path / 'files')}")
    dataset = load_formulas(path)
    assert dataset["id"][:] == ["train_0", "train_1"] and set(dataset["split"]) == {"train"}
    assert dataset[0]["image"].size == (6, 4)


def test_captions_beyond_all_measure_are_refused(tmp_path, monkeypatch):
    write_hme100k(tmp_path)
    monkeypatch.setattr("epigraph.data.readers.MAX_TABLE_BYTES", 10)
    with pytest.raises(ValueError, match="test_labels.txt: larger than"):
        load_formulas(tmp_path)
