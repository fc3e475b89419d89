"""Word accuracy, 1-NED and CER by protocol, against worked examples and against the rules written out again."""

import random
import re
import string
import sys

import pytest

from epigraph.data.protocols import CHARSETS, PROTOCOLS, adapt, comparable_answer, comparable_label, to_ascii
from epigraph.metrics import averages, cer, left_out, ned, word_accuracy, word_metrics, word_rows


def test_charsets_have_their_sizes():
    assert {name: len(set(charset)) for name, charset in CHARSETS.items()} == {"36": 36, "62": 62, "94": 94}
    assert set(CHARSETS["94"]) == {chr(code) for code in range(33, 127)}
    assert PROTOCOLS[:5] == ("36", "62", "94", "standard", "literature")


@pytest.mark.parametrize(
    ("text", "protocol", "expected"),
    [
        ("It's 5!", "36", "its5"),
        ("It's 5!", "62", "Its5"),
        ("It's 5!", "94", "It's5!"),
        ("It's 5!", "standard", "It's 5!"),
        ("It's 5!", "literature", "its5"),
        ("It's 5!", "literature_ignore_case", "it's 5!"),
        ("It's 5!", "literature_openocr", "its5"),
        ("Café\u00a0ﬁn Ⅳ", "36", "cafn"),  # NFKD is for labels
        ("Café", "62", "Caf"),
        ("Café", "literature", "caf"),
        ("Café", "literature_openocr", "caf"),
        ("日本 x", "literature", "日本x"),
        ("日本 x", "94", "x"),
        ("x^2_]\\-", "literature", "x^2"),  # `^` is in mmocr's class
        ("x^2", "36", "x2"),
        ("x^2", "literature_openocr", "x2"),
        ("[]\\^-", "94", "[]\\^-"),
        ("a\u3000b\tc\nd", "94", "abcd"),
        ("\u212a", "36", "k"),  # the sign of Kelvin, lower-cased before others are deleted
        ("\u212a", "62", ""),
        ("", "36", ""),
        ("Café ß 日", "literature_anyascii", "Cafe ss Ri"),
        ("Café ẞ", "literature_unicase", "cafe ss"),
    ],
)
def test_answers_in_the_form_of_a_protocol(text, protocol, expected):
    assert comparable_answer(text, protocol) == expected


@pytest.mark.parametrize(
    ("text", "protocol", "expected"),
    [
        ("Café\u00a0ﬁn Ⅳ", "36", "cafefiniv"),  # NFKD takes accents, ligatures and Roman numerals apart
        ("Café", "62", "Cafe"),
        ("Café", "literature", "caf"),  # nobody's accents but PARSeq's
        ("Café", "standard", "Café"),
        ("İ", "36", "i"),
        ("日本", "94", None),
    ],
)
def test_labels_in_the_form_of_a_protocol(text, protocol, expected):
    assert comparable_label(text, protocol)[0] == expected


def test_answers_keep_to_the_adapter_of_characters():
    """PARSeq makes labels ASCII when it reads data; answers only pass its CharsetAdapter."""
    assert word_accuracy(["cafe", "café"], ["café", "café"]) == 0.5
    assert ned(["café"], ["cafe"]) == 0.75
    assert word_accuracy(["C a f-e"], ["café"]) == 1.0


def test_length_is_counted_before_characters_are_deleted():
    """26 characters of which the protocol would keep 23 are too long; 25 are not, and answers are never cut."""
    address = "aishahaleyes.blogspot.com"
    assert comparable_label(address, "36") == ("aishahaleyesblogspotcom", None)
    assert comparable_label(address + "!", "36")[0] is None
    assert comparable_label(" ".join(address), "36")[0] == "aishahaleyesblogspotcom", "spaces do not count"
    assert comparable_label("é" * 25, "94")[0] == "e" * 25, "accents are no characters of their own"
    assert comparable_label("日" * 30 + "ab", "36")[0] == "ab", "what has no ASCII form does not count"
    assert comparable_label("ﬁ" * 13, "36")[0] is None, "a ligature counts as the letters that it becomes"
    assert comparable_answer("a" * 40, "36") == "a" * 40
    assert word_accuracy(["a" * 26], ["a" * 25]) == 0.0
    assert comparable_label(address + "!", "literature_openocr")[0] is None
    assert comparable_label("日" * 30 + "ab", "literature_openocr") == ("ab", None)
    for protocol in ("standard", "literature", "literature_ignore_case"):
        assert comparable_label("a" * 26, protocol) == ("a" * 26, None)


def test_labels_without_a_character_of_the_protocol_are_left_out_and_counted():
    labels = ["!!", "abc", "日本", "x" * 26, "?"]
    assert left_out(labels, "36") == {"no character of the protocol": 3, "longer than 25 characters": 1}
    assert left_out(labels, "94") == {"no character of the protocol": 1, "longer than 25 characters": 1}
    assert left_out(labels, "standard") == {} and left_out(labels, "literature") == {}
    assert word_accuracy([""] * 5, labels, "36") == 0.0, "of one label"
    assert word_accuracy([""] * 5, labels, "literature") == 2 / 5, "two empty texts are equal"
    assert word_metrics(["", ""], ["!", "?"], "literature") == {"word_accuracy": 1.0, "ned": 1.0, "cer": 0.0}
    with pytest.raises(ValueError, match="protocol '36' leaves out all of the 2 labels"):
        word_accuracy(["", ""], ["!", "?"])


def test_one_minus_ned_divides_by_the_longer_text_word_by_word():
    """ICDAR 2019: kitten/sitting has 3 edits in 7 characters, so the mean of 4/7, 1 and 0."""
    assert ned(["sitting", "Word", ""], ["kitten", "word", "abc"]) == pytest.approx((4 / 7 + 1 + 0) / 3)
    assert ned(["sitting", "Word", ""], ["kitten", "word", "abc"], "94") == pytest.approx((4 / 7 + 3 / 4 + 0) / 3)
    assert ned(["abcdefgh"], ["a"]) == pytest.approx(1 / 8), "a long answer never makes it negative"


def test_cer_is_of_the_whole_set_and_keeps_case():
    assert cer(["sitting", "Word"], ["kitten", "word"]) == pytest.approx((3 + 1) / (6 + 4))
    assert cer(["sitting", "Word"], ["kitten", "word"], "36") == pytest.approx(3 / 10)
    assert cer(["abcd"], ["a"]) == 3.0
    assert cer(["a b"], ["ab"]) == 0.5


def parseq_rule(text, charset, is_label):
    """The rule of the protocol page, written out again, character by character."""
    import unicodedata

    if is_label:
        text = "".join(character for character in text if not character.isspace())
        text = "".join(character for character in unicodedata.normalize("NFKD", text) if ord(character) < 128)
    if is_label and len(text) > 25:
        return None
    if not any(character in string.ascii_uppercase for character in charset):
        text = text.lower()
    text = "".join(character for character in text if character in charset)
    return None if is_label and not text else text


def test_a_protocol_whose_package_is_missing_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "anyascii", None)
    with pytest.raises(ValueError, match="pip install anyascii"):
        word_accuracy(["a"], ["a"], "literature_unicase")


def test_adapter_equals_the_rule_written_out_on_random_text():
    rng = random.Random(0)
    alphabet = string.printable + "éÉüßﬁ½①ＡÅ日本語İı\u0301\u200b\u00a0^[]\\-"
    for _ in range(3000):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randint(0, 40)))
        for name, charset in CHARSETS.items():
            assert adapt(text, name) == parseq_rule(text, charset, is_label=False)
            assert comparable_label(text, name)[0] == parseq_rule(text, charset, is_label=True)
        kept = [c for c in text.lower() if "a" <= c <= "z" or "0" <= c <= "9" or c == "^" or "\u4e00" <= c <= "\u9fa5"]
        assert comparable_answer(text, "literature") == "".join(kept)
        kept = [c for c in text if c in string.digits + string.ascii_letters]
        assert comparable_answer(text, "literature_openocr") == "".join(kept).lower()


def test_adapted_text_stays_as_it_is():
    for name in CHARSETS:
        for text in ("It's 5!", "Café ﬁn", string.printable):
            assert adapt(adapt(text, name), name) == adapt(text, name)
    assert re.fullmatch("[!-~]*", to_ascii(string.printable + "日é"))


def test_rows_name_their_protocol_and_count_what_is_compared():
    predictions = ["Abc", "x", "!", "12", "no"]
    references = ["abc", "y", "!", "12", "?!"]
    sources, splits = ["a", "a", "a", "b", "c"], ["test"] * 5
    rows = word_rows(predictions, references, sources, splits, "36")
    assert [(row["metric"], row["source"], row["value"], row["n"]) for row in rows] == [
        ("word_accuracy", "a", 0.5, 2),
        ("ned", "a", 0.5, 2),
        ("cer", "a", 0.25, 2),
        ("word_accuracy", "b", 1.0, 1),
        ("ned", "b", 1.0, 1),
        ("cer", "b", 0.0, 1),
        ("word_accuracy", "c", None, 0),
        ("ned", "c", None, 0),
        ("cer", "c", None, 0),
    ]
    assert [row.get("characters") for row in rows[:6]] == [None, None, 4, None, None, 2]
    assert {row["protocol"] for row in rows} == {"36"} and {row["split"] for row in rows} == {"test"}
    assert rows[0]["left_out"] == {"no character of the protocol": 1} and "left_out" not in rows[3]
    accuracy = averages(rows)[0]
    assert accuracy == {
        "metric": "word_accuracy",
        "protocol": "36",
        "sets": 2,
        "n": 3,
        "arithmetic": 0.75,
        "weighted": pytest.approx(2 / 3),
    }


def test_weighted_average_is_the_accuracy_of_all_words_together():
    rng = random.Random(1)
    references = [rng.choice(["abc", "De", "f!", "?"]) for _ in range(200)]
    predictions = [rng.choice(["abc", "de", "f"]) for _ in references]
    sources = [rng.choice("xyz") for _ in references]
    for protocol in PROTOCOLS:
        rows = word_rows(predictions, references, sources, ["test"] * 200, protocol)
        for row in averages(rows):
            whole = {"word_accuracy": word_accuracy, "ned": ned, "cer": cer}[row["metric"]](
                predictions, references, protocol
            )
            assert row["weighted"] == pytest.approx(whole) and row["n"] == 200 - sum(
                left_out(references, protocol).values()
            )


def test_rows_of_different_protocols_are_not_averaged_together():
    rows = [row for p in ("36", "62") for row in word_rows(["A"], ["a"], ["s"], ["test"], p)]
    assert [(r["protocol"], r["weighted"]) for r in averages(rows) if r["metric"] == "word_accuracy"] == [
        ("36", 1.0),
        ("62", 0.0),
    ]


def test_wrong_arguments_are_told():
    with pytest.raises(ValueError, match="no protocol '37' for words; there are 36, 62, 94, standard, literature"):
        word_accuracy(["a"], ["a"], "37")
    with pytest.raises(ValueError, match="no protocol 'x'"):
        left_out([], "x")
    with pytest.raises(ValueError, match="1 predictions for 2 references"):
        ned(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="wrap a single one in a list"):
        cer("a", ["a"])
    with pytest.raises(ValueError, match="2 words, but 1 sources and 2 splits"):
        word_rows(["a", "b"], ["a", "b"], ["s"], ["t", "t"])
