"""How labels and answers of word images are brought into one form before they are compared.

| protocol | what is compared | whose rule |
|---|---|---|
| `36` | digits and lower-case letters | PARSeq, with a `charset_test` of 36 |
| `62` | digits and letters | PARSeq, 62 |
| `94` | printable ASCII without the space | PARSeq, 94 |
| `standard` | the texts as they stand | mmocr's `exact`, docTR's raw match |
| `literature` | lower case, of it `a-z`, `0-9`, `^` and Chinese characters | mmocr's `ignore_case_symbol` |
| `literature_ignore_case` | lower case | mmocr's `ignore_case`, docTR's caseless match |
| `literature_openocr` | ASCII letters and digits, in lower case | OpenOCR, with `is_filter` |
| `literature_anyascii` | the texts written in ASCII, of any script | docTR's anyascii match |
| `literature_unicase` | the same in lower case | docTR's unicase match |

`docs/protocols.md` has the rules in full. Which labels are left out is part of a protocol, too.
"""

import re
import string
import unicodedata
from collections.abc import Callable
from importlib.util import find_spec

LETTERS_AND_DIGITS = string.digits + string.ascii_lowercase
CHARSETS = {
    "36": LETTERS_AND_DIGITS,
    "62": LETTERS_AND_DIGITS + string.ascii_uppercase,
    "94": LETTERS_AND_DIGITS + string.ascii_uppercase + string.punctuation,
}
MAX_LABEL_LENGTH = 25  # characters; longer ones were left out of training and test since the field's first data sets

TOO_LONG = f"longer than {MAX_LABEL_LENGTH} characters"
EMPTY = "no character of the protocol"

# The sub-sets in use of sets that have several, by the number of their words.
SUBSETS = {
    "ICDAR 2013": {
        1095: "all words",
        1015: "letters and digits only",
        857: "letters and digits only, at least 3 characters",
    },
    "ICDAR 2015": {2077: "all words", 1811: "without other characters and the most slanted and curved"},
}

_UNSUPPORTED = {name: re.compile(f"[^{re.escape(charset)}]") for name, charset in CHARSETS.items()}
# Written as mmocr writes it: inside the class the second and third `^` are the character itself, so that it is kept.
_LITERATURE = re.compile("[^A-Z^a-z^0-9^\u4e00-\u9fa5]")
_NO_LETTER_OR_DIGIT = re.compile("[^0-9A-Za-z]")


def to_ascii(text: str) -> str:
    """Without white space; letters lose their accents, and what has no ASCII form by NFKD is deleted (PARSeq)."""
    return unicodedata.normalize("NFKD", "".join(text.split())).encode("ascii", "ignore").decode()


def adapt(text: str, charset: str = "36") -> str:
    """Lower-cased where the charset has no capitals, and what the charset lacks deleted (PARSeq's CharsetAdapter).

    Args:
        text: an answer, or a label that `to_ascii` has made ASCII, of any length.
        charset: "36", "62" or "94".
    """
    return _UNSUPPORTED[charset].sub("", text.lower() if charset == "36" else text)


def _literature(text: str) -> str:
    return _LITERATURE.sub("", text.lower())


def _openocr(text: str) -> str:
    return _NO_LETTER_OR_DIGIT.sub("", text).lower()


def _as_it_stands(text: str) -> str:
    return text


def _anyascii(text: str) -> str:
    from anyascii import anyascii

    return anyascii(text)


def _unicase(text: str) -> str:
    return _anyascii(text.lower())


_ANSWERS: dict[str, Callable[[str], str]] = {
    "standard": _as_it_stands,
    "literature": _literature,
    "literature_ignore_case": str.lower,
    "literature_openocr": _openocr,
    "literature_anyascii": _anyascii,
    "literature_unicase": _unicase,
}
PROTOCOLS = (*CHARSETS, *_ANSWERS)
DEFAULT_PROTOCOL = "36"


def comparable_answer(text: str, protocol: str = DEFAULT_PROTOCOL) -> str:
    """An answer in the form that a protocol compares. Answers are never cut and never left out.

    Raises:
        ValueError: there is no such protocol.
    """
    check_protocol(protocol)
    return adapt(text, protocol) if protocol in CHARSETS else _ANSWERS[protocol](text)


def comparable_label(text: str, protocol: str = DEFAULT_PROTOCOL) -> tuple[str | None, str | None]:
    """A label in the form that a protocol compares, or None and the reason why the protocol leaves it out.

    The length is that before characters are deleted; in the charset protocols that of the ASCII form, in OpenOCR's
    that of its printable ASCII characters.

    Raises:
        ValueError: there is no such protocol.
    """
    if protocol in CHARSETS:
        text = to_ascii(text)
        if len(text) > MAX_LABEL_LENGTH:
            return None, TOO_LONG
        return (label, None) if (label := adapt(text, protocol)) else (None, EMPTY)
    label = comparable_answer(text, protocol)
    if protocol == "literature_openocr" and len(_UNSUPPORTED["94"].sub("", text)) > MAX_LABEL_LENGTH:
        return None, TOO_LONG
    return label, None


def benchmark_subset(source: str, words: int) -> str | None:
    """Which of a set's sub-sets data are, by name and number: "ICDAR 2013, 857 words: ..."; None for other sets."""
    name = re.sub("[^a-z0-9]", "", source.lower())
    for year in ("13", "15"):
        if name.startswith((f"icdar{year}", f"icdar20{year}", f"ic{year}")):
            known = f"ICDAR 20{year}"
            return f"{known}, {words} words: {SUBSETS[known].get(words, 'none of the sub-sets in use')}"
    return None


def check_protocol(protocol: str):
    """ValueError that names the protocols, where this is none of them, or the package that one lacks."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"there is no protocol '{protocol}' for words; there are {', '.join(PROTOCOLS)}.")
    if protocol in ("literature_anyascii", "literature_unicase") and find_spec("anyascii") is None:
        raise ValueError(f"protocol '{protocol}' needs the package anyascii: pip install anyascii.")


__all__ = [
    "CHARSETS",
    "DEFAULT_PROTOCOL",
    "MAX_LABEL_LENGTH",
    "PROTOCOLS",
    "adapt",
    "benchmark_subset",
    "check_protocol",
    "comparable_answer",
    "comparable_label",
    "to_ascii",
]
