"""scripts/peers.py: who reads, what is kept between runs and what is counted; small programs play the peers."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_samples import png, write_words
from word_drawings import WORDS, draw

datasets = pytest.importorskip("datasets")

ROOT = Path(__file__).resolve().parent.parent

# As `fake_samples.written_in`, without what that imports: the programs are started often.
WRITTEN_IN = """
import io
from PIL import Image
def written_in(content):
    picture = Image.open(io.BytesIO(content))
    row = [picture.getpixel((column, 0))[0] for column in range(picture.width)]
    return bytes(row[1 : row[0] + 1]).decode()
"""
# Answers in capitals, and gives up at what is no image.
TESSERACT = """#!{python}
import os, sys
if "--version" in sys.argv:
    print("tesseract 9.9.9\\n leptonica")
    sys.exit()
{written_in}
name, place, *options = sys.argv[1:]
assert (place, options) == ("stdout", ["--psm", "8"]) and os.environ["OMP_THREAD_LIMIT"] == "1"
with open({log!r}, "a") as log:
    log.write("started\\n")
content = open(name, "rb").read()
files = [name] if content[:1] == b"\\x89" or b"bad" in content else content.decode().split()
for number, file in enumerate(files):
    content = open(file, "rb").read()
    if b"bad" in content:
        sys.exit(1)
    print("\\f" * (number > 0) + written_in(content).upper())
"""
RAPIDOCR = """
from types import SimpleNamespace
{written_in}

class RapidOCR:
    def __init__(self, params):
        self.cfg = SimpleNamespace(Rec=SimpleNamespace(ocr_version="PP-OCRv6", model_type="small"))

    def __call__(self, file, use_det, use_cls, use_rec):
        assert (use_det, use_cls, use_rec) == (False, False, True)
        content = open(file, "rb").read()
        if b"bad" in content:
            raise RuntimeError("no image")
        text = written_in(content)
        return SimpleNamespace(txts=None if text == "nothing" else (text[:-1] + "x",))
"""


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import peers

    return peers


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Both peers can be started; the file tells how often tesseract was."""
    names = {"python": sys.executable, "written_in": WRITTEN_IN, "log": str(tmp_path / "started")}
    program = tmp_path / "bin" / "tesseract"
    program.parent.mkdir()
    program.write_text(TESSERACT.format(**names))
    program.chmod(0o755)
    package = tmp_path / "packages"
    (package / "rapidocr-3.10.0.dist-info").mkdir(parents=True)
    (package / "rapidocr-3.10.0.dist-info" / "METADATA").write_text("Name: rapidocr\nVersion: 3.10.0\n")
    (package / "rapidocr.py").write_text(RAPIDOCR.format(**names))
    (package / "cv2.py").write_text("def setNumThreads(number): pass\n")
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(package))
    return tmp_path / "started"


@pytest.fixture
def data(tmp_path):
    texts = ["one", "two", "three", "nothing", "Five!"]
    ids = ["word_1.png", "word_2.png", "word_3.png", "café.jpg", "007#3"]  # the second and third are the pool
    return write_words(tmp_path / "words.parquet", texts, id=ids, source=["signs"] * 5)


def run(peers, data, *arguments, sets=("signs:test",)):
    output = data.parent / "peers.json"
    given = ["--data", data, "--sets", *sets, "--answers", data.parent / "answers", "--output", output, *arguments]
    peers.main([str(argument) for argument in given])
    return json.loads(output.read_text())


def values(results, metric="word_accuracy"):
    return {
        (row["reader"], row["half"]): (row["value"], row["n"]) for row in results["rows"] if row["metric"] == metric
    }


def test_peers_read_the_same_images(peers, started, data, capsys):
    results = run(peers, data, sets=("signs:test", "signs:test:queries"))
    assert values(results) == {
        ("tesseract", None): (1.0, 5), ("rapidocr", None): (0.0, 5),
        ("tesseract", "queries"): (1.0, 3), ("rapidocr", "queries"): (0.0, 3),
    }  # fmt: skip
    assert values(results, "ned")["rapidocr", "queries"][0] == pytest.approx((2 / 3 + 0 + 4 / 5) / 3), "fivex"
    assert results["readers"]["tesseract"] == {"version": "9.9.9", "options": "--psm 8"}
    assert results["readers"]["rapidocr"] == {"version": "3.10.0", "model": "PP-OCRv6 small"}
    assert all(seconds > 0 for seconds, _ in values(results, "cpu_seconds").values())
    assert started.read_text().count("started") == 2, "once for all images of a set"
    assert "| signs:test:queries | 3 | tesseract | 100.00 % | 100.00 % |" in capsys.readouterr().out
    assert results["averages"]["tesseract"]["sets"] == 2 and results["skipped"] == {}


def test_answers_are_kept(peers, started, data):
    run(peers, data, "--peers", "tesseract", "--limit", "2")
    answers = data.parent / "answers" / "tesseract.jsonl"
    lines = answers.read_text().splitlines(keepends=True)
    assert [json.loads(line)["id"] for line in lines[1:]] == ["007#3", "café.jpg"], "SHA-1 1534... and 44cb..."
    answers.write_text("".join(lines[:-1]) + lines[-1][:10])  # as a run leaves it that was killed while it wrote
    assert values(run(peers, data, "--peers", "tesseract")) == {("tesseract", None): (1.0, 5)}
    found = [json.loads(line) for line in answers.read_text().splitlines()[1:]]
    assert sorted(answer["id"] for answer in found) == ["007#3", "café.jpg", "word_1.png", "word_2.png", "word_3.png"]
    assert started.read_text().count("started") == 2
    run(peers, data, "--peers", "tesseract")
    assert started.read_text().count("started") == 2, "nothing is left to be read"
    write_words(data, ["other"], source=["signs"])
    with pytest.raises(ValueError, match="tesseract.jsonl holds answers of .* name another --answers folder"):
        run(peers, data, "--peers", "tesseract")


def test_our_models_read_beside_them(peers, word_reader, tmp_path, monkeypatch):
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    rows = {"image": [png(np.asarray(draw(word))) for word in WORDS], "text": WORDS, "id": list("abcd")}
    rows |= {"split": ["test"] * 4, "source": ["signs"] * 4}
    data = tmp_path / "words.parquet"
    datasets.Dataset.from_dict(rows).to_parquet(data)
    given = ["--peers", "--model", word_reader, "--num_beams", "1"]
    results = run(peers, data, *given)
    name = word_reader.name
    assert values(results) == {(name, None): (1.0, 4)} and len(results["readers"][name]["weights_sha256"]) == 64
    kept = data.parent / "answers" / f"{name}-{results['readers'][name]['weights_sha256'][:8]}.jsonl"
    assert len(kept.read_text().splitlines()) == 1 + 4
    monkeypatch.setattr(peers, "read_all", None)
    assert run(peers, data, *given)["rows"] == results["rows"], "nothing is left to be read"
    with pytest.raises(ValueError, match="have the name of one folder"):
        run(peers, data, *given, "--model", word_reader, word_reader)


def test_an_image_that_a_peer_cannot_open_is_its_wrong_answer(peers, started, tmp_path):
    files = [tmp_path / name for name in "abc"]
    data = write_words(tmp_path / "words.parquet", ["left", "right"], source=["s"] * 2)
    words = peers.WordSet.load(str(data), "s:test", None)
    for file, content in zip(files, [words.images[0], b"bad", words.images[1]]):
        file.write_bytes(content)
    assert peers.Tesseract()(files)[0] == ["LEFT", "", "RIGHT"]
    assert peers.RapidOCR(sys.executable)(files)[0] == ["lefx", "", "righx"]


def test_absent_peers_are_left_out_by_name(peers, data, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    results = run(peers, data, "--rapidocr-python", str(tmp_path / "python"))
    assert results["rows"] == [] and set(results["skipped"]) == {"tesseract", "rapidocr"}
    assert "cannot be run (No such file or directory)" in results["skipped"]["rapidocr"]
    assert "tesseract was left out: no program tesseract" in capsys.readouterr().out
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "cv2.py").write_text("raise ImportError('no such package here')")
    with pytest.raises(peers.Missing, match="has no rapidocr that works .*no such package here"):
        peers.RapidOCR(sys.executable)


@pytest.mark.parametrize("name", ["signs", "signs:test:both", "signs:test:pool:more", ":test:"])
def test_sets_are_named_in_one_form(peers, data, name):
    with pytest.raises(ValueError, match="a set is SOURCE:SPLIT|no source"):
        peers.WordSet.load(str(data), name, None)
