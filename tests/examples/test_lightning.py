"""Under Lightning, gradient clipping and mixed precision work as with torch's optimizers."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import unlearn_ext as ux

lightning = pytest.importorskip("lightning", reason="lightning comes with the extra `examples`")

OPTIMIZERS = {"EpsilonAdamW": torch.optim.AdamW, "EpsilonSGD": torch.optim.SGD}
DATA = torch.randn(2, 32, 8, generator=torch.Generator().manual_seed(0))


class Plain(lightning.LightningModule):
    """One loss with Lightning's automatic optimization."""

    def __init__(self, make):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.make, self.norms = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)), make, []

    def configure_optimizers(self):
        return self.make(self.net.parameters())

    def training_step(self, batch, batch_idx):
        return (self.net(batch[1]) * 10 - 30).square().mean()

    def on_before_optimizer_step(self, optimizer):
        self.norms.append(max(p.grad.abs().max().item() for p in self.net.parameters()))


class Constrained(Plain):
    """Two losses with manual optimization; ∇f2 is clipped between its backward pass and the step."""

    def __init__(self, make):
        super().__init__(make)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        f1 = self.net(batch[0]).square().mean()
        self.manual_backward(f1)
        optimizer.hold_constraint(f1)
        self.manual_backward(super().training_step(batch, batch_idx))
        self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="value")
        optimizer.step()
        optimizer.zero_grad()


def fit(module, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", **quiet, **options)
        trainer.fit(module, DataLoader(TensorDataset(*DATA), batch_size=8))
    return module


def sgd(params):
    return ux.EpsilonSGD(params, lr=0.01, control=ux.EpsilonGap(0.01))


def wrapped_sgd(params):
    return ux.EpsilonWrapper(torch.optim.SGD(params, lr=0.01), control=ux.EpsilonGap(0.01))


class Automatic(Plain):
    """A constraint under automatic optimization; its micro-batches alternate with those of the objective."""

    def training_step(self, batch, batch_idx):
        with self.optimizers().constraint() as hold:
            f1 = self.net(batch[0]).square().mean() / 2
            f1.backward()
            hold(f1)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("make", [sgd, wrapped_sgd])
def test_automatic_optimization_with_accumulation_equals_a_plain_loop(make):
    automatic, plain = fit(Automatic(make), accumulate_grad_batches=2), Plain(make)
    optimizer = plain.configure_optimizers()
    for _ in range(2):
        for forget, retain in zip(*(side.split(16) for side in DATA), strict=True):
            f1 = plain.net(forget).square().mean()
            f1.backward()
            optimizer.hold_constraint(f1)
            plain.training_step((forget, retain), 0).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert optimizer.stats.lam.item() > 0
    for mine, its in zip(automatic.net.parameters(), plain.net.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_equals_that_of_torchs_optimizer(name, precision, algorithm):
    options = {"precision": precision, "gradient_clip_val": 0.1, "gradient_clip_algorithm": algorithm}
    ours = fit(Plain(lambda params: getattr(ux, name)(params, lr=0.01, control=ux.EpsilonGap(0.1))), **options)
    theirs = fit(Plain(lambda params: OPTIMIZERS[name](params, lr=0.01)), **options)
    for mine, its in zip(ours.net.parameters(), theirs.net.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)
    assert ours.norms == pytest.approx(theirs.norms, rel=1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_a_constrained_step_may_be_clipped(name, precision):
    def make(params):
        return getattr(ux, name)(params, lr=0.01, control=ux.EpsilonGap(0.01))

    module = fit(Constrained(make), precision=precision)
    optimizer = module.trainer.optimizers[0]
    assert max(module.norms) == pytest.approx(0.1)
    assert optimizer.stats.lam.item() > 0
    assert optimizer.skipped_steps.item() == 0


def test_fabric_clips_too():
    fabric = lightning.Fabric(accelerator="cpu", precision="bf16-mixed")
    torch.manual_seed(0)
    net = nn.Linear(8, 4)
    module, optimizer = fabric.setup(net, ux.EpsilonAdamW(net.parameters(), lr=0.01))
    fabric.backward((module(DATA[0]) * 10 - 30).square().mean())
    fabric.clip_gradients(module, optimizer, max_norm=0.1)
    assert nn.utils.get_total_norm([p.grad for p in net.parameters()]).item() == pytest.approx(0.1, rel=1e-3)
    optimizer.step()


def test_a_scaler_still_leaves_unscaling_to_the_step():
    """Unscaling in the step does not wait for the device, and detects a constraint held without the scaler."""
    net = nn.Linear(8, 4)
    optimizer = ux.EpsilonSGD(net.parameters(), lr=0.1, control=ux.EpsilonGap(0.1))
    scaler = torch.amp.GradScaler("cpu")
    f1 = net(DATA[0]).square().mean()
    scaler.scale(f1).backward()
    optimizer.hold_constraint(f1)
    scaler.scale(net(DATA[1]).square().mean()).backward()
    with pytest.raises(RuntimeError, match="a constraint was held without it"):
        scaler.step(optimizer)
