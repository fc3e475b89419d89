"""Processors: images and texts to tensors, token ids to strings."""

import numpy as np
import torch
from transformers import ProcessorMixin
from transformers.feature_extraction_utils import BatchFeature

from .image_processing import TextImageProcessor
from .tokenization import latex_tokenizer

_CELL = 16  # pixels of `pixel_values` along a side of one cell of the features


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

    def post_process_attention(
        self, maps: torch.Tensor, geometry: torch.Tensor, image_sizes, max_side: int | None = 1024
    ) -> list[np.ndarray]:
        """Maps on the grid of the features as maps over the original images, through crop, scale and padding.

        Every cell spreads its weight over the pixels around it, linearly out to the middles of its neighbours, and a
        cell at or beyond the image's edge over those that lie in the image. So a map sums over the image to what it
        sums to over the cells: attention to 1, coverage to the number of tokens so far. What was cut away is 0.

        Args:
            maps: (rows, length, height, width), `cross_attentions` or `coverages` of `generate`. Rows are a multiple
                of the images: as many for each image, one image after the other.
            geometry: (images, 4) of this processor's `return_geometry=True`.
            image_sizes: height and width of each image, as it was given to this processor.
            max_side: a longer image gets maps reduced by one factor to this many pixels along its longer side, which
                bounds the memory of photographs; None for maps of every image's own size.

        Returns:
            For each row (length, height, width) float32.

        Raises:
            ValueError: the numbers of rows, geometries and sizes do not fit together, or `max_side` is below 1.
        """
        sizes = [(int(height), int(width)) for height, width in image_sizes]
        if not sizes or len(sizes) != len(geometry) or len(maps) % len(sizes):
            raise ValueError(
                f"{len(maps)} rows of maps, {len(geometry)} geometries and {len(sizes)} image sizes do not fit "
                "together; give a geometry and a size for each image, and as many rows for each."
            )
        if max_side is not None and max_side < 1:
            raise ValueError(f"max_side must be at least 1, or None for no limit, not {max_side}.")
        found, each = [], len(maps) // len(sizes)
        for rows, (left, top, scale_x, scale_y), (height, width) in zip(
            maps.detach().float().cpu().split(each), geometry.double().tolist(), sizes
        ):
            factor = 1 if max_side is None else min(1, max_side / max(height, width))
            down = _spread(maps.shape[2], top, scale_y, height, max(round(height * factor), 1))
            across = _spread(maps.shape[3], left, scale_x, width, max(round(width * factor), 1))
            found += [(down @ row @ across.T).numpy() for row in rows]
        return found


def _spread(cells: int, start: float, scale: float, length: int, pixels: int) -> torch.Tensor:
    """(pixels, cells) float32: the share of each cell's weight that each pixel of a side takes; columns sum to 1.

    Args:
        cells: of the features along this side.
        start, scale: `x_model = (x_image - start) * scale`.
        length: of the image along this side.
        pixels: into which that length is cut.
    """
    borders = (torch.arange(pixels + 1, dtype=torch.float64) * (length / pixels) - start) * (scale / _CELL)
    inside = borders.clamp(0, cells)
    # The integral of a cell's triangle up to each border; outer cells stay level outwards of their middle, as if
    # a cell of the same weight followed.
    offset = inside[:, None] - (torch.arange(-1, cells + 1) + 0.5)
    rising, falling = (offset.clamp(-1, 0) + 1).square() / 2, (1 - offset.clamp(0, 1)).square() / 2
    share = torch.where(offset < 0, rising, 1 - falling).diff(dim=0)
    share[:, 1] += share[:, 0]
    share[:, -2] += share[:, -1]
    share = share[:, 1:-1]
    outside = (share.sum(0) < 1e-9).nonzero().squeeze(1)  # cells of a wide margin: their weight goes to the edge
    middles = (borders[1:] + borders[:-1]) / 2
    share[(outside + 0.5 - middles[:, None]).abs().argmin(0), outside] = 1
    return (share / share.sum(0)).float()


def comer_processor(symbols=None, **image_kwargs) -> TextProcessor:
    """CoMER's processor: LaTeX tokens (CROHME's by default) and grey images between 16 x 16 and 256 x 1024."""
    tokenizer = latex_tokenizer() if symbols is None else latex_tokenizer(symbols)
    return TextProcessor(TextImageProcessor(**image_kwargs), tokenizer)


__all__ = ["TextProcessor", "comer_processor"]
