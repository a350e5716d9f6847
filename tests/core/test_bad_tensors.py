"""Tensors that cannot be stepped: a clear sentence and nothing written, never a silent wrong answer."""

import pytest
import torch
from torch import Tensor, nn

import unlearn_ext as ux

ones = torch.ones
PSI = torch.tensor(5.0)

PROJECTIONS = {
    "no tensors": ([], [], ValueError, "at least one"),
    "lists of unlike length": ([ones(3)], [], ValueError, "as many constraint gradients as directions"),
    "unlike shapes": ([ones(3)], [ones(4)], ValueError, r"shape \(3,\) but a constraint gradient of shape \(4,\)"),
    "integers": ([ones(3, dtype=torch.int32)], [ones(3)], RuntimeError, "only real floating-point"),
    "booleans": ([ones(3) > 0], [ones(3)], RuntimeError, "only real floating-point"),
    "complex": ([ones(3, dtype=torch.cfloat)], [ones(3, dtype=torch.cfloat)], RuntimeError, "only real floating-point"),
    "sparse": ([ones(3).to_sparse()], [ones(3)], RuntimeError, "must be dense"),
    "a sparse constraint": ([ones(3)], [ones(3).to_sparse()], RuntimeError, "must be dense"),
    "another device": ([ones(3)], [ones(3, device="meta")], RuntimeError, "cpu and meta; move them to one device"),
    "shared elements": ([ones(1).expand(3)], [ones(3)], RuntimeError, r"share their memory .* clone\(\) it"),
}


@pytest.mark.parametrize("name", PROJECTIONS)
def test_projection(name):
    directions, constraint_grads, error, sentence = PROJECTIONS[name]
    with pytest.raises(error, match=sentence):
        torch.ops.unlearn_ext.halfspace_project_(directions, constraint_grads, PSI)


def step(param: Tensor, grad: Tensor, **options) -> None:
    parameter = nn.Parameter(param)
    parameter.grad = grad
    ux.EpsilonSGD([nn.Parameter(ones(2)), parameter], lr=0.1, control=ux.GradientNorm(), **options).step()


@pytest.mark.parametrize("fused", [None, False])
def test_a_complex_parameter(fused):
    with pytest.raises(RuntimeError, match=r"complex64; only real floating-point"):
        step(ones(3, dtype=torch.cfloat), ones(3, dtype=torch.cfloat), fused=fused)


def test_an_expanded_parameter_leaves_the_others_alone():
    first, second = nn.Parameter(ones(2)), nn.Parameter(ones(1).expand(3))
    for parameter in (first, second):
        parameter.grad = ones(parameter.shape)
    with pytest.raises(RuntimeError, match="share their memory"):
        ux.EpsilonSGD([first, second], lr=0.1, control=ux.GradientNorm()).step()
    assert torch.equal(first, ones(2))


def test_an_expanded_gradient_is_read_as_it_is():
    direction = ones(3)
    lam, _ = torch.ops.unlearn_ext.halfspace_project_([direction], [ones(1).expand(3)], PSI)
    assert lam.item() == pytest.approx(2 / 3)
    torch.testing.assert_close(direction, torch.full((3,), 5 / 3))
