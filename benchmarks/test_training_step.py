"""Time of a whole training step of each small model: ours, without a constraint, and with the predecessor's loss."""

import copy

import pytest
import torch
from peers import Contestant
from race import on, race

import unlearn_ext as ux
from unlearn_ext import data, demo, models, pretrain
from unlearn_ext.errors import UserError
from unlearn_ext.unlearning.batches import pairs
from unlearn_ext.unlearning.objectives import Objectives

IMAGES = 512  # per set; the time of a step depends neither on the number of images nor on the weights
COMPOSITE_WEIGHT = 0.2  # α of L_R + α L_F (Li et al., ICLR 2024)
ROUNDS = 20


class TwoGradients(Contestant):
    """Forward and backward pass for f1, then for f2, then a step of torch's AdamW on the summed gradients."""

    def __init__(self, model: models.I2IModel, objectives: Objectives) -> None:
        self.model, self.objectives = copy.deepcopy(model), objectives
        self.optimizer = self.new_optimizer(list(self.model.encoder_parameters()))
        self.batches = pairs(objectives.forget, objectives.retain, objectives.settings.batch_size, seed=0)

    def prepare(self) -> None:
        """Load the next minibatches."""
        self.forget, self.retain = next(self.batches)

    def new_optimizer(self, params: list) -> torch.optim.Optimizer:
        """Return torch's AdamW."""
        return torch.optim.AdamW(params, lr=self.objectives.settings.lr, weight_decay=0.0, fused=True)

    def between(self, f1: torch.Tensor) -> None:
        """Do nothing between the backward passes, so that the gradients add up."""

    @torch.enable_grad()
    def step(self) -> None:
        """Take a training step."""
        f1 = self.objectives.f1(self.model.encode, self.forget)
        f1.backward()
        self.between(f1)
        self.objectives.f2(self.model.encode, self.retain).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Constrained(TwoGradients):
    """Our training step."""

    def new_optimizer(self, params: list) -> torch.optim.Optimizer:
        """Return our AdamW."""
        lr = self.objectives.settings.lr
        return ux.EpsilonAdamW(params, lr=lr, weight_decay=0.0, control=ux.EpsilonGap(0.5), fused=True)

    def between(self, f1: torch.Tensor) -> None:
        """Hold the gradient of f1 as the constraint."""
        self.optimizer.hold_constraint(f1)


class Composite(TwoGradients):
    """The predecessor's loss, whose frozen teacher encodes the retained images and new noise in every step."""

    def __init__(self, model: models.I2IModel, objectives: Objectives) -> None:
        super().__init__(model, objectives)
        self.teacher = copy.deepcopy(model)

    @torch.enable_grad()
    def step(self) -> None:
        """Take a training step."""
        images, *seen = self.forget.inputs
        with torch.no_grad():
            noise_latents = self.teacher.encode(torch.randn_like(images), *seen)
            retain_latents = self.teacher.encode(*self.retain.inputs)
        f1 = (self.model.encode(images, *seen) - noise_latents).square().mean() / self.objectives.variance
        f2 = (self.model.encode(*self.retain.inputs) - retain_latents).square().mean() / self.objectives.variance
        (f2 + COMPOSITE_WEIGHT * f1).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def small(family: str, device: str) -> tuple[models.I2IModel, Objectives]:
    """Return the demo's model of a family, pretrained for two steps only, and its objectives."""
    recipe = pretrain.RECIPES[family](steps=2)
    images = data.load(demo.DATASET, forget_classes=demo.FORGET_CLASSES, size=recipe.size, seed=0)
    forget, retain = images.forget[:IMAGES], images.retain[:IMAGES]
    model = pretrain.train(torch.cat([forget, retain]), demo.TASK, seed=0, recipe=recipe)
    model.module.to(device)
    settings = demo.CHOICES[family].settings
    return model, Objectives.freeze(model, forget, retain, demo.TASK, settings=settings)


@pytest.mark.parametrize("family", demo.CHOICES)
@pytest.mark.parametrize("device", [on(d, name=d) for d in ("cpu", "cuda")])
def test_training_step(benchmark, family, device):
    """Time a training step; families with missing libraries are skipped."""
    try:
        model, objectives = small(family, device)
    except UserError as missing:
        pytest.skip(str(missing))
    ours = Constrained(model, objectives)
    rivals = {"no constraint": TwoGradients(model, objectives), "composite": Composite(model, objectives)}
    benchmark.extra_info.update(suite="training step", device=device, optimizer="adamw", size=family, dtype="float32")
    race(benchmark, device, ours, rivals, rounds=ROUNDS)
