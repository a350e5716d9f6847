"""A VQ-GAN small enough that a whole sweep takes seconds, and images it can tell apart."""

import copy

import pytest
import tiny
import torch


@pytest.fixture(autouse=True, scope="module")
def in_one_thread(one_thread):
    """All tests of this folder work on small images."""


@pytest.fixture(scope="session")
def tiny_model():
    """Not to be changed."""
    return tiny.model("vqgan")


@pytest.fixture(scope="session")
def tiny_images():
    """(forget, retain): stripes one way and the other, with noise; float32 [48, 1, 8, 8]; not to be changed."""
    generator = torch.Generator().manual_seed(1)
    stripes = torch.tensor([0.6, -0.6]).repeat(4)
    noise = 0.3 * torch.randn(2, 48, 1, 8, 8, generator=generator)
    return (noise[0] + stripes).clamp(-1, 1), (noise[1] + stripes[:, None]).clamp(-1, 1)


@pytest.fixture
def model(tiny_model):
    """A copy of the tiny model, to be changed."""
    return copy.deepcopy(tiny_model)


@pytest.fixture
def images(tiny_images):
    """Copies of the two sets of images."""
    return tuple(side.clone() for side in tiny_images)
