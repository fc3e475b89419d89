"""Styles with one effect each, in Pillow's own font, for the tests of the text renderer."""

import numpy as np

from epigraph.data.synthesis.backgrounds import Background
from epigraph.data.synthesis.fonts import BUILTIN, open_face
from epigraph.data.synthesis.style import (
    BLENDS,
    Baseline,
    Border,
    Degradation,
    Elastic,
    Extrusion,
    Fill,
    Font,
    Shadow,
    Style,
)

ARC, VALLEY = Baseline("arc", 0.3), Baseline("arc", -0.3)
WAVE, COLUMN = Baseline("wave", 0.08, 0.6, 1.0), Baseline("vertical")
ELASTIC = Elastic(0.03, 0.9, (0.3, 1.7, 2.9, 4.4))
CORNERS = ((0.02, 0.2), (1.0, 0.0), (0.96, 1.0), (0.05, 0.75))
WOOD = Background("wood", 3, ((60, 40, 20), (140, 100, 60)))

GEOMETRY = {
    "straight": {},
    "spaced": {"spacing": 0.15},
    "filling": {"max_stretch": 2.5},
    "small": {"font_size": 0.22},
    "stroke": {"stroke": 0.03},
    "arc": {"baseline": ARC},
    "valley": {"baseline": VALLEY},
    "wave": {"baseline": WAVE},
    "column": {"baseline": COLUMN, "size": (256, 64), "font_size": 0.09},
    "elastic": {"elastic": ELASTIC},
    "perspective": {"corners": CORNERS},
    "bent": {"baseline": ARC, "elastic": ELASTIC, "corners": CORNERS, "max_stretch": 1.5},
    "waving": {"baseline": WAVE, "elastic": ELASTIC, "corners": CORNERS},
    "leaning column": {
        "baseline": COLUMN,
        "size": (256, 64),
        "font_size": 0.09,
        "elastic": Elastic(0.006, 0.25, ELASTIC.phases),
        "corners": CORNERS,
    },
}
LOOKS = {
    "gradient": {"fill": Fill("gradient", ((20, 20, 90), (90, 20, 20)), 30.0)},
    "texture": {"fill": Fill("texture", ((20, 20, 90), (90, 20, 20)), 0.0, WOOD)},
    "border": {"border": Border(0.08, (250, 240, 90))},
    "shadow": {"shadow": Shadow(0.1, 0.12, 0.05, (0, 0, 0), 0.6)},
    "extrusion": {"extrusion": Extrusion(0.12, -0.1, (150, 90, 10))},
    "opacity": {"opacity": 0.6},
    **{blend: {"blend": blend, "fill": Fill("color", ((90, 60, 140),) * 2)} for blend in BLENDS[1:]},
    "all": {
        "fill": Fill("gradient", ((20, 20, 90), (90, 20, 20)), 30.0),
        "border": Border(0.08, (250, 240, 90)),
        "shadow": Shadow(-0.1, 0.12, 0.05, (0, 0, 0), 0.6),
        "extrusion": Extrusion(0.12, -0.1, (150, 90, 10)),
        "opacity": 0.9,
        "baseline": WAVE,
        "elastic": ELASTIC,
        "corners": CORNERS,
    },
}
DEGRADED = Degradation(blur=0.8, motion=2.5, motion_angle=30.0, resample=0.6, noise=5.0, jpeg=60)


def make_style(**values) -> Style:
    """A clean straight style in 64 x 256 on a wooden board, with some fields changed."""
    face = open_face(BUILTIN)
    plain = {
        "size": (64, 256),
        "font": Font(face.path, face.index, face.digest, face.name),
        "font_size": 0.42,
        "baseline_y": 0.66,
        "background": Background("wood", 5, ((150, 120, 90), (230, 200, 160))),
        "fill": Fill("color", ((20, 20, 90), (20, 20, 90))),
        "seed": 11,
    }
    return Style(**plain | values)


def inside(quad: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(height, width) bool: pixel centres inside a convex quad that runs clockwise."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    result = np.ones(size, bool)
    for (ax, ay), (bx, by) in zip(quad, np.roll(quad, -1, 0)):
        result &= (bx - ax) * (y - ay) - (by - ay) * (x - ax) >= 0
    return result
