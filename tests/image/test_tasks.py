import pytest
import torch

from unlearn_ext.errors import UserError
from unlearn_ext.tasks import CenterCrop, parse


@pytest.mark.parametrize(("fraction", "side", "hole"), [(0.5, 32, 16), (0.25, 32, 8), (1.0, 7, 7), (0.5, 7, 4)])
def test_the_hole_is_centred_and_has_the_fraction_of_a_side(fraction, side, hole):
    images = torch.ones(2, 3, side, side)
    corrupted = CenterCrop(fraction)(images)
    assert (corrupted == 0).sum() == 2 * 3 * hole**2
    missing = (corrupted[0, 0] == 0).nonzero()
    assert (missing.double().mean(0) - (side - 1) / 2).abs().max() <= 0.5
    assert (images == 1).all(), "the input was written to"


@pytest.mark.parametrize("text", ["center-crop:0.5", "center-crop"])
def test_parse(text):
    assert parse(text) == CenterCrop(0.5)
    assert parse(str(parse(text))) == CenterCrop(0.5)


@pytest.mark.parametrize(
    "text", ["center-crop:half", "center-crop:0", "center-crop:1.5", "center-crop:nan", "crop", ""]
)
def test_a_task_that_is_none_is_a_user_error(text):
    with pytest.raises(UserError, match="center-crop"):
        parse(text)
