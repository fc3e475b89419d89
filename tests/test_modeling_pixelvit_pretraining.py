"""Masked autoencoding of pixels: what is hidden, what is predicted, and what the loss counts."""

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from test_modeling_pixelvit import CLOSE, POSITIONS, SIZE, build, full_set, images, padded, some

from epigraph import PixelViTConfig, PixelViTForPreTraining

DECODER = {
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 40,
}


def autoencoder(**settings):
    return build(PixelViTForPreTraining, **{**DECODER, **settings})


def draw(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("kind", POSITIONS)
@pytest.mark.parametrize("decoder", ["sincos2d", "learned"])
def test_the_loss_counts_hidden_pixels_only(kind, pooling, decoder):
    model = autoencoder(position_embedding_type=kind, pooling=pooling, decoder_position_embedding_type=decoder)
    noise = draw(2, 42)
    output = model(images(), noise=noise)
    assert output.logits.shape == (2, 42, 3)
    hidden = output.mask.bool()
    errors = (output.logits - full_set(images())["pixels"]).square().mean(2)
    torch.testing.assert_close(output.loss, errors[hidden].mean())
    (gradient,) = torch.autograd.grad(output.loss, output.logits, retain_graph=True)
    assert torch.equal(gradient.abs().sum(2) > 0, hidden)
    output.loss.backward()
    unused = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert not unused - {name for name in unused if name.endswith("k_proj.bias")}


@pytest.mark.parametrize("ratio", [0.75, 0.5, 0.1, 0.9])
@pytest.mark.parametrize("mask_type", ["random", "block"])
def test_the_share_is_exact(mask_type, ratio):
    model = autoencoder(mask_ratio=ratio, mask_type=mask_type, mask_block_size=3)
    for _ in range(3):
        output = model(images(batch=5))
        assert output.mask.dtype == output.logits.dtype and set(output.mask.unique().tolist()) == {0, 1}
        assert (output.mask.sum(1) == 42 - int(42 * (1 - ratio))).all()
    assert not torch.equal(output.mask[0], output.mask[1]), "each image has a mask of its own"
    assert not torch.equal(model(images(batch=5)).mask, output.mask), "drawn anew, in evaluation too"


@torch.no_grad()
def test_the_largest_noise_is_hidden():
    noise = draw(2, 42)
    output = autoencoder(mask_ratio=0.5)(images(), noise=noise)
    assert torch.equal(output.mask.bool(), noise > noise.median(dim=1, keepdim=True).values)
    assert torch.equal(output.ids_restore, noise.argsort(1).argsort(1))


@torch.no_grad()
def test_hidden_pixels_are_hidden():
    model, noise = autoencoder(), draw(2, 42)
    output = model(images(), noise=noise)
    hidden = output.mask.bool().view(2, 1, *SIZE)
    torch.testing.assert_close(model(images().masked_fill(hidden, 9.0), noise=noise).logits, output.logits)
    changed = model(torch.where(hidden, images(), images() + 1), noise=noise).logits
    assert (changed - output.logits).abs().amax((1, 2)).min() > 1e-2


def test_whole_blocks_are_hidden():
    """A single image of 16 x 16: at most one square of the lattice is hidden in part."""
    torch.manual_seed(0)
    model = autoencoder(image_size=16, mask_type="block", mask_block_size=4, mask_ratio=0.6)
    for _ in range(5):
        mask = model(images(16, 16, batch=1)).mask.view(16, 16)
        counts = []
        for down in range(4):
            for right in range(4):
                padded_mask = F.pad(mask, (right, 4 - right, down, 4 - down), value=-1)
                squares = padded_mask.unfold(0, 4, 4).unfold(1, 4, 4).flatten(0, 1).flatten(1)
                counts.append(sum(len(set(square.tolist()) - {-1}) > 1 for square in squares))
        assert min(counts) <= 1


def test_positions_of_hidden_pixels_have_no_gradient_in_the_encoder():
    model = autoencoder(mask_ratio=0.9, decoder_position_embedding_type="learned")
    output = model(images(batch=1))
    output.loss.backward()
    table = model.pixelvit.embeddings.position_embeddings.grad[0].abs().sum(1) > 0
    assert table[0] and torch.equal(table[1:], output.mask[0] == 0)
    assert (model.decoder.decoder_pos_embed.grad[0].abs().sum(1) > 0).all()


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("kind", POSITIONS)
def test_order_never_matters(kind, pooling):
    model, noise = autoencoder(position_embedding_type=kind, pooling=pooling), draw(2, 21)
    given = some(full_set(images()), torch.arange(0, 42, 2))
    order = torch.randperm(21, generator=torch.Generator().manual_seed(1))
    first, second = model(**given, noise=noise), model(**some(given, order), noise=noise[:, order])
    torch.testing.assert_close(second.loss, first.loss, **CLOSE)
    torch.testing.assert_close(second.logits, first.logits[:, order], **CLOSE)
    assert torch.equal(second.mask, first.mask[:, order])


@torch.no_grad()
@pytest.mark.parametrize("size", [(6, 7), (3, 9), (12, 5)])
@pytest.mark.parametrize("kind", POSITIONS)
def test_images_are_the_set_of_all_their_pixels(kind, size):
    model, noise = autoencoder(position_embedding_type=kind), draw(2, size[0] * size[1])
    first, second = model(images(*size), noise=noise), model(**full_set(images(*size)), noise=noise)
    torch.testing.assert_close(second.logits, first.logits, **CLOSE)
    torch.testing.assert_close(second.loss, first.loss, **CLOSE)
    assert first.loss.isfinite()


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("kind", POSITIONS)
def test_padded_sets_count_each_image_alike(kind, pooling):
    model, noise = autoencoder(position_embedding_type=kind, pooling=pooling, mask_ratio=0.5), draw(2, 20)
    singles, batch = padded(float("nan"), 10**9)
    noise[1, 9:] = -1  # the padding would be kept first of all
    output = model(**batch, noise=noise)
    losses = []
    for index, one in enumerate(singles):
        count = one["pixels"].shape[1]
        single = model(**one, noise=noise[index : index + 1, :count])
        losses.append(single.loss)
        torch.testing.assert_close(output.logits[index : index + 1, :count], single.logits, **CLOSE)
        assert torch.equal(output.mask[index, :count], single.mask[0]) and not output.mask[index, count:].any()
    torch.testing.assert_close(output.loss, torch.stack(losses).mean(), **CLOSE)
    assert output.mask.sum(1).tolist() == [10, 5]
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    parts = [
        model(**one, noise=noise[i : i + 1, :n], num_items_in_batch=2).loss
        for i, (one, n) in enumerate(zip(singles, (20, 9)))
    ]
    torch.testing.assert_close(sum(parts), output.loss, **CLOSE)
    assert model.num_loss_items(batch) == model.num_loss_items({"pixel_values": images()}) == 2


@torch.no_grad()
def test_selected_pixels_are_all_there_is():
    """With a selection only its pixels are hidden or read, and predicted."""
    model = autoencoder(pixel_selection="ink", num_selected_pixels=12)
    noise = draw(2, 12)
    output = model(images(), noise=noise)
    assert output.logits.shape == (2, 12, 3) and (output.mask.sum(1) == 9).all()
    rows, columns = output.coordinates.unbind(-1)
    pixels = images().permute(0, 2, 3, 1)[torch.arange(2)[:, None], rows, columns]
    again = model(pixels=pixels, coordinates=output.coordinates, image_size=SIZE, noise=noise)
    torch.testing.assert_close(again.loss, output.loss, **CLOSE)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.long, torch.uint8])
def test_ids_are_predicted_as_classes(channels, dtype):
    model = autoencoder(num_channels=channels, pixel_vocab_size=256)
    ids = torch.randint(0, 256, (2, channels, *SIZE), generator=torch.Generator().manual_seed(0))
    output = model(ids.to(dtype), noise=draw(2, 42))
    assert output.logits.shape == (2, 42, channels * 256)
    scores = output.logits.view(2, 42, channels, 256)[output.mask.bool()].flatten(0, 1)
    targets = full_set(ids)["pixels"][output.mask.bool()].flatten()
    torch.testing.assert_close(output.loss, F.cross_entropy(scores, targets))
    output.loss.backward()
    assert model.decoder.decoder_pred.weight.grad.any()


@torch.no_grad()
def test_the_encoder_can_be_looked_at():
    model = autoencoder()
    model.set_attn_implementation("eager")
    output = model(images(), output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, 11, 32)] * 3
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 2, 11, 11)] * 2


@torch.no_grad()
@pytest.mark.parametrize("kind", POSITIONS)
def test_bfloat16(kind):
    noise = draw(2, 42)
    expected = autoencoder(position_embedding_type=kind)(images(), noise=noise)
    output = autoencoder(position_embedding_type=kind).bfloat16()(images(), noise=noise)
    assert output.logits.dtype == torch.bfloat16 and output.loss.dtype == torch.float32
    torch.testing.assert_close(output.logits.float(), expected.logits, atol=0.1, rtol=0.1)
    torch.testing.assert_close(output.loss, expected.loss, atol=0.02, rtol=0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = autoencoder(position_embedding_type=kind)(images(), noise=noise)
    torch.testing.assert_close(output.loss, expected.loss, atol=0.02, rtol=0.02)


def test_a_short_training_learns_to_fill_in():
    """Images of one colour each: hidden pixels are as the visible ones."""
    model = build(PixelViTForPreTraining, **DECODER, image_size=6).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    colours = torch.rand(16, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 6, 6)
    losses = []
    for _ in range(60):
        loss = model(colours).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    spread = colours.var(dim=0).mean().item()
    assert losses[0] > spread > 4 * losses[-1]


@pytest.mark.parametrize("ratio, size", [(0.75, (1, 3)), (0.99, SIZE), (0.1, (1, 1))])
def test_masks_that_keep_nothing_are_refused(ratio, size):
    message = f"mask_ratio {ratio} of an image of {size[0] * size[1]} pixels keeps none of them or hides none"
    with pytest.raises(ValueError, match=message):
        autoencoder(mask_ratio=ratio)(images(*size))


def test_one_image_of_a_batch_that_would_keep_nothing():
    given = full_set(images())
    batch = {**given, "pixel_mask": torch.ones(2, 42)}
    batch["pixel_mask"][1, 3:] = 0
    with pytest.raises(ValueError, match="of an image of 3 pixels keeps none"):
        autoencoder()(**batch)


def test_noise_that_is_refused():
    wrong = [torch.rand(shape) for shape in [(2, 41), (1, 42), (2, 6, 7)]]
    for noise in [*wrong, wrong[0].tolist(), wrong[0].numpy()]:
        with pytest.raises(ValueError, match=r"noise must be a tensor \(batch, n\) = \(2, 42\), not a "):
            autoencoder()(images(), noise=noise)
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="noise holds numbers that are not finite"):
            autoencoder()(images(), noise=torch.full((2, 42), value))


@torch.no_grad()
def test_noise_of_any_kind():
    """Ranks and halves are noise too, with padding; of equal numbers those that come first are read."""
    model, (_, batch) = autoencoder(mask_ratio=0.5), padded(float("nan"), 10**9)
    noise = torch.stack([torch.randperm(20, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)])
    expected = model(**batch, noise=noise.float())
    for dtype in (torch.long, torch.uint8, torch.bfloat16):
        assert torch.equal(model(**batch, noise=noise.to(dtype)).mask, expected.mask)
    given = (torch.arange(42) % 2).expand(2, -1)
    assert torch.equal(model(images(), noise=given).mask, given.float())


def test_tuples():
    model, noise = autoencoder(), draw(2, 42)
    torch.testing.assert_close(
        model(images(), noise=noise, return_dict=False), model(images(), noise=noise).to_tuple()
    )


@torch.no_grad()
def test_exported():
    model = autoencoder(mask_type="block")
    exported = torch.export.export(model, (images(),), {"noise": draw(2, 42)}, strict=False).module()
    other = images(batch=3)[1:]
    torch.testing.assert_close(
        exported(other, noise=draw(2, 42, seed=1)).loss, model(other, noise=draw(2, 42, seed=1)).loss
    )


@pytest.mark.slow
@pytest.mark.parametrize("mask_type", ["random", "block"])
def test_compiled_without_a_break(mask_type):
    torch._dynamo.reset()
    model = autoencoder(mask_type=mask_type)
    compiled = torch.compile(model, fullgraph=True)
    noise = draw(2, 42)
    torch.testing.assert_close(compiled(images(), noise=noise).loss, model(images(), noise=noise).loss)
    assert compiled(images()).loss.isfinite()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"norm_pix_loss": True}, r"norm_pix_loss must be False: .*a patch of one pixel has only its 3 channel\(s\)"),
        ({"mask_ratio": 0}, "mask_ratio must be above 0 and below 1, not 0"),
        ({"mask_ratio": 1.0}, "mask_ratio must be above 0 and below 1, not 1.0"),
        ({"mask_block_size": 0}, "mask_block_size must be at least 1, not 0"),
        ({"mask_type": "rows"}, "mask_type"),
        (
            {"decoder_hidden_size": 30, "decoder_num_attention_heads": 2},
            "decoder_hidden_size 30 is not a multiple of 4",
        ),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(StrictDataclassError, match=message):
        PixelViTConfig(**settings)
