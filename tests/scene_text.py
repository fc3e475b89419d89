"""The modules of the scene-text Space, and what its tests have in common."""

import importlib.util
import sys
from pathlib import Path

from word_drawings import MEANINGS

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "spaces" / "scene-text"
SIBLINGS = ("SIGN", 0), ("SIGN", 7)  # two pictures of what only an example explains


def _module(name, called):
    """As `called`, since view.py imports visit, and other Spaces have a view, too."""
    spec = importlib.util.spec_from_file_location(called, FOLDER / f"{name}.py")
    found = sys.modules[called] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


visits = _module("visit", "visit")
view = _module("view", "scene_text_view")


def other(meaning):
    """The other one."""
    return MEANINGS[1 - MEANINGS.index(meaning)]
