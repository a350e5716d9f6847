"""What a checkpoint keeps besides torch's state: held gradients, c, the integral, the skipped-step count, dtypes."""

import torch
from torch import nn

import unlearn_ext as ux


def held(optimizer: torch.optim.Optimizer, p: nn.Parameter, scale: float) -> None:
    f1 = (p * p).sum() * scale
    f1.backward()
    optimizer.hold_constraint(f1)


def optimizer_over(p: nn.Parameter) -> ux.EpsilonAdamW:
    return ux.EpsilonAdamW([p], lr=0.1, control=ux.EpsilonGap(1.0))


def test_what_is_held_between_the_two_backward_passes_survives():
    p, q = (nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2))
    first, second = optimizer_over(p), optimizer_over(q)
    held(first, p, 0.2)
    second.load_state_dict(first.state_dict())
    for parameter, optimizer in ((p, first), (q, second)):
        held(optimizer, parameter, 0.1)  # a second micro-batch adds to it
        parameter.sum().backward()
        optimizer.step()
    assert torch.equal(p, q)
    assert second.stats.constraint.item() == first.stats.constraint.item() != 0


def test_parameters_without_a_held_gradient_are_not_saved():
    params = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = ux.EpsilonSGD(params, lr=0.1, control=ux.GradientNorm())
    held(optimizer, params[1], 1.0)
    assert {number: list(state) for number, state in optimizer.state_dict()["state"].items()} == {
        1: ["constraint_grad"]
    }


def test_a_fresh_optimizer_survives_its_own_checkpoint():
    """Frameworks save and load the state when they wrap an optimizer, before any step."""
    p, q = (nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2))
    first, second = optimizer_over(p), optimizer_over(q)
    first.load_state_dict(first.state_dict())
    for parameter, optimizer in ((p, first), (q, second)):
        held(optimizer, parameter, 0.1)
        parameter.sum().backward()
        optimizer.step()
    assert torch.equal(p, q)


def test_the_count_and_the_integral_survive():
    p, q = (nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2))
    first = optimizer_over(p)
    for gradient in (1.0, float("nan"), 1.0, 1.0):
        held(first, p, 0.25)
        p.grad = torch.full_like(p, gradient)
        first.step()
        first.zero_grad()
    second = optimizer_over(q)
    second.load_state_dict(first.state_dict())
    assert second.skipped_steps.item() == 1
    integral = first.state_dict()["param_groups"][0]["constraint"]["state"][0]
    assert integral.item() != 0
    q.data.copy_(p.data)
    for parameter, optimizer in ((p, first), (q, second)):
        held(optimizer, parameter, 0.25)
        parameter.sum().backward()
        optimizer.step()
    assert torch.equal(p, q)


def test_a_state_keeps_its_dtype():
    p = nn.Parameter(torch.ones(3))
    first = optimizer_over(p)
    p.sum().backward()
    first.step()
    low = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    second = optimizer_over(low)
    second.load_state_dict(first.state_dict())
    state = second.state[low]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == state["step"].dtype == torch.float32
    low.sum().backward()
    second.step()
    assert state["exp_avg"].dtype == torch.float32


def test_the_averages_survive():
    p, q = (nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2))

    def make(parameter: nn.Parameter) -> ux.EpsilonSGD:
        control = ux.EpsilonGap(1.0)
        return ux.EpsilonSGD([parameter], lr=0.1, control=control, constraint_grad_ema=0.5)

    def steps(parameter: nn.Parameter, optimizer: ux.EpsilonSGD, count: int) -> None:
        for _ in range(count):
            held(optimizer, parameter, 0.3)
            (parameter - 3).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    first, second = make(p), make(q)
    steps(p, first, 4)
    second.load_state_dict(first.state_dict())
    q.data.copy_(p.data)
    steps(p, first, 3)
    steps(q, second, 3)
    assert torch.equal(p, q)
