"""Measuring classifiers: the JSON, its breakdowns, unreadable images, and what is refused."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

datasets = pytest.importorskip("datasets")

from epigraph import (  # noqa: E402
    PixelViTConfig,
    PixelViTForImageClassification,
    PixelViTForPreTraining,
    PixelViTImageProcessor,
    evaluation,
)
from epigraph.cards import class_table, metrics_table, read_results, results_section, weights_sha256  # noqa: E402
from epigraph.classification import class_breakdown, classification_metrics, evaluate_classification  # noqa: E402
from epigraph.data.image_classes import load_images  # noqa: E402

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
NAMES = ["dark", "light", "never"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Folder of a model that calls an image dark or light by its mean brightness."""
    config = PixelViTConfig(
        image_size=4, num_channels=1, pooling="mean", position_embedding_type="none", **SIZES,
        id2label=dict(enumerate(NAMES)), label2id={name: number for number, name in enumerate(NAMES)},
    )  # fmt: skip
    torch.manual_seed(0)
    model = PixelViTForImageClassification(config)
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    bright = torch.linspace(-1, 1, 20)
    bright = bright[bright.abs() > 0.2]
    for _ in range(60):
        optimizer.zero_grad()
        images = bright[:, None, None, None].expand(-1, 1, 4, 4)
        model(pixel_values=images, labels=(bright > 0).long()).loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("models") / "brightness"
    model.save_pretrained(folder)
    PixelViTImageProcessor(size={"height": 4, "width": 4}, num_channels=1).save_pretrained(folder)
    return folder


def plain(grey: int) -> dict:
    file = io.BytesIO()
    Image.fromarray(np.full((5, 4), grey, np.uint8)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture
def images(tmp_path):
    """Five images: four test images, of which one has the wrong label and one is damaged, and one of another split."""
    broken = plain(250)
    broken["bytes"] = broken["bytes"][:45]
    values = {
        "id": ["a", "b", "c", "d", "e"],
        "image": [plain(10), plain(240), plain(20), broken, plain(230)],
        "label": ["dark", "light", "light", "light", "light"],
        "split": ["test", "test", "test", "test", "dev"],
        "source": ["here"] * 5,
    }
    path = tmp_path / "images.parquet"
    datasets.Dataset.from_dict(values).cast_column("image", datasets.Image()).to_parquet(path)
    return path


def run(model, data, output, *arguments):
    evaluation.main(["--model", str(model), "--data", str(data), "--output", str(output), *arguments])
    return json.loads(output.read_text())


def test_results_have_the_fixed_form(classifier, images, tmp_path, capsys):
    output = tmp_path / "results.json"
    results = run(classifier, images, output)
    assert set(results) == {"model", "command", "versions", "weights_sha256", "data_sha256", "rows", "breakdowns"}
    assert results == read_results(output) and results["weights_sha256"] == weights_sha256(classifier)
    row = {"metric": "accuracy", "value": 0.5, "n": 4, "source": "here", "split": "test", "protocol": "standard"}
    assert results["rows"] == [row, row | {"value": 1.0, "n": 1, "split": "dev"}]
    assert results["breakdowns"]["class"] == [
        {"class": "dark", "n": 1, "accuracy": 1.0, "taken_for": None},
        {"class": "light", "n": 4, "accuracy": 0.5, "taken_for": "dark"},
    ]
    unreadable = results["breakdowns"]["unreadable"]
    assert unreadable["value"] == 0.2 and len(unreadable["first"]) == 1 and "row d: " in unreadable["first"][0]
    printed = capsys.readouterr().out
    assert (
        "| data | split | protocol | n | accuracy |" in printed
        and "| here | test | standard | 4 | 50.00 % |" in printed
    )
    assert "| light | 4 | 50.00 % | dark |" in printed and "row d" in printed
    assert metrics_table(results) in results_section([results]), "cards can be filled from it"


def test_splits_limits_and_batches_change_no_answer(classifier, images, tmp_path):
    one = run(classifier, images, tmp_path / "a.json", "--split", "test", "--task", "classification")
    for arguments in (["--batch_size", "1"], ["--batch_size", "3"]):
        assert run(classifier, images, tmp_path / "b.json", "--split", "test", *arguments)["rows"] == one["rows"]
    assert run(classifier, images, tmp_path / "c.json", "--limit", "2")["rows"][0]["value"] == 1.0


def test_the_function_for_training_agrees_and_restores_the_mode(classifier, images):
    model = PixelViTForImageClassification.from_pretrained(classifier).train()
    rows = load_images(images, split="test")
    measured = evaluate_classification(model, PixelViTImageProcessor.from_pretrained(classifier), rows, batch_size=2)
    assert model.training and measured["metrics"] == {"accuracy": 0.5}
    assert [best[:1] for best in measured["answers"]] == [[0], [1], [0], []] and len(measured["errors"]) == 1


def test_metrics_of_many_classes():
    answers = [[3, 1, 2, 4, 5], [1, 3, 2, 4, 5], [], [6, 7, 8, 9, 0]]
    metrics = classification_metrics(answers, [3, 3, 3, 3], 10)
    assert metrics == {"accuracy": 0.25, "accuracy_5": 0.5}
    assert classification_metrics(answers, [3, 3, 3, 3], 9) == {"accuracy": 0.25}
    (row,) = class_breakdown([[1], [2], [2], [0]], [0, 0, 0, 0], ["a", "b", "c"])
    assert row == {"class": "a", "n": 4, "accuracy": 0.25, "taken_for": "c"}


def test_names_of_classes_do_not_break_the_table():
    found = class_breakdown([[1], [1]], [0, 1], ["a|b", "c"])
    lines = class_table({"breakdowns": {"class": found}}).splitlines()
    assert lines[2:] == [r"| a\|b | 1 | 0.00 % | c |", "| c | 1 | 100.00 % |  |"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--num_beams", "3"], "--num_beams is for models that read formulas"),
        (["--variant", "photo"], "--variant is for models that read formulas"),
        (["--split", "train"], "no split 'train'; there are dev, test"),
        (["--task", "maths"], "images.parquet: not formulas; it has the columns"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_wrong_arguments_are_one_sentence(classifier, images, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(classifier, images, tmp_path / "results.json", *arguments)
    assert not (tmp_path / "results.json").exists()


def test_models_that_do_not_classify_are_refused(images, tmp_path, tiny_comer, classifier):
    decoder = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 1}
    PixelViTForPreTraining(PixelViTConfig(image_size=4, **SIZES, **decoder)).save_pretrained(tmp_path / "mae")
    with pytest.raises(
        ValueError, match="mae: no classifier of images; its weights lack .*'classifier.bias'.*Train it"
    ):
        run(tmp_path / "mae", images, tmp_path / "results.json")
    with pytest.raises(ValueError, match="tiny-hme: .*cannot be loaded"):
        run(tiny_comer, images, tmp_path / "results.json", "--task", "classification")
    other = tmp_path / "other.parquet"
    values = {"image": [plain(1), plain(2)], "label": ["dark", "pink"]}
    datasets.Dataset.from_dict(values).cast_column("image", datasets.Image()).to_parquet(other)
    with pytest.raises(ValueError, match="the classes pink, which .*brightness does not have; its classes are dark"):
        run(classifier, other, tmp_path / "results.json")
