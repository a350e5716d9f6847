import pytest
import torch

from unlearn_ext.errors import UserError
from unlearn_ext.tasks import TASKS, CenterCrop, Outpaint, RandomMask, Reconstruct, parse


@pytest.mark.parametrize(("fraction", "side", "hole"), [(0.5, 32, 16), (0.25, 32, 8), (1.0, 7, 7), (0.5, 7, 4)])
def test_the_hole_is_centred_and_has_the_fraction_of_a_side(fraction, side, hole):
    images = torch.ones(2, 3, side, side)
    corrupted = CenterCrop(fraction)(images)
    assert (corrupted == 0).sum() == 2 * 3 * hole**2
    missing = (corrupted[0, 0] == 0).nonzero()
    assert (missing.double().mean(0) - (side - 1) / 2).abs().max() <= 0.5
    assert (images == 1).all(), "the input was written to"


@pytest.mark.parametrize("side", [32, 7])
def test_outpainting_keeps_what_a_crop_of_the_same_fraction_hides(side):
    images = torch.ones(2, 1, side, side)
    assert torch.equal(Outpaint(0.5).mask(images), ~CenterCrop(0.5).mask(images))
    assert torch.equal(Outpaint(0.5)(images) + CenterCrop(0.5)(images), images)


def test_reconstruction_hides_nothing():
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(Reconstruct()(images), images)


@pytest.mark.parametrize(("side", "grid"), [(28, 14), (32, 4), (30, 7)])
def test_a_random_mask_hides_whole_cells_and_their_share(side, grid):
    mask = RandomMask(0.75, grid).mask(torch.randn(5, 3, side, side))
    assert mask.shape == (5, 1, side, side)
    edges = (torch.arange(side) * grid // side).diff().nonzero().flatten() + 1
    cells = torch.stack([
        torch.stack([cell.float().mean((1, 2, 3)) for cell in row.tensor_split(edges, dim=3)])
        for row in mask.tensor_split(edges, dim=2)
    ])  # fmt: skip
    assert ((cells == 0) | (cells == 1)).all()
    assert (cells.sum((0, 1)) == round(0.75 * grid**2)).all()


def test_an_image_has_one_random_mask_in_whatever_batch():
    images, task = torch.randn(6, 3, 28, 28), RandomMask(0.5)
    mask = task.mask(images)
    assert torch.equal(task.mask(images[[4, 1]]), mask[[4, 1]])
    assert len(mask.unique(dim=0)) == 6
    assert not torch.equal(RandomMask(0.5, seed=1).mask(images), mask)


def test_a_grid_finer_than_the_pixels_is_a_user_error():
    with pytest.raises(UserError, match=r"random-mask:0.75:8"):
        RandomMask().mask(torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("center-crop:0.5", CenterCrop(0.5)),
        ("center-crop", CenterCrop(0.5)),
        ("outpaint:0.25", Outpaint(0.25)),
        ("random-mask:0.6", RandomMask(0.6)),
        ("random-mask:0.6:16:3", RandomMask(0.6, 16, 3)),
        ("reconstruct", Reconstruct()),
    ],
)
def test_parse(text, task):
    assert parse(text) == task
    assert parse(str(task)) == task


@pytest.mark.parametrize("name", TASKS)
def test_examples_can_be_parsed(name):
    assert isinstance(parse(TASKS[name].example), TASKS[name])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("center-crop:half", "center-crop:0.5"),
        ("center-crop:0", "center-crop:0.5"),
        ("center-crop:1.5", "center-crop:0.5"),
        ("center-crop:nan", "center-crop:0.5"),
        ("crop", "center-crop:0.5, outpaint:0.5"),
        ("", "center-crop:0.5, outpaint:0.5"),
        ("outpaint:2", "outpaint:0.5"),
        ("random-mask:0.5:x", "random-mask:0.75"),
        ("random-mask:0.5:0", "at least one cell"),
        ("reconstruct:1", "at most 0 numbers"),
    ],
)
def test_an_invalid_task_is_a_user_error(text, said):
    with pytest.raises(UserError, match=said):
        parse(text)
