"""Attention for CPUs, block by block: `attn_implementation="blocked"`.

The CPU kernel behind `torch.nn.functional.scaled_dot_product_attention` multiplies bfloat16 no faster than float32.
Here the scores of a few heads at a time, or of some rows of one head, go through matmul, softmax and matmul while
they lie in the cache, so that bfloat16 keeps the speed of its matmuls; the backward pass computes the probabilities
of a block again from the row sums, as FlashAttention (Dao et al., 2022, algorithm 4) does, so that no tensor of
queries x keys outlives its block.

Importing this file registers the name with transformers. What the blocks do not serve goes to "sdpa": other devices
and dtypes, dropout, causal attention without a mask, grouped heads, learned masks, `torch.compile` and export.
"""

import math
from collections.abc import Callable

import torch
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

# Bytes of scores in one block: what a core's second level cache holds.
_BLOCK_BYTES = 2**20
# Fewer rows make the matmuls slower than a block that leaves the cache.
_MIN_ROWS = 128
# Keys on which the scores of a row are estimated, before all of them are computed.
_SAMPLED_KEYS = 64
# Scores (in powers of two) up to this size go into exp2 as they are: no row of them overflows, and none vanishes.
_SAFE_SCORE = 90.0
# Added to the score of a pair that a bool mask forbids; a row whose largest score is less than half has no keys.
_FORBIDDEN = -1e30


def blocked_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """softmax(scaling * query @ key^T + mask) @ value on CPU in blocks, with the signature of transformers.

    Args:
        module: the attention layer; its `is_causal` and `num_key_value_groups` are heeded as by "sdpa".
        query: (batch, heads, queries, head_dim), any strides. Under `torch.autocast` cast to its dtype.
        key: (batch, heads, keys, head_dim).
        value: (batch, heads, keys, value_dim).
        attention_mask: None, bool (True = may attend) or floats to add to the scores; broadcastable to
            (batch, heads, queries, keys). A query without any key gets zeros.
        dropout: above 0 the call goes to "sdpa".
        scaling: head_dim ** -0.5 by default.
        **kwargs: as for "sdpa"; anything that changes the result (`is_causal`, `position_bias`, ...) goes there.

    Returns:
        Contiguous (batch, queries, heads, value_dim), and None for the probabilities, which are never whole.
    """
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else query.dtype
    if not _served(module, query, key, value, attention_mask, dropout, scaling, dtype, autocast, kwargs):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast("cpu", enabled=False):
        return _BlockedAttention.apply(query.to(dtype), key.to(dtype), value.to(dtype), attention_mask, scaling), None


def _served(module, query, key, value, mask, dropout, scaling, dtype, autocast, kwargs) -> bool:
    """Whether the blocks compute this call, and faster than SDPA does."""
    tensors = (query, key, value)
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or any(x.device.type != "cpu" for x in tensors):
        return False
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    return (
        dtype == torch.bfloat16
        and (autocast or query.dtype == key.dtype == value.dtype)
        and dropout == 0
        and query.shape[:2] == key.shape[:2] == value.shape[:2]
        and (mask is not None or not causal or query.shape[2] == 1)
        and not (mask is not None and mask.requires_grad)
        and all(kwargs.get(name) is None for name in ("position_bias", "softcap", "cache"))
        and (scaling is None or scaling > 0)
        and all(x.numel() > 0 for x in tensors)
    )


class _BlockedAttention(torch.autograd.Function):
    """The blocks, for any floating dtype (query, key, value alike). Returns (batch, queries, heads, value_dim)."""

    @staticmethod
    def forward(ctx, query, key, value, mask, scaling):
        weights = _Weights(query, key, mask, scaling)
        flat_value = value.flatten(0, 1)
        flat_output = value.new_empty(*weights.shifts.shape[:2], value.shape[-1])
        totals = torch.empty_like(weights.shifts, dtype=query.dtype)
        for block in weights.blocks:
            unscaled = weights.of(block)
            totals[block.at] = unscaled.sum(-1, keepdim=True)
            torch.bmm(unscaled, flat_value[block.heads], out=flat_output[block.at])
        totals.add_(totals == 0)  # a row without keys: zeros, not 0 / 0
        output = _unflatten(torch.div, flat_output, totals.unflatten(0, query.shape[:2]), query)
        ctx.save_for_backward(query, key, value, mask, output, weights.shifts, totals)
        ctx.scaling = scaling
        return output.transpose(1, 2)

    @staticmethod
    @once_differentiable
    @torch.autocast("cpu", enabled=False)
    def backward(ctx, grad_output):
        query, key, value, mask, output, shifts, totals = ctx.saved_tensors
        grad_output = grad_output.transpose(1, 2)
        # The weights of a row are divided by their sum where the row is short: in the gradient of the output. What the
        # softmax subtracts from whole rows of the gradient rides along in the matmul.
        deltas = (grad_output * output).sum(-1, keepdim=True, dtype=shifts.dtype).flatten(0, 1) / totals
        flat_grad = grad_output.flatten(0, 1) / totals
        grad_and_deltas = _with_columns(flat_grad, deltas)
        value_and_ones = _with_ones(value.flatten(0, 1))
        flat_query, flat_key = query.flatten(0, 1), key.flatten(0, 1)

        weights = _Weights(query, key, mask, ctx.scaling, shifts)
        scratch = torch.empty_like(weights.scratch)
        grad_query = torch.empty_like(flat_query)
        grad_key = _Sum(flat_key, weights.blocks)
        grad_value = _Sum(value.flatten(0, 1), weights.blocks)
        for block in weights.blocks:
            unscaled = weights.of(block)
            grad_value.add(block, unscaled.transpose(1, 2), flat_grad[block.at])
            grad_scores = block.of(scratch)
            torch.bmm(grad_and_deltas[block.at], value_and_ones[block.heads].transpose(1, 2), out=grad_scores)
            grad_scores.mul_(unscaled)
            torch.bmm(grad_scores, flat_key[block.heads], out=grad_query[block.at])
            grad_key.add(block, grad_scores.transpose(1, 2), flat_query[block.at])
        grad_query = _unflatten(torch.mul, grad_query, ctx.scaling, query)
        grad_key = _unflatten(torch.mul, grad_key.total, ctx.scaling, key)
        return grad_query, grad_key, _unflatten(torch.mul, grad_value.total, 1.0, value), None, None


class _Weights:
    """The rows of exp(scaling * (query . key - shift) + mask), block by block.

    A score is rounded to the dtype after its shift, and bfloat16 keeps less than three digits: the nearer to zero the
    largest scores of a row, the better. The shift is 3 standard deviations above the mean, as some of the keys have
    it; where that could overflow, the row's largest score instead.

    Attributes:
        shifts: (batch * heads, queries, 1), of the products query . key.
        blocks: what `of` takes, one after the other.
        scratch: the memory of one block, written by every call of `of`.
    """

    def __init__(self, query, key, mask, scaling, shifts=None):
        batch, heads, queries, _ = query.shape
        self.mask = mask
        self.blocks = list(_blocks(batch, heads, queries, key.shape[2], query.element_size()))
        self.scratch = query.new_empty(max(math.prod(block.shape) for block in self.blocks))
        self.scaling = scaling * math.log2(math.e)  # for exp2, which is cheaper than exp
        query, key = query.flatten(0, 1), key.flatten(0, 1)
        self.rises = 0
        if shifts is None:
            shifts, largest = self._estimate(query, key)
            self.rises = self._needed_rises(largest * self.scaling, mask)
        self.shifts = shifts
        self.query, self.key = _with_columns(query, shifts), _with_ones(key)

    @staticmethod
    def _estimate(query, key) -> tuple[torch.Tensor, float]:
        """The shifts, and what no shifted product exceeds (Cauchy-Schwarz)."""
        dtype = torch.promote_types(query.dtype, torch.float32)
        # Of some keys; by an odd step, lest all be from a few columns of an image.
        some = key[:, :: key.shape[1] // _SAMPLED_KEYS | 1].transpose(1, 2)
        some = torch.bmm(query, some)
        mean = some.mean(-1, keepdim=True, dtype=dtype)
        square = torch.linalg.vector_norm(some, dim=-1, keepdim=True).to(dtype).square_() / some.shape[-1]
        shifts = mean + 3 * (square - mean.square()).clamp_(min=0).sqrt_()
        query_norm, key_norm = (torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (query, key))
        return shifts, (query_norm * key_norm.amax(1, keepdim=True) + shifts.abs()).max().item()

    @staticmethod
    def _needed_rises(largest: float, mask) -> int:
        """How often the largest scores have to be looked for until none exceeds the safe one, if rounded to 8 bits."""
        rises = 0 if mask is None or mask.dtype == torch.bool else 1
        while largest > _SAFE_SCORE and rises < 4:
            largest /= 2**8
            rises += 1
        return rises

    def of(self, block: "_Block") -> torch.Tensor:
        """(heads, rows, keys) of a block, in `scratch`."""
        for _ in range(self.rises):
            largest = self._scores(block).amax(-1, keepdim=True)
            self.shifts[block.at] += torch.where(largest > _FORBIDDEN / 2, largest / self.scaling, 0)
            self.query[block.at] = _with_columns(self.query[block.at][..., :-2], self.shifts[block.at])
        return self._scores(block).exp2_()

    def _scores(self, block):
        scores = block.of(self.scratch)
        query, key = self.query[block.at], self.key[block.heads].transpose(1, 2)
        torch.baddbmm(scores, query, key, beta=0, alpha=self.scaling, out=scores)
        if self.mask is not None:
            block.add_mask(scores, self.mask)
        return scores


class _Block:
    """Rows of the scores of neighbouring heads: all heads of some images, some heads of one image, or rows of one."""

    def __init__(self, images: range, heads: range, rows: range, all_heads: int, keys: int):
        first = images.start * all_heads + heads.start
        self.wanted = [slice(part.start, part.stop) for part in (images, heads, rows)]
        self.heads = slice(first, first + len(images) * len(heads))  # of (batch * heads, ...)
        self.at = (self.heads, self.wanted[2])
        self.shape = (len(images) * len(heads), len(rows), keys)
        self.by_image = (len(images), len(heads), len(rows), keys)

    def of(self, scratch: torch.Tensor) -> torch.Tensor:
        return scratch[: math.prod(self.shape)].view(self.shape)

    def add_mask(self, scores: torch.Tensor, mask: torch.Tensor):
        """Adds the block's part of the mask to its scores, in place."""
        mask = mask[(None,) * (4 - mask.dim())]
        part = mask[tuple(slice(None) if size == 1 else at for size, at in zip(mask.shape, self.wanted))]
        scores = scores.view(self.by_image)
        if mask.dtype == torch.bool:
            scores.add_(part.logical_not().to(scores.dtype), alpha=_FORBIDDEN)
        else:
            scores.add_(part * math.log2(math.e))


def _blocks(batch: int, heads: int, queries: int, keys: int, itemsize: int):
    """The blocks that make up (batch, heads, queries, keys)."""
    room = _BLOCK_BYTES // (itemsize * keys)  # rows of scores
    rows = min(queries, max(room, _MIN_ROWS))
    some_heads = min(heads, max(room // queries, 1))
    images = min(batch, max(room // (queries * heads), 1))
    for image in range(0, batch, images):
        for head in range(0, heads, some_heads):
            for row in range(0, queries, rows):
                yield _Block(
                    range(image, min(image + images, batch)),
                    range(head, min(head + some_heads, heads)),
                    range(row, min(row + rows, queries)),
                    heads,
                    keys,
                )


class _Sum:
    """Sums of matmuls over the rows of a head: in place where a block has all rows, else in float32 at least."""

    def __init__(self, like: torch.Tensor, blocks: list[_Block]):
        self.whole = len(blocks) == 1 or blocks[0].heads != blocks[1].heads
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.total = torch.empty_like(like) if self.whole else torch.zeros_like(like, dtype=dtype)

    def add(self, block: _Block, left: torch.Tensor, right: torch.Tensor):
        if self.whole:
            torch.bmm(left, right, out=self.total[block.heads])
        else:
            self.total[block.heads] += torch.bmm(left, right)


def _with_columns(rows: torch.Tensor, minus: torch.Tensor) -> torch.Tensor:
    """rows (heads, rows, width) and two more columns of its dtype, which add up to -minus (heads, rows, 1)."""
    high = minus.to(rows.dtype)
    return torch.cat([rows, -high, (high - minus).to(rows.dtype)], dim=-1)


def _with_ones(rows: torch.Tensor) -> torch.Tensor:
    """The two columns that face those of `_with_columns` in a matmul."""
    return torch.nn.functional.pad(rows, (0, 2), value=1.0)


def _unflatten(operation, flat: torch.Tensor, factor: torch.Tensor | float, like: torch.Tensor) -> torch.Tensor:
    """operation(flat, factor) as (batch, heads, rows, width), laid out as (batch, rows, heads, width)."""
    flat = flat.unflatten(0, like.shape[:2])
    result = like.new_empty(flat.transpose(1, 2).shape).transpose(1, 2)
    return operation(flat, factor, out=result)


def blocked_mask(*, q_length: int, mask_function: Callable, **kwargs) -> torch.Tensor | None:
    """As transformers' `sdpa_mask`, bool (batch, 1, queries, keys); (batch, 1, 1, keys) if only padding is masked.

    A row for each query would be converted in every block of every layer, which takes as long as a matmul.
    """
    if mask_function is bidirectional_mask_function:
        q_length = 1
    return sdpa_mask(q_length=q_length, mask_function=mask_function, **kwargs)


AttentionInterface.register("blocked", blocked_attention_forward)
AttentionMaskInterface.register("blocked", blocked_mask)
