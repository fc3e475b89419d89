"""Shards: what libraries read in them, that they are the same however made, and that a kill costs nothing."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import Image, load_dataset
from fake_samples import FakeGenerator

from epigraph.data.synthesis import shards
from epigraph.data.synthesis.datasets import SynthesisDataset
from epigraph.data.synthesis.shards import ShardPlan, write_shards


def plan(out, make=None, num_samples=50, **options):
    options = {"shard_size": 20, "seed": 5, "description": {"recipe": {"kind": "fake"}}, **options}
    return ShardPlan(make or FakeGenerator(), out, num_samples, **options)


def contents(folder):
    """Every file below a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders of both formats, made in this process."""
    root = tmp_path_factory.mktemp("shards")
    for kind in shards.FORMATS:
        write_shards(plan(root / kind, format=kind), workers=1, progress=False)
    return root


def test_parquet_is_read_by_datasets(made, tmp_path):
    files = str(made / "parquet" / "data" / "*.parquet")
    rows = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    expected = SynthesisDataset(FakeGenerator(), 50, seed=5)
    assert rows["index"] == list(range(50)) and isinstance(rows.features["image"], Image)
    for row, sample in zip(rows, expected):
        assert np.array_equal(row["image"], sample.images[0]) and np.array_equal(row["images"][1], sample.images[1])
        assert row["text"] == sample.row()["text"] and np.array_equal(row["quads"], sample.row()["quads"])
    folder = load_dataset(str(made / "parquet"), split="train", cache_dir=str(tmp_path))
    assert folder.num_rows == 50, "the data is found in the folder"


def test_webdataset_is_read_by_datasets(made, tmp_path):
    rows = load_dataset(str(made / "webdataset"), split="train", cache_dir=str(tmp_path))
    expected = SynthesisDataset(FakeGenerator(), 50, seed=5)
    assert rows.num_rows == 50
    for row, sample in zip(rows, expected):
        assert np.array_equal(row["image.png"], sample.images[0])
        assert np.array_equal(row["images_1.png"], sample.images[1])
        assert row["json"]["text"] == sample.row()["text"] and row["json"]["index"] == int(row["__key__"])
        assert np.array_equal(row["json"]["quads"], sample.row()["quads"])
    with tarfile.open(made / "webdataset" / "data" / "train-00001-of-00003.tar") as tar:
        members = tar.getmembers()
    assert members[0].name == "000000020.image.png" and len(members) == 4 * 20
    assert {(m.mtime, m.uid, m.uname, m.mode) for m in members} == {(0, 0, "", 0o644)}


def test_the_manifest_says_what_was_made(made):
    import hashlib

    manifest = json.loads((made / "parquet" / "manifest.json").read_text())
    assert manifest["seed"] == 5 and manifest["recipe"] == {"kind": "fake"} and manifest["rows"] == 50
    assert {"numpy", "pillow", "opencv-python-headless", "freetype2", "pyarrow"} <= set(manifest["versions"])
    assert [shard["samples"] for shard in manifest["shards"]] == [20, 20, 10]
    for shard in manifest["shards"]:
        content = (made / "parquet" / shard["file"]).read_bytes()
        assert shard["sha256"] == hashlib.sha256(content).hexdigest() and shard["bytes"] == len(content)
    dataset = SynthesisDataset(FakeGenerator(), 50, seed=5)
    list(dataset)
    assert manifest["rejected"] == dict(dataset.rejected) and manifest["skipped"] == {}
    card = (made / "parquet" / "README.md").read_text()
    assert "50 rows" in card and "3 shards" in card and "kind: fake" in card and "the word … does not fit" in card


def test_processes_and_order_change_no_byte(made, tmp_path):
    (tmp_path / "out" / "data").mkdir(parents=True)
    (tmp_path / "out" / "data" / ".left.partial").write_bytes(b"by a run that was killed")
    shards.replace_file(tmp_path / "out" / "manifest.json", shards._as_json(plan(tmp_path).header()))
    write_shards(plan(tmp_path / "out"), workers=2, progress=False)
    assert contents(tmp_path / "out") == contents(made / "parquet")


def test_what_is_there_is_not_made_again(made, tmp_path, monkeypatch):
    import shutil

    out = tmp_path / "out"
    shutil.copytree(made / "webdataset", out)
    (out / "data" / "train-00001-of-00003.tar").unlink()
    with (out / "data" / "train-00002-of-00003.tar").open("ab") as file:
        file.write(b"more")
    written, write_shard = [], shards.write_shard
    monkeypatch.setattr(
        shards, "write_shard", lambda plan, index, tick: (written.append(index), write_shard(plan, index))
    )
    write_shards(plan(out, format="webdataset"), workers=1, progress=False)
    assert written == [1, 2] and contents(out) == contents(made / "webdataset")


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path):
    """SIGKILL to the parent in the middle of shards: its workers go too, and nothing half-made has a shard's name."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom fake_samples import FakeGenerator\n"
        "from epigraph.data.synthesis.shards import ShardPlan, write_shards\n"
        "if __name__ == '__main__':\n"
        "    write_shards(ShardPlan(FakeGenerator(seconds=0.01), Path(sys.argv[1]), 600, 40, seed=9), workers=2)\n"
    )
    script, out = tmp_path / "run.py", tmp_path / "killed"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    run = subprocess.Popen([sys.executable, str(script), str(out)], env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 240
    while len(list(out.glob("data/train-*"))) < 2:
        assert run.poll() is None and time.monotonic() < deadline, run.stderr.read().decode()
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stderr.read()  # ends when the last worker has gone
    whole = {path.name for path in out.glob("data/train-*")}
    assert 2 <= len(whole) < 15 and list(out.glob("data/.*.partial")), "it was killed in the middle"
    before = {name: (out / "data" / name).stat().st_mtime_ns for name in whole}

    calm = ShardPlan(FakeGenerator(), tmp_path / "calm", 600, 40, seed=9)
    write_shards(calm, workers=1, progress=False)
    write_shards(ShardPlan(FakeGenerator(), out, 600, 40, seed=9), workers=1, progress=False)
    assert contents(out) == contents(tmp_path / "calm")
    kept = sum((out / "data" / name).stat().st_mtime_ns == before[name] for name in whole)
    assert kept >= len(whole) - 2, "at most the two without a record yet are made again"


def test_an_interrupted_shard_leaves_nothing(tmp_path):
    def tick():
        raise KeyboardInterrupt

    wanted = plan(tmp_path / "out")
    shards.prepare_folder(wanted)
    with pytest.raises(KeyboardInterrupt):
        shards.write_shard(wanted, 0, tick)
    assert list(contents(tmp_path / "out")) == ["manifest.json"]


def test_a_full_disk_leaves_no_half_shard_and_is_named(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    wanted = plan(tmp_path / "out")
    shards.prepare_folder(wanted)
    monkeypatch.setattr(shards.os, "fsync", full)
    with pytest.raises(OSError, match="train-00000-of-00003.parquet cannot be written .No space left on device."):
        write_shards(wanted, workers=1, progress=False)
    assert list(contents(tmp_path / "out")) == ["manifest.json"]
    monkeypatch.undo()
    assert write_shards(wanted, workers=1, progress=False)["rows"] == 50


@pytest.mark.parametrize(
    "recipe, said",
    [
        ({"kind": "words"}, "words in one style with labels that are exact"),
        ({"kind": "scenes", "backgrounds": ["photos"]}, "in the column `styles`, and from the text; some of the back"),
        ({"kind": "formulas", "ink": "ink.parquet"}, "a formula as ink, put together from the pen strokes"),
        ({"kind": "formulas"}, "the skeletons of fonts"),
    ],
)
def test_the_card_says_what_a_row_is(recipe, said, made):
    from epigraph.cards import dataset_card

    manifest = json.loads((made / "parquet" / "manifest.json").read_text())
    card = dataset_card({**manifest, "recipe": recipe})
    assert said in card and ("`style" in card) == (recipe["kind"] != "formulas")


def test_folders_of_the_same_name_are_not_taken_for_each_other(tmp_path):
    """`datasets` keeps what it read in a cache; there, other shards are other data."""
    for parent, seed in (("one", 5), ("two", 6)):
        out = tmp_path / parent / "words"
        made = write_shards(plan(out, num_samples=20 + seed, seed=seed), workers=1, progress=False)
        rows = load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
        assert rows.num_rows == made["rows"] == 20 + seed


def test_folders_that_cannot_be_made_are_named(tmp_path):
    (tmp_path / "file").write_text("here")
    with pytest.raises(OSError, match="the folder .*file/out cannot be made .*; name another one"):
        write_shards(plan(tmp_path / "file" / "out"), workers=1, progress=False)


def test_broken_samples_are_left_out_and_counted(tmp_path, caplog):
    manifest = write_shards(plan(tmp_path / "out", FakeGenerator(broken=0.3)), workers=1, progress=False)
    (reason, count), = manifest["skipped"].items()  # fmt: skip
    assert reason == "KeyError: …" and manifest["rows"] == 50 - count and 5 < count < 30
    assert sum(f"sample {i} of" in caplog.text for i in range(50)) == 3, "one traceback for each shard"
    hopeless = plan(tmp_path / "groups", FakeGenerator(rejected=0.5, members=2), attempts=2)
    manifest = write_shards(hopeless, workers=1, progress=False)
    assert manifest["rows"] == 2 * (50 - manifest["skipped"]["no attempt succeeded"]) < 100


@pytest.mark.parametrize("workers", [1, 2])
def test_a_shard_without_any_sample_is_an_error(tmp_path, workers):
    with pytest.raises(ValueError, match="none of the 20 samples of train-0000[01]-of-00003.parquet .* does not fit"):
        write_shards(plan(tmp_path / "out", FakeGenerator(rejected=1.0)), workers=workers, progress=False)
    assert not list(tmp_path.glob("out/data/*"))


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"seed": 6}, "seed: 5 there, 6 now"),
        ({"num_samples": 60}, "num_samples: 50 there, 60 now"),
        ({"description": {"recipe": {"kind": "fake", "blur": [1, 2]}}}, r"recipe.blur: null there, \[1, 2\] now"),
        ({"format": "webdataset"}, 'format: "parquet" there, "webdataset" now'),
    ],
)
def test_a_folder_of_another_plan_is_refused(made, changed, message):
    before = contents(made / "parquet")
    with pytest.raises(ValueError, match=f"parquet was made from something else .{message}.; name another"):
        write_shards(plan(made / "parquet", **changed), workers=1, progress=False)
    assert contents(made / "parquet") == before


def test_other_versions_are_refused(made, monkeypatch):
    others = {**shards.versions(), "pillow": "1.0"}
    monkeypatch.setattr(shards, "versions", lambda: others)
    with pytest.raises(ValueError, match='else .versions.pillow: "[0-9.]+" there, "1.0" now.; name'):
        write_shards(plan(made / "parquet"), workers=1, progress=False)


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds files but no manifest.json"):
        write_shards(plan(tmp_path), workers=1)
    assert list(contents(tmp_path)) == ["notes.txt"]


@pytest.mark.parametrize("wrong", [{"format": "zip"}, {"num_samples": 0}, {"shard_size": 0}, {"seed": -1}])
def test_plans_that_cannot_be_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        plan(tmp_path, **wrong)
