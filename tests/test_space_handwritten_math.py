"""The Space of handwritten formulas: its API, its page in a browser, its card. One server for the whole module."""

import json
import re
import tomllib
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
import space
from huggingface_hub import RepoCard, SpaceCardData
from packaging.requirements import Requirement
from space import DESKTOP, PHONE
from test_reading import BAD

from epigraph import reading
from epigraph.data.ink import read_json, render

if find_spec("gradio") is None:
    pytest.skip("gradio is not installed", allow_module_level=True)
import httpx  # noqa: E402  gradio brings it

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((space.FOLDER / "examples").glob("*.json"))
# "7 + 1" in a few straight lines: every move of the mouse costs a test time.
SUM = [[[0, 0], [36, 0], [14, 60]], [[60, 34], [96, 34]], [[78, 14], [78, 54]], [[120, 0], [120, 60]]]


def as_json(strokes):
    return json.dumps({"strokes": strokes})


def as_inkml(strokes):
    traces = "".join(f"<trace>{', '.join(f'{x} {y}' for x, y in stroke)}</trace>" for stroke in strokes)
    return f'<ink xmlns="http://www.w3.org/2003/InkML">{traces}</ink>'


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with space.serve(tmp_path_factory.mktemp("space")) as address:
        yield address


@pytest.fixture(scope="module")
def client(url, tmp_path_factory):
    from gradio_client import Client

    return Client(url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="module")
def checkpoint():
    return reading.load(ROOT / "checkpoints" / "comer-hme")


def send(client, path):
    from gradio_client import handle_file

    return client.predict(file=handle_file(path), api_name="/read_file")


# ------------------------------------------------------------------------------------------------------------- API


def test_endpoints_are_documented(client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(endpoints) == {"/read_ink", "/read_file"}
    assert "pen strokes" in endpoints["/read_ink"]["description"]
    assert "InkML" in endpoints["/read_file"]["description"]
    for document in (space.FOLDER / "README.md", ROOT / "docs" / "space.md"):
        assert all(f"`{name}`" in document.read_text() for name in endpoints), document


@pytest.mark.parametrize("strokes", [SUM, "examples"])
def test_json_inkml_and_api_give_one_answer(client, checkpoint, tmp_path, strokes):
    if strokes == "examples":
        strokes = [stroke.tolist() for stroke in read_json(EXAMPLES[-1]).strokes]
    (tmp_path / "ink.json").write_text(as_json(strokes))
    (tmp_path / "ink.inkml").write_text(as_inkml(strokes))
    answer = client.predict(strokes=as_json(strokes), api_name="/read_ink")
    assert send(client, tmp_path / "ink.json") == send(client, tmp_path / "ink.inkml") == answer
    model, processor = checkpoint
    expected = reading.read(strokes, model, processor=processor, n_best=5)
    assert answer["text"] == expected.text and answer["score"] == pytest.approx(expected.score, abs=1e-4)
    assert [other["text"] for other in answer["n_best"]] == [other.text for other in expected.n_best]
    assert answer["mathml"].startswith("<math") and answer["doubtful"] is (answer["score"] < 0.5)


def test_images_are_read(client, checkpoint, tmp_path):
    render(SUM).save(tmp_path / "sum.png")
    model, processor = checkpoint
    assert (
        send(client, tmp_path / "sum.png")["text"]
        == reading.read(tmp_path / "sum.png", model, processor=processor).text
    )


def test_a_file_without_ending_is_known_by_its_content(client, tmp_path):
    (tmp_path / "ink").write_text(as_inkml(SUM))
    assert send(client, tmp_path / "ink")["text"] == "7 + 1"


def refusal(call):
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError) as caught:
        call()
    return str(caught.value)


def bad_files(folder):
    """The bad files of the reader's own tests, each with what its message says."""
    for number, (make, reason) in enumerate(BAD.values()):
        (folder / str(number)).mkdir()
        bad = make(folder / str(number))
        if isinstance(bad, (str, Path)) and Path(bad).is_file():
            yield Path(bad), reason


def test_bad_files_are_named_with_what_to_do(client, tmp_path):
    cases = list(bad_files(tmp_path))
    assert len(cases) >= 15
    for path, reason in cases:
        message = refusal(lambda path=path: send(client, path))
        assert message.startswith(f"{path.name}: ") and reason in message and "Upload an image" in message
        assert str(path.parent) not in message and "uploads" not in message
    assert client.predict(strokes=as_json(SUM), api_name="/read_ink")["text"] == "7 + 1"


@pytest.mark.parametrize(
    "strokes, reason",
    [
        ("", "empty"),
        ("x + 1", "not valid JSON"),
        ("[" * 10_000, "not valid JSON"),
        ("[]", "no stroke"),
        ('{"strokes": 3}', "list of strokes"),
        ("[[[1, 2, 3]]]", "x, y pairs"),
        ("[[[NaN, 1], [2, 3]]]", "not finite"),
        ("[[[1e30, 1], [2, 3]]]", "not finite"),
        (json.dumps([[[0, 0]] * 60_000]), "50,000"),
        (json.dumps([[[0, 0]]] * 6_000), "5,000"),
        ([[[0, 0], [40, 0]]], "not a string"),
        (None, "not a string"),
    ],
)
def test_bad_strokes_are_refused_with_the_reason(client, strokes, reason):
    message = refusal(lambda: client.predict(strokes=strokes, api_name="/read_ink"))
    assert message.startswith("your strokes: ") and reason in message


def call(url, name, data):
    """What a client without gradio_client does; the stream of events, as text."""
    event = httpx.post(f"{url}/gradio_api/call/{name}", json={"data": data}, timeout=60)
    if event.status_code != 200:
        return event.text
    return httpx.get(f"{url}/gradio_api/call/{name}/{event.json()['event_id']}", timeout=60).text


def test_plain_http(url):
    assert '"text": "7 + 1"' in call(url, "read_ink", [as_json(SUM)])


@pytest.mark.parametrize(
    "file",
    [
        {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
        {"path": "app.py", "meta": {"_type": "gradio.FileData"}},
        {"path": "/etc/passwd"},
        "/etc/passwd",
        {"path": "http://127.0.0.1:9/formula.png", "meta": {"_type": "gradio.FileData"}},
    ],
    ids=["absolute", "relative", "without meta", "string", "address inside"],
)
def test_files_of_the_server_are_not_read(url, file):
    answer = call(url, "read_file", [file])
    assert "event: error" in answer and "root:" not in answer and "import" not in answer
    assert "passwd: " not in answer and "app.py: " not in answer, "it got as far as the reader"


@pytest.mark.parametrize("path", ["/etc/passwd", "app.py", "../log"])
def test_files_of_the_server_are_not_served(url, path):
    assert httpx.get(f"{url}/gradio_api/file={path}").status_code in (403, 404)


def test_too_large_an_upload_is_refused(url):
    answer = httpx.post(
        f"{url}/gradio_api/upload", files={"files": ("large.png", b"0" * (20 * 2**20 + 1))}, timeout=60
    )
    assert answer.status_code == 413


def test_twenty_requests_at_once_are_all_answered_each_with_its_own(url, checkpoint):
    """A third of them is bad; each visitor gets the answer to what they asked, and no other's."""
    model, processor = checkpoint
    drawings = [[stroke.tolist() for stroke in read_json(path).strokes] for path in EXAMPLES]
    expected = [result.text for result in reading.read(drawings, model, processor=processor)]
    assert len(set(expected)) == len(drawings)
    asked = [as_json(drawings[i % len(drawings)]) if i % 3 else f"bad {i}" for i in range(20)]
    with ThreadPoolExecutor(20) as visitors:
        answers = list(visitors.map(lambda strokes: call(url, "read_ink", [strokes]), asked))
    for i, answer in enumerate(answers):
        if i % 3:
            assert json.loads(answer.split("data: ")[-1])[0]["text"] == expected[i % len(drawings)]
        else:
            assert "event: error" in answer and "not valid JSON" in answer


# ------------------------------------------------------------------------------------------------------------ page


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def page(request, browser, url):
    """The page, ready to draw on."""
    with space.visit(browser, url, request.param) as page:
        page.locator(".paper svg").wait_for()
        yield page


def draw(page, strokes, left=40, top=50):
    """With the mouse; on the phone with a finger, which playwright can only tap with."""
    box = page.locator(".paper svg").bounding_box()
    x0, y0 = round(box["x"]) + left, round(box["y"]) + top
    if page.viewport_size["width"] != PHONE[0]:
        for stroke in strokes:
            page.mouse.move(x0 + stroke[0][0], y0 + stroke[0][1])
            page.mouse.down()
            for x, y in stroke[1:]:
                page.mouse.move(x0 + x, y0 + y)
            page.mouse.up()
        return
    finger = page.context.new_cdp_session(page)
    for stroke in strokes:
        for index, (x, y) in enumerate(stroke):
            kind = "touchMove" if index else "touchStart"
            finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x0 + x, "y": y0 + y}]})
        finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def latex(page):
    return page.get_by_label("LaTeX", exact=True)


def wait_for_latex(page, text):
    page.wait_for_function("text => document.querySelector('#LaTeX')?.value === text", arg=text)


def saved_strokes(page):
    with page.expect_download() as download:
        page.get_by_role("button", name="Save ink").click()
    return json.loads(Path(download.value.path()).read_text())["strokes"]


def wait_for_readings(page, answer):
    """Until the page shows these five: live reading may have come to the same text before the last stroke."""
    rows = [
        [f"{100 * other['score']:.1f} %" if other["score"] >= 0.001 else "< 0.1 %", other["text"]]
        for other in answer["n_best"]
    ]
    page.wait_for_function(
        """expected => JSON.stringify([...document.querySelectorAll('.readings tbody tr')].map(
            row => [row.cells[0].innerText, row.cells[2].innerText])) === JSON.stringify(expected)""",
        arg=rows,
    )


def upload(page, path):
    page.get_by_role("tab", name="Upload").click()
    page.locator("input[type=file]").set_input_files(path)


@pytest.mark.browser
def test_a_drawing_is_read_like_the_same_ink_in_files(page, client, tmp_path):
    def ask(strokes):
        return client.predict(strokes=as_json(strokes), api_name="/read_ink")

    answer = ask(SUM)
    assert len(answer["n_best"]) == 5
    draw(page, SUM)
    wait_for_readings(page, answer)
    assert latex(page).input_value() == "7 + 1"
    assert page.locator(".answer math").text_content() == "7+1"
    assert "confidence" in page.locator(".answer").inner_text()
    assert page.get_by_label("MathML", exact=True).input_value().startswith("<math")

    strokes = saved_strokes(page)
    (x, y), (x0, y0) = strokes[0][0], SUM[0][0]
    moved = [[[left - x + x0, top - y + y0] for left, top in stroke] for stroke in strokes]
    assert moved == SUM, "the pad records what the pointer did"
    assert ask(strokes) == answer

    (tmp_path / "ink.inkml").write_text(as_inkml(SUM))
    page.get_by_role("button", name="Clear").click()
    latex(page).wait_for(state="detached")
    upload(page, tmp_path / "ink.inkml")
    wait_for_readings(page, answer)
    page.get_by_role("tab", name="Draw").click()
    latex(page).wait_for(state="detached")  # nothing is drawn
    page.get_by_role("tab", name="Upload").click()
    wait_for_readings(page, answer)


@pytest.mark.browser
def test_heat_maps_are_switched_by_pointer_and_keyboard(page):
    page.get_by_role("button", name="Example: root").click()
    wait_for_latex(page, r"\sqrt { 2 }")

    def visible():
        heats = page.locator(".look .heat").evaluate_all(
            "heats => heats.map((heat, i) => [getComputedStyle(heat).opacity, i, heat.className, heat.src])"
        )
        return [heat for opacity, *heat in heats if opacity == "1"]

    [(first, kind, _)] = visible()
    assert (first, kind) == (0, "heat attention")
    page.locator(".look label", has_text="Coverage").click()
    [(index, kind, shown)] = visible()
    assert (index, kind) == (1, "heat coverage")
    page.locator(".look [name=token]").first.focus()
    page.keyboard.press("ArrowRight")
    [(index, kind, other)] = visible()
    assert (index, kind) == (3, "heat coverage") and other != shown
    picture, heat = (page.locator(f".look {one}").first.bounding_box() for one in (".picture", ".heat"))
    assert picture == pytest.approx(heat, abs=1)


@pytest.mark.browser
def test_an_empty_pad_and_bad_files_are_explained_and_the_page_stays_usable(page, tmp_path):
    page.get_by_role("button", name="Read", exact=True).click()
    alert = page.get_by_role("alert")
    assert "Draw a formula first" in alert.inner_text()
    (tmp_path / "torn.inkml").write_text("<ink><trace>1 2")
    upload(page, tmp_path / "torn.inkml")
    page.get_by_text("torn.inkml: not well-formed XML").wait_for()
    assert "Upload an image" in alert.inner_text() and latex(page).count() == 0
    page.get_by_role("tab", name="Draw").click()
    draw(page, SUM)
    wait_for_latex(page, "7 + 1")
    assert alert.count() == 0


@pytest.mark.browser
@pytest.mark.parametrize("page", [DESKTOP], indirect=True)
def test_undo_and_clear_by_keyboard(page):
    drawing = page.get_by_role("img", name="Drawing pad")
    assert "empty" in drawing.get_attribute("aria-label")
    draw(page, SUM[:2])
    assert "2 strokes" in drawing.get_attribute("aria-label")
    page.keyboard.press("Control+z")
    assert "1 stroke." in drawing.get_attribute("aria-label")
    page.get_by_role("button", name="Clear").focus()
    page.keyboard.press("Enter")
    assert "empty" in drawing.get_attribute("aria-label")
    page.get_by_role("button", name="Undo").focus()
    page.keyboard.press("Space")
    assert "1 stroke." in drawing.get_attribute("aria-label")
    assert [len(stroke) for stroke in saved_strokes(page)] == [len(SUM[0])]


@pytest.mark.browser
@pytest.mark.parametrize("page", [DESKTOP], indirect=True)
def test_every_control_has_a_name_and_is_reached_by_keyboard(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Example: root").click()
    wait_for_latex(page, r"\sqrt { 2 }")
    structure = page.locator("body").aria_snapshot()
    kinds = re.findall(r"- '?(button|tab|textbox|radio)\b", structure)
    named = re.findall(r"- '?(button|tab|textbox|radio)\b \"[^\"]+\"", structure)
    assert len(kinds) >= 20 and kinds == named, structure
    reached = []
    while "Copy MathML" not in reached and len(reached) < 30:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.innerText || document.activeElement.ariaLabel"))
    assert {"Example: sum", "Copy LaTeX", "Copy MathML"} <= set(reached), reached
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Copied").wait_for()
    page.keyboard.press("Enter")  # at once again; the button gets its name back all the same
    page.get_by_role("button", name="Copy MathML").wait_for()
    assert page.evaluate("navigator.clipboard.readText()").startswith("<math")


# ------------------------------------------------------------------------------------------------------------ card


def test_the_card_is_what_the_hub_expects():
    card = RepoCard.load(space.FOLDER / "README.md")
    data = SpaceCardData(**card.data.to_dict())
    assert (data.sdk, data.app_file, data.python_version) == ("gradio", "app.py", "3.11")
    assert data.models == data.preload_from_hub == ["epigraph/comer-hme"] and len(data.short_description) <= 60
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    gradio = next(
        wanted for wanted in map(Requirement, project["optional-dependencies"]["demo"]) if wanted.name == "gradio"
    )
    assert gradio.specifier.contains(data.sdk_version)
    wanted = [
        line for line in (space.FOLDER / "requirements.txt").read_text().splitlines() if not line.startswith("#")
    ]
    [epigraph] = map(Requirement, wanted)
    assert epigraph.name == "epigraph" and epigraph.extras == {"demo"}
    assert epigraph.specifier.contains(project["version"])


def test_the_examples_are_our_own():
    assert len(EXAMPLES) == 6
    for path in EXAMPLES:
        assert path.read_bytes() == (ROOT / "examples" / "handwritten-math" / path.name).read_bytes()
