"""CoMER beyond parity: batch independence, both directions, coverage, BatchNorm over several processes."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from model_specs import SPECS
from safetensors.torch import load_file, save_file

from epigraph.models.configuration_comer import CoMERConfig
from epigraph.models.modeling_comer import CoMERForConditionalGeneration

FIXTURES = Path(__file__).parent / "fixtures" / "comer"
TINY = SPECS["comer"].config


PAPER = {name: getattr(CoMERConfig(), name) for name in TINY if "dropout" not in name}


def build(seed=0, **changes):
    """A model whose norms are as uneven as after training: padding that leaks anywhere is seen."""
    torch.manual_seed(seed)
    model = CoMERForConditionalGeneration(CoMERConfig(**{**TINY, **changes})).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.LayerNorm)):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
    return model


def pad_batch(images, height=0, width=0):
    """(height, width) images as pixel_values and pixel_mask; padding holds rubbish that must not matter."""
    height = max([height, *(image.shape[0] for image in images)])
    width = max([width, *(image.shape[1] for image in images)])
    values = torch.full((len(images), 1, height, width), 0.7)
    mask = torch.zeros(len(images), height, width, dtype=torch.long)
    for index, image in enumerate(images):
        values[index, 0, : image.shape[0], : image.shape[1]] = image
        mask[index, : image.shape[0], : image.shape[1]] = 1
    return {"pixel_values": values, "pixel_mask": mask}


def pictures(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.rand(size, generator=generator) > 0.8).float() for size in sizes]


def pad_labels(*rows):
    rows = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


@pytest.mark.parametrize(
    ("cross", "itself", "parameters"),
    [(False, False, 6_375_937), (True, False, 6_382_641), (False, True, 6_382_641), (True, True, 6_389_041)],
)
def test_published_number_of_parameters(cross, itself, parameters):
    with torch.device("meta"):
        model = CoMERForConditionalGeneration(CoMERConfig(cross_coverage=cross, self_coverage=itself))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    if cross and itself:
        assert sum(parameter.numel() for parameter in model.encoder.parameters()) == 3_156_624
        assert sum(parameter.numel() for parameter in model.decoder.refinement.parameters()) == 13_104


# Sizes whose halves are odd on the way: every rounding of the strides is met.
SIZES = [(61, 157), (83, 118), (33, 250), (16, 16)]


def test_a_reading_does_not_depend_on_the_batch():
    """On the paper's own configuration, with and without gradients (inference folds its norms)."""
    model = build(**PAPER)
    images = pictures(*SIZES)
    labels = pad_labels([5, 6, 7], [9], [3, 4, 5, 6, 8], [11, 12])
    together = pad_batch(images, height=130, width=271)
    inputs, _ = model.bidirectional_targets(labels)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            output = model(**together, decoder_input_ids=inputs)
            for index, image in enumerate(images):
                own = inputs[index::4]
                alone = model(**pad_batch([image]), decoder_input_ids=own)
                torch.testing.assert_close(output.logits[index::4], alone.logits, atol=1e-4, rtol=1e-4)
                cells = output.feature_mask[index]
                rows, columns = (math.ceil(side / 16) for side in image.shape)
                assert cells.sum() == alone.feature_mask.sum() == rows * columns
                features = output.encoder_last_hidden_state[index][cells]
                torch.testing.assert_close(
                    features, alone.encoder_last_hidden_state.flatten(0, 2), atol=1e-4, rtol=1e-4
                )


def test_the_official_behaviour_is_a_setting():
    """`mask_padding=False` must do what its documentation says: padding then changes the answer."""
    model = build(mask_padding=False)
    image = pictures((61, 157))
    inputs = torch.tensor([[1, 5, 6]])
    with torch.no_grad():
        alone = model(**pad_batch(image), decoder_input_ids=inputs).logits
        padded = model(**pad_batch(image, height=80, width=200), decoder_input_ids=inputs).logits
    assert (alone - padded).abs().max() > 1e-3


def test_a_generated_reading_does_not_depend_on_the_batch():
    model = build(seed=1)
    images = pictures(*SIZES[:3], seed=1)
    how = {"num_beams": 3, "max_length": 12, "return_dict_in_generate": True}
    together = model.generate(**pad_batch(images, height=100, width=300), **how)
    for index, image in enumerate(images):
        alone = model.generate(**pad_batch([image]), **how)
        length = alone.sequences.shape[1]
        assert torch.equal(together.sequences[index, :length], alone.sequences[0])
        assert not together.sequences[index, length:].any()
        torch.testing.assert_close(together.sequences_scores[index : index + 1], alone.sequences_scores)


def training_step(model, batch, labels, **kwargs):
    """Loss, gradients and BatchNorm statistics of one training step, after one that only moves the statistics."""
    model.train().zero_grad()
    with torch.no_grad():
        model(**batch, labels=labels)
    loss = model(**batch, labels=labels, **kwargs).loss
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return loss.detach(), gradients, buffers


def assert_same_step(one, other, atol=2e-5):
    torch.testing.assert_close(one[0], other[0], atol=1e-6, rtol=1e-5)
    for mine, yours in zip(one[1:], other[1:]):
        assert mine.keys() == yours.keys()
        for name in mine:
            close = torch.allclose(mine[name], yours[name], atol=atol, rtol=1e-3)
            assert close, f"{name} is off by {(mine[name] - yours[name]).abs().max():.2g}"


def test_padding_stays_out_of_the_statistics():
    """On the paper's own configuration: a training pass moves all BatchNorm statistics alike, however much padding."""
    images, labels, found = pictures(*SIZES[:2]), pad_labels([5, 6, 7], [9]), []
    for sizes in ({}, {"height": 130, "width": 271}):
        model = build(**PAPER).train()
        with torch.no_grad():
            loss = model(**pad_batch(images, **sizes), labels=labels).loss
        found.append({"loss": loss, **dict(model.named_buffers())})
    assert len(found[0]) == 1 + 3 * 101  # the encoder's norms and the refinement's
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_padding_leaves_training_alone(checkpointing):
    """More padding, of images and of labels, changes neither loss, gradients nor BatchNorm statistics."""
    images, labels = pictures(*SIZES), pad_labels([5, 6, 7], [9], [3, 4, 5, 6, 8], [11, 12])
    expected = training_step(build(), pad_batch(images), labels)
    assert any((buffer != 0).any() for name, buffer in expected[2].items() if name.endswith("running_mean"))
    model = build()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    found = training_step(model, pad_batch(images, height=120, width=333), F.pad(labels, (0, 3), value=-100))
    assert_same_step(found, expected)


def test_statistics_count_each_image_cell_once():
    """The stem's statistics of a padded batch are those of all image cells in one row."""
    model = build().train()
    norm, images = model.encoder.stem.norm, pictures(*SIZES)
    with torch.no_grad():
        cells = [model.encoder.stem.conv(image[None, None]).flatten(2)[0] for image in images]
        norm.running_mean.zero_()
        norm.running_var.zero_()
        model.encoder(**pad_batch(images, height=200))
    cells = torch.cat(cells, dim=1)
    torch.testing.assert_close(norm.running_mean, 0.1 * cells.mean(1), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(norm.running_var, 0.1 * cells.var(1), atol=1e-6, rtol=1e-4)


def test_padded_pixels_have_no_gradient():
    model = build()
    batch = pad_batch(pictures(*SIZES[:2]))
    batch["pixel_values"].requires_grad_(True)
    for training in (False, True):
        batch["pixel_values"].grad = None
        model.train(training)(**batch, labels=pad_labels([5, 6, 7], [9])).loss.backward()
        gradient, image = batch["pixel_values"].grad[:, 0], batch["pixel_mask"].bool()
        assert not gradient[~image].any()
        assert gradient[image].any()


def test_bidirectional_targets_are_the_golden_ones():
    example = json.loads((FIXTURES / "preprocess.json").read_text())["to_bi_tgt_out"]
    model = build()
    inputs, targets = model.bidirectional_targets(pad_labels(*example["seqs"]))
    assert inputs.tolist() == example["tgt"] and targets.tolist() == example["out"]
    ignored = pad_labels(*example["seqs"])
    ignored = F.pad(ignored.masked_fill(ignored == 0, -100), (0, 2), value=-100)
    inputs, targets = model.bidirectional_targets(ignored)
    assert inputs.tolist() == [row + [0, 0] for row in example["tgt"]]
    assert targets.tolist() == [row + [0, 0] for row in example["out"]]


def test_the_loss_is_the_mean_over_its_items():
    model = build()
    labels = pad_labels([5, 6, 7], [9], [3, 4, 5, 6, 8], [11, 12])
    batch = pad_batch(pictures(*SIZES))
    inputs, targets = model.bidirectional_targets(labels)
    items = model.num_loss_items({"labels": labels})
    assert items == (targets != 0).sum()
    assert items == model.num_loss_items({"labels": F.pad(labels, (0, 2), value=-100)})
    with torch.no_grad():
        output = model(**batch, labels=labels)
        total = F.cross_entropy(output.logits.flatten(0, 1), targets.flatten(), ignore_index=0, reduction="sum")
        torch.testing.assert_close(output.loss, total / items)
        given = model(**batch, labels=labels, num_items_in_batch=items).loss
        torch.testing.assert_close(given, output.loss)
        ours = model(**batch, decoder_input_ids=inputs, labels=targets).loss
        torch.testing.assert_close(ours, output.loss)


def test_label_smoothing_acts_in_training_only():
    plain, smooth = build(), build(label_smoothing=0.1)
    batch, labels = pad_batch(pictures((32, 64))), torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert plain(**batch, labels=labels).loss == smooth(**batch, labels=labels).loss
        output = smooth.train()(**batch, labels=labels)
    log_probs = output.logits.log_softmax(-1).flatten(0, 1)
    targets = smooth.bidirectional_targets(labels)[1].flatten()
    nll = -log_probs.gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(output.loss, (0.9 * nll - 0.1 * log_probs.mean(1)).mean())


@pytest.mark.parametrize("cross", [False, True])
def test_a_penalty_knows_only_earlier_steps(cross):
    """The coverage at step t is a sum over steps before t (section 3.3): none at the first, and none of the future."""
    model = build(cross_coverage=cross, num_hidden_layers=3)
    batch = pad_batch(pictures(*SIZES[:2]))
    tokens = torch.tensor([[1, 5, 6, 7, 8, 9], [2, 9, 8, 7, 6, 5]])
    with torch.no_grad():
        penalties = model(**batch, decoder_input_ids=tokens).coverages
        changed = model(**batch, decoder_input_ids=torch.cat([tokens[:, :4], tokens[:, 4:] + 20], 1)).coverages
    assert len(penalties) == 2
    for penalty, other in zip(penalties, changed):
        torch.testing.assert_close(penalty[:, :, :5], other[:, :, :5])
        assert (penalty[:, :, 5] - other[:, :, 5]).abs().max() > 1e-5, "what was read at step 4 counts at step 5"

    weights = torch.rand(2, 4, 6, 3 * 5).softmax(-1).requires_grad_(True)
    refinement, mask = model.decoder.refinement, torch.ones(2, 3, 5, dtype=torch.bool)
    step = 3
    refinement(weights, weights, mask)[:, :, step].sum().backward()
    assert weights.grad[:, :, :step].any() and not weights.grad[:, :, step:].any()


def test_rows_without_anything_to_see_are_finite():
    """An image that is padding throughout, and a label that is: neither they nor their neighbours become NaN."""
    model = build()
    batch = pad_batch(pictures(*SIZES[:2]))
    batch["pixel_mask"][1] = 0
    for training in (False, True):
        model.train(training).zero_grad()
        output = model(**batch, labels=torch.tensor([[5, 6], [0, 0]]))
        output.loss.backward()
        assert output.logits.isfinite().all() and output.loss.isfinite()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    tokens = torch.tensor([[1, 5, 6], [0, 0, 0]])
    assert model.eval()(**batch, decoder_input_ids=tokens).logits.isfinite().all()


def test_weights_start_as_in_the_paper():
    """PyTorch's own initial values, and Xavier of the packed (3 * hidden, hidden) matrix for attention."""
    torch.manual_seed(0)
    model = CoMERForConditionalGeneration(CoMERConfig(hidden_size=64, num_attention_heads=4))
    attention = model.decoder.layers[1].cross_attn
    bound = (6 / (4 * 64)) ** 0.5
    assert 0.95 * bound < attention.q_proj.weight.abs().max() <= bound
    assert not attention.k_proj.bias.any() and not attention.o_proj.bias.any()
    conv = model.decoder.refinement.conv
    bound = (8 * 25) ** -0.5
    assert 0.95 * bound < conv.weight.abs().max() <= bound and conv.bias.any()
    assert abs(model.decoder.embed_tokens.weight.std() - 1) < 0.05


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"labels": torch.tensor([[5]])}, "needs pixel_values or encoder_outputs"),
        ({"pixel_values": torch.zeros(1, 1, 32, 32)}, "needs labels or decoder_input_ids"),
        ({"pixel_values": torch.zeros(1, 3, 32, 32), "labels": torch.tensor([[5]])}, r"must be \(batch, 1, height"),
        ({"pixel_values": torch.zeros(1, 32, 32), "labels": torch.tensor([[5]])}, r"not \(1, 32, 32\)"),
    ],
)
def test_wrong_inputs_are_named(inputs, message):
    with pytest.raises(ValueError, match=message):
        build()(**inputs)


def run_process(rank, folder, checkpointing, momentum):
    """One of two processes: the first has no padding, the second has."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = with_momentum(build(), momentum)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    images, labels = distributed_examples()
    half = slice(0, 2) if rank == 0 else slice(2, 4)
    own = pad_batch(images[half])
    assert bool(own["pixel_mask"].all()) == (rank == 0)
    labels = labels[half]
    items = torch.tensor(float(model.num_loss_items({"labels": labels})))
    dist.all_reduce(items)
    loss, gradients, buffers = training_step(model, own, labels, num_items_in_batch=items)
    for tensor in (loss, *gradients.values()):
        dist.all_reduce(tensor)
    results = {"loss": loss[None], **{f"gradient.{k}": v for k, v in gradients.items()}}
    save_file(results | {f"buffer.{k}": v for k, v in buffers.items()}, f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


def distributed_examples():
    images = pictures((40, 96), (40, 96), (61, 157), (33, 80))
    return images, pad_labels([5, 6, 7, 8], [9], [3, 4], [11, 12, 13])


def with_momentum(model, momentum):
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = momentum
    return model


@pytest.mark.parametrize(("checkpointing", "momentum"), [(False, None), (True, 0.1)])
def test_two_processes_are_one(tmp_path, checkpointing, momentum):
    """Loss, gradients and BatchNorm statistics of two processes are those of one with both batches."""
    torch.multiprocessing.spawn(run_process, args=(str(tmp_path), checkpointing, momentum), nprocs=2)
    images, labels = distributed_examples()
    expected = training_step(with_momentum(build(), momentum), pad_batch(images), labels)
    for rank in range(2):
        saved = load_file(tmp_path / f"{rank}.safetensors")
        parts = [{k.removeprefix(p): v for k, v in saved.items() if k.startswith(p)} for p in ("gradient.", "buffer.")]
        assert_same_step((saved["loss"][0], *parts), expected)
