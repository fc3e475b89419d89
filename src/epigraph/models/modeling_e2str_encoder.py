"""What stands in front of E2STR's ViT, and beside it while it is trained from random weights; neither is the paper's.

The published encoder starts from MAERec's weights, and has 256 tokens for an image. One that is to be trained in hours
on a few cores needs fewer tokens, and a task of its own.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_e2str import E2STRConfig

# Names of a ViT's weights in files, which are those of transformers 4, and in the module.
_SAVED_NAMES = (
    ("encoder.layer.", "layers."),
    ("attention.attention.query.", "attention.q_proj."),
    ("attention.attention.key.", "attention.k_proj."),
    ("attention.attention.value.", "attention.v_proj."),
    ("attention.output.dense.", "attention.o_proj."),
    ("intermediate.dense.", "mlp.fc1."),
    ("output.dense.", "mlp.fc2."),
)


def rename_as_saved(vision_model: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    """Takes a file's names in `load_state_dict`, too: `from_pretrained` does, `Trainer` resumes without."""
    wanted = {prefix + name for name in vision_model.state_dict()}
    for name in [name for name in state_dict if name.startswith(prefix) and name not in wanted]:
        renamed = name
        for saved, current in _SAVED_NAMES:
            renamed = renamed.replace(saved, current)
        if renamed in wanted:
            state_dict[renamed] = state_dict.pop(name)


class E2STRStemBlock(nn.Module):
    """Two convolutions beside a connection past them (He et al., CVPR 2016), each behind a norm over channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(channels) for _ in range(2)])
        self.convolutions = nn.ModuleList([nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2)])

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(images, channels, height, width) to the same shape."""
        change = hidden
        for norm, convolution in zip(self.norms, self.convolutions):
            change = convolution(F.gelu(norm(change.permute(0, 2, 3, 1))).permute(0, 3, 1, 2))
        return hidden + change


class E2STRStem(nn.Module):
    """Convolutions of stride 2 in front of the ViT, which then needs few tokens (Xiao et al., NeurIPS 2021, arXiv
    2106.14881). Each is followed by a norm over channels, so that what an image gives does not depend on its batch,
    GELU, and residual blocks, of which the first one's resolution has none.
    """

    def __init__(self, channels: list[int], blocks: int = 0):
        super().__init__()
        pairs = list(zip([3, *channels], channels))
        self.convolutions = nn.ModuleList([nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False) for a, b in pairs])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for width in channels])
        counts = [0, *[blocks] * (len(channels) - 1)]
        self.blocks = nn.ModuleList(
            [nn.ModuleList([E2STRStemBlock(width) for _ in range(count)]) for width, count in zip(channels, counts)]
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(images, 3, height, width) to (images, channels, height / 2^n, width / 2^n)."""
        images = images.to(self.convolutions[0].weight.dtype)  # as the ViT does
        hidden = images.contiguous(memory_format=torch.channels_last)
        for convolution, norm, blocks in zip(self.convolutions, self.norms, self.blocks):
            hidden = F.gelu(norm(convolution(hidden).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
            for block in blocks:
                hidden = block(hidden)
        return hidden


class E2STRCTCHead(nn.Module):
    """Reads words from the ViT's tokens alone, for training: connectionist temporal classification (Graves et al.,
    ICML 2006) teaches an encoder that starts at random to see characters, long before the decoder, which can guess
    texts from texts, looks at its images. Hybrid losses of this kind are common for speech (Watanabe et al. 2017).
    Each column of tokens, averaged over rows, makes two frames. Not part of the paper.

    The batch norm, and the blank that is likely from the start, keep the loss from what is cheapest at first: to learn
    how often each character occurs, by tokens that are the same for all images. Encoders have stayed there for good.
    """

    frames_per_column = 2

    def __init__(self, config: E2STRConfig):
        super().__init__()
        self.config = config
        width, vocab_size = config.vision_config.hidden_size, config.text_config.vocab_size
        self.norm = nn.BatchNorm1d(width)
        self.classifier = nn.Linear(width, self.frames_per_column * vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def likely_blank(self) -> torch.Tensor:
        """(vocab_size,), the bias to start with: nine frames of ten are blank, whatever is seen."""
        text = self.config.text_config
        bias = torch.zeros(text.vocab_size)
        bias[text.pad_token_id] = math.log(9 * text.vocab_size)
        return bias

    @torch.compiler.disable  # how many images and characters there are depends on the texts
    def forward(self, tokens: torch.Tensor, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss summed over images: a scalar.

        Args:
            tokens: (images, tokens, width), of the images of each prompt in order; or of as many images for every
                prompt, of which the last ones fill up the batch.
            input_ids, labels: (batch, length); the labels behind an image are its text, and images without any do not
                count. Texts of more characters than frames do not either.
        """
        config = self.config
        shown = input_ids == config.image_token_id
        if len(tokens) > (count := shown.sum(1)).sum():
            images = len(tokens) // len(count)
            tokens = tokens[(torch.arange(images, device=count.device) < count[:, None]).flatten()]
        rows, columns = config.token_grid
        pooled = tokens.unflatten(1, (rows, columns)).mean(1)
        pooled = self.norm(pooled.flatten(0, 1).to(self.bias.dtype)).view_as(pooled)
        frames = self.classifier(pooled).unflatten(-1, (self.frames_per_column, -1)).flatten(1, 2) + self.bias
        special = [-100, config.end_of_chunk_token_id, config.eos_token_id, config.bos_token_id]
        special += [config.image_token_id, config.text_config.pad_token_id]
        image = shown.flatten().cumsum(0).view_as(labels) - 1
        character = torch.isin(labels, labels.new_tensor(special), invert=True) & (image >= 0)
        lengths = torch.bincount(image[character], minlength=len(tokens))
        losses = F.ctc_loss(
            frames.float().log_softmax(-1).transpose(0, 1),
            labels[character],
            torch.full_like(lengths, frames.shape[1]),
            lengths,
            blank=config.text_config.pad_token_id,
            reduction="none",
            zero_infinity=True,
        )
        return losses[lengths > 0].sum()


__all__ = ["E2STRCTCHead", "E2STRStem", "rename_as_saved"]
