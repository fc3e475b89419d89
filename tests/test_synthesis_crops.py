"""Crops of words: what they show, what is said about them, and the recipe that E2STR learns from."""

import string
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2", reason="synthesis needs the extra `train`")

from datasets import load_dataset

from epigraph.data.synthesis import StyleOptions, SynthesisError, WordSampler, contact_sheet, find_fonts, recipe
from epigraph.data.synthesis.crops import CropGenerator, WordCrop
from epigraph.data.synthesis.datasets import draw_sample
from epigraph.data.synthesis.drawing import painted
from epigraph.data.synthesis.fonts import BUILTIN
from epigraph.data.synthesis.layout import lay_out
from epigraph.data.words import load_words
from epigraph.training import parse_recipe

ROOT = Path(__file__).parents[1]
ROOMY = replace(StyleOptions.plain(), height=(0.4, 0.5), width=(0.6, 0.7))


@pytest.fixture
def words(tmp_path):
    (tmp_path / "list.txt").write_text("bread\nwater's\nstreet\nmarket\nhôtel\nI\nof\n" * 3)
    return WordSampler(tmp_path / "list.txt", codes=0.2, without="'s")


def _crops(words, count=40, **options) -> list[WordCrop]:
    make = CropGenerator(find_fonts([BUILTIN]), words, **options)
    return [draw_sample(make, 0, number) for number in range(count)]


def test_crops_are_pure_and_of_many_shapes(words):
    crops, again = _crops(words), _crops(words)
    for crop, other in zip(crops, again, strict=True):
        assert np.array_equal(crop.image, other.image) and crop.text == other.text
    assert len({crop.image.shape for crop in crops}) > 30
    assert all(12 <= crop.image.shape[0] <= 76 for crop in crops)


def test_quads_are_inside_and_one_for_each_character(words):
    for crop in _crops(words):
        height, width = crop.image.shape[:2]
        assert crop.char_quads.shape == (len(crop.text), 4, 2) and crop.char_quads.dtype == np.float32
        assert crop.char_quads.min() >= 0 and (crop.char_quads <= (width, height)).all()
        assert set(crop.text) <= set(string.digits + string.ascii_letters + string.punctuation), crop.text


def _beyond(crop: WordCrop) -> int:
    """How many pixels outside the quads differ from the background that the crop, without effects, was cut from."""
    quads = crop.char_quads.reshape(-1, 2)
    moves = lay_out(crop.style, crop.text).char_quads.reshape(-1, 2) - quads
    left, top = np.rint(moves[0]).astype(int)
    assert np.abs(moves - (left, top)).max() < 1e-2, "the cut is known from the quads"
    height, width = crop.image.shape[:2]
    wall = painted(crop.style.background, crop.style.size)[top : top + height, left : left + width]
    drawn = np.abs(crop.image.astype(int) - wall).max(2) > 8
    assert drawn.any()
    (x0, y0), (x1, y1) = np.floor(quads.min(0)).astype(int), np.ceil(quads.max(0)).astype(int)
    drawn[y0:y1, x0:x1] = False
    return int(drawn.sum())


@pytest.mark.parametrize("neighbors", [0.0, 1.0])
def test_quads_hold_the_ink_and_neighbors_are_outside(words, neighbors):
    crops = _crops(words, 30, neighbors=neighbors, tight=0.0, tones=0.0, sharpened=0.0, options=ROOMY)
    touched = [_beyond(crop) > 0 for crop in crops]
    assert sum(touched) == 0 if neighbors == 0 else sum(touched) > 10


def test_weights_of_faces(words):
    faces = find_fonts([BUILTIN])
    assert len(CropGenerator(faces, words, weights={"Ail": 0.5, "Bold": 0}).faces) == len(faces)
    with pytest.raises(SynthesisError, match="leave none of 1 fonts"):
        CropGenerator(faces, words, weights={"Ail": 0})
    with pytest.raises(SynthesisError, match="16 to 512"):
        CropGenerator(faces, words, heights=(4, 20))
    with pytest.raises(SynthesisError, match="no font"):
        CropGenerator([], words)


def test_shards_are_read_as_words(words, tmp_path):
    arguments = ["--kind", "crops", "--fonts", "built-in", "--words", str(tmp_path / "list.txt"), "--workers", "1"]
    arguments += ["--num_samples", "5", "--shard_size", "3"]
    for name in ("parquet", "webdataset"):
        recipe.main([*arguments, "--out", str(tmp_path / name), "--format", name])
    rows = load_words(tmp_path / "parquet" / "data", split="train")
    make = recipe.build(parse_recipe(arguments, recipe.SynthesisArguments))[0]
    for row in rows:
        crop = draw_sample(make, 0, row["index"])
        assert row["text"] == crop.text and row["source"] == "rendered"
        assert row["image"].size == crop.image.shape[1::-1]
        assert np.array_equal(np.array(row["char_quads"], np.float32), crop.char_quads)
    assert len(rows) == 5
    tar = load_dataset("webdataset", data_files=str(tmp_path / "webdataset" / "data" / "*.tar"), split="train")
    assert tar[0]["json"]["text"] == rows[0]["text"]
    assert "quad around each" in (tmp_path / "parquet" / "README.md").read_text()
    sheet = contact_sheet(make, count=2)
    assert sheet.height > 100


def test_codes_and_what_is_left_out(words):
    assert words.left_out == {"ending in 's": 3}
    rng, characters = np.random.default_rng(0), frozenset(string.printable[:94])
    sampler = WordSampler(codes=1.0, numbers=0.0, rare=0.0)
    drawn = [sampler.sample(rng, characters) for _ in range(3000)]
    found = Counter("plate" if text.isalnum() and text.isupper() else "marked" for text in drawn)
    assert found["plate"] > 800 and len(set(drawn)) > 2500
    assert set("".join(drawn)) > set("()#:.$/&*@[]<>=+")
    with pytest.raises(ValueError, match="codes 0.6"):
        WordSampler(codes=0.6, numbers=0.5)


def test_recipe_of_e2str_says_what_exists():
    args = parse_recipe(["--recipe", str(ROOT / "recipes" / "words_e2str.yaml")], recipe.SynthesisArguments)
    assert args.kind == "crops" and args.out is None
    args.words, args.fonts, args.characters = [], ["built-in"], None
    args.generator["weights"] = {}
    make, _ = recipe.build(args)
    assert draw_sample(make, 0, 0).text
