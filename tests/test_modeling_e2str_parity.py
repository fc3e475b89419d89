"""E2STR against tensors recorded from the published code: every step, the losses, gradients, generation, retrieval."""

import filecmp
import json

import pytest
import torch
from e2str_goldens import (
    CASES,
    FIXTURES,
    META,
    WHERE,
    build,
    golden,
    gradients,
    images,
    official,
    originals,
    prepared,
    processor,
    stage2_originals,
)
from e2str_goldens import stage2 as stage2_pairs
from transformers.models.opt import modeling_opt

from epigraph.context_pool import ContextPool
from epigraph.models.modeling_e2str import E2STRMedia

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
INPUTS = {"vision_x", "input_ids", "attention_mask"}
TARGETS = {"labels", "labels_bos_masked"}
STEPS = {
    "vision_tokens": "model.vision_model",
    "vision_pooled": "model.vision_model",
    "perceiver_out": "model.resampler",
    "xattn0_out": "model.text_model.layers.0.cross_attention",
    "lm_block0_out": "model.text_model.layers.0",
    "xattn1_out": "model.text_model.layers.1.cross_attention",
    "lm_block1_out": "model.text_model.layers.1",
}
RESULTS = {"logits", "loss", "loss_bos_masked"}
MASKS = {"text_time", "text_to_image_mask"}
ICL = {"pool_features", "query_feature", "similarity", "selected"}
GENERATED = {"beam3_ids", "greedy_ids", "greedy_step_logits", "no_context_greedy_ids"}
GRADIENTS = "incontext_3_grads_vit_trainable"
ATTENTION = ["eager", "sdpa"]


@pytest.fixture(params=WHERE)
def where(request):
    return request.param


@pytest.fixture(params=ATTENTION)
def attention(request):
    return request.param


def inputs(case, where):
    """What the model is given: pixel_values of the recorded images, ids and mask."""
    tensors = golden(case, where)
    pixels = tensors["vision_x"][:, :, 0] if "vision_x" in tensors else prepared(case)["pixel_values"]
    return {
        "pixel_values": pixels,
        "input_ids": tensors["input_ids"],
        "attention_mask": tensors["attention_mask"],
    }


@pytest.mark.goldens
def test_fixtures_are_the_goldens(goldens_dir):
    for file in FIXTURES.glob("*.safetensors"):
        if file.stem == "pixels":  # test_preprocessing compares it
            continue
        recorded = golden(file.stem, "recorded")
        for name, value in golden(file.stem).items():
            assert torch.equal(value, recorded[name]), f"{file.stem}: {name}"
    assert official().keys() == official("recorded").keys()
    assert all(torch.equal(value, official("recorded")[name]) for name, value in official().items())
    for name in META["images"]:
        assert filecmp.cmp(FIXTURES / "images" / name, goldens_dir / "e2str" / "images" / name, shallow=False)
    recorded = json.loads((goldens_dir / "e2str" / "meta.json").read_text())
    assert {name: value for name, value in META.items() if name != "stage2_crops"} == recorded


@pytest.mark.goldens
def test_every_recorded_tensor_is_compared(goldens_dir):
    """The tests below go by these names."""
    expected = {
        **{case: INPUTS | TARGETS | set(STEPS) | RESULTS | MASKS for case in CASES},
        "stage2_sequence": INPUTS | TARGETS | RESULTS,
        "icl_generate": INPUTS | ICL | GENERATED,
        "preprocess": {"pixel_values"},
        "state_dict": {f"state_dict.{name}" for name in official()},
        GRADIENTS: set(),
    }
    assert {file.stem for file in (goldens_dir / "e2str").glob("*.safetensors")} == expected.keys()
    for name, names in expected.items():
        assert {key for key in golden(name, "recorded") if not key.startswith("grad.")} == names, name


@pytest.mark.goldens
@pytest.mark.parametrize("case", [*CASES, "stage2_sequence", "preprocess"])
def test_preprocessing(case, goldens_dir):
    """Single images, prompts of several, and the parts of words of stage 2, as tensors; resized by the fixtures."""
    tensors = golden(case, "recorded")
    if case == "preprocess":
        pixels = processor().image_processor(images(*range(8)), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(pixels, tensors["pixel_values"], atol=1e-6, rtol=0)
    else:
        pixels = prepared(case)["pixel_values"]
        torch.testing.assert_close(pixels, tensors["vision_x"][:, :, 0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("words", [True, False])
def test_resizing(words):
    """Of the recorded pictures, and of the parts that stage 2 cuts out of them, to a grey level."""
    given, recorded = (originals(*range(8)), images(*range(8))) if words else (stage2_originals(), stage2_pairs()[0])
    prepare = processor().image_processor
    found, expected = (prepare(pictures, return_tensors="pt")["pixel_values"] for pictures in (given, recorded))
    assert (found - expected).abs().max() < 1.01 / 255 / min(prepare.image_std)
    assert (found - expected).abs().mean() < 2e-3


@pytest.mark.parametrize("case", [*CASES, "stage2_sequence"])
def test_prompts_and_labels(case, where):
    """Ids, mask and labels; the official labels, which keep the begin of a sequence, behind their flag."""
    tensors, batch = golden(case, where), prepared(case)
    assert torch.equal(batch["input_ids"], tensors["input_ids"])
    assert torch.equal(batch["attention_mask"], tensors["attention_mask"])
    assert torch.equal(batch["labels"], tensors["labels_bos_masked"])
    assert torch.equal(prepared(case, official_labels=True)["labels"], tensors["labels"])
    assert not torch.equal(tensors["labels"], tensors["labels_bos_masked"])
    if case == "stage2_sequence":
        text = "".join(f"<image>{text}<|endofchunk|>" for text in stage2_pairs()[1])
        assert "</s>" + text == META["stage2_text"] and len(stage2_pairs()[0]) == 18


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_steps(case, where, attention):
    """Vision tokens, latents, and what each cross-attention and each layer of the decoder gives."""
    tensors, model, seen = golden(case, where), build(where, attention), {}
    for step, path in STEPS.items():
        model.get_submodule(path).register_forward_hook(lambda m, i, out, step=step: seen.update({step: out}))
    given = inputs(case, where)
    output = model(**given)
    hidden = seen["vision_tokens"].last_hidden_state
    seen["vision_tokens"] = hidden[:, 1:]
    seen["vision_pooled"] = hidden[:, 0] @ official(where)["model.vision_encoder.proj"]
    seen["perceiver_out"] = seen["perceiver_out"].view_as(output.latents)
    seen["logits"] = output.logits
    mask = given["attention_mask"].bool()
    compared = 0
    for step, value in seen.items():
        if step in tensors:
            compared += 1
            expected = tensors[step]
            # What stands at padding is read by nobody; only eager attention repeats it.
            if attention == "sdpa" and step not in ("vision_tokens", "vision_pooled", "perceiver_out"):
                value, expected = value[mask], expected[mask]
            torch.testing.assert_close(value, expected, **CLOSE, msg=lambda text, step=step: f"{step}: {text}")
    assert compared >= 5


@torch.no_grad()
@pytest.mark.parametrize("case", [*CASES, "stage2_sequence"])
def test_logits_and_losses(case, where, attention):
    tensors, model = golden(case, where), build(where, attention)
    given = inputs(case, where)
    output = model(**given, labels=prepared(case)["labels"])
    mask = given["attention_mask"].bool()
    compared = mask if attention == "sdpa" else torch.ones_like(mask)
    torch.testing.assert_close(output.logits[compared], tensors["logits"][compared], **CLOSE)
    torch.testing.assert_close(output.loss, tensors["loss_bos_masked"][0], **CLOSE)
    whole = model(**given, labels=prepared(case, official_labels=True)["labels"])
    # The official loss of a padded batch also is about what a padded position predicts.
    if bool(mask.all()):
        torch.testing.assert_close(whole.loss, tensors["loss"][0], **CLOSE)
        assert whole.loss == output.loss
    elif attention == "eager":
        torch.testing.assert_close(whole.loss, tensors["loss"][0], **CLOSE)
        assert abs(whole.loss - output.loss) > 0.1


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_each_position_sees_the_recorded_image(case, where, attention):
    """What we compute without a mask is what the recorded mask gives with every score computed."""
    tensors, model = golden(case, where), build(where, attention)
    layer = model.model.text_model.layers[0].cross_attention.attention
    batch, length, number = tensors["text_to_image_mask"].shape
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(batch, number, 64, 48, generator=generator)
    query = torch.randn(batch, length, layer.heads * layer.head_dim, generator=generator)
    media = E2STRMedia(latents, tensors["input_ids"] == model.config.image_token_id)
    times = torch.where(media.sees, media.slots // media.longest + 1, 0)
    assert torch.equal(times, tensors["text_time"])

    key, value = layer.keys_values(latents.flatten(1, 2))
    allowed = tensors["text_to_image_mask"].bool().repeat_interleave(64, dim=2)[:, None]
    scores = (layer.split(query) * layer.scaling @ key.transpose(2, 3)).masked_fill(~allowed, float("-inf"))
    expected = (scores.softmax(-1).nan_to_num() @ value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(media.attend(layer, query), expected, **CLOSE)
    assert (tensors["text_time"] == 0).any() and expected[tensors["text_time"] == 0].eq(0).all()


def old_attention(module, query, key, value, attention_mask, scaling, **kwargs):
    """OPT's attention of the recorded transformers 4.37, which halves the gradient of what a mask forbids."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = torch.max(scores + attention_mask, scores.new_tensor(torch.finfo(scores.dtype).min))
    weights = scores.softmax(-1)
    return (weights @ value).transpose(1, 2), weights


@pytest.mark.goldens
@pytest.mark.parametrize("case, attention", [*((case, "eager") for case in CASES), ("incontext_3", "sdpa")])
def test_gradients_behind_a_frozen_encoder(case, attention, goldens_dir, monkeypatch):
    """Stock OpenFlamingo encodes images without gradients.

    The official loss of the padded batch teaches a padded position, which forbids itself everything. Only there it
    matters which transformers computes the attention, and that its resized embeddings forgot which row is padding.
    """
    tensors, model = golden(case, "recorded"), build("recorded", attention)
    if not tensors["attention_mask"].all():
        monkeypatch.setattr(modeling_opt, "eager_attention_forward", old_attention)
        model.get_input_embeddings().padding_idx = None
    model.model.vision_model.requires_grad_(False)
    model(**inputs(case, "recorded"), labels=tensors["labels"]).loss.backward()
    expected = gradients(tensors)
    assert len(expected) == 13  # of 11, as keys and values of two layers are one tensor there
    close_gradients(model, expected)
    assert all(parameter.grad is None for parameter in model.model.vision_model.parameters())


def close_gradients(model, expected):
    parameters = dict(model.named_parameters())
    for name, gradient in expected.items():
        got = parameters[name].grad
        if name.endswith("k_proj.bias"):
            assert (got - gradient).abs().max() < 1e-6, name  # rounding: a constant per head cancels in the softmax
        else:
            assert (got - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_gradients_of_every_parameter(where, attention):
    """The encoder trains. What the official code keeps frozen, the norm behind it, trains here as well."""
    model = build(where, attention)
    case = "incontext_3"
    model(**inputs(case, where), labels=golden(case, where)["labels"]).loss.backward()
    expected = gradients(golden(GRADIENTS, where))
    close_gradients(model, expected)
    gradient = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(value is not None and value.norm() > 0 for value in gradient.values())
    if where == "recorded":
        assert gradient.keys() - expected.keys() == {
            f"model.vision_model.layernorm.{name}" for name in ("weight", "bias")
        }
        assert expected.keys() <= gradient.keys()


def test_a_step_trains_the_encoder():
    """Every tensor of the encoder moves, and the loss goes down through it alone."""
    model = build().train()
    model.requires_grad_(False)
    model.model.vision_model.requires_grad_(True)
    batch = prepared("incontext_3")
    before = {name: value.clone() for name, value in model.model.vision_model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.model.vision_model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.05
    assert not [
        name for name, value in model.model.vision_model.state_dict().items() if torch.equal(value, before[name])
    ]


def encoder(model):
    """`encode` of a pool: PIL images to keys and latents."""

    @torch.no_grad()
    def encode(pictures):
        return model.encode(processor().image_processor(pictures, return_tensors="pt")["pixel_values"])

    return encode


@torch.no_grad()
def test_retrieval(where, attention):
    """Keys, similarities and the two examples, most similar first: of the model, and through a pool."""
    tensors, model = golden("icl_generate", where), build(where, attention)
    encode = encoder(model)
    keys, _ = encode(images(*range(6)))
    query, _ = encode(images(6))
    torch.testing.assert_close(keys, tensors["pool_features"], **CLOSE)
    torch.testing.assert_close(query, tensors["query_feature"], **CLOSE)
    torch.testing.assert_close(keys @ query[0], tensors["similarity"], **CLOSE)

    pool = ContextPool(encode)
    pool.add(images(*range(6)), META["words"][:6])
    (examples,) = pool.search(images(6), k=2)
    assert [example.text for example in examples] == [META["words"][number] for number in tensors["selected"].tolist()]
    (ranked,) = pool.search(images(6), k=6)
    similarity = torch.tensor([example.similarity for example in ranked])
    torch.testing.assert_close(similarity, tensors["similarity"].sort(descending=True).values, atol=1e-5, rtol=0)


def icl_inputs(where):
    tensors = golden("icl_generate", where)
    numbers = [*tensors["selected"].tolist(), 6]
    texts = [META["words"][number] for number in numbers[:-1]]
    return processor()([images(*numbers)], [texts])


def test_generation(where, attention):
    """Greedy with the logits of each step, three beams, and without examples; the prompt as we write it."""
    tensors, model = golden("icl_generate", where), build(where, attention)
    batch = icl_inputs(where)
    assert torch.equal(batch["input_ids"], tensors["input_ids"])
    assert torch.equal(batch["attention_mask"], tensors["attention_mask"])
    if "vision_x" in tensors:
        torch.testing.assert_close(batch["pixel_values"], tensors["vision_x"][:, :, 0], atol=1e-6, rtol=0)
    options = {"do_sample": False, "max_new_tokens": 12}
    greedy = model.generate(**batch, **options, output_logits=True, return_dict_in_generate=True)
    assert torch.equal(greedy.sequences, tensors["greedy_ids"])
    torch.testing.assert_close(torch.stack(greedy.logits, dim=1), tensors["greedy_step_logits"], **CLOSE)
    alone = model.generate(batch["pixel_values"][:, -1:], **options)
    assert torch.equal(alone, tensors["no_context_greedy_ids"])
    beams = model.generate(**batch, do_sample=False, num_beams=3, max_new_tokens=48)
    assert torch.equal(beams, tensors["beam3_ids"])
    assert processor().decode_readings(beams) == [META["icl_text"]]


def test_generation_from_a_pool(where, attention):
    """The same reading from the latents that the pool keeps, without an image of an example."""
    tensors, model = golden("icl_generate", where), build(where, attention)
    pool = ContextPool(encoder(model))
    pool.add(images(*range(6)), META["words"][:6])
    (examples,) = pool.search(images(6), k=2)
    latents = torch.stack([torch.as_tensor(example.latents) for example in examples])
    prompt = processor().prompt_ids([example.text for example in examples], query=False)
    contexts = model.read_context([prompt], [latents])
    pixels = processor()(images(6))["pixel_values"]
    beams = model.generate(pixels, contexts=contexts, do_sample=False, num_beams=3, max_new_tokens=48)
    assert torch.equal(beams, tensors["beam3_ids"])
