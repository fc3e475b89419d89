"""Prompts of images and texts: ids, labels, readings; images of every kind, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from transformers import AutoProcessor, PreTrainedTokenizerFast

from epigraph.models.image_processing_e2str import E2STRImageProcessor
from epigraph.models.processing_e2str import E2STRProcessor, e2str_processor
from epigraph.models.tokenization import CHARACTERS, character_tokenizer

PAD, BOS, EOC, IMAGE = range(4)


@pytest.fixture(scope="module")
def processor():
    return e2str_processor()


@pytest.fixture(scope="module")
def byte_processor():
    """A tokenizer as OPT's is: bytes, one token that begins, ends and stands for what is unknown."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "<pad>", "</s>", *letters])}
    model = Tokenizer(BPE(vocabulary, merges=[]))
    model.pre_tokenizer, model.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = {"pad_token": "<pad>", "bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, **special)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endofchunk|>", "<image>"]})
    return E2STRProcessor(E2STRImageProcessor(), tokenizer, end_of_chunk_token="<|endofchunk|>")


def word(width=60, height=20, colour=(200, 90, 30)):
    return Image.new("RGB", (width, height), colour)


def ids_of(text):
    return [4 + CHARACTERS.index(character) for character in text]


# ------------------------------------------------------------------------------------------------------------ prompts


def test_prompts_are_chunks_of_image_and_text(processor):
    batch = processor([[word(), word(), word()], word()], [["Go", "7"], []])
    first = [BOS, IMAGE, *ids_of("Go"), EOC, IMAGE, *ids_of("7"), EOC, IMAGE]
    assert batch["input_ids"].tolist() == [first, [PAD] * (len(first) - 2) + [BOS, IMAGE]]
    assert batch["attention_mask"].tolist() == [[1] * len(first), [0] * (len(first) - 2) + [1, 1]]
    assert batch["pixel_values"].shape == (2, 3, 3, 32, 128)
    assert batch["pixel_values"][0].any() and not batch["pixel_values"][1, 1:].any()
    assert "labels" not in batch


def test_labels_are_texts_and_their_ends(processor):
    batch = processor([[word(), word()], [word()]], [["ab", "c"], ["d"]])
    none = [-100]
    assert batch["labels"].tolist() == [
        none * 2 + ids_of("ab") + [EOC] + none + ids_of("c") + [EOC],
        none * 6 + ids_of("d") + [EOC],
    ]


def test_official_labels_keep_the_begin_of_sequence(processor):
    official = E2STRProcessor(processor.image_processor, processor.tokenizer, official_labels=True)
    rows = [[[word(), word()], [word()]], [["ab", "c"], ["d"]]]
    clean, found = processor(*rows)["labels"], official(*rows)["labels"]
    begins = processor(*rows)["input_ids"] == BOS
    assert begins.sum() == 2 and (found[begins] == BOS).all()
    assert torch.equal(found[~begins], clean[~begins])


def test_one_image_one_text_and_lists_are_the_same(processor):
    expected = processor([[word()]], [["ab"]])
    for images, text in ((word(), "ab"), ([word()], ["ab"]), ([[word()]], [["ab"]]), ((word(),), ("ab",))):
        found = processor(images, text)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_order_of_examples_is_kept(processor):
    shades = [word(colour=(shade,) * 3) for shade in (10, 120, 240)]
    batch = processor([shades], [["a", "b"]])
    alone = torch.cat([processor(shade)["pixel_values"][0] for shade in shades])
    assert torch.equal(batch["pixel_values"][0], alone)
    assert processor.decode_readings(batch["input_ids"][:, :4]) == ["a"]


def test_texts_that_look_like_special_tokens_are_characters(processor, byte_processor):
    for tool in (processor, byte_processor):
        for text in ("<image>", "<pad>", "<s>", "</s>", "<eoc>", "a <image> b", " ", "  two  "):
            ids = tool.text_ids(text)
            assert not set(ids) & set(tool.tokenizer.all_special_ids) and len(ids) == len(text)
            row = tool.prompt_ids([text], query=False)
            assert tool.decode_readings([row]) == [text]


def test_other_alphabets(processor):
    greek = e2str_processor("αβγ ")
    assert greek.text_ids("γ α") == [6, 7, 4]
    assert greek.decode_readings([[BOS, IMAGE, 6, 7, 4, EOC]]) == ["γ α"]
    with pytest.raises(ValueError, match=r"Prompt 1 cannot be written: 'aβ' holds 'a', which the alphabet lacks"):
        greek([word(), word()], ["β", "aβ"])
    for alphabet, message in (
        ("aab", "each of them once; twice stand .'a'."),
        ("", "needs characters"),
        (["a", "<image>"], "'<image>' is no character"),
        ("a\ud800", r"'\\ud800' is no character"),
    ):
        with pytest.raises(ValueError, match=message):
            e2str_processor(alphabet)


def test_bytes_write_everything(byte_processor):
    for text in ("Größe", "東京 7", "\n"):
        assert byte_processor.decode_readings([byte_processor.prompt_ids([text], query=False)]) == [text]


def test_a_tokenizer_with_an_unknown_token_reports_what_it_cannot_write():
    words = {"<pad>": 0, "<s>": 1, "<eoc>": 2, "<image>": 3, "<unk>": 4, "a": 5}
    model = Tokenizer(WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", bos_token="<s>", eos_token="<eoc>", unk_token="<unk>"
    )
    tool = E2STRProcessor(E2STRImageProcessor(), tokenizer)
    assert tool.text_ids("aa") == [5, 5]
    with pytest.raises(ValueError, match="'ab' holds what the tokenizer cannot write"):
        tool.text_ids("ab")


def test_a_tokenizer_without_the_two_tokens_is_refused():
    tokenizer = character_tokenizer("ab")
    with pytest.raises(ValueError, match="the tokenizer lacks <picture>; add"):
        E2STRProcessor(E2STRImageProcessor(), tokenizer, image_token="<picture>")


def test_saving_keeps_every_setting(tmp_path, processor):
    tool = E2STRProcessor(
        E2STRImageProcessor(size={"height": 16, "width": 64}), processor.tokenizer, official_labels=True
    )
    tool.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.official_labels and loaded.image_token == "<image>" and loaded.end_of_chunk_token == "<eoc>"
    assert loaded.tokenizer.model_max_length == 2048 and loaded.tokenizer.padding_side == "left"
    batch, expected = (each([[word(), word()]], [["a", "b"]]) for each in (loaded, tool))
    assert all(torch.equal(batch[name], expected[name]) for name in expected)


# ----------------------------------------------------------------------------------------------------------- readings


def test_readings_stand_between_the_last_image_and_its_end(processor):
    a, b, c = ids_of("abc")
    rows = {
        (BOS, IMAGE, a, EOC, IMAGE, b, c, EOC): "bc",
        (PAD, PAD, BOS, IMAGE, b, EOC, PAD, PAD): "b",  # greedy search fills up with padding
        (BOS, IMAGE, b, EOC, EOC, EOC): "b",  # a beam search with the end of chunk
        (BOS, IMAGE, a, EOC, IMAGE, EOC, PAD): "",  # nothing to read
        (BOS, IMAGE, a, b): "ab",  # cut off
        (BOS, IMAGE): "",
        (BOS, IMAGE, a, IMAGE, b, BOS, PAD, c, EOC): "abc",  # what an untrained model writes
        (BOS, IMAGE, a, EOC, -100, -100): "a",  # as trainers gather predictions
        (PAD, PAD): "",
    }
    for row, text in rows.items():
        assert processor.decode_readings([list(row)]) == [text]
        assert processor.decode_readings(torch.tensor([row])) == processor.decode_readings(np.array([row])) == [text]
    assert processor.decode_readings([]) == []


# ------------------------------------------------------------------------------------------------------------- images


def red_with(mode):
    image = Image.new("RGB", (70, 22), (220, 40, 40))
    image.paste((20, 20, 160), (0, 0, 30, 22))
    return image.convert(mode, palette=Image.Palette.ADAPTIVE)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "P", "HSV", "YCbCr"])
def test_colours_of_every_kind_are_read_alike(processor, mode):
    expected = processor(red_with("RGB"))["pixel_values"]
    found = processor(red_with(mode))["pixel_values"]
    assert found.shape == expected.shape == (1, 1, 3, 32, 128)
    assert (found - expected).abs().max() < 0.2


def test_grey_of_8_and_16_bits_and_floats_are_read_alike(processor):
    grey = np.linspace(0, 255, 22 * 70).reshape(22, 70).astype(np.uint8)
    expected = processor(Image.fromarray(grey))["pixel_values"]
    assert expected.std() > 0.5
    for same in (
        Image.fromarray(grey).convert("LA"),
        Image.fromarray(grey.astype(np.uint16) * 257),
        grey,
        grey[None],
        grey[..., None].repeat(3, -1),
        torch.from_numpy(grey / 255),
    ):
        assert (processor([[same]])["pixel_values"] - expected).abs().max() < 0.03


def test_transparency_is_white(processor):
    clear = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    white = Image.new("RGB", (40, 20), "white")
    assert torch.equal(processor(clear)["pixel_values"], processor(white)["pixel_values"])


def test_images_are_squashed_bilinearly_and_scaled_as_clips(processor):
    image = red_with("RGB")
    values = np.asarray(image.resize((128, 32), Image.Resampling.BILINEAR)) / 255
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    expected = torch.from_numpy((values - mean) / std).permute(2, 0, 1).float()
    torch.testing.assert_close(processor(image)["pixel_values"][0, 0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((0, 20, 3), np.uint8), r"Image 1 cannot be read: an array of shape \(0, 20, 3\)"),
        (np.zeros((5, 0), np.uint8), r"Image 1 cannot be read: an array of shape \(5, 0\)"),
        (np.full((8, 8), np.nan), "Image 1 cannot be read: it holds NaN or infinite"),
        (np.full((8, 8), -1.0), "Image 1 cannot be read: it holds values down to -1"),
        (np.broadcast_to(np.uint8(0), (9000, 9000)), "Image 1 cannot be read: 81,000,000 pixels are more than"),
        ("nowhere.png", r"Image 1 \(nowhere.png\) cannot be read: there is no such file"),
        (7, "Image 1 cannot be read: int is no image"),
    ],
)
def test_what_is_no_word_image_is_refused_by_name(processor, image, message):
    with pytest.raises(ValueError, match=message):
        processor([[word(), image]], [["a"]])


def test_damaged_files_are_named(processor, tmp_path):
    red_with("RGB").save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    assert processor(str(tmp_path / "whole.png"))["pixel_values"].shape == (1, 1, 3, 32, 128)
    with pytest.raises(ValueError, match=r"Image 0 \(.*cut.png\) cannot be read: it is damaged"):
        processor(str(tmp_path / "cut.png"))


# ------------------------------------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("images", "text", "message"),
    [
        ([], None, "every prompt needs an image"),
        ([[]], None, "every prompt needs an image"),
        ([["one", "two"]], None, "several images in a prompt need the texts of all but the last"),
        (["one", "two"], ["a"], "2 prompts of images, but 1 of texts"),
        (["one", "two"], "a", "2 prompts of images, but 1 of texts"),
        ([["one", "two", "three"]], [["a"]], "prompt 0 has 3 images and 1 texts"),
        (["one"], [["a", "b"]], "prompt 0 has 1 images and 2 texts"),
        ([[["one"]]], None, "there is a list too many"),
        ([np.zeros((2, 8, 8, 3), np.uint8)], None, "there is a list too many"),
        (["one"], [[7]], "Prompt 0 cannot be written: a text must be a string, not int"),
        (["one", "two"], ["fine", "naïve"], "Prompt 1 cannot be written: 'naïve' holds 'ï', which the alphabet lacks"),
        (["one"], ["x" * 2050], "Prompt 0 cannot be written: it has 2053 tokens, more than the 2048 that the model"),
    ],
)
def test_prompts_that_cannot_be_are_refused_before_an_image_is_opened(processor, images, text, message):
    """The files do not exist: opening one would be another error."""
    with pytest.raises(ValueError, match=message):
        processor(images, text)


def test_only_torch_tensors_are_made(processor):
    assert torch.equal(processor(word(), return_tensors="pt")["input_ids"], processor(word())["input_ids"])
    with pytest.raises(ValueError, match="leave out return_tensors"):
        processor(word(), return_tensors="np")
