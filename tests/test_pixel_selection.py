"""Which pixels become tokens, and which ones pre-training hides."""

import itertools

import pytest
import torch
from PIL import Image, ImageDraw

from epigraph.models.pixel_selection import CONTENT, grid, mask_noise, pixel_scores, select_pixels

POLICIES = ["random", "random_fixed", "grid", *CONTENT]


def noise_images(batch=3, channels=3, height=7, width=5):
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_exactly_as_many_as_asked_and_none_twice(policy, training):
    for height, width, count in [(7, 5, 1), (7, 5, 8), (7, 5, 34), (7, 5, 35), (1, 9, 4), (9, 1, 4), (1, 1, 1)]:
        chosen = select_pixels(noise_images(height=height, width=width), policy, count, training=training)
        assert chosen.shape == (3, count) and chosen.dtype == torch.long
        assert bool((chosen[:, 1:] > chosen[:, :-1]).all()), "ascending, so none twice"
        assert 0 <= chosen.min() and chosen.max() < height * width


@pytest.mark.parametrize("policy", POLICIES)
def test_more_than_there_are_is_refused(policy):
    message = "num_selected_pixels is 36, but an image of 7 x 5 has only 35 pixels"
    for training in (False, True):
        with pytest.raises(ValueError, match=message):
            select_pixels(noise_images(), policy, 36, training=training)


def test_unknown_policies_are_refused():
    with pytest.raises(ValueError, match="There is no pixel selection 'best'"):
        select_pixels(noise_images(), "best", 3)


@pytest.mark.parametrize("policy", POLICIES)
def test_evaluation_is_deterministic_and_blind_to_the_batch(policy):
    images = noise_images()
    chosen = select_pixels(images, policy, 9)
    torch.rand(7)  # the state of the global generator does not matter
    assert torch.equal(select_pixels(images, policy, 9), chosen)
    for index in range(3):
        assert torch.equal(select_pixels(images[index : index + 1], policy, 9)[0], chosen[index])


def test_random_is_fresh_in_training_only():
    images = noise_images()
    torch.manual_seed(0)
    first, second = (select_pixels(images, "random", 9, training=True) for _ in range(2))
    assert not torch.equal(first, second) and not torch.equal(first[0], first[1])
    torch.manual_seed(0)
    assert torch.equal(select_pixels(images, "random", 9, training=True), first)
    fixed = select_pixels(images, "random_fixed", 9, training=True)
    assert torch.equal(select_pixels(images, "random", 9), fixed) and torch.equal(fixed[0], fixed[1])


def test_random_reaches_every_pixel_equally_often():
    torch.manual_seed(0)
    chosen = select_pixels(torch.zeros(4000, 1, 4, 5), "random", 5, training=True)
    shares = torch.bincount(chosen.flatten(), minlength=20) / 4000
    assert (shares - 0.25).abs().max() < 0.04  # 5.8 standard deviations


def test_the_seed_chooses_the_fixed_places():
    chosen = [select_pixels(noise_images(), "random_fixed", 9, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(chosen[0], chosen[1]) and not torch.equal(chosen[0], chosen[2])


def steps(places, size):
    """Distances between neighbours, and from the first and last to the borders."""
    return {after - before for before, after in itertools.pairwise(places)}, {places[0], size - 1 - places[-1]}


@pytest.mark.parametrize("height, width", [*itertools.product((1, 2, 5, 7), repeat=2), (28, 28), (9, 31)])
def test_the_grid_is_even(height, width):
    for count in range(1, min(height * width, 60) + 1):
        chosen = grid(height, width, count).tolist()
        assert len(chosen) == len(set(chosen)) == count
        rows = {}
        for index in chosen:
            rows.setdefault(index // width, []).append(index % width)
        lengths = {len(columns) for columns in rows.values()}
        assert max(lengths) - min(lengths) <= 1
        for places, size in [(list(rows), height), *((columns, width) for columns in rows.values())]:
            inner, borders = steps(places, size)
            assert max(borders) - min(borders) <= 1
            assert not inner or max(inner) - min(inner) <= 1
            assert max(borders) <= size / len(places)


def test_a_grid_of_squares_is_a_lattice():
    assert grid(28, 28, 49).tolist() == [row * 28 + column for row in range(2, 28, 4) for column in range(2, 28, 4)]
    # As dense down as across, in images that are not square too.
    rows = {index // 40 for index in grid(10, 40, 16).tolist()}
    assert len(rows) == 2


@pytest.mark.parametrize("policy", CONTENT)
@pytest.mark.parametrize("level", [0.0, 0.3, -1.0])
def test_flat_images_are_scattered(policy, level):
    flat = torch.full((2, 3, 16, 16), level)
    chosen = select_pixels(flat, policy, 32)
    assert torch.equal(chosen[0], chosen[1])
    rows, columns = chosen[0] // 16, chosen[0] % 16
    for place in (rows, columns):
        assert len(place.unique()) >= 10 and 5 < place.float().mean() < 10
    assert not torch.equal(select_pixels(flat, policy, 32, seed=1), chosen)


def drawing(draw, size=(16, 12), background=0):
    """(1, 1, height, width) in 0..1."""
    image = Image.new("L", size, background)
    draw(ImageDraw.Draw(image))
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(1, 1, size[1], size[0]) / 255


def places(images, policy, count):
    chosen = select_pixels(images, policy, count)[0].tolist()
    return {(index // images.shape[3], index % images.shape[3]) for index in chosen}


@pytest.mark.parametrize("background, ink", [(0, 255), (255, 0), (90, 140)])
def test_ink_is_what_differs_from_the_border(background, ink):
    image = drawing(lambda d: d.rectangle((4, 3, 7, 8), fill=ink), background=background)
    assert places(image, "ink", 24) == set(itertools.product(range(3, 9), range(4, 8)))
    assert places(image * 3 - 7, "ink", 24) == places(image, "ink", 24), "the processor's scale does not matter"


def test_ink_of_a_colour():
    image = torch.ones(1, 3, 8, 8)
    image[:, :, 3:5, 3:5] = torch.tensor([1.0, 0.2, 1.0])[:, None, None]
    image[:, 1, 0, :3] = 0.5  # a few spots on the border do not move its median
    assert places(image, "ink", 4) == {(3, 3), (3, 4), (4, 3), (4, 4)}


def test_edges_are_where_brightness_changes():
    image = drawing(lambda d: d.rectangle((8, 0, 15, 11), fill=255))
    assert places(image, "edge", 24) == set(itertools.product(range(12), (7, 8)))
    scores = pixel_scores(image, "edge")[0]
    assert scores[5].tolist() == [0] * 7 + [1, 1] + [0] * 7
    ramp = torch.arange(6.0).expand(1, 2, 5, 6)
    assert pixel_scores(ramp, "edge")[0, 2].tolist() == [1, 2, 2, 2, 2, 1], "one-sided at the border"


def test_edges_have_every_direction():
    image = drawing(lambda d: d.rectangle((5, 4, 9, 7), fill=255))
    outline = places(image, "edge", 28)
    inside = set(itertools.product(range(5, 7), range(6, 9)))
    around = set(itertools.product(range(3, 9), range(4, 11)))
    assert outline <= around and not outline & inside


def test_saliency_is_distance_to_the_mean_colour():
    image = drawing(lambda d: d.rectangle((10, 5, 13, 8), fill=255))
    best = places(image, "saliency", 4)
    assert best == set(itertools.product((6, 7), (11, 12))), "the middle, as the colours are smoothed"
    # A single bright pixel is spread by the binomial filter of 1 4 6 4 1.
    dot = torch.zeros(1, 1, 9, 9)
    dot[..., 4, 4] = 1
    row = torch.tensor([0, 0, 1, 4, 6, 4, 1, 0, 0]) * 6 / 256
    torch.testing.assert_close(pixel_scores(dot, "saliency")[0, 4], (row - 1 / 81).abs())


@pytest.mark.parametrize("policy", CONTENT)
def test_scores_of_halves_and_ids(policy):
    image = drawing(lambda d: d.ellipse((3, 2, 11, 9), fill=200))
    expected = pixel_scores(image * 255, policy)
    assert expected.shape == (1, 12, 16) and expected.dtype == torch.float32 and expected.min() >= 0
    torch.testing.assert_close(pixel_scores((image * 255).long(), policy), expected)
    torch.testing.assert_close(pixel_scores((image * 255).bfloat16(), policy), expected)


# ------------------------------------------------------------------------------------------------------------ masks


def lattice(height=12, width=12, batch=4):
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns], dim=-1).view(1, -1, 2).expand(batch, -1, -1)


def test_random_masks_give_each_pixel_a_number_of_its_own():
    torch.manual_seed(0)
    noise = mask_noise(lattice(), "random", 4)
    assert noise.shape == (4, 144) and len(noise.unique()) == noise.numel()


@pytest.mark.parametrize("share", [0.75, 0.5, 0.3])
@pytest.mark.parametrize("size", [1, 3, 4, 20])
def test_block_masks_hide_whole_squares(size, share):
    torch.manual_seed(1)
    coordinates = lattice(batch=64)
    hidden = mask_noise(coordinates, "block", size).argsort(dim=1)[:, int(144 * (1 - share)) :]
    lattices = set()
    for image in range(64):
        mask = torch.zeros(144, dtype=torch.bool).scatter(0, hidden[image], True).view(12, 12)
        # Some position of the lattice of squares explains the mask, all but at most one square of it.
        fits = [shift for shift in itertools.product(range(size), repeat=2) if partial(mask, size, shift) <= 1]
        assert fits, f"image {image} is not hidden in squares of {size}"
        lattices.add(fits[0])
    assert len(lattices) > 1 or size == 1 or size > 12, "every image has the same lattice"


def test_block_masks_of_a_few_pixels_of_huge_images():
    """What lies between the pixels costs nothing; a table of all squares would have 10^16 entries here."""
    torch.manual_seed(0)
    corners = torch.tensor([[0, 0], [1, 1], [10**9, 10**9], [10**9 + 1, 10**9 + 1]]).expand(200, -1, -1)
    order = mask_noise(corners, "block", 100).argsort(dim=1)
    together = [set(image[:2].tolist()) in ({0, 1}, {2, 3}) for image in order]
    assert sum(together) > 190, "neighbours are in one square, but for a border between them"


def partial(mask, size, shift):
    """How many squares of a lattice are neither hidden nor visible as a whole."""
    rows, columns = ((torch.arange(12) + by) // size for by in shift)
    numbers = (rows[:, None] * 100 + columns).flatten()
    return sum(len(mask.flatten()[numbers == number].unique()) > 1 for number in numbers.unique())


def test_block_masks_of_sets_follow_the_places():
    """Pixels of one square share their fate in any order and any subset."""
    torch.manual_seed(2)
    order = torch.randperm(144)[:70]
    noise = mask_noise(lattice()[:, order], "block", 2)
    assert noise.shape == (4, 70)
    for image in range(4):
        found = []
        for down, right in itertools.product(range(2), repeat=2):
            squares = (lattice()[0, order] + torch.tensor([down, right])) // 2
            whole = (squares[:, 0] * 100 + squares[:, 1]).unique(return_inverse=True)[1]
            found.append(all(len(noise[image][whole == square].floor().unique()) == 1 for square in whole.unique()))
        assert any(found)
