"""Tokenizers, built as plain `PreTrainedTokenizerFast` so that `AutoTokenizer` loads them without custom code."""

import string
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<pad>", "<sos>", "<eos>")

# The symbols of the CROHME captions, in the order in which the field numbers them (ids 3 to 112).
CROHME_SYMBOLS = tuple(
    r"""! ( ) + , - . / 0 1 2 3 4 5 6 7 8 9 < = > A B C E F G H I L M N P R S T V X Y [ \Delta \Pi \alpha \beta
    \cdot \cdots \cos \div \exists \forall \frac \gamma \geq \in \infty \int \lambda \ldots \leq \lim \limits \log \mu
    \neq \phi \pi \pm \prime \rightarrow \sigma \sin \sqrt \sum \tan \theta \times \{ \} ] ^ _ a b c d e f g h i j k l
    m n o p q r s t u v w x y z { | }""".split()
)


def latex_tokenizer(symbols: Sequence[str] = CROHME_SYMBOLS) -> PreTrainedTokenizerFast:
    """A tokenizer of space-separated LaTeX tokens: ids 0, 1, 2 are `<pad>`, `<sos>`, `<eos>`, the symbols follow.

    There is no unknown token: a label that the vocabulary cannot express is an error, not a silent loss.

    Args:
        symbols: any dictionary, in the order of the ids; `epigraph.data.dictionary` reads and learns them.

    Raises:
        ValueError: a symbol stands twice, is a special token, is empty or holds a space.
    """
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *symbols))}
    if wrong := [symbol for symbol in symbols if not isinstance(symbol, str) or symbol.split() != [symbol]]:
        raise ValueError(f"{wrong[0]!r} is no symbol; symbols are strings without spaces.")
    if len(vocabulary) != len(SPECIAL_TOKENS) + len(symbols):
        raise ValueError("A symbol stands twice in the vocabulary, or is one of <pad>, <sos>, <eos>.")
    tokenizer = Tokenizer(WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # Decoding joins by single spaces and nothing else: "x ^ { 2 }" must come back to the letter.
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(Regex(r"^"), " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    pad, bos, eos = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids"],
    )


# The field's 94: digits, letters and ASCII punctuation; and the space.
CHARACTERS = string.digits + string.ascii_letters + string.punctuation + " "
PROMPT_TOKENS = ("<pad>", "<s>", "<eoc>", "<image>")


def character_tokenizer(characters: str = CHARACTERS, **kwargs) -> PreTrainedTokenizerFast:
    """A tokenizer of single characters: ids 0 to 3 are `<pad>`, `<s>`, `<eoc>`, `<image>`, the characters follow.

    There is no unknown token: a text that the alphabet cannot write is an error, not a silent loss.

    Args:
        characters: the alphabet, in the order of the ids; any script.
        kwargs: of the tokenizer, such as `model_max_length`.

    Raises:
        ValueError: a character stands twice, is none, or there is none.
    """
    if wrong := [one for one in characters if len(one) != 1 or "\ud800" <= one <= "\udfff"]:
        raise ValueError(f"{wrong[0]!r} is no character; an alphabet is a string, or a list of single characters.")
    if not characters or len(set(characters)) != len(characters):
        twice = sorted({character for character in characters if characters.count(character) > 1})
        raise ValueError(f"An alphabet needs characters, each of them once; twice stand {twice[:5]}.")
    vocabulary = {token: index for index, token in enumerate((*PROMPT_TOKENS, *characters))}
    tokenizer = Tokenizer(WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    pad, bos, eoc, image = PROMPT_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eoc,
        additional_special_tokens=[image],
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        **kwargs,
    )


__all__ = ["CHARACTERS", "CROHME_SYMBOLS", "PROMPT_TOKENS", "SPECIAL_TOKENS", "character_tokenizer", "latex_tokenizer"]
