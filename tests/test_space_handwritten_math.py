"""The Space of handwritten formulas: its API, its page in a browser, its card. One server for the whole module."""

import json
import re
import shutil
import tomllib
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from pathlib import Path

import pytest
import space
from huggingface_hub import RepoCard, SpaceCardData
from packaging.requirements import Requirement
from test_reading import BAD

from epigraph import reading
from epigraph.data.ink import read_json, render

httpx = pytest.importorskip("httpx", reason="gradio is not installed")  # which brings it

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
    pytest.importorskip("gradio", reason="gradio is not installed")
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
