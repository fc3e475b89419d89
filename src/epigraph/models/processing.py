"""Processors: images and texts to tensors, token ids to strings."""

import torch
from transformers import ProcessorMixin
from transformers.feature_extraction_utils import BatchFeature

from .image_processing import TextImageProcessor
from .tokenization import latex_tokenizer


class TextProcessor(ProcessorMixin):
    """An image processor and a tokenizer as one."""

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(self, images=None, text=None, **kwargs) -> BatchFeature:
        """Prepares a batch.

        Args:
            images: one image or a list: PIL, or arrays (height, width), (height, width, 3), (channels, height, width).
            text: one label or a list, as space-separated tokens.
            kwargs: of the image processor, for this call.

        Returns:
            `pixel_values` (batch, 1, height, width) and `pixel_mask` (batch, height, width) from images, and with
            `return_geometry=True` their `geometry` (batch, 4), see `TextImageProcessor`; `labels` (batch, length),
            filled up with the pad token, from text.

        Raises:
            ValueError: neither is given, an image holds nothing that can be read, or a label an unknown token.
        """
        if images is None and text is None:
            raise ValueError("The processor needs images, text, or both.")
        batch = BatchFeature()
        if images is not None:
            batch.update(self.image_processor(images, **{"return_tensors": "pt", **kwargs}))
        if text is not None:
            batch["labels"] = self.encode_labels([text] if isinstance(text, str) else text)
        return batch

    def encode_labels(self, texts: list[str]) -> torch.LongTensor:
        """Labels (batch, length) of space-separated tokens, filled up with the pad token."""
        vocabulary = self.tokenizer.get_vocab()
        rows = []
        for index, text in enumerate(texts):
            tokens = text.split()
            if unknown := sorted({token for token in tokens if token not in vocabulary}):
                raise ValueError(
                    f"Label {index} ({text[:60]!r}) holds {', '.join(unknown[:5])}, which the vocabulary lacks; "
                    "normalise it with epigraph.data.latex.normalise or add the tokens."
                )
            rows.append(torch.tensor([vocabulary[token] for token in tokens], dtype=torch.long))
        padding = self.tokenizer.pad_token_id
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)

    def decode_labels(self, sequences) -> list[str]:
        """Space-separated tokens of each row of ids, special tokens left out."""
        tokenizer = self.tokenizer
        special = set(tokenizer.all_special_ids)
        return [
            " ".join(tokenizer.convert_ids_to_tokens([int(i) for i in row if int(i) not in special]))
            for row in sequences
        ]


def comer_processor(symbols=None, **image_kwargs) -> TextProcessor:
    """CoMER's processor: LaTeX tokens (CROHME's by default) and grey images between 16 x 16 and 256 x 1024."""
    tokenizer = latex_tokenizer() if symbols is None else latex_tokenizer(symbols)
    return TextProcessor(TextImageProcessor(**image_kwargs), tokenizer)


__all__ = ["TextProcessor", "comer_processor"]
