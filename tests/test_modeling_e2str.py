"""E2STR's model: what a position sees, what is encoded, how it starts, and what it refuses."""

import logging

import pytest
import torch
from model_specs import E2STR, SPECS, with_part
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, BertConfig, ViTConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from epigraph.models.configuration_e2str import E2STRConfig
from epigraph.models.modeling_e2str import E2STRForTextRecognition, E2STRLatentAttention, E2STRMedia

PAD, BOS, EOC, IMAGE = range(4)
A, B, C = 10, 20, 30  # some characters
PARTS = {"ViTAttention": "vision_config", "OPTAttention": "text_config"}


def tiny(**changes):
    return SPECS["e2str"].build(**changes)


def pictures(*shape, seed=0):
    return torch.randn(*shape, 3, 16, 32, generator=torch.Generator().manual_seed(seed))


def left_padded(*prompts):
    ids = [torch.tensor(prompt) for prompt in prompts]
    ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_side="left")
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


@pytest.fixture
def encoded(monkeypatch):
    """How many images each call of a model's vision encoder got."""
    from transformers import ViTModel

    counts, forward = [], ViTModel.forward

    def counting(self, pixel_values, *args, **kwargs):
        counts.append(len(pixel_values))
        return forward(self, pixel_values, *args, **kwargs)

    monkeypatch.setattr(ViTModel, "forward", counting)
    return counts


# ----------------------------------------------------------------------------------------------- configuration


def test_the_official_model_has_its_published_number_of_parameters():
    with torch.device("meta"):
        model = E2STRForTextRecognition(E2STRConfig.official())
    body = model.model
    parts = {
        "vision": sum(p.numel() for p in body.vision_model.parameters()),
        "resampler": sum(p.numel() for p in body.resampler.parameters()),
        "cross": sum(p.numel() for layer in body.text_model.layers for p in layer.cross_attention.parameters()),
    }
    parts["decoder"] = sum(p.numel() for p in model.parameters()) - sum(parts.values())
    millions = {name: round(count / 1e6, 2) for name, count in parts.items()}
    # 324.28 with the 0.39 of a projection that is in the published vision encoder and is never used.
    assert millions == {"vision": 85.29, "resampler": 37.83, "cross": 75.53, "decoder": 125.24}


@pytest.mark.parametrize(
    "config", [E2STRConfig(), E2STRConfig.official(), E2STRConfig(**E2STR)], ids=["", "B", "tiny"]
)
def test_parts_survive_saving_whatever_is_default_where(config, tmp_path):
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    for part, kind in E2STRConfig.sub_configs.items():
        assert type(getattr(loaded, part)) is kind
        assert getattr(loaded, part).to_dict() == getattr(config, part).to_dict()
    assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()


def test_parts_are_given_as_they_are_or_in_part():
    config = E2STRConfig(vision_config=ViTConfig(image_size=[32, 64], patch_size=8), text_config={"vocab_size": 40})
    assert config.vision_config.image_size == [32, 64] and config.vision_config.hidden_size == 768
    assert config.text_config.vocab_size == 40 and config.text_config.hidden_size == 384
    assert config.resampler_config.num_latents == 64
    assert config.get_text_config() is config.text_config
    for part, wrong in (("text_config", BertConfig()), ("text_config", {"model_type": "bert"})):
        with pytest.raises(ValueError, match="text_config must be of the type 'opt', not 'bert'"):
            E2STRConfig(**{part: wrong})
    with pytest.raises(ValueError, match="resampler_config must be of the type 'e2str_resampler', not 'vit'"):
        E2STRConfig(resampler_config=ViTConfig())


# ------------------------------------------------------------------------------------------ how a model starts


def test_gates_start_closed_and_latents_as_the_source_has_them():
    torch.manual_seed(0)
    model = E2STRForTextRecognition(E2STRConfig(**{**E2STR, **with_part("resampler_config", num_latents=64)}))
    gates = [p for name, p in model.named_parameters() if name.endswith("_gate")]
    assert len(gates) == 4 and not any(gate.any() for gate in gates)
    assert 0.95 < model.model.resampler.latents.std() < 1.05
    for module in model.modules():
        if isinstance(module, E2STRLatentAttention):
            for linear in (module.q_proj, module.k_proj, module.v_proj, module.o_proj):
                bound = linear.in_features**-0.5  # as torch starts linear layers
                assert 0.95 * bound < linear.weight.abs().max() <= bound
    batch = left_padded([BOS, IMAGE, A, EOC])
    with torch.no_grad():
        one, other = (model(pictures(1, 1, seed=seed), **batch).logits for seed in (0, 1))
    assert torch.equal(one, other)


def test_new_weights_replace_the_old_ones_only_where_they_are_missing(tmp_path):
    model = tiny()
    weights = {name: p for name, p in model.state_dict().items() if not name.endswith("attention_gate")}
    model.save_pretrained(tmp_path, state_dict=weights)
    loaded, info = E2STRForTextRecognition.from_pretrained(tmp_path, output_loading_info=True)
    assert len(info["missing_keys"]) == 2
    for name, parameter in loaded.named_parameters():
        expected = model.get_parameter(name)
        assert torch.equal(parameter, torch.zeros(1) if name in info["missing_keys"] else expected)


# ----------------------------------------------------------------------------------------- what a position sees


def test_each_position_sees_the_image_before_it_and_no_other():
    """Against the published form: scores of all images' latents, under a mask that leaves one image."""
    torch.manual_seed(0)
    attention = tiny().model.text_model.layers[0].cross_attention.attention
    latents = torch.randn(4, 3, 4, 32)
    ids = torch.randint(4, 90, (4, 12))
    for row, places in enumerate(((0, 5, 6), (3, 11), (), (2,))):
        ids[row, list(places)] = IMAGE
    image_tokens = ids == IMAGE
    query = torch.randn(4, 12, 32)
    with torch.no_grad():
        found = E2STRMedia(latents, image_tokens).attend(attention, query)
        key, value = attention.keys_values(latents.flatten(1, 2))
        scores = attention.split(query) @ key.transpose(-1, -2) * attention.scaling
        seen = image_tokens.cumsum(1)[..., None] == torch.arange(1, 4).repeat_interleave(4)
        weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1).nan_to_num(0)
        expected = (weights @ value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert not found[2].any() and not found[1, :3].any() and found[1, 3:].all()


def test_text_before_the_first_image_depends_on_none():
    model = tiny()
    batch = left_padded([BOS, A, B, IMAGE, C, EOC, IMAGE, A])
    images = pictures(1, 2), torch.cat([pictures(1, 1), pictures(1, 1, seed=7)], dim=1), pictures(1, 2, seed=8)
    with torch.no_grad():
        first, second, third = (model(image, **batch).logits[0] for image in images)
    assert torch.equal(first[:3], third[:3]) and not torch.isclose(first[3:], third[3:]).all(-1).any()
    # The second image matters from its own place on.
    torch.testing.assert_close(first[:6], second[:6])
    assert not torch.isclose(first[6:], second[6:]).all(-1).any()


def test_a_prompt_may_have_no_image():
    model = tiny()
    batch = left_padded([BOS, A, B], [BOS, IMAGE, A])
    with torch.no_grad():
        both = model(pictures(2, 1), **batch).logits
        for given in ({"latents": torch.zeros(1, 0, 4, 32)}, {"pixel_values": pictures(1, 2)}):
            alone = model(**given, input_ids=batch["input_ids"][:1]).logits
            torch.testing.assert_close(both[:1], alone, atol=1e-5, rtol=1e-4)


# ----------------------------------------------------------------------------------------------- what is encoded


def test_latents_stand_for_images_and_examples_come_first():
    model = tiny()
    images = pictures(2, 3)
    batch = left_padded([BOS, IMAGE, A, EOC, IMAGE, B, EOC, IMAGE, C], [BOS, IMAGE, B, EOC, IMAGE, C, EOC, IMAGE, A])
    with torch.no_grad():
        expected = model(images, **batch)
        keys, latents = model.encode(images.flatten(0, 1))
        latents = latents.unflatten(0, (2, 3))
        for given in (
            {"latents": latents},
            {"context_latents": latents[:, :2], "pixel_values": images[:, 2:]},
            {"context_latents": latents[:, :1], "latents": latents[:, 1:]},
            {"context_latents": latents},
        ):
            torch.testing.assert_close(model(**given, **batch).logits, expected.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(expected.latents, latents, atol=1e-5, rtol=1e-4)
    assert keys.dtype == torch.float32 and keys.shape == (6, 32)
    torch.testing.assert_close(keys.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(keys, torch.nn.functional.normalize(latents.mean(2), dim=-1).flatten(0, 1))


def test_prompts_with_fewer_examples_lack_the_last_of_them(encoded):
    """`context_latents` are filled up at their end, and the image to read still comes behind the examples."""
    model = tiny()
    images, latents = pictures(3, 1), torch.randn(3, 2, 4, 32)
    prompts = [BOS, IMAGE, A, EOC, IMAGE, B, EOC, IMAGE], [BOS, IMAGE, C, EOC, IMAGE], [BOS, IMAGE]
    with torch.no_grad():
        together = model(images, **left_padded(*prompts), context_latents=latents).logits[:, -1]
        for row, prompt in enumerate(prompts):
            examples = latents[row : row + 1, : 2 - row]
            alone = model(images[row : row + 1], **left_padded(prompt), context_latents=examples).logits[0, -1]
            torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-4)
    assert encoded == [3, 1, 1, 1]


def test_images_that_fill_up_a_batch_are_not_encoded(encoded):
    model = tiny().train()
    batch = left_padded([BOS, IMAGE, A, EOC, IMAGE, B, EOC], [BOS, IMAGE, C, EOC])
    images = pictures(2, 2)
    images[1, 1] = torch.inf
    output = model(images, **batch, labels=batch["input_ids"])
    output.loss.backward()
    assert encoded == [3]
    assert output.latents.shape == (2, 2, 4, 32) and not output.latents[1, 1].any()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing


def test_calls_leave_nothing_behind():
    model = tiny()
    one, other = left_padded([BOS, IMAGE, A, EOC, IMAGE]), left_padded([BOS, IMAGE, B], [BOS, A, IMAGE])
    state = {name: id(value) for name, value in vars(model).items()}
    with torch.no_grad():
        first = model(pictures(1, 2), **one).logits
        model(pictures(2, 1), **other, use_cache=True)
        model.generate(pictures(2, 1), num_beams=2, max_new_tokens=3)
        assert torch.equal(model(pictures(1, 2), **one).logits, first)
    assert {name: id(value) for name, value in vars(model).items()} == state


# ------------------------------------------------------------------------------------------------------ attention


@pytest.fixture
def recorded():
    """An attention of transformers under another name, and who called it."""
    called = []

    def recording(module, *args, **kwargs):
        called.append(module)
        return sdpa_attention_forward(module, *args, **kwargs)

    AttentionInterface.register("recorded", recording)
    AttentionMaskInterface.register("recorded", sdpa_mask)
    return called


def part_of(model, module):
    name = type(module).__name__
    if name in PARTS:
        return PARTS[name]
    in_resampler = any(module is other for other in model.model.resampler.modules())
    return "resampler_config" if in_resampler else "cross-attention"


@pytest.mark.parametrize("how", ["from_pretrained", "set_attn_implementation"])
@pytest.mark.parametrize(
    "choice", ["recorded", *({part: "recorded"} for part in E2STRConfig.sub_configs)], ids=lambda choice: str(choice)
)
def test_attention_is_chosen_for_every_part_or_for_one(how, choice, recorded, tmp_path, caplog):
    """Cross-attention is a part of the decoder. Nothing is warned of."""
    logging.getLogger("transformers").propagate = True
    try:
        if how == "from_pretrained":
            tiny().save_pretrained(tmp_path)
            model = E2STRForTextRecognition.from_pretrained(tmp_path, attn_implementation=choice)
        else:
            model = tiny()
            model.set_attn_implementation(choice)
    finally:
        logging.getLogger("transformers").propagate = False
    assert not [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    with torch.no_grad():
        model.generate(pictures(1, 1), max_new_tokens=2)
    wanted = set(E2STRConfig.sub_configs) if choice == "recorded" else set(choice)
    wanted |= {"cross-attention"} if "text_config" in wanted else set()
    assert {part_of(model, module) for module in recorded} == wanted
    for part in E2STRConfig.sub_configs:
        assert (getattr(model.config, part)._attn_implementation == "recorded") == (part in wanted)


@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention", "fast"])
def test_attention_that_was_not_tried_is_refused(name):
    with pytest.raises((ValueError, ImportError), match=f"(?i){name.split('_')[0]}"):
        E2STRForTextRecognition(E2STRConfig(**E2STR, attn_implementation=name))


def test_attentions_and_hidden_states_are_the_decoders():
    model = tiny()
    model.set_attn_implementation("eager")
    batch = left_padded([BOS, IMAGE, A, EOC])
    with torch.no_grad():
        output = model(pictures(1, 1), **batch, output_hidden_states=True, output_attentions=True)
        as_tuple = model(pictures(1, 1), **batch, return_dict=False)
    assert [state.shape for state in output.hidden_states] == [(1, 4, 24)] * 3
    assert [weights.shape for weights in output.attentions] == [(1, 2, 4, 4)] * 2
    torch.testing.assert_close(model.lm_head(output.hidden_states[-1]), output.logits)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], output.logits)


# -------------------------------------------------------------------------------------------- forms of the decoder


@pytest.mark.parametrize(
    "changes",
    [
        with_part("text_config", word_embed_proj_dim=16),
        with_part("text_config", do_layer_norm_before=False),
        with_part("text_config", _remove_final_layer_norm=True, enable_bias=False),
        {"vision_post_layernorm": False},
        {"tie_word_embeddings": False},
    ],
    ids=lambda changes: str(changes)[-60:],
)
def test_every_form_of_opt_is_trained_saved_and_read_with(changes, tmp_path):
    model = tiny(**changes)
    batch = left_padded([BOS, IMAGE, A, EOC, IMAGE, B, EOC], [BOS, IMAGE, C, EOC])
    model.train()(pictures(2, 2), **batch, labels=batch["input_ids"]).loss.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    model.eval().save_pretrained(tmp_path)
    loaded, info = E2STRForTextRecognition.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        found, expected = (each(pictures(2, 2), **batch).logits for each in (loaded, model))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    same = [each.generate(pictures(1, 1), num_beams=2, max_new_tokens=3) for each in (loaded, model)]
    assert torch.equal(*same)


def test_opt_itself_reads_a_prompt_without_images_alike():
    """The decoder is OPT's, weights by name: behind closed gates nothing differs."""
    from transformers import OPTModel

    model = tiny()
    for name, gate in model.named_parameters():
        if name.endswith("_gate"):
            gate.data.zero_()
    opt = OPTModel(model.config.text_config).eval()
    found = opt.decoder.load_state_dict(model.model.text_model.state_dict(), strict=False)
    assert not found.missing_keys and all("cross_attention" in name for name in found.unexpected_keys)
    batch = left_padded([BOS, IMAGE, A, B, EOC], [BOS, IMAGE, C])
    with torch.no_grad():
        expected = opt(**batch).last_hidden_state
        found = model.model(pictures(2, 1), **batch).last_hidden_state
    mask = batch["attention_mask"].bool()
    torch.testing.assert_close(found[mask], expected[mask], atol=1e-5, rtol=1e-4)


def test_compiles_to_one_graph():
    model = tiny()
    batch = left_padded([BOS, IMAGE, A, EOC, IMAGE, B, EOC], [BOS, IMAGE, C, EOC])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        expected, found = (each(pictures(2, 2), **batch, labels=batch["input_ids"]) for each in (model, compiled))
    torch.testing.assert_close(found.loss, expected.loss)
    mask = batch["attention_mask"].bool()
    torch.testing.assert_close(found.logits[mask], expected.logits[mask], atol=1e-5, rtol=1e-4)


def test_new_tokens_keep_the_image_token():
    model = tiny()
    model.resize_token_embeddings(120, mean_resizing=False)
    assert model.config.text_config.vocab_size == 120 == model.lm_head.out_features
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.generate(pictures(1, 1), max_new_tokens=2)[0, 1] == IMAGE


# ------------------------------------------------------------------------------------------------ what is refused


def wrong(**changes):
    batch = left_padded([BOS, IMAGE, A, EOC, IMAGE], [BOS, IMAGE])
    return {**batch, "pixel_values": pictures(2, 2), **changes}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (wrong(pixel_values=pictures(2, 1)), "prompt 0 stands for 2 images, but 1 were given"),
        (wrong(pixel_values=pictures(3, 2)), "2 prompts were given, but the images of 3"),
        (
            wrong(pixel_values=pictures(2)),
            r"must be \(batch, images, channels, height, width\), not \(2, 3",
        ),
        (wrong(pixel_values=None), "Give pixel_values or latents of the images"),
        (wrong(input_ids=None), "Give input_ids"),
        (wrong(attention_mask=torch.ones(2, 4)), r"attention_mask must be \(batch, length\) \(2, 5\), not \(2, 4\)"),
        (wrong(latents=torch.zeros(2, 2, 4, 32)), "two forms of the same images"),
        (
            wrong(pixel_values=None, latents=torch.zeros(2, 2, 5, 32)),
            r"latents must be \(batch, images, 4, 32\)",
        ),
        (wrong(context_latents=torch.zeros(2, 4, 32)), r"context_latents must be \(batch, images, 4, 32\), not"),
        (wrong(context_latents=torch.zeros(1, 1, 4, 32)), "2 prompts were given, but the images of 1"),
        (
            wrong(pixel_values=pictures(2, 2).index_fill(1, torch.tensor(1), torch.nan)),
            "prompt 0, image 1 hold NaN",
        ),
        (wrong(pixel_values=torch.randn(2, 2, 3, 20, 32)), "(?i)image size"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        tiny()(**inputs)


def test_the_image_that_is_not_finite_is_named():
    model, images = tiny(), pictures(3, 1)
    images[1, 0, 0, 3, 3] = torch.nan
    batch = left_padded([BOS, IMAGE], [BOS, IMAGE], [BOS, IMAGE])
    for call in (lambda: model(images, **batch), lambda: model.generate(images)):
        with pytest.raises(ValueError, match="prompt 1, image 0 hold NaN or infinite values"):
            call()
    with pytest.raises(ValueError, match="pixel_values of image 1 hold NaN or infinite values"):
        model.encode(images[:, 0])


def test_a_prompt_longer_than_the_decoder_is_refused_before_an_image_is_encoded(encoded):
    model = tiny()
    prompt = torch.tensor([[BOS, IMAGE] + [A] * 63])
    with pytest.raises(ValueError, match="a prompt of 65 tokens is longer than the 64 positions of the decoder; show"):
        model(pictures(1, 1), prompt)
    with pytest.raises(ValueError, match="a prompt of 65 tokens is longer"):
        model(pictures(1, 1), prompt, torch.ones_like(prompt))
    assert not encoded
    # Padding takes no position.
    padded = torch.cat([torch.zeros(1, 9, dtype=torch.long), prompt[:, :64]], dim=1)
    with torch.no_grad():
        found = model(pictures(1, 1), padded, (padded != PAD).long()).logits[:, 9:]
        torch.testing.assert_close(found, model(pictures(1, 1), prompt[:, :64]).logits, atol=1e-5, rtol=1e-4)


def test_text_behind_a_cache_needs_its_image():
    model = tiny()
    with torch.no_grad():
        cache = model(pictures(1, 1), torch.tensor([[BOS, IMAGE, A]]), use_cache=True).past_key_values
        with pytest.raises(ValueError, match="must begin with an image, or come with last_image"):
            model(pictures(1, 1), torch.tensor([[B]]), past_key_values=cache)


def test_a_prompt_goes_on_behind_a_cache():
    model, images = tiny(), pictures(1, 2)
    start, end = [BOS, IMAGE, A, EOC], [IMAGE, B, EOC]
    with torch.no_grad():
        cache = model(images[:, :1], torch.tensor([start]), use_cache=True).past_key_values
        found = model(images[:, 1:], torch.tensor([end]), past_key_values=cache).logits
        expected = model(images, torch.tensor([start + end])).logits[:, 4:]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_gates_start_where_they_are_wanted():
    layers = E2STRForTextRecognition(E2STRConfig(**E2STR, gate_init=0.5)).model.text_model.layers
    gates = [(layer.cross_attention.attention_gate, layer.cross_attention.feed_forward_gate) for layer in layers]
    assert [[gate.item() for gate in pair] for pair in gates] == [[0.5, 0.5]] * 2
