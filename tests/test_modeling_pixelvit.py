"""PixelViT as a method: sets in any order, stated sizes, positions and heads.

Other tests: what is read and what is refused (test_pixel_sets.py), selection (test_pixel_selection.py), pre-training
(test_modeling_pixelvit_pretraining.py) and equality with stock ViT (test_modeling_pixelvit_parity.py).
"""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoBackbone

from epigraph import (
    PixelViTBackbone,
    PixelViTConfig,
    PixelViTForImageClassification,
    PixelViTForPreTraining,
    PixelViTForSemanticSegmentation,
    PixelViTModel,
    pad_pixel_sets,
)
from epigraph.models.layers import axial_frequencies, rotary_tables, rotate

POSITIONS = ["learned", "sincos2d", "rope_axial", "rope_mixed", "none"]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
SIZE = (6, 7)


def build(model=PixelViTForImageClassification, **settings):
    """A small model whose every parameter, the mixed frequencies apart, is clearly away from zero."""
    torch.manual_seed(0)
    model = model(PixelViTConfig(**{**SIZES, "image_size": SIZE, "num_labels": 4, **settings}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(float("norm" in name and name.endswith("weight")), 0.2)
            elif name.endswith("weight"):
                parameter.normal_(0, parameter.shape[1] ** -0.5)
            elif "rotary" not in name:
                parameter.normal_()
    return model.eval()


def images(height=SIZE[0], width=SIZE[1], batch=2, channels=3):
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(height * 100 + width))


def full_set(pixel_values):
    """The same images as sets of all their pixels, in row-major order."""
    batch, _, height, width = pixel_values.shape
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).view(-1, 2)
    return {
        "pixels": pixel_values.flatten(2).transpose(1, 2),
        "coordinates": places.expand(batch, -1, -1),
        "image_size": (height, width),
    }


def some(given, indices):
    """The pixels of a set at `indices`."""
    return {**given, **{name: given[name][:, indices] for name in ("pixels", "coordinates")}}


# ------------------------------------------------------------------------------------------------------------- sets


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("kind", POSITIONS)
def test_order_never_matters(kind, pooling):
    model = build(position_embedding_type=kind, pooling=pooling)
    given, labels = some(full_set(images()), torch.arange(0, 42, 2)), torch.tensor([1, 3])
    order = torch.randperm(21, generator=torch.Generator().manual_seed(1))
    results = []
    for one in (given, some(given, order)):
        model.zero_grad()
        output = model(**one, labels=labels)
        output.loss.backward()
        results.append((output, {name: p.grad.clone() for name, p in model.named_parameters()}))
    (first, gradients), (second, others) = results
    torch.testing.assert_close(first.logits, second.logits, **CLOSE)
    assert torch.equal(second.coordinates, first.coordinates[:, order])
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], **CLOSE, msg=lambda m, name=name: f"{name}: {m}")
    # The places do matter, unless there are none.
    moved = model(**{**given, "coordinates": given["coordinates"][:, order]}).logits
    assert torch.allclose(moved, first.logits, atol=1e-4) == (kind == "none")


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("kind", POSITIONS)
def test_images_are_the_set_of_all_their_pixels(kind, pooling):
    model = build(PixelViTModel, position_embedding_type=kind, pooling=pooling)
    for size in (SIZE, (4, 9)):
        expected, output = model(images(*size)), model(**full_set(images(*size)))
        torch.testing.assert_close(output.last_hidden_state, expected.last_hidden_state, **CLOSE)
        assert torch.equal(output.coordinates, expected.coordinates) and output.pixel_mask is None
        assert expected.last_hidden_state.shape == (2, math.prod(size) + (pooling == "cls"), 32)
        pooled = expected.last_hidden_state
        pooled = pooled[:, 0] if pooling == "cls" else pooled.mean(1)
        torch.testing.assert_close(expected.pooler_output, pooled)


@torch.no_grad()
@pytest.mark.parametrize("kind", POSITIONS)
def test_the_size_is_stated_and_never_inferred(kind):
    model = build(PixelViTModel, position_embedding_type=kind, num_hidden_layers=1)
    given = full_set(images(8, 9))
    inner = ((given["coordinates"][0] < torch.tensor([7, 8])).all(1)).nonzero()[:, 0]
    whole = model.embeddings(*placed(model, given))[:, 1:]
    rest = model.embeddings(*placed(model, some(given, inner)))[:, 1:]
    torch.testing.assert_close(rest, whole[:, inner], msg="without its last row and column the others have moved")
    smaller = {**some(given, inner), "image_size": (7, 8)}
    assert torch.allclose(model.embeddings(*placed(model, smaller))[:, 1:], rest) == (
        kind.startswith("rope") or kind == "none"
    )
    outputs = [model(**one).pooler_output for one in (some(given, inner), smaller)]
    assert torch.allclose(*outputs, atol=1e-4) == (kind == "none")


def placed(model, given):
    """The set as the model reads it, and its places in the frame."""
    from epigraph.models.pixel_sets import read_pixels

    pixel_set = read_pixels(model.config, False, **given)
    return pixel_set, model.embeddings.positions(pixel_set)


@torch.no_grad()
@pytest.mark.parametrize("policy", ["random", "random_fixed", "grid", "edge", "ink", "saliency"])
def test_a_selection_is_the_same_set_given_as_pixels(policy):
    settings = {"pixel_selection": policy, "num_selected_pixels": 11, "selection_seed": 3}
    model = build(**settings)
    output = model(images())
    assert output.coordinates.shape == (2, 11, 2)
    rows, columns = output.coordinates.unbind(-1)
    pixels = images().permute(0, 2, 3, 1)[torch.arange(2)[:, None], rows, columns]
    again = model(pixels=pixels, coordinates=output.coordinates, image_size=SIZE)
    torch.testing.assert_close(again.logits, output.logits, **CLOSE)
    assert torch.equal(model(images()).coordinates, output.coordinates)
    fresh = [model.train()(images()).coordinates for _ in range(2)]
    assert torch.equal(*fresh) == (policy != "random")
    # A set is read as it is, whatever the configuration selects of images.
    assert model.eval()(**full_set(images())).coordinates.shape == (2, 42, 2)


def test_all_selected_is_no_selection():
    whole, selecting = build(), build(pixel_selection="ink", num_selected_pixels=42)
    torch.testing.assert_close(selecting(images()).logits, whole(images()).logits, **CLOSE)


def test_positions_that_are_not_read_have_no_gradient():
    model = build(pixel_selection="grid", num_selected_pixels=5)
    output = model(images(), labels=torch.tensor([0, 1]))
    output.loss.backward()
    table = model.pixelvit.embeddings.position_embeddings.grad[0].abs().sum(1)
    read = {0} | {1 + row * 7 + column for row, column in output.coordinates[0].tolist()}
    assert {index for index, size in enumerate(table.tolist()) if size > 0} == read


def padded(garbage_pixel, garbage_place):
    """Two sets of 20 and 9 pixels in one batch, the padding filled with anything."""
    given = full_set(images())
    sets = [some(given, torch.arange(0, 40, 2)), some(given, torch.arange(5, 32, 3))]
    singles = [
        {**one, **{name: one[name][i : i + 1] for name in ("pixels", "coordinates")}} for i, one in enumerate(sets)
    ]
    batch = pad_pixel_sets(*([one[name][0] for one in singles] for name in ("pixels", "coordinates")))
    batch["pixels"] = batch["pixels"].masked_fill(~batch["pixel_mask"][..., None], garbage_pixel)
    batch["coordinates"] = batch["coordinates"].masked_fill(~batch["pixel_mask"][..., None], garbage_place)
    return singles, {**batch, "image_size": SIZE}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("kind", POSITIONS)
def test_padding_is_never_seen(kind, pooling, attention):
    model = build(position_embedding_type=kind, pooling=pooling)
    model.set_attn_implementation(attention)
    for garbage in [(0.0, 0), (float("nan"), -7), (float("inf"), 2**62), (1e30, 5)]:
        singles, batch = padded(*garbage)
        output = model(**batch)
        assert torch.equal(output.pixel_mask, batch["pixel_mask"])
        for index, one in enumerate(singles):
            torch.testing.assert_close(output.logits[index : index + 1], model(**one).logits, **CLOSE)
    model(**batch, labels=torch.tensor([0, 1])).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("kind", POSITIONS)
def test_images_of_different_sizes_in_a_batch(kind):
    model = build(position_embedding_type=kind)
    sizes = [SIZE, (3, 9), (12, 5)]
    singles = [full_set(images(*size, batch=1)) for size in sizes]
    batch = pad_pixel_sets(*([one[name][0] for one in singles] for name in ("pixels", "coordinates")))
    output = model(**batch, image_size=torch.tensor(sizes))
    for index, (one, size) in enumerate(zip(singles, sizes)):
        torch.testing.assert_close(output.logits[index : index + 1], model(**one).logits, **CLOSE)
        torch.testing.assert_close(output.logits[index : index + 1], model(images(*size, batch=1)).logits, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_narrow_integers_are_integers(dtype):
    """Coordinates and ids as they come out of arrays; 256 columns overflow 8 bits."""
    model = build(image_size=(2, 256), num_channels=1, pixel_vocab_size=256)
    given = full_set(torch.arange(512).view(1, 1, 2, 256) % 256)
    given = some(given, torch.arange(0, 512, 5))
    narrow = {**given, "pixels": given["pixels"].to(torch.uint8), "coordinates": given["coordinates"].to(dtype)}
    torch.testing.assert_close(model(**narrow).logits, model(**given).logits)


# -------------------------------------------------------------------------------------------------------- positions


@torch.no_grad()
@pytest.mark.parametrize("kind", POSITIONS)
def test_other_sizes(kind):
    model = build(position_embedding_type=kind)
    outputs = [model(images(*size)) for size in [(12, 14), (3, 3), (1, 20), (7, 6), (1, 1)]]
    assert all(output.logits.shape == (2, 4) and output.logits.isfinite().all() for output in outputs)
    assert outputs[0].coordinates.shape == (2, 168, 2)


@torch.no_grad()
def test_repeated_pixels_span_the_pixel_that_they_are_from():
    model = build(PixelViTModel)
    for factor in (2, 3, 5):
        size = (SIZE[0] * factor, SIZE[1] * factor)
        places = placed(model, full_set(images(*size, batch=1)))[1].view(SIZE[0], factor, SIZE[1], factor, 2)
        expected = torch.cartesian_prod(torch.arange(6.0), torch.arange(7.0)).view(6, 7, 2)
        torch.testing.assert_close(places.mean((1, 3)), expected)
        assert (places - expected[:, None, :, None]).abs().max() < 0.5


@torch.no_grad()
@pytest.mark.parametrize("kind", POSITIONS)
def test_a_repeated_image_is_like_itself(kind):
    """Every pixel four times, each a quarter pixel off: the answer moves less than between two images."""
    model = build(position_embedding_type=kind, image_size=12)
    if kind == "learned":  # smooth, as trained tables are; one of noise has nothing between its entries
        smooth = F.interpolate(torch.randn(1, 32, 3, 3), size=12, mode="bicubic").flatten(2).transpose(1, 2)
        model.pixelvit.embeddings.position_embeddings[:, 1:] = smooth
    # Weak in what turns too fast to survive a quarter pixel, as natural images are.
    image = F.interpolate(images(3, 3), size=12, mode="bilinear")
    expected, repeated = model(image).logits, model(image.repeat_interleave(2, 2).repeat_interleave(2, 3)).logits
    between = (expected[0] - expected[1]).norm()
    assert (repeated - expected).norm(dim=1).max() < 0.25 * between


@pytest.mark.parametrize("kind", ["rope_axial", "rope_mixed"])
def test_rotary_attention_depends_on_offsets_only(kind):
    model = build(PixelViTModel, position_embedding_type=kind, pooling="mean", image_size=40)
    model.set_attn_implementation("eager")
    given = {**full_set(images()), "image_size": (40, 40)}
    moved = {**given, "coordinates": given["coordinates"] + torch.tensor([30, 11])}
    first, second = (model(**one, output_attentions=True) for one in (given, moved))
    for weights, others in zip(first.attentions, second.attentions, strict=True):
        torch.testing.assert_close(weights, others, **CLOSE)
    torch.testing.assert_close(first.pooler_output, second.pooler_output, **CLOSE)
    mirrored = {**given, "coordinates": given["coordinates"].flip(1)}
    assert not torch.allclose(model(**mirrored).pooler_output, first.pooler_output, atol=1e-3)


def test_rotary_keeps_lengths_and_turns_by_offsets():
    query, key = torch.randn(2, 1, 3, 50, 8, generator=torch.Generator().manual_seed(0))
    frequencies = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    places = torch.randint(0, 30, (1, 50, 2), generator=torch.Generator().manual_seed(2))
    scores = []
    for shift in (0, 17):
        tables = rotary_tables(places + shift, frequencies)
        turned = rotate(query, tables), rotate(key, tables)
        torch.testing.assert_close(turned[0].norm(dim=-1), query.norm(dim=-1))
        scores.append(turned[0] @ turned[1].transpose(-1, -2))
    torch.testing.assert_close(*scores, atol=1e-4, rtol=1e-4)


def test_axial_frequencies():
    rows, columns = axial_frequencies(8, 100.0)[:, 0]
    expected = torch.tensor([1.0, 0.1])  # 100 ** -(4 t / 8)
    torch.testing.assert_close(rows, torch.cat([torch.zeros(2), expected]))
    torch.testing.assert_close(columns, torch.cat([expected, torch.zeros(2)]))
    assert build(PixelViTModel, position_embedding_type="rope_axial").rope_theta == 100
    assert build(PixelViTModel, position_embedding_type="rope_mixed").rope_theta == 10
    assert build(PixelViTModel, position_embedding_type="rope_axial", rope_theta=7).rope_theta == 7


@pytest.mark.parametrize("kind", ["rope_axial", "rope_mixed"])
def test_the_cls_token_is_not_turned(kind):
    model = build(PixelViTModel, position_embedding_type=kind)
    _, places = placed(model, full_set(images()))
    for cos, sin in model.rotary(places):
        assert cos.shape[2] == 43 and torch.equal(cos[:, :, 0], torch.ones_like(cos[:, :, 0]))
        assert not sin[:, :, 0].any() and sin[:, :, -1].any()


def test_mixed_frequencies_start_axial_turned_by_an_angle_and_are_learnt():
    model = build(position_embedding_type="rope_mixed")
    frequencies = model.pixelvit.rotary_frequencies
    assert frequencies.shape == (2, 2, 2, 8)
    lengths = frequencies.norm(dim=1)  # over row and column
    torch.testing.assert_close(lengths, axial_frequencies(16, 10.0).norm(dim=0).expand_as(lengths))
    assert len({round(value, 4) for value in frequencies[:, 0, :, 0].flatten().tolist()}) == 4, (
        "an angle for each head"
    )
    model(images(), labels=torch.tensor([0, 1])).loss.backward()
    assert (frequencies.grad.abs().sum((1, 3)) > 0).all()


# ------------------------------------------------------------------------------------------------------- dictionary


@pytest.mark.parametrize("channels", [1, 3])
def test_a_dictionary_can_be_a_linear_projection(channels):
    linear = build(num_channels=channels)
    dictionary = build(num_channels=channels, pixel_vocab_size=10)
    state = linear.state_dict()
    weight, bias = (state.pop(f"pixelvit.embeddings.projection.{name}") for name in ("weight", "bias"))
    table = torch.arange(10.0)[None, :, None] * weight.T[:, None] + bias / channels  # (channels, ids, hidden)
    state["pixelvit.embeddings.projection.weight"] = table.flatten(0, 1)
    dictionary.load_state_dict(state)
    ids = torch.randint(0, 10, (2, channels, *SIZE), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(dictionary(ids).logits, linear(ids.float()).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("policy", ["grid", "ink"])
def test_ids_are_selected_as_brightness(policy):
    settings = {"pixel_selection": policy, "num_selected_pixels": 7, "num_channels": 1}
    ids = torch.randint(0, 10, (2, 1, *SIZE), generator=torch.Generator().manual_seed(0))
    output = build(pixel_vocab_size=10, **settings)(ids)
    assert torch.equal(output.coordinates, build(**settings)(ids.float()).coordinates)
    rows, columns = output.coordinates.unbind(-1)
    given = {"coordinates": output.coordinates, "image_size": SIZE}
    again = build(pixel_vocab_size=10, **settings)(
        pixels=ids[torch.arange(2)[:, None], 0, rows, columns, None], **given
    )
    torch.testing.assert_close(again.logits, output.logits)


# ------------------------------------------------------------------------------------------------------------ heads


def test_losses_of_images_add_up_over_parts_of_a_batch():
    model, batch, labels = build(), images(batch=5), torch.tensor([0, 3, 1, 2, 1])
    whole = model(batch, labels=labels).loss
    assert model.num_loss_items({"pixel_values": batch, "labels": labels}) == 5
    assert model.num_loss_items({**full_set(batch), "labels": labels}) == 5
    parts = [model(batch[i], labels=labels[i], num_items_in_batch=5).loss for i in (slice(0, 2), slice(2, 5))]
    torch.testing.assert_close(sum(parts), whole)
    torch.testing.assert_close(whole, F.cross_entropy(model(batch).logits, labels))


def test_segmentation():
    model = build(PixelViTForSemanticSegmentation)
    labels = torch.randint(0, 4, (2, *SIZE), generator=torch.Generator().manual_seed(0))
    labels[0, :2], labels[1, 3] = 255, 255
    output = model(images(), labels=labels)
    assert output.logits.shape == (2, 4, *SIZE)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, labels, ignore_index=255))
    assert model.num_loss_items({"pixel_values": images(), "labels": labels}) == (labels != 255).sum() == 63
    parts = [model(images()[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=63).loss for i in range(2)]
    torch.testing.assert_close(sum(parts), output.loss)
    ignored = model(images(), labels=torch.full((2, *SIZE), 255)).loss
    ignored.backward()
    assert ignored == 0 and all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_segmentation_of_sets():
    model = build(PixelViTForSemanticSegmentation)
    whole = model(images()).logits
    order = torch.randperm(42, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 4, (2, *SIZE), generator=torch.Generator().manual_seed(1))
    given = some(full_set(images()), order)
    output = model(**given, labels=labels.flatten(1)[:, order])
    assert output.logits.shape == (2, 4, 42)
    torch.testing.assert_close(output.logits, whole.flatten(2)[:, :, order], **CLOSE)
    torch.testing.assert_close(output.loss, model(images(), labels=labels).loss, **CLOSE)
    singles, batch = padded(float("nan"), 10**9)
    labels = torch.randint(0, 4, batch["pixel_mask"].shape, generator=torch.Generator().manual_seed(2))
    losses = [
        model(**one, labels=labels[i : i + 1, :n], num_items_in_batch=29).loss
        for i, (one, n) in enumerate(zip(singles, (20, 9)))
    ]
    torch.testing.assert_close(model(**batch, labels=labels).loss, sum(losses), **CLOSE)
    assert model.num_loss_items({**batch, "labels": labels}) == 29


@pytest.mark.parametrize("channels", [1, 2])
def test_regression_of_pixels(channels):
    """Depth, say, of which some pixels are not known."""
    model = build(PixelViTForSemanticSegmentation, num_labels=channels, problem_type="regression")
    labels = torch.randn(2, channels, *SIZE, generator=torch.Generator().manual_seed(0))
    labels[0, 0, 2:4], labels[1, channels - 1, 0, 0] = float("nan"), float("inf")
    output = model(images(), labels=labels)
    known = labels.isfinite().all(1)
    assert output.logits.shape == labels.shape and known.sum() == 2 * 42 - 15
    expected = (output.logits - labels).square().mean(1)[known].mean()
    torch.testing.assert_close(output.loss, expected)
    assert model.num_loss_items({"pixel_values": images(), "labels": labels}) == 69
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    if channels == 1:
        torch.testing.assert_close(model(images(), labels=labels[:, 0]).loss, output.loss)


@pytest.mark.parametrize("shape", [(2, 7, 6), (2, 6), (1, 6, 7), (2, 42), (2, 4, 6, 7), (2, 6, 7, 1)])
@pytest.mark.parametrize("problem", [None, "regression"])
def test_labels_of_another_size_are_refused(shape, problem):
    for channels in (1, 2) if problem else (4,):
        model = build(PixelViTForSemanticSegmentation, num_labels=channels, problem_type=problem)
        with pytest.raises(ValueError, match=r"labels .* do not fit 2 images of \(6, 7\) pixels; they must be \(2, "):
            model(images(), labels=torch.ones(shape) if problem else torch.ones(shape).long())


@pytest.mark.parametrize("value", [4, -1, -100])
def test_labels_of_no_class_are_refused(value):
    """-100 too: cross_entropy would ignore it, but the mean would count it."""
    model = build(PixelViTForSemanticSegmentation)
    labels = torch.zeros(2, *SIZE, dtype=torch.long)
    labels[1, 2, 3] = value
    with pytest.raises(
        ValueError, match=f"labels hold {value}, but the classes are 0 to 3, and what does not count is 255"
    ):
        model(images(), labels=labels)
    with pytest.raises(ValueError, match="labels must be class ids, not torch.float32; numbers need problem_type"):
        model(images(), labels=labels.float())
    _, batch = padded(0.0, 0)
    labels = torch.zeros(batch["pixel_mask"].shape, dtype=torch.long).masked_fill(~batch["pixel_mask"], value)
    assert model(**batch, labels=labels).loss > 0, "padding has no label"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_as_images_hold_them(dtype):
    model, labels = build(PixelViTForSemanticSegmentation), torch.randint(0, 4, (2, *SIZE))
    labels[0, 0] = 255
    torch.testing.assert_close(model(images(), labels=labels.to(dtype)).loss, model(images(), labels=labels).loss)


@pytest.mark.parametrize("head", [PixelViTForSemanticSegmentation, PixelViTBackbone])
def test_heads_of_whole_images_refuse_selections(head):
    model = build(head, pixel_selection="grid", num_selected_pixels=9)
    with pytest.raises(ValueError, match="pixel_selection 'grid' leaves .*set it to 'all'"):
        model(images())


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_backbone(pooling, tmp_path):
    model = build(PixelViTBackbone, pooling=pooling, out_features=["stem", "stage1", "stage2"])
    output = model(images(), output_hidden_states=True)
    assert model.channels == [32, 32, 32] and len(output.hidden_states) == 3
    encoded = model.pixelvit(images(), output_hidden_states=True)
    for feature_map, hidden in zip(output.feature_maps, output.hidden_states, strict=True):
        assert feature_map.shape == (2, 32, *SIZE)
        torch.testing.assert_close(feature_map.flatten(2).transpose(1, 2), hidden[:, -42:])
    last = output.feature_maps[-1].flatten(2).transpose(1, 2)
    torch.testing.assert_close(last, encoded.last_hidden_state[:, -42:])
    assert output.feature_maps[0].std() > 0.1 and model(images()).hidden_states is None

    model.save_pretrained(tmp_path)
    # AutoBackbone.from_pretrained takes names of the Hub only (transformers 5.23).
    assert isinstance(AutoBackbone.from_config(model.config), PixelViTBackbone)
    loaded = PixelViTBackbone.from_pretrained(tmp_path, out_features=["stage1"])
    (feature_map,) = loaded(images(3, 9)).feature_maps
    assert feature_map.shape == (2, 32, 3, 9)
    torch.testing.assert_close(loaded(images()).feature_maps[0], output.feature_maps[1])


@torch.no_grad()
@pytest.mark.parametrize(
    "head", [PixelViTModel, PixelViTForImageClassification, PixelViTForSemanticSegmentation, PixelViTBackbone]
)
def test_tuples(head):
    model = build(head)
    for settings in ({}, {"output_hidden_states": True}):
        named = model(images(), **settings)
        plain = model(images(), **settings, return_dict=False)
        assert type(plain) is tuple and len(plain) == len(named.to_tuple())
        torch.testing.assert_close(plain, named.to_tuple())


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*quantiz:UserWarning")
@pytest.mark.filterwarnings("ignore:torch.ao.quantization:DeprecationWarning")
@pytest.mark.parametrize("head", [PixelViTForImageClassification, PixelViTForPreTraining])
def test_quantised_to_8_bits(head):
    """The projection of pixels too: it then has no dtype that pixels could be cast to."""
    model, noise = build(head), {"noise": torch.rand(2, 42)} if head is PixelViTForPreTraining else {}
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    expected, logits = (one(images(), **noise).logits for one in (model, quantised))
    assert not isinstance(quantised.pixelvit.embeddings.projection, torch.nn.Linear)
    assert 0 < (logits - expected).square().mean().sqrt() < 0.2 * expected.std()


@torch.no_grad()
@pytest.mark.parametrize("kind", POSITIONS)
def test_bfloat16(kind):
    expected = build(position_embedding_type=kind)(images()).logits
    half = build(position_embedding_type=kind).bfloat16()
    for batch in (images(), images().bfloat16()):
        output = half(batch).logits
        assert output.dtype == torch.bfloat16
        torch.testing.assert_close(output.float(), expected, atol=0.08, rtol=0.08)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = build(position_embedding_type=kind)(images()).logits
    torch.testing.assert_close(output.float(), expected, atol=0.08, rtol=0.08)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["all", "grid", "ink", "random_fixed"])
@pytest.mark.parametrize("kind", ["learned", "rope_mixed"])
def test_compiled_without_a_break(policy, kind):
    torch._dynamo.reset()
    selection = {} if policy == "all" else {"pixel_selection": policy, "num_selected_pixels": 10}
    model = build(position_embedding_type=kind, **selection)
    compiled = torch.compile(model, fullgraph=True)
    expected, output = (one(images(), labels=torch.tensor([0, 1])) for one in (model, compiled))
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.loss, expected.loss, atol=1e-4, rtol=1e-4)
    assert torch.equal(output.coordinates, expected.coordinates)
