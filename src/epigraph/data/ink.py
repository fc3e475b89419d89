"""Digital ink: render strokes as an image, vary them for training. Reading files stands in `ink_files`.

Nothing here depends on the device's unit: lengths are measured in *symbol heights*, the mean height of the strokes
that are taller than a tenth of the tallest. By this rule, found by measuring, the CROHME bitmaps of WAP, BTTR and
CoMER were scaled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .ink_files import Ink, InkError, as_strokes, read_ink, read_inkml, read_json  # noqa: F401 (one place to import from)

# ---------------------------------------------------------------------------------------------------- geometry


def symbol_unit(strokes: Sequence[np.ndarray]) -> float:
    """Mean height of the strokes taller than a tenth of the tallest (dots and bars do not count), in device units.

    Where all strokes are flat (a lone minus sign) half their mean width serves, for ink without any extent 1.0.
    """
    widths, heights = _extents(strokes).T
    if (heights > 0.3 * widths).any():
        return float(heights[heights > 0.1 * heights.max()].mean())
    return float(widths[widths > 0].mean()) / 2 if widths.max() > 0 else 1.0


def _extents(strokes: Sequence[np.ndarray]) -> np.ndarray:
    """Width and height of every stroke, `(strokes, 2)`."""
    points = np.concatenate(strokes)
    starts = np.cumsum([0] + [len(stroke) for stroke in strokes[:-1]])
    return np.maximum.reduceat(points, starts) - np.minimum.reduceat(points, starts)


# --------------------------------------------------------------------------------------------------- rendering

# For image processors: of what `render` draws, nothing is left to find out.
AS_DRAWN = {"polarity": "light_on_dark", "clean": False, "symbol_height": None}


def render(
    strokes: Iterable,
    symbol_height: float = 28.0,
    line_width: float = 3.0,
    margin: int = 12,
    max_side: int = 4096,
) -> Image.Image:
    """Draw strokes as a grey image, white ink on black, anti-aliased, with round joints and ends.

    Args:
        strokes: arrays `(points, 2)` or flat coordinate lists, y down, any unit.
        symbol_height: pixels that the mean height of the tall strokes becomes (`symbol_unit`; 28 in the field).
        line_width: pen width in pixels.
        margin: black border around the ink, in pixels.
        max_side: no side of the image gets longer; ink that would need more is drawn at a smaller scale.

    Returns:
        A PIL image of mode "L".

    Raises:
        InkError: as `as_strokes`.
    """
    strokes = as_strokes(strokes)
    origin, scale, (width, height) = _frame(strokes, symbol_height, line_width, margin, max_side)
    border = 2 * margin + line_width

    # 4 x 4 samples a pixel look the same as more; very large images get fewer to bound the memory to 64 MB.
    samples = 4 if width * height <= 2**22 else 2
    canvas = Image.new("L", (width * samples, height * samples))
    draw = ImageDraw.Draw(canvas)
    pen = max(1, round(line_width * samples))
    for stroke in strokes:
        path = ((stroke - origin) * scale + border / 2) * samples - 0.5
        _draw_stroke(draw, thin_out(path, samples), pen)
    return canvas.reduce(samples)


def ink_size(
    strokes: Iterable, symbol_height: float = 28.0, line_width: float = 3.0, margin: int = 12, max_side: int = 4096
) -> tuple[int, int]:
    """Height and width in pixels of what `render` would draw with the same arguments, without drawing it."""
    width, height = _frame(as_strokes(strokes), symbol_height, line_width, margin, max_side)[2]
    return height, width


def _frame(
    strokes: list[np.ndarray], symbol_height: float, line_width: float, margin: int, max_side: int
) -> tuple[np.ndarray, float, tuple[int, int]]:
    """Upper left corner of the ink, pixels per device unit, and the image's width and height."""
    points = np.concatenate(strokes).astype(np.float64)
    origin = points.min(0)
    extent = points.max(0) - origin
    scale = symbol_height / symbol_unit(strokes)
    border = 2 * margin + line_width
    if extent.max() * scale > max_side - border:
        scale = max(1.0, max_side - border) / extent.max()
    width, height = np.floor(extent * scale + border).astype(int).tolist()
    return origin, scale, (width, height)


def thin_out(path: np.ndarray, step: float) -> np.ndarray:
    """Drop points until those kept lie about `step` apart: devices sample far more densely than pixels."""
    if len(path) < 3:
        return path
    travelled = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(path, axis=0).T))])
    cell = np.floor(travelled / step)
    keep = np.concatenate([[True], cell[1:] != cell[:-1]])
    keep[-1] = True
    return path[keep]


def _draw_stroke(draw: ImageDraw.ImageDraw, path: np.ndarray, pen: int) -> None:
    """Draw one polyline of the given width; discs fill the ends and the joints where the outside would gape."""
    discs = path[[0, -1]]
    if len(path) > 1:
        draw.line(path.ravel().tolist(), fill=255, width=pen)
        steps = np.diff(path, axis=0)
        angles = np.arctan2(steps[:, 1], steps[:, 0])
        turns = np.abs((np.diff(angles) + np.pi) % (2 * np.pi) - np.pi)
        discs = np.concatenate([discs, path[1:-1][turns > 0.35]])
    radius = (pen - 1) / 2
    for x, y in discs.tolist():
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)


# ------------------------------------------------------------------------------------------------ augmentation


def jitter(
    strokes: Sequence[np.ndarray],
    groups: Sequence[Sequence[int]],
    rng: np.random.Generator,
    shift: float,
    rotation: float,
    scale: float,
) -> list[np.ndarray]:
    """Move, turn and scale every group of strokes about its own centre, independently of the others.

    Long groups (fraction bars, radicals) turn and grow less, so that their ends move no further than those of an
    ordinary symbol would and what they belong to stays clear.

    Args:
        strokes: arrays `(points, 2)`.
        groups: stroke indices of each group; a stroke in no group stays where it is.
        shift: standard deviation of the shift, in symbol heights.
        rotation: largest rotation, in degrees.
        scale: largest relative change of size, separately for width and height.
    """
    unit = symbol_unit(strokes)
    result = list(strokes)
    draws = rng.uniform(-1.0, 1.0, (len(groups), 3))
    shifts = np.clip(rng.standard_normal((len(groups), 2)), -2.0, 2.0) * shift * unit
    for group, (turn, wider, higher), moved in zip(groups, draws, shifts, strict=True):
        points = np.concatenate([strokes[index] for index in group])
        low, high = points.min(0), points.max(0)
        centre = (low + high) / 2
        damping = min(1.0, unit / max(float((high - low).max()), 1e-6))
        angle = np.deg2rad(rotation * turn * damping)
        size = 1.0 + scale * damping * np.array([wider, higher])
        matrix = _rotation(angle) * size  # rotation after scaling: columns times size
        for index in group:
            result[index] = ((strokes[index] - centre) @ matrix.T + centre + moved).astype(np.float32)
    return result


def augment(
    strokes: Sequence[np.ndarray],
    rng: np.random.Generator,
    rotation: float = 5.0,
    shear: float = 0.2,
    stretch: float = 0.2,
    stroke_shift: float = 0.03,
    stroke_rotation: float = 3.0,
    stroke_scale: float = 0.05,
    elastic: float = 0.04,
) -> list[np.ndarray]:
    """Write the same strokes in a slightly different hand. Stroke count, order and point counts stay.

    Args:
        strokes: arrays `(points, 2)`, y down, any unit.
        rng: source of all randomness.
        rotation: largest rotation of the whole ink, in degrees.
        shear: largest horizontal shear (slant) as dx per dy.
        stretch: largest natural logarithm of the width-to-height change.
        stroke_shift: standard deviation of each stroke's own shift, in symbol heights.
        stroke_rotation: largest rotation of each stroke about its centre, in degrees.
        stroke_scale: largest relative change of each stroke's size.
        elastic: root mean square of a smooth displacement field, in symbol heights.
    """
    strokes = jitter(strokes, [[i] for i in range(len(strokes))], rng, stroke_shift, stroke_rotation, stroke_scale)
    ends = np.cumsum([len(stroke) for stroke in strokes])[:-1]
    points = np.concatenate(strokes).astype(np.float64)
    centre = (points.min(0) + points.max(0)) / 2
    points -= centre

    if elastic > 0:
        points += _elastic_field(points, symbol_unit(strokes), elastic, rng)
    turn, slant, wider = rng.uniform(-1.0, 1.0, 3)
    half = np.exp(stretch * wider / 2)
    matrix = _rotation(np.deg2rad(rotation * turn)) @ np.array([[1.0, shear * slant], [0.0, 1.0]])
    points = points @ (matrix * np.array([half, 1.0 / half])).T + centre
    return np.split(points.astype(np.float32), ends)


def _rotation(angle: float) -> np.ndarray:
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, -sine], [sine, cosine]])


def _elastic_field(points: np.ndarray, unit: float, strength: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth random displacement `(points, 2)`: four plane waves 1 to 5 symbol heights long."""
    waves = 4
    lengths = rng.uniform(1.0, 5.0, waves) * unit
    directions = rng.uniform(0.0, 2 * np.pi, waves)
    phases = rng.uniform(0.0, 2 * np.pi, waves)
    frequencies = np.stack([np.cos(directions), np.sin(directions)]) * (2 * np.pi / lengths)
    # Longer waves may move ink further: amplitude in proportion to length keeps the local distortion alike.
    amplitudes = rng.standard_normal((waves, 2)) * (lengths / lengths.mean())[:, None]
    return np.sin(points @ frequencies + phases) @ amplitudes * (strength * unit / np.sqrt(waves / 2))


# --------------------------------------------------------------------------------------------- other writers' ink


class SymbolBank:
    """Segmented symbols of many writers, to lend to each other's formulas (`swap_symbols`).

    All points stand in one array, so that the bank pickles and forks cheaply into data loader workers.

    Args:
        rows: formulas with `strokes` (arrays or flat lists) and `symbols` (`(label, indices)` or
            `{"label": ..., "strokes": indices}`); use training rows only.
        limit: most samples kept of one label, the first ones met.
    """

    def __init__(self, rows: Iterable[dict], limit: int = 2000):
        samples: dict[str, list[list[np.ndarray]]] = {}
        for row in rows:
            strokes = as_strokes(row["strokes"])
            unit = symbol_unit(strokes)
            for label, indices in as_symbols(row["symbols"], len(strokes)):
                kept = samples.setdefault(label, [])
                if len(kept) < limit:
                    kept.append([strokes[index] / unit for index in indices])

        # Sample k is strokes sample_starts[k] up to sample_starts[k + 1]; strokes are ranges of points likewise.
        self.labels: dict[str, tuple[int, int]] = {}
        ordered = []
        for label, kept in samples.items():
            self.labels[label] = (len(ordered), len(ordered) + len(kept))
            ordered.extend(kept)
        strokes = [stroke for sample in ordered for stroke in sample]
        self.sample_starts = np.cumsum([0] + [len(sample) for sample in ordered])
        self.stroke_starts = np.cumsum([0] + [len(stroke) for stroke in strokes])
        self.points = np.concatenate(strokes) if strokes else np.zeros((0, 2), np.float32)
        boxes = [np.ptp(np.concatenate(sample), axis=0) for sample in ordered]
        self.extents = np.array(boxes, np.float32).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.extents)

    def strokes(self, sample: int) -> list[np.ndarray]:
        """The strokes of one sample, in symbol heights of the formula they came from."""
        first, last = self.sample_starts[sample : sample + 2]
        bounds = self.stroke_starts[first : last + 1]
        return [self.points[start:stop] for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]


def as_symbols(symbols: Iterable, stroke_count: int) -> list[tuple[str, list[int]]]:
    """A segmentation, given as `(label, indices)` or as the schema's dicts, without symbols of unknown strokes."""
    pairs = []
    for symbol in symbols or ():
        label, indices = (symbol["label"], symbol["strokes"]) if isinstance(symbol, dict) else symbol
        if len(indices) and all(0 <= index < stroke_count for index in indices):
            pairs.append((label, list(indices)))
    return pairs


def swap_symbols(
    strokes: Sequence[np.ndarray],
    symbols: Iterable,
    bank: SymbolBank,
    rng: np.random.Generator,
    probability: float = 0.5,
) -> list[np.ndarray]:
    """Replace symbols by ink of the same label that other writers wrote, fitted into the same boxes.

    Of a few random samples the one whose proportions fit best is taken; where none fits without visible distortion,
    and where a label is missing in the bank, the symbol stays as it is.

    Args:
        strokes: arrays `(points, 2)`.
        symbols: segmentation, in either form of `as_symbols`.
        bank: whence the ink comes.
        rng: source of all randomness.
        probability: chance of each symbol to be replaced, 0..1.

    Returns:
        The strokes in writing order; a replaced symbol stands where its first stroke stood. As a symbol may come
        back with another number of strokes, `symbols` does not index the result.
    """
    unit = symbol_unit(strokes)
    replaced: dict[int, list[np.ndarray]] = {}  # first stroke of a symbol -> its new strokes
    dropped: set[int] = set()
    for label, indices in as_symbols(symbols, len(strokes)):
        if rng.random() >= probability or label not in bank.labels or not dropped.isdisjoint(indices):
            continue
        box = np.concatenate([strokes[index] for index in indices])
        low, high = box.min(0), box.max(0)
        sample = _best_fitting_sample(bank, label, (high - low) / unit, rng)
        if sample is not None:
            replaced[min(indices)] = _fit(bank.strokes(sample), bank.extents[sample], low, high, unit)
            dropped.update(indices)
    result = []
    for index, stroke in enumerate(strokes):
        if index in replaced:
            result.extend(replaced[index])
        elif index not in dropped:
            result.append(stroke)
    return result


_FLAT = 0.12  # in symbol heights: a side below it carries no shape (bars, dots)
_TRIES = 8
_MOST_DISTORTION = 0.5  # natural logarithm of the worst width-to-height change, 1.65 times


def _best_fitting_sample(bank: SymbolBank, label: str, extent: np.ndarray, rng: np.random.Generator) -> int | None:
    """The sample of `label` with proportions nearest to `extent` (symbol heights) among a few random ones."""
    samples = rng.integers(*bank.labels[label], size=_TRIES)
    shapes = np.maximum(np.concatenate([bank.extents[samples], extent[None]]), _FLAT)
    aspects = np.log(shapes[:, 0] / shapes[:, 1])
    distances = np.abs(aspects[:-1] - aspects[-1])
    # A bar has no proportions to keep: any bar drawn in the same direction can be stretched to length.
    if extent.min() < _FLAT < extent.max():
        along = extent.argmax()
        bars = bank.extents[samples]
        usable = (bars.min(1) < 2 * _FLAT) & (bars.argmax(1) == along) & (bars.max(1) > 2 * bars.min(1))
        distances = np.where(usable, 0.1 * distances, np.inf)
    best = int(distances.argmin())
    return int(samples[best]) if distances[best] <= _MOST_DISTORTION else None


def _fit(
    strokes: list[np.ndarray], extent: np.ndarray, low: np.ndarray, high: np.ndarray, unit: float
) -> list[np.ndarray]:
    """Scale bank strokes (in symbol heights) onto the box low..high (device units), centre on centre."""
    target = (high - low) / unit
    factor = np.ones(2)
    if target.max() >= _FLAT and extent.max() >= _FLAT:
        factor[:] = target.max() / extent.max()
        if target.min() >= _FLAT and extent.min() >= _FLAT:
            factor = target / extent
        else:
            # The short side keeps its own wobble, whatever length the bar is stretched to.
            short = 1 - int(target.argmax())
            factor[short] = min(factor[short], max(1.0, 1.5 * target[short] / max(extent[short], 1e-6)))
    points = np.concatenate(strokes)
    centre = (points.min(0) + points.max(0)) / 2
    middle = (low + high) / 2
    return [((stroke - centre) * (factor * unit) + middle).astype(np.float32) for stroke in strokes]


@dataclass(frozen=True)
class InkAugmentation:
    """How strongly training ink is varied; every field is a number that a recipe can set, 0 (or (1, 1)) turns it off.

    Attributes:
        swap: probability of each symbol to be replaced by another writer's (`swap_symbols`).
        symbol_shift, symbol_rotation, symbol_scale: as `jitter`, for whole symbols.
        rotation, shear, stretch, stroke_shift, stroke_rotation, stroke_scale, elastic: as `augment`.
        thickness: range of the factor on the line width.
        scale: range of the factor on the symbol height; 0.7..1.4 in CoMER (Zhao and Gao 2022, section 4.2).
    """

    swap: float = 0.5
    symbol_shift: float = 0.05
    symbol_rotation: float = 5.0
    symbol_scale: float = 0.12
    rotation: float = 5.0
    shear: float = 0.2
    stretch: float = 0.2
    stroke_shift: float = 0.03
    stroke_rotation: float = 3.0
    stroke_scale: float = 0.05
    elastic: float = 0.04
    thickness: tuple[float, float] = (0.8, 1.4)
    scale: tuple[float, float] = (0.7, 1.4)

    def __call__(
        self,
        strokes: Iterable,
        rng: np.random.Generator,
        symbols: Iterable | None = None,
        bank: SymbolBank | None = None,
        symbol_height: float = 28.0,
        line_width: float = 3.0,
    ) -> tuple[list[np.ndarray], float, float]:
        """Draw one variant: `render(*augmentation(strokes, rng, symbols, bank))`.

        Args:
            strokes: arrays `(points, 2)` or flat coordinate lists.
            rng: source of all randomness.
            symbols: segmentation in either form of `as_symbols`; without it symbols are neither moved nor swapped.
            bank: other writers' symbols; without it nothing is swapped.
            symbol_height, line_width: what the drawn factors multiply, in pixels.

        Returns:
            The strokes, the symbol height and the line width to render with.

        Raises:
            InkError: as `as_strokes`.
        """
        strokes = as_strokes(strokes)
        pairs = as_symbols(symbols, len(strokes))
        if pairs:
            groups = [indices for _, indices in pairs]
            strokes = jitter(strokes, groups, rng, self.symbol_shift, self.symbol_rotation, self.symbol_scale)
            if bank is not None and self.swap > 0:
                strokes = swap_symbols(strokes, pairs, bank, rng, self.swap)
        strokes = augment(
            strokes,
            rng,
            rotation=self.rotation,
            shear=self.shear,
            stretch=self.stretch,
            stroke_shift=self.stroke_shift,
            stroke_rotation=self.stroke_rotation,
            stroke_scale=self.stroke_scale,
            elastic=self.elastic,
        )
        return strokes, symbol_height * rng.uniform(*self.scale), line_width * rng.uniform(*self.thickness)
