"""What is ink in an image: whether dark or light, how large it is written, and photographs of paper made clean.

Everything takes grey images (height, width), float32 in 0..1, as torch tensors. Apart from `dark_on_light`, which
finds it out, ink is light on a dark ground. Windows and thresholds follow from the image, so that a change of its
size, its contrast or its light changes nothing else.
"""

import numpy as np
import torch
import torch.nn.functional as F

FAINTEST = 0.05  # of the sheet's brightness: what is paler in a photograph is paper
PHOTOGRAPH_PIXELS = 2**21  # larger photographs are averaged down to this before they are cleaned
MEASURED_PIXELS = 2**20  # the writing's size is measured on at most this


# ---------------------------------------------------------------------------------------------- polarity


def dark_on_light(grey: torch.Tensor) -> bool:
    """Whether the ink is the dark part: it is the smaller one, which makes the brightness around its mean skewed.

    Each pixel is compared with the mean around it, so that it is strokes that count and not a dark table or a
    vignette.
    """
    longest = max(grey.shape)
    if longest > 1024:
        grey = resize(grey, 1024 / longest)
    skewness = 0.0
    # Large windows know a bold formula that fills the image, small ones a small sheet on a large table.
    window = max(3, min(grey.shape) // 2)
    while window >= 3:
        difference = grey - mean_around(grey, window)
        spread = difference.square().mean().clamp(min=1e-8)
        skewness += float((difference**3).mean() / spread**1.5)
        window = window // 2 if window >= 18 else 0
    return skewness < 0


# ---------------------------------------------------------------------------------------------- size of the writing


def written_height(ink: torch.Tensor) -> float:
    """How high the symbols are written, in pixels, by the rule that rendered ink follows (`data.ink.symbol_unit`).

    The mean height of the connected parts that are taller than a tenth of the tallest, less the width of the pen.
    Parts are strokes that touch, so on average a little taller than strokes. The divisor for that makes the answer the
    symbol height that CROHME's training ink was rendered at, on average.
    """
    pen = pen_width(ink)
    # Measured where the pen is 4 pixels wide: the answer then hardly depends on the image's own resolution.
    factor = min(4 / pen, (MEASURED_PIXELS / ink.numel()) ** 0.5)
    ink = resize(ink, factor)
    pen *= factor
    boxes, areas = parts(ink > ink.max() / 2)[:2]
    boxes = boxes[areas > pen**2 / 4]
    if not len(boxes):
        return 28.0 / 3.0 * pen / factor
    widths, heights = (boxes[:, 2:] - boxes[:, :2] - pen).clip(0).T
    upright = heights[heights > 0.1 * widths]  # fraction bars slope
    if (heights > 0.3 * widths).any() and upright.max() > pen:
        height = upright[upright > 0.1 * upright.max()].mean() / 1.08
    else:  # a lone bar, or dots
        height = max(widths.mean() / 2, 2 * pen)
    return float(height) / factor


def pen_width(ink: torch.Tensor) -> float:
    """Mean width of the strokes in pixels: twice their area over the length of their outline."""
    level = ink.max().clamp(min=1e-6)
    padded = F.pad((ink / level)[None], (1, 1, 1, 1))[0]
    across, down = padded.diff(dim=1)[:-1], padded.diff(dim=0)[:, :-1]
    outline = (across.square() + down.square()).sqrt().sum()
    return max(1.0, float(2 * padded.sum() / outline.clamp(min=1e-6)))


def parts(mask: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Connected parts, corners included: boxes (n, 4) left, top, right, bottom; areas (n,); labels (height, width).

    Labels are -1 outside. Runs of pixels in a row are joined with those they touch in the next.
    """
    height, width = mask.shape
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask
    step = np.diff(padded, axis=1).ravel()
    starts, ends = np.flatnonzero(step == 1), np.flatnonzero(step == -1)  # in rows of width + 1
    line = width + 1
    first = np.searchsorted(ends, starts + line)
    counts = np.maximum(np.searchsorted(starts, ends + line, side="right") - first, 0)
    upper = np.repeat(np.arange(len(starts)), counts)
    lower = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts - first, counts)
    rows, columns = starts // line, starts % line
    next_row = rows[lower] == rows[upper] + 1
    labels = _join(len(starts), upper[next_row], lower[next_row])

    number = labels.max() + 1 if len(labels) else 0
    boxes = np.tile(np.array([width, height, 0, 0]), (number, 1))
    areas = np.zeros(number, np.int64)
    np.minimum.at(boxes[:, 0], labels, columns)
    np.minimum.at(boxes[:, 1], labels, rows)
    np.maximum.at(boxes[:, 2], labels, columns + ends - starts)
    np.maximum.at(boxes[:, 3], labels, rows + 1)
    np.add.at(areas, labels, ends - starts)
    painted = np.full((height, width), -1)
    painted[np.asarray(mask, bool)] = np.repeat(labels, ends - starts)
    return boxes, areas, painted


def _join(count: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Numbers 0.. of the connected groups among `count` things, where each `one` touches its `other`."""
    labels = np.arange(count)
    while True:
        lowest = np.minimum(labels[one], labels[other])
        merged = labels.copy()
        np.minimum.at(merged, labels[one], lowest)
        np.minimum.at(merged, labels[other], lowest)
        while not np.array_equal(merged, merged[merged]):
            merged = merged[merged]
        if np.array_equal(merged, labels):
            return np.unique(labels, return_inverse=True)[1]
        labels = merged


# ---------------------------------------------------------------------------------------------- windows


def resize(image: torch.Tensor, factor: float) -> torch.Tensor:
    """(height, width) scaled by `factor`: bicubic, averaging when it shrinks, clamped to 0..1."""
    size = [max(1, round(side * factor)) for side in image.shape]
    return F.interpolate(image[None, None], size, mode="bicubic", antialias=True)[0, 0].clamp(0, 1)


def mean_around(image: torch.Tensor, window: int) -> torch.Tensor:
    """The mean over a square of about `window` pixels around each; the border is continued outwards."""
    height, width = image.shape
    reach = (min(window // 2, height), min(window // 2, width))
    padded = F.pad(image[None, None], (reach[1], reach[1], reach[0], reach[0]), mode="replicate")[0, 0]
    for axis, half in enumerate(reach):
        # Sums by differences of running totals: the window costs nothing.
        totals = padded.double().cumsum(axis)
        totals = F.pad(totals, (0, 0, 1, 0) if axis == 0 else (1, 0))
        length = 2 * half + 1
        size = totals.shape[axis] - length
        padded = ((totals.narrow(axis, length, size) - totals.narrow(axis, 0, size)) / length).to(image.dtype)
    return padded


def opened(image: torch.Tensor, window: int) -> torch.Tensor:
    """Without what is light and has no room for a square of `window` pixels; the border is continued outwards."""
    padded = F.pad(image[None, None], [window - 1] * 4, mode="replicate")[0, 0]
    return _sliding(_sliding(padded, window, torch.minimum), window, torch.maximum)


def _sliding(image: torch.Tensor, window: int, extreme) -> torch.Tensor:
    """The `extreme` of every whole square window, by doubling: (height - window + 1, width - window + 1)."""
    for axis in (0, 1):
        reached = 1
        while reached < window:
            step = min(reached, window - reached)
            length = image.shape[axis] - step
            image = extreme(image.narrow(axis, 0, length), image.narrow(axis, step, length))
            reached += step
    return image


# ---------------------------------------------------------------------------------------------- cleaning


def clean_ink(ink: torch.Tensor) -> torch.Tensor:
    """The ink at full contrast on an even ground: (height, width), less than the image's of large photographs.

    On an even ground only ground and ink are brought to 0 and 1, which changes nothing where they are already. All
    else is a photograph: it is averaged down to `PHOTOGRAPH_PIXELS` and compared with the ground around each pixel,
    and what lies beyond the sheet and noise are taken away; of an empty sheet nothing remains. Specks and rules paler
    than the ink go in either case.
    """
    # An image lower than this leaves no room for a ground to vary in.
    if even := min(ink.shape) < 40 or has_even_ground(ink):
        ink = (ink - ink.median()).clamp(min=0)
    else:
        if ink.numel() > PHOTOGRAPH_PIXELS:
            ink = resize(ink, (PHOTOGRAPH_PIXELS / ink.numel()) ** 0.5)
        ink = without_ground(ink)
    level = ink_level(ink)
    if not even and level < FAINTEST:
        return torch.zeros_like(ink)
    ink = ink / max(level, 1e-6)
    rules = max(remove_rules(ink), remove_rules(ink.T)) if not even or has_middle_greys(ink) else 0.0
    if even:
        return without_specks(ink.clamp(0, 1))
    noise = 1.4826 * float(ink.abs().median())
    if noise > 0.3:  # the tail of noise alone stands about three deviations out
        return torch.zeros_like(ink)
    floor = min(max(0.25, 5 * noise, 1.3 * rules), 0.6)
    return without_specks(((ink - floor) / (0.85 - floor)).clamp(0, 1))


def has_even_ground(ink: torch.Tensor) -> bool:
    """Whether most pixels are of one brightness, everywhere: a drawing, a scan or a rendering, not a photograph."""
    ground = ink.median()
    level = ink_level((ink - ground).clamp(min=0))
    if ((ink - ground).abs() < max(level / 40, 0.5 / 255)).float().mean() < 0.5:
        return False
    tiles = [tile for rows in ink.tensor_split(4) for tile in rows.tensor_split(4, dim=1) if tile.numel()]
    # Of the darkest quarter of each, so that ink may cover most of a tile.
    darkest = torch.stack([tile.flatten().kthvalue(tile.numel() // 4 + 1).values for tile in tiles])
    return bool((darkest - ground).abs().max() < level / 10)


def has_middle_greys(ink: torch.Tensor) -> bool:
    """Whether pale pixels stand beside each other, along or across, as those of rules do and soft edges do not."""
    pale = (ink > 0.08) & (ink < 0.6)
    return bool(max(pale.float().mean(0).max(), pale.float().mean(1).max()) > 0.5)


def ink_level(ink: torch.Tensor) -> float:
    """Brightness of the strokes' cores over a ground of 0: the 90th percentile of what passes half of the most."""
    # The most is that of some 20 pixels, not of a single hot one.
    most = ink.flatten().kthvalue(max(1, ink.numel() - min(20, ink.numel() // 200))).values
    bright = ink[ink > most / 2]
    return float(bright.kthvalue(max(1, round(0.9 * len(bright)))).values) if len(bright) else 0.0


def without_ground(ink: torch.Tensor) -> torch.Tensor:
    """How much darker than the sheet around it each pixel is, 0..1 on either side of 0; 0 beyond the sheet.

    The sheet is what remains when all that is narrower than a sixth of the image is taken away.
    """
    window = max(9, min(ink.shape) // 6)
    smooth = mean_around(ink, 3)
    ground = opened(smooth, window)
    sheet = 1 - ground
    brightest = float(sheet.flatten()[:: max(1, sheet.numel() // 10**5)].quantile(0.95))
    # What reaches less than a third of the sheet's brightness is a table, which no shadow makes of paper. Its soft
    # border goes too.
    beyond = (sheet < brightest / 3).float()
    beyond = mean_around(beyond, 2 * (max(ink.shape) // 100) + 3) > 0.02
    difference = (ink - ground) / sheet.clamp(min=0.05)
    difference[beyond] = 0
    inside = difference[~beyond]
    return difference - inside.median() * (~beyond) if len(inside) else difference


def without_specks(ink: torch.Tensor) -> torch.Tensor:
    """Without parts that nowhere come near full contrast, and those far smaller than a dot of the pen."""
    boxes, areas, labels = parts(ink > 0.1)
    if not len(boxes):
        return ink
    peaks = np.zeros(len(boxes), np.float32)
    inside = labels >= 0
    np.maximum.at(peaks, labels[inside], ink.numpy()[inside])
    # The pen is that of the larger half of the ink: specks have none.
    order = np.argsort(-areas)
    main = order[: 1 + np.searchsorted(areas[order].cumsum(), areas.sum() / 2)]
    pen = pen_width(ink * torch.from_numpy(np.isin(labels, main)))
    kept = (peaks > 0.5) & (areas > 0.3 * pen**2)
    if kept.all():
        return ink
    return ink * torch.from_numpy(np.append(kept, False)[labels])


# ---------------------------------------------------------------------------------------------- rules


def remove_rules(ink: torch.Tensor) -> float:
    """Take horizontal rules out of (height, width) in place; return how bright the brightest was, 0 without any.

    In a strip of columns a rule is in every column and a stroke in few, so that the median of each row shows rules
    alone. Those of neighbouring strips that continue each other over most of the width are rules of the paper, if
    they are paler than ink or many; a fraction bar is neither. A column loses the rule where nothing crosses it.
    """
    height, width = ink.shape
    strip = max(8, min(32, width // 12))
    count = width // strip
    if count < 4 or height < 8:
        return 0.0
    profile = ink[:, : count * strip].unflatten(1, (count, strip)).median(2).values.numpy()
    noise = 1.4826 * float(np.abs(profile).mean())
    peaks = [_peaks(profile[:, index], max(0.06, 3 * noise)) for index in range(count)]
    chains = [chain for chain in _chains(peaks) if len(chain) >= 0.6 * count]
    levels = [float(np.median([profile[row, index] for index, row in chain.items()])) for chain in chains]
    many = len(chains) >= 4
    brightest = 0.0
    for chain, level in zip(chains, levels):
        if level < 0.65 or many:
            _erase(ink, chain, profile, strip)
            brightest = max(brightest, level)
    return brightest


def _peaks(profile: np.ndarray, least: float) -> np.ndarray:
    """Rows where a profile (height,) is highest among its neighbours and above `least`."""
    padded = np.pad(profile, 2)
    around = np.lib.stride_tricks.sliding_window_view(padded, 5).max(1)
    rows = np.flatnonzero((profile >= around) & (profile > least))
    return rows[np.diff(rows, prepend=-9) > 2]


def _chains(peaks: list[np.ndarray]) -> list[dict[int, int]]:
    """Peaks of neighbouring strips that continue each other, `{strip: row}`; a chain may skip three strips."""
    chains = []
    for index, rows in enumerate(peaks):
        free = set(rows.tolist())
        for chain in sorted(chains, key=len, reverse=True):
            last = max(chain)
            if index - last > 4 or not free:
                continue
            first = max(min(chain), last - 12)
            first = min(key for key in chain if key >= first)
            slope = (chain[last] - chain[first]) / (last - first) if last > first else 0.0
            expected = chain[last] + slope * (index - last)
            nearest = min(free, key=lambda row: abs(row - expected))
            if abs(nearest - expected) <= 2 + (index - last):
                chain[index] = nearest
                free.remove(nearest)
        chains.extend({index: row} for row in free)
    return chains


def _erase(ink: torch.Tensor, chain: dict[int, int], profile: np.ndarray, strip: int):
    """Take one rule out, in place, in the columns in which it is no higher than a rule."""
    height, width = ink.shape
    strips, rows = np.array(sorted(chain.items())).T
    columns = np.arange(width)
    # A parabola follows lens and perspective and is not led astray by a stroke that runs along.
    curve = np.polyfit((strips + 0.5) * strip, rows, min(2, len(rows) - 1))
    straight = np.polyval(curve, columns)
    near = np.interp(columns, (strips + 0.5) * strip, rows)
    path = np.where(np.abs(near - straight) < 2, near, straight).round().astype(int).clip(0, height - 1)

    level = float(np.median(profile[rows, strips]))
    thickness = np.median([(profile[max(row - 6, 0) : row + 7, index] > level / 2).sum()
                           for index, row in zip(strips, rows)])  # fmt: skip
    reach = int(thickness) + 3
    offsets = np.arange(-reach, reach + 1)
    window = (path + offsets[:, None]).clip(0, height - 1)  # (2 reach + 1, width)
    values = ink.numpy()[window, columns]
    dark = values > level / 3
    # The run of dark pixels through the middle of the window; one that fills it is a stroke crossing.
    up = np.logical_and.accumulate(dark[reach::-1])[::-1]
    down = np.logical_and.accumulate(dark[reach:])
    run = np.concatenate([up, down[1:]])
    length = run.sum(0)
    crossing = (length > thickness + 2) | (values.max(0) > max(1.6 * level, level + 0.25))
    erased = run & ~crossing
    ink[torch.from_numpy(window[erased]), torch.from_numpy(np.broadcast_to(columns, window.shape)[erased])] = 0
