"""Word images: exact pairs, labels, determinism, what each effect does, sampled styles, bad input."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest
import shapely
from synthesis_styles import COLUMN, DEGRADED, GEOMETRY, LOOKS, inside, make_style

from epigraph.data.synthesis.backgrounds import TEXTURES
from epigraph.data.synthesis.drawing import contrast, degrade, draw
from epigraph.data.synthesis.fonts import BUILTIN, SynthesisError, open_face
from epigraph.data.synthesis.glyph_targets import glyph_target
from epigraph.data.synthesis.rendering import GroupGenerator, WordGenerator, WordSample, render
from epigraph.data.synthesis.sampling import StyleOptions, sample_style
from epigraph.data.synthesis.scenes import SceneGenerator
from epigraph.data.synthesis.style import Baseline, Border, Degradation, Fill, Shadow, Style

EFFECTS = GEOMETRY | LOOKS
FACE = open_face(BUILTIN)


class Words:
    """A word list that needs no file."""

    words = ("sign", "Harbour", "EXIT", "joy", "fresh", "1984", "quartz", "BAKERY", "it", "Photograph")

    def sample(self, rng, characters):
        return self.words[int(rng.integers(len(self.words)))]


def test_images_of_a_style_differ_only_in_their_footprints():
    for name, values in EFFECTS.items():
        style = make_style(**values)
        sample = render(style, ["Wafgjord", "Quiz"], degrade=False)
        assert sample.images.shape == (2, *style.size, 3) and sample.images.dtype == np.uint8
        for image, mask, effects in zip(sample.images, sample.masks, sample.effect_masks):
            np.testing.assert_array_equal(image[effects == 0], sample.background[effects == 0], err_msg=name)
            assert (effects >= mask).all() and (image != sample.background).any(), name
        untouched = (sample.effect_masks == 0).all(0)
        assert 0.1 < untouched.mean() < 1
        np.testing.assert_array_equal(*(image[untouched] for image in sample.images), err_msg=name)


@pytest.mark.parametrize("name", EFFECTS)
def test_labels_fit_the_ink(name):
    style = make_style(**EFFECTS[name])
    text = "Wafgjord"
    sample = render(style, text, degrade=False)
    mask, owners, quads = sample.masks[0], sample.char_maps[0], sample.char_quads[0]
    assert sorted(set(owners.ravel())) == [0, *range(1, 9)]
    np.testing.assert_array_equal(owners > 0, mask > 0)
    for index, quad in enumerate(quads, 1):
        within = inside(quad, style.size)
        assert mask[within & (owners == index)].sum() >= 0.99 * mask[owners == index].sum()
        assert not mask[within & (owners > 0) & (owners != index)].any()


@pytest.mark.parametrize("name", GEOMETRY)
def test_glyph_images_fill_the_word_polygon(name):
    style = make_style(**GEOMETRY[name])
    sample = render(style, "HHHHHH", degrade=False)
    # Letters and the gaps between them: the hulls of all pairs of neighbours.
    count, parts = cv2.connectedComponents((sample.glyphs[0] > 127).astype(np.uint8))
    assert count == 7
    points = [np.argwhere(parts == part)[:, ::-1] + 0.5 for part in range(1, count)]
    points.sort(key=lambda part: part.mean(0)[1 if "column" in name else 0])
    hulls = [
        shapely.MultiPoint(np.concatenate(pair)).buffer(0.5, cap_style="square").convex_hull
        for pair in zip(points, points[1:])
    ]
    word, polygon = shapely.union_all(hulls), shapely.Polygon(sample.polygons[0])
    assert word.intersection(polygon).area / word.union(polygon).area >= 0.9


def test_records_go_through_json_exactly():
    rng = np.random.default_rng(0)
    styles = [make_style(**values, degradation=DEGRADED) for values in EFFECTS.values()]
    styles += [sample_style(rng, [FACE], (32, 128)) for _ in range(50)]
    for style in styles:
        assert Style.from_json(json.loads(json.dumps(style.to_json()))) == style
    again = Style.from_json(json.loads(json.dumps(styles[-1].to_json())))
    np.testing.assert_array_equal(render(again, "same").images, render(styles[-1], "same").images)


CHILD = """
import sys, json, hashlib
from epigraph.data.synthesis.rendering import render
from epigraph.data.synthesis.style import Style
digest = hashlib.sha256()
for values in json.load(sys.stdin):
    sample = render(Style.from_json(values), ["Wafg", "jord"])
    parts = sample.images, sample.background, sample.masks, sample.effect_masks, sample.glyphs
    for part in (*parts, *sample.char_quads):
        digest.update(part.tobytes())
print(digest.hexdigest())
"""


def test_another_process_draws_the_same_pixels():
    styles = [make_style(**values, degradation=DEGRADED).to_json() for values in EFFECTS.values()]
    rng = np.random.default_rng(3)
    styles += [sample_style(rng, [FACE], (64, 256)).to_json() for _ in range(20)]
    digest = hashlib.sha256()
    # In another order, after other words: nothing that was drawn before may leave a trace.
    for values in styles[::-1]:
        render(Style.from_json(values), "before")
    for values in styles:
        sample = render(Style.from_json(values), ["Wafg", "jord"])
        parts = sample.images, sample.background, sample.masks, sample.effect_masks, sample.glyphs
        for part in (*parts, *sample.char_quads):
            digest.update(part.tobytes())
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    run = subprocess.run(
        [sys.executable, "-c", CHILD], input=json.dumps(styles), capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == digest.hexdigest()


def test_the_erased_background_is_degraded_like_the_images():
    style = make_style(degradation=DEGRADED, align=0.0)
    clean, sample = render(style, ["ab", "ba"], degrade=False), render(style, ["ab", "ba"])
    np.testing.assert_array_equal(degrade([clean.background], DEGRADED, style.seed)[0], sample.background)
    np.testing.assert_array_equal(degrade([clean.images[1]], DEGRADED, style.seed)[0], sample.images[1])
    assert np.abs(sample.background.astype(int) - clean.background).mean() > 1
    # Away from the letters, noise and all are the same to the last bit.
    far = sample.effect_masks.any((0, 1)).nonzero()[0].max() + 48
    assert far < 200
    np.testing.assert_array_equal(sample.images[0][:, far:], sample.background[:, far:])


@pytest.mark.parametrize("field", ["blur", "motion", "resample", "noise", "jpeg"])
def test_every_degradation_does_something_on_its_own(field):
    clean = render(make_style(), "word", degrade=False).images[0]
    result = degrade([clean], replace(Degradation(motion_angle=20.0), **{field: getattr(DEGRADED, field)}), 1)[0]
    assert result.shape == clean.shape and result.dtype == np.uint8
    difference = np.abs(result.astype(int) - clean)
    assert 0.3 < difference.mean() < 20
    assert np.abs(result.mean((0, 1)) - clean.mean((0, 1))).max() < 3


def test_noise_is_that_of_a_sensor_and_leaves_global_chance_alone():
    gray = np.full((75, 131, 3), 128, np.uint8)
    before = np.random.get_state()[1].copy()
    noise, again = (degrade([gray], Degradation(noise=10.0), 5)[0].astype(float) - 128 for _ in range(2))
    np.testing.assert_array_equal(noise, again)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    assert abs(noise.mean()) < 0.5 and noise.std((0, 1)) == pytest.approx([10, 10, 10], rel=0.05)
    flat = noise.reshape(-1, 3)
    assert np.corrcoef(flat.T)[np.triu_indices(3, 1)] == pytest.approx([0.64] * 3, abs=0.05)
    assert abs(np.corrcoef(noise[:, 1:-1:2, 0].ravel(), noise[:, 2::2, 0].ravel())[0, 1]) < 0.05
    assert (degrade([gray], Degradation(noise=10.0), 6)[0] != again + 128).any()


@pytest.mark.parametrize("name", LOOKS)
def test_every_effect_changes_the_picture(name):
    plain, sample = (render(make_style(**values), "word", degrade=False) for values in ({}, LOOKS[name]))
    assert np.abs(sample.images[0].astype(int) - plain.images[0]).max() > 20
    if name in ("border", "shadow", "extrusion"):
        assert (sample.effect_masks[0] > 0).sum() > 1.1 * (plain.effect_masks[0] > 0).sum()


def test_effects_look_as_they_say():
    ink = render(make_style(), "I", degrade=False).masks[0]
    solid = ink == 255
    image = render(make_style(), "I", degrade=False).images[0]
    np.testing.assert_array_equal(image[solid], np.broadcast_to((20, 20, 90), image[solid].shape))
    half = render(make_style(opacity=0.5), "I", degrade=False)
    expected = 0.5 * half.background[solid] + 0.5 * np.array((20, 20, 90))
    np.testing.assert_allclose(half.images[0][solid], expected, atol=1)
    multiplied = render(make_style(blend="multiply"), "I", degrade=False)
    expected = multiplied.background[solid] * np.array((20, 20, 90)) / 255
    np.testing.assert_allclose(multiplied.images[0][solid], expected, atol=1)
    bordered = render(make_style(border=Border(0.1, (255, 0, 0))), "I", degrade=False)
    grown = cv2.dilate(ink, np.ones((3, 3))) == 255
    assert (bordered.images[0][grown & (ink == 0)] == (255, 0, 0)).all()
    fallen = render(make_style(shadow=Shadow(0.3, 0.0, 0.0, (0, 0, 0), 1.0)), "I", degrade=False)
    columns = [np.flatnonzero(part.any(0)).max() for part in (ink, fallen.effect_masks[0])]
    assert columns[1] - columns[0] == pytest.approx(0.3 * 0.42 * 64, abs=1.5)


def test_words_are_drawn_into_a_view_of_a_page():
    page = np.full((200, 400, 3), 200, np.uint8)
    precise = page.astype(np.float32)
    style = make_style(**LOOKS["all"])
    drawn = draw(page[50:114, 100:356], style, "page")
    draw(precise[50:114, 100:356], style, "page")
    touched = np.zeros(page.shape[:2], bool)
    touched[50:114, 100:356] = drawn.effect_mask > 0
    assert (page[~touched] == 200).all() and (page[touched] != 200).any()
    np.testing.assert_array_equal(np.rint(precise).astype(np.uint8), page)
    x0, y0, x1, y1 = drawn.box
    assert drawn.effect_mask.sum() == drawn.effect_mask[y0:y1, x0:x1].sum()
    with pytest.raises(SynthesisError, match="patch of shape"):
        draw(page, style, "page")


def test_contrast_counts_grey_levels():
    image, mask = np.full((40, 80, 3), 100, np.uint8), np.zeros((40, 80), np.uint8)
    mask[10:30, 20:60] = 255
    assert contrast(image, mask) == 0
    image[mask > 0] = 160
    assert contrast(image, mask) == 60
    image[:, 66:] = 255  # what is far from the letters does not count
    assert contrast(image, mask) == 60
    image[6:34, 17:63][mask[6:34, 17:63] == 0] = 100
    image[9:31, 19:61][mask[9:31, 19:61] == 0] = 220  # an outline: letters lie between it and the wall
    assert contrast(image, mask) == 60
    assert abs(contrast(np.random.default_rng(0).integers(0, 256, (40, 80, 3), np.uint8), mask)) < 5


# ---- styles at random ----


def test_default_styles_can_be_read_and_stay_on_the_canvas():
    for size, count in (((32, 128), 300), ((64, 256), 100)):
        make, rejected = WordGenerator([FACE], Words(), size=size), Counter()
        for seed in range(count):
            try:
                sample = make(np.random.default_rng(seed))
            except SynthesisError as error:
                rejected[str(error)] += 1
                continue
            assert len(set(sample.texts)) == 2 and sample.images.shape == (2, *size, 3)
            for quads in sample.char_quads:
                assert quads.min() > -1.5 and (quads.max((0, 1)) < np.array(size[::-1]) + 1.5).all()
        assert rejected.total() <= 0.01 * count, rejected


def test_default_styles_have_the_promised_share_of_effects():
    rng = np.random.default_rng(1)
    styles = [sample_style(rng, [FACE], (32, 128)) for _ in range(1000)]
    shares = {name: np.mean([style.effects()[name] for style in styles]) for name in styles[0].effects()}
    assert shares["curve"] >= 0.2 and shares["perspective"] >= 0.2 and shares["texture"] >= 0.4, shares
    assert shares.pop("vertical") == 0 and min(shares.values()) > 0.03, shares


def test_columns_are_for_canvases_that_are_high():
    rng = np.random.default_rng(1)
    styles = [sample_style(rng, [FACE], (128, 32), texts=["tall"]) for _ in range(40)]
    kinds = Counter(style.baseline.kind for style in styles)
    assert kinds["vertical"] > 10
    for style in styles:
        if style.baseline == COLUMN:
            width, height = np.ptp(render(style, "tall").polygons[0], axis=0)
            assert height > 1.5 * width and height > 40


@pytest.mark.parametrize("size", [(128, 32), (300, 60), (100, 100)])
def test_canvases_that_are_not_wide_hold_words_too(size):
    make, rejected, bad = WordGenerator([FACE], Words(), size=size), Counter(), Counter()
    for seed in range(60):
        try:
            sample = make(np.random.default_rng([3, seed]))
        except SynthesisError as error:
            rejected[str(error)] += 1
            continue
        sample = render(sample.style, sample.texts, degrade=False)
        for mask, owners, quads in zip(sample.masks, sample.char_maps, sample.char_quads):
            for index, quad in enumerate(quads, 1):
                within, own = inside(quad, size), owners == index
                bad["not all ink"] += mask[within & own].sum() < 0.99 * mask[own].sum()
                bad["a neighbour's"] += bool(mask[within & (owners > 0) & ~own].any())
    assert rejected.total() <= 1, rejected
    assert not bad.total(), bad


@pytest.mark.parametrize("line", [Baseline("arc", 0.4), Baseline("arc", -0.4), Baseline("wave", 0.1, 0.5, 1.0)])
@pytest.mark.parametrize("text", ["MW", "WOMEN"])
def test_polygons_of_curved_words_hold_their_ink(line, text):
    style = make_style(size=(64, 256), font_size=0.3, max_stretch=3.0, baseline=line)
    sample = render(style, text, degrade=False)
    points = shapely.points(np.stack(np.meshgrid(np.arange(256) + 0.5, np.arange(64) + 0.5), -1))
    within = shapely.contains(shapely.Polygon(sample.polygons[0]).buffer(0.5), points)
    assert sample.masks[0][within].sum() >= 0.99 * sample.masks[0].sum()


def test_letters_on_a_sharp_wave_do_not_cross():
    size = (100, 100)
    style = make_style(size=size, font_size=0.4, baseline=Baseline("wave", 0.05, 0.475, 5.35))
    sample = render(style, "EXIT", degrade=False)
    for index, quad in enumerate(sample.char_quads[0], 1):
        within, own = inside(quad, size), sample.char_maps[0] == index
        assert own.sum() > 50 and sample.masks[0][within & own].sum() >= 0.99 * sample.masks[0][own].sum()
        assert not sample.masks[0][within & (sample.char_maps[0] > 0) & ~own].any()


def test_joined_letters_lie_level_on_high_canvases(monkeypatch):
    from epigraph.data.synthesis import sampling

    real = sampling.shape
    monkeypatch.setattr(sampling, "shape", lambda *args: replace(real(*args), sliced=True))
    styles = [sample_style(np.random.default_rng(seed), [FACE], (128, 32), texts=["tall"]) for seed in range(30)]
    assert {style.baseline.kind for style in styles} <= {"straight", "arc", "wave"}


def test_plain_options_switch_everything_off():
    rng = np.random.default_rng(1)
    for _ in range(50):
        style = sample_style(rng, [FACE], (64, 256), StyleOptions.plain(), texts=["plain"])
        assert not any(style.effects().values())
        sample = render(style, "plain")
        assert contrast(sample.images[0], sample.masks[0]) > 60


def test_the_same_numbers_give_the_same_sample_and_others_another():
    make = WordGenerator([FACE], Words(), contents=3)
    first, again, other = (make(np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert first.style == again.style and first.texts == again.texts and len(first.texts) == 3
    np.testing.assert_array_equal(first.images, again.images)
    assert first.style != other.style
    np.testing.assert_array_equal(render(first.style, first.texts).images, first.images)


def test_groups_cross_styles_words_and_backgrounds():
    make = GroupGenerator([FACE], Words(), contents=2, looks=2, scenes=3)
    for seed in range(20):
        try:
            members = make(np.random.default_rng(seed))
            break
        except SynthesisError:
            continue
    assert len(members) == 6 and len({tuple(member.texts) for member in members}) == 1
    assert len({member.style.background for member in members}) == 3
    assert len({replace(member.style, background=members[0].style.background) for member in members}) == 2
    for a, b in ((0, 1), (3, 4)):  # letters do not depend on what is behind them
        np.testing.assert_array_equal(members[a].masks, members[b].masks)
    assert (members[0].masks != members[3].masks).any() or members[0].style.fill != members[3].style.fill


def test_a_row_holds_every_label():
    datasets = pytest.importorskip("datasets")
    make = WordGenerator([FACE], Words())
    sample = make(np.random.default_rng(2))
    assert isinstance(sample, WordSample)
    stored = datasets.Dataset.from_list([sample.row()], features=make.features())[0]
    np.testing.assert_array_equal(np.array(stored["images"][1]), sample.images[1])
    np.testing.assert_array_equal(np.array(stored["background"]), sample.background)
    for name in ("masks", "effect_masks", "glyphs", "char_maps"):
        np.testing.assert_array_equal(np.array(stored[name][0]), getattr(sample, name)[0])
    np.testing.assert_array_equal(np.array(stored["char_quads"][0], np.float32), sample.char_quads[0])
    np.testing.assert_array_equal(np.array(stored["polygons"][1], np.float32), sample.polygons[1])
    assert stored["texts"] == sample.texts and Style.from_json(json.loads(stored["style"])) == sample.style


# ---- bad input ----


@pytest.mark.parametrize(
    "size",
    [(0, 128), (-32, 128), (32, 100_000), (32,), (32.0, 128), (4, 128), None, 32, "ab", (32, None), ("32", 128)],
)
def test_canvases_that_cannot_be_drawn_are_refused(size):
    for attempt in (
        lambda: make_style(size=size),
        lambda: sample_style(np.random.default_rng(0), [FACE], size),
        lambda: WordGenerator([FACE], Words(), size=size),
        lambda: SceneGenerator([FACE], Words(), size=size),
    ):
        with pytest.raises(SynthesisError, match="canvas of .* cannot be drawn; give height and width"):
            attempt()


def test_sizes_may_be_whole_numbers_of_any_kind():
    size = np.array([64, 128])
    style = sample_style(np.random.default_rng(0), [FACE], size)
    assert json.loads(json.dumps(style.to_json()))["size"] == [64, 128]
    again = render(replace(style, size=tuple(size)), "word")
    np.testing.assert_array_equal(again.images, render(style, "word").images)
    for kind in (WordGenerator, SceneGenerator):
        assert json.dumps(kind([FACE], Words(), size=size).size) == "[64, 128]"
    assert glyph_target(tuple(size), [], []).image.shape == (64, 128)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([], "no word"),
        ("", "empty"),
        ("a" * 200, "200 characters does not fit"),
        ("a" * 300, "300"),
        ("a\x07", "U\\+0007"),
        ("\U0001f600", "emoji"),
        ("\u6f22\u5b57", "no glyph for"),
        (["fine", "\u6f22"], "no glyph for"),
    ],
)
def test_words_that_cannot_be_drawn_are_refused(texts, words):
    with pytest.raises(SynthesisError, match=words):
        render(make_style(), texts)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": "large"}, "style.size is 'large'; it is a list"),
        ({"size": [64]}, "style.size has 1 entries; 2"),
        ({"font_size": "big"}, "style.font_size is 'big'; it is a float"),
        ({"font_size": float("nan")}, "finite"),
        ({"font_size": 0.0}, "font size of 0"),
        ({"seed": True}, "style.seed is True"),
        ({"blend": "dodge"}, "'dodge' is no blend mode"),
        ({"baseline": {"kind": "spiral"}}, "'spiral' is no baseline"),
        ({"colour": 1}, "field 'colour'"),
        ({"fill": {"kind": "texture", "colors": [[0, 0, 0], [1, 1, 1]]}}, "texture"),
        ({"fill": {"colors": [[0, 0, 0], [1, 1, 1]]}}, "style.fill lacks the field 'kind'"),
        ({"fill": {"kind": "color", "colors": [[0, 0], [1, 1, 1]]}}, r"style.fill.colors\[0\] has 2"),
        ({"border": [1]}, "style.border is .* an object"),
        ({"corners": [[0, 0], [1, 0], [1, 1]]}, "corners has 3 points"),
    ],
)
def test_wrong_json_is_refused_by_the_name_of_the_field(change, words):
    values = json.loads(json.dumps(make_style().to_json()))
    with pytest.raises(SynthesisError, match=words):
        Style.from_json(values | change)


def test_generators_refuse_what_gives_no_sample():
    with pytest.raises(SynthesisError, match="0 fonts"):
        WordGenerator([], Words())
    with pytest.raises(SynthesisError, match="0 contents"):
        WordGenerator([FACE], Words(), contents=0)
    with pytest.raises(SynthesisError, match="0 looks"):
        GroupGenerator([FACE], Words(), looks=0)
    with pytest.raises(SynthesisError, match="no font"):
        sample_style(np.random.default_rng(0), [], (32, 128))
    with pytest.raises(SynthesisError, match="11 different words"):
        WordGenerator([FACE], Words(), contents=11)(np.random.default_rng(0))
    with pytest.raises(SynthesisError, match="no fill"):
        make_style(fill=Fill("glitter", ((0, 0, 0), (0, 0, 0))))
    assert "wood" in TEXTURES
