"""Scenes: several words on one page, as signs, posters and shop fronts have them, with every label.

```python
make = SceneGenerator(find_fonts(), WordSampler())
scene = make(np.random.default_rng(0))
scene.image, scene.erased, scene.glyph, scene.polygons, scene.texts, scene.ignore
```

Words come in groups of one style (a sign, a headline, a few lines of a poster, a round label), on a plate or straight
on the wall, on planes seen by one camera. The same light and the same camera act on the image and on the erased page.
"""

import json
import math
from dataclasses import dataclass, replace

import cv2
import numpy as np

from .backgrounds import Background, BackgroundPool
from .drawing import contrast, degrade, draw
from .fonts import Face, SynthesisError
from .glyph_targets import glyph_target
from .layout import Layout
from .sampling import StyleOptions, sample_degradation, sample_style
from .scene_layout import Group, View, set_word, stack, turned, widths
from .scene_pages import compose_page, draw_plate, multiply, sample_light, sample_tone
from .shaping import shape
from .style import Baseline, Style, check_size
from .words import WordSampler

MIN_SIDE = 64
MAX_WORDS = 256
_CELL = 8  # pixels along the side of a cell of the map of what is taken
_BUSY = 110  # grey levels between the dark and the bright parts of a wall that nobody writes on without a plate
_UNKNOWN = Background("plain", 0, ((128, 128, 128),))  # behind words whose place is not known yet
_LEAST_CAP = 6.0  # pixels: what small pages get, where the shares of the options could not be drawn
_TRIES = 20  # to set a group of words
_GROUPS = (0.38, 0.24, 0.13, 0.09, 0.07, 0.05, 0.04)  # share of groups of 1, 2, ... words


@dataclass(frozen=True)
class SceneOptions:
    """How scenes look: shares are 0..1, ranges (least, most). The defaults are what ships.

    Attributes:
        style: of the letters; its shares of curves and perspective are not used here.
        plates: share of groups on a plate of their own; where the wall is too busy all have one. `fascia`: share of
            the scenes in which the first plate goes on to both sides, as above a shop.
        curved: share of the groups of one line that run along an arc; `turn`: of how many degrees.
        vertical: share of the single words that are columns of upright letters.
        perspective: share of groups seen at an angle; `yaw`, `pitch`, `roll`: standard deviation of that angle, in
            degrees, for the wall that most groups of a scene share.
        rotated: share of groups at any angle up to 90 degrees, as labels on bottles and stickers are.
        cap: cap height of letters, as a share of the page's short side; most are near the lower end.
        built: share of the painted pages that show a street or a room, not one surface.
        pool_share: share of pages from the pool of images, where one is given.
        ignore_height: words lower than this many pixels are too small to read.
        ignore_contrast: words nearer than this many grey levels to what is around them are too faint to read.
    """

    style: StyleOptions = StyleOptions()
    plates: float = 0.5
    fascia: float = 0.2
    curved: float = 0.3
    turn: tuple[float, float] = (20.0, 150.0)
    vertical: float = 0.06
    perspective: float = 0.7
    yaw: float = 28.0
    pitch: float = 10.0
    roll: float = 4.0
    rotated: float = 0.08
    cap: tuple[float, float] = (0.014, 0.17)
    built: float = 0.8
    pool_share: float = 0.5
    ignore_height: float = 8.0
    ignore_contrast: float = 20.0


@dataclass
class SceneSample:
    """One scene and its labels; n words that were placed.

    Attributes:
        image: (height, width, 3) uint8 RGB.
        erased: (height, width, 3) uint8 RGB: the same page without any word, in the same light, degraded alike.
        glyph: (height, width) uint8: the words that are not to be ignored, in a plain font at their places.
        glyph_instances: (height, width) uint16, 0 or 1 + index of the word whose plain glyph is the strongest there.
        mask: (height, width) uint8, coverage by letters, before degradation.
        effect_mask: (height, width) uint8, coverage by everything drawn for words: letters, borders, shadows ...
        instances: (height, width) uint16, 0 or 1 + index of the word whose letters are the strongest there.
        polygons: n arrays (4, 2) or (2m, 2) float32 in reading order, see `epigraph.polygons`.
        char_quads: n arrays (characters, 4, 2) float32.
        texts: n words, as they are written, also where they are ignored.
        ignore: for each word, whether it is too small or too faint to read. Detection neither rewards nor punishes
            such words, and glyph targets leave them out: write "###" for them where a format has no such flag.
        styles: n records of how the letters look; their `background` is the plate, or sums up the wall, and their
            `degradation` is that of the whole page.
        effects: for each word which effects it has, by name: as `Style.effects`, but with the curve of its line and
            the slant of its plane (perspective: over 5 degrees), which no style of one word holds.
        unplaced: how many words of those asked for found no room.
    """

    image: np.ndarray
    erased: np.ndarray
    glyph: np.ndarray
    glyph_instances: np.ndarray
    mask: np.ndarray
    effect_mask: np.ndarray
    instances: np.ndarray
    polygons: list[np.ndarray]
    char_quads: list[np.ndarray]
    texts: list[str]
    ignore: list[bool]
    styles: list[Style]
    effects: list[dict[str, bool]]
    unplaced: int = 0

    def row(self) -> dict:
        """The sample as a row of `scene_features()`: pictures as PNG, styles as JSON."""
        pictures = "image erased glyph glyph_instances mask effect_mask instances".split()
        return {name: _png(getattr(self, name)) for name in pictures} | {
            "polygons": [polygon.tolist() for polygon in self.polygons],
            "char_quads": [quads.tolist() for quads in self.char_quads],
            "texts": self.texts,
            "ignore": self.ignore,
            "styles": [json.dumps(style.to_json()) for style in self.styles],
            "unplaced": self.unplaced,
        }


def scene_features():
    """The `datasets.Features` of `SceneSample.row()`."""
    from datasets import Features, Image, List, Value

    points = List(List(Value("float32")))
    pictures = "image erased glyph glyph_instances mask effect_mask instances".split()
    return Features(
        {name: Image() for name in pictures}
        | {
            "polygons": List(points),
            "char_quads": List(List(points)),
            "texts": List(Value("string")),
            "ignore": List(Value("bool")),
            "styles": List(Value("string")),
            "unplaced": Value("int32"),
        }
    )


class SceneGenerator:
    """Draws scenes; a picklable callable `(rng) -> SceneSample`.

    Args:
        faces: fonts, one for each group of words.
        words: what is written.
        options: how it looks.
        size: height and width of the page in pixels, from 64 on.
        words_per_scene: how many words are asked for. On a page too small for them some stay unplaced.
        backgrounds: images of your own as pages.

    Raises:
        SynthesisError: no face, a page too small or too large, or a number of words beyond 1..256.
    """

    def __init__(
        self,
        faces: list[Face],
        words: WordSampler,
        options: SceneOptions = SceneOptions(),
        size: tuple[int, int] = (512, 512),
        words_per_scene: int = 8,
        backgrounds: BackgroundPool | None = None,
    ):
        if not faces:
            raise SynthesisError("there is no font to choose from; give at least one face.")
        size = check_size(size)
        if min(size) < MIN_SIDE:
            raise SynthesisError(
                f"a scene of {size[0]} x {size[1]} pixels has no room; give at least {MIN_SIDE} each."
            )
        if not 1 <= words_per_scene <= MAX_WORDS:
            raise SynthesisError(f"{words_per_scene} words cannot be asked of a scene; give 1 to {MAX_WORDS}.")
        self.faces, self.words, self.options = list(faces), words, options
        self.size, self.words_per_scene, self.backgrounds = size, words_per_scene, backgrounds
        # Lines are bent and turned as a group here, not word by word.
        self._style = replace(options.style, curve=0.0, perspective=0.0, vertical=0.0)
        self._small = replace(self._style, border=0.0, shadow=0.0, extrusion=0.0, elastic=0.0, opacity=0.0)

    def __call__(self, rng: np.random.Generator) -> SceneSample:
        """Draw a scene.

        Raises:
            SynthesisError: not a single word could be set or found room.
        """
        page = compose_page(rng, self.size, self.backgrounds, self.options.pool_share, self.options.built)
        groups = self._groups(rng)
        placed = self._place_all(rng, groups, page)
        if not placed:
            raise SynthesisError(
                f"none of {self.words_per_scene} words found room on {self.size[0]} x {self.size[1]}."
            )
        light, tone = sample_light(rng, self.size), sample_tone(rng)
        degradation = sample_degradation(rng, self.options.style, 26 * min(self.size) / 512)
        return self._finish(page, placed, light, tone, degradation, int(rng.integers(2**31)))

    def features(self):
        """The `datasets.Features` of `SceneSample.row()`."""
        return scene_features()

    # ---- what is written, and in which lines ----

    def _groups(self, rng: np.random.Generator) -> list[Group]:
        groups, left, failures = [], self.words_per_scene, 0
        while left and failures < _TRIES:
            count = min(1 + int(rng.choice(len(_GROUPS), p=_GROUPS)), left)
            try:
                groups.append(self._group(rng, count))
                left -= count
            except SynthesisError as error:  # this font cannot draw a word, or not so small: another font, other words
                failures += 1
                last = error
        if not groups:
            raise last
        return groups

    def _group(self, rng: np.random.Generator, count: int) -> Group:
        options, short = self.options, min(self.size)
        face = self.faces[int(rng.random() * len(self.faces))]
        texts = _cased(rng, [self.words.sample(rng, face.characters) for _ in range(count)], face)
        low, high = (max(share * short, _LEAST_CAP) for share in options.cap)
        cap = low * (high / low) ** float(rng.beta(2.0, 2.6 if count < 3 else 4.0))
        plate = bool(rng.random() < options.plates)
        style = self._look(rng, face, cap, None if plate else _UNKNOWN)
        vertical = count == 1 and 1 < len(texts[0]) <= 12 and rng.random() < options.vertical
        if vertical and not shape(face.path, face.index, texts[0], 64).sliced:  # letters that join make no column
            style = replace(style, baseline=Baseline("vertical"), elastic=None)
        vertical = style.baseline.kind == "vertical"
        lines = _lines(rng, texts)
        caps = np.full(len(lines), cap)
        reach = np.array([sum(widths(style, line)) + 0.45 * (len(line) - 1) for line in lines])  # in cap heights
        if len(lines) > 1 and rng.random() < 0.25:  # every line as wide as the others
            caps *= np.clip(reach.mean() / reach, 0.6, 2.0)
        elif len(lines) > 2 and rng.random() < 0.4:  # a headline
            caps[0] *= rng.uniform(1.3, 2.2)
        if not vertical:
            caps *= min(1.0, 0.85 * self.size[1] / (reach * caps).max())
        set_lines = [[set_word(text, style, c) for text in line] for line, c in zip(lines, caps.tolist())]
        align = (0.5, 0.0, 1.0)[int(rng.choice(3, p=(0.6, 0.35, 0.05)))]
        words, size = stack(set_lines, caps.tolist(), align, rng.uniform(0.3, 1.0), rng.uniform(0.35, 0.7))
        curvature = 0.0
        if len(lines) == 1 and not vertical and size[0] > 2.5 * size[1] and rng.random() < options.curved:
            turn = math.radians(rng.uniform(*options.turn)) * (1 if rng.random() < 0.7 else -1)
            curvature = turn / size[0]
            curvature = float(np.clip(curvature, -0.5 / size[1], 0.5 / size[1]))
        border = rng.uniform(0.35, 1.3) if plate else 0.4
        return Group(words, size, style, float(caps.max()), curvature, plate, border)

    def _look(self, rng: np.random.Generator, face: Face, cap: float, background: Background | None) -> Style:
        height = max(8, round(1.7 * cap))
        options = self._style if cap > 14 else self._small
        return sample_style(rng, [face], (height, 6 * height), options, background or self.backgrounds)

    # ---- where it stands ----

    def _place_all(self, rng: np.random.Generator, groups: list[Group], page: np.ndarray) -> list[tuple[Group, View]]:
        """Find room for every group, the largest first; plates are painted on the page."""
        options = self.options
        wall = options.yaw * rng.normal(), options.pitch * rng.normal(), options.roll * rng.normal()
        taken = np.zeros((math.ceil(self.size[0] / _CELL), math.ceil(self.size[1] / _CELL)), np.uint8)
        gray = cv2.resize(cv2.cvtColor(page, cv2.COLOR_RGB2GRAY), taken.shape[::-1], interpolation=cv2.INTER_AREA)
        moments = cv2.integral2(gray)
        placed = []
        for group in sorted(groups, key=lambda group: -group.size[0] * group.size[1]):
            view = self._view(rng, group, wall)
            view = _find_room(rng, group, view, taken, None if group.plate else moments, self.size)
            if view is None:
                continue
            board = group.board(view)
            footprint = view.project(board)
            if not group.plate:
                shades = _shades(page, footprint)
                group.plate = shades is None
                self._stand_out(rng, group, shades)
            if group.plate:
                if not placed and rng.random() < options.fascia:
                    board = _along_the_wall(board, view, taken)
                    footprint = view.project(board)
                draw_plate(page, rng, footprint, tuple((board[2] - board[0]).tolist()), group.style.background)
            placed.append((group, view))
        return placed

    def _view(self, rng: np.random.Generator, group: Group, wall: tuple[float, float, float]) -> View:
        options = self.options
        yaw, pitch, roll = rng.normal(0, (2.0, 2.0, 1.5))
        if rng.random() < options.perspective:
            yaw, pitch, roll = yaw + wall[0], pitch + wall[1], roll + wall[2]
        if rng.random() < options.rotated:
            roll += rng.uniform(-90, 90)
        turn = turned(float(np.clip(yaw, -60, 60)), float(np.clip(pitch, -45, 45)), roll)
        return View((0.0, 0.0), 1.0, turn, rng.uniform(0.8, 2.0) * max(self.size), group.curvature)

    def _stand_out(self, rng: np.random.Generator, group: Group, shades: tuple | None) -> None:
        """Give a group colours that stand out from the shades of the wall behind it, or from those of a new plate."""
        font = group.style.font
        face = next(face for face in self.faces if (face.path, face.index) == (font.path, font.index))
        look = self._look(rng, face, group.cap, shades and Background("gradient", 0, shades))
        names = "fill border shadow extrusion blend opacity background".split()
        group.restyle({name: getattr(look, name) for name in names})

    # ---- what it looks like ----

    def _finish(self, page, placed: list[tuple[Group, View]], light, tone, degradation, seed: int) -> SceneSample:
        image = page.copy()
        mask, effect_mask = np.zeros(self.size, np.uint8), np.zeros(self.size, np.uint8)
        instances = np.zeros(self.size, np.uint16)
        layouts, inks, words = [], [], [(word, group, view) for group, view in placed for word in group.words]
        for index, (word, group, view) in enumerate(words, 1):
            layout = word.seen(view)
            x0, y0, x1, y1 = group.patch(view, self.size)
            here = np.s_[y0:y1, x0:x1]
            drawn = draw(image[here], word.style, word.text, _moved(layout, (-x0, -y0)))
            np.copyto(instances[here], index, where=drawn.mask > mask[here])
            np.maximum(mask[here], drawn.mask, out=mask[here])
            np.maximum(effect_mask[here], drawn.effect_mask, out=effect_mask[here])
            layouts.append(layout)
            left, top, right, bottom = drawn.box
            place = np.s_[y0 + top : y0 + bottom, x0 + left : x0 + right]
            inks.append((place, drawn.mask[top:bottom, left:right]))
        light = cv2.resize(light, self.size[::-1], interpolation=cv2.INTER_LINEAR)
        for picture in (image, page):
            multiply(picture, light)
            cv2.LUT(picture, tone, dst=picture)
        faint = [contrast(image[place], ink) < self.options.ignore_contrast for place, ink in inks]
        image, erased = degrade([image, page], degradation, seed)
        polygons = [layout.polygon for layout in layouts]
        texts = [word.text for word, _, _ in words]
        ignore = [
            bool(pale or _height(polygon) < self.options.ignore_height) for pale, polygon in zip(faint, polygons)
        ]
        vertical = [word.style.baseline.kind == "vertical" for word, _, _ in words]
        styles = [replace(word.style, degradation=degradation, seed=seed) for word, _, _ in words]
        target = glyph_target(self.size, polygons, texts, ignore, vertical)
        return SceneSample(
            image=image,
            erased=erased,
            glyph=target.image,
            glyph_instances=target.instances,
            mask=mask,
            effect_mask=effect_mask,
            instances=instances,
            polygons=polygons,
            char_quads=[layout.char_quads for layout in layouts],
            texts=texts,
            ignore=ignore,
            styles=styles,
            effects=[style.effects() | view.effects() for style, (_, _, view) in zip(styles, words)],
            unplaced=self.words_per_scene - len(words),
        )


def _windows(sums: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Sums of all windows of a size, from an integral image."""
    return sums[rows:, columns:] + sums[:-rows, :-columns] - sums[rows:, :-columns] - sums[:-rows, columns:]


def _cased(rng: np.random.Generator, texts: list[str], face: Face) -> list[str]:
    """Words of one sign mostly share their case."""
    change = (str.upper, str.capitalize, str.lower, str)[int(rng.choice(4, p=(0.35, 0.25, 0.08, 0.32)))]
    changed = [change(text) for text in texts]
    return [new if face.characters.issuperset(new) else old for new, old in zip(changed, texts)]


def _lines(rng: np.random.Generator, texts: list[str]) -> list[list[str]]:
    """Words in reading order, broken into lines."""
    if len(texts) <= 3:
        return [texts] if rng.random() < 0.5 else [[text] for text in texts]
    lines, longest = [], int(rng.integers(1, 5))
    while texts:
        count = int(rng.integers(max(1, longest - 1), longest + 1))
        lines.append(texts[:count])
        texts = texts[count:]
    return lines


def _find_room(rng: np.random.Generator, group: Group, view: View, taken: np.ndarray, moments, size) -> View | None:
    """The view with its centre where nothing stands yet, smaller where there is no room; marks what it takes.

    With `moments`, sums of the page's grey and squared grey, the calmest of a few places: people write on even walls.
    """
    height, width = size
    for attempt in range(5):
        smaller = replace(view, scale=view.scale * 0.8**attempt)
        board = smaller.project(group.board(smaller))
        low, high = board.min(0) - 2, board.max(0) + 2
        rows, columns = math.ceil((high[1] - low[1]) / _CELL) + 1, math.ceil((high[0] - low[0]) / _CELL) + 1
        if rows > height // _CELL or columns > width // _CELL:
            continue
        # The last cells may stick out of the page.
        window = np.s_[: height // _CELL - rows + 1, : width // _CELL - columns + 1]
        free = _windows(cv2.integral(taken), rows, columns)[window] == 0
        places = np.flatnonzero(free)
        if not len(places):
            continue
        places = places[(rng.random(1 if moments is None else 6) * len(places)).astype(int)]
        if moments is not None:
            mean, square = (_windows(sums, rows, columns)[window].reshape(-1)[places] for sums in moments)
            places = places[[(square - mean * (mean / (rows * columns))).argmin()]]
        row, column = divmod(int(places[0]), free.shape[1])
        slack = rng.random(2) * ((columns, rows) - (high - low) / _CELL)
        corner = np.array([column, row]) + slack
        center = corner * _CELL - low
        found = replace(smaller, center=(float(center[0]), float(center[1])))
        cells = np.round((board + center) / _CELL * 16 - 8).astype(np.int32)
        cv2.fillConvexPoly(taken, cells, 1, cv2.LINE_8, 4)
        cv2.polylines(taken, [cells], True, 1, 1, cv2.LINE_8, 4)
        return found
    return None


def _shades(page: np.ndarray, footprint: np.ndarray) -> tuple | None:
    """A dark, a middle and a bright colour of the page behind a group; None where it is too busy to write on."""
    left, top = np.maximum(np.floor(footprint.min(0)), 0).astype(int)
    right, bottom = np.ceil(footprint.max(0)).astype(int)
    part = cv2.resize(page[top:bottom, left:right], (12, 12), interpolation=cv2.INTER_AREA).reshape(-1, 3)
    brightness = part.astype(int).sum(axis=1)
    order = brightness.argsort()
    if brightness[order[130]] - brightness[order[13]] > 3 * _BUSY:
        return None
    return tuple(tuple(int(v) for v in part[order[k]]) for k in (10, 72, 133))


def _along_the_wall(board: np.ndarray, view: View, taken: np.ndarray) -> np.ndarray:
    """A board that goes on to both sides of its words, as above a shop; marks what it takes."""
    longer = board.copy()
    length = 0.9 * (board[1, 0] - board[0, 0])
    longer[[0, 3], 0] -= length
    longer[[1, 2], 0] += length
    cv2.fillConvexPoly(taken, np.round(view.project(longer) / _CELL * 16 - 8).astype(np.int32), 1, cv2.LINE_8, 4)
    return longer


def _moved(layout: Layout, by: tuple[float, float]) -> Layout:
    return replace(layout, quads=layout.quads + by, char_quads=layout.char_quads + by, polygon=layout.polygon + by)


def _height(polygon: np.ndarray) -> float:
    half = len(polygon) // 2
    across = np.linalg.norm(polygon[:half] - polygon[half:][::-1], axis=1).mean()
    along = np.linalg.norm(np.diff(polygon[:half], axis=0), axis=1).sum()
    return float(min(across, along))


def _png(image: np.ndarray) -> dict:
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return {"bytes": cv2.imencode(".png", image)[1].tobytes(), "path": None}
