"""Labelled text images from fonts, word lists and backgrounds: style pairs, scenes, glyph targets, written formulas.

    from epigraph.data.synthesis import SynthesisDataset, WordGenerator, WordSampler, find_fonts

    dataset = SynthesisDataset(WordGenerator(find_fonts(), WordSampler()), length=1_000_000)
    dataset[0].images, dataset[0].background, dataset[0].texts

docs/synthesis.md is the guide.
"""

from .backgrounds import BackgroundPool
from .datasets import SynthesisDataset, SynthesisStream
from .fonts import BUILTIN, FontError, SynthesisError, find_fonts, open_face
from .formulas import FormulaGenerator, FormulaSample
from .glyph_targets import GlyphTarget, draw_glyphs, glyph_target
from .preview import contact_sheet
from .rendering import GroupGenerator, WordGenerator, WordSample, render
from .sampling import StyleOptions, sample_style
from .scenes import SceneGenerator, SceneOptions, SceneSample
from .shards import ShardPlan, write_shards
from .style import Style
from .words import WordSampler

__all__ = [
    "BUILTIN",
    "BackgroundPool",
    "FontError",
    "FormulaGenerator",
    "FormulaSample",
    "GlyphTarget",
    "GroupGenerator",
    "SceneGenerator",
    "SceneOptions",
    "SceneSample",
    "ShardPlan",
    "Style",
    "StyleOptions",
    "SynthesisDataset",
    "SynthesisError",
    "SynthesisStream",
    "WordGenerator",
    "WordSample",
    "WordSampler",
    "contact_sheet",
    "draw_glyphs",
    "find_fonts",
    "glyph_target",
    "open_face",
    "render",
    "sample_style",
    "write_shards",
]
