"""How a PixelViT reads one picture: which pixels, what it takes them for, where one pixel looks; and that as HTML."""

import base64
import html
import io
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from epigraph.models.pixel_selection import select_pixels
from epigraph.report import ATTENTION

GHOST = 56  # of 255: how much of a pixel that was not read still shows
Place = tuple[int, int]  # row and column, from 0


@dataclass
class Look:
    """What one picture gave.

    Attributes:
        picture: (height, width, channels) uint8, as the model's processor resized it.
        coordinates: (n, 2), row and column of the pixels that were read.
        classes: names and probabilities, the most probable first.
        place: the pixel whose attention this is, one of those read; None for the whole image.
        asked: the pixel that was asked for; it may not have been read.
        attention: (layers, heads, n): of `place` to every pixel read. For the whole image that of the image token, or
            in a model without one the mean over all pixels.
        to_token: (layers, heads): its attention to the image token; None in a model without one.
    """

    picture: np.ndarray
    coordinates: np.ndarray
    classes: list[tuple[str, float]]
    place: Place | None
    asked: Place | None
    attention: np.ndarray
    to_token: np.ndarray | None


# ------------------------------------------------------------------------------------------------------------- looking


@contextmanager
def attention_rows(model, token: int | None):
    """Collects one token's attention while `model` reads one image: a list of (heads, tokens), one for each layer.

    No more than one layer's full map (heads, tokens, tokens) is in memory at a time.

    Args:
        model: a PixelViT with a head, loaded with `attn_implementation="eager"`.
        token: index of the token that looks; None for the mean over all of them.
    """
    rows = []

    def keep(module, inputs, output):
        hidden_states, weights = output
        rows.append(weights[0].mean(dim=1) if token is None else weights[0, :, token].clone())
        return hidden_states, None

    handles = [layer.attention.register_forward_hook(keep) for layer in model.base_model.layers]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def nearest(coordinates: np.ndarray, place: Place) -> int:
    """Index of the pixel (n, 2) that lies closest to `place`; of equally close ones the first."""
    return int(np.square(coordinates - np.asarray(place)).sum(axis=1).argmin())


def look_at(model, values: torch.Tensor, picture: np.ndarray, selection: str, count: int, asked: Place | None) -> Look:
    """Reads some pixels of one image, and says where one of them looks.

    Args:
        model: `PixelViTForImageClassification`, loaded with `attn_implementation="eager"`.
        values: (1, channels, height, width), from the model's image processor.
        picture: the same picture (height, width, channels) uint8, to be shown.
        selection: a `config.pixel_selection`.
        count: how many pixels are read; of no meaning for the selection `all`.
        asked: the pixel that looks; None for the whole image. The nearest one that was read takes its place.

    Raises:
        ValueError: `count` is no number of pixels that the image has.
    """
    height, width = values.shape[2:]
    if selection == "all":
        chosen = torch.arange(height * width)
    elif not 1 <= count <= height * width:
        raise ValueError(f"the number of pixels must be 1 to {height * width}, not {count}.")
    else:
        chosen = select_pixels(values, selection, count, model.config.selection_seed)[0]
    coordinates = torch.stack([chosen // width, chosen % width], dim=1)
    has_token = model.config.pooling == "cls"
    place, token = None, 0 if has_token else None
    if asked is not None:
        index = nearest(coordinates.numpy(), asked)
        place, token = tuple(coordinates[index].tolist()), index + has_token
    pixels = values.flatten(2).transpose(1, 2)[:, chosen]
    with torch.inference_mode(), attention_rows(model, token) as rows:
        logits = model(pixels=pixels, coordinates=coordinates[None], image_size=(height, width)).logits[0]
    attention = torch.stack(rows).float().numpy()
    scores = logits.float().softmax(dim=0).sort(descending=True)
    return Look(
        picture=picture,
        coordinates=coordinates.numpy(),
        classes=[(model.config.id2label[int(i)], float(score)) for score, i in zip(*scores)],
        place=place,
        asked=asked,
        attention=attention[..., 1:] if has_token else attention,
        to_token=attention[..., 0] if has_token else None,
    )


def averaged(maps: np.ndarray, layer: int, head: int) -> np.ndarray:
    """Of (layers, heads, ...) that of one layer and head, both counted from 1; 0 averages over all of them."""
    maps = maps.mean(axis=0) if layer == 0 else maps[layer - 1]
    return maps.mean(axis=0) if head == 0 else maps[head - 1]


def operations(config, tokens: int) -> int:
    """Multiplications and additions of the layers for one image, of which attention grows with the square."""
    linear = 8 * config.hidden_size**2 + 4 * config.hidden_size * config.intermediate_size
    return config.num_hidden_layers * (linear * tokens + 4 * config.hidden_size * tokens**2)


# ------------------------------------------------------------------------------------------------------------ pictures


def read_pixels(look: Look) -> Image.Image:
    """The picture at its own resolution, RGBA; pixels that were not read are almost transparent."""
    grey = look.picture.shape[2] == 1
    image = Image.fromarray(look.picture[..., 0] if grey else look.picture).convert("RGB")
    alpha = np.full(look.picture.shape[:2], GHOST, np.uint8)
    alpha[tuple(look.coordinates.T)] = 255
    image.putalpha(Image.fromarray(alpha))
    return image


def heat(weights: np.ndarray, coordinates: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Attention (n,) as a layer over a picture of `size` (height, width), RGBA: opaque where it is largest.

    Opacity grows with the square root, as most attention is small; a pixel that was not read is transparent.
    """
    alpha = np.zeros(size, np.uint8)
    strength = np.sqrt(weights / max(float(weights.max()), 1e-12))
    alpha[tuple(coordinates.T)] = np.rint(255 * strength)
    layer = Image.new("RGB", size[::-1], ATTENTION)
    layer.putalpha(Image.fromarray(alpha))
    return layer


def data_uri(image: Image.Image) -> str:
    """An image inside the page, as PNG."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# ---------------------------------------------------------------------------------------------------------------- HTML


def said(message: str, wrong: bool = False) -> str:
    """A sentence in place of an answer; screen readers say at once what went wrong."""
    kind = "class=alert role=alert" if wrong else "class=soft"
    return f"<div class=answer><div role=status><p {kind}>{html.escape(message)}</p></div></div>"


def answer(look: Look, config, selection: str) -> str:
    """The most probable classes, how many pixels that took, and what it cost."""
    rows = "".join(
        f"<tr><th scope=row>{html.escape(name)}<td><i style='--share: {score:.4f}'></i><td>{_percent(score)}"
        for name, score in look.classes[:5]
    )
    pixels, extra = int(np.prod(look.picture.shape[:2])), int(config.pooling == "cls")
    read = len(look.coordinates)
    cost = operations(config, read + extra) / operations(config, pixels + extra)
    facts = f"<b>{read:,} of {pixels:,} pixels read</b> ({_percent(read / pixels)})"
    facts += f", {_percent(cost)} of the arithmetic of reading all." if read < pixels else ": the whole picture."
    trained = _trained(config)
    if trained != (selection, None if selection == "all" else read):
        name, count = trained
        how = "all pixels" if name == "all" else f"{count:,} pixels chosen by “{name}”"
        facts += f" The model was trained on {how}; read otherwise, it is often wrong."
    return (
        f"<div class=answer><div role=status><table class=classes><caption>It takes this for</caption>{rows}</table>"
        f"<p class=facts>{facts}</p></div></div>"
    )


def _trained(config) -> tuple[str, int | None]:
    # Outside training the two ways to draw at random are one.
    name = "random" if config.pixel_selection == "random_fixed" else config.pixel_selection
    return name, config.num_selected_pixels


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else "< 0.1 %"


def pictures(look: Look) -> str:
    """The pixels that were read, and over them where one pixel or the whole image looks, for each layer and head.

    `chooser.js` makes both pictures answer to clicks and arrow keys.
    """
    height, width = look.picture.shape[:2]
    picture = data_uri(read_pixels(look))
    mark = ""
    if look.place is not None:
        mark = f'<i class=mark style="--row: {look.place[0]}; --column: {look.place[1]}"></i>'
    who = "the whole image" if look.place is None else "row {}, column {}".format(*look.place)
    board = (
        '<div class=board role=application tabindex=0 aria-label="{}, {} by {} pixels, {} is chosen. Arrow keys move, '
        'Escape chooses the whole image."><img alt="" src="{}">{}</div>'
    )
    shown = f"Where {who} looks"
    unread = "" if len(look.coordinates) == height * width else " Hatched ones were not."
    return (
        f'<section class=look style="--rows: {height}; --columns: {width}"><p class=note role=status>{_note(look)}</p>'
        f"<figure><figcaption><b>What was read</b><span>{len(look.coordinates):,} pixels.{unread}</span></figcaption>"
        f"{board.format('The pixels that were read', height, width, who, picture, mark)}</figure>"
        f"<figure><figcaption><b>{shown}</b></figcaption><div class=canvas>"
        f"{board.format(shown, height, width, who, picture, mark)}{_atlas(look)}</div></figure></section>"
    )


def _note(look: Look) -> str:
    """Whose attention is shown, where that is not the pixel asked for."""
    if look.place is None:
        who = "its image token looks" if look.to_token is not None else "all pixels look, on average"
        return f"Shown is where {who}. Click a pixel of either picture to see where that looks."
    if look.place != look.asked:
        return "Row {}, column {} was not read. The nearest pixel that was is row {}, column {}.".format(
            *look.asked, *look.place
        )
    return "Click a pixel of either picture to see where that looks."


def _atlas(look: Look) -> str:
    """All maps as a table of small pictures; the one chosen lies over the large picture, its numbers above it."""
    layers, heads, _ = look.attention.shape
    corner = "<span class=name></span>"
    names = "".join(f"<span class=name>{'All' if head == 0 else head}</span>" for head in range(heads + 1))
    cells = f"{corner}{names}"
    for layer in range(layers + 1):
        cells += f"<span class=name>{'All' if layer == 0 else layer}</span>"
        cells += "".join(_map(look, layer, head) for head in range(heads + 1))
    return (
        f'<fieldset class=atlas style="--layers: {layers + 2}; --heads: {heads + 2}"><legend>Layers 1 to {layers} and '
        f"heads 1 to {heads}, and their averages</legend><div class=maps>{cells}</div></fieldset>"
    )


def _map(look: Look, layer: int, head: int) -> str:
    weights = averaged(look.attention, layer, head)
    row, column = look.coordinates[weights.argmax()]
    name = f"{f'Layer {layer}' if layer else 'All layers'}, {f'head {head}' if head else 'all heads'}"
    fact = f"Most on row {row}, column {column}: {_percent(weights.max())} (even: {_percent(1 / len(weights))})."
    if look.to_token is not None:
        fact += f" Image token: {_percent(averaged(look.to_token, layer, head))}."
    uri = data_uri(heat(weights, look.coordinates, look.picture.shape[:2]))
    checked = " checked" if layer == head == 0 else ""
    return (
        f'<label title="{name}" style="--map: url({uri})"><input type=radio name=map value={layer}-{head} '
        f'aria-label="{name}. {fact}"{checked}><i class=thumb></i><i class=heat></i>'
        f"<span class=fact><b>{name}.</b> {fact}</span></label>"
    )
