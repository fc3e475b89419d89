"""Labelled text images from fonts, word lists and backgrounds: style pairs, glyph targets, character geometry."""
