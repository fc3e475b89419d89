"""The models that test_models_common.py asks for what it promises: every one that has a loss."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
import transformers
from PIL import Image, ImageDraw
from transformers import PreTrainedModel

from epigraph import models
from epigraph.hub import entry_of
from epigraph.models.processing import comer_processor
from epigraph.models.processing_e2str import e2str_processor


@dataclass
class Spec:
    """A model as the suite needs it.

    Attributes:
        model: the class.
        config: settings of a tiny configuration without dropout.
        processor: builds its processor, or its image processor where there is no text.
        answers: what the 8 images of `rows` are labelled with.
        batch: (processor, images, answers) -> the model's inputs, labels included.
        outputs: (model, batch) -> tensor (batch, ...) that must not depend on the rest of the batch, nor on padding.
        pad: (batch) -> the same with more padding; None where there is none.
        overfit: (steps, learning rate, loss) that 8 examples are learnt in, with, and below.
        others: settings that differ from the defaults, for the round trip.
        dropout: settings that switch dropout on.
        adapted: layers other than queries and values that LoRA is to adapt.
        mistakes: settings that are refused, with what the error says.
        decode: (processor, sequences) -> what `generate` wrote.
    """

    model: type[PreTrainedModel]
    config: dict
    processor: Callable
    answers: list
    batch: Callable
    outputs: Callable
    pad: Callable | None
    overfit: tuple[int, float, float]
    others: dict
    dropout: dict
    adapted: list[str]
    mistakes: list[tuple[dict, str]] = field(default_factory=list)
    decode: Callable = lambda processor, sequences: processor.decode_labels(sequences)

    @property
    def auto(self):
        """The Auto classes that give this model; the first is used where one is enough."""
        _, classes, *_ = entry_of(self.model.config_class.model_type, "specs")
        return [getattr(transformers, auto) for auto, cls in classes.items() if cls is self.model]

    @property
    def tokenizer(self):
        """None for a model that knows no text."""
        return getattr(self.processor(), "tokenizer", None)

    def build(self, **changes):
        torch.manual_seed(0)
        model = self.model(self.model.config_class(**{**self.config, **changes})).eval()
        for name, buffer in model.named_buffers():  # as uneven as after training
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.2)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
        for name, parameter in model.named_parameters():  # closed gates would hide the images
            if name.endswith("_gate"):
                parameter.data.fill_(0.5)
        return model

    def rows(self, count=3):
        """Images of different sizes, a different drawing for each label."""
        rows = []
        for index, answer in enumerate(self.answers[:count]):
            width, height = 40 + 13 * (index % 4), 24 + 9 * (index % 3)
            image = Image.new("L", (width, height))
            shape = torch.rand(5, 2, generator=torch.Generator().manual_seed(index)) * torch.tensor([width, height])
            ImageDraw.Draw(image).line([tuple(point) for point in shape.tolist()], fill=255, width=3)
            rows.append({"image": image, "answer": answer})
        return rows

    def collate(self, rows):
        return dict(self.batch(self.processor(), *([row[name] for row in rows] for name in ("image", "answer"))))


def comer_outputs(model, batch):
    logits = model(**batch).logits
    return logits.view(2, -1, *logits.shape[1:]).transpose(0, 1)


def padded_images(batch):
    return {**batch, **{name: F.pad(batch[name], (0, 37, 0, 21)) for name in ("pixel_values", "pixel_mask")}}


# ------------------------------------------------------------------------------------------------------ PixelViT

SIDE = 8
PIXELVIT = {
    "image_size": SIDE,
    "num_channels": 1,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
}


def pixelvit_processor():
    return models.PixelViTImageProcessor(size={"height": SIDE, "width": SIDE}, num_channels=1)


def images_with_classes(processor, images, answers):
    return {**processor(images, return_tensors="pt"), "labels": torch.tensor(answers)}


def sets_with_classes(processor, images, answers):
    """Of every image the pixels that are not black, so that their numbers differ; in an order of their own."""
    sets = []
    for values, answer in zip(processor(images, return_tensors="pt")["pixel_values"], answers):
        places = (values[0] > -1).nonzero()
        places = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(answer))]
        sets.append((values[:, places[:, 0], places[:, 1]].T, places))
    size = torch.tensor([[SIDE, SIDE]]).expand(len(sets), 2).contiguous()
    return {**models.pad_pixel_sets(*zip(*sets)), "image_size": size, "labels": torch.tensor(answers)}


def images_with_noise(processor, images, answers):
    """What is hidden must not change from call to call."""
    noise = [torch.rand(SIDE * SIDE, generator=torch.Generator().manual_seed(answer)) for answer in answers]
    return {**processor(images, return_tensors="pt"), "noise": torch.stack(noise)}


def images_with_maps(processor, images, answers):
    """Labels of pixels: nothing, a line in the left half, one in the right half; a corner does not count."""
    values = processor(images, return_tensors="pt")["pixel_values"]
    labels = (values[:, 0] > -0.5) * (1 + torch.arange(SIDE) // (SIDE // 2))
    labels[:, 0, 0] = 255
    return {"pixel_values": values, "labels": labels}


def padded_sets(batch):
    count = batch["pixels"].shape[1]
    longer = {name: F.pad(batch[name], (0, 0, 0, 5)) for name in ("pixels", "coordinates")}
    longer["pixels"][:, count:] = torch.nan  # nobody may look
    return {**batch, **longer, "pixel_mask": F.pad(batch["pixel_mask"], (0, 5))}


def pixelvit(model, batch, overfit, pad=None, mistakes=(), **changes):
    """The Spec of one head, or of one form of input."""
    return Spec(
        model=model,
        config=PIXELVIT | changes,
        processor=pixelvit_processor,
        answers=list(range(8)),
        batch=batch,
        outputs=lambda model, batch: model(**batch).logits,
        pad=pad,
        overfit=overfit,
        others={
            "image_size": [8, 12],
            "position_embedding_type": "rope_mixed",
            "pooling": "mean",
            "pixel_selection": "ink",
            "num_selected_pixels": 9,
            "pixel_vocab_size": 16,
            "mask_type": "block",
            "qkv_bias": False,
        },
        dropout={"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2},
        adapted=["embeddings.projection", "fc1", "fc2", "o_proj"],
        mistakes=list(mistakes),
    )


# ------------------------------------------------------------------------------------------------------ E2STR

E2STR = {
    "vision_config": {
        "image_size": [16, 32],
        "patch_size": 8,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    },
    "resampler_config": {"num_latents": 4, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16},
    "text_config": {
        "vocab_size": 99,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 48,
        "max_position_embeddings": 64,
        "dropout": 0.0,
    },
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 16,
}

CONVOLUTIONS = {"stem_channels": [6, 10], "stem_blocks": 1, "ctc_loss_weight": 0.5}  # ours, for training on few cores


def with_part(part, **changes):
    """Settings of E2STR with changes to one of its parts."""
    return {part: {**E2STR[part], **changes}}


def e2str_small_processor():
    return e2str_processor(size={"height": 16, "width": 32}, max_length=64)


def words_in_context(processor, images, answers):
    """Prompts of one, two and three pairs in turn; what comes before a word is made of it."""
    prompts, texts = [], []
    for image, answer in zip(images, answers):
        before = len(answer) % 3
        prompts.append([image.rotate(90 * turn) for turn in range(before, -1, -1)])
        texts.append([answer[turn:] + answer[:turn] for turn in range(before, -1, -1)])
    return dict(processor(prompts, texts))


def e2str_outputs(model, batch):
    """Logits from the last token to the first, zeros where there is none."""
    mask = batch["attention_mask"]
    logits = model(**batch).logits * mask[..., None]
    return F.pad(logits.flip(1), (0, 0, 0, 48 - mask.shape[1]))


def padded_prompts(batch):
    """More padding on the left, and an image that no prompt stands for."""
    images = batch["pixel_values"]
    longer = {name: F.pad(batch[name], (5, 0)) for name in ("input_ids", "attention_mask")}
    longer["labels"] = F.pad(batch["labels"], (5, 0), value=-100)
    return {**longer, "pixel_values": torch.cat([images, torch.full_like(images[:, :1], torch.nan)], dim=1)}


PIXELVIT_MISTAKES = [
    ({"hidden_size": 30, "num_attention_heads": 4}, "hidden_size 30 is not a multiple of num_attention_heads 4"),
    ({"hidden_size": 6, "position_embedding_type": "rope_axial"}, "rope_axial needs heads of a multiple of 4"),
    ({"hidden_size": 6, "position_embedding_type": "sincos2d"}, "hidden_size 6 is not a multiple of 4"),
    ({"decoder_hidden_size": 30, "decoder_num_attention_heads": 2}, "decoder_hidden_size 30 is not a multiple of 4"),
    ({"hidden_size": "wide"}, "'hidden_size' expected int"),
    ({"num_channels": 0}, "num_channels must be at least 1, not 0"),
    ({"image_size": 0}, "image_size must be a height and a width of at least 1, not 0"),
    ({"image_size": [8, 8, 8]}, "image_size must be a height and a width"),
    ({"pixel_vocab_size": 1}, "pixel_vocab_size must be at least 2, not 1"),
    ({"norm_pix_loss": True}, "norm_pix_loss must be False"),
    ({"mask_ratio": 1.0}, "mask_ratio must be above 0 and below 1, not 1.0"),
    ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob must be at least 0 and below 1"),
    ({"position_init_std": 0.0}, "position_init_std must be above 0"),
    ({"rope_theta": -1.0}, "rope_theta must be above 0"),
    ({"num_selected_pixels": 9}, "num_selected_pixels is set, but pixel_selection 'all'"),
    ({"pixel_selection": "ink"}, "'ink' needs num_selected_pixels of at least 1, not None"),
    ({"pixel_selection": "best"}, "'pixel_selection'"),
    ({"position_embedding_type": "3d"}, "'position_embedding_type'"),
]

SPECS = {
    "comer": Spec(
        model=models.CoMERForConditionalGeneration,
        config={
            "hidden_size": 32,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "growth_rate": 8,
            "dense_layers": (2, 2, 2),
            "coverage_channels": 8,
            "dropout": 0.0,
            "encoder_dropout": 0.0,
        },
        processor=comer_processor,
        answers=["x ^ { 2 }", "a + b", "7", r"\frac { 1 } { n }", "- 3 . 5", "y _ i", r"\sqrt { z }", "( p )"],
        batch=lambda processor, images, answers: processor(images=images, text=answers),
        outputs=comer_outputs,
        pad=padded_images,
        overfit=(40, 1e-2, 0.1),
        others={"cross_coverage": False, "label_smoothing": 0.1, "grammar": {"open": 110, "scripts": [81, 82]}},
        dropout={"dropout": 0.3, "encoder_dropout": 0.2},
        adapted=["bottleneck.conv", "growth.conv", "feature_proj", "refinement.conv", "refinement.proj"],
        mistakes=[
            ({"hidden_size": 30}, "hidden_size 30 is not a multiple of num_attention_heads 8"),
            ({"hidden_size": 18, "num_attention_heads": 3}, "multiple of 4"),
            ({"hidden_size": "wide"}, "'hidden_size' expected int"),
            ({"hidden_size": 0}, "hidden_size must be at least 1, not 0"),
            ({"vocab_size": -1}, "vocab_size must be at least 1, not -1"),
            ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1"),
            ({"num_attention_heads": 0}, "num_attention_heads must be at least 1"),
            ({"dropout": 1.5}, "dropout must be at least 0 and below 1, not 1.5"),
            ({"dropout": None}, "'dropout'"),
            ({"encoder_dropout": -0.1}, "encoder_dropout must be at least 0"),
            ({"label_smoothing": 1}, "label_smoothing must be at least 0 and below 1"),
            ({"dense_layers": (2, 2)}, r"depths of three blocks, not \[2, 2\]"),
            ({"dense_layers": (2, 0, 2)}, r"depths of three blocks, not \[2, 0, 2\]"),
            ({"transition_reduction": 0.0}, "transition_reduction must be above 0"),
            ({"position_temperature": 0}, "position_temperature must be above 0"),
            ({"coverage_kernel_size": 4}, "coverage_kernel_size 4 must be odd"),
            ({"mask_padding": "yes"}, "'mask_padding'"),
        ],
    ),
    "pixelvit-images": pixelvit(
        models.PixelViTForImageClassification,
        images_with_classes,
        (60, 1e-2, 0.1),
        mistakes=PIXELVIT_MISTAKES,
        num_labels=8,
    ),
    "pixelvit-sets": pixelvit(
        models.PixelViTForImageClassification,
        sets_with_classes,
        (100, 1e-2, 0.1),
        pad=padded_sets,
        num_labels=8,
        pooling="mean",
        position_embedding_type="rope_mixed",
    ),
    "pixelvit-pixels": pixelvit(
        models.PixelViTForSemanticSegmentation, images_with_maps, (40, 1e-2, 0.05), num_labels=3
    ),
    "pixelvit-pretraining": pixelvit(
        models.PixelViTForPreTraining,
        images_with_noise,
        (140, 5e-3, 0.04),
        mask_ratio=0.5,
        position_init_std=0.5,
        decoder_position_embedding_type="learned",
    ),
    "e2str": Spec(
        model=models.E2STRForTextRecognition,
        config=E2STR,
        processor=e2str_small_processor,
        answers=["EXIT", "a+b", "Cafe", "No 7", "x", "Zebra", "Q?", "mind"],
        batch=words_in_context,
        outputs=e2str_outputs,
        pad=padded_prompts,
        overfit=(200, 4e-3, 0.1),
        others={
            "num_cross_attention_heads": 4,
            "cross_attention_head_dim": 32,
            "cross_attention_ffn_multiplier": 2,
            "gate_init": 0.5,
            "vision_post_layernorm": False,
            "image_token_id": 5,
            "end_of_chunk_token_id": 6,
        },
        dropout=with_part("text_config", dropout=0.3, attention_dropout=0.2)
        | with_part("vision_config", hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.1),
        adapted=["projection", "fc1", "fc2", "o_proj", "out_proj"],
        mistakes=[
            ({"num_cross_attention_heads": 0}, "num_cross_attention_heads must be at least 1, not 0"),
            ({"cross_attention_head_dim": -1}, "cross_attention_head_dim must be at least 1, not -1"),
            ({"cross_attention_ffn_multiplier": "wide"}, "'cross_attention_ffn_multiplier' expected int"),
            ({"image_token_id": 100}, "image_token_id 100 is not in the decoder's vocabulary of 100"),
            ({"image_token_id": 2}, "image_token_id and end_of_chunk_token_id are both 2"),
            ({"image_token_id": 0}, "image_token_id 0 is that of padding or of the begin of sequence"),
            (
                with_part("text_config", bos_token_id=None),
                "bos_token_id None is not in the decoder",
            ),
            (
                with_part("text_config", hidden_size=30, num_attention_heads=4),
                "text_config.hidden_size 30 is not a",
            ),
            (
                with_part("text_config", num_attention_heads=0),
                "text_config.num_attention_heads must be at least 1",
            ),
            (with_part("vision_config", patch_size=0), r"patch_size \[0, 0\] must be at least 1"),
            (with_part("vision_config", hidden_act="fast"), "vision_config has the activation 'fast'"),
            (with_part("text_config", layerdrop=0.1), "text_config.layerdrop must be 0, not 0.1"),
            (with_part("vision_config", num_attention_heads=5), "vision_config.hidden_size 32 is not a multiple of"),
            (
                with_part("vision_config", patch_size=5),
                r"\[16, 32\] is not a multiple of patch_size \[5, 5\]",
            ),
            (with_part("resampler_config", num_latents=0), "num_latents must be at least 1, not 0"),
        ],
        decode=lambda processor, sequences: processor.decode_readings(sequences),
    ),
    "e2str-convolutions": Spec(
        model=models.E2STRForTextRecognition,
        config={
            **E2STR,
            **with_part("vision_config", image_size=[4, 8], patch_size=1),
            **CONVOLUTIONS,
        },
        processor=e2str_small_processor,
        answers=["EXIT", "a+b", "Cafe", "No 7", "x", "Zebra", "Q?", "mind"],
        batch=words_in_context,
        outputs=e2str_outputs,
        pad=padded_prompts,
        overfit=(200, 4e-3, 0.1),
        others=CONVOLUTIONS,
        dropout=with_part("text_config", dropout=0.3, attention_dropout=0.2),
        adapted=["convolutions.0", "fc1", "fc2", "o_proj", "out_proj"],
        mistakes=[
            ({"stem_channels": []}, "stem_channels must be numbers of at least 1, or None"),
            ({"stem_channels": [8, 0]}, "stem_channels must be numbers of at least 1, or None"),
            ({"stem_blocks": -1}, "stem_blocks must be at least 0, not -1"),
            ({"ctc_loss_weight": -0.5}, "ctc_loss_weight must be a number of at least 0, not -0.5"),
            (
                CONVOLUTIONS | with_part("vision_config", image_size=[4, 8], patch_size=1, num_channels=3),
                "vision_config.num_channels is 3, but the stem gives 10; leave it out",
            ),
        ],
        decode=lambda processor, sequences: processor.decode_readings(sequences),
    ),
}
