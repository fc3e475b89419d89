"""CoMER: handwritten formulas read with coverage attention (Zhao & Gao, ECCV 2022, arXiv 2207.04410).

A DenseNet encoder (modeling_comer_encoder.py) and a transformer decoder whose cross-attention is refined by what it
has already looked at. One decoder reads in both directions: its first token says which. Built from the paper and from
measurements of the published behaviour; the comments name the paper's equations.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedTokenizerFast
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import cached_file

from .configuration_comer import CoMERConfig
from .generation_comer import CoMERGenerationMixin
from .grammar_comer import grammar_from_vocabulary
from .layers import eager_attention_forward
from .modeling_comer_encoder import (
    CoMERBatchNorm,
    CoMEREncoder,
    CoMEREncoderOutput,
    CoMERPreTrainedModel,
    sinusoid,
)


@dataclass
class CoMEROutput(ModelOutput):
    """What a teacher-forced pass gives.

    Attributes:
        loss: scalar, mean cross entropy over the tokens of both directions.
        logits: (rows, length, vocab_size); with `labels` alone, the first half of the rows reads left to right.
        cross_attentions: per decoder layer (rows, heads, length, cells), refined, cells row-major.
        coverages: per refined layer (rows, heads, length, cells): what was subtracted from the scores.
        encoder_last_hidden_state: see `CoMEREncoderOutput.last_hidden_state`.
        feature_mask: see `CoMEREncoderOutput.feature_mask`.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None
    coverages: tuple[torch.FloatTensor, ...] | None = None
    encoder_last_hidden_state: torch.FloatTensor | None = None
    feature_mask: torch.BoolTensor | None = None


class CoMERAttentionRefinement(nn.Module):
    """Attention refinement module: turns past attention into a penalty on the scores (section 3.3, eq. 6-9).

    One module is shared by all decoder layers but the first.
    """

    def __init__(self, config: CoMERConfig):
        super().__init__()
        self.cross_coverage, self.self_coverage = config.cross_coverage, config.self_coverage
        in_channels = config.num_attention_heads * (config.cross_coverage + config.self_coverage)
        kernel_size = config.coverage_kernel_size
        self.conv = nn.Conv2d(in_channels, config.coverage_channels, kernel_size, padding=kernel_size // 2)
        self.proj = nn.Conv2d(config.coverage_channels, config.num_attention_heads, 1, bias=False)
        self.norm = CoMERBatchNorm(config.num_attention_heads)

    def stack(self, previous: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
        """The attention maps whose sum is the coverage: (rows, channels, length, cells), float32."""
        maps = ([previous] if self.cross_coverage else []) + ([current] if self.self_coverage else [])
        return torch.cat(maps, dim=1).float()

    def penalty(self, coverage: torch.Tensor, feature_mask: torch.Tensor, valid: torch.Tensor | None = None):
        """What accumulated attention subtracts from the scores (eq. 7).

        Args:
            coverage: (maps, channels, rows, columns) float32, attention summed over past steps.
            feature_mask: (maps, rows, columns) bool, True = image.
            valid: (maps,) bool, steps that count in the BatchNorm statistics; all where absent.

        Returns:
            (maps, heads, rows, columns), zero outside the image.
        """
        mask = feature_mask[:, None]
        # Probabilities summed over 200 steps need float32, the convolution of the sum does not.
        hidden = F.relu(self.conv(coverage.to(self.conv.weight.dtype))) * mask
        statistics_mask = mask if valid is None else mask & valid[:, None, None, None]
        return self.norm(self.proj(hidden), statistics_mask) * mask

    def forward(self, previous, current, feature_mask, valid=None):
        """Penalties for a whole teacher-forced sequence: (rows, heads, length, cells) from maps of the same shape."""
        maps = self.stack(previous, current)
        coverage = maps.cumsum(2) - maps  # exclusive: step t has seen the steps before it
        rows, channels, length, _ = coverage.shape
        height, width = feature_mask.shape[1:]
        coverage = coverage.transpose(1, 2).reshape(rows * length, channels, height, width)
        mask = feature_mask.repeat(rows // feature_mask.shape[0], 1, 1).repeat_interleave(length, dim=0)
        penalty = self.penalty(coverage, mask, None if valid is None else valid.flatten())
        return penalty.view(rows, length, -1, height * width).transpose(1, 2)


class CoMERAttention(nn.Module):
    """Projections of multi-head attention; the layers decide what happens between scores and weights."""

    def __init__(self, config: CoMERConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = config.dropout
        self.is_causal = False  # the mask says what may be seen
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            projection.attention_role = "input"
        self.o_proj.attention_role = "output"

    def split_heads(self, hidden: torch.Tensor) -> torch.Tensor:
        """(rows, length, hidden) to (rows, heads, length, head_dim)."""
        return hidden.view(*hidden.shape[:-1], self.num_heads, self.head_dim).transpose(1, 2)

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Self-attention. `attention_mask` (rows, 1, length, length) is added to the scores."""
        query, key, value = (self.split_heads(p(hidden)) for p in (self.q_proj, self.k_proj, self.v_proj))
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.dropout if self.training else 0.0
        output, _ = attend(self, query, key, value, attention_mask, scaling=self.scaling, dropout=dropout)
        return self.o_proj(output.flatten(2))


class CoMERCrossAttention(CoMERAttention):
    """Attention over the image, refined by coverage.

    Rows may outnumber images: row r reads image r % images. Keys and values are then computed once per image, and the
    rows of an image share one matrix product.
    """

    def memory(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, each (images, heads, cells, head_dim), of features (images, cells, hidden)."""
        return self.split_heads(self.k_proj(features)), self.split_heads(self.v_proj(features))

    def _fold(self, rows: torch.Tensor, images: int) -> torch.Tensor:
        """(groups * images, heads, length, x) to (images, heads, groups * length, x)."""
        _, heads, length, size = rows.shape
        return rows.view(-1, images, heads, length, size).permute(1, 2, 0, 3, 4).reshape(images, heads, -1, size)

    def _unfold(self, folded: torch.Tensor, length: int) -> torch.Tensor:
        images, heads, _, size = folded.shape
        return folded.view(images, heads, -1, length, size).permute(2, 0, 1, 3, 4).reshape(-1, heads, length, size)

    def scores(self, hidden: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Scaled scores (rows, heads, length, cells), float32, unmasked."""
        query = self.split_heads(self.q_proj(hidden)) * self.scaling
        scores = torch.matmul(self._fold(query, key.shape[0]), key.transpose(-1, -2))
        return self._unfold(scores, hidden.shape[1]).float()

    def output(self, weights: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """(rows, length, hidden) from weights (rows, heads, length, cells)."""
        length = weights.shape[2]
        output = torch.matmul(self._fold(weights.to(value.dtype), value.shape[0]), value)
        return self.o_proj(self._unfold(output, length).transpose(1, 2).flatten(2))

    def forward(self, hidden, features, feature_mask, refinement=None, previous=None, valid=None):
        """Cross-attention of a whole sequence.

        Args:
            hidden: (rows, length, hidden_size).
            features: (images, cells, hidden_size).
            feature_mask: (images, height, width) bool.
            refinement: the shared `CoMERAttentionRefinement`, None in the first layer.
            previous: (rows, heads, length, cells), refined weights of the layer before.
            valid: (rows, length) bool, False at padding tokens.

        Returns:
            output (rows, length, hidden_size), weights and coverage penalty (rows, heads, length, cells).
        """
        key, value = self.memory(features)
        scores = self.scores(hidden, key)
        groups = hidden.shape[0] // features.shape[0]
        blocked = ~feature_mask.flatten(1).repeat(groups, 1)[:, None, None]
        lowest = torch.finfo(scores.dtype).min
        dropout = self.dropout if self.training else 0.0
        penalty = None
        if refinement is not None:
            current = None
            if refinement.self_coverage:
                current = F.dropout(scores.masked_fill(blocked, lowest).softmax(-1), dropout, self.training)
            penalty = refinement(previous, current, feature_mask, valid)
            scores = scores - penalty
        weights = F.dropout(scores.masked_fill(blocked, lowest).softmax(-1), dropout, self.training)
        return self.output(weights, value), weights, penalty


class CoMERDecoderLayer(GradientCheckpointingLayer):
    """Post-norm transformer layer (section 3.2)."""

    def __init__(self, config: CoMERConfig):
        super().__init__()
        self.self_attn = CoMERAttention(config)
        self.cross_attn = CoMERCrossAttention(config)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size)
        self.cross_attn_layer_norm = nn.LayerNorm(config.hidden_size)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def feed_forward(self, hidden: torch.Tensor) -> torch.Tensor:
        output = self.fc2(self.dropout(F.relu(self.fc1(hidden))))
        return self.final_layer_norm(hidden + self.dropout(output))

    def forward(self, hidden, attention_mask, features, feature_mask, refinement=None, previous=None, valid=None):
        """See `CoMERCrossAttention.forward`; returns hidden, cross-attention weights and coverage penalty."""
        hidden = self.self_attn_layer_norm(hidden + self.dropout(self.self_attn(hidden, attention_mask)))
        output, weights, penalty = self.cross_attn(hidden, features, feature_mask, refinement, previous, valid)
        hidden = self.cross_attn_layer_norm(hidden + self.dropout(output))
        return self.feed_forward(hidden), weights, penalty


class CoMERDecoder(CoMERPreTrainedModel):
    """Token embedding, decoder layers and the shared refinement module."""

    def __init__(self, config: CoMERConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_layer_norm = nn.LayerNorm(config.hidden_size)
        self.position_layer_norm = nn.LayerNorm(config.hidden_size)
        self.layers = nn.ModuleList(CoMERDecoderLayer(config) for _ in range(config.num_hidden_layers))
        covered = (config.cross_coverage or config.self_coverage) and config.num_hidden_layers > 1
        self.refinement = CoMERAttentionRefinement(config) if covered else None
        self.post_init()

    def embed(self, tokens: torch.Tensor, first_position: int = 0) -> torch.Tensor:
        """(rows, length) ids to (rows, length, hidden_size)."""
        embedded = self.embed_layer_norm(self.embed_tokens(tokens))
        places = torch.arange(first_position, first_position + tokens.shape[1], device=tokens.device)
        positions = sinusoid(places, self.config.hidden_size, self.config.position_temperature)
        return self.position_layer_norm(embedded + positions.to(embedded.dtype))

    def forward(self, tokens: torch.Tensor, features: torch.Tensor, feature_mask: torch.Tensor):
        """Teacher-forced pass.

        Args:
            tokens: (rows, length) ids; pad tokens are not attended to.
            features: (images, height, width, hidden_size), rows a multiple of images.
            feature_mask: (images, height, width) bool.

        Returns:
            hidden (rows, length, hidden_size), tuple of weights per layer, tuple of penalties per refined layer.
        """
        hidden = self.embed(tokens)
        valid = tokens != self.config.pad_token_id
        length = tokens.shape[1]
        visible = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        visible = visible & valid[:, None, None]
        attention_mask = torch.zeros(visible.shape, dtype=hidden.dtype, device=hidden.device)
        attention_mask = attention_mask.masked_fill(~visible, torch.finfo(hidden.dtype).min)
        counted = valid if self.config.mask_padding else None

        features = features.flatten(1, 2)
        attentions, penalties, previous = (), (), None
        for index, layer in enumerate(self.layers):
            refinement = self.refinement if index else None
            hidden, previous, penalty = layer(
                hidden, attention_mask, features, feature_mask, refinement, previous, counted
            )
            attentions += (previous,)
            penalties += () if penalty is None else (penalty,)
        return hidden, attentions, penalties


class CoMERForConditionalGeneration(CoMERPreTrainedModel, CoMERGenerationMixin):
    """CoMER with its vocabulary projection: reads an image of a formula in both directions (section 3.4)."""

    # The Trainer would count label tokens; the loss counts each twice, and two stops.
    accepts_loss_kwargs = False

    def __init__(self, config: CoMERConfig):
        super().__init__(config)
        self.encoder = CoMEREncoder(config)
        self.decoder = CoMERDecoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_encoder(self, modality=None):
        return self.encoder

    def get_decoder(self):
        return self.decoder

    def get_input_embeddings(self):
        return self.decoder.embed_tokens

    def set_input_embeddings(self, value):
        self.decoder.embed_tokens = value

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, new_embeddings):
        self.lm_head = new_embeddings

    def widen_vocabulary(self, vocabulary: dict[str, int]):
        """Makes room for the tokens that follow those the model has, and takes their grammar into the configuration.

        Args:
            vocabulary: token to id; tokens that the model knows keep their ids.
        """
        if len(vocabulary) > self.config.vocab_size:
            self.resize_token_embeddings(len(vocabulary), mean_resizing=False)
            self.config.grammar = grammar_from_vocabulary(dict(sorted(vocabulary.items(), key=lambda item: item[1])))

    def load_adapter(self, peft_model_id=None, adapter_name=None, **kwargs):
        """As in transformers, after widening the vocabulary to that of a tokenizer stored with the adapter.

        An adapter that was trained with new symbols holds embeddings for them, which the base model has no room for.
        """
        load_config = kwargs.get("load_config")
        where = {**(load_config.download_kwargs if load_config else {}), **(kwargs.get("adapter_kwargs") or {})}
        known = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
        where = {name: value for name, value in where.items() if name in known}
        where["_raise_exceptions_for_missing_entries"] = False
        tokenizer = cached_file(peft_model_id, "tokenizer.json", **where) if peft_model_id else None
        if tokenizer is not None:
            self.widen_vocabulary(PreTrainedTokenizerFast(tokenizer_file=tokenizer).get_vocab())
        info = super().load_adapter(peft_model_id, adapter_name, **kwargs)
        if weights := cached_file(peft_model_id, "adapter_model.safetensors", **where) if peft_model_id else None:
            self._load_saved_modules(weights, adapter_name or "default")
        return info

    @torch.no_grad()
    def _load_saved_modules(self, weights: str, adapter_name: str):
        """What an adapter holds of whole layers (`modules_to_save`), which transformers 5.17 passes over."""
        with safe_open(weights, framework="pt") as file:
            for name, module in self.named_modules():
                saved = getattr(module, "modules_to_save", None)
                if isinstance(saved, nn.ModuleDict) and adapter_name in saved:
                    for key, parameter in saved[adapter_name].named_parameters():
                        parameter.copy_(file.get_tensor(f"base_model.model.{name}.{key}"))

    def bidirectional_targets(self, labels: torch.LongTensor) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Inputs and targets of both directions, each (2 * batch, length + 1): left to right first.

        Right to left starts with the end token and stops with the start token: the first token names the direction.

        Args:
            labels: (batch, length) in reading order; pad or -100 after the last token.
        """
        pad, bos, eos = self.config.pad_token_id, self.config.bos_token_id, self.config.eos_token_id
        labels = labels.masked_fill(labels == -100, pad)
        batch, length = labels.shape
        lengths = (labels != pad).sum(1, keepdim=True)
        places = torch.arange(length, device=labels.device).expand(batch, length)
        backwards = labels.gather(1, (lengths - 1 - places).clamp(min=0)).masked_fill(places >= lengths, pad)
        both = torch.cat([labels, backwards])
        first = labels.new_tensor([bos, eos]).repeat_interleave(batch)[:, None]
        last = labels.new_tensor([eos, bos]).repeat_interleave(batch)[:, None]
        inputs = torch.cat([first, both], dim=1)
        padded = torch.cat([both, both.new_full((2 * batch, 1), pad)], dim=1)
        targets = padded.scatter(1, lengths.repeat(2, 1), last)
        return inputs, targets

    def num_loss_items(self, batch: dict[str, torch.Tensor]) -> int:
        """How many tokens the loss of a batch with `labels` averages over: what a training loop normalises by."""
        labels = batch["labels"]
        valid = (labels != self.config.pad_token_id) & (labels != -100)
        return 2 * (int(valid.sum()) + labels.shape[0])

    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        encoder_outputs: CoMEREncoderOutput | None = None,
        num_items_in_batch: int | float | torch.Tensor | None = None,
        **kwargs,
    ) -> CoMEROutput:
        """Teacher-forced pass.

        Args:
            pixel_values: (batch, 1, height, width) in 0..1, white ink on black.
            pixel_mask: (batch, height, width), 1 = image.
            decoder_input_ids: (rows, length), rows a multiple of batch; row r reads image r % batch. The first token
                picks the direction: the start token left to right, the end token right to left.
            labels: (batch, length) in reading order, pad or -100 ignored. Without `decoder_input_ids` both directions
                are built from them; with it, they are the targets, (rows, length).
            encoder_outputs: instead of pixel_values.
            num_items_in_batch: divides the summed loss instead of this batch's own number of tokens.

        Raises:
            ValueError: if nothing is to be read, or nothing to read it with.
        """
        if encoder_outputs is None:
            if pixel_values is None:
                raise ValueError("CoMER needs pixel_values or encoder_outputs.")
            encoder_outputs = self.encoder(pixel_values, pixel_mask)
        targets = labels
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("CoMER needs labels or decoder_input_ids; use generate() to read an image.")
            decoder_input_ids, targets = self.bidirectional_targets(labels)
        features, feature_mask = encoder_outputs.last_hidden_state, encoder_outputs.feature_mask
        hidden, attentions, penalties = self.decoder(decoder_input_ids, features, feature_mask)
        logits = self.lm_head(hidden)
        loss = None
        if targets is not None:
            targets = targets.masked_fill(targets == self.config.pad_token_id, -100)
            loss = F.cross_entropy(
                logits.float().flatten(0, 1),
                targets.flatten(),
                reduction="mean" if num_items_in_batch is None else "sum",
                label_smoothing=self.config.label_smoothing if self.training else 0.0,
            )
            if num_items_in_batch is not None:
                loss = loss / num_items_in_batch
        return CoMEROutput(loss, logits, attentions, penalties, features, feature_mask)


__all__ = ["CoMERForConditionalGeneration"]
