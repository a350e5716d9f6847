"""Fixtures that tests in several folders use."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch


def pytest_configure() -> None:
    """Limit torch to one thread: small tensors gain nothing from more, which on busy cores wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def seeded() -> None:
    """Seed torch at the beginning of each file, so that untrained models are the same in every run."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def emulation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run tests with the mark ``emulated`` on the CUDA kernels, which tests/emulation runs on CPU tensors."""
    if request.node.get_closest_marker("emulated") is None:
        yield
        return
    import emulated

    with emulated.cuda_kernels():
        yield


@pytest.fixture(scope="session")
def tiny_model() -> Any:
    """Return a VQ-GAN so small that a sweep takes seconds. Do not change it."""
    import tiny

    return tiny.model("vqgan")


@pytest.fixture(scope="session")
def tiny_images() -> tuple[torch.Tensor, torch.Tensor]:
    """Return (forget, retain): noisy vertical and horizontal stripes, float32 [48, 1, 8, 8]. Do not change them."""
    generator = torch.Generator().manual_seed(1)
    stripes = torch.tensor([0.6, -0.6]).repeat(4)
    noise = 0.3 * torch.randn(2, 48, 1, 8, 8, generator=generator)
    return (noise[0] + stripes).clamp(-1, 1), (noise[1] + stripes[:, None]).clamp(-1, 1)


@pytest.fixture
def model(tiny_model: Any) -> Any:
    """Return a copy of the tiny model that a test may change."""
    return copy.deepcopy(tiny_model)


@pytest.fixture
def images(tiny_images: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Return copies of (forget, retain) that a test may change."""
    return tuple(side.clone() for side in tiny_images)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Write a made-up finished run and return its folder."""
    from run_folders import write_run

    return write_run(tmp_path / "run")
