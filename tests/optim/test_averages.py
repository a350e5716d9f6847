"""Moving averages of ∇c: fixed or adaptive, computed within the passes, and unchanged by skipped steps."""

import copy
import math

import numpy as np
import pytest
import torch
from steps import PATHS, needs_kernels
from torch import nn

import unlearn_ext as ux

NAN, INF = float("nan"), float("inf")
DECAY = 0.8
OPTIMIZERS = {
    "sgd": lambda p, **o: ux.EpsilonSGD(p, lr=0.05, **o),
    "adamw": lambda p, **o: ux.EpsilonAdamW(p, lr=0.01, **o),
}
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
each_path = pytest.mark.parametrize("fused", PATHS)


class Loop:
    """Two parameters with given gradients in every step; ``names``: of the constraints, or ``None`` for one."""

    def __init__(self, name="sgd", fused=None, decay=DECAY, names=None, dtype=torch.float32, control=None) -> None:
        generator = torch.Generator().manual_seed(4)
        self.params = [nn.Parameter(torch.randn(n, generator=generator).to(dtype)) for n in (7, 40)]
        gap = control or ux.EpsilonGap(0.2, rate=0.3)
        self.names = [None] if names is None else names
        control = gap if names is None else {n: copy.deepcopy(gap) for n in names}
        self.optimizer = OPTIMIZERS[name](self.params, control=control, fused=fused, constraint_grad_ema=decay)

    def gradients(self, index, salt=0):
        generator = torch.Generator().manual_seed(1000 * index + salt)
        return [torch.randn(p.shape, generator=generator).to(p.dtype) for p in self.params]

    def put(self, grads):
        for p, grad in zip(self.params, grads, strict=True):
            p.grad = grad.clone()

    def held(self, index, names=None):
        for salt, name in enumerate(self.names, 1):
            if names is None or name in names:
                self.put(self.gradients(index, salt))
                self.optimizer.hold_constraint(torch.tensor(1.0 + 0.1 * salt), name)

    def step(self, index, names=None, spoil=None):
        self.held(index, names)
        self.put(self.gradients(index))
        if spoil is not None:
            self.params[1].grad[3] = spoil
        self.optimizer.step()
        self.optimizer.zero_grad()

    def flat(self):
        return torch.cat([p.detach().flatten() for p in self.params])

    def state(self, key="constraint_ema"):
        return torch.cat([self.optimizer.state[p][key].flatten() for p in self.params])


def textbook(gradients, decay):
    """Return the average of a list of vectors with bias correction, in float64."""
    average = np.zeros_like(gradients[0], dtype=np.float64)
    for grad in gradients:
        average = decay * average + (1 - decay) * np.asarray(grad, dtype=np.float64)
    return average / (1 - decay ** len(gradients))


def flat_numpy(tensors):
    return np.concatenate([t.double().numpy().ravel() for t in tensors])


@each_path
@each_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_average_is_the_textbooks(name, fused, dtype):
    loop, seen = Loop(name, fused, dtype=dtype), []
    for index in range(6):
        loop.step(index)
        seen.append(flat_numpy(loop.gradients(index, 1)))
        average = textbook(seen, DECAY)
        tolerance = 1e-6 if dtype is torch.float32 else (index + 1) * 2**-8  # every step rounds to the state's dtype
        np.testing.assert_allclose(loop.state().double().numpy(), average, rtol=tolerance, atol=tolerance)
        if name == "sgd":  # ‖a‖² in the metric I
            sq = loop.optimizer.stats.sq_constraint.item()
            assert sq == pytest.approx(average @ average, rel=2e-6 if dtype is torch.float32 else 2e-2)
    assert loop.optimizer.stats.constraint.item() == pytest.approx(1.1)  # c itself is not averaged


@each_path
def test_the_step_uses_the_average(fused):
    """The step is θ − μ(g2 + λa), with λ = (ψ − ⟨a, g2⟩)/‖a‖² of the average a."""
    control = ux.EpsilonGap(0.2, rate=0.3, delta=2.0, cap=INF)  # ψ depends on the step alone
    loop, seen, lr = Loop("sgd", fused, control=control), [], 0.05
    for index in range(5):
        before = flat_numpy([p.detach() for p in loop.params])
        loop.step(index)
        seen.append(flat_numpy(loop.gradients(index, 1)))
        a, g2 = textbook(seen, DECAY), flat_numpy(loop.gradients(index))
        psi = 0.3 / lr * (1.1 - 0.2) ** 2
        lam = max(0.0, (psi - a @ g2) / (a @ a))
        np.testing.assert_allclose(loop.flat().numpy(), before - lr * (g2 + lam * a), rtol=2e-5, atol=2e-6)
        assert loop.optimizer.stats.lam.item() == pytest.approx(lam, rel=1e-5)


@needs_kernels
@each_optimizer
@pytest.mark.parametrize("decay", [DECAY, None])
@pytest.mark.parametrize("names", [None, ["a", "b"], ["a", "b", "c"], [*"abcdefgh"]])
def test_kernels_and_reference_are_equal(name, names, decay):
    kernels, reference = (Loop(name, fused, decay, names) for fused in (True, False))
    for index in range(8):
        for loop in (kernels, reference):
            loop.step(index, spoil=NAN if index == 3 else None)
    torch.testing.assert_close(kernels.flat(), reference.flat(), rtol=1e-4, atol=1e-5)
    for n in kernels.names:
        key = "constraint_ema" if n is None else f"constraint_ema.{n}"
        torch.testing.assert_close(kernels.state(key), reference.state(key), rtol=1e-5, atol=1e-6)


def adaptive(name, fused, gradient_of, steps):
    """Take steps with given ∇c and without an objective; return the averages after each, and the loop."""
    loop, averages = Loop(name, fused, decay=None), []
    for index in range(steps):
        loop.put(gradient_of(loop, index))
        loop.optimizer.hold_constraint(torch.tensor(1.0))
        loop.optimizer.step()
        averages.append(flat_numpy([loop.optimizer.state[p]["constraint_ema"] for p in loop.params]))
    return np.array(averages), loop


@each_path
@each_optimizer
def test_the_adaptive_average_of_a_constant_gradient_is_the_gradient(name, fused):
    averages, loop = adaptive(name, fused, lambda loop, index: loop.gradients(0, 1), 20)
    np.testing.assert_allclose(averages, np.tile(flat_numpy(loop.gradients(0, 1)), (20, 1)), rtol=1e-6, atol=1e-7)


@each_path
@each_optimizer
def test_the_adaptive_average_follows_a_gradient_that_turns_slowly(name, fused):
    """It is at most two steps late, so that a run without noise is that without an average."""

    def turning(loop, index):
        first, second = loop.gradients(0, 1), loop.gradients(1, 1)
        return [x * math.cos(index / 50) + y * math.sin(index / 50) for x, y in zip(first, second, strict=True)]

    averages, loop = adaptive(name, fused, turning, 100)
    now = np.array([flat_numpy(turning(loop, index)) for index in range(100)])
    late = np.linalg.norm(averages - now, axis=1) / np.linalg.norm(now, axis=1)
    assert late.max() < 2 / 50


@each_path
@each_optimizer
@pytest.mark.parametrize("signal", [0.0, 0.3])
def test_the_adaptive_average_removes_noise(name, fused, signal):
    """Of independent gradients it is over many steps: what is left of the noise's square is less than a fifth."""

    def noisy(loop, index):
        pairs = zip(loop.gradients(0, 1), loop.gradients(1 + index, 1), strict=True)
        return [x * signal + noise for x, noise in pairs]

    averages, loop = adaptive(name, fused, noisy, 200)
    mean = signal * flat_numpy(loop.gradients(0, 1))
    left = ((averages[100:] - mean) ** 2).sum(1).mean() / averages.shape[1]
    assert left < 0.2
    assert np.linalg.norm(averages[100:].mean(0) - mean) < 0.3 * np.sqrt(averages.shape[1])


@each_path
@each_optimizer
@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("where", ["c", "∇c", "∇f2"])
@pytest.mark.parametrize("decay", [DECAY, None])
def test_a_skipped_step_leaves_no_trace(name, fused, bad, where, decay):
    disturbed, undisturbed = Loop(name, fused, decay), Loop(name, fused, decay)
    for index in range(4):
        for loop in (disturbed, undisturbed):
            loop.step(index)
        disturbed.put(disturbed.gradients(99, 1))
        if where == "∇c":
            disturbed.params[0].grad[2] = bad
        disturbed.optimizer.hold_constraint(torch.tensor(bad if where == "c" else 1.0))
        disturbed.put(disturbed.gradients(99))
        if where == "∇f2":
            disturbed.params[0].grad[2] = bad
        disturbed.optimizer.step()
        disturbed.optimizer.zero_grad()
    assert disturbed.optimizer.skipped_steps.item() == 4
    assert torch.equal(disturbed.flat(), undisturbed.flat())
    assert torch.equal(disturbed.state(), undisturbed.state())


@each_path
def test_a_skipped_first_step_leaves_the_average_empty(fused):
    loop = Loop(fused=fused)
    loop.step(0, spoil=INF)
    assert not loop.state().any()
    loop.step(1)
    grads = flat_numpy(loop.gradients(1, 1))
    assert loop.optimizer.stats.sq_constraint.item() == pytest.approx(grads @ grads, rel=1e-6)


@each_path
@each_optimizer
def test_every_constraint_has_its_own(name, fused):
    """One that is not held in a step keeps its average and its bias correction."""
    loop, seen = Loop(name, fused, names=["x", "y", "z"]), {"x": [], "y": [], "z": []}
    held_in = [("x",), ("x", "y"), ("y", "z"), ("x", "y", "z"), ("z",), ("x", "z")]
    for index, names in enumerate(held_in):
        loop.step(index, names)
        for salt, n in enumerate(loop.names, 1):
            if n in names:
                seen[n].append(flat_numpy(loop.gradients(index, salt)))
            if not seen[n]:
                assert not loop.state(f"constraint_ema.{n}").any()
                continue
            average = textbook(seen[n], DECAY)
            np.testing.assert_allclose(loop.state(f"constraint_ema.{n}").numpy(), average, rtol=1e-5, atol=1e-6)
            if name == "sgd" and n in names:
                sq = loop.optimizer.stats[n].sq_constraint.item()
                assert sq == pytest.approx(average @ average, rel=1e-5)
    assert "constraint_ema" not in loop.optimizer.state[loop.params[0]]


@each_path
@each_optimizer
@pytest.mark.parametrize("names", [None, ["a", "b", "c"]])
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("decay", [DECAY, None])
def test_a_checkpoint_continues_to_the_same_bits(name, fused, names, held, decay, tmp_path):
    straight, resumed = Loop(name, fused, decay, names), Loop(name, fused, decay, names)
    for index in range(5):
        straight.step(index)
    if held:
        straight.held(5)
    torch.save(straight.optimizer.state_dict(), tmp_path / "state.pt")
    resumed.optimizer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for mine, its in zip(resumed.params, straight.params, strict=True):
        mine.data.copy_(its.data)
    for loop in (straight, resumed):
        for index in range(5, 9):
            if index == 5 and held:
                loop.put(loop.gradients(5))
                loop.optimizer.step()
                loop.optimizer.zero_grad()
            else:
                loop.step(index)
    assert torch.equal(straight.flat(), resumed.flat())


@each_optimizer
@pytest.mark.parametrize("names", [None, ["a", "b", "c"]])
def test_compiled_steps_are_the_eager_ones(name, names):
    torch._dynamo.reset()
    eager, compiled = Loop(name, names=names), Loop(name, names=names)
    run = torch.compile(compiled.optimizer.step, backend="aot_eager", fullgraph=True)
    for index in range(5):
        for loop in (eager, compiled):
            loop.held(index)
            loop.put(loop.gradients(index))
            run() if index and loop is compiled else loop.optimizer.step()  # the first step creates the state
            loop.optimizer.zero_grad()
    assert torch.equal(eager.flat(), compiled.flat())
    key = "constraint_ema" if names is None else "constraint_ema.b"
    assert torch.equal(eager.state(key), compiled.state(key))


@each_path
def test_the_held_gradient_itself_is_not_written(fused):
    loop = Loop(fused=fused)
    loop.step(0)
    loop.held(1)
    grads = loop.optimizer._constraints.held.by_name[""].grads
    loop.put(loop.gradients(1))
    loop.optimizer.step()
    for mine, its in zip(grads, loop.gradients(1, 1), strict=True):
        assert torch.equal(mine, its)


def test_a_parameter_without_a_gradient_decays_towards_zero():
    """No gradient counts as zero, so the average of a parameter that c no longer reaches fades."""
    loop = Loop()
    loop.step(0)
    before = loop.optimizer.state[loop.params[1]]["constraint_ema"].clone()
    loop.params[0].grad = torch.ones_like(loop.params[0])
    loop.optimizer.hold_constraint(torch.tensor(1.0))
    loop.put(loop.gradients(1))
    loop.optimizer.step()
    fresh = (1 - DECAY) / (1 - DECAY**2)
    torch.testing.assert_close(loop.optimizer.state[loop.params[1]]["constraint_ema"], before * (1 - fresh))


def test_without_decay_nothing_is_kept():
    loop = Loop(decay=0.0)
    loop.step(0)
    assert not any(loop.optimizer.state[p] for p in loop.params)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decays_out_of_range(decay):
    with pytest.raises(ValueError, match="constraint_grad_ema"):
        Loop(decay=decay)
