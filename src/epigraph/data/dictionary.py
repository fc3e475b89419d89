"""Dictionaries: the symbols that a tokenizer knows, from a file or learnt from captions.

```python
from epigraph.data.dictionary import learn_symbols, read_dictionary
from epigraph.models.processing import comer_processor

processor = comer_processor(read_dictionary("dictionary.txt"))
processor = comer_processor(learn_symbols([r"\\frac12 + x^2", r"\\hat{x} \\le 3"]))
```
"""

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..models.tokenization import SPECIAL_TOKENS
from .latex import LatexError, normalise

logger = logging.getLogger(__name__)

MAX_SYMBOLS = 5_000  # HME100K has 245, MathWriting 229
MAX_FILE_BYTES = 2**20


def read_dictionary(path: str | Path) -> list[str]:
    """The symbols of a `dictionary.txt`, one a line, as CROHME, HME100K and their models come with, in its order.

    Raises:
        ValueError: it cannot be read, or a line is empty, holds more than one symbol, one that stands before, or a
            special token, which every tokenizer of ours has already; one sentence with file and line.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"the dictionary {path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"the dictionary {path} is not UTF-8 text ({error.reason} at byte {error.start}).") from None
    symbols = {}
    for number, line in enumerate(text.rstrip().split("\n"), start=1):
        found = line.split()
        if len(found) != 1:
            raise ValueError(f"the dictionary {path} has {len(found)} symbols in line {number}; write one a line.")
        symbol = found[0]
        if symbol in SPECIAL_TOKENS:
            raise ValueError(f"the dictionary {path} has {symbol} in line {number}; leave special tokens out.")
        if symbol in symbols:
            raise ValueError(f"the dictionary {path} has {symbol!r} in the lines {symbols[symbol]} and {number}.")
        symbols[symbol] = number
    if len(symbols) > MAX_SYMBOLS or len(content) > MAX_FILE_BYTES:
        raise ValueError(f"the dictionary {path} has more than {MAX_SYMBOLS:,} symbols; is it one?")
    return list(symbols)


def learn_symbols(captions: Iterable[str], min_count: int = 1) -> list[str]:
    r"""The symbols that captions are written with, sorted, which depends neither on their order nor on their number.

    Captions may be raw LaTeX or space-separated tokens. They are brought to normal form first
    (`epigraph.data.latex.normalise`), so that `\le` and `\leq` give one symbol and spacing and fonts give none. What
    is rare, and captions that are no well-formed LaTeX, are logged.

    Args:
        captions: of the training data.
        min_count: symbols in fewer captions are left out; training then drops the captions that hold them.

    Raises:
        ValueError: no caption is well-formed LaTeX, or there are more than 5,000 symbols.
    """
    counts, wrong, total = Counter(), [], 0
    for caption in captions:
        total += 1
        try:
            counts.update(set(normalise(caption, ()).tokens))
        except LatexError as error:
            wrong.append(f"{caption[:60]!r}: {error}")
    symbols = sorted(symbol for symbol, count in counts.items() if count >= min_count and symbol not in SPECIAL_TOKENS)
    if not symbols:
        first = f", the first {wrong[0]}" if wrong else ""
        raise ValueError(f"no symbol stands in {min_count} of the {total} captions; {len(wrong)} are no LaTeX{first}.")
    if len(symbols) > MAX_SYMBOLS:
        raise ValueError(f"{len(symbols):,} symbols in {total:,} captions, such as {symbols[-1]!r}; are they LaTeX?")
    left_out = sorted(symbol for symbol, count in counts.items() if count < min_count)
    rare = sorted(symbol for symbol in symbols if counts[symbol] < max(5, min_count))
    logger.info("learnt %d symbols from %d captions", len(symbols), total)
    for what, found in (("left out as rare", left_out), ("in fewer than 5 captions", rare), ("no LaTeX", wrong)):
        if found:
            logger.warning("dictionary: %d %s: %s", len(found), what, ", ".join(found[:20]))
    return symbols


def symbols_of(setting: str | list[str], captions: Iterable[str]) -> list[str]:
    """What a recipe's `processor: {symbols: ...}` means: a list, a dictionary file, or `auto`, learnt from `captions`.

    Raises:
        ValueError: as `read_dictionary` and `learn_symbols`.
    """
    if not isinstance(setting, str):
        return list(setting)
    if setting == "auto":
        return learn_symbols(captions)
    from .readers import expand_path

    return read_dictionary(expand_path(setting))


__all__ = ["learn_symbols", "read_dictionary", "symbols_of"]
