"""Readers of word crops: every layout, what is wrong in them, streams and workers, and the counts of real sets."""

import io
import json
import logging
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

datasets = pytest.importorskip("datasets")
lmdb = pytest.importorskip("lmdb")

from epigraph.data.lmdb_words import LMDBError, WordLMDB  # noqa: E402
from epigraph.data.protocols import CHARSETS  # noqa: E402
from epigraph.data.words import (  # noqa: E402
    check_images,
    half_of,
    keep_words,
    load_checked_words,
    load_words,
    open_word,
    pool_and_queries,
    training_label,
    training_labels,
)
from epigraph.metrics import left_out  # noqa: E402

COLUMNS = ["id", "image", "text", "source", "split"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def picture(number=0, size=(40, 16), mode="RGB", kind="PNG", **options):
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def write_lmdb(folder, records, count=None, changes=None):
    """An LMDB of the field: (image, text) from index 1 on; `changes` are stored or, with None, deleted last."""
    folder.mkdir(parents=True)
    environment = lmdb.open(str(folder), map_size=2**26)
    with environment.begin(write=True) as transaction:
        for index, (image, text) in enumerate(records, start=1):
            transaction.put(b"image-%09d" % index, image)
            transaction.put(b"label-%09d" % index, text.encode())
        transaction.put(b"num-samples", str(len(records) if count is None else count).encode())
        for key, value in (changes or {}).items():
            transaction.delete(key) if value is None else transaction.put(key, value)
    environment.close()
    (folder / "lock.mdb").unlink()
    return folder


def words(count, start=0):
    return [(picture(start + number), f"Word {start + number}!") for number in range(count)]


# ---------------------------------------------------------------------------- LMDB


def test_lmdb_comes_in_the_schema(tmp_path):
    folder = write_lmdb(tmp_path / "IIIT5k", words(3))
    dataset = load_words(folder)
    assert dataset.column_names == COLUMNS and dataset["text"][:] == ["Word 0!", "Word 1!", "Word 2!"]
    assert dataset["id"][:] == ["000000001", "000000002", "000000003"]
    assert set(dataset["source"]) == {"IIIT5k"} and set(dataset["split"]) == {None}
    assert np.array_equal(np.asarray(dataset[1]["image"]), np.asarray(Image.open(io.BytesIO(picture(1)))))
    assert dataset.info.description == "3 records, 3 kept, 0 left out"
    assert os.listdir(folder) == ["data.mdb"], "read without a lock file"
    assert load_words(folder / "data.mdb")["text"][:] == dataset["text"][:]


def test_lock_files_are_no_data_bases(tmp_path):
    folder = write_lmdb(tmp_path / "words", words(2))
    (folder / "lock.mdb").write_bytes(bytes(8192))
    assert len(load_words(folder)) == 2
    (folder / "data.mdb").rename(tmp_path / "words.lmdb")
    dataset = load_words(tmp_path / "words.lmdb")
    assert set(dataset["source"]) == {"words"} and len(dataset) == 2


def test_read_only_folders_are_read(tmp_path):
    folder = write_lmdb(tmp_path / "words", words(2))
    (folder / "data.mdb").chmod(0o444)
    folder.chmod(0o555)
    try:
        assert len(load_words(folder)) == 2
    finally:
        folder.chmod(0o755)


def test_lmdb_trees_tell_source_and_split(tmp_path):
    root = tmp_path / "data"
    write_lmdb(root / "train" / "real" / "ArT", words(2))
    write_lmdb(root / "test" / "SVT", words(3, 10))
    write_lmdb(root / "test" / "CUTE80", words(1, 20))
    dataset = load_words(root)
    assert (
        list(zip(dataset["split"], dataset["source"]))
        == [("test", "CUTE80")] + [("test", "SVT")] * 3 + [("train", "ArT")] * 2
    )
    assert len(set(dataset["id"])) == 6 and dataset[1]["id"] == "test/SVT/000000001"
    assert load_words(root, split="train")["text"][:] == ["Word 0!", "Word 1!"]
    assert load_words(root, split="test", source="SVT")["text"][:] == ["Word 10!", "Word 11!", "Word 12!"]
    with pytest.raises(ValueError, match="no split 'val'; there are test, train"):
        load_words(root, split="val")
    with pytest.raises(ValueError, match="no source 'IC13'; there are ArT, CUTE80, SVT"):
        load_words(root, source="IC13")


def test_bad_records_are_left_out_and_named(tmp_path, caplog):
    good = picture(1)
    changes = {
        b"image-000000002": None,
        b"label-000000003": None,
        b"image-000000004": b"",
        b"image-000000005": b"no image at all",
        b"image-000000006": good[: len(good) // 2],
        b"label-000000007": b"\xff\xfe\x00",
        b"label-000000008": b"  ",
        b"image-000000009": pickle.dumps(np.zeros((4, 4))),
        b"image-000000010": b'<?xml version="1.0"?><ink/>',
        b"image-000000011": b"\0" * (20 * 2**20 + 1),
        b"label-000000012": b"a" * 50_000,
    }
    folder = write_lmdb(tmp_path / "set", words(13), changes=changes)
    with caplog.at_level(logging.WARNING, logger="epigraph"):
        dataset = load_words(folder)
    assert dataset["id"][:] == ["000000001", "000000013"]
    report = dataset.info.description
    assert report.splitlines()[0] == "13 records, 2 kept, 11 left out" and report in caplog.text
    for line in (
        "no image under its key: 1, namely 000000002",
        "no label under its key: 1, namely 000000003",
        "the image is empty: 1, namely 000000004",
        "not an image, or damaged at its beginning: 3, namely 000000005, 000000009, 000000010",
        "the image is damaged: 1, namely 000000006",
        "label that is not UTF-8: 1, namely 000000007",
        "no text: 1, namely 000000008",
        "image of more than 20 MB: 1, namely 000000011",
        "label of more than 40000 bytes: 1, namely 000000012",
    ):
        assert f"  {line}" in report.splitlines()
    assert load_words(folder).info.description == report, "from the cache, too"


@pytest.mark.parametrize("streaming", [False, True])
def test_records_behind_num_samples_are_counted(tmp_path, caplog, streaming):
    folder = write_lmdb(tmp_path / "set", words(5), count=3)
    with caplog.at_level(logging.WARNING, logger="epigraph"):
        assert [row["text"] for row in load_words(folder, streaming=streaming)] == ["Word 0!", "Word 1!", "Word 2!"]
    assert "5 records, 3 kept, 2 left out" in caplog.text
    assert "behind the last record that num-samples counts: 2, namely 000000004, 000000005" in caplog.text


def test_a_damaged_page_is_an_error_with_the_file(tmp_path):
    folder = write_lmdb(tmp_path / "set", words(20))
    content = bytearray((folder / "data.mdb").read_bytes())
    content[2 * 4096 : 3 * 4096] = b"\xab" * 4096
    (folder / "data.mdb").write_bytes(bytes(content))
    with pytest.raises(LMDBError, match="set/data.mdb: not a readable LMDB .*MDB_CORRUPTED"):
        load_words(folder)


def test_cache_follows_the_data_base(tmp_path):
    folder = write_lmdb(tmp_path / "set", words(2))
    assert load_words(folder)["text"][:] == ["Word 0!", "Word 1!"]
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    write_lmdb(folder, words(2, 5))
    assert load_words(folder)["text"][:] == ["Word 5!", "Word 6!"]


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (None, "it has no num-samples"),
        (b"many", "the unreadable value b'many' as num-samples"),
        (b"-1", "num-samples states -1 records"),
        (b"999999999999", "num-samples states 999,999,999,999 records, but there are 5 keys"),
        (b"9" * 30, "num-samples states 9"),
        (b"0", "000000001: behind the last record that num-samples counts"),
        (pickle.dumps(2), "the unreadable value"),
    ],
)
def test_num_samples_is_not_trusted(tmp_path, stored, message):
    folder = write_lmdb(tmp_path / "set", words(2), changes={b"num-samples": stored})
    with pytest.raises(ValueError, match=message):
        load_words(folder)


def test_files_that_are_no_lmdb_or_cut_off_are_told(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "data.mdb").write_bytes(b"no data base" * 1000)
    with pytest.raises(LMDBError, match="data.mdb: not a readable LMDB"):
        load_words(tmp_path / "text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "data.mdb").write_bytes(b"")
    with pytest.raises(LMDBError, match="not a readable LMDB"):
        load_words(tmp_path / "empty")
    folder = write_lmdb(tmp_path / "cut", words(30))
    content = (folder / "data.mdb").read_bytes()
    (folder / "data.mdb").write_bytes(content[: len(content) // 2])
    with pytest.raises(LMDBError, match="cut off: it should have"):
        load_words(folder)


def test_nothing_usable_is_an_error(tmp_path):
    folder = write_lmdb(tmp_path / "set", [(b"x", "a"), (b"y", "b")])
    with pytest.raises(ValueError, match="no usable word in it; the first, 000000001: not an image"):
        load_words(folder)


def test_lmdb_objects_travel_to_other_processes(tmp_path):
    base = WordLMDB(write_lmdb(tmp_path / "set", words(4)) / "data.mdb")
    assert len(base) == 4 and base.record(2)[2] == b"Word 1!"
    again = pickle.loads(pickle.dumps(base))
    assert [label for _, _, label in again.records(3)] == [b"Word 2!", b"Word 3!"]
    process = os.fork()
    if not process:  # the child has the parent's environment and must not use it
        right = base.record(4)[2] == b"Word 3!"
        os._exit(0 if right else 1)
    assert os.waitpid(process, 0)[1] == 0
    assert [index for index, *_ in base.records()] == [1, 2, 3, 4], "and the parent reads on"


# ------------------------------------------------------------------------- streams


def test_lmdb_streams_with_workers(tmp_path, monkeypatch):
    from torch.utils.data import DataLoader

    monkeypatch.setattr("epigraph.data.words.SHARD", 5)
    folder = write_lmdb(tmp_path / "set", words(23), changes={b"image-000000007": b"broken"})
    stream = load_words(folder, streaming=True)
    assert isinstance(stream, datasets.IterableDataset) and stream.num_shards == 5
    assert list(stream.features) == COLUMNS
    alone = [row["text"] for row in stream]
    assert alone == [f"Word {number}!" for number in range(23) if number != 6]
    loader = DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert sorted(row["text"] for row in loader) == sorted(alone), "every record once, whatever worker reads it"
    assert not list((tmp_path / "cache").rglob("*.arrow")), "nothing is copied"
    shuffled = [row["text"] for row in stream.shuffle(seed=0, buffer_size=4)]
    assert sorted(shuffled) == sorted(alone) != shuffled
    two = iter(stream), iter(stream)  # both have the data base open in one process
    assert [next(rows)["text"] for rows in two] == ["Word 0!"] * 2


def test_streams_log_what_they_leave_out(tmp_path, caplog):
    folder = write_lmdb(tmp_path / "set", words(3), changes={b"label-000000002": None})
    with caplog.at_level(logging.WARNING, logger="epigraph"):
        assert len(list(load_words(folder, streaming=True))) == 2
    assert (
        "3 records, 2 kept, 1 left out" in caplog.text and "no label under its key: 1, namely 000000002" in caplog.text
    )


def test_parquet_streams_as_it_loads(tmp_path):
    path = tmp_path / "words.parquet"
    rows = {
        "image": [picture(number, kind="JPEG") for number in range(4)],
        "text": ["a", "B", "c d", "!"],
        "split": ["train", "test", "test", "test"],
        "source": ["x", "x", "x", "y"],
    }
    datasets.Dataset.from_dict(rows).to_parquet(path)
    for split, source, texts in ((None, None, ["a", "B", "c d", "!"]), ("test", "x", ["B", "c d"])):
        loaded = load_words(path, split, source)
        stream = list(load_words(path, split, source, streaming=True))
        assert loaded["text"][:] == [row["text"] for row in stream] == texts
        assert np.array_equal(np.asarray(stream[0]["image"]), np.asarray(loaded[0]["image"]))
        assert [row["id"] for row in stream] == loaded["id"][:]
    load_words(path).to_parquet(tmp_path / "again.parquet")  # with images as `datasets` stores them
    again = load_words(tmp_path / "again.parquet", streaming=True)
    assert [(row["id"], row["text"], row["image"].size) for row in again] == [
        (str(number), text, (40, 16)) for number, text in enumerate(["a", "B", "c d", "!"])
    ]
    for streaming in (False, True):
        with pytest.raises(ValueError, match="no split 'val'; there are test, train"):
            load_words(path, "val", streaming=streaming)
        with pytest.raises(ValueError, match="no source 'z'; there are x, y"):
            load_words(path, source="z", streaming=streaming)
    datasets.Dataset.from_dict({"image": rows["image"]}).to_parquet(tmp_path / "bare.parquet")
    with pytest.raises(ValueError, match="not words; it has the columns image, but 'image' and 'text' are needed"):
        load_words(tmp_path / "bare.parquet", streaming=True)


def test_parquet_streams_leave_out_what_is_damaged_and_say_so(tmp_path, caplog):
    content = picture(1)
    rows = {"image": [content, content[:60], None, content, content], "text": ["a", "b", "c", " ", "e"]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "words.parquet")
    with caplog.at_level(logging.WARNING, logger="epigraph"):
        stream = list(load_words(tmp_path / "words.parquet", streaming=True))
    assert [(row["id"], row["text"], row["image"].size) for row in stream] == [
        ("0", "a", (40, 16)),
        ("4", "e", (40, 16)),
    ]
    for line in ("5 records, 2 kept, 3 left out", "no image: 1, namely 2", "no text: 1, namely 3"):
        assert line in caplog.text


# ------------------------------------------------------------------------- folders


def image_folder(folder, table, content, count=3):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(picture(number))
    (folder / table).write_text(content, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("table", "content"),
    [
        ("metadata.csv", 'file_name,text\n0.png,"say ""hi"", you"\n1.png,B\n2.png,ü\n'),
        ("labels.csv", '\ufefftext,file_name\n"say ""hi"", you",0.png\nB,1.png\nü,2.png\n'),
        (
            "metadata.jsonl",
            "".join(
                json.dumps({"file_name": f"{n}.png", "text": t}) + "\n"
                for n, t in enumerate(['say "hi", you', "B", "ü"])
            ),
        ),  # fmt: skip
        ("labels.tsv", 'file_name\ttext\n0.png\tsay "hi", you\n1.png\tB\n2.png\tü\n'),
        ("labels.tsv", '0.png\tsay "hi", you\n1.png\tB\n2.png\tü\n'),
        ("gt.txt", '0.png\tsay "hi", you\n\n1.png\tB\n2.png\tü\n'),
    ],
)
def test_folders_with_a_table(tmp_path, table, content):
    folder = image_folder(tmp_path / "shop", table, content)
    for place in (folder, folder / table):
        dataset = load_words(place)
        assert dataset.column_names == COLUMNS and dataset["text"][:] == ['say "hi", you', "B", "ü"]
        assert dataset["id"][:] == ["0.png", "1.png", "2.png"] and set(dataset["source"]) == {"shop"}
        assert np.array_equal(np.asarray(dataset[2]["image"]), np.asarray(Image.open(io.BytesIO(picture(2)))))
    stream = list(load_words(folder, streaming=True))
    assert [row["text"] for row in stream] == dataset["text"][:]
    assert np.array_equal(np.asarray(stream[2]["image"]), np.asarray(dataset[2]["image"]))


def test_tables_of_several_splits_and_with_columns_of_their_own(tmp_path):
    image_folder(tmp_path / "data" / "train", "metadata.csv", "file_name,text,source\n0.png,a,signs\n1.png,b,cars\n")
    image_folder(tmp_path / "data" / "test", "metadata.csv", "file_name,text\n0.png,c\n")
    dataset = load_words(tmp_path / "data")
    assert list(zip(dataset["id"], dataset["split"], dataset["source"])) == [
        ("test/0.png", "test", "test"),
        ("train/0.png", "train", "signs"),
        ("train/1.png", "train", "cars"),
    ]
    assert load_words(tmp_path / "data", "train", "cars")["text"][:] == ["b"]
    with pytest.raises(ValueError, match="no split 'val'; there are test, train"):
        load_words(tmp_path / "data", "val")


def test_bad_lines_of_a_table_are_left_out_and_named(tmp_path):
    (tmp_path / "secret.png").write_bytes(picture(9))
    content = "0.png\tgood\nmissing.png\tx\n../secret.png\ty\n1.png\t \n2.png\tz\n"
    folder = image_folder(tmp_path / "shop", "labels.txt", content)
    (folder / "2.png").write_bytes(b"no image")
    dataset = load_words(folder)
    assert dataset["id"][:] == ["0.png"]
    assert dataset.info.description.splitlines() == [
        "5 records, 1 kept, 4 left out",
        "  no such image beside the table: 2, namely missing.png, ../secret.png",
        "  no text: 1, namely 1.png",
        "  not an image, or damaged at its beginning: 1, namely 2.png",
    ]


def test_lists_with_spaces_and_tables_of_any_name(tmp_path):
    folder = image_folder(tmp_path / "shop", "labels.txt", "0.png OPEN\n1.png no exit\n2.png\ta b\n")
    assert load_words(folder)["text"][:] == ["OPEN", "no exit", "a b"]
    for name, content in (
        ("train_list.txt", "0.png x\n"),
        ("mine.csv", "file_name,text\n0.png,x\n"),
        ("mine.jsonl", '{"file_name": "0.png", "text": "x"}\n'),
        ("mine.tsv", "file_name\ttext\n0.png\tx\n"),
    ):
        (folder / name).write_text(content)
        assert load_words(folder / name)["text"][:] == ["x"]
    assert len(load_words(folder)) == 3, "of a folder only tables of the usual names"


@pytest.mark.parametrize(
    ("table", "content", "message"),
    [
        ("metadata.csv", "file,label\n0.png,a\n", "row 1 lacks a file_name or a text; it has file, label"),
        ("metadata.jsonl", "{broken\n", "metadata.jsonl: not readable as jsonl"),
        ("gt.txt", "0.png\n", "line 1 has 1 values between tabs; it needs 2, file name and text"),
        ("labels.tsv", "file_name\ttext\n0.png\ta\tb\n", "line 2 has 3 values between tabs; it needs 2"),
        ("gt.txt", "", "no lines in .*gt.txt: no words"),
    ],
)
def test_tables_that_do_not_fit_are_told(tmp_path, table, content, message):
    with pytest.raises(ValueError, match=message):
        load_words(image_folder(tmp_path / "shop", table, content))


def test_unknown_layouts_are_told(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load_words(tmp_path / "nowhere")
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(ValueError, match="no words found; expected parquet files, data.mdb, or images with one of"):
        load_words(tmp_path)
    monkeypatch.delenv("NO_SUCH_PLACE", raising=False)
    with pytest.raises(ValueError, match="NO_SUCH_PLACE is not set"):
        load_words("${NO_SUCH_PLACE}/words")


# -------------------------------------------------------------------------- images


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("P", "GIF"), ("LA", "PNG"), ("RGBA", "PNG"), ("CMYK", "JPEG"),
     ("L", "JPEG"), ("I;16", "PNG"), ("CMYK", "TIFF"), ("RGBA", "WEBP"), ("I;16", "TIFF")],
)  # fmt: skip
def test_images_of_every_mode_are_read(tmp_path, mode, kind):
    pixels = np.zeros((16, 40), np.uint8)
    pixels[:, 20:] = 255
    image = Image.fromarray(pixels)
    image = Image.fromarray(pixels.astype(np.uint16) * 257) if mode == "I;16" else image.convert("RGB").convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    opened = open_word(buffer.getvalue(), "crop")
    assert opened.mode in ("L", "RGB", "RGBA") and opened.size == (40, 16)
    grey = np.asarray(opened.convert("L")).astype(int)
    assert grey[:, :16].max() < 20 and grey[:, 24:].min() > 235
    dataset = load_words(write_lmdb(tmp_path / "set", [(buffer.getvalue(), "a")]))
    assert dataset[0]["image"].size == (40, 16)


def png_header(width, height):
    import zlib

    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    end = b"IEND"
    pieces = [struct.pack(">I", 13), body, struct.pack(">I", zlib.crc32(body))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces) + struct.pack(">I", 0) + end + struct.pack(">I", zlib.crc32(end))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "crop: the image is empty"),
        (png_header(0, 10), "crop: "),
        (b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 0, 5, 1, 24, 0, 0, 0, 0, 0, 0), "crop: "),
        (png_header(9000, 9000), r"no pixels or too many \(9000 x 9000\)"),
        (png_header(60_000, 60_000), "crop: not an image, or damaged"),
        (b"<ink/>", "crop: not an image"),
        (b"[[0, 0]]", "crop: not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "crop: not an image"),
    ],
)
def test_crops_of_no_size_too_large_or_no_images_are_refused(content, message):
    with pytest.raises(ValueError, match=message):
        open_word(content, "crop")


def test_a_single_pixel_is_a_word_image():
    assert open_word(picture(size=(1, 1)), "crop").size == (1, 1)
    assert open_word(picture(size=(4000, 1)), "crop").size == (4000, 1)


def test_check_images_finds_damage_in_parquet(tmp_path):
    content = picture(3)
    rows = {"image": [content, content[:60], content, None], "text": ["a", "b", " ", "c"], "id": list("wxyz")}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "words.parquet")
    kept, report = check_images(load_words(tmp_path / "words.parquet"))
    assert kept["id"][:] == ["w"] and report.records == 4
    assert [name for name, _ in report.left_out] == ["x", "y", "z"]
    assert [reason.split(" (")[0] for _, reason in report.left_out] == ["the image is damaged", "no text", "no image"]


# -------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("text", "characters", "expected"),
    [
        ("It's", CHARSETS["94"], ("It's", None)),
        ("It's", CHARSETS["36"], (None, "outside the character set (')")),
        ("ITs", CHARSETS["36"], ("its", None)),
        ("a b", CHARSETS["94"], ("ab", None)),
        (" a  b ", CHARSETS["94"] + " ", ("a b", None)),
        ("café", CHARSETS["94"], ("cafe", None)),
        ("cafe\u0301", CHARSETS["94"] + "é", ("café", None)),
        ("日本x日", CHARSETS["94"], (None, "outside the character set (日 本)")),
        ("a" * 26, CHARSETS["94"], (None, "longer than 25 characters")),
        ("a" * 25, CHARSETS["94"], ("a" * 25, None)),
        ("  ", CHARSETS["94"], (None, "no text")),
    ],
)
def test_training_labels_are_written_or_refused(text, characters, expected):
    assert training_label(text, characters) == expected


def test_training_labels_report_what_they_refuse():
    rows = datasets.Dataset.from_dict({"id": list("abcde"), "text": ["ok", "日本", "日x", "a" * 30, "É"]})
    kept, report = training_labels(rows, CHARSETS["94"])
    assert kept["id"][:] == ["a", "e"] and kept["text"][:] == ["ok", "E"]
    assert str(report).splitlines() == [
        "5 records, 2 kept, 3 left out",
        "  outside the character set: 2, namely b, c",
        "  longer than 25 characters: 1, namely d",
    ]
    with pytest.raises(ValueError, match="none of the 5 labels can be written"):
        training_labels(rows, "Z")


# ---------------------------------------------------------------------- real words


@pytest.fixture(scope="module")
def real_words():
    folder = os.environ.get("EPIGRAPH_DATA")
    if not folder or not (Path(folder) / "words.parquet").is_file():
        pytest.skip("EPIGRAPH_DATA does not hold words.parquet")
    return Path(folder) / "words.parquet"


# By `printf %s NAME | sha1sum`, of what stands before a `#`, which ends in
POOL = ["001#19", "001#17", "002#0", "é.png", "word_2.png", "word_3.png"]  # e193...72, 6fc9...4c, c0, 30, 82: even
QUERIES = ["word_1.png", "café.jpg", "007#3", "009#0", "009#12"]  # 6419...ad, 44cb...bd, 1534...81, 19b3...69: odd


def test_pool_and_queries_are_told_by_the_ids(tmp_path):
    names = [*QUERIES[:1], *POOL, *QUERIES[1:]]
    rows = datasets.Dataset.from_dict({"id": names, "text": names})
    pool, queries = pool_and_queries(rows)
    assert pool["id"][:] == POOL
    assert queries["id"][:] == queries["text"][:] == QUERIES
    alone, none = pool_and_queries(rows.select([1]))
    assert alone["id"][:] == ["001#19"] and len(none) == 0, "the other words have no say"
    assert half_of(rows, None, "words") is rows and half_of(rows, "queries", "words")["id"][:] == queries["id"][:]
    with pytest.raises(ValueError, match="words: none of its 1 words is in the half 'queries'"):
        half_of(rows.select([1]), "queries", "words")
    data = tmp_path / "words.parquet"
    datasets.Dataset.from_dict({"id": names, "text": names, "image": [picture()] * len(names)}).to_parquet(data)
    checked, report = load_checked_words(data, half="queries", limit=2)
    assert checked["id"][:] == QUERIES[:2] and report.records == 2, "the half, and then the first of it"


@pytest.mark.data
def test_no_receipt_stands_in_both_halves(real_words):
    sizes = {("train", "icdar15"): (2242, 2226), ("train", "sroie"): (993, 1007), ("test", "alpr_us"): (99, 123)}
    for (split, source), expected in sizes.items():
        halves = pool_and_queries(load_words(real_words, split, source))
        assert tuple(map(len, halves)) == expected
        pool, queries = ({name.split("#")[0] for name in half["id"]} for half in halves)
        assert not pool & queries


@pytest.mark.data
def test_benchmarks_have_the_sizes_of_the_field(real_words):
    sizes = {("test", "iiit5k"): 3000, ("train", "iiit5k"): 2000, ("test", "icdar13"): 1095, ("train", "svt"): 257}
    for (split, source), size in sizes.items():
        assert len(load_words(real_words, split, source)) == size
    whole = load_words(real_words, "test", "icdar13")
    assert len(keep_words(whole, alnum=True)) == 1015 and len(keep_words(whole, alnum=True, min_length=3)) == 857
    assert sum(whole["alnum"]) == 1015, "the file's own mark agrees"
    iiit5k = load_words(real_words, "test", "iiit5k")
    assert len(keep_words(iiit5k, alnum=True)) == 3000 and left_out(iiit5k["text"][:], "36") == {}
    assert left_out(keep_words(whole, alnum=True)["text"][:], "36") == {}


@pytest.mark.data
def test_real_crops_go_through_an_lmdb_unchanged(real_words, tmp_path):
    rows = load_words(real_words, "test", "icdar13").select(range(40))
    stored = rows.cast_column("image", datasets.Image(decode=False))
    folder = write_lmdb(tmp_path / "IC13_1095", [(row["image"]["bytes"], row["text"]) for row in stored])
    again = load_words(folder)
    assert again["text"][:] == rows["text"][:] and set(again["source"]) == {"IC13_1095"}
    for left, right in zip(again, rows):
        assert np.array_equal(np.asarray(left["image"]), np.asarray(right["image"]))
    kept, report = check_images(rows)
    assert len(kept) == 40 and not report.left_out
