"""A context pool on disk: other writers, killed processes, failing disks, damaged files, the Hub."""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import traceback

import numpy as np
import pytest

pytest.importorskip("faiss", reason="faiss-cpu is not installed")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")

from test_context_pool import Encoder, picture, pool_of, texts

from epigraph import context_pool, pool_storage
from epigraph.context_pool import ContextPool

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")


@pytest.fixture(autouse=True)
def temporary_files(tmp_path_factory, monkeypatch):
    """What killed children leave behind is thrown away with the test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("staging")))


def child(run) -> int:
    """Start `run` in a fork, which shares what was imported; its process id."""
    if pid := os.fork():
        return pid
    try:
        run()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def listing(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != pool_storage.LOCK}


@needs_fork
def test_writers_at_the_same_time_lose_nothing(tmp_path):
    folder = tmp_path / "pool"
    pool_of(0).save(folder)

    def write(writer):
        for number in range(3):
            pool = ContextPool.load(folder, Encoder())
            for entry in (0, 1):
                seed = 1 + 100 * writer + 10 * number + entry
                pool.add([picture(seed)], [f"word{seed}"], source=f"writer{writer}")
            pool.save()

    children = [child(lambda writer=writer: write(writer)) for writer in range(4)]
    sizes = []
    while children:
        pool = ContextPool.load(folder, Encoder())
        sizes.append(len(pool))
        for example in pool.search([picture(999)], k=3)[0]:
            assert example.image.size == (12, 6)
        for pid in list(children):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                children.remove(pid)
                assert os.waitstatus_to_exitcode(status) == 0
    assert sizes == sorted(sizes) and all(size % 2 for size in sizes), "a reader saw half of what was saved"
    pool = ContextPool.load(folder, Encoder())
    assert pool.sources() == {"": 1} | {f"writer{writer}": 6 for writer in range(4)}


def test_what_two_loaded_pools_do_is_merged(tmp_path):
    pool_of(1, 2, 3).save(tmp_path)
    first, second = (ContextPool.load(tmp_path, Encoder()) for _ in range(2))
    first.add([picture(4), picture(5)], ["word4", "same"])
    first.remove(first.ids[0])
    second.add([picture(5)], ["same"])
    second.remove(second.ids[1])
    first.save()
    assert sorted(texts(second)) == ["same", "word1", "word3"], "nothing changes unasked"
    second.save()
    assert sorted(texts(second)) == ["same", "word3", "word4"]
    first.refresh()
    assert sorted(texts(first)) == sorted(texts(second)) == sorted(texts(ContextPool.load(tmp_path, Encoder())))


@pytest.mark.parametrize("rewrite", ["compact", "reencode"])
def test_a_pool_is_rewritten_while_others_write_and_read(tmp_path, rewrite):
    pool_of(1, 2, 3).save(tmp_path)
    rewriter, writer, reader = (ContextPool.load(tmp_path, Encoder()) for _ in range(3))
    (lazy, _) = reader.search([picture(9)], k=2)[0]
    new = Encoder(7, width=6) if rewrite == "reencode" else Encoder()
    rewriter.compact() if rewrite == "compact" else rewriter.reencode(new)
    writer.add([picture(4)], ["word4"])
    writer.save()
    rewriter.save()
    pool = ContextPool.load(tmp_path, new)
    assert sorted(texts(pool)) == ["word1", "word2", "word3", "word4"]
    assert len(pool.search([picture(9)], k=9)[0]) == 4
    if rewrite == "compact":
        assert np.asarray(lazy.image).shape == (6, 12, 3), "found again in the new shard"
        reader._latents.clear()
        assert len(reader.search([picture(9)], k=9)[0]) == 4
        writer.undo()  # of an operation that stands as it was
        writer.save()
        assert sorted(texts(ContextPool.load(tmp_path, new))) == ["word1", "word2", "word3"]
    else:
        writer.add([picture(5)], ["word5"])
        with pytest.raises(ValueError, match="made by another encoder"):
            writer.save()
        assert len(ContextPool.load(tmp_path, new)) == 4


def test_what_reads_shards_finds_them_after_another_process_compacted(tmp_path):
    pool_of(1, 2, 3).save(tmp_path)
    first, second, third = (ContextPool.load(tmp_path, Encoder()) for _ in range(3))
    third.add([picture(4)], ["word4"])
    names = second.ids
    first.compact()
    first.save()
    assert [example.text for example in second.examples(names)] == ["word1", "word2", "word3"]
    third.compact()
    third.save()
    found = sorted(texts(ContextPool.load(tmp_path, Encoder())))
    assert found == sorted(texts(third)) == ["word1", "word2", "word3", "word4"]


def test_undoing_what_another_process_has_compacted(tmp_path):
    pool_of(1).save(tmp_path)
    first = ContextPool.load(tmp_path, Encoder())
    first.add([picture(2)], ["word2"])
    first.save()
    second = ContextPool.load(tmp_path, Encoder())
    second.compact()
    second.save()
    first.undo()
    first.save()
    assert texts(first) == texts(ContextPool.load(tmp_path, Encoder())) == ["word1"]
    third = ContextPool.load(tmp_path, Encoder())
    third.compact()
    second.compact()
    third.save()
    with pytest.raises(ValueError, match="was rewritten or undone by another process"):
        second.save()


def test_a_removal_that_another_process_made_final_cannot_be_undone(tmp_path):
    pool_of(1, 2).save(tmp_path)
    first = ContextPool.load(tmp_path, Encoder())
    first.remove(first.ids[0])
    first.save()
    second = ContextPool.load(tmp_path, Encoder())
    second.compact()
    second.save()
    assert first.undo()[1] and len(first) == 2
    with pytest.raises(ValueError, match="was rewritten or undone by another process"):
        first.save()
    assert texts(ContextPool.load(tmp_path, Encoder())) == ["word2"]


def test_another_pool_is_not_overwritten_unasked(tmp_path):
    pool_of(1).save(tmp_path)
    before = listing(tmp_path)
    with pytest.raises(ValueError, match="holds another pool"):
        pool_of(2).save(tmp_path)
    assert listing(tmp_path) == before
    pool_of(2).save(tmp_path, overwrite=True)
    assert texts(ContextPool.load(tmp_path, Encoder())) == ["word2"]
    assert len(list(tmp_path.glob("shard-*"))) == 1
    with pytest.raises(ValueError, match="no folder yet"):
        pool_of(3).save()


def test_a_copy_is_a_pool_of_its_own_folder(tmp_path):
    pool = pool_of(1, 2)
    pool.save(tmp_path / "one")
    pool.add([picture(3)], ["word3"])
    pool.save(tmp_path / "two")
    shutil.rmtree(tmp_path / "one")
    assert sorted(texts(ContextPool.load(tmp_path / "two", Encoder()))) == ["word1", "word2", "word3"]


# ----------------------------------------------------------------------------------------- killed, or the disk is full


def changed(folder):
    """A loaded pool that adds, removes and undoes, with the texts before and after it is saved."""
    pool = ContextPool.load(folder, Encoder())
    before = sorted(texts(pool))
    pool.undo()
    pool.add([picture(7), picture(8)], ["word7", "word8"])
    pool.remove(pool.ids[0])
    return pool, before, sorted(texts(pool))


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "saved"
    pool = pool_of(1, 2)
    pool.add([picture(3)], ["word3"])
    pool.save(folder)
    return folder


@needs_fork
@pytest.mark.parametrize("step", [17, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_every_line_of_save(saved, tmp_path, step):
    """SIGKILL between any two lines (or at every 17th) leaves the old pool or the new one, and saving again works."""
    watched = {pool_storage.__file__, context_pool.__file__}
    outcomes = []
    for number in range(1, 2000, step):
        folder = tmp_path / f"pool{number}"
        shutil.copytree(saved, folder)
        pool, before, after = changed(folder)

        def save(pool=pool, number=number):
            lines = 0

            def trace(frame, event, _):
                nonlocal lines
                if frame.f_code.co_filename not in watched:
                    return None
                lines += event == "line"
                if lines == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return trace

            sys.settrace(trace)
            pool.save()

        status = status_of(child(save))
        found = sorted(texts(ContextPool.load(folder, Encoder())))
        assert found in (before, after), f"killed at line {number}"
        outcomes.append(found == after)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        pool.save()
        assert sorted(texts(ContextPool.load(folder, Encoder()))) == after
        named = {shard.file for shard in pool_storage.read_manifest(folder).shards}
        assert set(listing(folder)) == {"manifest.json", *named}, "leftovers of the killed process"
        shutil.rmtree(folder)
    assert status == 0 and len(outcomes) > 100 / step and outcomes == sorted(outcomes) and not outcomes[0]


def test_a_failing_disk_at_every_step_of_save(saved, tmp_path, monkeypatch):
    class Failing:
        """The module `os`, one call of which fails."""

        def __init__(self, number):
            self.left, self.failed = number, False

        def __getattr__(self, name):
            function = getattr(os, name)
            if name not in ("fsync", "replace", "link", "unlink", "open"):
                return function

            def call(*args, **kwargs):
                self.left -= 1
                if self.left == 0:
                    self.failed, self.name = True, name
                    raise OSError(errno.ENOSPC, "No space left on device")
                return function(*args, **kwargs)

            return call

    raised = 0
    for number in range(1, 100):
        folder = tmp_path / f"pool{number}"
        shutil.copytree(saved, folder)
        pool, before, after = changed(folder)
        failing = Failing(number)
        monkeypatch.setattr(pool_storage, "os", failing)
        try:
            pool.save()
        except OSError as error:
            raised += 1
            assert re.fullmatch(rf"{folder} could not be written \(.*\); nothing is lost: .*\.", str(error))
            assert sorted(texts(ContextPool.load(folder, Encoder()))) == before
            assert sorted(texts(pool)) == after, "the changes are still there to be saved"
            if failing.name != "unlink":
                assert set(listing(folder)) == set(listing(saved)), "what takes room on a full disk"
        monkeypatch.setattr(pool_storage, "os", os)
        pool.save()
        assert sorted(texts(ContextPool.load(folder, Encoder()))) == after
        if not failing.failed:
            break
    assert raised >= 2 and not failing.failed


def test_folders_that_cannot_be_one_are_told(tmp_path):
    pool = pool_of(1)
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "pool"):
        with pytest.raises(OSError, match=f"^{place} could not be written"):
            pool.save(place)
    with pytest.raises(FileNotFoundError, match="file holds no context pool"):
        ContextPool.load(tmp_path / "file")
    pool.save(tmp_path / "pool")
    (example,) = (looked_at := ContextPool.load(tmp_path / "pool")).examples(looked_at.ids)
    assert example.text == "word1" and example.latents is None and example.image.tobytes() == picture(1).tobytes()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_folder_is_searched_and_not_written(saved):
    saved.chmod(0o555)
    try:
        pool = ContextPool.load(saved, Encoder())
        assert len(pool.search([picture(9)], k=9)[0]) == 3
        pool.add([picture(4)], ["word4"])
        with pytest.raises(PermissionError, match="could not be written"):
            pool.save()
    finally:
        saved.chmod(0o755)
    pool.save()
    assert len(ContextPool.load(saved, Encoder())) == 4


def test_what_was_saved_is_read_before_others_may_rewrite_it(saved, monkeypatch):
    """While the lock is held: the shards of another writer may be gone right after."""
    pool = ContextPool.load(saved, Encoder())
    other = ContextPool.load(saved, Encoder())
    other.add([picture(4)], ["word4"])
    other.save()
    held, locked = [], context_pool.locked

    @contextlib.contextmanager
    def watched(folder):
        with locked(folder):
            held.append(True)
            yield
            held.clear()

    opened, read_shard = [], context_pool.read_shard
    monkeypatch.setattr(context_pool, "locked", watched)
    monkeypatch.setattr(context_pool, "read_shard", lambda *args: opened.append(bool(held)) or read_shard(*args))
    pool.remove(pool.ids[0])
    pool.save()
    assert opened == [True] and len(pool) == 3


def test_adding_that_fails_midway_leaves_nothing(tmp_path):
    pool = pool_of(1)
    pool.save(tmp_path)
    before, calls = listing(tmp_path), []

    def encode(images):
        calls.append(len(images))
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return Encoder()(images)

    pool.encode = encode
    with pytest.raises(RuntimeError, match="out of memory"):
        pool.add([picture(n) for n in range(10, 60)], [f"word{n}" for n in range(10, 60)])
    assert calls == [32, 18] and texts(pool) == ["word1"] and listing(tmp_path) == before
    assert not list(os.scandir(pool._staging.name))


def test_a_writer_that_waits_too_long_says_so(tmp_path, monkeypatch):
    pool_of(1).save(tmp_path)
    pool = ContextPool.load(tmp_path, Encoder())
    pool.add([picture(2)], ["word2"])
    monkeypatch.setattr(pool_storage, "LOCK_SECONDS", 0.05)
    with pool_storage.locked(tmp_path), pytest.raises(TimeoutError, match="has been written by another process"):
        pool.save()
    pool.save()
    assert len(ContextPool.load(tmp_path, Encoder())) == 2


def test_threads_share_a_pool():
    pool = pool_of(*range(5))
    failures = []

    def work(worker):
        try:
            for number in range(5):
                seed = 100 + 10 * worker + number
                pool.add([picture(seed)], [f"word{seed}"])
                assert len(pool.search([picture(999)], k=3)[0]) == 3
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not failures and len(pool) == 25


# -------------------------------------------------------------------------------------------------------------- damage


def test_a_damaged_shard_is_named(saved):
    pool = ContextPool.load(saved, Encoder())
    shard = saved / pool._history.saved[0].shards[0].file
    whole = shard.read_bytes()
    image = whole.find(b"\x89PNG") + 60
    key = whole.find(np.asarray(pool._entries.index.keys([0])[0]).tobytes())
    assert image > 60 and key > 0

    def flipped(place):
        return whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]

    for content in (whole[: len(whole) // 2], b"", flipped(key), b"x" * len(whole)):
        shard.write_bytes(content)
        with pytest.raises(ValueError, match=f"{shard.name} is damaged"):
            ContextPool.load(saved, Encoder())
    shard.write_bytes(flipped(image))
    pool = ContextPool.load(saved, Encoder())
    with pytest.raises(ValueError, match=f"{shard.name} is damaged"):
        pool.search([picture(9)], k=3)
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name} is missing"):
        ContextPool.load(saved, Encoder())
    shard.write_bytes(whole)
    assert len(ContextPool.load(saved, Encoder()).search([picture(9)], k=3)[0]) == 3


def test_a_damaged_manifest_is_named(saved):
    path = saved / "manifest.json"
    whole = json.loads(path.read_text())

    def with_file(name):
        content = json.loads(json.dumps(whole))
        content["operations"][0]["shards"][0]["file"] = name
        return json.dumps(content)

    damaged = ["", "{", "[]", json.dumps({"format": 1}), with_file("../elsewhere.parquet"), with_file("a.parquet")]
    damaged += [json.dumps(whole | {"width": "8"}), json.dumps(whole | {"width": 10**9})]
    for content in damaged:
        path.write_text(content)
        with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
            ContextPool.load(saved, Encoder())
    path.write_text(json.dumps(whole | {"format": 99}))
    with pytest.raises(ValueError, match="later version of epigraph"):
        ContextPool.load(saved, Encoder())
    path.write_text(json.dumps(whole | {"width": 9}))
    with pytest.raises(ValueError, match="is damaged"):
        ContextPool.load(saved)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="holds no context pool"):
        ContextPool.load(saved, Encoder())


def test_a_shard_from_elsewhere_is_checked(saved):
    manifest = pool_storage.read_manifest(saved)
    row = {"id": "0" * 16, "image": b"", "text": "word", "source": "", "added_at": "2026", "pixels": "0" * 32}
    key = np.ones((1, 8), np.float32)
    for wrong, keys in [
        ({"id": "no number"}, key),
        ({"pixels": "../../x"}, key),
        ({"text": "x" * 1001}, key),
        ({"text": None}, key),
        ({}, np.full((1, 8), np.nan)),
        ({}, np.ones((1, 9))),
    ]:
        shard = pool_storage.write_shard(saved, [row | wrong], keys)
        with pytest.raises(ValueError, match=f"{shard.file} is damaged"):
            pool_storage.read_shard(saved, shard, 8)
    shard = pool_storage.write_shard(saved, [row], key)
    manifest.operations.append(pool_storage.Operation("another", "2026", (shard,)))
    pool_storage.write_manifest(saved, manifest)
    pool = ContextPool.load(saved, Encoder())
    with pytest.raises(ValueError, match="entry 0000000000000000: "):
        pool.examples(["0" * 16])


def test_writers_who_contradict_each_other_lose_nothing(saved):
    first, second = (ContextPool.load(saved, Encoder()) for _ in range(2))
    first.add([picture(1)], ["uno"], replace=True)
    second.add([picture(1)], ["eins"], replace=True)
    first.save()
    second.save()
    assert sorted(texts(second)) == ["eins", "uno", "word2", "word3"]
    assert sorted(example.text for example in second.search([picture(1)], k=9)[0]) == ["word2", "word3"]
    second.add([picture(1)], ["eins"], replace=True)
    assert sorted(texts(second)) == ["eins", "word2", "word3"]


def test_the_folder_is_a_data_set(saved):
    import datasets

    rows = datasets.load_dataset("parquet", data_files=str(saved / "shard-*.parquet"), split="train", cache_dir=saved)
    assert sorted(rows["text"]) == ["word1", "word2", "word3"]
    assert rows[0]["image"].size == (12, 6) and len(rows[0]["key"]) == 8


def test_a_pool_goes_to_the_hub_and_comes_back(hub, hub_env, run_python, saved):
    tests = os.path.dirname(__file__)
    run_python(
        f"""
import sys
sys.path.insert(0, {tests!r})
from test_context_pool import Encoder, picture, texts
from epigraph.context_pool import ContextPool
pool = ContextPool.load({str(saved)!r}, Encoder())
pool.remove(pool.ids[0])
print(pool.push_to_hub("me/words", license="cc-by-4.0"))
back = ContextPool.load("me/words", Encoder())
assert texts(back) == texts(pool) == ["word2", "word3"] and back.path is None
assert back.search([picture(9)]) == pool.search([picture(9)])
back.add([picture(5)], ["word5"])
back.save("copy")
assert texts(ContextPool.load("copy", Encoder())) == ["word2", "word3", "word5"]
try:
    ContextPool.load("me/absent", Encoder())
except FileNotFoundError as error:
    assert "me/absent" in str(error)
else:
    raise AssertionError
""",
        hub_env,
    )
    files = hub.repos["dataset", "me/words"].files
    assert sum(name.startswith("shard-") for name in files) == 1 and "pool.lock" not in files
    card = files["README.md"].decode()
    assert "license: cc-by-4.0" in card and "| not stated | 2 |" in card and "shard-*.parquet" in card
