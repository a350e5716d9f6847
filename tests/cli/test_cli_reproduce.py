"""The command `reproduce`, on a tiny model and tiny images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import call

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")
pytest.importorskip("scipy")
pytest.importorskip("sklearn")
pytest.importorskip("efficientnet_lite_pytorch")

from unlearn_ext import demo, reproduction
from unlearn_ext.baselines import METHODS
from unlearn_ext.data import ForgetRetain
from unlearn_ext.models.vqgan import VQGAN
from unlearn_ext.reproduction import Plan, quality, trial
from unlearn_ext.reproduction.effort import Effort
from unlearn_ext.unlearning.settings import Settings

pytestmark = pytest.mark.slow

EFFORTS = {"vqgan": Effort(batch_size=4, pairs=20, share=1.0)}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a tiny model, noise as images, two baselines and runs of one step."""
    import diffusers

    module = diffusers.VQModel(
        in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4, latent_channels=2,
        num_vq_embeddings=8, sample_size=8, mid_block_add_attention=False,
    )  # fmt: skip
    images = (torch.rand(4, 12, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1).unbind()
    monkeypatch.setattr(demo, "prepare", lambda *_, **__: (VQGAN(module), ForgetRetain("noise", *images)))
    monkeypatch.setattr(demo, "retrained", lambda *_, **__: VQGAN(module))
    monkeypatch.setitem(demo.CHOICES, "vqgan", demo.Choice(Settings(steps=1, batch_size=4)))
    monkeypatch.setattr(trial, "METHODS", {name: METHODS[name] for name in ("composite", "pcgrad")})
    monkeypatch.setattr(reproduction, "QUICK", Plan(seeds=1, points=1, efforts=EFFORTS))
    monkeypatch.setattr(quality, "EXTRACTORS", quality.EXTRACTORS[:1])  # the second extractor would have to be trained


def test_tables_a_page_and_a_summary(tiny: None, tmp_path: Path) -> None:
    code, said = call("reproduce", "--quick", "--jobs", "1", "--out", str(tmp_path))
    assert code == 0, said
    for words in ("epsilon-constraint", "composite", "pcgrad", "(HV)", "0.25", "(ms)"):
        assert words in said
    written = {"reproduction.csv", "search.csv", "costs.csv", "quality.csv", "reproduction.html", "figures"}
    assert {path.name for path in tmp_path.iterdir()} >= written


def test_another_experiment_in_the_folder_is_one_sentence(tiny: None, tmp_path: Path) -> None:
    Plan(seeds=1, points=7, efforts=EFFORTS).keep(tmp_path, torch.device("cpu"))
    code, said = call("reproduce", "--quick", "--jobs", "1", "--out", str(tmp_path))
    assert code == 1
    assert said.startswith("Error: ")
    assert "choose another folder" in said
    assert list(tmp_path.iterdir()) == [tmp_path / "reproduction.json"]
