"""Incremental decoding of CoMER: what a search remembers between steps.

Per image the cross-attention keys and values, computed once. Per row the self-attention keys and values, and per
refined layer the running sum of past attention, from which the coverage penalty follows (section 3.3): with it a step
costs the same however long the prefix is.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

# Floats in the widest activation of a teacher-forced pass: what bounds its memory (64 MB).
_CHUNK_ELEMENTS = 2**24


@dataclass
class CoMERMemory:
    """Images as the decoder sees them. Row r of a batch of rows reads image r % images.

    Attributes:
        keys: (layers, images, heads, cells, head_dim).
        values: as `keys`.
        feature_mask: (images, height, width) bool, True = image.
    """

    keys: torch.Tensor
    values: torch.Tensor
    feature_mask: torch.Tensor

    @classmethod
    def of(cls, decoder, encoder_outputs) -> "CoMERMemory":
        features = encoder_outputs.last_hidden_state.flatten(1, 2)
        pairs = [layer.cross_attn.memory(features) for layer in decoder.layers]
        keys, values = (torch.stack(side).contiguous() for side in zip(*pairs))
        return cls(keys, values, encoder_outputs.feature_mask)

    def rows(self, images: list[int]) -> "CoMERMemory":
        """The memory for rows that read these images; rows share an image's tensors wherever a period allows it."""
        period = len(set(images))
        if images != images[:period] * (len(images) // period):
            period = len(images)
        if images[:period] == list(range(self.keys.shape[1])):
            return self
        index = torch.tensor(images[:period], device=self.keys.device)
        return CoMERMemory(self.keys[:, index], self.values[:, index], self.feature_mask[index])


class CoMERCache:
    """What decoding has seen of each row.

    Args:
        model: the `CoMERForConditionalGeneration` that decodes.
        memory: see `CoMERMemory`.
        rows: how many.
        masks_padding: pad tokens may come up in the middle of a row, and are then not attended to.
    """

    def __init__(self, model, memory: CoMERMemory, rows: int, masks_padding: bool = False):
        decoder, config = model.decoder, model.config
        self.length = 0
        device = memory.keys.device
        # Time first: the part in use is contiguous, and so is its reordered copy.
        shape = (32, len(decoder.layers), 2, rows, config.hidden_size)
        self.history = torch.empty(shape, dtype=memory.keys.dtype, device=device)
        self.spare = torch.empty_like(self.history)
        self.visible = torch.ones(rows, 0, dtype=torch.bool, device=device) if masks_padding else None
        channels = config.num_attention_heads * (config.cross_coverage + config.self_coverage)
        refined = len(decoder.layers) - 1 if decoder.refinement is not None else 0
        cells = memory.keys.shape[3]
        # A sum of up to 200 probabilities: bfloat16 would lose steps of 1/256.
        self.coverage = torch.zeros(refined, rows, channels, cells, dtype=torch.float32, device=device)

    def append(self, tokens: torch.Tensor, pad: int) -> slice:
        """Makes room for `tokens` (rows, length); returns their places in time."""
        start, self.length = self.length, self.length + tokens.shape[1]
        if self.length > len(self.history):
            grown = self.history.new_empty(max(self.length, 2 * len(self.history)), *self.history.shape[1:])
            grown[:start] = self.history[:start]
            self.history, self.spare = grown, torch.empty_like(grown)
        if self.visible is not None:
            self.visible = torch.cat([self.visible, tokens != pad], dim=1)
        return slice(start, self.length)

    def select(self, rows: torch.Tensor):
        """Keeps `rows` (new_rows,) in this order; a row may come more than once."""
        used = self.history[: self.length]
        if len(rows) != used.shape[3]:
            self.spare = self.history.new_empty(*self.history.shape[:3], len(rows), self.history.shape[4])
        torch.index_select(used, 3, rows, out=self.spare[: self.length])
        self.history, self.spare = self.spare, self.history
        if len(rows) != used.shape[3]:
            self.spare = torch.empty_like(self.history)
        self.coverage = self.coverage.index_select(1, rows)
        if self.visible is not None:
            self.visible = self.visible.index_select(0, rows)


def _self_attention(attention, hidden, cache: CoMERCache, layer: int, places: slice) -> torch.Tensor:
    """Self-attention of new tokens over the cached ones and themselves: (rows, new, hidden_size)."""
    new, total = hidden.shape[1], places.stop
    cache.history[places, layer, 0] = attention.k_proj(hidden).transpose(0, 1)
    cache.history[places, layer, 1] = attention.v_proj(hidden).transpose(0, 1)
    seen = cache.history[:total, layer].unflatten(-1, (attention.num_heads, attention.head_dim))
    key, value = seen.permute(1, 2, 3, 0, 4)  # each (rows, heads, total, head_dim)
    query = attention.split_heads(attention.q_proj(hidden)) * attention.scaling
    scores = torch.matmul(query, key.transpose(-1, -2)).float()
    if cache.visible is not None:
        scores = scores.masked_fill(~cache.visible[:, None, None], torch.finfo(scores.dtype).min)
    if new > 1:
        future = torch.ones(new, total, dtype=torch.bool, device=hidden.device).triu(places.start + 1)
        scores = scores.masked_fill(future, torch.finfo(scores.dtype).min)
    output = torch.matmul(scores.softmax(-1).to(value.dtype), value)
    return attention.o_proj(output.transpose(1, 2).flatten(2))


def _coverage_penalty(refinement, coverage: torch.Tensor) -> torch.Tensor:
    """`CoMERAttentionRefinement.penalty` up to a constant per head, which the softmax cancels.

    The BatchNorm at inference is one factor per head; its shift is that constant.

    Args:
        coverage: (maps, channels, height, width) float32, zero outside the image.

    Returns:
        (maps, heads, height, width); outside the image of no meaning.
    """
    norm = refinement.norm
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    hidden = F.relu_(refinement.conv(coverage.to(refinement.conv.weight.dtype)))
    # Through the modules, not their weights: either may carry an adapter.
    return refinement.proj(hidden) * scale[:, None, None].to(hidden.dtype)


def _cross_attention(layer, hidden, memory, cache, index, refinement, previous):
    """Cross-attention of new tokens: (rows, new, hidden_size) and the refined weights (rows, heads, new, cells)."""
    attention = layer.cross_attn
    scores = attention.scores(hidden, memory.keys[index])
    rows, _, new, cells = scores.shape
    blocked = ~memory.feature_mask.flatten(1)
    blocked = blocked.repeat(rows // blocked.shape[0], 1)[:, None, None]
    lowest = torch.finfo(scores.dtype).min
    if refinement is not None:
        current = scores.masked_fill(blocked, lowest).softmax(-1) if refinement.self_coverage else None
        maps = refinement.stack(previous, current)
        seen = cache.coverage[index - 1]
        # Exclusive: a step has seen the steps before it.
        coverage = seen[:, :, None] if new == 1 else seen[:, :, None] + (maps.cumsum(2) - maps)
        coverage = coverage.transpose(1, 2).reshape(rows * new, -1, *memory.feature_mask.shape[1:])
        penalty = _coverage_penalty(refinement, coverage)
        seen += maps.sum(2)
        scores = scores - penalty.view(rows, new, -1, cells).transpose(1, 2)
    weights = scores.masked_fill_(blocked, lowest).softmax(-1)
    return attention.output(weights, memory.values[index]), weights


def decode(model, tokens: torch.LongTensor, memory: CoMERMemory, cache: CoMERCache) -> torch.Tensor:
    """Logits (rows, new, vocab_size) float32 after each of `tokens` (rows, new), which follow what the cache holds.

    Equal to the teacher-forced pass in evaluation mode; dropout is left out whatever the mode.
    """
    hidden, _ = _decode(model, tokens, memory, cache)
    return model.lm_head(hidden).float()


def _decode(model, tokens, memory, cache) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states (rows, new, hidden_size), and the last layer's refined attention (rows, heads, new, cells)."""
    decoder = model.decoder
    places = cache.append(tokens, model.config.pad_token_id)
    hidden = decoder.embed(tokens, places.start)
    weights = None
    for index, layer in enumerate(decoder.layers):
        refinement = decoder.refinement if index else None
        output = _self_attention(layer.self_attn, hidden, cache, index, places)
        hidden = layer.self_attn_layer_norm(hidden + output)
        output, weights = _cross_attention(layer, hidden, memory, cache, index, refinement, weights)
        hidden = layer.cross_attn_layer_norm(hidden + output)
        hidden = layer.final_layer_norm(hidden + layer.fc2(F.relu(layer.fc1(hidden))))
    return hidden, weights


def _teacher_forced(model, memory, images, sequences, lengths, backwards, masks_padding):
    """Runs given sequences through the decoder, some steps at a time, so that memory is bounded.

    Args:
        memory, images, sequences, lengths, backwards, masks_padding: see `score_sequences`.

    Yields:
        rows (going,) and steps (a slice) of what follows; hidden (going, new, hidden_size) and attention
        (going, heads, new, cells), see `_decode`. A row goes on until its stop token is due.
    """
    config = model.config
    first = torch.where(backwards, config.eos_token_id, config.bos_token_id)[:, None]
    inputs = torch.cat([first, sequences], dim=1)
    # The rows of an image are dealt out, one to each round, so that rounds can share its keys and values.
    num_images = memory.keys.shape[1]
    same = images[:, None] == torch.arange(num_images, device=images.device)
    turn = same.cumsum(0).gather(1, images[:, None]).squeeze(1)
    order = torch.argsort(turn * num_images + images)
    cache = CoMERCache(model, memory, len(inputs), masks_padding)
    read, start = memory.rows(images[order].tolist()), 0
    while True:
        room = _CHUNK_ELEMENTS // (len(order) * config.coverage_channels * memory.keys.shape[3])
        stop = min(inputs.shape[1], start + max(1, room), start + 16)
        yield order, slice(start, stop), *_decode(model, inputs[order, start:stop], read, cache)
        start = stop
        going = (lengths[order] >= start).nonzero().squeeze(1)
        if not len(going):
            return
        if len(going) < len(order):
            order = order[going]
            cache.select(going)
            read = memory.rows(images[order].tolist())


def score_sequences(model, memory, images, sequences, lengths, backwards, masks_padding=False, temperature=1.0):
    """Log-probabilities of given sequences, each followed by its stop token.

    Args:
        memory: of all images.
        images: (rows,) which image each row reads.
        sequences: (rows, length) in the order in which the row reads, without start and stop.
        lengths: (rows,) how many tokens of each row count.
        backwards: (rows,) bool, True where the row reads right to left.
        masks_padding: as in `CoMERCache`; pad tokens within a row count nothing.

    Returns:
        (rows, length + 1) float32, 0 after the stop token.
    """
    config = model.config
    rows, length = sequences.shape
    last = torch.where(backwards, config.bos_token_id, config.eos_token_id)[:, None]
    targets = F.pad(sequences, (0, 1), value=config.pad_token_id).scatter(1, lengths[:, None], last)
    counts = torch.arange(length + 1, device=sequences.device) <= lengths[:, None]
    counts &= targets != config.pad_token_id
    log_probs = torch.zeros(rows, length + 1, device=sequences.device)
    run = _teacher_forced(model, memory, images, sequences, lengths, backwards, masks_padding)
    for going, steps, hidden, _ in run:
        logits = model.lm_head(hidden).float() / temperature
        found = logits.log_softmax(-1).gather(-1, targets[going, steps, None]).squeeze(-1)
        log_probs[going, steps] = found * counts[going, steps]
    return log_probs


def attend_sequences(model, memory, images, sequences, lengths, backwards, masks_padding=False) -> torch.Tensor:
    """Where the last layer looks as it writes each token of given sequences: its refined attention, mean of the heads.

    Args:
        memory, images, sequences, lengths, backwards, masks_padding: see `score_sequences`.

    Returns:
        (rows, length, height, width) float32 on the grid of the features, in the order of `sequences`; each map sums
        to 1, and is 0 after the last token.
    """
    rows, length = sequences.shape
    maps = torch.zeros(rows, length, memory.keys.shape[3], device=sequences.device)
    counts = torch.arange(length, device=sequences.device) < lengths[:, None]
    run = _teacher_forced(model, memory, images, sequences, lengths, backwards, masks_padding)
    for going, steps, _, attention in run:
        kept = counts[going, steps]  # without the look for the stop token
        maps[going, steps] = attention.mean(1)[:, : kept.shape[1]] * kept[..., None]
    return maps.unflatten(-1, memory.feature_mask.shape[1:])


__all__ = ["CoMERCache", "CoMERMemory", "attend_sequences", "decode", "score_sequences"]
