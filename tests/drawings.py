"""Strokes that tests draw with, and what the small model that memorised them calls them."""

import math

PLUS = [[(0, 20), (40, 20)], [(20, 0), (20, 40)]]
WAVE = [[(x, 30 + 25 * math.sin(x / 9)) for x in range(0, 120, 4)], [(30, 5), (90, 60)]]
STEPS = [[(x, 20 + 15 * (x % 20 > 9)) for x in range(0, 150, 5)], [(60, 0), (62, 45)]]
BAR = [[(20, 0), (18, 90)], [(8, 12), (20, 0)]]
TEXTS = {"+": PLUS, r"\sin x": WAVE, "a ^ { 2 }": STEPS, "1": BAR}
