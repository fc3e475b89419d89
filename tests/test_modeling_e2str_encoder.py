"""What stands before E2STR's ViT and beside it in training: a stem of convolutions, and a CTC loss on its tokens."""

import pytest
import torch
import torch.nn.functional as F
from model_specs import E2STR

from epigraph.models import E2STRConfig, E2STRForTextRecognition

# -------------------------------------------------------------------------------------------------- convolutional stem

STEM = {
    **E2STR,
    "stem_channels": [6, 10],
    "vision_config": {**E2STR["vision_config"], "image_size": [4, 8], "patch_size": 1},
}
CHARACTERS = {"ab": [10, 11], "a": [10], "hello": [12, 13, 14, 14, 15]}


def test_a_stem_halves_images_as_often_as_it_has_convolutions(tmp_path):
    torch.manual_seed(0)
    config = E2STRConfig(**STEM)
    assert config.vision_config.num_channels == 10 and config.image_height_width == (16, 32)
    assert E2STRConfig(**E2STR).image_height_width == (16, 32)
    model = E2STRForTextRecognition(config).eval()
    images = torch.randn(3, 3, 16, 32)
    assert model.model.stem(images).shape == (3, 10, 4, 8)
    keys, latents = model.encode(images)
    assert latents.shape == (3, 4, 32)
    # What an image gives does not depend on the images beside it.
    torch.testing.assert_close(model.encode(images[1:2])[1], latents[1:2], atol=1e-6, rtol=1e-5)
    model.save_pretrained(tmp_path)
    again = E2STRForTextRecognition.from_pretrained(tmp_path).eval()
    assert again.config.stem_channels == [6, 10] and torch.equal(again.encode(images)[1], latents)


def test_a_stem_is_a_convolution_a_norm_over_channels_and_gelu():
    torch.manual_seed(0)
    stem = E2STRForTextRecognition(E2STRConfig(**{**STEM, "stem_channels": [5, 10]})).model.stem
    for norm in stem.norms:
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    hidden = images = torch.randn(2, 3, 16, 32)
    for convolution, norm in zip(stem.convolutions, stem.norms):
        hidden = F.conv2d(hidden, convolution.weight, stride=2, padding=1)
        deviation = (hidden.var(1, unbiased=False, keepdim=True) + norm.eps).sqrt()
        hidden = (hidden - hidden.mean(1, keepdim=True)) / deviation
        hidden = hidden * norm.weight[:, None, None] + norm.bias[:, None, None]
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
    torch.testing.assert_close(stem(images), hidden)


def test_blocks_of_the_stem_start_at_any_resolution_but_the_first():
    torch.manual_seed(0)
    stem = E2STRForTextRecognition(E2STRConfig(**STEM, stem_blocks=2)).model.stem
    assert [len(blocks) for blocks in stem.blocks] == [0, 2]
    block, hidden = stem.blocks[1][0], torch.randn(2, 10, 4, 8)
    expected = hidden
    for norm, convolution in zip(block.norms, block.convolutions):
        expected = F.layer_norm(expected.movedim(1, -1), (10,), norm.weight, norm.bias, norm.eps).movedim(-1, 1)
        expected = F.conv2d(F.gelu(expected), convolution.weight, padding=1)
    torch.testing.assert_close(block(hidden), hidden + expected)


# ------------------------------------------------------------------------------------------------------------- CTC


def prompts(*texts):
    """Token ids and labels of prompts of several images each, padded on the left."""
    rows = [[1, *(token for text in row for token in [3, *CHARACTERS[text], 2])] for row in texts]
    ids = [torch.tensor(row) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_side="left")
    return ids, ids.masked_fill((ids == 0) | (ids == 1) | (ids == 3), -100)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return E2STRForTextRecognition(E2STRConfig(**STEM, ctc_loss_weight=0.5))


def ctc_by_hand(head, tokens, text):
    """The loss of one image (tokens, width) in evaluation: two frames of each of eight columns."""
    pooled = tokens.view(4, 8, -1).mean(0)
    pooled = (pooled - head.norm.running_mean) / (head.norm.running_var + head.norm.eps).sqrt()
    pooled = pooled * head.norm.weight + head.norm.bias
    frames = ((pooled @ head.classifier.weight.T).view(16, 1, -1) + head.bias).log_softmax(-1)
    target = torch.tensor([CHARACTERS[text]])
    return F.ctc_loss(frames, target, torch.tensor([16]), torch.tensor([len(target[0])]), blank=0, reduction="sum")


def test_ctc_is_that_of_each_image_with_its_text(model):
    model.eval()
    torch.nn.init.normal_(model.ctc_head.norm.running_mean)
    torch.nn.init.normal_(model.ctc_head.classifier.weight, std=0.3)
    ids, labels = prompts(["ab", "a", "hello"], ["hello"])
    images = torch.randn(2, 3, 3, 16, 32)  # the second prompt has one image, the rest fills up
    with torch.no_grad():
        outputs = model(images, ids, (ids != 0).long(), labels)
        assert outputs.image_hidden_states.shape == (4, 32, 32)
        losses = [ctc_by_hand(model.ctc_head, tokens, text) for tokens, text in
                  zip(outputs.image_hidden_states, ["ab", "a", "hello", "hello"])]  # fmt: skip
        torch.testing.assert_close(model.ctc_head(outputs.image_hidden_states, ids, labels), sum(losses))
        # Beside the loss of the decoder, over the same items: 2 + 1 + 5 + 5 characters and 4 ends.
        own = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        torch.testing.assert_close(outputs.loss, own + 0.5 * sum(losses) / 17)
        halved = model(images, ids, (ids != 0).long(), labels, num_items_in_batch=34).loss
        torch.testing.assert_close(halved, outputs.loss / 2)


def test_images_whose_text_is_not_to_be_learnt_do_not_count(model):
    model.eval()
    ids, labels = prompts(["ab", "hello"])
    labels[:, :5] = -100  # those of the first image
    with torch.no_grad():
        tokens = model(torch.randn(1, 2, 3, 16, 32), ids, labels=labels).image_hidden_states
        found = model.ctc_head(tokens, ids, labels)
        torch.testing.assert_close(found, ctc_by_hand(model.ctc_head, tokens[1], "hello"))
        assert model.ctc_head(tokens, ids, torch.full_like(labels, -100)) == 0


def test_texts_of_more_characters_than_frames_do_not_count(model):
    ids = torch.tensor([[1, 3, *range(10, 27), 2]])
    tokens = torch.randn(1, 32, 32, requires_grad=True)
    loss = model.ctc_head(tokens, ids, ids.masked_fill(ids < 4, -100))
    loss.backward()
    assert loss == 0 and not tokens.grad.any()


def test_a_compiled_model_teaches_each_image_its_own_text(model):
    """A compiled graph encodes what fills up the batch, too: here behind the first prompt."""
    model.eval()
    ids, labels = prompts(["hello"], ["ab", "a", "hello"])
    images = torch.randn(2, 3, 3, 16, 32)
    with torch.no_grad():
        expected = model(images, ids, (ids != 0).long(), labels).loss
        compiled = torch.compile(model, backend="eager")(images, ids, (ids != 0).long(), labels).loss
    torch.testing.assert_close(compiled, expected)


def test_pads_and_images_are_no_characters(model):
    ids, labels = prompts(["ab", "a"], ["hello"])
    tokens = model.eval().model.image_tokens(torch.randn(3, 3, 16, 32))
    torch.testing.assert_close(model.ctc_head(tokens, ids, ids), model.ctc_head(tokens, ids, labels))


def test_a_model_loads_without_the_head_that_it_was_trained_with(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, info = E2STRForTextRecognition.from_pretrained(tmp_path, ctc_loss_weight=0.0, output_loading_info=True)
    assert loaded.ctc_head is None and not any(info.values())


def test_latents_that_are_given_have_no_ctc_loss(model):
    ids, labels = prompts(["ab"])
    latents = model.encode(torch.randn(1, 3, 16, 32))[1][None]
    outputs = model(latents=latents, input_ids=ids, labels=labels)
    own = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert outputs.image_hidden_states is None
    torch.testing.assert_close(outputs.loss, own)


def test_nine_frames_of_ten_are_blank_at_first(model):
    vocabulary = model.config.text_config.vocab_size
    assert model.ctc_head.bias.softmax(-1)[0].item() == pytest.approx(9 * vocabulary / (10 * vocabulary - 1))


def test_the_encoder_does_not_learn_frequencies_by_equal_tokens(model):
    """Without the norm of the CTC head the tokens of images differ by 0.005 then, not by 0.3."""
    torch.manual_seed(0)
    ids, labels = prompts(*[["ab"], ["a"], ["hello"]] * 4)
    images = torch.randn(12, 1, 3, 16, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    spread = []
    for _ in range(30):
        outputs = model(images, ids, (ids != 0).long(), labels)
        spread.append(outputs.image_hidden_states.std(0).mean().item())
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
    assert min(spread) > 0.1 * spread[0]
