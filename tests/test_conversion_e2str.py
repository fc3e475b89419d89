"""Conversion to E2STR: official weights, a MAE's encoder, OPT as the decoder; and all that is refused."""

import argparse
import json
import os
import re
import shutil
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from e2str_goldens import HYPER_PARAMETERS, META, golden, images, official, tokenizer
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModel, AutoProcessor, BertConfig, BertModel, OPTConfig, OPTForCausalLM

from epigraph.conversion import ConversionError, main
from epigraph.conversion_e2str import convert_e2str, convert_mae, convert_opt, e2str_config
from epigraph.models.configuration_e2str import E2STRConfig
from epigraph.models.modeling_e2str import E2STRForTextRecognition

SECOND = "model.lang_encoder.model.decoder.layers."  # the decoder's layers under their second names


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tokenizer, hyper-parameters, a converted official model and a small OPT; tests write elsewhere."""
    root = tmp_path_factory.mktemp("e2str")
    tokenizer().save_pretrained(root / "tokenizer")
    (root / "hparams.json").write_text(json.dumps(HYPER_PARAMETERS))
    save_file({name: tensor.clone() for name, tensor in official().items()}, root / "official.safetensors")
    convert_e2str(root / "official.safetensors", root / "e2str", root / "hparams.json", root / "tokenizer")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "ffn_dim": 72, "num_attention_heads": 4}
    opt = OPTForCausalLM(
        OPTConfig(**sizes, vocab_size=104, word_embed_proj_dim=32, max_position_embeddings=64, dtype="float16")
    )
    opt.half().save_pretrained(root / "opt")
    tokenizer().save_pretrained(root / "opt")
    return root


@torch.no_grad()
def check_official(folder):
    """The folder loads through the Auto classes and reads what was recorded."""
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert isinstance(model, E2STRForTextRecognition)
    processor, tensors = AutoProcessor.from_pretrained(folder), golden("icl_generate")
    chosen = tensors["selected"].tolist()
    batch = processor([images(*chosen, 6)], [[META["words"][number] for number in chosen]])
    assert torch.equal(batch["input_ids"], tensors["input_ids"])
    sequences = model.generate(**batch, do_sample=False, num_beams=3, max_new_tokens=48)
    assert torch.equal(sequences, tensors["beam3_ids"])
    assert processor.decode_readings(sequences) == [META["icl_text"]]


class HistoryBuffer:
    """A curve, as MMEngine files it."""

    def __init__(self):
        self._log_history, self.last = np.arange(3.0), np.float64(0.5)


def test_an_official_file_becomes_a_model_folder(folders, tmp_path, capsys, monkeypatch):
    """With all that MMEngine puts beside the weights, which is not read."""
    for name in ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(HistoryBuffer, "__module__", "mmengine.logging.history_buffer")
    sys.modules["mmengine.logging.history_buffer"].HistoryBuffer = HistoryBuffer
    hub = {"log_scalars": {"train/loss": HistoryBuffer()}, "runtime_info": {"epoch": 5}}
    torch.save({"meta": {"epoch": 5}, "state_dict": official(), "message_hub": hub}, tmp_path / "epoch_5.pth")
    monkeypatch.undo()

    options = ["--hyper-parameters", str(folders / "hparams.json"), "--tokenizer", str(folders / "tokenizer")]
    main(["e2str", str(tmp_path / "epoch_5.pth"), str(tmp_path / "out" / "e2str"), *options])
    assert "AutoModel.from_pretrained" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["e2str"], "no unfinished folder is left"
    check_official(tmp_path / "out" / "e2str")


@pytest.mark.parametrize("names", ["first", "second", "distributed"])
def test_each_tensor_may_stand_there_once(folders, tmp_path, names):
    """Files without the official duplicates, under either of their names."""
    tensors = official()
    if names == "first":
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(SECOND)}
    if names == "second":
        firsts = ("model.lang_encoder.gated_cross", "model.lang_encoder.old_decoder", "model.lang_encoder.lm_head")
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(firsts)}
    if names == "distributed":
        tensors = {f"module.{name}": tensor for name, tensor in tensors.items()}
    assert len(tensors) == len(official()) or len(tensors) < len(official()) - 50
    torch.save(tensors, tmp_path / "official.pth")
    convert_e2str(tmp_path / "official.pth", tmp_path / "out", folders / "hparams.json", folders / "tokenizer")
    check_official(tmp_path / "out")


def test_older_vision_encoders_have_no_last_norm(folders, tmp_path):
    values = {**HYPER_PARAMETERS, "vision_post_layernorm": False}
    (tmp_path / "hparams.json").write_text(json.dumps(values))
    convert_e2str(folders / "official.safetensors", tmp_path / "out", tmp_path / "hparams.json", folders / "tokenizer")
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert isinstance(model.model.vision_model.layernorm, torch.nn.Identity)


def test_the_official_sizes():
    """Tensors of the published sizes alone say the published configuration."""
    wanted = E2STRConfig.official()
    with torch.device("meta"):
        tensors = E2STRForTextRecognition(wanted).state_dict()
    config = e2str_config(tensors)
    for part in ("vision_config", "resampler_config", "text_config"):
        ours, theirs = getattr(config, part).to_dict(), getattr(wanted, part).to_dict()
        assert {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]} == {}
    assert config.image_token_id == wanted.image_token_id
    assert config.end_of_chunk_token_id == wanted.end_of_chunk_token_id


def without(state_dict, name):
    return {key: value for key, value in state_dict.items() if key != name}


LATENTS, KV = "model.perceiver.latents", "model.perceiver.layers.0.0.to_kv.weight"
FIRST, TWIN = "model.lang_encoder.old_decoder_blocks.0.fc1.weight", SECOND + "0.decoder_layer.fc1.weight"
HEAD, NORM = "model.lang_encoder.lm_head.weight", "model.vision_encoder.transformer.resblocks.1.ln_1.weight"
TABLE = "model.vision_encoder.positional_embedding"
POSITIONS = "model.lang_encoder.model.decoder.embed_positions.weight"
MISTAKES = {
    "missing latents": (lambda s: without(s, LATENTS), {}, "lacks model.resampler.latents"),
    "missing norm": (lambda s: without(s, NORM), {}, "lacks 1 tensors, the first: .*layers.1.layernorm_before.weight"),
    "unknown": (lambda s: {**s, "model.decoder.stray": s[HEAD]}, {}, "1 tensors are not E2STR's.*model.decoder.stray"),
    "shape": (lambda s: {**s, NORM: s[NORM][:4]}, {}, r"layernorm_before.weight has the shape \(4,\).*\(48,\)"),
    "odd projection": (lambda s: {**s, KV: s[KV][:7]}, {}, r"to_kv.weight has the shape \(7, 48\), not 2 projections"),
    "scalar": (lambda s: {**s, KV: s[KV][0, 0]}, {}, r"\(\), not 2 projections"),
    "axes": (lambda s: {**s, LATENTS: s[LATENTS][0]}, {}, r"resampler.latents has the shape \(48,\), not .* 2 axes"),
    "empty": (lambda s: {**s, LATENTS: s[LATENTS][:0]}, {}, r"latents has the shape \(0, 48\)"),
    "twins differ": (lambda s: {**s, TWIN: s[TWIN] + 1}, {}, "fc1.weight differs from the same weights"),
    "head": (lambda s: {**s, HEAD: s[HEAD] + 1}, {}, "lm_head.weight differs from the token embeddings"),
    "table": (lambda s: {**s, TABLE: s[TABLE][:65]}, {}, "65 rows, but images of 32 x 128 .* call for 257"),
    "no tensors": (lambda s: {"a": "b"}, {}, "has no state_dict of tensors"),
    "nothing": (lambda s: {}, {}, "has no state_dict of tensors"),
    "heads unsaid": (lambda s: s, {"vision_config": {}}, "heads of the vision encoder cannot be told from .* 48"),
    "heads": (lambda s: s, {"vision_config": {"num_attention_heads": 5}}, "make no model: .*num_attention_heads 5"),
    "no heads": (lambda s: s, {"vision_config": {"num_attention_heads": 0}}, "num_attention_heads must be at least 1"),
    "patch": (lambda s: s, {"vision_config": {"num_attention_heads": 3, "patch_size": 0}}, "patch_size .* at least 1"),
    "activation": (
        lambda s: s,
        {"text_config": {"num_attention_heads": 4, "activation_function": "quick"}},
        "text_config has the activation 'quick', which transformers does not know",
    ),
    "not finite": (lambda s: {**s, KV: s[KV] / 0}, {}, "to_kv.weight holds NaN or infinite values"),
    "integers": (lambda s: {**s, LATENTS: s[LATENTS].long()}, {}, "latents is no plain tensor of floating point"),
    "complex": (lambda s: {**s, LATENTS: s[LATENTS] * 1j}, {}, "latents is no plain tensor of floating point"),
    "sparse": (lambda s: {**s, KV: s[KV].to_sparse()}, {}, "to_kv.weight is no plain tensor of floating point"),
    "no numbers": (lambda s: {**s, KV: s[KV].to("meta")}, {}, "to_kv.weight is no plain tensor of floating point"),
    "claimed": (
        lambda s: {**s, POSITIONS: torch.zeros(1, 32).expand(10**9, 32)},
        {},
        r"embed_positions.weight has fewer numbers than its shape \(1000000000, 32\) says",
    ),
    "image": (lambda s: s, {"vision_config": {"num_attention_heads": 3, "image_size": 32}}, "image_size must be"),
    "depth": (lambda s: s, {"resampler_config": {"num_hidden_layers": 10**9}}, "more layers than it has tensors"),
    "width": (lambda s: s, {"resampler_config": {"head_dim": 32}}, "has the shape .* call for"),
}


def refused(message, tmp_path, convert, *args, **kwargs):
    """Converting raises one line that says `message`, and leaves nothing behind."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConversionError, match=message) as error:
        convert(*args, **kwargs)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", MISTAKES)
def test_what_does_not_fit_is_named(folders, tmp_path, name):
    change, values, message = MISTAKES[name]
    torch.save({"state_dict": change(official())}, tmp_path / "wrong.pth")
    (tmp_path / "hparams.json").write_text(json.dumps({**HYPER_PARAMETERS, **values}))
    files = (tmp_path / "wrong.pth", tmp_path / "out", tmp_path / "hparams.json", folders / "tokenizer")
    refused(f"wrong.pth.*({message})", tmp_path, convert_e2str, *files)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "are a list, not a JSON object"),
        ({"num_layers": 3}, "E2STR has no hyper-parameter num_layers"),
        ({"text_config": 3}, "text_config must be a JSON object"),
        ({"vision_config": {"heads": 3}}, "E2STR has no hyper-parameter vision_config.heads"),
    ],
    ids=str,
)
@pytest.mark.parametrize("convert", [convert_e2str, convert_mae, convert_opt])
def test_hyper_parameters_that_are_none_are_named(folders, tmp_path, convert, values, message):
    (tmp_path / "hparams.json").write_text(json.dumps(values))
    given = {"hyper_parameters": tmp_path / "hparams.json"}
    refused(
        f"hparams.json.* {message}", tmp_path, convert, folders / "official.safetensors", tmp_path / "out", **given
    )


def test_another_tokenizer_is_refused(folders, tmp_path):
    own = tokenizer()
    own.add_tokens(["one more"])
    own.save_pretrained(tmp_path / "longer")
    given = folders / "official.safetensors", tmp_path / "out", folders / "hparams.json"
    counted = r"\[99, 100, 1, 2, 101\], the tokenizer .*longer as \[100, "
    refused(counted, tmp_path, convert_e2str, *given, tmp_path / "longer")
    (tmp_path / "none").mkdir()
    refused("no tokenizer can be read from .*none .*--tokenizer", tmp_path, convert_e2str, *given, tmp_path / "none")
    own.pad_token = None
    own.save_pretrained(tmp_path / "nopad")
    refused("nopad has no token for", tmp_path, convert_e2str, *given, tmp_path / "nopad")


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("convert", [convert_e2str, convert_mae])
def test_files_that_are_no_checkpoint(folders, tmp_path, convert):
    whole = (folders / "official.safetensors").read_bytes()
    torch.save(official(), tmp_path / "whole.pth")
    contents = {
        "half.safetensors": whole[: len(whole) // 2],
        "half.pth": (tmp_path / "whole.pth").read_bytes()[:100_000],
        "empty.pth": b"",
        "text.pth": b"not a checkpoint",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        refused(f"{name} is damaged or no checkpoint", tmp_path, convert, tmp_path / name, tmp_path / "out")
    refused("There is no checkpoint file .*gone", tmp_path, convert, tmp_path / "gone.pth", tmp_path / "out")
    torch.save({"state_dict": official(), "hook": Payload(tmp_path / "ran")}, tmp_path / "code.pth")
    refused("asks for posix.system, which could run code", tmp_path, convert, tmp_path / "code.pth", tmp_path / "out")
    assert not (tmp_path / "ran").exists()


WIDTH, HEADS, DEPTH = 128, 2, 2


def mae(patches=256):
    """A MAE as its authors' code names it: an encoder, and a decoder that pretraining alone needs."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator) / 10

    def linear(name, rows, columns):
        return {f"{name}.weight": random(rows, columns), f"{name}.bias": random(rows)}

    def norm(name):
        return {f"{name}.weight": 1 + random(WIDTH), f"{name}.bias": random(WIDTH)}

    tensors = {"cls_token": random(1, 1, WIDTH), "pos_embed": random(1, 1 + patches, WIDTH), **norm("norm")}
    tensors |= {"patch_embed.proj.weight": random(WIDTH, 3, 4, 4), "patch_embed.proj.bias": random(WIDTH)}
    for prefix, depth in (("blocks", DEPTH), ("decoder_blocks", 1)):
        for layer in range(depth):
            block = f"{prefix}.{layer}."
            tensors |= {**norm(block + "norm1"), **norm(block + "norm2")}
            tensors |= {**linear(block + "attn.qkv", 3 * WIDTH, WIDTH), **linear(block + "attn.proj", WIDTH, WIDTH)}
            tensors |= {**linear(block + "mlp.fc1", 4 * WIDTH, WIDTH), **linear(block + "mlp.fc2", WIDTH, 4 * WIDTH)}
    tensors |= {"mask_token": random(1, 1, WIDTH), "decoder_pos_embed": random(1, 1 + patches, WIDTH)}
    return tensors | linear("decoder_embed", WIDTH, WIDTH) | linear("decoder_pred", 48, WIDTH) | norm("decoder_norm")


def mae_tokens(tensors, pixels):
    """What a MAE's encoder computes of whole images (He et al. 2021): norms before each half, GELU, eps 1e-6."""

    def norm(name, hidden):
        return F.layer_norm(hidden, (WIDTH,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps=1e-6)

    def linear(name, hidden):
        return F.linear(hidden, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    patches = F.conv2d(pixels, tensors["patch_embed.proj.weight"], tensors["patch_embed.proj.bias"], stride=4)
    patches = patches.flatten(2).transpose(1, 2)
    hidden = torch.cat([tensors["cls_token"].expand(len(pixels), 1, WIDTH), patches], dim=1) + tensors["pos_embed"]
    for layer in range(DEPTH):
        block = f"blocks.{layer}."
        packed = linear(block + "attn.qkv", norm(block + "norm1", hidden)).unflatten(-1, (3, HEADS, 64))
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-2, -1) / 8).softmax(-1)
        hidden = hidden + linear(block + "attn.proj", (weights @ value).transpose(1, 2).flatten(2))
        inner = F.gelu(linear(block + "mlp.fc1", norm(block + "norm2", hidden)))
        hidden = hidden + linear(block + "mlp.fc2", inner)
    return norm("norm", hidden)


SMALL = {
    "resampler_config": {"num_hidden_layers": 1, "num_latents": 4},
    "text_config": {"hidden_size": 32, "num_hidden_layers": 1, "ffn_dim": 32, "num_attention_heads": 2},
}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["pretraining", "recogniser", "distributed", "safetensors"])
def test_a_mae_becomes_the_vision_encoder(tmp_path, capsys, kind):
    """Equal to an independent forward of the same weights; all else is fresh, and writes characters."""
    tensors = mae()
    path = tmp_path / ("mae.safetensors" if kind == "safetensors" else "mae.pth")
    if kind == "pretraining":
        torch.save({"model": tensors, "epoch": 19, "args": argparse.Namespace(model="mae_vit_small")}, path)
    elif kind in ("recogniser", "distributed"):
        whole = {f"backbone.{name}": tensor for name, tensor in tensors.items() if "decoder" not in name}
        whole |= {"decoder.classifier.weight": torch.zeros(3, 3), "decoder.steps": torch.tensor(7)}
        prefix = "module." if kind == "distributed" else ""
        torch.save({"state_dict": {prefix + name: tensor for name, tensor in whole.items()}}, path)
    else:
        save_file(tensors, path)
    (tmp_path / "hparams.json").write_text(json.dumps(SMALL))
    main(["mae", str(path), str(tmp_path / "out"), "--hyper-parameters", str(tmp_path / "hparams.json")])
    assert "AutoProcessor" in capsys.readouterr().out
    model, processor = AutoModel.from_pretrained(tmp_path / "out"), AutoProcessor.from_pretrained(tmp_path / "out")
    pixels = processor(images(0, 3))["pixel_values"]
    hidden = model.model.vision_model(pixels[:, 0]).last_hidden_state
    torch.testing.assert_close(hidden, mae_tokens(tensors, pixels[:, 0]), atol=1e-5, rtol=1e-5)
    vision = model.config.vision_config
    assert (vision.num_attention_heads, vision.layer_norm_eps) == (HEADS, 1e-6) and processor.image_token == "<image>"
    assert len(processor.decode_readings(model.generate(pixels, max_new_tokens=3))) == 2


@torch.no_grad()
def test_a_mae_in_an_existing_model(tmp_path):
    """`--into` changes the vision encoder and nothing else, and needs its width."""
    torch.save({"model": mae()}, tmp_path / "mae.pth")
    (tmp_path / "hparams.json").write_text(json.dumps(SMALL))
    convert_mae(tmp_path / "mae.pth", tmp_path / "first", hyper_parameters=tmp_path / "hparams.json")
    other = {name: tensor + 0.1 for name, tensor in mae().items() if name != "cls_token"}
    torch.save({"model": other}, tmp_path / "other.pth")
    convert_mae(tmp_path / "other.pth", tmp_path / "second", into=tmp_path / "first")
    first, second = (AutoModel.from_pretrained(tmp_path / name).state_dict() for name in ("first", "second"))
    changed = {name for name, tensor in first.items() if not torch.equal(tensor, second[name])}
    vision = {name for name in first if name.startswith("model.vision_model.")}
    # Without a class token of its own it keeps the one that was there.
    assert changed == vision - {"model.vision_model.embeddings.cls_token"}

    wide = {**mae(), "norm.weight": torch.ones(WIDTH + 64)}
    torch.save({"model": wide}, tmp_path / "wide.pth")
    torch.save({"model": mae(patches=64)}, tmp_path / "table.pth")
    out, first = tmp_path / "out", tmp_path / "first"
    message = r"wide.pth: layernorm.weight has the shape \(192,\)"
    refused(message, tmp_path, convert_mae, tmp_path / "wide.pth", out, first)
    message = r"position_embeddings has the shape \(1, 65, "
    refused(message, tmp_path, convert_mae, tmp_path / "table.pth", out, first)
    message = "table has 65 rows, but images of 32 x 128"
    refused(message, tmp_path, convert_mae, tmp_path / "table.pth", out)
    refused("first has its own", tmp_path, convert_mae, tmp_path / "mae.pth", out, first, tmp_path / "hparams.json")


MAE_MISTAKES = {
    "missing": (lambda s: without(s, "blocks.1.norm2.bias"), "lacks 1 tensors.*layers.1.layernorm_after.bias"),
    "no table": (lambda s: without(s, "pos_embed"), "lacks embeddings.position_embeddings"),
    "unknown": (lambda s: {**s, "blocks.1.gamma_1": s["norm.bias"]}, "are not a ViT's.*blocks.1.gamma_1"),
    "not finite": (lambda s: {**s, "norm.bias": s["norm.bias"] / 0}, "norm.bias holds NaN or infinite values"),
    "packed": (lambda s: {**s, "blocks.0.attn.qkv.bias": s["norm.bias"][:5]}, r"qkv.bias has the shape \(5,\)"),
    "another model": (lambda s: official(), "are not a ViT's.*lang_encoder"),
}


@pytest.mark.parametrize("name", MAE_MISTAKES)
def test_what_is_no_mae_is_named(tmp_path, name):
    change, message = MAE_MISTAKES[name]
    torch.save({"model": change(mae())}, tmp_path / "wrong.pth")
    (tmp_path / "hparams.json").write_text(json.dumps(SMALL))
    options = {"hyper_parameters": tmp_path / "hparams.json"}
    refused(f"wrong.pth.*{message}", tmp_path, convert_mae, tmp_path / "wrong.pth", tmp_path / "out", **options)


@torch.no_grad()
@pytest.mark.parametrize("way", ["new", "into"])
def test_an_untrained_e2str_writes_what_its_opt_writes(folders, tmp_path, way):
    """The gates are closed: the logits are those of OPT, to the bit, whatever the images show."""
    if way == "into":
        main(["opt", str(folders / "opt"), str(tmp_path / "out"), "--into", str(folders / "e2str")])
    else:
        sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 32}
        values = {"vision_config": {**sizes, "image_size": [32, 128], "patch_size": 8}}
        (tmp_path / "hparams.json").write_text(json.dumps(values))
        convert_opt(folders / "opt", tmp_path / "out", hyper_parameters=tmp_path / "hparams.json")
    model, processor = AutoModel.from_pretrained(tmp_path / "out"), AutoProcessor.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.float32 and model.config.text_config.vocab_size == len(processor.tokenizer) == 101
    opt = OPTForCausalLM.from_pretrained(folders / "opt", dtype=torch.float32)
    opt.resize_token_embeddings(101)
    batch = processor([images(0, 1), images(2, 3)], [META["words"][0:2], META["words"][2:4]])
    expected = opt(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    mask = batch["attention_mask"].bool()
    assert torch.equal(model(**batch).logits[mask], expected[mask])
    noise = {**batch, "pixel_values": torch.randn_like(batch["pixel_values"])}
    assert torch.equal(model(**noise).logits, model(**batch).logits)
    model.model.text_model.layers[0].cross_attention.attention_gate.fill_(1)
    assert not torch.allclose(model(**noise).logits, model(**batch).logits)
    if way == "into":
        base = AutoModel.from_pretrained(folders / "e2str").state_dict()
        kept = {name for name in base if name.startswith(("model.vision_model.", "model.resampler."))}
        assert all(torch.equal(model.state_dict()[name], base[name]) for name in kept) and len(kept) > 100


def test_the_files_of_opt_on_the_hub(tmp_path):
    """As facebook/opt-125m has them: bytes in pairs, half precision in a file of torch.save, spare embeddings."""
    folder = tmp_path / "opt"
    folder.mkdir()
    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special, alphabet = ["<s>", "<pad>", "</s>", "<unk>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, special_tokens=special, initial_alphabet=alphabet)
    pairs.train_from_iterator(["Shop hello Shop hello"] * 3, trainer)
    pairs.model.save(str(folder))
    size = pairs.get_vocab_size()
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "pad_token": "<pad>"}
    settings |= {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "ffn_dim": 32, "num_attention_heads": 2}
    opt = OPTForCausalLM(OPTConfig(**sizes, vocab_size=size + 7, word_embed_proj_dim=32, max_position_embeddings=64))
    opt.config.save_pretrained(folder)
    torch.save({name: tensor.half() for name, tensor in opt.state_dict().items()}, folder / "pytorch_model.bin")

    small = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 32}
    values = {"vision_config": {**small, "image_size": [32, 128], "patch_size": 8}}
    (tmp_path / "hparams.json").write_text(json.dumps(values))
    convert_opt(folder, tmp_path / "out", hyper_parameters=tmp_path / "hparams.json")
    model, processor = AutoModel.from_pretrained(tmp_path / "out"), AutoProcessor.from_pretrained(tmp_path / "out")
    spare = opt.model.decoder.embed_tokens.weight[size : size + 2].half().float()
    assert torch.equal(model.get_input_embeddings().weight[size:], spare)
    for text in ("Shop", "hello Shop", "né</s><image>", " x "):
        ids = processor.prompt_ids([text])
        assert ids[0] == 2 and ids[-2:].tolist() == [size, size + 1] and 2 not in ids[1:]
        assert processor.decode_readings(ids[None, :-1]) == [text]
    batch = processor([images(0, 1)], [["Shop", "hello"]])
    assert torch.isfinite(model(**batch).loss)


def test_a_tokenizer_as_long_as_the_embeddings(folders, tmp_path):
    """Without spare rows the two tokens get new ones."""
    shutil.copytree(folders / "opt", tmp_path / "opt")
    own = tokenizer()
    own.add_tokens([f"token{number}" for number in range(5)])
    own.save_pretrained(tmp_path / "opt")
    convert_opt(tmp_path / "opt", tmp_path / "out", into=folders / "e2str")
    config = AutoModel.from_pretrained(tmp_path / "out").config
    assert (config.text_config.vocab_size, config.end_of_chunk_token_id, config.image_token_id) == (106, 104, 105)


def test_what_is_no_opt_is_named(folders, tmp_path):
    out = tmp_path / "out"
    refused("gone is damaged, or no folder or Hub id of an OPT", tmp_path, convert_opt, tmp_path / "gone", out)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=10, **sizes)).save_pretrained(tmp_path / "bert")
    refused("no folder or Hub id of an OPT .its model_type is bert", tmp_path, convert_opt, tmp_path / "bert", out)
    shutil.copytree(folders / "opt", tmp_path / "half")
    weights = tmp_path / "half" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused("half is damaged, or", tmp_path, convert_opt, tmp_path / "half", out)
    shutil.copytree(folders / "opt", tmp_path / "wide")
    config = json.loads((tmp_path / "wide" / "config.json").read_text())
    (tmp_path / "wide" / "config.json").write_text(json.dumps({**config, "ffn_dim": 73}))
    refused(
        r"wide: model.decoder.layers.0.fc1.bias has the shape \(72,\); its configuration calls for \(73,\)",
        tmp_path,
        convert_opt,
        tmp_path / "wide",
        out,
    )
    shutil.copytree(folders / "opt", tmp_path / "deep")
    (tmp_path / "deep" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    refused("deep lacks 16 tensors, the first: model.decoder.layers.2", tmp_path, convert_opt, tmp_path / "deep", out)
    shutil.copytree(folders / "opt", tmp_path / "code")
    (tmp_path / "code" / "model.safetensors").unlink()
    torch.save({"a": Payload(tmp_path / "ran")}, tmp_path / "code" / "pytorch_model.bin")
    refused("code is damaged.*a pickle that could run code", tmp_path, convert_opt, tmp_path / "code", out)
    assert not (tmp_path / "ran").exists()
    for name, message in (("gone", "no model folder"), ("opt", "no folder of E2STR .*model_type is opt")):
        refused(f"{name} is .*{message}", tmp_path, convert_opt, folders / "opt", out, into=folders / name)
    (tmp_path / "hparams.json").write_text('{"text_config": {}}')
    given = folders / "opt", out, None, tmp_path / "hparams.json"
    refused("text_config, but the decoder is", tmp_path, convert_opt, *given)


def test_options_belong_to_methods(folders, tmp_path, capsys):
    for method, option in (("opt", "--tokenizer"), ("e2str", "--into"), ("comer", "--into"), ("mae", "--dictionary")):
        with pytest.raises(SystemExit) as end:
            main([method, "checkpoint", str(tmp_path / "out"), option, "value"])
        assert end.value.code == 2
        assert re.search(f"{option} belongs to .*, not to {method}", capsys.readouterr().err)
    with pytest.raises(SystemExit, match="convert: .*e2str exists already"):
        main(["opt", str(folders / "opt"), str(folders / "e2str")])
