"""Checkpoints of realistic sizes with random weights: one step of each through the command line.

Run with `make true-size`, which prints memory and time. On two cores it needs 40 minutes and 10 GB of memory; for
Stable Diffusion 24 GB.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from originals import taming_vqgan

from unlearn_ext.models import load

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")

ROOT = Path(__file__).parents[2]
LIMIT_GB = 6  # for the ViT-B MAE at batch 8


def taming_f16(folder: Path) -> Path:
    """Save the VQ-GAN for 256-pixel images that Esser et al. trained on ImageNet, f = 16, as they publish it."""
    folder.mkdir()
    described = {
        "double_z": False, "z_channels": 256, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
        "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [16], "dropout": 0.0,
    }  # fmt: skip
    params = {"embed_dim": 256, "n_embed": 16384, "ddconfig": described}
    torch.save({"state_dict": taming_vqgan.VQModel(**params).state_dict()}, folder / "last.ckpt")
    config = {"model": {"target": "taming.models.vqgan.VQModel", "params": params}}
    (folder / "last.yaml").write_text(json.dumps(config))  # JSON is YAML
    return folder / "last.ckpt"


def mae(folder: Path) -> Path:
    """Save the architecture of facebook/vit-mae-base."""
    transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig()).save_pretrained(folder)
    return folder


def mae_large(folder: Path) -> Path:
    """Save the architecture of facebook/vit-mae-large."""
    sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**sizes)).save_pretrained(folder)
    return folder


def diffusion(folder: Path) -> Path:
    """Save the U-Net of 62 M parameters with which Palette's public implementation inpaints 256-pixel images."""
    diffusers.UNet2DModel(
        sample_size=256, in_channels=6, out_channels=3, block_out_channels=(64, 128, 256, 512), layers_per_block=2,
        down_block_types=("ResnetDownsampleBlock2D",) * 4, up_block_types=("ResnetUpsampleBlock2D",) * 4,
        resnet_time_scale_shift="scale_shift",
    ).save_pretrained(folder)  # fmt: skip
    diffusers.DDPMScheduler(num_train_timesteps=2000, beta_start=1e-6, beta_end=0.01).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Size:
    """A checkpoint and how it is tested.

    Attributes:
        family: model family.
        write: function that writes the checkpoint to a folder and returns what ``--model`` takes.
        side: image size in pixels.
        parameters: bounds of the number of parameters of the whole model, in millions.
        batch: forget images, and retain images, per minibatch.
        encoder: prefixes of the names of the parameters that may change.
        read: ``from_pretrained`` of the class of the result.
    """

    family: str
    write: Callable[[Path], Path]
    side: int
    parameters: tuple[float, float]
    batch: int
    encoder: tuple[str, ...]
    read: Callable[..., Any]


SIZES = [
    Size("vqgan", taming_f16, 256, (60, 90), 2, ("encoder.", "quant_conv."), diffusers.VQModel.from_pretrained),
    Size("mae", mae, 224, (110, 113), 8, ("vit.",), transformers.ViTMAEForPreTraining.from_pretrained),
    Size("mae", mae_large, 224, (325, 335), 4, ("vit.",), transformers.ViTMAEForPreTraining.from_pretrained),
    Size("diffusion", diffusion, 256, (60, 65), 1, ("down_blocks.", "mid_block."),
         diffusers.UNet2DModel.from_pretrained),
]  # fmt: skip


@pytest.fixture(params=SIZES, ids=lambda size: size.write.__name__)
def place(request, tmp_path):
    """Return the size, a folder with smooth colour images to forget and to retain, and the checkpoint in it."""
    size = request.param
    torch.manual_seed(0)
    checkpoint = size.write(tmp_path / "checkpoint")
    rng = np.random.default_rng(0)
    for side in ("ours", "theirs"):
        (tmp_path / side).mkdir()
        for number in range(size.batch + 2):
            coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            coarse.resize((size.side, size.side), Image.BICUBIC).save(tmp_path / side / f"{number}.png")
    return size, tmp_path, checkpoint


def called(*arguments: str) -> tuple[str, float]:
    """Run a command; return its output and its peak memory in GB."""
    code = (
        "import resource, sys, unlearn_ext.cli as cli\n"
        "try: cli.main()\n"
        "finally: print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kibibytes = int(re.search(r"PEAK (\d+)", done.stderr)[1])
    return done.stdout, kibibytes * 1024 / 1e9


def test_one_step(place, capsys):
    size, folder, checkpoint = place
    arguments = ["--family", size.family, "--model", str(checkpoint), "--batch-size", str(size.batch)]
    arguments += ["--forget", str(folder / "ours"), "--retain", str(folder / "theirs"), "--steps", "1"]
    said, memory = called("run", "--epsilon", "0.5", *arguments, "--out", str(folder / "out"))
    (out,) = (folder / "out").glob("eps-*")
    before, after = load(size.family, checkpoint).module, size.read(out)
    changed = {name for name, p in after.named_parameters() if not torch.equal(p, before.get_parameter(name))}
    assert changed
    assert all(name.startswith(size.encoder) for name in changed)
    millions = sum(p.numel() for p in before.parameters()) / 1e6
    assert size.parameters[0] < millions < size.parameters[1]
    with capsys.disabled():
        print(f"\n{size.write.__name__}: {millions:.0f} M parameters, batch {size.batch} + {size.batch}, "
              f"peak {memory:.2f} GB\n{said}")  # fmt: skip
    if size.write is mae:
        assert memory < LIMIT_GB


def test_a_sweep_of_single_steps_of_a_vit_b_mae(place, capsys):
    size, folder, checkpoint = place
    if size.write is not mae:
        pytest.skip("a sweep of single steps is for the MAE")
    arguments = ["--family", size.family, "--model", str(checkpoint), "--batch-size", str(size.batch)]
    arguments += ["--forget", str(folder / "ours"), "--retain", str(folder / "theirs"), "--steps", "1", "--points", "1"]
    said, memory = called("sweep", *arguments, "--out", str(folder / "out"))
    seconds = json.loads((folder / "out" / "metrics.json").read_text())["seconds"]
    with capsys.disabled():
        print(f"\nsweep of {size.family}: {seconds:.0f} s, peak {memory:.2f} GB\n{said}")
    assert memory < LIMIT_GB


# Through Python, because the command also draws pictures, which takes hours on a CPU.
STEPS = """
import resource, time
import torch, pipelines
import unlearn_ext as ux
from unlearn_ext.models.latent_diffusion import LatentDiffusion

model = LatentDiffusion(pipelines.{name}())
model.enable_gradient_checkpointing()
images = torch.rand(2, 1, 3, model.size, model.size) * 2 - 1
start = time.monotonic()
ux.unlearn(model, *images, task=ux.tasks.CenterCrop(0.5), epsilon="50%", settings=ux.Settings(steps=1, batch_size=1))
counts = [sum(p.numel() for p in parameters) for parameters in (model.module.parameters(), model.encoder_parameters())]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
print(*counts, f"{{time.monotonic() - start:.0f}} s, peak {{peak:.2f}} GB")
"""


@pytest.mark.parametrize(("name", "least"), [("stable_diffusion", 859), ("inpainting", 0)])
def test_the_steps_of_a_run_of_stable_diffusion(name, least, capsys):
    if least and os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") < 23e9:
        pytest.skip("the U-Net in its original size needs 24 GB")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STEPS.format(name=name)], cwd=ROOT, capture_output=True, text=True,
        check=False, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    parameters, of_encoder, *said = done.stdout.split()
    assert int(parameters) / 1e6 >= least
    with capsys.disabled():
        print(f"\n{name}: {int(parameters) / 1e6:.0f} M, {int(of_encoder) / 1e6:.0f} M, {' '.join(said)}")
