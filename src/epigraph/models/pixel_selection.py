"""Which pixels of an image become tokens, and which ones pre-training hides.

Attention over n pixels costs n squared, and most pixels of most images say little. The choice is made before the first
layer, from the raw image, and keeps every pixel's true coordinates. No part of it is learnt.
"""

import math

import torch
import torch.nn.functional as F

CONTENT = ("edge", "ink", "saliency")


def select_pixels(
    images: torch.Tensor, policy: str, count: int, seed: int = 0, training: bool = False
) -> torch.LongTensor:
    """Chooses pixels of each image.

    Args:
        images: (batch, channels, height, width), any scale.
        policy: `random` (anew for every image and call while `training`, else as `random_fixed`), `random_fixed` (the
            same places in every image), `grid` (evenly spread rows and columns), or by `pixel_scores`: `edge`, `ink`
            and `saliency`.
        count: pixels to keep of each image.
        seed: of `random_fixed`, and of the order in which pixels of equal score are taken.
        training: see `random`.

    Returns:
        (batch, count) row-major indices, row * width + column, ascending.

    Raises:
        ValueError: `count` is larger than the images, or there is no such policy.
    """
    batch, _, height, width = images.shape
    if count > height * width:
        raise ValueError(
            f"num_selected_pixels is {count}, but an image of {height} x {width} has only {height * width} pixels; "
            "select fewer, or give larger images."
        )
    if policy == "random" and training:
        chosen = torch.rand(batch, height * width, device=images.device).topk(count).indices
    elif policy in ("random", "random_fixed"):
        chosen = _scattered(height * width, seed, images.device)[:count].expand(batch, -1)
    elif policy == "grid":
        chosen = grid(height, width, count).to(images.device).expand(batch, -1)
    elif policy in CONTENT:
        # Flat regions tie: of equals, those that come first in a scattered order, not those at the top left.
        order = _scattered(height * width, seed, images.device)
        scores = pixel_scores(images, policy).flatten(1)[:, order]
        chosen = order[scores.argsort(dim=1, descending=True, stable=True)[:, :count]]
    else:
        raise ValueError(f"There is no pixel selection {policy!r}.")
    return chosen.sort(dim=1).values


@torch.compiler.assume_constant_result  # torch.compile cannot trace a generator
def _scattered(size: int, seed: int, device: torch.device) -> torch.LongTensor:
    """A permutation that depends on `seed` alone, not on the device."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).to(device)


def grid(height: int, width: int, count: int) -> torch.LongTensor:
    """Row-major indices of `count` pixels spread over an image as evenly as whole rows allow: (count,)."""
    rows = min(height, count, max(round(math.sqrt(count * height / width)), math.ceil(count / width)))
    chosen = []
    for index in range(rows):
        columns = (index + 1) * count // rows - index * count // rows
        row = (2 * index + 1) * height // (2 * rows)
        chosen += [row * width + (2 * column + 1) * width // (2 * columns) for column in range(columns)]
    return torch.tensor(chosen)


def pixel_scores(images: torch.Tensor, policy: str) -> torch.Tensor:
    """How much each pixel says by itself, for the policies that look at the content.

    Args:
        images: (batch, channels, height, width).
        policy: `edge`: length of the gradient of the mean channel (central differences, one-sided at the border).
            `ink`: distance to the median colour of the border, which is the background of most crops of text.
            `saliency`: distance of the smoothed colour to the image's mean colour (Achanta et al., CVPR 2009, eq. 4,
            on the given channels instead of Lab).

    Returns:
        (batch, height, width) float32, at least 0.
    """
    images = images.float()
    if policy == "edge":
        grey = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
        down = grey[:, 0, 2:, 1:-1] - grey[:, 0, :-2, 1:-1]
        right = grey[:, 0, 1:-1, 2:] - grey[:, 0, 1:-1, :-2]
        return (down.square() + right.square()).sqrt()
    if policy == "ink":
        border = [images[:, :, 0], images[:, :, -1], images[:, :, 1:-1, 0], images[:, :, 1:-1, -1]]
        background = torch.cat(border, dim=2).median(dim=2).values
        return (images - background[:, :, None, None]).norm(dim=1)
    kernel = images.new_tensor([1, 4, 6, 4, 1]) / 16
    smooth = F.pad(images, (2, 2, 2, 2), mode="replicate").unfold(2, 5, 1).mul(kernel).sum(-1)
    smooth = smooth.unfold(3, 5, 1).mul(kernel).sum(-1)
    return (smooth - images.mean((2, 3), keepdim=True)).norm(dim=1)


def mask_noise(coordinates: torch.Tensor, mask_type: str, block_size: int) -> torch.Tensor:
    """Random numbers whose order says which pixels pre-training hides: the largest.

    Args:
        coordinates: (batch, n, 2), row and column.
        mask_type: `random`: each pixel has a number of its own. `block`: pixels of a square share theirs, so that
            whole squares are hidden, and of at most one only a part; their lattice lies elsewhere in every image.
        block_size: side of the squares.

    Returns:
        (batch, n) float32.
    """
    noise = torch.rand(coordinates.shape[:2], device=coordinates.device)
    if mask_type == "random":
        return noise
    shift = torch.randint(block_size, (len(coordinates), 1, 2), device=coordinates.device)
    rows, columns = ((coordinates + shift) // block_size).unbind(-1)
    squares = rows * (columns.amax(1, keepdim=True) + 1) + columns
    # Numbered from 0 in each image: how far apart pixels lie must not cost memory.
    squares, order = squares.sort(dim=1)
    first = F.pad(squares[:, 1:] != squares[:, :-1], (1, 0))
    numbers = torch.empty_like(order).scatter_(1, order, first.cumsum(dim=1))
    # By the rank of the square; within one the own number decides, so that the share that is hidden is exact. It is
    # kept away from 1, which rounding would carry into the next rank.
    ranks = torch.rand_like(noise).argsort(dim=1).argsort(dim=1)
    return ranks.gather(1, numbers) + 0.9 * noise


__all__ = ["grid", "mask_noise", "pixel_scores", "select_pixels"]
