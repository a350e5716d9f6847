"""Tensors that a step cannot use raise a clear error, and nothing is written; no result is silently wrong."""

import pytest
import torch
from steps import control_of, control_row, needs_kernels, report_of, run_step
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import unlearn_ext as ux
from unlearn_ext.ops import _reference, extension
from unlearn_ext.ops.layout import Operands, Rule

ones = torch.ones
PSI = torch.tensor(5.0)

BUFFER = ones(8)
PROJECTIONS = {
    "no tensors": ([], [], ValueError, "at least one"),
    "lists of unlike length": ([ones(3)], [], ValueError, "for each constraint as many gradients as directions"),
    "unlike shapes": ([ones(3)], [ones(4)], ValueError, r"shape \(3,\) but a .*gradient.* of shape \(4,\)"),
    "integers": ([ones(3, dtype=torch.int32)], [ones(3)], RuntimeError, "only real floating-point"),
    "booleans": ([ones(3) > 0], [ones(3)], RuntimeError, "only real floating-point"),
    "complex": ([ones(3, dtype=torch.cfloat)], [ones(3, dtype=torch.cfloat)], RuntimeError, "only real floating-point"),
    "sparse": ([ones(3).to_sparse()], [ones(3)], RuntimeError, "must be dense"),
    "a sparse constraint": ([ones(3)], [ones(3).to_sparse()], RuntimeError, "must be dense"),
    "another device": ([ones(3)], [ones(3, device="meta")], RuntimeError, "cpu and meta; move them to one device"),
    "shared elements": ([ones(1).expand(3)], [ones(3)], RuntimeError, r"share their memory .* clone\(\) it"),
    "windows": (
        [ones(5).as_strided((3, 3), (1, 1))],
        [ones(3, 3)],
        RuntimeError,
        r"share their memory .* clone\(\) it",
    ),
    "one tensor twice": ([BUFFER, BUFFER], [ones(8)] * 2, RuntimeError, "tensor 1 shares memory with tensor 0"),
    "crosswise": ([BUFFER[:4], BUFFER[4:]], [BUFFER[4:], BUFFER[:4]], RuntimeError, "shares memory"),
    "an overlap": ([BUFFER[:5]], [BUFFER[3:]], RuntimeError, "shares memory"),
    "an overlap from behind": ([BUFFER[3:]], [BUFFER[:5]], RuntimeError, "shares memory"),
    "overlapping columns": (
        [BUFFER.view(4, 2)[:, 0], BUFFER.view(2, 4)[0]],
        [ones(4), ones(4)],
        RuntimeError,
        "shares memory",
    ),
    "misaligned": (
        [torch.frombuffer(bytearray(13), dtype=torch.float32, offset=1)],
        [ones(3)],
        RuntimeError,
        "middle of a float32",
    ),
}


@pytest.mark.parametrize("name", PROJECTIONS)
def test_projection(name):
    if name == "misaligned" and extension.kernels is None:
        pytest.skip("the reference reads it")
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


def test_a_frozen_parameter_is_refused_by_the_reference_before_anything_is_written():
    with torch.inference_mode():
        frozen = ones(3)
    params, none = [ones(3), frozen], [None] * 2
    operands = Operands(params, [ones(3)] * 2, none, none, none, [0, 0])
    with pytest.raises(RuntimeError, match=r"tensor 1 was made in inference mode .* clone\(\) it"):
        run_step(Rule.SGD, operands, psi=0.0, fused=False)
    assert torch.equal(params[0], ones(3))


def test_an_expanded_gradient_is_read_as_it_is():
    direction = ones(3)
    lam, _ = torch.ops.unlearn_ext.halfspace_project_([direction], [ones(1).expand(3)], PSI)
    assert lam.item() == pytest.approx(2 / 3)
    torch.testing.assert_close(direction, torch.full((3,), 5 / 3))


def test_interleaved_tensors_are_no_overlap():
    both = ones(8)
    torch.ops.unlearn_ext.halfspace_project_([both[::2], both[1::2]], [ones(4), ones(4)], PSI * 2)
    torch.testing.assert_close(both, torch.full((8,), 1.25))


@pytest.mark.parametrize("fused", [None, False])
def test_a_gradient_may_be_its_parameter(fused):
    param = nn.Parameter(ones(3))
    param.grad = param.data
    ux.EpsilonSGD([param], lr=0.1, control=ux.GradientNorm(), fused=fused).step()
    torch.testing.assert_close(param.data, torch.full((3,), 0.9))


@pytest.mark.parametrize("fused", [None, False])
def test_a_gradient_may_be_its_momentum_buffer(fused):
    param = nn.Parameter(ones(3))
    optimizer = ux.EpsilonSGD([param], lr=0.1, momentum=0.5, control=ux.GradientNorm(), fused=fused)
    param.grad = ones(3)
    optimizer.step()
    param.grad = optimizer.state[param]["momentum_buffer"]
    optimizer.step()
    torch.testing.assert_close(param.data, torch.full((3,), 1 - 0.1 - 0.1 * 1.5))
    torch.testing.assert_close(param.grad, torch.full((3,), 1.5))


@pytest.mark.parametrize("fused", [None, False])
def test_a_parameter_given_twice(fused):
    param = nn.Parameter(ones(3))
    param.grad = ones(3)
    with pytest.warns(UserWarning, match="duplicate"):
        optimizer = ux.EpsilonSGD([param, param], lr=0.1, control=ux.GradientNorm(), fused=fused)
    for _ in range(2):  # the second call is refused too
        with pytest.raises(RuntimeError, match="shares memory"):
            optimizer.step()
    assert torch.equal(param, ones(3))


@needs_kernels
@pytest.mark.parametrize("place", ["param", "grad"])
def test_a_negated_view(place):
    tensors = {"param": ones(3), "grad": ones(3)}
    tensors[place] = torch._neg_view(tensors[place])
    with pytest.raises(RuntimeError, match=r"negates its memory: resolve_neg\(\) it"):
        step(**tensors)


def test_a_negated_f1_is_read_with_its_sign():
    param = nn.Parameter(ones(3))
    param.grad = ones(3)
    optimizer = ux.EpsilonSGD([param], lr=0.1, control=ux.EpsilonGap(0.3))
    optimizer.hold_constraint(torch._neg_view(torch.tensor(-2.0)))
    optimizer.step()
    assert optimizer.stats.constraint == 2


def test_an_f1_that_is_a_whole_number():
    param = nn.Parameter(ones(3))
    param.grad = ones(3)
    optimizer = ux.EpsilonSGD([param], lr=0.1, control=ux.EpsilonGap(0.3))
    optimizer.hold_constraint(torch.tensor(2))
    optimizer.step()
    assert optimizer.stats.constraint == 2


def test_a_complex_f1():
    param = nn.Parameter(ones(3))
    param.grad = ones(3)
    with pytest.raises(ValueError, match="the value must be a real tensor"):
        ux.EpsilonSGD([param], lr=0.1, control=ux.EpsilonGap(0.3)).hold_constraint(torch.tensor(1 + 2j))


@needs_kernels
def test_an_f1_without_memory():
    with FakeTensorMode():
        f1 = torch.tensor(1.0)
    param = nn.Parameter(ones(3))
    param.grad = ones(3)
    optimizer = ux.EpsilonSGD([param], lr=0.1, control=ux.EpsilonGap(0.3), fused=True)
    optimizer.hold_constraint(f1)
    param.grad = ones(3)
    with pytest.raises(RuntimeError, match="the constraint's value has no memory"):
        optimizer.step()


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("name", ["EpsilonSGD", "EpsilonAdamW"])
def test_an_infinite_parameter_stays_as_torch_leaves_it(name, fused):
    start = torch.tensor([1.0, -torch.inf])
    params = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    options = {"lr": 0.1, "weight_decay": 0.0} | ({"momentum": 0.9} if name == "EpsilonSGD" else {})
    mine = getattr(ux, name)([params[0]], control=ux.GradientNorm(), fused=fused, **options)
    theirs = getattr(torch.optim, name.removeprefix("Epsilon"))([params[1]], **options)
    for optimizer, param in zip((mine, theirs), params, strict=True):
        for _ in range(2):
            param.grad = ones(2)
            optimizer.step()
    torch.testing.assert_close(*params)


@pytest.mark.parametrize("control", [3, "gap"])
def test_no_control_function(control):
    param = nn.Parameter(ones(3))
    param.grad = ones(3)
    optimizer = ux.EpsilonSGD([param], lr=0.1, control=control)
    optimizer.hold_constraint(torch.tensor(1.0))
    with pytest.raises(TypeError, match="must be EpsilonGap, GradientNorm or a callable"):
        optimizer.step()


def test_one_beta():
    with pytest.raises(ValueError, match="must be two numbers"):
        ux.EpsilonAdamW([ones(1)], betas=(0.9,), control=ux.GradientNorm())


STEP = {
    "params": [ones(3)],
    "grads": [ones(3)],
    "constraint_grads": [ones(3)],
    "momentum_buffers": [ones(3)],
    "steps": [torch.tensor(1.0)],
    "averages": [],
    "groups": [0],
    "hyper": torch.zeros(1, 8, dtype=torch.float64),
    "control": control_of(control_row()),
    "report": report_of(1),
}
BLOCKS = {
    "a group beyond hyper": ({"groups": [1_000_000]}, ValueError, "stay below the 1 rows of hyper"),
    "a group just beyond hyper": ({"groups": [1]}, ValueError, "stay below the 1 rows of hyper"),
    "groups out of order": (
        {"params": [ones(3)] * 2, "groups": [1, 0], "hyper": torch.zeros(2, 8, dtype=torch.float64)},
        ValueError,
        "groups must ascend",
    ),
    "a negative group": ({"groups": [-1]}, ValueError, "groups must ascend"),
    "hyper in float32": ({"hyper": torch.zeros(1, 8)}, ValueError, "hyper must be a contiguous torch.float64 tensor"),
    "a short report": (
        {"report": torch.zeros(2, 3, dtype=torch.float64)},
        ValueError,
        r"report must be .* shape \(2, 27\)",
    ),
    "a report without a row": ({"report": report_of(0)}, ValueError, r"have 2 and 1 rows; 1 constraints need 2"),
    "more constraints than rows": ({"constraint_grads": [ones(3)] * 2}, ValueError, r"2 constraints need 3"),
    "gradients that are no lists of one length": (
        {"params": [ones(3), ones(3)], "grads": [None] * 2, "constraint_grads": [ones(3)] * 3},
        ValueError,
        "3 constraint gradients cannot be divided into lists of 2",
    ),
    "averages of another number": (
        {
            "constraint_grads": [ones(3)] * 2,
            "averages": [ones(3)],
            "control": control_of(*[control_row()] * 2),
            "report": report_of(2),
        },
        ValueError,
        "2 constraints need as many lists of averages, not 1",
    ),
    "no control": ({"control": None}, TypeError, "must be tensors"),
    "momentum without steps": ({"steps": []}, ValueError, "1 momentum buffers need as many steps, not 0"),
    "a meta gradient": ({"grads": [ones(3, device="meta")]}, RuntimeError, "cpu and meta; move them to one device"),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_functional_step(name):
    spoilt, error, sentence = BLOCKS[name]
    with pytest.raises(error, match=sentence):
        torch.ops.unlearn_ext.sgd_step_(**{**STEP, **spoilt})


def test_the_reference_refuses_several_devices():
    none = [None]
    operands = Operands(none, [ones(3)], none, none, none, [0], [[ones(3, device="meta")]])
    with pytest.raises(RuntimeError, match="cpu and meta; move them to one device"):
        _reference.check(Rule.PROJECT, operands)


@pytest.mark.parametrize("psi", [torch.tensor(1j), ones(4), ones((), device="meta"), None])
def test_psi_that_is_no_real_number(psi):
    with pytest.raises((ValueError, RuntimeError), match=r"must be a real tensor of shape|move them to one device"):
        torch.ops.unlearn_ext.halfspace_project_([ones(3)], [ones(3)], psi)


@pytest.mark.parametrize("name", ["params", "steps", "groups"])
def test_operands_must_be_lists(name):
    columns = {key: [None] for key in ("params", "grads", "firsts", "seconds", "steps")}
    with pytest.raises(TypeError, match=f"{name} must be a list, not a tuple"):
        Operands(**{**columns, "groups": [0], name: (None,)})


@pytest.mark.parametrize("name", ["constraint_grads", "averages"])
def test_operands_of_every_constraint_must_be_lists(name):
    columns = {key: [None] for key in ("params", "grads", "firsts", "seconds", "steps")}
    lists = {"constraint_grads": [[None]], "averages": [[None]], name: [(None,)]}
    with pytest.raises(TypeError, match="a constraint's tensors must be a list, not a tuple"):
        Operands(**columns, groups=[0], **lists)
