"""PixelViT against transformers' own ViT and ViTMAE with patches of one pixel, and the conversion between them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from epigraph import (
    PixelViTConfig,
    PixelViTForImageClassification,
    PixelViTForPreTraining,
    PixelViTForSemanticSegmentation,
    PixelViTImageProcessor,
    PixelViTModel,
)
from epigraph.conversion import ConversionError, main
from epigraph.conversion_vit import pixelvit_from_vit, vit_from_pixelvit

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
DECODER = {
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 3,
    "decoder_intermediate_size": 40,
}
ATTENTION = ["eager", "sdpa", "blocked"]
# (channels, image_size): colour and grey, square and not
IMAGES = {"colour": (3, 6), "grey": (1, 6), "wide": (3, (4, 7)), "tall": (1, [8, 3])}


def fill(model):
    """Every parameter clearly away from zero, and from one, so that none can be left out unseen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(noise * 0.3 + ("norm" in name and name.endswith("weight")))
            else:
                scale = parameter[0].numel() ** -0.5 if name.endswith("weight") else 1.0
                parameter.copy_(noise * scale)
    return model.eval()


def classifier(channels=3, image_size=6, **changes):
    config = {**SIZES, "num_channels": channels, "image_size": image_size, "patch_size": 1}
    labels = {} if "id2label" in changes else {"num_labels": 5}
    return fill(ViTForImageClassification(ViTConfig(**{**config, **labels, **changes})))


def masked_autoencoder(channels=3, image_size=6, tables="sincos", **changes):
    """ViTMAE with its fixed tables filled as in published checkpoints, left at zero, or at random."""
    config = {**SIZES, **DECODER, "num_channels": channels, "image_size": image_size, "patch_size": 1, **changes}
    model = ViTMAEForPreTraining(ViTMAEConfig(**config))
    tensors = [model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed]
    assert not any(tensor.requires_grad or tensor.any() for tensor in tensors)
    fill(model)
    for tensor in tensors:
        if tables == "sincos":
            tensor.data = published_table(image_size, tensor.shape[2])
        elif tables == "zero":
            tensor.data.zero_()
    return model


def published_table(size, dim):
    """The table of MAE's checkpoints, as its paper's code orders it: the column first."""
    column, row = np.meshgrid(np.arange(size, dtype=np.float32), np.arange(size, dtype=np.float32))
    omega = 10000 ** -(np.arange(dim // 4, dtype=np.float64) / (dim / 4))
    halves = [np.outer(place.ravel(), omega) for place in (column, row)]
    table = np.concatenate([part for half in halves for part in (np.sin(half), np.cos(half))], axis=1)
    return torch.from_numpy(np.concatenate([np.zeros((1, dim)), table])).float()[None]


def images(channels, size, batch=3):
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


def stock_name(name):
    """The stock model's name of a PixelViT parameter."""
    name = name.removeprefix("pixel") if name.startswith("pixelvit.") else name
    return name.replace("embeddings.projection", "embeddings.patch_embeddings.projection")


def check_training(stock, ours, stock_loss, our_loss):
    """Gradients of every parameter, and all parameters after a step of an optimiser."""
    optimisers = [torch.optim.SGD(m.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1) for m in (stock, ours)]
    stock_loss.backward()
    our_loss.backward()
    theirs = dict(stock.named_parameters())
    trained = {name: p for name, p in ours.named_parameters() if theirs[stock_name(name)].requires_grad}
    assert {stock_name(name) for name in trained} == {name for name, p in theirs.items() if p.requires_grad}
    for name, parameter in trained.items():
        expected = theirs[stock_name(name)].grad.view_as(parameter)
        if not name.endswith("k_proj.bias"):  # its gradient is zero but for rounding: it shifts a softmax as a whole
            assert expected.abs().max() > 1e-5, f"{name} has no gradient to compare"
        torch.testing.assert_close(parameter.grad, expected, **CLOSE, msg=lambda m, name=name: f"{name}: {m}")
    for optimiser in optimisers:
        optimiser.step()
    for name, parameter in trained.items():
        expected = theirs[stock_name(name)].view_as(parameter)
        torch.testing.assert_close(parameter, expected, **CLOSE, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("kind", IMAGES)
def test_classification(kind, attention):
    stock = classifier(*IMAGES[kind])
    stock.set_attn_implementation("eager")
    ours = pixelvit_from_vit(stock)
    ours.set_attn_implementation(attention)
    batch, labels = images(*IMAGES[kind]), torch.tensor([0, 4, 2])
    expected, output = stock(batch, labels=labels), ours(batch, labels=labels)
    assert expected.logits.std() > 0.1
    torch.testing.assert_close(output.logits, expected.logits, **CLOSE)
    torch.testing.assert_close(output.loss, expected.loss, **CLOSE)
    check_training(stock, ours, expected.loss, output.loss)


@pytest.mark.parametrize(
    "settings", [{"qkv_bias": False}, {"hidden_act": "gelu_pytorch_tanh"}, {"layer_norm_eps": 0.1}]
)
def test_classification_with_other_settings(settings):
    stock = classifier(**settings)
    ours = pixelvit_from_vit(stock)
    torch.testing.assert_close(ours(images(3, 6)).logits, stock(images(3, 6)).logits, **CLOSE)


@pytest.mark.parametrize(
    "problem_type, labels", [("regression", torch.rand(3, 5)), ("multi_label_classification", 1.0)]
)
def test_losses_of_other_problems(problem_type, labels):
    stock = classifier(problem_type=problem_type)
    labels = labels if isinstance(labels, torch.Tensor) else torch.eye(5)[:3]
    expected, output = stock(images(3, 6), labels=labels), pixelvit_from_vit(stock)(images(3, 6), labels=labels)
    torch.testing.assert_close(output.loss, expected.loss, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTION)
def test_encoder(attention):
    stock = fill(ViTModel(ViTConfig(**SIZES, image_size=6, patch_size=1), add_pooling_layer=False))
    ours = pixelvit_from_vit(stock)
    ours.set_attn_implementation(attention)
    expected, output = (model(images(3, 6), output_hidden_states=True) for model in (stock, ours))
    torch.testing.assert_close(output.last_hidden_state, expected.last_hidden_state, **CLOSE)
    for state, other in zip(output.hidden_states[:-1], expected.hidden_states[:-1], strict=True):
        torch.testing.assert_close(state, other, **CLOSE)


@torch.no_grad()
def test_attention_weights():
    stock = classifier()
    stock.set_attn_implementation("eager")
    expected, output = (m(images(3, 6), output_attentions=True) for m in (stock, pixelvit_from_vit(stock)))
    assert len(output.attentions) == 2 and output.attentions[0].shape == (3, 2, 37, 37)
    for weights, others in zip(output.attentions, expected.attentions, strict=True):
        torch.testing.assert_close(weights, others, **CLOSE)


@pytest.mark.parametrize("size", [(12, 12), (5, 5), (7, 13), (3, 12), (1, 9), (25, 2)])
def test_interpolation_to_other_sizes(size):
    """Positions of images of other sizes, (3, 12) has as many pixels as the table: as ViT interpolates its table."""
    stock = classifier(image_size=6)
    ours = pixelvit_from_vit(stock)
    expected = stock(images(3, size), labels=torch.arange(3), interpolate_pos_encoding=True)
    output = ours(images(3, size), labels=torch.arange(3))
    torch.testing.assert_close(output.logits, expected.logits, **CLOSE)
    check_training(stock, ours, expected.loss, output.loss)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("tables", ["sincos", "zero", "random"])
def test_masked_autoencoder(tables, attention):
    stock = masked_autoencoder(tables=tables)
    ours = pixelvit_from_vit(stock)
    ours.set_attn_implementation(attention)
    kind = "sincos2d" if tables == "sincos" else "learned"
    assert ours.config.position_embedding_type == ours.config.decoder_position_embedding_type == kind
    noise = torch.rand(3, 36, generator=torch.Generator().manual_seed(2))
    expected, output = (model(images(3, 6), noise=noise) for model in (stock, ours))
    assert torch.equal(output.mask, expected.mask) and torch.equal(output.ids_restore, expected.ids_restore)
    torch.testing.assert_close(output.logits, expected.logits, **CLOSE)
    torch.testing.assert_close(output.loss, expected.loss, **CLOSE)
    check_training(stock, ours, expected.loss, output.loss)


@torch.no_grad()
@pytest.mark.parametrize("ratio", [0.75, 0.5, 0.9, 0.3])
def test_masked_autoencoder_of_grey_images(ratio):
    """Shares that do not divide the pixels are rounded as ViTMAE rounds them."""
    stock = masked_autoencoder(channels=1, image_size=7, mask_ratio=ratio)
    ours = pixelvit_from_vit(stock)
    noise = torch.rand(3, 49, generator=torch.Generator().manual_seed(3))
    expected, output = (model(images(1, 7), noise=noise) for model in (stock, ours))
    assert torch.equal(output.mask, expected.mask)
    torch.testing.assert_close(output.loss, expected.loss, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTION)
def test_bfloat16(attention):
    """Half the digits, and the blocks of "blocked" that float32 leaves to SDPA."""
    stock = classifier(image_size=12)
    expected = stock(images(3, 12)).logits
    ours = pixelvit_from_vit(stock.bfloat16())
    ours.set_attn_implementation(attention)
    output = ours(images(3, 12).bfloat16()).logits
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, atol=0.05, rtol=0.05)


# ------------------------------------------------------------------------------------------------------- conversion


def same(first, second):
    """Names, dtypes and every bit of the weights."""
    first, second = first.state_dict(), second.state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype and torch.equal(tensor, second[name]), name
    return True


STOCK = {
    "classifier": classifier,
    "tall": lambda: classifier(1, (5, 3)),
    "encoder": lambda: fill(ViTModel(ViTConfig(**SIZES, image_size=5, patch_size=1), add_pooling_layer=False)),
    "mae": masked_autoencoder,
    "mae of zero tables": lambda: masked_autoencoder(tables="zero"),
    "bfloat16": lambda: classifier().bfloat16(),
    "mae in bfloat16": lambda: masked_autoencoder(image_size=20).bfloat16(),
}
CHANGED = {
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.2,
    "initializer_range": 0.5,
    "layer_norm_eps": 1e-3,
    "hidden_act": "relu",
    "qkv_bias": False,
    "id2label": {0: "shirt", 1: "shoe"},
    "label2id": {"shirt": 0, "shoe": 1},
}


@pytest.mark.parametrize("kind", STOCK)
def test_there_and_back(kind):
    stock = STOCK[kind]()
    ours = pixelvit_from_vit(stock)
    back = vit_from_pixelvit(ours)
    assert type(back) is type(stock) and same(back, stock)
    assert back.config.to_dict() == stock.config.to_dict()
    assert same(pixelvit_from_vit(back), ours)
    frozen = {name for name, parameter in stock.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, parameter in back.named_parameters() if not parameter.requires_grad}


@pytest.mark.parametrize(
    "ours, settings",
    [
        (PixelViTForImageClassification, {}),
        (PixelViTForImageClassification, {"position_embedding_type": "sincos2d", "image_size": (4, 6)}),
        (PixelViTModel, {"position_embedding_type": "sincos2d"}),
        (PixelViTForPreTraining, {}),
        (PixelViTForPreTraining, {"position_embedding_type": "sincos2d", "mask_ratio": 0.5}),
        (PixelViTForPreTraining, {"decoder_position_embedding_type": "learned"}),
    ],
)
def test_back_and_there(ours, settings):
    model = fill(ours(PixelViTConfig(**{**SIZES, **DECODER, "image_size": 6, **settings})))
    stock = vit_from_pixelvit(model)
    back = pixelvit_from_vit(stock)
    assert type(back) is ours and same(back, model)
    changed = {k for k, v in back.config.to_dict().items() if v != model.config.to_dict()[k]}
    # Only the configuration of ViTMAE has a decoder.
    assert not {name for name in changed if ours is PixelViTForPreTraining or not name.startswith("decoder_")}
    batch = images(3, model.config.image_size)
    if ours is PixelViTForPreTraining:
        noise = torch.rand(3, 36)
        torch.testing.assert_close(stock(batch, noise=noise).loss, model(batch, noise=noise).loss, **CLOSE)
    else:
        torch.testing.assert_close(stock(batch)[0], model(batch)[0], **CLOSE)


@pytest.mark.parametrize("build", [classifier, masked_autoencoder])
def test_settings_are_carried_over(build):
    stock = build(**CHANGED).train()
    stock.set_attn_implementation("eager")
    ours = pixelvit_from_vit(stock)
    back = vit_from_pixelvit(ours)
    for model in (ours, back):
        assert {name: getattr(model.config, name) for name in CHANGED} == CHANGED
        assert model.training and model.config._attn_implementation == "eager"
    assert ours.config.num_labels == 2


def test_weights_are_copies():
    stock = classifier()
    ours = pixelvit_from_vit(stock)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    assert all(parameter.any() for parameter in stock.parameters())


def test_the_pooler_and_the_mask_token_are_left_out(caplog):
    stock = fill(ViTModel(ViTConfig(**SIZES, image_size=6, patch_size=1), use_mask_token=True))
    ours = pixelvit_from_vit(stock)
    assert [record.getMessage() for record in caplog.records] == [
        "left out, as PixelViT has no such part: embeddings.mask_token, pooler.dense.weight, pooler.dense.bias"
    ]
    torch.testing.assert_close(ours(images(3, 6))[0], stock(images(3, 6))[0], **CLOSE)


def test_block_masks_are_left_out(caplog):
    model = PixelViTForPreTraining(PixelViTConfig(**SIZES, **DECODER, image_size=6, mask_type="block"))
    vit_from_pixelvit(model)
    assert "mask_type 'block'" in caplog.text


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: classifier(patch_size=2), "patch_size is 2, but PixelViT's tokens are single pixels"),
        (lambda: classifier(patch_size=(1, 2)), r"patch_size is \(1, 2\)"),
        (lambda: masked_autoencoder(norm_pix_loss=True), "norm_pix_loss is True: .*a patch of one pixel has none"),
        (lambda: ViTForMaskedImageModeling(ViTConfig(**SIZES, patch_size=1)), "ViTForMaskedImageModeling cannot be"),
        (lambda: torch.nn.Linear(2, 2), "Linear cannot be converted; ViTForImageClassification, ViTMAE"),
        (lambda: classifier(hidden_size=30, head_dim=8), "q_proj.weight has the shape"),
    ],
)
def test_what_pixelvit_cannot_be_made_from(build, message):
    with pytest.raises(ConversionError, match=message) as error:
        pixelvit_from_vit(build())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "ours, settings, message",
    [
        (PixelViTModel, {"position_embedding_type": "rope_axial"}, "'rope_axial', but ViTModel adds a table"),
        (PixelViTModel, {"position_embedding_type": "rope_mixed"}, "'rope_mixed', but ViTModel adds a table"),
        (PixelViTModel, {"position_embedding_type": "none"}, "'none', but ViTModel adds a table"),
        (PixelViTModel, {"pixel_vocab_size": 256}, "pixel_vocab_size is set, but ViTModel projects plain numbers"),
        (PixelViTForImageClassification, {"pooling": "mean"}, "'mean', but ViTForImageClassification reads the image"),
        (
            PixelViTForImageClassification,
            {"pixel_selection": "ink", "num_selected_pixels": 9},
            "'ink', but ViTForImageClassification reads every pixel and would answer differently; set it to 'all'",
        ),
        (PixelViTForPreTraining, {"image_size": (6, 5)}, "6 x 5, but ViTMAEForPreTraining only takes squares"),
        (PixelViTForSemanticSegmentation, {}, "PixelViTForSemanticSegmentation cannot be converted"),
    ],
)
def test_what_vit_cannot_be_made_from(ours, settings, message):
    model = ours(PixelViTConfig(**{**SIZES, **DECODER, "image_size": 6, **settings}))
    with pytest.raises(ConversionError, match=message) as error:
        vit_from_pixelvit(model)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------- folders


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stock") / "vit"
    names = {"id2label": CHANGED["id2label"], "label2id": CHANGED["label2id"]}
    classifier(image_size=(6, 7), **names).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 6, "width": 7}, image_mean=[0.1, 0.2, 0.3]).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_folders_there_and_back(vit_folder, tmp_path, capsys):
    there, back = tmp_path / "pixelvit", tmp_path / "vit"
    main(["pixelvit", str(vit_folder), str(there)])
    assert f"{there}: load it with" in capsys.readouterr().out
    main(["vit", str(there), str(back)])

    stock = AutoModelForImageClassification.from_pretrained(vit_folder)
    ours = AutoModelForImageClassification.from_pretrained(there)
    assert isinstance(ours, PixelViTForImageClassification) and ours.config.id2label == {0: "shirt", 1: "shoe"}
    assert same(AutoModelForImageClassification.from_pretrained(back), stock)

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    processor = AutoImageProcessor.from_pretrained(there)
    assert isinstance(processor, PixelViTImageProcessor)
    expected = ViTImageProcessorPil.from_pretrained(vit_folder)(picture, return_tensors="pt").pixel_values
    pixel_values = processor(picture, return_tensors="pt").pixel_values
    torch.testing.assert_close(pixel_values, expected, **CLOSE)
    torch.testing.assert_close(ours(pixel_values).logits, stock(expected).logits, **CLOSE)
    returned = ViTImageProcessorPil.from_pretrained(back)(picture, return_tensors="pt").pixel_values
    torch.testing.assert_close(returned, expected, **CLOSE)


@pytest.mark.parametrize("kind", ["encoder", "mae", "mae in bfloat16"])
def test_other_folders(kind, tmp_path):
    stock = STOCK[kind]()
    stock.save_pretrained(tmp_path / "stock")
    main(["pixelvit", str(tmp_path / "stock"), str(tmp_path / "ours")])
    main(["vit", str(tmp_path / "ours"), str(tmp_path / "back")])
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "back" / file).read_bytes() == (tmp_path / "stock" / file).read_bytes()
    assert not (tmp_path / "ours" / "preprocessor_config.json").exists()


def test_a_folder_with_a_pooler(tmp_path, caplog):
    ViTModel(ViTConfig(**SIZES, image_size=6, patch_size=1)).save_pretrained(tmp_path / "stock")
    main(["pixelvit", str(tmp_path / "stock"), str(tmp_path / "ours")])
    assert "left out, as PixelViT has no such part: pooler.dense.bias, pooler.dense.weight" in caplog.text
    assert PixelViTModel.from_pretrained(tmp_path / "ours").layernorm.weight.shape == (32,)


def damage_config(**changes):
    def damage(folder):
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return damage


def change_tensors(change):
    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def write(name, content):
    return lambda folder: (folder / name).write_text(content)


DAMAGE = {
    "other architecture": (damage_config(architectures=["BertModel"]), "holds 'BertModel', which cannot be converted"),
    "no architecture": (damage_config(architectures=None), "does not name the one architecture"),
    "two architectures": (
        damage_config(architectures=["ViTModel", "BertModel"]),
        "does not name the one architecture",
    ),
    "no config": (lambda folder: (folder / "config.json").unlink(), "is no model folder: it has no config.json"),
    "config is no JSON": (write("config.json", "{"), "config.json cannot be read"),
    "config is a list": (write("config.json", "[]"), "config.json cannot be read"),
    "wrong type": (damage_config(hidden_size="wide"), "is damaged or no folder of ViTForImageClassification"),
    "patches": (damage_config(patch_size=2), "damaged|patch_size is 2"),
    "other shape": (damage_config(intermediate_size=49), "is damaged or no folder of ViTForImageClassification"),
    "missing tensor": (
        change_tensors(lambda tensors: tensors.pop("classifier.bias")),
        "lacks 1 tensors, the first: classifier.bias",
    ),
    "unknown tensor": (
        change_tensors(lambda tensors: tensors.update(stray=torch.zeros(2))),
        "holds 1 tensors that ViTForImageClassification does not have: stray",
    ),
    "half a file": (write("model.safetensors", "half"), "is damaged or no folder of ViTForImageClassification"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "is damaged or no folder of"),
    "only a pickle": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "is damaged or no folder of",
    ),
    "processor": (write("preprocessor_config.json", "{"), "preprocessor_config.json cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_folders_that_are_refused(vit_folder, tmp_path, name):
    damage, message = DAMAGE[name]
    folder = tmp_path / "vit"
    folder.mkdir()
    for file in vit_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    damage(folder)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit, match=f"convert: .*{folder}.*({message})") as error:
        main(["pixelvit", str(folder), str(tmp_path / "out")])
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_method_must_fit_the_folder(vit_folder, tmp_path, capsys):
    with pytest.raises(SystemExit, match="holds 'ViTForImageClassification', which cannot be converted; PixelViTFor"):
        main(["vit", str(vit_folder), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="gone is no model folder"):
        main(["pixelvit", str(tmp_path / "gone"), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        main(["pixelvit", str(vit_folder), str(tmp_path / "out"), "--dictionary", "symbols.txt"])
    assert end.value.code == 2 and "--dictionary belongs to comer, not to pixelvit" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_folder_is_overwritten(vit_folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(SystemExit, match="mine exists already"):
        main(["pixelvit", str(vit_folder), str(tmp_path / "mine")])
    assert [path.name for path in Path(tmp_path / "mine").iterdir()] == ["notes.txt"]
