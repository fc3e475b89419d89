"""A Space as a server of its own, from a copy of its folder alone, as it runs on the Hub; and a visit to its page."""

import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "spaces" / "handwritten-math"


DESKTOP, PHONE = (1200, 900), (390, 844)


@contextmanager
def visit(browser, url: str, size: tuple[int, int]):
    """A page of a `browser` of this size; nothing may fail in its scripts, come from elsewhere, or be too wide."""
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height}, has_touch=size == PHONE, accept_downloads=True
    )
    page = context.new_page()
    page.set_default_timeout(60_000)
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on(
        "request", lambda asked: None if asked.url.startswith((url, "data:", "blob:")) else problems.append(asked.url)
    )
    page.goto(url)
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page is wider than the screen"
    assert not problems
    context.close()


@contextmanager
def serve(folder: Path, space: Path = FOLDER, model: Path = ROOT / "checkpoints" / "comer-hme", **variables: str):
    """Copy the `space` into `folder`, run its app.py with the checkpoint `model`, give its address.

    What it uploads and what else it writes for a while lies in `folder`, too. `variables` are of its environment.
    """
    (folder / "temporary").mkdir()
    shutil.copytree(space, folder / "space", ignore=shutil.ignore_patterns("__pycache__"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "EPIGRAPH_MODEL": str(model),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(folder / "temporary"),
        **variables,
    }
    log = folder / "log"
    with open(log, "w") as output:
        server = subprocess.Popen(
            [sys.executable, "app.py"], cwd=folder / "space", env=environment, stdout=subprocess.PIPE, stderr=output
        )
    try:
        for line in server.stdout:  # ends where the server ends
            if b"Running on local URL" in line:
                break
        else:
            raise RuntimeError(f"the Space did not start:\n{log.read_text()}")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()
