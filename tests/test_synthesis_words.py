"""Words are drawn from lists, can be drawn by the face, and look like those of scene text."""

import logging
import re
import string

import numpy as np
import pytest

pytest.importorskip("cv2", reason="synthesis needs the extra `train`")

from epigraph.data.synthesis import words
from epigraph.data.synthesis.fonts import BUILTIN, SynthesisError, open_face
from epigraph.data.synthesis.shaping import check_text
from epigraph.data.synthesis.words import DEFAULT_LIST, WordSampler

ASCII = frozenset(string.printable[:94])


@pytest.fixture
def listed(tmp_path):
    """A word list with words of every length."""

    def write(content, name="words.txt"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def _draw(sampler, count=400, characters=ASCII, seed=0):
    rng = np.random.default_rng(seed)
    return [sampler.sample(rng, characters) for _ in range(count)]


ENGLISH = "a I an of the and word sign shop open street market station pharmacy restaurant entrance delicatessen"


def test_only_words_of_the_list_in_the_cases_of_signs(listed):
    sampler = WordSampler([listed(ENGLISH)], numbers=0, rare=0, punctuation=0)
    drawn = set(_draw(sampler, 2000))
    assert {word.lower() for word in drawn} == set(ENGLISH.lower().split())
    assert {"STREET", "Street", "street"} <= drawn
    plain = WordSampler([listed(ENGLISH)], numbers=0, rare=0, punctuation=0, cases=False)
    assert set(_draw(plain, 2000)) == set(ENGLISH.split())


def test_same_seed_same_words(listed):
    path = listed(ENGLISH)
    assert _draw(WordSampler([path])) == _draw(WordSampler([path]))
    assert _draw(WordSampler([path]), seed=1) != _draw(WordSampler([path]))


def test_every_kind_can_be_drawn_by_the_face_and_keeps_the_length(listed):
    path = listed(ENGLISH + " crème straße İstanbul ﬁne ЖУРНАЛ 中文")
    characters = open_face(BUILTIN).characters
    sampler = WordSampler([path], numbers=0.3, rare=0.3, punctuation=0.5, min_length=2, max_length=9)
    for text in _draw(sampler, 3000, characters):
        assert check_text(text) == text and characters.issuperset(text) and 2 <= len(text) <= 9


def test_shares(listed):
    sampler = WordSampler([listed(ENGLISH)], numbers=0.25, rare=0, punctuation=0)
    share = np.mean([any(c.isdigit() for c in text) for text in _draw(sampler, 4000)])
    assert share == pytest.approx(0.25, abs=0.03)
    ends = WordSampler([listed(ENGLISH)], numbers=0, rare=0, punctuation=0.5)
    assert np.mean([not text.isalpha() for text in _draw(ends, 4000)]) == pytest.approx(0.5, abs=0.03)


def test_short_words_are_more_frequent_than_in_the_list(listed):
    rng = np.random.default_rng(0)
    letters = np.array(list(string.ascii_lowercase))
    listing = " ".join("".join(rng.choice(letters, length)) for length in range(1, 16) for _ in range(5 * length))
    sampler = WordSampler([listed(listing)], numbers=0, rare=0, punctuation=0)
    lengths = [len(text) for text in _draw(sampler, 3000)]
    assert np.mean([len(word) for word in sampler.words]) > 9.5
    assert 4.5 < np.mean(lengths) < 6 and max(lengths) > 12


def test_numbers_have_many_forms(listed):
    drawn = _draw(WordSampler([listed(ENGLISH)], numbers=1, rare=0), 3000)
    forms = {
        "number": r"\d{1,6}",
        "price": r"[$€£¥]\d+[.,]\d\d",
        "date": r"\d\d[./-]\d\d[./-](\d\d|\d{4})",
        "date of machines": r"\d{4}-\d\d-\d\d",
        "time": r"\d\d:\d\d(:\d\d)?",
        "phone": r"\+\d{2,4}-\d{2,4}(-\d{2,4})?",
        "plate": r"[A-Z]{1,3}-?\d{2,4}",
        "share": r"\d{1,2}%",
        "unit": r"\d+(kg|km|ml|am|pm)",
    }
    for name, form in forms.items():
        assert sum(bool(re.fullmatch(form, text)) for text in drawn) > 10, name
    assert all(any(c.isdigit() for c in text) for text in _draw(WordSampler([listed(ENGLISH)], 1, 0), 200, ASCII))


def test_rare_characters_are_favoured(listed):
    path = listed("eee eat tea see seat east tease " * 300 + "zoo quiz")
    plain, rare = (WordSampler([path], numbers=0, rare=share, punctuation=0) for share in (0, 1))
    often = ["".join(_draw(sampler, 3000)).lower() for sampler in (plain, rare)]
    for character in "zq7&":
        shares = [text.count(character) / len(text) for text in often]
        assert shares[1] > 3 * shares[0] and shares[1] > 0.002
    assert often[1].count("q") > often[1].count("7") / 3


def test_face_without_digits_gets_words(listed):
    sampler = WordSampler([listed(ENGLISH)], numbers=1, rare=0)
    assert set(_draw(sampler, 50, frozenset("shop"))) == {"shop"}


def test_font_and_list_of_different_scripts(listed):
    sampler = WordSampler([listed(ENGLISH)])
    with pytest.raises(SynthesisError, match="none of the 17 words"):
        _draw(sampler, 20, frozenset("абв"))


def test_any_script(listed):
    text = "हिन्दी विद्यार्थी سلام مرحبا Улица"
    path = listed(text)
    sampler = WordSampler([path], numbers=0, rare=0.5, punctuation=0)
    drawn = _draw(sampler, 500, frozenset(text) | frozenset("улицаУЛИЦА"))
    assert set(text.split()) <= set(drawn)
    assert all(check_text(word) == word for word in drawn), "no mark loses its base, no word mixes directions"


def test_chinese_text_is_cut_into_words(listed):
    sampler = WordSampler([listed("上海市人民政府关于加强管理的通知，出口 入口")], numbers=0, rare=0, punctuation=0)
    assert {"出口", "入口"} <= set(sampler.words) and "，" not in "".join(sampler.words)
    assert {len(word) for word in sampler.words} <= {1, 2, 3, 4}
    assert "".join(sampler.words).startswith("上海市人民政府关于加强管理的通知")


def test_repeated_words_are_drawn_more_often(listed):
    drawn = _draw(WordSampler([listed("shop " * 9 + "open")], numbers=0, rare=0, punctuation=0, cases=False), 1000)
    assert drawn.count("shop") / 1000 == pytest.approx(0.9, abs=0.05)


def test_words_that_cannot_be_drawn_are_counted(listed, caplog):
    with caplog.at_level(logging.INFO, logger=words.__name__):
        sampler = WordSampler([listed("good 😀 b\u202ead " + "x" * 26)])
    assert sampler.words == ["good"]
    assert "'not to be drawn': 2" in caplog.text and "'too short or too long': 1" in caplog.text


def test_without_a_list_words_are_made_up_and_it_is_said(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(words, "DEFAULT_LIST", tmp_path / "none")
    with caplog.at_level(logging.WARNING, logger=words.__name__):
        sampler = WordSampler(numbers=0, rare=0, punctuation=0)
    assert "apt install wamerican" in caplog.text
    assert all(text.isalpha() for text in _draw(sampler))
    assert len(set(sampler.words)) > 5000
    assert all(re.search("[aeiou]", word) for word in sampler.words)


@pytest.mark.skipif(not DEFAULT_LIST.is_file(), reason="no word list; Debian: apt install wamerican")
def test_list_of_the_system():
    sampler = WordSampler()
    assert len(sampler.words) > 10_000 and not any(word.endswith("'s") for word in sampler.words)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no word of 1 to 25 characters"),
        (b"caf\xe9", "not UTF-8"),
        (b"\x00\x01", "no word"),
        (("x" * 40).encode(), "too short or too long"),
    ],
)
def test_useless_files(listed, content, reason):
    with pytest.raises(ValueError, match=reason) as raised:
        WordSampler([listed(content)])
    assert "words.txt" in str(raised.value)


def test_missing_and_too_large_files(listed, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="none.txt cannot be read"):
        WordSampler([tmp_path / "none.txt"])
    path = listed(ENGLISH)
    monkeypatch.setattr(words, "MAX_WORDS", 5)
    with pytest.raises(ValueError, match="more than 5 words"):
        WordSampler([path])
    monkeypatch.setattr(words, "MAX_FILE_BYTES", 20)
    with pytest.raises(ValueError, match="words.txt has more than"):
        WordSampler([path])


@pytest.mark.parametrize(
    "options",
    [{"numbers": -0.1}, {"numbers": 0.6, "rare": 0.6}, {"punctuation": 2}, {"min_length": 0}, {"max_length": 0}],
)
def test_options_out_of_bounds(listed, options):
    with pytest.raises(ValueError, match="shares|lengths"):
        WordSampler([listed(ENGLISH)], **options)
