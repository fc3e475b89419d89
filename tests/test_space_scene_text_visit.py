"""What a visitor of the scene-text Space has: words, a pool of their own, archives of it; and how they are shown."""

import io
import json
import re
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scene_text import SIBLINGS, other, view, visits
from typer.testing import CliRunner
from word_drawings import MEANINGS, draw

import epigraph
from epigraph import reading
from epigraph.context_pool import ContextPool
from epigraph_cli import app as command


def bytes_of(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# --------------------------------------------------------------------------------------------------------------- visit


@pytest.fixture(scope="module")
def loaded(word_reader):
    return reading.load(word_reader)


@pytest.fixture(scope="module")
def encode(loaded):
    return epigraph.encoder(*loaded)


@pytest.fixture
def visit(loaded, encode):
    visit = visits.Visit(*loaded, encode)
    yield visit
    visit.close()


def show(visit, *drawings):
    """Let the visit read drawings, as if they were uploaded."""
    visit.read([(f"{word}.png", visits.picture_of(bytes_of(draw(word, variant)), word)) for word, variant in drawings])
    return visit.words


def test_a_correction_changes_how_its_like_is_read(visit):
    first, second = show(visit, *SIBLINGS)
    assert visit.chosen is first and first.reading.text == second.reading.text and second.reading.score < 0.7
    right = other(first.reading.text)
    assert visit.teach(first, f" {right} ") and visit.label(first) == right and visit.label(second) is None
    wrong = first.reading.text
    assert second in visit.read_anew() and second.before.text == wrong
    assert second.reading.text == right and second.reading.score > 0.9 and second.reading.plain_text == wrong
    assert [example.text for example in second.reading.examples] == [right]
    assert first.reading.examples == [] and first.reading.text == wrong, "no word is its own example"
    assert visit.read_anew() == [] and second.before is None
    assert not visit.teach(first, right), "it stands there already"
    assert visit.teach(second, wrong) and sorted(visit.pool.texts) == sorted(MEANINGS)
    assert visit.teach(second, right) and visit.pool.texts == [right, right], "a correction takes the former's place"


def test_changes_of_the_pool_are_taken_back_one_by_one(visit):
    sign, cat = show(visit, ("SIGN", 0), ("cat", 0))
    assert not visit.can_undo
    visit.teach(sign, "ab")
    visit.teach(cat, "cat")
    visit.teach(sign, "XY")
    assert [text for _, text, _ in visit.entries] == ["cat", "XY"]
    assert all(thumbnail.startswith("data:image/jpeg;base64,") for *_, thumbnail in visit.entries)
    visit.undo()
    assert sorted(visit.pool.texts) == ["ab", "cat"]
    visit.remove(visit.pool.ids[0])
    visit.clear()
    assert visit.entries == []
    visit.undo()
    visit.undo()
    assert sorted(visit.pool.texts) == ["ab", "cat"] and len(visit.entries) == 2
    visit.undo()
    visit.undo()
    assert not visit.can_undo and visit.entries == []
    visit.undo()
    with pytest.raises(KeyError):
        visit.remove("0" * 16)
    visit.clear()


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "needs the word"),
        (" ", "needs the word"),
        ("x" * 49, "at most 48"),
        ("straße", "'ß'"),
        ("a\x07b", "alphabet"),
    ],
)
def test_what_no_example_can_say_is_refused_and_nothing_changes(visit, text, reason):
    (word,) = show(visit, ("cat", 0))
    with pytest.raises(ValueError, match=reason):
        visit.teach(word, text)
    assert visit.entries == [] and not visit.can_undo and visit.label(word) is None


def test_a_visit_is_bounded(visit, monkeypatch):
    monkeypatch.setattr(visits, "MOST_WORDS", 3)
    show(visit, ("SIGN", 0))
    show(visit, ("cat", 0), ("Exit", 0), ("42", 0), ("No!", 0))
    assert [word.reading.text for word in visit.words] == ["cat", "Exit", "42"] and visit.chosen is visit.words[0]

    monkeypatch.setattr(visits, "MOST_ENTRIES", 2)
    for word in visit.words[:2]:
        visit.teach(word, "ab")
    before = visit.pool.ids
    with pytest.raises(ValueError, match="room for 2 words"):
        visit.teach(visit.words[2], "ab")
    assert visit.pool.ids == before and ContextPool.load(visit.folder).ids == before
    assert visit.teach(visit.words[0], "XY"), "a correction needs no more room"
    monkeypatch.setattr(visits, "MOST_ENTRIES", 9)
    monkeypatch.setattr(visits, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match="room for 0 MB"):
        visit.teach(visit.words[2], "ab")
    assert len(visit.pool) == 2


def test_what_was_removed_does_not_fill_the_disk(visit, monkeypatch):
    (word,) = show(visit, ("cat", 0))
    for text in "abcdefgh":
        visit.teach(word, text)
    kept = sum(path.stat().st_size for path in visit.folder.iterdir())
    monkeypatch.setattr(visits, "MOST_ON_DISK", kept)
    visit.teach(word, "cat")
    assert sum(path.stat().st_size for path in visit.folder.iterdir()) < kept / 2
    assert visit.pool.texts == ["cat"] and not visit.can_undo and len(list(visit.folder.glob("shard-*"))) == 1


def test_pictures_are_kept_small(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 3000, 3), dtype=np.uint8))
    assert visits.picture_of(bytes_of(noise), "noise").size == (512, 154)
    small = visits.picture_of(bytes_of(draw("cat")), "cat")
    assert np.array_equal(np.asarray(small), np.asarray(draw("cat").convert("RGB"))), "small ones as they are"
    (tmp_path / "notes.png").write_text("no picture")
    with pytest.raises(ValueError, match="^mine: not an image"):
        visits.picture_of(tmp_path / "notes.png", "mine")
    with pytest.raises(ValueError, match="^strokes: ink"):
        visits.picture_of(b"[[[0, 0], [9, 9]]]", "strokes")


def test_closing_a_visit_deletes_its_pool(loaded, encode):
    visit = visits.Visit(*loaded, encode)
    visit.teach(show(visit, ("cat", 0))[0], "cat")
    folder = visit.folder
    assert list(folder.glob("shard-*"))
    visit.close()
    assert not folder.exists()


# ------------------------------------------------------------------------------------------------------------ archives


def archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def members_of(content):
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return {name: file.read(name) for name in file.namelist()}


@pytest.fixture
def saved(visit):
    """The download of a pool with two words, and one that was removed."""
    sign, cat, exit = show(visit, ("SIGN", 0), ("cat", 0), ("Exit", 0))
    for word, text in ((sign, "XY"), (exit, "Exit"), (cat, "cat")):
        visit.teach(word, text)
    visit.remove(visit.pool.ids[1])
    return visits.packed(visit.folder)


def test_a_download_is_a_pool_of_the_command(saved, visit, tmp_path):
    members = members_of(saved)
    assert all(re.fullmatch(r"pool/(manifest\.json|shard-[0-9a-f]{32}\.parquet)", name) for name in members)
    assert bytes_of(draw("Exit").convert("RGB")) not in b"".join(members.values()), "removed words are not in it"
    assert visit.can_undo and len(visit.pool) == 2, "packing changes nothing"
    zipfile.ZipFile(io.BytesIO(saved)).extractall(tmp_path)
    done = CliRunner().invoke(command, ["pool", "list", str(tmp_path / "pool")])
    assert done.exit_code == 0, done.output
    assert [line.split("\t")[1] for line in done.stdout.splitlines()] == ["XY", "cat"]


def test_a_download_comes_back_into_another_visit(saved, loaded, encode, tmp_path):
    (tmp_path / "mine.zip").write_bytes(saved)
    entries = visits.unpacked(tmp_path / "mine.zip", "mine.zip")
    assert [(text, source) for _, text, source in entries] == [("XY", "corrected"), ("cat", "corrected")]
    visit = visits.Visit(*loaded, encode)
    (sign,) = show(visit, ("SIGN", 7))
    assert visit.add(entries) == 2 and visit.add(entries) == 0
    visit.read_anew()
    assert sign.reading.text == "XY" and sign.reading.examples[0].text == "XY" and len(visit.entries) == 2
    visit.undo()
    assert visit.entries == []
    visit.close()


def test_a_pool_of_another_model_with_several_sources_is_taken(visit, tmp_path):
    def strange(images):
        return np.stack([np.full(7, 1 + image.width, np.float32) for image in images]), np.zeros((len(images), 2, 7))

    pool = ContextPool(strange)
    pool.add([draw("SIGN", 2)], ["ab"], "street")
    pool.add([draw("cat"), draw("42")], ["cat", "42"], "shop")
    photo = bytes_of(draw("Exit").convert("RGB"), "JPEG")
    pool.add([photo], ["Exit"], "street")
    pool.remove(pool.ids[2])
    pool.save(tmp_path / "pool")
    path = archive(tmp_path / "pool.zip", {f.name: f.read_bytes() for f in (tmp_path / "pool").iterdir()})
    entries = visits.unpacked(path, "pool.zip")
    assert [text for _, text, _ in entries] == ["ab", "cat", "Exit"]
    assert visit.add(entries) == 3 and visit.pool.sources() == {"street": 2, "shop": 1}
    assert [image for image, *_ in visits.unpacked(path, "") if image == photo], "a JPEG stays the one it was"
    visit.undo()
    assert visit.entries == [], "an upload is one change"


def test_a_bad_entry_leaves_the_pool_as_it_was(visit):
    visit.teach(show(visit, ("cat", 0))[0], "cat")
    good, again = bytes_of(draw("42")), bytes_of(draw("cat"))
    for bad in ((good, "42", "a"), (b"no image", "x", "b")), ((good, "42", "b"), (good, "43", "b")):
        with pytest.raises(ValueError):
            visit.add([(again, "dog", "a"), *bad])
        assert visit.pool.texts == ["cat"] and ContextPool.load(visit.folder).texts == ["cat"]


def shard(members):
    (name,) = (name for name in members if name.endswith(".parquet"))
    table = pq.read_table(io.BytesIO(members[name]))

    def put(table, **options):
        file = io.BytesIO()
        pq.write_table(table, file, **{"compression": "none", **options})
        return {**members, name: file.getvalue()}

    return name, table, put


def forged(members):
    """Archives that no pool is saved as, each with what is said of it."""
    name, table, put = shard(members)
    manifest = json.loads(members["pool/manifest.json"])
    long = pa.array(["x" * 2_000] * len(table))
    huge = [{"bytes": b"x" * 11_000_000, "path": None}] * len(table)  # which is written once
    many = json.loads(members["pool/manifest.json"])
    many["operations"][0]["shards"][0]["rows"] = 10_000
    strange = table.set_column(table.schema.get_field_index("id"), "id", pa.array(["../../x"] * len(table)))
    yield {}, "no manifest.json"
    yield {"notes.txt": b"x"}, "no manifest.json"
    yield {**members, "pool/manifest.json": b"{"}, "manifest.json is damaged"
    yield {**members, "pool/manifest.json": b"[]"}, "manifest.json is damaged"
    yield {**members, "pool/manifest.json": b" " * 1_000_001}, "larger than 1,000,000"
    yield {**members, "other/manifest.json": members["pool/manifest.json"]}, "several pools"
    yield {"pool/manifest.json": members["pool/manifest.json"]}, "damaged"
    yield {**members, name: members[name][:-50]}, "damaged"
    yield {**members, name: b"PAR1" * 20}, "damaged"
    yield {**members, "pool/manifest.json": json.dumps(many).encode()}, "not what its manifest says|more than 3,000"
    yield put(table.slice(0, 1)), "not what its manifest says"
    for odd in (
        put(table, compression="zstd"),
        put(table.drop_columns("text")),
        put(table.append_column("text", pa.array([["a"] * 9] * len(table)))),
        put(table.set_column(0, "id", pa.array([["a"] * 9] * len(table)))),
    ):
        yield odd, "not as pools are saved"
    repeated = put(
        table.set_column(table.schema.get_field_index("image"), "image", pa.array(huge)), use_dictionary=True
    )
    yield repeated, "no pool has"
    yield put(strange), "no pool has"
    yield put(table.set_column(table.schema.get_field_index("text"), "text", long)), "at most 48"
    yield {**members, **{f"{n}.bin": b"" for n in range(1000)}}, "more than 1,000 files"
    yield {**members, "pad.bin": b"\0" * 20_000_001}, "or 20 MB"
    for change in ({"width": -1}, {"operations": 3}, {"format": 99}):
        yield {**members, "pool/manifest.json": json.dumps({**manifest, **change}).encode()}, "manifest.json"


def test_forged_archives_are_refused_by_name(saved, visit, tmp_path):
    before, cases = visit.pool.ids, list(forged(members_of(saved)))
    for number, (members, reason) in enumerate(cases):
        path = archive(tmp_path / f"{number}.zip", members, zipfile.ZIP_DEFLATED)
        with pytest.raises(ValueError, match=reason) as caught:
            visit.add(visits.unpacked(path, path.name))
        assert str(tmp_path) not in str(caught.value) and "epigraph-visit" not in str(caught.value)
        if reason != "at most 48":
            assert str(caught.value).startswith(f"{number}.zip: "), caught.value
    path = archive(tmp_path / "burst.zip", {"manifest.json": b" " * 99_999}, zipfile.ZIP_DEFLATED)
    burst = path.read_bytes().replace(path.read_bytes()[60:70], b"\xff" * 10)
    archive(tmp_path / "odd.zip", members_of(saved), zipfile.ZIP_BZIP2)
    with pytest.raises(ValueError, match="^odd.zip: it is compressed in an unusual way"):
        visits.unpacked(tmp_path / "odd.zip", "odd.zip")
    for content in (b"", b"no archive", saved[:-30], saved.replace(b"PK\x01\x02", b"PK\x01\x03"), burst):
        (tmp_path / "torn.zip").write_bytes(content)
        with pytest.raises(ValueError, match="^torn.zip: "):
            visits.unpacked(tmp_path / "torn.zip", "torn.zip")
    assert visit.pool.ids == before and len(cases) >= 20


def test_names_in_an_archive_lead_nowhere_else(saved, tmp_path):
    members = {name.replace("pool/", "../../"): content for name, content in members_of(saved).items()}
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    absolute = {str(tmp_path / "evil.txt"): b"x"}
    path = archive(inside / "x.zip", {**members, "../../evil.txt": b"x", **absolute})
    assert [text for _, text, _ in visits.unpacked(path, "x.zip")] == ["XY", "cat"]
    assert sorted(tmp_path.rglob("*")) == sorted([*before, path])


# ---------------------------------------------------------------------------------------------------------------- view


def test_words_and_names_are_text_and_not_html(visit):
    show(visit, ("cat", 0))
    word = visit.words[0]
    word.name = word.reading.text = "<b>'\"&"
    word.reading.char_scores = [0.5] * len(word.reading.text)
    word.reading.n_best[0].text = "<i>'\""
    for page in (view.words(visit), view.answer(visit), view.said("<b>"), view.said("<b>", wrong=True)):
        assert "<b>'" not in page and "<i>'" not in page and "&lt;b&gt;" in page
    visit.teach(word, "<u>'\"")
    assert "<u>" not in view.words(visit) + view.answer(visit) + view.pool(visit)
    assert "&lt;u&gt;&#x27;&quot;" in view.pool(visit)


def test_characters_have_bars_where_each_has_a_probability(visit):
    show(visit, ("Exit", 0))
    found = visit.words[0].reading
    found.text, found.char_scores = "E t", [0.999, 0.2, 0.75]
    bars = re.findall(
        r"<li class=(\w+) style='--sure: ([\d.]+)'><i></i><b>(.+?)</b><span>(.+?)</span>", view.answer(visit)
    )
    assert bars == [("sure", "0.999", "E", "> 99 %"), ("unsure", "0.200", "␣", "20 %"), ("sure", "0.750", "t", "75 %")]
    found.char_scores = [0.9]  # of pieces of words
    assert "<ol class=chars" not in view.answer(visit)
    found.text, found.char_scores = "", []
    assert "<i>nothing</i>" in view.answer(visit) and ">nothing<" in view.words(visit)


def test_no_probability_is_rounded_to_certainty():
    assert [view.percent(score) for score in (0, 0.001, 0.25, 0.994, 0.999, 1)] == [
        "0 %", "< 1 %", "25 %", "99 %", "> 99 %", "100 %",
    ]  # fmt: skip
