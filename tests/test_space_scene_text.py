"""The Space of scene text: its API, its page in a browser, its card. One server for all of it."""

import re
import sys
import time
import tomllib
import zipfile
from importlib.util import find_spec

import numpy as np
import pytest
import space
from huggingface_hub import RepoCard, SpaceCardData
from packaging.requirements import Requirement
from PIL import Image
from scene_text import FOLDER, ROOT, SIBLINGS, other, visits
from space import DESKTOP, PHONE
from word_drawings import MEANINGS, draw

import epigraph
from epigraph import reading
from epigraph.context_pool import ContextPool

EXAMPLES = sorted((FOLDER / "examples").glob("*.png"))


@pytest.fixture(scope="module")
def loaded(word_reader):
    return reading.load(word_reader)


@pytest.fixture(scope="module")
def encode(loaded):
    return epigraph.encoder(*loaded)


# ----------------------------------------------------------------------------------------------------------------- API


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where the server runs, and writes what it writes."""
    return tmp_path_factory.mktemp("space")


@pytest.fixture(scope="module")
def url(home, word_reader):
    if find_spec("gradio") is None:
        pytest.skip("gradio is not installed")
    # gradio keeps what belongs to a visit for an hour after the page was closed; so set, for a second.
    with space.serve(home, FOLDER, word_reader, GRADIO_IS_E2E_TEST="1") as address:
        yield address


@pytest.fixture(scope="module")
def client(url, tmp_path_factory):
    from gradio_client import Client

    return Client(url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Paths of drawings by name: sign, twin (another picture of it), cat, exit, and notes, which is no image."""
    folder = tmp_path_factory.mktemp("words")
    for name, drawing in {"sign": SIBLINGS[0], "twin": SIBLINGS[1], "cat": ("cat", 0), "exit": ("Exit", 0)}.items():
        draw(*drawing).save(folder / f"{name}.png")
    (folder / "notes.png").write_text("no picture")
    return {path.stem: path for path in folder.iterdir()}


def ask(client, path, pool=None, k=2):
    from gradio_client import handle_file

    return client.predict(handle_file(path), pool and handle_file(pool), k, api_name="/read_file")


def add(client, path, text, pool=None):
    from gradio_client import handle_file

    return client.predict(handle_file(path), text, pool and handle_file(pool), api_name="/add_to_pool")


def refusal(call):
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError) as caught:
        call()
    return str(caught.value)


def test_endpoints_are_documented(client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(endpoints) == {"/read_file", "/add_to_pool"}
    assert "word in an image" in endpoints["/read_file"]["description"]
    for document in (FOLDER / "README.md", ROOT / "docs" / "space.md"):
        assert all(f"`{name}`" in document.read_text() for name in endpoints), document


def test_the_api_reads_as_the_package_does(client, files, loaded, encode, tmp_path):
    model, processor = loaded
    answer = ask(client, files["exit"])
    expected = epigraph.read(files["exit"], model, processor=processor, n_best=4)
    assert answer["text"] == "Exit" == answer["plain_text"] and answer["examples"] == []
    assert answer["score"] == pytest.approx(expected.score, abs=1e-4) and not answer["doubtful"]
    assert answer["char_scores"] == pytest.approx(expected.char_scores, abs=1e-4) and len(answer["char_scores"]) == 4
    assert [other["text"] for other in answer["n_best"]] == [other.text for other in expected.n_best]

    wrong = ask(client, files["twin"])["text"]
    pool = add(client, files["sign"], other(wrong))
    pool = add(client, files["cat"], "cat", pool)
    zipfile.ZipFile(pool).extractall(tmp_path)
    opened = ContextPool.load(tmp_path / "pool", encode)
    assert sorted(opened.texts) == sorted([other(wrong), "cat"])
    answer = ask(client, files["twin"], pool)
    expected = epigraph.read(files["twin"], model, processor=processor, pool=opened)
    assert answer["text"] == other(wrong) == expected.text and answer["plain_text"] == wrong
    assert [(used["text"], used["similarity"]) for used in answer["examples"]] == [
        (used.text, pytest.approx(used.similarity, abs=1e-4)) for used in expected.examples
    ]
    assert ask(client, files["twin"], pool, k=0)["text"] == wrong
    assert len(ask(client, files["sign"], pool)["examples"]) == 1, "a word is never its own example"
    corrected = add(client, files["sign"], wrong, pool)
    assert ask(client, files["twin"], corrected)["text"] == wrong


def test_what_cannot_be_read_or_added_is_an_error_that_says_why(client, files, tmp_path):
    message = refusal(lambda: ask(client, files["notes"]))
    assert message.startswith("notes.png: not an image")
    assert refusal(lambda: ask(client, files["cat"], files["notes"])).startswith("notes.png: no zip archive")
    for text, reason in (("", "needs the word"), ("x" * 49, "at most 48"), ("straße", "'ß'")):
        assert reason in refusal(lambda text=text: add(client, files["cat"], text))
    for k in (-1, 9, None):
        assert "0 to 8" in refusal(lambda k=k: ask(client, files["cat"], k=k))
    Image.new("1", (9000, 9000)).save(tmp_path / "large.png")
    assert "81,000,000" in refusal(lambda: ask(client, tmp_path / "large.png"))
    assert ask(client, files["cat"])["text"] == "cat"


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(
    "file",
    [
        {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
        {"path": "app.py", "meta": {"_type": "gradio.FileData"}},
        "/etc/passwd",
        {"path": "http://127.0.0.1:9/word.png", "meta": {"_type": "gradio.FileData"}},
    ],
    ids=["absolute", "relative", "string", "address inside"],
)
def test_files_of_the_server_are_not_read(url, client, files, file, place):
    import httpx

    with open(files["cat"], "rb") as content:
        (path,) = httpx.post(f"{url}/gradio_api/upload", files={"files": ("cat.png", content)}).json()
    sound = {"path": path, "meta": {"_type": "gradio.FileData"}}
    data = [file, None, 2] if place == 0 else [sound, file, 2]
    event = httpx.post(f"{url}/gradio_api/call/read_file", json={"data": data}, timeout=60)
    answer = event.text
    if event.status_code == 200:
        answer = httpx.get(f"{url}/gradio_api/call/read_file/{event.json()['event_id']}", timeout=60).text
    assert "event: error" in answer and "root:" not in answer and '"text"' not in answer
    assert "passwd: " not in answer and "app.py: " not in answer, "it got as far as the reader"


# ---------------------------------------------------------------------------------------------------------------- page


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def page(request, browser, url):
    """The page, ready."""
    with space.visit(browser, url, request.param) as page:
        ready(page)
        yield page


def ready(page):
    page.locator(".answer").wait_for()
    page.locator(".pictures input[type=file]").wait_for(state="attached")
    page.locator("[data-listening]").wait_for(state="attached")  # its script runs, and hears what is pressed


def upload(page, *paths):
    before = page.locator(".words button").count()
    page.locator(".pictures input[type=file]").set_input_files(list(paths))
    page.wait_for_function("n => document.querySelectorAll('.words button').length === n", arg=before + len(paths))


def wait_for(page, selector, text):
    page.wait_for_function(
        "([selector, text]) => document.querySelector(selector)?.textContent.includes(text)", arg=[selector, text]
    )


def shown_text(page):
    return page.locator(".answer .text").inner_text()


def teach(page, text):
    page.locator(".correction input").fill(text)
    page.get_by_role("button", name="Correct").click()
    wait_for(page, ".message", f"{text} is in your pool now.")


@pytest.mark.browser
def test_read_correct_and_read_a_sibling_better(page, files):
    upload(page, files["sign"])
    wrong = shown_text(page)
    assert wrong in MEANINGS and [bar.split("\n")[0] for bar in page.locator(".chars li").all_inner_texts()] == [
        *wrong
    ]
    wait_for(page, ".used", "Since your pool is empty.")
    right = other(wrong)
    page.locator(".choices button").filter(has_text=re.compile(rf"^{right}\b")).click()  # one click corrects
    wait_for(page, ".message", f"{right} is in your pool now. One word was read anew; none changed.")
    wait_for(page, ".pool li", right)
    assert shown_text(page) == wrong, "no word is its own example"
    assert page.locator(".choices button").count() == 0
    wait_for(page, ".words button", right)

    upload(page, files["twin"])
    assert shown_text(page) == right and "Probably right" in page.locator(".confidence").inner_text()
    assert f"Without examples: {wrong}" in page.locator(".facts").inner_text()
    assert page.locator(".used li b").all_inner_texts() == [right]
    assert page.locator(".used li img").count() == 1


@pytest.mark.browser
@pytest.mark.parametrize("page", [DESKTOP], indirect=True)
def test_a_correction_reads_all_words_of_the_visit_anew(page, files):
    upload(page, files["sign"], files["twin"], files["cat"], files["exit"])
    assert page.locator(".words button span").all_inner_texts()[2:] == ["cat", "Exit"]
    wrong = shown_text(page)
    teach(page, other(wrong))
    wait_for(page, ".message", f"4 words were read anew; 1 changed: {wrong} → {other(wrong)}.")
    twin = page.locator(".words button").nth(1)
    assert twin.inner_text().split("\n") == [other(wrong), f"was {wrong}"]
    twin.click()
    wait_for(page, ".answer .text", other(wrong))
    assert f"Before your pool changed it was {wrong}" in page.locator(".facts").inner_text()
    assert page.locator(".correction input").input_value() == other(wrong), "the field follows the word"
    page.get_by_role("button", name="Undo").click()
    wait_for(page, ".message", f"Taken back. 4 words were read anew; 1 changed: {other(wrong)} → {wrong}.")
    assert page.locator(".pool li").count() == 0 and shown_text(page) == wrong


@pytest.mark.browser
@pytest.mark.parametrize("page", [DESKTOP], indirect=True)
def test_a_correction_is_of_the_word_that_it_is_written_under(page, files):
    upload(page, files["sign"], files["cat"])
    page.locator(".correction input").fill("XY")
    page.evaluate(
        """() => {
          document.querySelectorAll(".words button")[1].click(); // the answer is not there yet
          document.querySelector(".correction").requestSubmit();
        }"""
    )
    wait_for(page, ".message", "XY is in your pool now.")
    sign, cat = page.locator(".words button").all_inner_texts()
    assert sign == "XY\n✓ in your pool" and cat.startswith("cat") and "your pool" not in cat


@pytest.mark.browser
@pytest.mark.parametrize("page", [DESKTOP], indirect=True)
def test_the_number_of_examples_can_be_chosen(page, files):
    upload(page, files["cat"], files["twin"], files["sign"])
    teach(page, "cat")
    page.locator(".words button").nth(2).click()
    wait_for(page, ".correction", "Something else")
    right = other(shown_text(page))
    teach(page, right)
    page.locator(".words button").nth(1).click()
    page.wait_for_function("document.querySelectorAll('.used li').length === 2")
    number = page.get_by_label("number input for Examples for each word")
    for k, count in ((1, 1), (0, 0)):
        number.fill(str(k))
        number.press("Enter")
        page.wait_for_function("n => document.querySelectorAll('.used li').length === n", arg=count)
    assert shown_text(page) == other(right)


@pytest.mark.browser
@pytest.mark.parametrize("page", [DESKTOP], indirect=True)
def test_a_pool_is_downloaded_and_serves_the_next_visit(page, browser, url, files, home, tmp_path):
    upload(page, files["sign"])
    right = other(shown_text(page))
    teach(page, right)
    for _ in range(2):  # also the same once more
        with page.expect_download() as download:
            page.get_by_role("button", name="Download").click()
        assert download.value.suggested_filename == "pool.zip"
    download.value.save_as(tmp_path / "mine.zip")
    assert [text for _, text, _ in visits.unpacked(tmp_path / "mine.zip", "")] == [right]
    with space.visit(browser, url, DESKTOP) as second:
        ready(second)
        assert second.locator(".pool li").count() == 0, "a pool belongs to one visitor"
        upload(second, files["twin"])
        assert shown_text(second) != right
        with second.expect_file_chooser() as chooser:
            second.get_by_role("button", name="Add from a file").click()
        chooser.value.set_files(tmp_path / "mine.zip")
        wait_for(second, ".message", "One word came into your pool.")
        wait_for(second, ".answer .text", right)
        second.locator(".pool button").click()
        wait_for(second, ".message", "Removed.")
        assert shown_text(second) != right and second.locator(".pool li").count() == 0
        (tmp_path / "torn.zip").write_bytes((tmp_path / "mine.zip").read_bytes()[:-30])
        second.locator("input[accept='.zip']").set_input_files(tmp_path / "torn.zip")
        wait_for(second, "[role=alert]", "torn.zip: no zip archive")
    assert page.locator(".pool li").count() == 1, "what another does with it is nothing to the first"
    assert not [path for path in (home / "uploads").rglob("*") if path.name in ("sign.png", "twin.png", "mine.zip")]


@pytest.mark.browser
def test_nothing_is_left_of_a_visit(browser, url, files, home):
    def pools():
        return {path.parent for path in (home / "temporary").glob("epigraph-visit-*/manifest.json")}

    before = pools()
    with space.visit(browser, url, PHONE) as page:
        ready(page)
        upload(page, files["cat"])
        teach(page, "cat")
        (mine,) = pools() - before
    deadline = time.monotonic() + 30
    while mine.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not mine.exists()


@pytest.mark.browser
@pytest.mark.parametrize("page", [DESKTOP], indirect=True)
def test_pictures_are_pasted(page, files):
    content = list(files["exit"].read_bytes())
    page.evaluate(
        """(content) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(content)], "image.png", { type: "image/png" }));
          document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true }));
        }""",
        content,
    )
    wait_for(page, ".answer .text", "Exit")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate("navigator.clipboard.writeText('no picture')")
    page.get_by_role("button", name="Paste a picture").click()
    wait_for(page, "[role=alert]", "no picture in the clipboard")
    draw("cat").save(files["exit"].parent / "copied.png")
    page.evaluate(
        """async (content) => navigator.clipboard.write([new ClipboardItem({
            "image/png": new Blob([new Uint8Array(content)], { type: "image/png" }) })])""",
        list((files["exit"].parent / "copied.png").read_bytes()),
    )
    page.get_by_role("button", name="Paste a picture").click()
    wait_for(page, ".answer .text", "cat")
    assert page.get_by_role("alert").count() == 0


@pytest.mark.browser
def test_bad_files_and_texts_are_explained_and_the_page_stays_usable(page, files):
    page.locator(".pictures input[type=file]").set_input_files([files["notes"], files["cat"]])
    wait_for(page, "[role=alert]", "notes.png: not an image")
    assert shown_text(page) == "cat" and page.locator(".words button").count() == 1, "the others are read"
    page.locator(".correction input").fill("straße")
    page.get_by_role("button", name="Correct").click()
    wait_for(page, "[role=alert]", "cannot write")
    for text in ("${1 + 1}", "{{value}}", "<b>"):  # is neither code nor a template
        teach(page, text)
        assert page.locator(".words button span").inner_text() == page.locator(".pool li span").inner_text() == text
    page.locator(".correction input").fill("  ")
    page.get_by_role("button", name="Correct").click()
    wait_for(page, "[role=alert]", "Write what the picture says")
    teach(page, "dog")
    assert page.get_by_role("alert").count() == 0 and page.locator(".pool li span").all_inner_texts() == ["dog"]


@pytest.mark.browser
def test_examples_are_read_together(page):
    page.get_by_role("button", name="Examples: rounded").click()
    wait_for(page, ".message", "6 words were read.")
    assert page.locator(".words button").count() == 6
    assert page.locator(".words [aria-pressed=true]").get_attribute("title") == "rounded_1_market"


@pytest.mark.browser
@pytest.mark.parametrize("page", [DESKTOP], indirect=True)
def test_everything_is_done_by_keyboard(page, files):
    upload(page, files["sign"], files["twin"])
    structure = page.locator("body").aria_snapshot()
    kinds = re.findall(r"- '?(button|textbox|slider|spinbutton)\b", structure)
    named = re.findall(r"- '?(button|textbox|slider|spinbutton)\b \"[^\"]+\"", structure)
    assert len(kinds) >= 15 and kinds == named, structure
    reached = []
    while "Correct" not in reached and len(reached) < 40:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.ariaLabel || document.activeElement.innerText"))
    assert {"Paste a picture", "Examples: discs", "Correct"} <= set(reached), reached
    wrong = shown_text(page)
    page.locator(".correction input").focus()
    page.keyboard.press("Control+a")
    page.keyboard.type(other(wrong))
    page.keyboard.press("Enter")
    wait_for(page, ".message", "is in your pool now.")
    twin = page.locator(".words button").nth(1)
    twin.focus()
    page.keyboard.press("Space")
    wait_for(page, ".answer .text", other(wrong))
    assert twin.evaluate("button => button === document.activeElement"), "the focus stays"
    page.get_by_role("button", name="Remove").focus()
    page.keyboard.press("Enter")
    wait_for(page, ".message", "Removed.")


# ---------------------------------------------------------------------------------------------------------------- card


def test_the_card_is_what_the_hub_expects():
    card = RepoCard.load(FOLDER / "README.md")
    data = SpaceCardData(**card.data.to_dict())
    assert (data.sdk, data.app_file, data.python_version) == ("gradio", "app.py", "3.11")
    assert data.models == data.preload_from_hub == ["epigraph/e2str-small"] and len(data.short_description) <= 60
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    gradio = next(wanted for wanted in map(Requirement, extras["demo"]) if wanted.name == "gradio")
    assert gradio.specifier.contains(data.sdk_version)
    lines = (FOLDER / "requirements.txt").read_text().splitlines()
    (wanted,) = (Requirement(line) for line in lines if not line.startswith("#"))
    assert wanted.name == "epigraph" and wanted.extras == {"demo", "pool"}
    assert wanted.extras <= set(extras) and wanted.specifier.contains(project["version"])


def test_the_limits_are_those_of_the_documents():
    card, document = (FOLDER / "README.md").read_text(), (ROOT / "docs" / "space.md").read_text()
    for text in (" ".join(card.split()), " ".join(document.split())):
        assert f"{visits.MOST_ENTRIES} words" in text and f"{visits.MOST_BYTES // 1_000_000} MB" in text


def test_the_examples_are_those_of_the_script(tmp_path):
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import word_examples
    finally:
        sys.path.pop(0)
    assert len(EXAMPLES) == len(word_examples.LETTERINGS) * len(word_examples.WORDS)
    if not all((word_examples.FONTS / font).is_file() for font in word_examples.LETTERINGS.values()):
        pytest.skip("fonts-dejavu-core or fonts-aenigma is not installed")
    word_examples.main(["--output", str(tmp_path)])
    for path in EXAMPLES:
        with Image.open(path) as shipped, Image.open(tmp_path / path.name) as drawn:
            assert shipped.size == drawn.size
            apart = np.abs(np.asarray(shipped, int) - np.asarray(drawn, int))
            assert apart.mean() < 3, f"{path.name} is another picture; run scripts/word_examples.py"
