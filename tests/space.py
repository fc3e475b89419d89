"""The Space of handwritten formulas as a server of its own, from a copy of its folder alone, as it runs on the Hub."""

import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "spaces" / "handwritten-math"


@contextmanager
def serve(folder: Path):
    """Copy the Space into `folder`, run its app.py with the shipped checkpoint, give its address."""
    shutil.copytree(FOLDER, folder / "space", ignore=shutil.ignore_patterns("__pycache__"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "EPIGRAPH_MODEL": str(ROOT / "checkpoints" / "comer-hme"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
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
