"""Processor of E2STR: prompts of images and texts in turn."""

from collections.abc import Sequence

import torch
from transformers import ProcessorMixin
from transformers.feature_extraction_utils import BatchFeature

from .image_processing_e2str import E2STRImageProcessor
from .tokenization import character_tokenizer


class E2STRProcessor(ProcessorMixin):
    """An image processor and a tokenizer that write prompts `<s><image>text<eoc><image>text<eoc><image>`.

    Args:
        image_processor: of word images.
        tokenizer: of characters (`character_tokenizer`), or OPT's with the two tokens below added.
        image_token: stands where an image is.
        end_of_chunk_token: ends the text of an image.
        official_labels: keep the label of the begin-of-sequence token, as the official code does, which compares ids
            with a string; with left padding a padded position is then trained to predict it.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        image_token: str = "<image>",
        end_of_chunk_token: str = "<eoc>",
        official_labels: bool = False,
        **kwargs,
    ):
        super().__init__(image_processor, tokenizer, **kwargs)
        self.image_token, self.end_of_chunk_token = image_token, end_of_chunk_token
        self.official_labels = official_labels
        vocabulary = tokenizer.get_vocab()
        if missing := {image_token, end_of_chunk_token} - set(vocabulary):
            raise ValueError(f"the tokenizer lacks {', '.join(sorted(missing))}; add them as special tokens.")
        self.image_token_id, self.end_of_chunk_token_id = vocabulary[image_token], vocabulary[end_of_chunk_token]

    def __call__(self, images, text: Sequence | str | None = None, **kwargs) -> BatchFeature:
        """Prepares a batch of prompts.

        Args:
            images: for each prompt its images in order; an image instead of a list is a prompt of one.
            text: for each prompt the texts of its images, or of all but the last, which then is to be read; a string
                instead of a list is one text.
            kwargs: of the image processor, for this call.

        Returns:
            `pixel_values` (batch, images, 3, height, width), zeros after the last image of shorter prompts;
            `input_ids` and `attention_mask` (batch, length), padded on the left; where every image has its text also
            `labels`, -100 at padding, begin of sequence and images.

        Raises:
            ValueError: an image cannot be read, texts do not fit the images, a text holds what the tokenizer cannot
                write, or a prompt is longer than `tokenizer.model_max_length`.
        """
        if kwargs.pop("return_tensors", None) not in (None, "pt"):
            raise ValueError("prompts are made as torch tensors; leave out return_tensors, or pass 'pt'.")
        prompts, texts = _prompts(images, text)
        rows = []
        for index, (own, said) in enumerate(zip(prompts, texts)):
            try:
                rows.append(self.prompt_ids(said, query=len(said) < len(own)))
                if len(rows[-1]) > self.tokenizer.model_max_length:
                    raise ValueError(
                        f"it has {len(rows[-1])} tokens, more than the {self.tokenizer.model_max_length} that the "
                        "model reads; show fewer examples, or shorter texts."
                    )
            except ValueError as error:
                raise ValueError(f"Prompt {index} cannot be written: {error}") from None
        read = self.image_processor([image for prompt in prompts for image in prompt], return_tensors="pt", **kwargs)
        read = read["pixel_values"].split([len(prompt) for prompt in prompts])
        pad = self.tokenizer.pad_token_id
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad, padding_side="left")
        lengths = torch.tensor([len(row) for row in rows])[:, None]
        mask = torch.arange(ids.shape[1]) >= ids.shape[1] - lengths
        data = {
            "pixel_values": torch.nn.utils.rnn.pad_sequence(read, batch_first=True),
            "input_ids": ids,
            "attention_mask": mask.long(),
        }
        if all(len(own) == len(said) for own, said in zip(prompts, texts)):
            data["labels"] = self.labels_of(ids, mask)
        return BatchFeature(data=data)

    def prompt_ids(self, texts: Sequence[str], query: bool = True) -> torch.LongTensor:
        """Token ids (length,) of a prompt whose examples have these texts, and of the image to read where `query`."""
        ids = [self.tokenizer.bos_token_id]
        for text in texts:
            ids += [self.image_token_id, *self.text_ids(text), self.end_of_chunk_token_id]
        return torch.tensor(ids + [self.image_token_id] * query)

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a text alone; what looks like a special token is read as its characters.

        Raises:
            ValueError: it is no string, or holds characters that the tokenizer cannot write.
        """
        if not isinstance(text, str):
            raise ValueError(f"a text must be a string, not {type(text).__name__}.")
        tokenizer = self.tokenizer
        if tokenizer.unk_token is None:
            vocabulary = tokenizer.get_vocab()
            if unknown := sorted({character for character in text if character not in vocabulary}):
                raise ValueError(f"{text[:60]!r} holds {', '.join(map(repr, unknown[:5]))}, which the alphabet lacks.")
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        if tokenizer.unk_token is not None and tokenizer.unk_token_id in ids:
            raise ValueError(f"{text[:60]!r} holds what the tokenizer cannot write.")
        return ids

    def labels_of(self, input_ids: torch.LongTensor, mask: torch.BoolTensor) -> torch.LongTensor:
        """The tokens to be predicted of prompts, -100 elsewhere: (batch, length)."""
        ignored = ~mask | (input_ids == self.image_token_id)
        if not self.official_labels:
            ignored |= input_ids == self.tokenizer.bos_token_id
        return input_ids.masked_fill(ignored, -100)

    def decode_readings(self, sequences) -> list[str]:
        """What `generate` read: of each row of token ids what stands between the last image and the end of chunk.

        A reading that generation cut off goes to its end. Negative ids are padding, too.
        """
        padding, texts = self.tokenizer.pad_token_id, []
        for row in sequences:
            chunks = [[]]
            for token in map(int, row):
                if token == self.end_of_chunk_token_id:
                    chunks.append([])
                elif token >= 0 and (token != padding or chunks[-1]):
                    chunks[-1].append(token)
            # Behind a reading there is padding at most, which a beam search takes the end of chunk for.
            last = next((chunk for chunk in reversed(chunks) if chunk), [])
            start = last.index(self.image_token_id) + 1 if self.image_token_id in last else 0
            texts.append(self.tokenizer.decode(last[start:], skip_special_tokens=True))
        return texts


def _prompts(images, text) -> tuple[list[list], list[list[str]]]:
    """Images and texts of each prompt, as many texts as images or one less."""
    if not isinstance(images, (list, tuple)):
        images = [images]
    prompts = [list(of) if isinstance(of, (list, tuple)) else [of] for of in images]
    if not prompts or not all(prompts):
        raise ValueError("every prompt needs an image.")
    if any(isinstance(image, (list, tuple)) or getattr(image, "ndim", 3) > 3 for own in prompts for image in own):
        raise ValueError("images are a list of prompts, each an image or a list of images; there is a list too many.")
    if text is None:
        if any(len(prompt) > 1 for prompt in prompts):
            raise ValueError("several images in a prompt need the texts of all but the last.")
        return prompts, [[] for _ in prompts]
    text = [text] if isinstance(text, str) else text
    texts = [[of] if isinstance(of, str) else list(of) for of in text]
    if len(texts) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts of images, but {len(texts)} of texts.")
    for index, (own, said) in enumerate(zip(prompts, texts)):
        if len(said) not in (len(own), len(own) - 1):
            raise ValueError(f"prompt {index} has {len(own)} images and {len(said)} texts.")
    return prompts, texts


def e2str_processor(characters: str | None = None, max_length: int = 2048, **image_kwargs) -> E2STRProcessor:
    """E2STR's processor: characters (the field's 94 and the space by default) and word images of 32 x 128 pixels.

    Args:
        characters: the alphabet.
        max_length: tokens of a prompt, at most; the decoder's `max_position_embeddings`.
        image_kwargs: of `E2STRImageProcessor`.
    """
    tokenizer = character_tokenizer(*([] if characters is None else [characters]), model_max_length=max_length)
    return E2STRProcessor(E2STRImageProcessor(**image_kwargs), tokenizer)


__all__ = ["E2STRProcessor", "e2str_processor"]
