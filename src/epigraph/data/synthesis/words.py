"""What is written: words of a list or of any text, with the case, numbers and punctuation of scene text.

```python
import numpy as np
from epigraph.data.synthesis.fonts import BUILTIN, open_face
from epigraph.data.synthesis.words import WordSampler

words = WordSampler()                                    # /usr/share/dict/words where it is installed
words = WordSampler(["products.txt", "streets.txt"])     # or your own, in any script
words.sample(np.random.default_rng(0), open_face(BUILTIN).characters)
```
"""

import logging
import string
import unicodedata
from bisect import bisect
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np
import regex

from .fonts import SynthesisError
from .shaping import check_text

logger = logging.getLogger(__name__)

DEFAULT_LIST = Path("/usr/share/dict/words")
MAX_FILE_BYTES = 64 * 2**20
MAX_WORDS = 2_000_000
# Share of words by length in photographs of signs, packages and receipts: much shorter than what a dictionary has.
_LENGTHS = (4, 5, 15, 21, 16, 12, 9, 6, 4, 3, 2, 1)
_LONGER = 0.6  # of the share of the length before, from there on
_CURRENCIES = "$$$€£¥"
_SPACELESS = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}]+")
_RIGHT_TO_LEFT = regex.compile(r"[\p{Bidi_Class=R}\p{Bidi_Class=AL}]")
_CLUSTER = regex.compile(r"\X")
_TRIES = 12


class WordSampler:
    """Draws words, numbers and strings of rare characters.

    Args:
        files: word lists or running text in UTF-8, split at white space; a word that stands twice is drawn twice as
            often. Chinese and Japanese text is cut into pieces of 2 to 4 characters. Without files: the system's
            English list, or made-up words where it has none.
        numbers: share of numbers, prices, dates, times, phone numbers and number plates.
        rare: share of words in which characters were replaced by, or that consist of, characters which the list
            seldom has, so that q, Z, & or 龘 are learnt too.
        punctuation: share of words with marks at their ends.
        codes: share of what stands on receipts, plates and packages beside numbers and words: `RM12.50`, `7ABC123`,
            `(GST)`, `QTY:`, `#0042`, `www.epigraph.com`.
        without: an ending whose words are left out, as `'s`, which a quarter of English lists has.
        cases: draw UPPER, Capital and lower case as signs have them; otherwise words stay as the list has them.
        min_length, max_length: in characters.

    Attributes:
        words: as read, in the order of the files.
        left_out: how many were not, for want of a fitting length, or because they hold emoji, control characters ...

    Raises:
        ValueError: shares outside 0..1, lengths that leave no word, or a file that cannot be read, is not UTF-8, or
            has over 64 MB.
    """

    def __init__(
        self,
        files: str | Path | Sequence[str | Path] = (),
        numbers: float = 0.1,
        rare: float = 0.1,
        punctuation: float = 0.05,
        cases: bool = True,
        min_length: int = 1,
        max_length: int = 25,
        codes: float = 0.0,
        without: str = "",
    ):
        if min(numbers, rare, punctuation, codes) < 0 or numbers + rare + codes > 1 or punctuation > 1:
            raise ValueError(
                f"shares lie in 0..1, not numbers {numbers}, rare {rare}, punctuation {punctuation}, codes {codes}."
            )
        if not 1 <= min_length <= max_length:
            raise ValueError(f"word lengths of {min_length} to {max_length} leave none; give 1 <= least <= most.")
        self.numbers, self.rare, self.punctuation, self.cases = numbers, rare, punctuation, cases
        self.min_length, self.max_length, self.codes, self.without = min_length, max_length, codes, without
        if isinstance(files, (str, Path)):
            files = [files]
        self.words, left_out = [], Counter()
        for file in files or [DEFAULT_LIST]:
            if not files and not file.is_file():
                logger.warning(
                    "no word list at %s (Debian: apt install wamerican), so words are made up; or give files.", file
                )
                self._keep(_made_up(20_000), left_out)
            else:
                self._keep(_read_words(Path(file), english=not files), left_out)
        self.left_out = dict(left_out)
        logger.info("%d words; left out: %s", len(self.words), self.left_out or "none")
        if not self.words:
            raise ValueError(
                f"no word of {min_length} to {max_length} characters in {', '.join(map(str, files)) or DEFAULT_LIST} "
                f"(left out: {self.left_out or 'none'}); give other files or lengths."
            )
        self._by_length: dict[int, list[str]] = {}
        for word in self.words:
            self._by_length.setdefault(len(word), []).append(word)
        self._lengths = sorted(self._by_length)
        self._length_shares = list(accumulate(_share(length) for length in self._lengths))
        self._rare = {rtl: _rare_clusters(self.words, rtl) for rtl in (False, True)}

    def _keep(self, words: Iterable[str], left_out: Counter) -> None:
        for word in words:
            if self.without and word.endswith(self.without):
                left_out[f"ending in {self.without}"] += 1
                continue
            if not self.min_length <= len(word) <= self.max_length:
                left_out["too short or too long"] += 1
                continue
            try:
                self.words.append(check_text(word))
            except SynthesisError:
                left_out["not to be drawn"] += 1
            if len(self.words) > MAX_WORDS:
                raise ValueError(f"the word files have more than {MAX_WORDS:,} words; give a part of them.")

    def sample(self, rng: np.random.Generator, characters: frozenset[str]) -> str:
        """One word of the given characters only (`Face.characters`).

        Raises:
            SynthesisError: no word of the list can be written with them.
        """
        draw = rng.random()
        for _ in range(_TRIES):
            if draw < self.numbers:
                text = _number(rng)
            elif draw < self.numbers + self.rare:
                text = self._strange(rng, characters)
            elif draw < self.numbers + self.rare + self.codes:
                text = _code(rng, self._word(rng))
            else:
                text = self._word(rng)
                if self.punctuation and rng.random() < self.punctuation:
                    text = _punctuated(rng, text)
            if self.min_length <= len(text) <= self.max_length and characters.issuperset(text):
                return text
        possible = _writable(self, characters)
        if not possible:
            raise SynthesisError(
                f"none of the {len(self.words)} words can be written with the font's {len(characters)} characters; "
                "give words of the script of the fonts, or fonts of the script of the words."
            )
        return possible[int(rng.random() * len(possible))]

    def _word(self, rng: np.random.Generator) -> str:
        length = bisect(self._length_shares, rng.random() * self._length_shares[-1])
        words = self._by_length[self._lengths[min(length, len(self._lengths) - 1)]]
        word = words[int(rng.random() * len(words))]
        if not self.cases:
            return word
        draw = rng.random()
        if draw < 0.45:
            return word.upper()
        if draw < 0.65:
            return word[0].upper() + word[1:].lower()
        return word.lower() if draw < 0.8 else word

    def _strange(self, rng: np.random.Generator, characters: frozenset[str]) -> str:
        """A word with one or two rare characters in it, or a string of nothing else."""
        clusters = _CLUSTER.findall(self._word(rng))
        rares, shares = self._rare[any(_RIGHT_TO_LEFT.search(cluster) for cluster in clusters)]
        count = len(clusters) if rng.random() < 0.4 else 1 + (rng.random() < 0.4)
        for _ in range(count):
            cluster = rares[min(bisect(shares, rng.random() * shares[-1]), len(rares) - 1)]
            if characters.issuperset(cluster):
                clusters[int(rng.random() * len(clusters))] = cluster
        return unicodedata.normalize("NFC", "".join(clusters))


@lru_cache(maxsize=16)
def _writable(sampler: WordSampler, characters: frozenset[str]) -> list[str]:
    return [word for word in sampler.words if characters.issuperset(word)]


def _share(length: int) -> float:
    beyond = length - len(_LENGTHS)
    return _LENGTHS[length - 1] if beyond <= 0 else _LENGTHS[-1] * _LONGER**beyond


def _read_words(path: Path, english: bool) -> Iterable[str]:
    """The words of a file; of the system's English list without the possessives, a third of it."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ValueError(f"the word list {path} has more than {MAX_FILE_BYTES >> 20} MB; give a part of it.")
        text = unicodedata.normalize("NFC", content.decode("utf-8-sig"))
    except OSError as error:
        raise ValueError(f"the word list {path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"the word list {path} is not UTF-8 text ({error.reason} at byte {error.start}).") from None
    for number, word in enumerate(text.split()):
        if english and word.endswith("'s"):
            continue
        if word.isascii() or not _SPACELESS.search(word):
            yield word
            continue
        for run in _SPACELESS.findall(word):
            size = (2, 3, 4)[number % 3] if len(run) > 4 else len(run)
            yield from (run[start : start + size] for start in range(0, len(run), size))


def _made_up(count: int) -> list[str]:
    """Words that can be pronounced, the same on every machine."""
    rng = np.random.default_rng(0)
    starts = "b bl br c ch cl cr d dr f fl fr g gl gr h j k l m n p pl pr qu r s sh sl st t th tr v w y z".split()
    middles = "a e i o u a e i o ai ea ee oo ou".split()
    ends = ["", "", "", *"b ck d g l ll m n nd ng nt p r rd s ss st t x".split()]
    words = []
    for syllables in rng.choice(4, count, p=(0.35, 0.4, 0.2, 0.05)) + 1:
        parts = (starts, middles, ends) * int(syllables)
        words.append("".join(part[int(rng.random() * len(part))] for part in parts))
    return words


def _rare_clusters(words: list[str], rtl: bool) -> tuple[list[str], list[float]]:
    """Characters with running sums of shares that fall with the square root of their frequency.

    Digits and ASCII punctuation are among them; where words run from left to right and are Latin, its capitals too.
    """
    counts = Counter(dict.fromkeys(string.digits + string.punctuation, 0))
    for word in words:
        if word.isascii():
            if not rtl:
                counts.update(word)
        elif bool(_RIGHT_TO_LEFT.search(word)) == rtl:
            counts.update(_CLUSTER.findall(word))
    for cluster in list(counts):
        if not rtl and len(cluster.upper()) == 1:
            counts[cluster.upper()] += 0
    clusters = sorted(counts)
    floor = 1 + sum(counts.values()) / 20_000  # below that, frequency is chance
    shares = (
        (counts[cluster] + floor) ** -0.5 * (0.3 if cluster in string.punctuation else 1) for cluster in clusters
    )
    return clusters, list(accumulate(shares))


def _punctuated(rng: np.random.Generator, word: str) -> str:
    draw = rng.random()
    if draw < 0.7:
        return word + ".,.,!?::;!-%"[int(rng.random() * 12)]
    before, after = ('""', "()", "''", "[]", "*#", "&.", "@!", "-:")[int(rng.random() * 8)]
    if draw < 0.9 or _RIGHT_TO_LEFT.search(word):
        return before + word + (after if before in "\"([')" else "")
    return word + ("'S" if word.isupper() else "'s")


def _number(rng: np.random.Generator) -> str:
    """A number, price, date, time, phone number, number plate, share or code."""
    draw = rng.random()
    if draw < 0.3:
        return _digits(rng, 1 + int(rng.random() ** 2 * 6))
    if draw < 0.52:
        amount = _digits(rng, 1 + int(rng.random() ** 1.5 * 4)) + "..,."[int(rng.random() * 4)] + _digits(rng, 2, 0)
        return _CURRENCIES[int(rng.random() * 6)] + amount if rng.random() < 0.4 else amount
    if draw < 0.64:
        day, month, year = 1 + int(rng.random() * 28), 1 + int(rng.random() * 12), 1950 + int(rng.random() * 90)
        if rng.random() < 0.2:
            return f"{year}-{month:02d}-{day:02d}"
        mark = "/-."[int(rng.random() * 3)]
        return f"{day:02d}{mark}{month:02d}{mark}{year if rng.random() < 0.6 else f'{year % 100:02d}'}"
    if draw < 0.72:
        clock = f"{int(rng.random() * 24):02d}:{int(rng.random() * 60):02d}"
        return f"{clock}:{int(rng.random() * 60):02d}" if rng.random() < 0.25 else clock
    if draw < 0.80:
        start = ("", "+", "0", "(0)")[int(rng.random() * 4)]
        groups = [_digits(rng, 2 + int(rng.random() * 3)) for _ in range(2 + int(rng.random() * 2))]
        return start + "-"[: rng.random() < 0.6].join(groups)
    if draw < 0.88:
        letters = "".join(string.ascii_uppercase[int(rng.random() * 26)] for _ in range(1 + int(rng.random() * 3)))
        number = _digits(rng, 2 + int(rng.random() * 3))
        return f"{letters}{'-'[: rng.random() < 0.3]}{number}" if rng.random() < 0.7 else f"{number}{letters}"
    if draw < 0.93:
        return _digits(rng, 1 + int(rng.random() * 2)) + "%"
    unit = ("km", "m", "kg", "g", "ml", "L", "x", "st", "th", "pm", "am", "mm", "A", "B", "W", "V")
    return _digits(rng, 1 + int(rng.random() * 3)) + unit[int(rng.random() * len(unit))]


def _code(rng: np.random.Generator, word: str) -> str:
    """A number plate, an amount with a sign or unit, a word as receipts and addresses of the web have it."""
    draw = rng.random()
    if draw < 0.3:  # plates: runs of capitals and digits
        runs = ("LD", "DLD", "LDL", "DL", "LDLD", "DLDL")[int(rng.random() * 6)]
        parts = []
        for run in runs:
            count = 1 + int(rng.random() * (4 if run == "D" else 3))
            letters = (string.ascii_uppercase[int(rng.random() * 26)] for _ in range(count))
            parts.append("".join(letters) if run == "L" else _digits(rng, count, 0))
        return "-"[: rng.random() < 0.15].join(parts)
    if draw < 0.45:
        every = string.ascii_uppercase + string.digits
        return "".join(every[int(rng.random() * 36)] for _ in range(4 + int(rng.random() * 8)))
    amount = f"{_digits(rng, 1 + int(rng.random() ** 1.5 * 4))}.{_digits(rng, 2, 0)}"
    if draw < 0.6:
        sign = ("RM", "$", "USD", "-", "(", "@", "+", "*", "EUR", "x", "=")[int(rng.random() * 11)]
        return f"({amount})" if sign == "(" else sign + amount
    if draw < 0.68:
        mark = (" SR", "S", "T", "A", "*", "-", "#", "KG", "%", "/kg")[int(rng.random() * 10)]
        return amount + mark.strip()
    if draw < 0.74:
        return "#" + _digits(rng, 2 + int(rng.random() * 7), 0)
    if draw < 0.92:
        form = ("({})", "{}:", "{}.", "{}:" + _digits(rng, 1), "{}/", "*{}*", "&{}", "{}@" + _digits(rng, 1),
                "{}-" + _digits(rng, 2), "{}#", "[{}]", "<{}>", "{}...", "{}," )[int(rng.random() * 14)]  # fmt: skip
        return form.format(word)
    end = (".com", ".org", ".net", ".co.uk", ".de", ".in", ".com.my")[int(rng.random() * 7)]
    name = word.lower() + end
    return ("www.", "http://", "info@", "")[int(rng.random() * 4)] + name if name.isascii() else name


def _digits(rng: np.random.Generator, count: int, least: int = 1) -> str:
    """`count` digits without a leading zero (unless alone), or with one where `least` is 0."""
    low = 10 ** (count - 1) if least and count > 1 else 0
    return f"{low + int(rng.random() * (10**count - low)):0{count}d}"
