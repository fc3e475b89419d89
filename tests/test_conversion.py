"""Conversion of official checkpoints: what comes out, and all that is refused, code in a pickle first of all."""

import json
import os
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from epigraph.conversion import ConversionError, convert_comer, main
from epigraph.models.tokenization import CROHME_SYMBOLS

FIXTURES = Path(__file__).parent / "fixtures" / "comer"
CALLBACK = "pytorch_lightning.callbacks.model_checkpoint"


@pytest.fixture(scope="module")
def golden():
    return load_file(FIXTURES / "both.safetensors")


@pytest.fixture
def official(golden):
    """What Lightning 1.4 put into a file, but for the callbacks."""
    prefix = "state_dict."
    return {
        "epoch": 151,
        "global_step": 57151,
        "pytorch-lightning_version": "1.4.9",
        "state_dict": {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)},
        "hyper_parameters": json.loads((FIXTURES / "both.json").read_text())["config"],
        "lr_schedulers": [{"best": torch.tensor(0.6365), "num_bad_epochs": 3}],
    }


@pytest.fixture
def write(official, tmp_path):
    """Call `write(**changes)`: the file as Lightning 1.4 wrote it, the state of a callback filed under its class."""

    def write(name="epoch=151.ckpt", callback=CALLBACK, **changes):
        checkpoint = {k: v for k, v in {**official, **changes}.items() if v is not None}
        module = ModuleType(callback)
        module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": callback})
        packages = [callback.rsplit(".", n)[0] for n in range(1, callback.count(".") + 1)]
        with pytest.MonkeyPatch.context() as patch:
            for package in packages:
                patch.setitem(sys.modules, package, ModuleType(package))
            patch.setitem(sys.modules, callback, module)
            checkpoint["callbacks"] = {module.ModelCheckpoint: {"best_model_score": torch.tensor(0.6365)}}
            torch.save(checkpoint, tmp_path / name)
        return tmp_path / name

    return write


def refused(message, checkpoint, tmp_path, **kwargs):
    """Converting raises one line that says `message`, and leaves nothing behind."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConversionError, match=message) as error:
        convert_comer(checkpoint, tmp_path / "out", **kwargs)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def logits(folder, golden, auto=AutoModel):
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        return model(golden["img"], ~golden["img_mask"], decoder_input_ids=golden["tgt"]).logits


def test_a_lightning_file_becomes_a_model_folder(write, golden, tmp_path, capsys):
    main(["comer", str(write()), str(tmp_path / "out" / "comer")])
    folder = tmp_path / "out" / "comer"
    assert str(folder) in capsys.readouterr().out
    assert [path.name for path in folder.parent.iterdir()] == ["comer"], "no unfinished folder is left"
    assert not [path.name for path in folder.iterdir() if path.suffix in (".bin", ".ckpt", ".pt", ".py")]
    for auto in (AutoModel, AutoModelForImageTextToText):
        torch.testing.assert_close(logits(folder, golden, auto), golden["logits"], atol=2e-5, rtol=1e-4)

    processor = AutoProcessor.from_pretrained(folder)
    assert processor.tokenizer.convert_tokens_to_ids(list(CROHME_SYMBOLS)) == list(range(3, 113))
    images = processor.image_processor
    assert (images.antialias, images.scale, images.polarity) == (False, 1, "light_on_dark")
    pictures = [golden["image_u8.0"].numpy(), golden["image_u8.1"].numpy()]
    batch = processor(images=pictures)
    torch.testing.assert_close(batch["pixel_values"], golden["img"])
    assert torch.equal(batch["pixel_mask"].bool(), ~golden["img_mask"])
    model = AutoModel.from_pretrained(folder)
    assert model.config.mask_padding is False
    assert processor.tokenizer.convert_ids_to_tokens(model.config.grammar["open"]) == "{"
    sequences = model.generate(**batch, num_beams=2, max_length=30)
    assert all(processor.decode_labels(sequences))


def test_safetensors_with_official_names(official, golden, tmp_path):
    save_file(official["state_dict"], tmp_path / "official.safetensors")
    refused("holds no hyper_parameters; name a JSON file", tmp_path / "official.safetensors", tmp_path)
    (tmp_path / "hparams.json").write_text(json.dumps(official["hyper_parameters"]))
    convert_comer(tmp_path / "official.safetensors", tmp_path / "out", tmp_path / "hparams.json")
    torch.testing.assert_close(logits(tmp_path / "out", golden), golden["logits"], atol=2e-5, rtol=1e-4)


def test_another_dictionary(write, golden, tmp_path):
    symbols = [f"s{i}" for i in range(110)]
    (tmp_path / "dictionary.txt").write_text("\n".join(symbols) + "\n")
    convert_comer(write(), tmp_path / "out", dictionary=tmp_path / "dictionary.txt")
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "out").tokenizer
    assert tokenizer.convert_tokens_to_ids(symbols) == list(range(3, 113))
    assert AutoModel.from_pretrained(tmp_path / "out").config.grammar is None

    (tmp_path / "short.txt").write_text("\n".join(symbols[:7]))
    (tmp_path / "twice.txt").write_text("\n".join(symbols + symbols[:1]))
    files = {
        "short": "writes 113 tokens, the dictionary has 10",
        "twice": "'s0' in the lines 1 and 111",
        "gone": "cannot be read",
    }
    (tmp_path / "next").mkdir()
    for name, message in files.items():
        with pytest.raises(ValueError, match=message):
            convert_comer(write(), tmp_path / "next", dictionary=tmp_path / f"{name}.txt")


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("place", ["hyper_parameters", "state_dict", "extra"])
def test_a_file_that_would_run_code_is_refused(write, tmp_path, place):
    checkpoint = write(**{place: {"d_model": Payload(tmp_path / "ran")}})
    refused(r"asks for posix\.system, which could run code", checkpoint, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_only_callbacks_are_stood_in_for(write, tmp_path):
    refused("asks for os.callbacks.evil.ModelCheckpoint", write(callback="os.callbacks.evil"), tmp_path)
    refused(
        "asks for pytorch_lightning.utilities.ModelCheckpoint", write(callback="pytorch_lightning.utilities"), tmp_path
    )


def test_a_callback_class_is_a_name_and_nothing_more(official, tmp_path):
    """A stand-in cannot be given the arguments that its class might act on."""

    class ModelCheckpoint:
        def __reduce__(self):
            return ModelCheckpoint, ("argument",)

    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = CALLBACK, "ModelCheckpoint"
    module = ModuleType(CALLBACK)
    module.ModelCheckpoint = ModelCheckpoint
    with pytest.MonkeyPatch.context() as patch:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
            patch.setitem(sys.modules, name, ModuleType(name))
        patch.setitem(sys.modules, CALLBACK, module)
        torch.save({**official, "callbacks": ModelCheckpoint()}, tmp_path / "call.ckpt")
    refused("is damaged or no checkpoint", tmp_path / "call.ckpt", tmp_path)


def without(state_dict, name):
    return {key: value for key, value in state_dict.items() if key != name}


HEAD, CONV = "comer_model.decoder.proj.weight", "comer_model.encoder.model.dense1.0.conv1.weight"
PACKED = "comer_model.decoder.model.layers.0.self_attn.in_proj_bias"
MISTAKES = {
    "missing tensor": (lambda s, h: {"state_dict": without(s, HEAD)}, "lacks 1 tensors, the first: lm_head.weight"),
    "unknown tensor": (
        lambda s, h: {"state_dict": {**s, "stray.weight": s[HEAD]}},
        "1 tensors are not CoMER's.*stray",
    ),
    "extra layer": (
        lambda s, h: {"hyper_parameters": {**h, "num_layers": 3}},
        r"holds 36 tensors that .*encoder\.blocks\.0\.layers\.3",
    ),
    "missing layer": (
        lambda s, h: {"hyper_parameters": {**h, "num_layers": 5}},
        r"lacks .*encoder\.blocks\.0\.layers\.4",
    ),
    "refinement not called for": (
        lambda s, h: {"hyper_parameters": {**h, "cross_coverage": False, "self_coverage": False}},
        "hyper-parameters do not call for.*decoder.refinement",
    ),
    "shape": (lambda s, h: {"state_dict": {**s, CONV: s[CONV][:4]}}, r"bottleneck.conv.weight has the shape \(4, "),
    "other width": (lambda s, h: {"hyper_parameters": {**h, "d_model": 64}}, "has the shape .* call for"),
    "packed projection": (lambda s, h: {"state_dict": {**s, PACKED: s[PACKED][:5]}}, r"\(5,\), not three"),
    "scalar projection": (lambda s, h: {"state_dict": {**s, PACKED: s[PACKED][0]}}, r"\(\), not three"),
    "no hyper-parameters": (lambda s, h: {"hyper_parameters": None}, "holds no hyper_parameters"),
    "hyper-parameter": (lambda s, h: {"hyper_parameters": without(h, "nhead")}, "lack nhead"),
    "impossible": (lambda s, h: {"hyper_parameters": {**h, "nhead": 5}}, "make no model.*num_attention_heads 5"),
    "wrong type": (lambda s, h: {"hyper_parameters": {**h, "d_model": "wide"}}, "make no model.*hidden_size"),
    "endless": (lambda s, h: {"hyper_parameters": {**h, "num_layers": 10**9}}, "more layers than it has tensors"),
    "no state_dict": (lambda s, h: {"state_dict": None}, "has no state_dict of tensors"),
    "no names": (lambda s, h: {"state_dict": {7: s[HEAD]}}, "has no state_dict of tensors"),
    "no tensors": (lambda s, h: {"state_dict": {"a": "b"}}, "has no state_dict of tensors"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_does_not_fit_is_named(write, official, tmp_path, name):
    change, message = MISTAKES[name]
    checkpoint = write(**change(official["state_dict"], official["hyper_parameters"]))
    refused(f"{re.escape(checkpoint.name)}.*{message}", checkpoint, tmp_path)


def test_files_that_are_no_checkpoint(write, tmp_path):
    refused("There is no checkpoint file .*gone.ckpt", tmp_path / "gone.ckpt", tmp_path)
    whole = write().read_bytes()
    contents = {
        "text.ckpt": b"not a checkpoint",
        "empty.ckpt": b"",
        "half.ckpt": whole[: len(whole) // 2],
        "text.safetensors": b"not safetensors",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        refused(f"{name} is damaged or no checkpoint", tmp_path / name, tmp_path)
    torch.save([1, 2], tmp_path / "list.ckpt")
    refused("list.ckpt holds a list", tmp_path / "list.ckpt", tmp_path)
    (tmp_path / "list.json").write_text("[1]")
    refused("list.json are a list", write(), tmp_path, hyper_parameters=tmp_path / "list.json")
    (tmp_path / "bad.json").write_text("{")
    refused("bad.json cannot be read as JSON", write(), tmp_path, hyper_parameters=tmp_path / "bad.json")


def test_nothing_is_overwritten_and_nothing_half_written(write, tmp_path, monkeypatch):
    checkpoint, folder = write(), tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("keep")
    with pytest.raises(SystemExit, match="mine exists already; name another folder"):
        main(["comer", str(checkpoint), str(folder)])
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("epigraph.models.processing.TextProcessor.save_pretrained", full)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit, match="out: could not be saved .*No space left"):
        main(["comer", str(checkpoint), str(tmp_path / "out")])
    assert sorted(tmp_path.rglob("*")) == before


def test_script_explains_itself(run_python):
    script = Path(__file__).resolve().parent.parent / "scripts" / "convert.py"
    printed = run_python([str(script), "--help"]).stdout
    assert "METHOD CHECKPOINT OUT_DIR" in printed and "--hyper-parameters" in printed
    done = run_python([str(script), "comer", "gone.ckpt", "out"], ok=False)
    assert done.returncode == 1 and "convert: There is no checkpoint file gone.ckpt." in done.stderr
    assert "Traceback" not in done.stderr
