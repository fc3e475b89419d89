"""The Space of PixelViT: what it computes, its API, its page in a browser, its card. One server for all of it."""

import importlib.util
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import space
import torch
from huggingface_hub import RepoCard, SpaceCardData
from packaging.requirements import Requirement
from PIL import Image
from space import DESKTOP, PHONE
from torch.utils.flop_counter import FlopCounterMode

from epigraph.models import PixelViTConfig, PixelViTForImageClassification, PixelViTImageProcessor

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "spaces" / "pixelvit"
CHECKPOINT = ROOT / "checkpoints" / "pixelvit-tiny"
EXAMPLES = sorted((FOLDER / "examples").glob("*.png"))
CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "<b>boot</b>"]
PIXELS = 28 * 28

_spec = importlib.util.spec_from_file_location("pixelvit_view", FOLDER / "view.py")
view = sys.modules["pixelvit_view"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(view)


def tiny(**changes):
    """A PixelViT of two layers with random weights, large enough that attention differs from place to place."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    labels = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}
    config = PixelViTConfig(**{**sizes, **labels, "num_channels": 1, "initializer_range": 0.3, **changes})
    model = PixelViTForImageClassification(config).eval()
    model.set_attn_implementation("eager")
    return model


def values_of(image, **settings):
    """(1, channels, height, width) as the page's model reads it, and (height, width, channels) as it is shown."""
    processor = PixelViTImageProcessor(num_channels=1, **settings)
    values = processor(image, return_tensors="pt")["pixel_values"]
    return values, np.moveaxis(processor(image, pixel_ids=True)["pixel_values"][0].numpy(), 0, -1).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------- what it shows


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("asked", [None, (9, 14)])
def test_attention_is_that_of_the_whole_maps_without_keeping_them(pooling, asked):
    model = tiny(pooling=pooling)
    values, picture = values_of(EXAMPLES[0])
    look = view.look_at(model, values, picture, "all", 0, asked)
    with torch.no_grad():
        expected = model(pixel_values=values, output_attentions=True)
    maps = torch.stack(expected.attentions)[:, 0].numpy()  # (layers, heads, from, to)
    first = pooling == "cls"
    if asked is not None:
        rows = maps[:, :, 9 * 28 + 14 + first]
    else:
        rows = maps[:, :, 0] if first else maps.mean(axis=2)
    np.testing.assert_allclose(look.attention, rows[..., first:], atol=1e-6)
    if first:
        np.testing.assert_allclose(look.to_token, rows[..., 0], atol=1e-6)
    else:
        assert look.to_token is None
    assert look.attention.shape == (2, 2, PIXELS) and look.place == asked
    best = expected.logits[0].softmax(0).max(0)
    assert look.classes[0] == (CLASSES[int(best.indices)], pytest.approx(float(best.values), abs=1e-5))
    assert sum(score for _, score in look.classes) == pytest.approx(1, abs=1e-5)
    with torch.no_grad():
        assert model(pixel_values=values, output_attentions=True).attentions[0] is not None  # no hook stays behind


@pytest.mark.parametrize("selection", ["ink", "edge", "saliency", "grid", "random"])
def test_some_pixels_are_read_as_the_model_itself_would_select_them(selection):
    values, picture = values_of(EXAMPLES[7])
    look = view.look_at(tiny(), values, picture, selection, 50, None)
    model = tiny(pixel_selection=selection, num_selected_pixels=50)
    with torch.no_grad():
        expected = model(pixel_values=values)
    assert np.array_equal(look.coordinates, expected.coordinates[0].numpy())
    scores = dict(look.classes)
    for name, score in zip(CLASSES, expected.logits[0].softmax(0).tolist()):
        assert scores[name] == pytest.approx(score, abs=1e-5)


def test_a_pixel_that_was_not_read_gives_way_to_the_nearest():
    assert view.nearest(np.array([[0, 0], [5, 5], [5, 9]]), (6, 6)) == 1
    values, picture = values_of(EXAMPLES[7])
    look = view.look_at(tiny(), values, picture, "ink", 50, (0, 0))
    distances = np.abs(look.coordinates).max(axis=1)
    assert look.asked == (0, 0) and distances.min() > 0 and list(look.place) in look.coordinates.tolist()
    squares = np.square(look.coordinates).sum(axis=1)
    assert np.square(look.place).sum() == squares.min()
    page = view.pictures(look)
    assert "Row 0, column 0 was not read. The nearest pixel that was is row {}, column {}.".format(*look.place) in page


@pytest.mark.parametrize("count", [0, -1, PIXELS + 1])
def test_numbers_of_pixels_out_of_range_are_refused(count):
    values, picture = values_of(EXAMPLES[0])
    with pytest.raises(ValueError, match=f"must be 1 to 784, not {count}"):
        view.look_at(tiny(), values, picture, "ink", count, None)


def test_averages_are_over_layers_and_heads():
    maps = np.random.default_rng(0).random((3, 2, 5))
    np.testing.assert_array_equal(view.averaged(maps, 2, 1), maps[1, 0])
    np.testing.assert_allclose(view.averaged(maps, 0, 2), maps[:, 1].mean(0))
    np.testing.assert_allclose(view.averaged(maps, 3, 0), maps[2].mean(0))
    np.testing.assert_allclose(view.averaged(maps, 0, 0), maps.mean((0, 1)))


def test_operations_are_what_torch_counts():
    model = tiny(pooling="mean")
    values, _ = values_of(EXAMPLES[0])
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model(pixel_values=values)
    ends = 2 * PIXELS * 32 + 2 * 32 * len(CLASSES)  # the projection of pixels and the classifier
    assert view.operations(model.config, PIXELS) == counted.get_total_flops() - ends


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_drawn_pixel_for_pixel(channels):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    coordinates, weights = np.array([[0, 6], [4, 0], [2, 3]]), np.array([0.25, 1.0, 0.0])
    look = view.Look(picture, coordinates, [], None, None, weights[None, None], None)
    shown = np.asarray(view.read_pixels(look))
    assert shown.shape == (5, 7, 4) and np.array_equal(shown[..., :3], np.broadcast_to(picture, (5, 7, 3)))
    read = np.zeros((5, 7), bool)
    read[tuple(coordinates.T)] = True
    assert (shown[read, 3] == 255).all() and (shown[~read, 3] == view.GHOST).all()
    layer = np.asarray(view.heat(weights, coordinates, (5, 7)))[..., 3]
    assert [layer[tuple(place)] for place in coordinates] == [128, 255, 0]  # the square root of a quarter is a half
    assert not layer[~read].any()
    assert not np.asarray(view.heat(np.zeros(3), coordinates, (5, 7)))[..., 3].any()


def test_words_of_the_model_and_of_messages_are_text_and_not_html():
    look = view.Look(np.zeros((2, 2, 1), np.uint8), np.array([[0, 0]]), [("<b>boot</b>", 1.0)], None, None, None, None)
    page = view.answer(look, tiny().config, "ink")
    assert "&lt;b&gt;boot&lt;/b&gt;" in page and "<b>boot" not in page
    assert "<script>" not in view.said("<script>", wrong=True)


def test_it_says_when_the_model_was_trained_otherwise():
    look = view.Look(np.zeros((28, 28, 1), np.uint8), np.zeros((49, 2), int), [], None, None, None, None)
    assert "trained on all pixels" in view.answer(look, tiny().config, "ink")
    trained = tiny(pixel_selection="ink", num_selected_pixels=49).config
    assert "trained on" not in view.answer(look, trained, "ink")
    assert "trained on 49 pixels chosen by “ink”" in view.answer(look, trained, "edge")
    trained = tiny(pixel_selection="random_fixed", num_selected_pixels=49).config
    assert "trained on" not in view.answer(look, trained, "random")


# ----------------------------------------------------------------------------------------------------------------- API

needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="gradio is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny model with its processor."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny().save_pretrained(folder)
    PixelViTImageProcessor(num_channels=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def url(tmp_path_factory, folder):
    if find_spec("gradio") is None:
        pytest.skip("gradio is not installed")
    with space.serve(tmp_path_factory.mktemp("space"), FOLDER, folder) as address:
        yield address


@pytest.fixture(scope="module")
def client(url, tmp_path_factory):
    from gradio_client import Client

    return Client(url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


def ask(client, path, name="/read_file", **settings):
    from gradio_client import handle_file

    settings = {"selection": "all", "count": 196, "invert": False, **settings}
    return client.predict(file=handle_file(path), **settings, api_name=name)


def refusal(call):
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError) as caught:
        call()
    return str(caught.value)


def test_endpoints_are_documented(client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(endpoints) == {"/read_file", "/read_attention"}
    assert "what is in an image" in endpoints["/read_file"]["description"]
    for document in (FOLDER / "README.md", ROOT / "docs" / "space.md"):
        assert all(f"`{name}`" in document.read_text() for name in endpoints), document


def test_a_file_is_classified_as_by_the_pipeline(client, folder):
    from transformers import pipeline

    classify = pipeline("image-classification", model=str(folder))
    for path in (EXAMPLES[0], EXAMPLES[9]):
        answer = ask(client, path)
        assert answer["pixels_read"] == answer["pixels"] == PIXELS
        expected = classify(str(path), top_k=len(CLASSES))
        assert [entry["label"] for entry in answer["classes"]] == [entry["label"] for entry in expected]
        scores = [entry["score"] for entry in expected]
        assert [entry["score"] for entry in answer["classes"]] == pytest.approx(scores, abs=1e-4)


def test_attention_of_the_api_is_that_of_the_view(client):
    values, picture = values_of(EXAMPLES[9])
    look = view.look_at(tiny(), values, picture, "edge", 60, (20, 3))
    settings = {"selection": "edge", "count": 60, "row": 20, "column": 3}
    answer = ask(client, EXAMPLES[9], "/read_attention", **settings, layer=2, head=1)
    assert (answer["row"], answer["column"]) == look.place
    assert answer["to_image_token"] == pytest.approx(float(look.to_token[1, 0]), abs=1e-5)
    found = np.array(answer["attention"], dtype=float)
    assert found.shape == (28, 28) and np.isfinite(found).sum() == 60
    np.testing.assert_allclose(found[tuple(look.coordinates.T)], look.attention[1, 0], atol=1e-5)
    whole = ask(client, EXAMPLES[9], "/read_attention", row=-1, column=-1, layer=0, head=0)
    assert (whole["row"], whole["column"]) == (-1, -1)
    assert np.array(whole["attention"]).sum() + whole["to_image_token"] == pytest.approx(1, abs=1e-3)


def test_dark_and_bright_can_be_exchanged(client, tmp_path):
    Image.eval(Image.open(EXAMPLES[7]), lambda value: 255 - value).save(tmp_path / "negative.png")
    answer, plain = ask(client, tmp_path / "negative.png", invert=True), ask(client, EXAMPLES[7])
    assert answer == plain != ask(client, tmp_path / "negative.png")


def test_bad_files_are_named_with_what_to_do(client, tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    (tmp_path / "torn.png").write_bytes(EXAMPLES[0].read_bytes()[:200])
    Image.new("1", (9000, 9000)).save(tmp_path / "large.png")
    frames = [Image.new("L", (9, 9), value) for value in (0, 255)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    reasons = {"notes.png": "is no image", "torn.png": "damaged", "large.png": "81,000,000", "moving.gif": "2 frames"}
    for name, reason in reasons.items():
        message = refusal(lambda name=name: ask(client, tmp_path / name))
        assert message.startswith(f"{name}: ") and reason in message and "Upload a PNG" in message
        assert str(tmp_path) not in message and "uploads" not in message
    assert ask(client, EXAMPLES[0])["pixels_read"] == PIXELS


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"count": 0, "selection": "ink"}, "must be 1 to 784"),
        ({"count": 10**9, "selection": "ink"}, "must be 1 to 784"),
        ({"selection": "everything"}, "everything"),
        ({"count": None, "selection": "ink"}, "must be 1 to 784"),
        ({"row": 28}, "row must be a whole number, -1 to 27"),
        ({"column": None}, "column must be"),
        ({"layer": 3}, "layer must be a whole number, 0 to 2"),
        ({"head": -1}, "head must be a whole number, 0 to 2"),
    ],
)
def test_settings_out_of_range_are_refused(client, settings, reason):
    name = "/read_attention" if settings.keys() & {"row", "column", "layer", "head"} else "/read_file"
    place = {"row": 0, "column": 0, "layer": 0, "head": 0} if name == "/read_attention" else {}
    assert reason in refusal(lambda: ask(client, EXAMPLES[0], name, **{**place, **settings}))


@pytest.mark.parametrize(
    "file",
    [
        {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
        {"path": "examples/0_t-shirt.png", "meta": {"_type": "gradio.FileData"}},
        "/etc/passwd",
        {"path": "http://127.0.0.1:9/picture.png", "meta": {"_type": "gradio.FileData"}},
        None,
    ],
    ids=["absolute", "relative", "string", "address inside", "nothing"],
)
def test_files_of_the_server_are_not_read(url, file):
    import httpx

    event = httpx.post(f"{url}/gradio_api/call/read_file", json={"data": [file, "all", 1, False]}, timeout=60)
    answer = event.text
    if event.status_code == 200:
        answer = httpx.get(f"{url}/gradio_api/call/read_file/{event.json()['event_id']}", timeout=60).text
    assert "event: error" in answer and "root:" not in answer and "classes" not in answer
    assert "passwd: " not in answer and "t-shirt.png: " not in answer, "it got as far as the reader"


@needs_gradio
@pytest.mark.skipif(not (CHECKPOINT / "config.json").is_file(), reason="checkpoints/pixelvit-tiny is not there yet")
def test_the_shipped_checkpoint_knows_the_examples(tmp_path):
    """The first test image of every class; that many a garment is mistaken for its like is in the card."""
    with space.serve(tmp_path, FOLDER, CHECKPOINT) as address:
        from gradio_client import Client

        client = Client(address, verbose=False)
        as_trained = {"selection": "ink", "count": 196}
        names = [ask(client, path, **as_trained)["classes"][0]["label"] for path in EXAMPLES]
    right = [path.stem.partition("_")[2].replace("_", " ") in name.lower() for path, name in zip(EXAMPLES, names)]
    assert sum(right) >= 7, names


# ---------------------------------------------------------------------------------------------------------------- page


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def page(request, browser, url):
    """The page, with its first example read."""
    with space.visit(browser, url, request.param) as page:
        page.locator(".look .board").first.wait_for()
        page.locator(".chooser button[aria-pressed]").wait_for()  # its script runs, and hears clicks on the pictures
        yield page


def wait_for(page, selector, text):
    page.wait_for_function(
        "([selector, text]) => document.querySelector(selector)?.innerText.includes(text)", arg=[selector, text]
    )


def state(page):
    """What is chosen: row and column as texts, and name of the map."""
    row, column = (page.locator(f".chooser [name={name}]").input_value() for name in ("row", "column"))
    return row, column, page.locator(".maps :checked").get_attribute("value")


def alpha(page, number):
    """Opacity of the pixels of one of the two pictures, (28, 28), as the page holds it."""
    return np.array(
        page.locator(".board img")
        .nth(number)
        .evaluate(
            """async (image) => {
              await image.decode();
              const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
              const context = canvas.getContext("2d");
              context.drawImage(image, 0, 0);
              const { data, width, height } = context.getImageData(0, 0, canvas.width, canvas.height);
              const alpha = data.filter((value, i) => i % 4 === 3);
              return [...Array(height).keys()].map((y) => [...alpha.slice(y * width, (y + 1) * width)]);
            }"""
        )
    )


@pytest.mark.browser
def test_the_page_begins_with_an_example_and_shows_which_pixels_are_read(page, client):
    wait_for(page, ".facts", "784 of 784 pixels read")
    assert (alpha(page, 0) == 255).all()
    page.locator(".examples label", has_text="Sneaker").click()
    page.get_by_label("Ink", exact=True).check()
    wait_for(page, ".facts", "196 of 784 pixels read (25.0 %)")
    values, picture = values_of(EXAMPLES[7])
    look = view.look_at(tiny(), values, picture, "ink", 196, None)
    expected = np.asarray(view.read_pixels(look))[..., 3]
    assert np.array_equal(alpha(page, 0), expected) and np.array_equal(alpha(page, 1), expected)
    answer = ask(client, EXAMPLES[7], selection="ink")["classes"]
    rows = page.locator(".classes tr").all_inner_texts()
    assert [row.split("\t")[0] for row in rows] == [entry["label"] for entry in answer[:5]]
    page.get_by_label("number input for How many").fill("30")
    page.get_by_label("number input for How many").press("Enter")
    wait_for(page, ".facts", "30 of 784 pixels read (3.8 %)")
    assert (alpha(page, 0) == 255).sum() == 30


@pytest.mark.browser
def test_a_clicked_pixel_shows_where_it_looks(page):
    wait_for(page, ".note", "image token looks")
    board = page.locator(".board").first
    box = board.bounding_box()
    assert box["width"] == box["height"] and box["width"] % 28 == 0, "a pixel is a whole number of pixels"
    side = box["width"] / 28
    board.click(position={"x": 20.5 * side, "y": 7.5 * side})
    wait_for(page, ".look", "Where row 7, column 20 looks")
    assert state(page) == ("7", "20", "0-0")
    mark = page.locator(".mark").first.bounding_box()
    assert mark["x"] - box["x"] == pytest.approx(20 * side, abs=1) and mark["width"] == pytest.approx(side, abs=1)
    page.get_by_role("button", name="Whole image").click()
    wait_for(page, ".look", "Where the whole image looks")
    assert state(page)[:2] == ("", "")


@pytest.mark.browser
@pytest.mark.parametrize("page", [PHONE], indirect=True)
def test_a_pixel_that_was_not_read_is_said_and_replaced(page):
    page.get_by_label("Ink", exact=True).check()
    wait_for(page, ".facts", "196 of 784")
    page.locator(".board").nth(1).click(position={"x": 3, "y": 3})
    wait_for(page, ".note", "Row 0, column 0 was not read. The nearest pixel that was is row")


@pytest.mark.browser
@pytest.mark.parametrize("page", [DESKTOP], indirect=True)
def test_maps_are_chosen_by_pointer_and_keyboard_and_stay_chosen(page):
    def visible():
        heats = page.locator(".maps label").evaluate_all(
            """labels => labels.map((label) => [getComputedStyle(label.querySelector(".heat")).opacity,
                getComputedStyle(label.querySelector(".fact")).visibility, label.querySelector("input").value])"""
        )
        return [value for opacity, shown, value in heats if opacity == "1" and shown == "visible"]

    assert visible() == ["0-0"] and page.locator(".maps label").count() == 3 * 3
    page.locator(".maps label[title='Layer 1, head 2']").click()
    assert visible() == ["1-2"]
    page.keyboard.press("ArrowRight")
    assert visible() == ["2-0"]
    page.locator(".chooser [name=row]").fill("5")
    page.locator(".chooser [name=column]").fill("6")
    page.keyboard.press("Enter")
    wait_for(page, ".look", "Where row 5, column 6 looks")
    assert visible() == ["2-0"] and state(page) == ("5", "6", "2-0")
    picture, heat = (page.locator(one).bounding_box() for one in (".canvas .board", ".maps label:has(:checked) .heat"))
    assert picture == pytest.approx(heat, abs=1)


@pytest.mark.browser
@pytest.mark.parametrize("page", [DESKTOP], indirect=True)
def test_arrow_keys_walk_over_pixels_and_keep_the_focus(page):
    page.locator(".board").first.focus()
    for key, place in (("ArrowDown", (15, 14)), ("ArrowLeft", (15, 13)), ("ArrowLeft", (15, 12))):
        page.keyboard.press(key)
        wait_for(page, ".look", "Where row {}, column {} looks".format(*place))
    for _ in range(3):  # faster than answers come
        page.keyboard.press("ArrowUp")
    wait_for(page, ".look", "Where row 12, column 12 looks")
    assert page.evaluate("document.activeElement.className") == "board"
    page.keyboard.press("Escape")
    wait_for(page, ".look", "Where the whole image looks")


@pytest.mark.browser
@pytest.mark.parametrize("page", [DESKTOP], indirect=True)
def test_uploads_are_read_inverted_where_light_and_explained_where_bad(page, client, tmp_path):
    Image.eval(Image.open(EXAMPLES[8]), lambda value: 255 - value).resize((280, 280)).save(tmp_path / "bag.png")
    (tmp_path / "notes.png").write_text("no picture")
    page.locator("input[type=file]").set_input_files(tmp_path / "bag.png")
    page.wait_for_function("document.querySelector('.examples :checked') === null")
    exchange = page.get_by_label("Exchange dark and bright")
    assert exchange.is_checked()
    expected = ask(client, tmp_path / "bag.png", invert=True)["classes"]
    best = page.locator(".classes tr").first
    assert best.inner_text().split("\t")[0] == expected[0]["label"]
    exchange.uncheck()
    expected = ask(client, tmp_path / "bag.png")["classes"][0]
    wait_for(page, ".classes tr", f"{100 * expected['score']:.1f} %")
    page.get_by_label("Remove this file").or_(page.get_by_label("Clear")).first.click()
    wait_for(page, ".answer", "Choose an example, or upload a picture.")
    page.locator("input[type=file]").set_input_files(tmp_path / "notes.png")
    page.get_by_role("alert").wait_for()
    assert "notes.png: it is no image" in page.get_by_role("alert").inner_text()
    page.locator(".examples label", has_text="Dress").click()
    wait_for(page, ".facts", "784 of 784")
    assert page.get_by_role("alert").count() == 0


@pytest.mark.browser
@pytest.mark.parametrize("page", [DESKTOP], indirect=True)
def test_every_control_has_a_name_and_is_reached_by_keyboard(page):
    unnamed = page.evaluate(
        """[...document.querySelectorAll(".gradio-container :is(input, button, [tabindex='0'])")].filter((control) =>
            control.offsetParent && !control.ariaLabel && !control.labels?.[0]?.innerText.trim()
            && !control.innerText?.trim() && !control.title).map((control) => control.outerHTML)"""
    )
    assert not unnamed
    reached = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "(({ name, className, innerText }) => name || className || innerText)(document.activeElement)"
            )
        )
    assert {"example", "row", "column", "Whole image", "map", "board"} <= reached, reached


# ---------------------------------------------------------------------------------------------------------------- card


def test_the_card_is_what_the_hub_expects():
    card = RepoCard.load(FOLDER / "README.md")
    data = SpaceCardData(**card.data.to_dict())
    assert (data.sdk, data.app_file, data.python_version) == ("gradio", "app.py", "3.11")
    assert data.models == data.preload_from_hub == ["epigraph/pixelvit-tiny"] and len(data.short_description) <= 60
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    gradio = next(
        wanted for wanted in map(Requirement, project["optional-dependencies"]["demo"]) if wanted.name == "gradio"
    )
    assert gradio.specifier.contains(data.sdk_version)
    wanted = [(folder / "requirements.txt").read_text() for folder in (FOLDER, space.FOLDER)]
    assert wanted[0] == wanted[1], "both Spaces need the same"


def test_the_examples_are_small_grey_and_come_with_their_licence():
    assert len(EXAMPLES) == 10
    for path in EXAMPLES:
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "L", (28, 28))
    licence = (FOLDER / "examples" / "LICENSE").read_text()
    assert "Copyright 2017 Zalando SE" in licence and "Permission is hereby granted" in licence


def test_the_examples_are_those_of_the_script(tmp_path):
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import garment_examples
    finally:
        sys.path.pop(0)
    if not Path(garment_examples.FASHION_FOLDER).is_dir():
        pytest.skip("dataset-fashion-mnist is not installed")
    garment_examples.main(["--output", str(tmp_path)])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {p.name: p.read_bytes() for p in EXAMPLES}
