"""``hold_constraint`` keeps the values of f1 and ∇f1; later writes to the same memory do not change them."""

import pytest
import torch
from torch import nn

import unlearn_ext as ux

OPTIMIZERS = [ux.EpsilonSGD, ux.EpsilonAdamW]
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


class Loop:
    """A small model; ``gradients`` returns tensors that share no memory."""

    def __init__(self, cls) -> None:
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self.params = list(self.net.parameters())
        self.optimizer = cls(self.params, lr=0.1, control=ux.EpsilonGap(0.01))

    def f1(self) -> torch.Tensor:
        return self.net(X).square().mean()

    def f2(self) -> torch.Tensor:
        return (self.net(X) - 1).square().mean()

    def gradients(self, loss: torch.Tensor) -> list[torch.Tensor]:
        return [g.clone() for g in torch.autograd.grad(loss, self.params)]

    def put(self, grads) -> None:
        for param, grad in zip(self.params, grads, strict=True):
            param.grad = grad


def clean(loop: Loop) -> None:
    """Take the step that all functions below must equal."""
    f1 = loop.f1()
    f1.backward()
    loop.optimizer.hold_constraint(f1)
    loop.f2().backward()
    loop.optimizer.step()


def in_two(loop: Loop) -> None:
    """Take the same step with f1 in two micro-batches of one half each."""
    for _ in range(2):
        f1 = loop.f1() * 0.5
        f1.backward()
        loop.optimizer.hold_constraint(f1)
    loop.f2().backward()
    loop.optimizer.step()


def a_total_for_the_log(loop: Loop) -> None:
    f1 = loop.f1()
    f1.backward()
    loop.optimizer.hold_constraint(f1)
    f2 = loop.f2()
    f2.backward()
    with torch.no_grad():
        f1 += f2
    loop.optimizer.step()


def a_detached_loss_that_is_scaled_afterwards(loop: Loop) -> None:
    f1 = loop.f1()
    f1.backward()
    value = f1.detach()
    loop.optimizer.hold_constraint(value)
    value.mul_(100)
    loop.f2().backward()
    loop.optimizer.step()


def one_buffer_for_both_losses(loop: Loop) -> None:
    buffer = torch.zeros(())
    for loss, is_f1 in ((loop.f1(), True), (loop.f2(), False)):
        loss.backward()
        buffer.copy_(loss.detach())
        if is_f1:
            loop.optimizer.hold_constraint(buffer)
    loop.optimizer.step()


def one_gradient_buffer_for_both_losses(loop: Loop) -> None:
    buffers = [torch.zeros_like(p) for p in loop.params]
    for loss, is_f1 in ((loop.f1(), True), (loop.f2(), False)):
        for buffer, grad in zip(buffers, loop.gradients(loss), strict=True):
            buffer.copy_(grad)
        loop.put(buffers)
        if is_f1:
            loop.optimizer.hold_constraint(loss)
    loop.optimizer.step()


def views_of_a_flat_buffer(loop: Loop) -> None:
    flat = torch.zeros(sum(p.numel() for p in loop.params))
    f1, f2 = loop.f1(), loop.f2()
    g1, g2 = loop.gradients(f1), loop.gradients(f2)
    flat.copy_(torch.cat([g.flatten() for g in g1]))
    loop.put([v.view_as(p) for v, p in zip(flat.split([p.numel() for p in loop.params]), loop.params, strict=True)])
    loop.optimizer.hold_constraint(f1)
    flat.zero_()
    loop.put(g2)
    loop.optimizer.step()


def detached_parts_of_a_flat_buffer(loop: Loop) -> None:
    """Hold parts of a buffer that torch does not mark as views, and to which Python has no other reference."""
    flat = torch.zeros(sum(p.numel() for p in loop.params) + 1)
    f1, f2 = loop.f1(), loop.f2()
    g1, g2 = loop.gradients(f1), loop.gradients(f2)
    flat[1:].copy_(torch.cat([g.flatten() for g in g1]))
    parts = flat[1:].split([p.numel() for p in loop.params])
    loop.put([v.view_as(p).data for v, p in zip(parts, loop.params, strict=True)])
    del parts
    loop.optimizer.hold_constraint(f1)
    flat.fill_(7)
    loop.put(g2)
    loop.optimizer.step()


def a_view_that_outlives_it(loop: Loop) -> None:
    f1 = loop.f1()
    f1.backward()
    views = [p.grad.view(-1) for p in loop.params]
    loop.optimizer.hold_constraint(f1)
    for view in views:
        view.zero_()
    loop.f2().backward()
    loop.optimizer.step()


@pytest.mark.parametrize("cls", OPTIMIZERS)
@pytest.mark.parametrize(
    "change",
    [
        a_total_for_the_log, a_detached_loss_that_is_scaled_afterwards, one_buffer_for_both_losses,
        one_gradient_buffer_for_both_losses, views_of_a_flat_buffer, detached_parts_of_a_flat_buffer,
        a_view_that_outlives_it,
    ],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_later_writes_change_nothing(change, cls):
    loops = Loop(cls), Loop(cls)
    change(loops[0])
    clean(loops[1])
    assert loops[0].optimizer.stats.constraint.item() == loops[1].optimizer.stats.constraint.item()
    assert loops[0].optimizer.stats.lam.item() == loops[1].optimizer.stats.lam.item() > 0
    for mine, its in zip(loops[0].params, loops[1].params, strict=True):
        assert torch.equal(mine, its)


def micro_batches_through_one_loss_buffer(loop: Loop) -> None:
    buffer = torch.zeros(())
    for _ in range(2):
        f1 = loop.f1() * 0.5
        f1.backward()
        buffer.copy_(f1.detach())
        loop.optimizer.hold_constraint(buffer)
    loop.f2().backward()
    loop.optimizer.step()


def micro_batches_through_one_gradient_buffer(loop: Loop) -> None:
    buffers = [torch.zeros_like(p) for p in loop.params]
    for _ in range(2):
        f1 = loop.f1() * 0.5
        for buffer, grad in zip(buffers, loop.gradients(f1), strict=True):
            buffer.copy_(grad)
        loop.put(buffers)
        loop.optimizer.hold_constraint(f1)
    loop.put(loop.gradients(loop.f2()))
    loop.optimizer.step()


@pytest.mark.parametrize("cls", OPTIMIZERS)
@pytest.mark.parametrize(
    "accumulate",
    [micro_batches_through_one_loss_buffer, micro_batches_through_one_gradient_buffer],
    ids=lambda accumulate: accumulate.__name__,
)
def test_micro_batches_add_up(accumulate, cls):
    loops = Loop(cls), Loop(cls)
    accumulate(loops[0])
    in_two(loops[1])
    assert loops[0].optimizer.stats.constraint.item() == loops[1].optimizer.stats.constraint.item()
    for mine, its in zip(loops[0].params, loops[1].params, strict=True):
        torch.testing.assert_close(mine, its)


def same_object(grad: torch.Tensor) -> list[torch.Tensor]:
    return [grad, grad, grad]


def same_memory(grad: torch.Tensor) -> list[torch.Tensor]:
    return [grad, grad.view_as(grad), grad.detach()]


def expanded(grad: torch.Tensor) -> list[torch.Tensor]:
    return [grad[:1].expand(4) for _ in range(3)]


@pytest.mark.parametrize("cls", OPTIMIZERS)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("share", [same_object, same_memory, expanded], ids=lambda share: share.__name__)
def test_parameters_may_share_a_gradient(cls, scaled, share):
    """Held gradients are summed and unscaled in place; sharing must not change the result."""
    results = []
    for shared in (True, False):
        params = [nn.Parameter(torch.ones(4)) for _ in range(3)]
        options = {"constraint_grad_ema": 0.5}  # also writes to the held gradients
        optimizer = cls(params, lr=0.1, control=ux.EpsilonGap(0.1), **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if scaled else None
        for _ in range(2):
            for _ in range(2):
                grads = share(torch.full((4,), 16.0 if scaled else 2.0))
                for param, grad in zip(params, grads, strict=True):
                    param.grad = grad if shared else grad.clone()
                optimizer.hold_constraint(torch.tensor(1.0), scaler=scaler)
            for param in params:
                param.grad = torch.full((4,), 0.5)
            optimizer.step()
            optimizer.zero_grad()
        assert optimizer.stats.sq_constraint.item() > 0
        results.append((params, optimizer.stats))
    for mine, its in zip(*(params for params, _ in results), strict=True):
        torch.testing.assert_close(mine, its)
    torch.testing.assert_close(results[0][1].sq_constraint, results[1][1].sq_constraint)


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_a_shared_gradient_of_f2_is_unscaled_once(cls):
    params = [nn.Parameter(torch.ones(4)) for _ in range(2)]
    optimizer = cls(params, lr=0.1, control=ux.EpsilonGap(0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.zeros(()))
    for param in params:
        param.grad = torch.full((4,), 16.0)
    optimizer.hold_constraint(torch.tensor(0.05), scaler=scaler)
    grad = torch.full((4,), 4.0)
    for param in params:
        param.grad = grad
    scaler.step(optimizer)
    assert grad.tolist() == [0.5] * 4


def test_a_gradient_of_the_backward_pass_is_taken_without_a_copy():
    loop = Loop(ux.EpsilonSGD)
    f1 = loop.f1()
    f1.backward()
    addresses = [p.grad.data_ptr() for p in loop.params]
    loop.optimizer.hold_constraint(f1)
    assert [grad.data_ptr() for grad in loop.optimizer._constraints.held.by_name[""].grads] == addresses
