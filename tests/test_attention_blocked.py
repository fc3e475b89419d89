"""The blocked CPU attention: equal to SDPA forward and backward, in any dtype, for any mask, and never whole."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import ViTConfig, ViTModel
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from epigraph.models import attention_blocked
from epigraph.models.attention_blocked import _BlockedAttention, blocked_attention_forward

LAYER = SimpleNamespace(is_causal=False)


def tensors(batch, heads, queries, keys, head_dim=16, value_dim=None, dtype=torch.float32, seed=0, scale=1.0):
    """query, key, value as layers give them: views of (batch, n, heads * head_dim)."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(queries, head_dim), (keys, head_dim), (keys, value_dim or head_dim)]
    made = [torch.randn(batch, n, heads * width, generator=generator).to(dtype) for n, width in sizes]
    made = [x * scale for x in made[:2]] + made[2:]
    return [x.view(batch, n, heads, width).transpose(1, 2).requires_grad_() for x, (n, width) in zip(made, sizes)]


def blocked(query, key, value, mask=None, scaling=None):
    """The blocks themselves, in dtypes too that the interface leaves to SDPA."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _BlockedAttention.apply(query, key, value, mask, scaling)


def sdpa(query, key, value, mask=None, scaling=None):
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling).transpose(1, 2)


def with_gradients(attention, inputs, *arguments):
    output = attention(*inputs, *arguments)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(9)).to(output.dtype)
    return output, *torch.autograd.grad(output, inputs, weights)


def masks(batch, heads, queries, keys):
    generator = torch.Generator().manual_seed(5)
    padding = torch.arange(keys) < torch.tensor([keys, max(keys // 2, 1), 1])[:batch, None]
    some = torch.rand(batch, 1, queries, keys, generator=generator) > 0.5
    some[..., 0] = True
    return {
        "none": None,
        "keys": padding[:, None, None],
        "expanded": padding[:, None, None].expand(batch, 1, queries, keys),
        "pairs": some,
        "two dimensions": some[0, 0],
        "floats": torch.randn(1, heads, queries, keys, generator=generator),
        "float padding": torch.zeros(batch, 1, 1, keys).masked_fill(~padding[:, None, None], -math.inf),
    }


@pytest.fixture(params=[None, 2**11], ids=["", "small blocks"])
def blocks(request, monkeypatch):
    """Also with blocks so small that heads, images and rows are all divided."""
    if request.param:
        monkeypatch.setattr(attention_blocked, "_BLOCK_BYTES", request.param)
        monkeypatch.setattr(attention_blocked, "_MIN_ROWS", 4)


@pytest.mark.parametrize("kind", masks(3, 2, 1, 1))
@pytest.mark.parametrize("queries, keys", [(37, 37), (1, 50), (53, 7), (5, 1)])
def test_equals_sdpa(blocks, kind, queries, keys):
    inputs = tensors(3, 2, queries, keys, value_dim=24)
    mask = masks(3, 2, queries, keys)[kind]
    for ours, theirs in zip(with_gradients(blocked, inputs, mask), with_gradients(sdpa, inputs, mask)):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 4.0], ids=["", "largest score of each row"])
def test_gradients_are_those_of_the_function(blocks, scale):
    inputs = [x.detach().double().requires_grad_() for x in tensors(2, 2, 9, 11, head_dim=4, scale=scale)]
    mask = masks(2, 2, 9, 11)["pairs"]
    assert torch.autograd.gradcheck(blocked, (*inputs, mask, 0.3), fast_mode=True)
    assert torch.autograd.gradcheck(blocked, (*inputs, None, 0.3), fast_mode=True)
    for ours, theirs in zip(with_gradients(blocked, inputs), with_gradients(sdpa, inputs)):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)


def relative_error(value, exact):
    return ((value.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("n", [196, 1024, 1500])
@pytest.mark.parametrize("scale", [1.0, 2.5, 6.0], ids=["flat", "peaked", "one key"])
def test_bfloat16_is_accurate(n, scale):
    inputs = tensors(1, 2, n, n, head_dim=64, dtype=torch.bfloat16, scale=scale)
    exact = with_gradients(sdpa, [x.detach().double().requires_grad_() for x in inputs])
    ours = with_gradients(lambda *x: blocked_attention_forward(LAYER, *x, None)[0], inputs)
    eager = with_gradients(lambda q, k, v: ((q @ k.mT * 64**-0.5).softmax(-1) @ v).transpose(1, 2), inputs)
    assert ours[0].dtype == torch.bfloat16 and ours[0].is_contiguous()
    if (n, scale) == (1024, 1.0):
        assert (ours[0] - exact[0]).abs().max() <= 4e-3
    for got, plain, true in zip(ours, eager, exact):
        assert relative_error(got, true) < 0.03
        assert relative_error(got, true) <= 1.5 * relative_error(plain, true)


@pytest.mark.parametrize("kind", ["keys", "pairs", "floats", "float padding"])
def test_bfloat16_with_masks(blocks, kind):
    inputs = tensors(3, 2, 37, 50, head_dim=64, dtype=torch.bfloat16)
    mask = masks(3, 2, 37, 50)[kind]
    double = mask if mask.dtype == torch.bool else mask.double()
    exact = with_gradients(sdpa, [x.detach().double().requires_grad_() for x in inputs], double)
    for got, true in zip(with_gradients(blocked, inputs, mask), exact):
        assert relative_error(got, true) < 0.015


def test_hostile_scores_stay_finite():
    for scale in (0.0, 30.0, 1e3):
        for dtype in (torch.float32, torch.bfloat16):
            results = with_gradients(blocked, tensors(2, 1, 33, 33, dtype=dtype, scale=scale))
            assert all(x.isfinite().all() for x in results)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_a_query_without_keys_gets_zeros(scale):
    inputs = tensors(2, 1, 6, 6, scale=scale)
    mask = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    mask[1, 0, 4] = False
    output, *gradients = with_gradients(blocked, inputs, mask)
    assert (output[1, 4] == 0).all() and (gradients[0][1, 0, 4] == 0).all()
    assert all(x.isfinite().all() for x in (output, *gradients))
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    assert (blocked(*inputs, additive)[1, 4] == 0).all()


def test_strides_do_not_matter():
    inputs = tensors(2, 3, 20, 20, dtype=torch.bfloat16)
    dense = [x.detach().contiguous().requires_grad_() for x in inputs]
    for ours, theirs in zip(with_gradients(blocked, inputs), with_gradients(blocked, dense)):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


def test_autocast_takes_its_dtype():
    query, key, value = tensors(2, 2, 40, 40)
    half = [x.detach().bfloat16().requires_grad_() for x in (query, key, value)]
    expected = with_gradients(blocked, half)

    def under_autocast(query, key, value):
        with torch.autocast("cpu", torch.bfloat16):
            return blocked_attention_forward(LAYER, query, key, value.bfloat16(), None)[0]

    results = with_gradients(under_autocast, [query, key, value])
    assert results[0].dtype == torch.bfloat16 and all(x.dtype == torch.float32 for x in results[1:])
    for ours, theirs in zip(results, expected):
        torch.testing.assert_close(ours.float(), theirs.float(), atol=0, rtol=0)


def test_backward_inside_autocast_is_the_same():
    inputs = tensors(2, 2, 40, 40)
    outside = with_gradients(blocked, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        inside = with_gradients(lambda *x: _BlockedAttention.apply(*x, None, 0.25), inputs)
    assert all(x.dtype == torch.float32 for x in (*outside, *inside))
    torch.testing.assert_close(inside[1:], outside[1:], atol=2e-2, rtol=0)


def test_checkpointing():
    inputs = tensors(2, 2, 40, 40, dtype=torch.bfloat16)
    kept = with_gradients(lambda *x: checkpoint(blocked, *x, use_reentrant=False), inputs)
    torch.testing.assert_close(kept, with_gradients(blocked, inputs), atol=0, rtol=0)


def test_nothing_of_queries_by_keys_is_kept():
    n = 300
    inputs = tensors(2, 2, n, n, dtype=torch.bfloat16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        output = blocked_attention_forward(LAYER, *inputs, None)[0]
    assert kept and max(kept) <= max(x.numel() for x in inputs) < n * n
    output.sum().backward()
    assert inputs[0].grad.isfinite().all()


def test_blocks_divide_the_scores_and_stay_small():
    for batch, heads, queries, keys in [(8, 3, 1024, 1024), (64, 1, 196, 196), (5, 12, 64, 64), (1, 1, 50000, 50000)]:
        seen = torch.zeros(batch * heads, queries)
        for block in attention_blocked._blocks(batch, heads, queries, keys, 2):
            seen[block.at] += 1
            rows = block.shape[0] * block.shape[1]
            assert rows <= attention_blocked._MIN_ROWS or 2 * rows * keys <= attention_blocked._BLOCK_BYTES
        assert (seen == 1).all()


def delegated(monkeypatch):
    calls = []

    def spy(module, query, key, value, mask, **kwargs):
        calls.append(kwargs)
        return query.transpose(1, 2), None

    monkeypatch.setattr(attention_blocked, "sdpa_attention_forward", spy)
    return calls


def test_the_rest_goes_to_sdpa(monkeypatch):
    calls = delegated(monkeypatch)
    inputs = tensors(1, 2, 8, 8, dtype=torch.bfloat16)
    bias = torch.zeros(1, 2, 8, 8, requires_grad=True)
    served = [({}, None), ({"is_causal": False}, None), ({"is_causal": True}, torch.ones(8, 8).tril().bool())]
    for options, mask in served:
        blocked_attention_forward(LAYER, *inputs, mask, **options)
    assert not calls
    others = [({"dropout": 0.1}, None), ({"is_causal": True}, None), ({"position_bias": bias}, None), ({}, bias)]
    for options, mask in others:
        blocked_attention_forward(LAYER, *inputs, mask, **options)
    blocked_attention_forward(SimpleNamespace(is_causal=True), *inputs, None)
    blocked_attention_forward(LAYER, *tensors(1, 2, 8, 8), None)
    blocked_attention_forward(LAYER, *(x.to("meta") for x in inputs), None)
    blocked_attention_forward(LAYER, inputs[0], inputs[1][:, :1], inputs[2][:, :1], None)
    assert len(calls) == len(others) + 4 and calls[0]["dropout"] == 0.1


def test_dropout_drops():
    inputs = tensors(1, 1, 64, 64, dtype=torch.bfloat16)
    torch.manual_seed(0)
    dropped = blocked_attention_forward(LAYER, *inputs, None, dropout=0.5)[0]
    whole = blocked_attention_forward(LAYER, *inputs, None)[0]
    assert (dropped - whole).abs().max() > 0.05
    with pytest.raises(ValueError, match="softcap"):
        blocked_attention_forward(LAYER, *inputs, None, softcap=30.0)


def test_padding_has_one_row_of_the_mask_for_all_queries():
    """Where every query needs a row of its own, it has one, as transformers makes it."""
    present, states = torch.arange(6) < torch.tensor([[6], [4]]), torch.zeros(2, 6, 4)
    config, stock = (ViTConfig(attn_implementation=name) for name in ("blocked", "sdpa"))
    assert torch.equal(create_bidirectional_mask(config, states, present), present[:, None, None])
    assert create_bidirectional_mask(config, states, present | True) is None
    causal = create_causal_mask(config, states, present, None)
    assert causal.shape == (2, 1, 6, 6) and torch.equal(causal, create_causal_mask(stock, states, present, None))


def test_a_model_of_transformers_takes_the_name():
    assert "blocked" in ALL_ATTENTION_FUNCTIONS.valid_keys()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViTConfig(image_size=12, patch_size=1, **sizes)
    torch.manual_seed(0)
    plain = ViTModel(config, add_pooling_layer=False).to(torch.bfloat16).eval()
    ours = ViTModel._from_config(config, attn_implementation="blocked", add_pooling_layer=False).to(torch.bfloat16)
    ours.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    torch.testing.assert_close(ours.eval()(images)[0], plain(images)[0], atol=0.06, rtol=0)

    embeddings = torch.zeros(2, 5, 32)
    padding = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    mask = create_bidirectional_mask(ours.config, embeddings, padding)
    assert mask.dtype == torch.bool and (mask[:, 0] == padding[:, None].bool()).all()


def test_compiled_models_take_sdpa(monkeypatch):
    calls = delegated(monkeypatch)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    blocked_attention_forward(LAYER, *tensors(1, 2, 8, 8, dtype=torch.bfloat16), None)
    assert len(calls) == 1
