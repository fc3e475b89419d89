"""Fonts are found with what they draw, and lines come out as Pillow draws them. No font of the system is needed."""

import json
import logging
import string
import struct

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

pytest.importorskip("cv2", reason="synthesis needs the extra `train`")

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.t2CharStringPen import T2CharStringPen
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTCollection, TTFont

from epigraph.data.synthesis import fonts, shaping
from epigraph.data.synthesis.fonts import BUILTIN, FontError, SynthesisError, find_fonts, has_raqm, open_face
from epigraph.data.synthesis.shaping import check_text, shape


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Every test reads fonts for itself."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _forget()
    yield
    _forget()


def _forget():
    for function in (fonts._read_cache, open_face, fonts.load_font):
        function.cache_clear()
    shaping._caches.clear()


def _builtin_bytes() -> bytes:
    return ImageFont.load_default(16).path.getvalue()


def _drawn(corners):
    pen = TTGlyphPen(None)
    if corners:
        pen.moveTo(corners[0])
        for corner in corners[1:]:
            pen.lineTo(corner)
        pen.closePath()
    return pen.glyph()


BOX = [(50, 0), (50, 700), (450, 700), (450, 0)]


def _build(path, outlines, family="Built", panose=None, axis=False):
    """A font with the given outlines, character -> corners, and a box for what it lacks."""
    names = {character: f"uni{ord(character):04X}" for character in outlines}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap({ord(character): name for character, name in names.items()})
    glyphs = {names[character]: _drawn(corners) for character, corners in outlines.items()}
    builder.setupGlyf({".notdef": _drawn(BOX), **glyphs})
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *names.values()], (500, 50)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    if panose:
        builder.font["OS/2"].panose.bFamilyType = panose
    builder.setupPost()
    if axis:
        weights = [{"location": {"wght": 100}, "stylename": "Thin"}, {"location": {"wght": 900}, "stylename": "Black"}]
        builder.setupFvar([("wght", 100, 400, 900, "Weight")], weights)
    builder.save(path)
    return path


def _steps(characters):
    """Outlines that differ from character to character and from the box."""
    return {c: [(50, 0), (50, 100 + 9 * k), (200 + 4 * k, 100 + 9 * k)] for k, c in enumerate(characters)}


def _picture(line, height=200, width=1200, x=60, y=120):
    """The line's bitmaps side by side, as `ImageDraw` would paint them."""
    canvas = np.zeros((height, width), np.uint8)
    for cell in line.cells:
        top, left = y + int(cell.top), x + int(cell.left)
        h, w = cell.bitmap.shape
        part = canvas[top : top + h, left : left + w]
        np.maximum(part, cell.bitmap, out=part)
    return canvas


# ---- discovery ----


def test_built_in_font_draws_latin():
    (face,) = find_fonts(BUILTIN)
    assert face.path == BUILTIN and face == open_face(BUILTIN)
    assert face.characters >= set(string.ascii_letters + string.digits)
    assert len(face.digest) == 16


def test_folder_of_good_and_bad_files(tmp_path, caplog):
    folder = tmp_path / "fonts"
    (folder / "sub").mkdir(parents=True)
    good = _builtin_bytes()
    (folder / "sub" / "good.ttf").write_bytes(good)
    (folder / "copy.otf").write_bytes(good)
    (folder / "zero.ttf").write_bytes(b"")
    (folder / "words.ttf").write_text("this is no font")
    (folder / "half.ttf").write_bytes(good[: len(good) // 2])
    (folder / "bomb.woff").write_bytes(b"wOFF" + good[:12] + struct.pack(">L", 2**31) + good[20:])
    (folder / "notes.txt").write_text("not looked at")
    with caplog.at_level(logging.INFO, logger=fonts.__name__):
        (face,) = find_fonts([folder])
    assert face.digest == open_face(BUILTIN).digest
    assert "in 6 font files" in caplog.text
    assert "1 too large" in caplog.text and "3 unreadable" in caplog.text


def test_damaged_bytes_never_raise_anything_else(tmp_path):
    good = bytearray(_builtin_bytes())
    rng = np.random.default_rng(0)
    outcomes = set()
    for number in range(60):
        damaged = good.copy()
        for place in rng.integers(0, len(good) if number % 2 else 600, 12):
            damaged[place] = int(rng.integers(256))
        path = tmp_path / f"{number}.ttf"
        path.write_bytes(damaged)
        try:
            face = open_face(path)
            shape(face.path, 0, "Ag", 32)
            outcomes.add("drawn")
        except (FontError, SynthesisError) as error:
            assert face.name in str(error) if isinstance(error, SynthesisError) else str(path) in str(error)
            outcomes.add("refused")
    assert outcomes == {"drawn", "refused"}


def test_too_large_file(tmp_path, monkeypatch):
    path = tmp_path / "large.ttf"
    path.write_bytes(_builtin_bytes())
    monkeypatch.setattr(fonts, "MAX_FILE_BYTES", 1000)
    with pytest.raises(FontError, match="large.ttf.*too large"):
        open_face(path)
    with pytest.raises(FontError, match="large.ttf.*more than"):
        fonts.load_font(str(path), 0, 20, False)


def test_collection_and_web_font(tmp_path):
    collection = TTCollection()
    for family in ("One", "Two"):
        collection.fonts.append(TTFont(_build(tmp_path / f"{family}.ttf", _steps("AB"), family)))
    collection.save(tmp_path / "both.ttc")
    web = TTFont(_build(tmp_path / "web.ttf", _steps("AB"), "Web"))
    web.flavor = "woff"
    web.save(tmp_path / "web.woff")
    (tmp_path / "web.woff2").write_bytes(b"wOF2 stands for the same font")
    assert [(face.name, face.index) for face in find_fonts([tmp_path / "both.ttc"], "AB")] == [
        ("One Regular", 0),
        ("Two Regular", 1),
    ]
    (tmp_path / "web.ttf").unlink()
    assert "web.woff" in {face.path.rsplit("/")[-1] for face in find_fonts([tmp_path], "AB", names=["web"])}
    with pytest.raises(FontError, match="no usable face 2"):
        open_face(tmp_path / "both.ttc", 2)


def test_variable_font_gives_its_named_instances(tmp_path):
    path = _build(tmp_path / "variable.ttf", _steps("AB"), "Vary", axis=True)
    found = {face.name: face.index for face in find_fonts([path], "AB")}
    assert found["Vary Thin"] == 1 << 16 and found["Vary Black"] == 2 << 16
    assert shape(str(path), found["Vary Black"], "AB", 40).cells


def test_fonts_that_draw_no_letters_are_left_out(tmp_path, caplog):
    letters = "ABCDEFGHIJKLMNOPQRST"
    _build(tmp_path / "empty.ttf", dict.fromkeys(letters))
    _build(tmp_path / "boxes.ttf", dict.fromkeys(letters, BOX))
    _build(tmp_path / "same.ttf", dict.fromkeys(letters, BOX[:3]))
    _build(tmp_path / "dingbats.ttf", _steps(letters), panose=5)
    _build(tmp_path / "arrows.ttf", _steps("←↑→↓"))
    with caplog.at_level(logging.INFO, logger=fonts.__name__), pytest.raises(FontError) as raised:
        find_fonts([tmp_path], "AB")
    assert "3 of symbols only" in caplog.text and "2 without letters of their own" in caplog.text
    assert "apt install fonts-dejavu-core fonts-liberation2 fonts-lato" in str(raised.value)


def test_empty_and_boxed_glyphs_do_not_count_as_covered(tmp_path):
    outlines = _steps("ABCDEFGH") | {"I": None, "J": BOX}
    path = _build(tmp_path / "some.ttf", outlines)
    font = TTFont(path)
    for table in font["cmap"].tables:
        table.cmap |= {ord("%"): ".notdef", ord("K"): ".notdef"}
    font.save(path)
    face = open_face(path)
    assert face.characters == set("ABCDEFGH")
    for character in "IJKL%":
        with pytest.raises(SynthesisError, match=rf"Built Regular has no glyph for '{character}' \(U\+00"):
            shape(face.path, 0, f"A{character}", 40)


def test_key_caps_and_framed_letters_are_no_writing(tmp_path, caplog):
    _build(tmp_path / "open.ttf", _steps("CLTDEF"))
    path = _build(tmp_path / "keys.ttf", _steps("CLTDEF"), "Keys")
    font = TTFont(path)
    for number, name in enumerate(font.getGlyphOrder()[1:]):
        pen = TTGlyphPen(None)
        for edge in (0, 40):  # a frame, its inside the other way round
            corners = [(edge, edge), (edge, 700 - edge), (600 - edge, 700 - edge), (600 - edge, edge)]
            pen.moveTo((corners if edge == 0 else corners[::-1])[0])
            for corner in (corners if edge == 0 else corners[::-1])[1:]:
                pen.lineTo(corner)
            pen.closePath()
        pen.moveTo((200, 200))
        pen.lineTo((200, 300 + 30 * number))
        pen.lineTo((250, 300))
        pen.closePath()
        font["glyf"][name] = pen.glyph()
    font.save(path)
    with caplog.at_level(logging.INFO):
        faces = find_fonts([tmp_path], "CLT")
    assert [face.name for face in faces] == ["Built Regular"]
    assert "1 of key caps or framed letters" in caplog.text


def test_postscript_glyphs_without_an_outline_do_not_count_as_covered(tmp_path):
    letters = [f"uni{ord(letter):04X}" for letter in "ABCDEF\u03a8\u03a9"]
    pens = {name: T2CharStringPen(600, None) for name in (".notdef", *letters)}
    for number, name in enumerate(letters[:-1]):
        pens[name].moveTo((50, 0))
        pens[name].lineTo((50, 300 + 40 * number))
        pens[name].lineTo((400, 0))
        pens[name].closePath()
    builder = FontBuilder(1000, isTTF=False)
    builder.setupGlyphOrder([".notdef", *letters])
    builder.setupCharacterMap({int(name[3:], 16): name for name in letters})
    builder.setupCFF("Built", {}, {name: pen.getCharString() for name, pen in pens.items()}, {})
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *letters], (600, 50)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Built", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    path = tmp_path / "built.otf"
    builder.save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fonts, "_PROBES", 4)
        assert open_face(path).characters == set("ABCDEF\u03a8")


def test_a_dash_that_hinting_rounds_to_nothing_is_drawn_larger(monkeypatch):
    whole = shape(BUILTIN, 0, "-", 96).cells[0]
    shaping._caches.clear()
    draw = shaping.draw_run

    def hinted(font, text, stroke=0.0):
        bitmap, left, top = draw(font, text, stroke)
        return (0 * bitmap if font.size == 48 else bitmap), left, top

    monkeypatch.setattr(shaping, "draw_run", hinted)
    cell = shape(BUILTIN, 0, "-", 48).cells[0]
    assert cell.bitmap.sum() / 255 == pytest.approx(whole.bitmap.sum() / 255 / 4, rel=0.05)
    assert abs(cell.left - whole.left / 2) <= 1 and abs(cell.top - whole.top / 2) <= 1


def test_no_font_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(fonts, "system_folders", lambda: [tmp_path])
    with pytest.raises(FontError, match="apt install"):
        find_fonts()
    with pytest.raises(FontError, match="does not exist"):
        find_fonts([tmp_path / "nowhere"])
    with pytest.raises(FontError, match="whose name has Wingdings.* in its place built-in stands for Pillow's own"):
        find_fonts([BUILTIN], names=["Wingdings"])


def test_same_fonts_give_the_same_order(tmp_path):
    for number, names in enumerate(("abc", "cba")):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, family in zip(names, ("Beta", "Alpha", "Gamma")):
            _build(folder / f"{name}.ttf", _steps("AB"), family)
    first, second = ([face.name for face in find_fonts([tmp_path / n], "AB")] for n in "01")
    assert first == second == ["Alpha Regular", "Beta Regular", "Gamma Regular"]


# ---- cache ----


def test_cache_is_used_and_a_changed_file_is_read_again(tmp_path, monkeypatch):
    path = _build(tmp_path / "font.ttf", _steps("ABC"))
    assert open_face(path).characters == set("ABC")
    _forget()
    with monkeypatch.context() as patch:
        patch.setattr(fonts, "_scan", lambda path: pytest.fail("read again"))
        assert open_face(path).characters == set("ABC")
    _build(path, _steps("ABCDE"))
    _forget()
    assert open_face(path).characters == set("ABCDE")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b"\xff\xfe",
        b'{"version": 0, "files": {}}',
        b'{"version": VERSION, "files": [1]}',
        b'{"version": VERSION, "files": {"PATH": [1]}}',
        b'{"version": VERSION, "files": {"PATH": [STAMP, "", [{"index": 0, "name": "a", "italic": 0, "ranges": 1}]]}}',
    ],
)
def test_damaged_cache_is_ignored(tmp_path, content):
    path = _build(tmp_path / "font.ttf", _steps("ABC"))
    cache = fonts._cache_file()
    cache.parent.mkdir(parents=True)
    replacements = {
        b"VERSION": str(fonts._CACHE_VERSION).encode(),
        b"PATH": str(path).encode(),
        b"STAMP": json.dumps(fonts._stamp(str(path))).encode(),
    }
    for old, new in replacements.items():
        content = content.replace(old, new)
    cache.write_bytes(content)
    assert open_face(path).characters == set("ABC")
    assert json.loads(cache.read_bytes())["files"][str(path)][2][0]["name"] == "Built Regular"


def test_unwritable_cache_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert open_face(BUILTIN).characters


# ---- text ----


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \t\n", "empty"),
        ("a" * 201, "201 characters"),
        ("a\tb", "U+0009"),
        ("a\x00", "U+0000"),
        ("a\u202eb", "RIGHT-TO-LEFT OVERRIDE"),
        ("\ue000", "U+E000"),
        ("ok 😀", "GRINNING FACE"),
        ("👩🏽", "emoji"),
        ("❤\ufe0f", "emoji"),
        ("\u0301e", "without a letter"),
        ("שלום abc", "runs from right to left"),
        (5, "not int"),
    ],
)
def test_text_that_cannot_be_drawn_is_refused_by_name(text, reason):
    with pytest.raises(SynthesisError) as raised:
        check_text(text)
    assert reason in str(raised.value)


def test_text_comes_out_in_normal_form():
    assert check_text("  cafe\u0301 ") == "café"
    assert len(check_text("a" * 200)) == 200


# ---- lines ----


@pytest.mark.parametrize("size", [1, 9, 48, 300])
def test_cells_are_where_pillow_draws_the_letters(size):
    font = ImageFont.load_default(size)
    line = shape(BUILTIN, 0, "Ag.", size)
    assert [cell.text for cell in line.cells] == list("Ag.")
    pen = 0.0
    for cell in line.cells:
        picture = Image.new("L", (1000, 1000))
        ImageDraw.Draw(picture).text((500, 500), cell.text, 255, font, anchor="ls")
        left, top, right, bottom = picture.getbbox()
        assert (cell.left - cell.pen, cell.top) == (left - 500, top - 500)
        assert np.array_equal(cell.bitmap, np.array(picture)[top:bottom, left:right])
        assert cell.pen == pen and cell.advance == font.getlength(cell.text)
        pen += cell.advance
    assert line.width == pen and not line.sliced and not line.rtl


def test_bitmaps_are_shared_and_cannot_be_written():
    first, second = (shape(BUILTIN, 0, "oo", 40) for _ in range(2))
    assert first.cells[0].bitmap is second.cells[1].bitmap
    with pytest.raises(ValueError, match="read-only"):
        first.cells[0].bitmap[0, 0] = 1


def test_stroke_grows_the_ink_and_keeps_the_advance():
    thin, thick = shape(BUILTIN, 0, "I", 60).cells[0], shape(BUILTIN, 0, "I", 60, stroke=3).cells[0]
    assert thick.bitmap.shape[0] - thin.bitmap.shape[0] in (5, 6, 7) and thick.left < thin.left
    assert thick.advance == thin.advance


def test_spaces_move_the_pen_only():
    line = shape(BUILTIN, 0, "a b", 40)
    assert [cell.text for cell in line.cells] == ["a", "b"]
    assert line.cells[1].pen == line.cells[0].advance + ImageFont.load_default(40).getlength(" ")


def test_column_goes_down_in_equal_steps_without_overlap():
    line = shape(BUILTIN, 0, "Sign|g", 40, vertical=True)
    pens = [cell.pen for cell in line.cells]
    assert np.allclose(np.diff(pens), line.cells[0].advance) and line.width == pytest.approx(6 * line.cells[0].advance)
    for above, below in zip(line.cells, line.cells[1:]):
        assert above.top + above.bitmap.shape[0] <= below.top
    assert all(abs(cell.left + cell.bitmap.shape[1] / 2) < 1e-6 for cell in line.cells)


@pytest.mark.parametrize(("size", "stroke"), [(0, 0), (1025, 0), (20.5, 0), (20, -1), (20, 21)])
def test_sizes_out_of_bounds(size, stroke):
    with pytest.raises(SynthesisError, match="give"):
        shape(BUILTIN, 0, "a", size, stroke)


def test_glyph_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(shaping, "CACHE_BYTES", 20_000)
    monkeypatch.setattr(shaping, "_cached_bytes", 0)
    for size in range(20, 60):
        for text in (string.ascii_letters, string.digits):
            assert len(shape(BUILTIN, 0, text, size).cells) == len(text)
        held = sum(glyph[0].nbytes for cache in shaping._caches.values() for glyph in cache.glyphs.values())
        assert held == shaping._cached_bytes <= 20_000


def test_without_raqm_joined_scripts_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shaping, "has_raqm", lambda: False)
    arabic = _build(tmp_path / "arabic.ttf", _steps("سلامabcdé") | _steps("x\u0301"))
    with pytest.raises(SynthesisError, match="raqm"):
        shape(str(arabic), 0, "سلام", 40)
    with pytest.raises(SynthesisError, match="raqm"):
        shape(str(arabic), 0, "x\u0301", 40)
    assert shape(str(arabic), 0, "é", 40).cells


# ---- scripts: each needs a font of the system ----

SCRIPTS = {
    "arabic": ("السلام", "fonts-hosny-amiri"),
    "arabic with marks": ("مُحَمَّد", "fonts-hosny-amiri"),
    "persian": ("می\u200cخواهم", "fonts-hosny-amiri"),
    "devanagari": ("क्षत्रिय", "fonts-deva"),
    "devanagari reordered": ("हिन्दी", "fonts-deva"),
    "hebrew with points": ("שָׁלוֹם", "fonts-dejavu-core"),
    "thai": ("กำลังน้ำ", "fonts-thai-tlwg or fonts-noto-core"),
    "tamil": ("தமிழ்", "fonts-noto-core"),
}


@pytest.fixture(scope="session")
def system_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("fonts")


@pytest.fixture
def faces_for(system_cache, own_cache, monkeypatch):
    """The installed faces that have all characters of a text; the fonts of the system are read once for all tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(system_cache))
    _forget()

    def find(text, package):
        if not has_raqm():
            pytest.skip("this Pillow has no raqm")
        try:
            return find_fonts(characters=set(check_text(text)) - {" ", *fonts.JOINERS})
        except FontError:
            pytest.skip(f"no font has {text!r}; Debian: apt install {package}")

    return find


@pytest.mark.parametrize("script", SCRIPTS)
def test_slices_side_by_side_are_the_shaped_run(script, faces_for):
    text, package = SCRIPTS[script]
    text = check_text(text)
    compared = 0
    for face in faces_for(text, package)[:8]:
        try:
            line = shape(face.path, face.index, text, 64)
        except SynthesisError as error:
            assert "no ink of its own" in str(error)  # a ligature of this face cannot be cut
            continue
        assert line.sliced
        picture = Image.new("L", (1200, 200))
        font = ImageFont.truetype(face.path, 64, face.index, layout_engine=ImageFont.Layout.RAQM)
        ImageDraw.Draw(picture).text((60, 120), text, 255, font, anchor="ls")
        assert np.array_equal(_picture(line), np.array(picture)), face.name
        assert "".join(cell.text for cell in line.cells) == text
        assert sum(cell.advance for cell in line.cells) == pytest.approx(line.width, abs=0.5)
        ends = [(cell.left, cell.left + cell.bitmap.shape[1]) for cell in line.cells]
        assert all(a[1] == b[0] for a, b in zip(sorted(ends), sorted(ends)[1:])), "slices touch and do not overlap"
        assert [end for end, _ in ends] == sorted((end for end, _ in ends), reverse=line.rtl)
        compared += 1
    assert compared


def test_joined_letters_are_cut_where_they_join(faces_for):
    """Each letter of an Arabic word without ligatures is as wide as its own joined form."""
    text = "حسن"
    for face in faces_for(text, "fonts-hosny-amiri")[:5]:
        font = ImageFont.truetype(face.path, 64, face.index, layout_engine=ImageFont.Layout.RAQM)
        joiner = fonts.JOINERS[1]
        forms = [text[0] + joiner, joiner + text[1] + joiner, joiner + text[2]]
        if abs(sum(map(font.getlength, forms)) - font.getlength(text)) > 0.5:
            continue  # kerned or ligated
        cells = shape(face.path, face.index, text, 64).cells
        assert [cell.advance for cell in cells] == pytest.approx([font.getlength(form) for form in forms], abs=0.5)
        return
    pytest.skip("no installed Arabic face sets this word without kerning")


def test_clusters_keep_marks_with_their_base(faces_for):
    text = "हिन्दी"
    face = faces_for(text, "fonts-deva")[0]
    assert [cell.text for cell in shape(face.path, face.index, text, 48).cells] == ["हि", "न्दी"]
    text = "x\u0301g\u0308"
    face = faces_for(text, "fonts-dejavu-core")[0]
    line = shape(face.path, face.index, text, 48)
    assert [cell.text for cell in line.cells] == ["x\u0301", "g\u0308"] and not line.sliced
    assert line.cells[0].top < shape(face.path, face.index, "x", 48).cells[0].top


def test_hebrew_without_points_is_set_letter_by_letter_from_the_right(faces_for):
    face = faces_for("שלום", "fonts-dejavu-core")[0]
    line = shape(face.path, face.index, "שלום", 48)
    assert line.rtl and not line.sliced
    pens = [cell.pen for cell in line.cells]
    assert pens == sorted(pens, reverse=True) and pens[-1] == 0
    assert pens[0] + line.cells[0].advance == line.width


def test_numbers_keep_their_direction_in_hebrew_and_arabic(faces_for):
    face = faces_for("שלום 0", "fonts-dejavu-core")[0]
    order = "".join(c.text for c in sorted(shape(face.path, face.index, "אב 12.5%", 48).cells, key=lambda c: c.left))
    assert order == "12.5%בא"
    face = faces_for("عدد 0", "fonts-hosny-amiri")[0]
    order = "".join(c.text for c in sorted(shape(face.path, face.index, "عدد 25", 48).cells, key=lambda c: c.left))
    assert order == "25ددع"


def test_chinese_is_set_character_by_character(faces_for):
    text = "中文字体"
    face = faces_for(text, "fonts-wqy-microhei")[0]
    for vertical in (False, True):
        line = shape(face.path, face.index, text, 48, vertical=vertical)
        assert [cell.text for cell in line.cells] == list(text) and not line.sliced
        assert len({cell.bitmap.tobytes() for cell in line.cells}) == 4


def test_joined_letters_do_not_stand_in_a_column(faces_for):
    face = faces_for("سلام", "fonts-hosny-amiri")[0]
    with pytest.raises(SynthesisError, match="column"):
        shape(face.path, face.index, "سلام", 48, vertical=True)
