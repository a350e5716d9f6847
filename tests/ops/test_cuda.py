"""The CUDA kernels: agreement with the reference, launches per step, no synchronization, repeatability, graphs."""

from collections.abc import Callable

import pytest
import torch
from steps import cloned, operands_like, run_step, written

import unlearn_ext as ux
from unlearn_ext.ops import extension
from unlearn_ext.ops.extension import why_not
from unlearn_ext.ops.layout import Operands, Rule, StepReport

REASON = why_not(torch.device("cuda")) or ("" if torch.cuda.is_available() else "torch sees no CUDA device here")
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)

FEW = [(0,), (1,), (1023,), (3 * 16384 + 5,), (0, 3), (129, 257)]
SHAPES = {"few": FEW, "many": FEW + [(1 + i % 97,) for i in range(1100)]}
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
MIXES = [(F32,) * 5, (BF16,) * 5, (F16,) * 5, (F32, BF16, BF16, F32, F32), (BF16, F32, F16, F32, BF16)]


def moved(operands: Operands, move: Callable[[torch.Tensor, int], torch.Tensor]) -> Operands:
    """Apply ``move(tensor, column)`` to every tensor; columns are those of ``Operands.lists``, the steps the last."""
    *lists, steps = [
        [None if t is None else move(t, column) for t in tensors] for column, tensors in enumerate(operands.lists())
    ]
    return Operands(*lists[:4], steps, operands.groups, lists[4::2], lists[5::2])


def on_device(operands: Operands) -> Operands:
    return moved(operands, lambda tensor, column: tensor.cuda())


def shifted(operands: Operands, offsets: list[int]) -> Operands:
    """Copy operands to the device; each list's tensors begin ``offsets`` elements after an aligned address."""

    def shift(tensor: torch.Tensor, column: int) -> torch.Tensor:
        offset = offsets[column % len(offsets)] if tensor.dim() else 0  # a step counter has one element
        storage = torch.empty(tensor.numel() + offset, dtype=tensor.dtype, device="cuda")
        return storage[offset:].view(tensor.shape).copy_(tensor)

    return moved(operands, shift)


def assert_close(rule: Rule, host: Operands, device: Operands, psi: float | list[float] = 0.5) -> None:
    exact = cloned(host, torch.float64)
    oracle = run_step(rule, exact, psi, fused=False)
    step = run_step(rule, device, psi, fused=True, device="cuda")
    torch.testing.assert_close(step.sums.cpu(), oracle.sums, rtol=1e-5, atol=float(1e-6 * oracle.sums.abs().max()))
    for got, want in zip(written(rule, device), written(rule, exact), strict=True):
        ulp = torch.finfo(got.dtype).eps
        torch.testing.assert_close(got.cpu().double(), want, rtol=max(ulp, 2e-5), atol=max(ulp, 1e-4))
    for counter in device.steps:
        assert counter is None or counter.item() == 4


@pytest.mark.parametrize("rule", list(Rule))
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("shapes", SHAPES)
def test_agrees_with_the_reference(rule, mix, shapes):
    host = operands_like(rule, [torch.empty(s) for s in SHAPES[shapes]], mix, seed=1)
    assert_close(rule, host, on_device(host))


@pytest.mark.parametrize("rule", list(Rule))
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("averages", [False, True])
@pytest.mark.parametrize("constraints", [0, 2, 3, 5, 8])
def test_several_constraints_agree_with_the_reference(rule, dtype, averages, constraints):
    shaped = [torch.empty(s) for s in FEW]
    host = operands_like(rule, shaped, (dtype,) * 5, seed=6, constraints=constraints, averages=averages)
    assert_close(rule, host, on_device(host), psi=[0.5 * (i + 1) for i in range(constraints)])


@pytest.mark.parametrize("rule", list(Rule))
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("offsets", [[1] * 5, [3] * 5, [7] * 5, [0, 1, 1, 0, 0], [5, 2, 3, 1, 4]])
def test_any_alignment(rule, dtype, offsets):
    host = operands_like(rule, [torch.empty(s) for s in ((3,), (9,), (5000,), (40_001,))], (dtype,) * 5, seed=2)
    assert_close(rule, host, shifted(host, offsets))


@pytest.mark.parametrize("rule", [Rule.SGD, Rule.ADAMW, Rule.WRAP])
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("missing", ["grads", "constraint_grads"])
def test_an_absent_gradient_reads_as_zero(rule, dtype, missing):
    host = operands_like(rule, [torch.empty(s) for s in ((5000,), (40_001,))], (dtype,) * 5, seed=4)
    (host.grads if missing == "grads" else host.constraint_grads[0])[0] = None
    assert_close(rule, host, on_device(host))


@pytest.mark.parametrize("rule", list(Rule))
def test_nothing_is_written_when_anything_is_not_finite(rule):
    device = on_device(operands_like(rule, [torch.empty(11), torch.empty(20_001)], (F32,) * 5, seed=5))
    device.constraint_grads[0][1][12_345] = float("nan")
    before = cloned(device)
    step = run_step(rule, device, 0.5, fused=True, device="cuda")
    assert step.report[0, StepReport.SKIPPED] == 1
    if rule is Rule.WRAP:  # the other optimizer has stepped already; that is undone
        before.params = before.firsts
    assert all(torch.equal(a, b) for a, b in zip(written(rule, before), written(rule, device), strict=True))


@pytest.mark.parametrize("rule", list(Rule))
@pytest.mark.parametrize("shapes", SHAPES)
def test_the_same_bits_from_any_number_of_blocks(rule, shapes):
    operands = operands_like(rule, [torch.empty(s) for s in [*SHAPES[shapes], (700_001,)]], (F32,) * 5, seed=7)
    results = []
    try:
        for blocks in (1, 7, 50, 2**30, 2**30):
            extension.kernels.cuda_limit_blocks(blocks)
            device = on_device(operands)
            step = run_step(rule, device, 0.5, fused=True, device="cuda")
            results.append([step.sums, step.report, *written(rule, device)])
    finally:
        extension.kernels.cuda_limit_blocks(2**30)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


class Loop:
    """An optimizer over tensors on the device, with gradients at fixed addresses."""

    def __init__(self, optimizer: type, count: int, **options) -> None:
        generator = torch.Generator("cuda").manual_seed(3)
        shape = [torch.Size([1 + 37 * i % 301]) for i in range(count)]
        draw = [[torch.randn(s, generator=generator, device="cuda") for s in shape] for _ in range(3)]
        self.params, self.grads, self.constraint_grads = [torch.nn.Parameter(t) for t in draw[0]], draw[1], draw[2]
        given = {"lr": 1e-2, "control": ux.EpsilonGap(0.3), "fused": True, **options}
        self.optimizer = optimizer(self.params, **given)
        self.f1 = torch.full((), 0.7, device="cuda")

    def hold(self) -> None:
        for param, grad in zip(self.params, self.constraint_grads, strict=True):
            param.grad = grad
        self.optimizer.hold_constraint(self.f1)
        for param, grad in zip(self.params, self.grads, strict=True):
            param.grad = grad

    def captured(self) -> torch.cuda.CUDAGraph:
        """Capture one step and return its graph."""
        graph = torch.cuda.CUDAGraph()
        self.hold()
        with torch.cuda.graph(graph):
            self.optimizer.step()
        return graph


@pytest.mark.parametrize("optimizer", [ux.EpsilonSGD, ux.EpsilonAdamW])
@pytest.mark.parametrize("count", [300, 1000])
def test_two_launches_and_no_waiting(optimizer, count):
    loop = Loop(optimizer, count)
    loop.hold()
    loop.optimizer.step()
    loop.hold()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            loop.optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    launched = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert len(launched) == 2, launched


@pytest.mark.parametrize("optimizer", [ux.EpsilonSGD, ux.EpsilonAdamW])
@pytest.mark.parametrize("count", [300, 1000])
def test_replay_of_a_graph_equals_eager(optimizer, count):
    options = {"momentum": 0.9} if optimizer is ux.EpsilonSGD else {}
    eager, replayed = Loop(optimizer, count, **options), Loop(optimizer, count, **options)
    for loop in (eager, replayed):
        loop.hold()
        loop.optimizer.step()
    graph = replayed.captured()
    for _ in range(5):
        graph.replay()
        eager.hold()
        eager.optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(eager.params, replayed.params, strict=True))


def test_a_graph_keeps_the_rows_that_it_was_captured_with():
    eager, replayed = Loop(ux.EpsilonSGD, 1000), Loop(ux.EpsilonSGD, 1000)
    for loop in (eager, replayed):
        loop.hold()
        loop.optimizer.step()
    graph = replayed.captured()
    grads = replayed.grads
    replayed.grads = [grad.clone() for grad in grads]  # new addresses: the optimizer writes another table
    for loop in (eager, replayed):
        loop.hold()
        loop.optimizer.step()
    # Overwrite the memory of the first table, in case it was freed.
    litter = [torch.full((72_000,), 255, dtype=torch.uint8, device="cuda") for _ in range(20)]
    graph.replay()
    eager.hold()
    eager.optimizer.step()
    del litter
    assert all(torch.equal(a, b) for a, b in zip(eager.params, replayed.params, strict=True))


@pytest.mark.parametrize("count", [3, 1000])
def test_the_functional_layer_may_be_captured(count):
    loop = Loop(ux.EpsilonSGD, count)
    psi = torch.tensor(5.0, device="cuda")
    want = [grad.clone() for grad in loop.grads]
    expected = torch.ops.unlearn_ext.halfspace_project_(want, loop.constraint_grads, psi)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = torch.ops.unlearn_ext.halfspace_project_(loop.grads, loop.constraint_grads, psi)
    graph.replay()
    assert torch.equal(got, expected)
    assert all(torch.equal(a, b) for a, b in zip(loop.grads, want, strict=True))


@pytest.mark.parametrize("optimizer", [ux.EpsilonSGD, ux.EpsilonAdamW])
def test_a_replay_reads_the_current_rates(optimizer):
    loops, numbers = [], []
    for _ in range(2):
        lr, epsilon, rate = (torch.tensor(value, device="cuda") for value in (1e-2, 0.3, 0.1))
        loops.append(Loop(optimizer, 20, lr=lr, control=ux.EpsilonGap(epsilon, rate=rate)))
        numbers.append((lr, epsilon, rate))
        loops[-1].hold()
        loops[-1].optimizer.step()
    eager, replayed = loops
    graph = replayed.captured()
    for factor in (0.5, 2.0, 0.25):
        for number in (*numbers[0], *numbers[1]):
            number.mul_(factor)
        graph.replay()
        eager.hold()
        eager.optimizer.step()
        assert replayed.optimizer.stats.psi == eager.optimizer.stats.psi
    assert all(torch.equal(a, b) for a, b in zip(eager.params, replayed.params, strict=True))


@pytest.mark.parametrize("dtype", [F32, BF16, F16, torch.float64])
def test_f1_of_any_dtype(dtype):
    loop = Loop(ux.EpsilonSGD, 3)
    loop.f1 = torch.full((), 0.75, device="cuda", dtype=dtype)
    loop.hold()
    loop.optimizer.step()
    assert loop.optimizer.stats.constraint.item() == 0.75


def test_more_than_two_to_the_31_elements():
    n = 2**31 + 12_345
    if torch.cuda.mem_get_info()[0] < 5 * 2 * n:
        pytest.skip("needs 22 GB of free memory on the device")
    g2, g1 = (torch.zeros(n, dtype=BF16, device="cuda") for _ in range(2))
    for index in (0, 2**31 - 1, 2**31, n - 1):
        g2[index], g1[index] = 1.0, 2.0
    lam, skipped = torch.ops.unlearn_ext.halfspace_project_([g2], [g1], torch.tensor(40.0, device="cuda"))
    assert (lam.item(), skipped.item()) == (2.0, 0.0)  # (40 − 8) / 16
    assert g2.sum(dtype=torch.float64).item() == 4 * 5.0
    assert g2[n - 1].item() == 5.0


@pytest.mark.parametrize("optimizer", [ux.EpsilonSGD, ux.EpsilonAdamW])
def test_a_compiled_step_is_the_eager_one(optimizer):
    torch._dynamo.reset()
    loops = Loop(optimizer, 20), Loop(optimizer, 20)
    compiled = torch.compile(loops[0].optimizer.step, backend="aot_eager", fullgraph=True)
    for index in range(4):
        for loop in loops:
            loop.hold()
            compiled() if index and loop is loops[0] else loop.optimizer.step()  # the first step creates the state
    for mine, theirs in zip(loops[0].params, loops[1].params, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_sharpness_moves_as_on_the_cpu_and_does_not_wait(dtype):
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(2, *shape, generator=generator).to(dtype) for shape in FEW]
    moved = {}
    for device in ("cpu", "cuda"):
        params = [torch.nn.Parameter(value.to(device)) for value, _ in drawn]
        for param, (_, grad) in zip(params, drawn, strict=True):
            param.grad = grad.to(device) * 1000
        before = [param.detach().clone() for param in params]
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            with ux.sharpness(params, 5.0):
                moved[device] = [param.detach().clone() for param in params]
                params[0].grad = torch.zeros_like(params[0])
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert all(map(torch.equal, params, before))
    for mine, expected in zip(moved["cuda"], moved["cpu"], strict=True):
        torch.testing.assert_close(mine.cpu(), expected)
