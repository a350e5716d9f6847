"""Misuse that would silently give a wrong result raises an error of one line and changes nothing."""

import pytest
import torch
from torch import nn

import unlearn_ext as ux

OPTIMIZERS = [ux.EpsilonSGD, ux.EpsilonAdamW]
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
STILL_THERE = r"p\.grad still has what the last step used"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))


def f1_of(net: nn.Module) -> torch.Tensor:
    return net(X).square().mean()


def f2_of(net: nn.Module) -> torch.Tensor:
    return (net(X) - 1).square().mean()


class TestGradientsThatWereUsed:
    """Without this check, ∇f2 of the last step would be held as a part of ∇f1, and λ would be 0."""

    @staticmethod
    def step(net, optimizer, hold=True):
        if hold:
            f1 = f1_of(net)
            f1.backward()
            optimizer.hold_constraint(f1)
        f2_of(net).backward()
        optimizer.step()

    @pytest.mark.parametrize("cls", OPTIMIZERS)
    @pytest.mark.parametrize("held_before", [True, False])
    def test_without_zero_grad(self, cls, held_before):
        net = network()
        optimizer = cls(net.parameters(), lr=0.1, control=ux.EpsilonGap(0.01))
        self.step(net, optimizer, held_before)
        with pytest.raises(RuntimeError, match=STILL_THERE):
            self.step(net, optimizer)

    @pytest.mark.parametrize("cls", OPTIMIZERS)
    def test_zero_grad_between_the_two_backward_passes(self, cls):
        net = network()
        optimizer = cls(net.parameters(), lr=0.1, control=ux.EpsilonGap(0.01))
        for index in range(2):
            f1_of(net).backward()
            if index:
                with pytest.raises(RuntimeError, match=STILL_THERE):
                    optimizer.hold_constraint(f1_of(net))
                return
            optimizer.hold_constraint(f1_of(net))
            optimizer.zero_grad()
            f2_of(net).backward()
            optimizer.step()

    def test_a_parameter_that_f1_does_not_reach(self):
        net = network()
        optimizer = ux.EpsilonSGD(net.parameters(), lr=0.1, control=ux.EpsilonGap(0.01))
        f2_of(net).backward()
        optimizer.step()
        net[2].zero_grad()  # net[0] keeps its gradient
        f1_of(net[2]).backward()
        with pytest.raises(RuntimeError, match=STILL_THERE):
            optimizer.hold_constraint(torch.tensor(1.0))

    def test_after_a_skipped_step(self):
        net = network()
        optimizer = ux.EpsilonSGD(net.parameters(), lr=0.1, control=ux.EpsilonGap(0.01))
        f2_of(net).backward()
        net[0].weight.grad[0, 0] = torch.nan
        optimizer.step()
        with pytest.raises(RuntimeError, match=STILL_THERE):
            self.step(net, optimizer)

    def test_after_a_compiled_step(self):
        torch._dynamo.reset()
        net = network()
        optimizer = ux.EpsilonSGD(net.parameters(), lr=0.1, control=ux.EpsilonGap(0.01))
        compiled = torch.compile(optimizer.step, backend="eager")
        for _ in range(3):
            f2_of(net).backward()
            compiled()
        with pytest.raises(RuntimeError, match=STILL_THERE):
            self.step(net, optimizer)

    @pytest.mark.parametrize("cls", OPTIMIZERS)
    @pytest.mark.parametrize("clear", ["optimizer", "optimizer in place", "module in place", "foreach", "none", "new"])
    def test_gradients_may_be_cleared_by_any_method(self, cls, clear):
        """When torch clears in place, the gradient tensors stay the same."""
        nets, lams = (network(), network()), []
        for net in nets:
            optimizer, mine = cls(net.parameters(), lr=0.1, control=ux.EpsilonGap(0.01)), []
            for _ in range(4):
                self.step(net, optimizer)
                mine.append(optimizer.stats.lam.item())
                if net is nets[0] or clear == "optimizer":
                    optimizer.zero_grad()
                elif clear == "optimizer in place":
                    optimizer.zero_grad(set_to_none=False)
                elif clear == "module in place":
                    net.zero_grad(set_to_none=False)
                elif clear == "foreach":
                    torch._foreach_zero_([p.grad for p in net.parameters()])
                else:
                    for p in net.parameters():
                        p.grad = None if clear == "none" else torch.zeros_like(p)
            lams.append(mine)
        assert lams[0] == lams[1]
        assert max(lams[0]) > 0

    def test_zeroed_gradients_that_f1_does_not_reach_are_accepted(self):
        net = network()
        optimizer = ux.EpsilonSGD(net.parameters(), lr=0.1, control=ux.EpsilonGap(0.01))
        f2_of(net).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        f1 = f1_of(net[2])
        f1.backward()
        optimizer.hold_constraint(f1)
        f2_of(net).backward()
        optimizer.step()
        assert optimizer.stats.lam.item() > 0

    @pytest.mark.parametrize("cls", OPTIMIZERS)
    @pytest.mark.parametrize("parts", [False, True])
    def test_gradient_buffers_may_be_refilled(self, cls, parts):
        """A refilled buffer looks like a gradient that was not zeroed: one write since the step. It was a copy."""
        nets, lams = (network(), network()), []
        for net in nets:
            params = list(net.parameters())
            flat = torch.zeros(sum(p.numel() for p in params))
            buffers = [torch.zeros_like(p) for p in params]
            if parts:
                views = flat.split([p.numel() for p in params])
                buffers = [view.view_as(p) for view, p in zip(views, params, strict=True)]
            optimizer, mine = cls(params, lr=0.01, control=ux.EpsilonGap(0.01)), []
            for _ in range(3):
                for loss in (f1_of, f2_of):
                    value = loss(net)
                    for param, buffer, grad in zip(params, buffers, torch.autograd.grad(value, params), strict=True):
                        param.grad = buffer.copy_(grad) if net is nets[0] else grad.clone()
                    if loss is f1_of:
                        optimizer.hold_constraint(value)
                optimizer.step()
                mine.append(optimizer.stats.lam.item())
            lams.append(mine)
        assert lams[0] == lams[1]
        assert max(lams[0]) > 0

    @pytest.mark.parametrize("cls", OPTIMIZERS)
    def test_a_refused_loop_continues_after_zero_grad(self, cls):
        net = network()
        optimizer = cls(net.parameters(), lr=0.1, control=ux.EpsilonGap(0.01))
        self.step(net, optimizer)
        for _ in range(2):  # the second call is refused too
            with pytest.raises(RuntimeError, match=STILL_THERE):
                optimizer.hold_constraint(f1_of(net))
        optimizer.zero_grad()
        self.step(net, optimizer)
        assert optimizer.stats.lam.item() > 0


@pytest.mark.parametrize("cls", OPTIMIZERS)
class TestUnscaledTwice:
    @staticmethod
    def scaled(net, scaler, loss):
        scaler.scale(loss).backward()
        return loss

    def test_before_the_constraint_is_held(self, cls):
        net, scaler = network(), torch.amp.GradScaler("cpu")
        optimizer = cls(net.parameters(), lr=0.1, control=ux.EpsilonGap(0.01))
        f1 = self.scaled(net, scaler, f1_of(net))
        scaler.unscale_(optimizer)
        with pytest.raises(RuntimeError, match="unscale_") as refused:
            optimizer.hold_constraint(f1, scaler=scaler)
        assert len(str(refused.value).splitlines()) == 1
        assert all(p.grad is not None for p in net.parameters())  # the gradients are still there

    def test_before_a_second_micro_batch_is_held(self, cls):
        net, scaler = network(), torch.amp.GradScaler("cpu")
        optimizer = cls(net.parameters(), lr=0.1, control=ux.EpsilonGap(0.01))
        optimizer.hold_constraint(self.scaled(net, scaler, f1_of(net)), scaler=scaler)
        f1 = self.scaled(net, scaler, f1_of(net))
        scaler.unscale_(optimizer)
        with pytest.raises(RuntimeError, match="unscale_"):
            optimizer.hold_constraint(f1, scaler=scaler)

    def test_a_disabled_scaler_is_ignored(self, cls):
        net, scaler = network(), torch.amp.GradScaler("cpu", enabled=False)
        optimizer = cls(net.parameters(), lr=0.1, control=ux.EpsilonGap(0.01))
        optimizer.hold_constraint(self.scaled(net, scaler, f1_of(net)), scaler=scaler)
        self.scaled(net, scaler, f2_of(net))
        scaler.step(optimizer)
        assert optimizer.stats.sq_constraint.item() > 0

    def test_unscaling_another_optimizer_is_allowed(self, cls):
        net, other, scaler = network(), network(), torch.amp.GradScaler("cpu")
        optimizer, others = (cls(n.parameters(), lr=0.1, control=ux.EpsilonGap(0.01)) for n in (net, other))
        self.scaled(other, scaler, f2_of(other))
        scaler.unscale_(others)
        optimizer.hold_constraint(self.scaled(net, scaler, f1_of(net)), scaler=scaler)
        assert optimizer._constraints.held.names == [""]

    def test_the_next_step_may_be_unscaled_again(self, cls):
        net, scaler = network(), torch.amp.GradScaler("cpu")
        optimizer = cls(net.parameters(), lr=0.1, control=ux.EpsilonGap(0.01))
        for _ in range(3):
            optimizer.hold_constraint(self.scaled(net, scaler, f1_of(net)), scaler=scaler)
            self.scaled(net, scaler, f2_of(net))
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        assert optimizer.skipped_steps.item() == 0
        assert optimizer.stats.lam.item() > 0


@pytest.mark.parametrize("cls", OPTIMIZERS)
class TestWithoutControl:
    def test_it_equals_torchs_optimizer(self, cls):
        ours, theirs = network(), network()
        namesake = getattr(torch.optim, cls.__name__.removeprefix("Epsilon"))
        for net, optimizer in ((ours, cls(ours.parameters(), lr=0.1)), (theirs, namesake(theirs.parameters(), lr=0.1))):
            for _ in range(5):
                f2_of(net).backward()
                optimizer.step()
                optimizer.zero_grad()
        for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)

    def test_nothing_can_be_held(self, cls):
        net = network()
        optimizer = cls(net.parameters(), lr=0.1)
        f1 = f1_of(net)
        f1.backward()
        with pytest.raises(RuntimeError, match="has no control"):
            optimizer.hold_constraint(f1)
        assert all(p.grad is not None for p in net.parameters())
        optimizer.control = ux.EpsilonGap(0.01)
        optimizer.hold_constraint(f1)
        optimizer.step()
        assert optimizer.stats.lam.item() > 0

    def test_the_control_may_be_removed_again(self, cls):
        net = network()
        optimizer = cls(net.parameters(), lr=0.1, control=ux.EpsilonGap(0.01))
        optimizer.control = None
        f1 = f1_of(net)
        f1.backward()
        with pytest.raises(RuntimeError, match="has no control"):
            optimizer.hold_constraint(f1)

    def test_its_state_loads_into_an_optimizer_with_control(self, cls):
        net = network()
        plain = cls(net.parameters(), lr=0.1)
        f2_of(net).backward()
        plain.step()
        plain.zero_grad()
        constrained = cls(net.parameters(), lr=0.1, control=ux.EpsilonGap(0.01))
        constrained.load_state_dict(plain.state_dict())
        f1 = f1_of(net)
        f1.backward()
        constrained.hold_constraint(f1)
        f2_of(net).backward()
        constrained.step()
        assert constrained.stats.lam.item() > 0


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("cls", OPTIMIZERS)
@pytest.mark.parametrize("sparse", ["f1", "f2", "both", "f2 alone"])
def test_a_sparse_gradient_is_one_sentence(fused, cls, sparse):
    table = nn.Embedding(4, 3, sparse=True)
    before = table.weight.detach().clone()
    optimizer = cls(table.parameters(), lr=0.1, control=ux.EpsilonGap(0.1), fused=fused)
    for loss in ("f1", "f2"):
        if sparse == "f2 alone" and loss == "f1":
            continue
        table.sparse = sparse in (loss, "both", "f2 alone")
        table(torch.tensor([1, 2])).sum().backward()
        if loss == "f1":
            optimizer.hold_constraint(torch.tensor(1.0))
    with pytest.raises(RuntimeError, match=r"is torch\.sparse_coo; it must be dense") as refused:
        optimizer.step()
    assert len(str(refused.value).splitlines()) == 1
    assert torch.equal(table.weight, before)


def test_a_gradient_without_memory_is_one_sentence():
    from torch._subclasses import FakeTensorMode

    param = nn.Parameter(torch.ones(3))
    optimizer = ux.EpsilonSGD([param], lr=0.1, fused=True)
    with FakeTensorMode():
        param.grad = torch.ones(3)
    with pytest.raises(RuntimeError) as refused:
        optimizer.step()
    assert len(str(refused.value).splitlines()) == 1
