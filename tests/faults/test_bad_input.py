"""Wrong inputs from users, by kind, and the exact error message of each; never a traceback.

``{place}`` in a command and in a message is the folder of the test.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import unlearn_ext as ux
from unlearn_ext.errors import UserError
from unlearn_ext.tasks import CenterCrop
from unlearn_ext.unlearning.settings import Settings

pytest.importorskip("diffusers")
pytest.importorskip("typer")
pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a checkpoint, forget and retain images, and a run with one point between its boundaries."""
    folder = tmp_path_factory.mktemp("made")
    tiny.model("vqgan").save_pretrained(folder / "checkpoint")
    rng = np.random.default_rng(0)
    for side, brightest in (("ours", 120), ("theirs", 256)):
        (folder / side).mkdir()
        for index in range(12):
            Image.fromarray(rng.integers(0, brightest, (8, 8), dtype=np.uint8)).save(folder / side / f"{index}.png")
    images = torch.rand(2, 12, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    settings = Settings(steps=3, batch_size=8)
    ux.sweep(
        tiny.model("vqgan"), images[0] / 2, images[1], task=CenterCrop(0.5), points=1, out=folder / "run",
        settings=settings,
    )  # fmt: skip
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """Return a copy of ``made`` that a test may damage."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def said(place: Path, command: str) -> tuple[int, str]:
    """Run a command; return its exit code and its error message."""
    arguments = command.format(place=place).split(" ")
    from typer.testing import CliRunner

    from unlearn_ext.cli.app import app

    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "400", "TERM": "dumb"})
    lines = (line.strip(" │") for line in result.stderr.splitlines())
    return result.exit_code, next(line for line in lines if line.startswith(("Error: ", "Invalid value")))


IMAGES = " --forget {place}/ours --retain {place}/theirs"
RUN = "run --epsilon 0.5 --steps 2 --out {place}/out --model {place}/checkpoint" + IMAGES
SMALL = "run --epsilon 0.5 --out {place}/out "
SWEEP = RUN.replace("run --epsilon 0.5", "sweep --points 1")


def text(name: str, content: str) -> Callable[[Path], Any]:
    """Return a function that replaces a file by a text."""

    def write(place: Path) -> None:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(content, encoding="utf-8")

    return write


def cut(name: str) -> Callable[[Path], Any]:
    """Return a function that cuts off the second half of a file."""
    return lambda place: (place / name).write_bytes((place / name).read_bytes()[: (place / name).stat().st_size // 2])


def entry(name: str, key: str, value: Any) -> Callable[[Path], Any]:
    """Return a function that changes one entry of a JSON file."""
    return lambda place: text(name, json.dumps(json.loads((place / name).read_text()) | {key: value}))(place)


def column(name: str, old: str, new: str) -> Callable[[Path], Any]:
    """Return a function that replaces every occurrence of a text in a file."""
    return lambda place: text(name, (place / name).read_text().replace(old, new))(place)


def pickled(place: Path) -> None:
    (place / "checkpoint" / WEIGHTS).unlink()
    torch.save(tiny.model("vqgan").module.state_dict(), place / "checkpoint" / "diffusion_pytorch_model.bin")


def not_finite(place: Path) -> None:
    model = tiny.model("vqgan")
    torch.nn.init.constant_(model.encoder_parameters()[0], math.nan)
    model.save_pretrained(place / "checkpoint")


def pickled_pictures(place: Path) -> None:
    np.savez(place / "run" / "samples.npz", is_forget=np.array([{"an": "object"}], dtype=object))


def _cases(*tables: dict[str, tuple[Any, ...]]) -> list[Any]:
    """Return the cases of several tables as pytest parameters with their names as ids."""
    return [pytest.param(*case, id=name) for table in tables for name, case in table.items()]


def nothing(place: Path) -> None:
    pass


# How the files are damaged, the command, and the message; where it ends with …, another library gives the rest.
FILES = {
    "no checkpoint": (nothing, RUN.replace("checkpoint", "nowhere"), "there is no folder {place}/nowhere."),
    "one word for a checkpoint": (
        nothing,
        RUN.replace("{place}/checkpoint", "checkpoint-of-nobody"),
        "there is no folder checkpoint-of-nobody; an id of the Hugging Face hub has the form owner/name.",
    ),
    "an empty folder for a checkpoint": (
        lambda p: (p / "empty").mkdir(),
        RUN.replace("checkpoint", "empty"),
        "{place}/empty does not say which class of model it is, because its config.json is missing or names none: give "
        "a folder that save_pretrained wrote, or --family.",
    ),
    "a file for a checkpoint": (
        nothing,
        RUN.replace("{place}/checkpoint", "{place}/checkpoint/" + WEIGHTS),
        "{place}/checkpoint/diffusion_pytorch_model.safetensors is a file; give the folder that the model's library "
        "saved.",
    ),
    "half of the weights": (cut("checkpoint/" + WEIGHTS), RUN, "no VQModel could be loaded from {place}/checkpoint: …"),
    "pickled weights": (
        pickled,
        RUN,
        "{place}/checkpoint has its weights as a pickle, diffusion_pytorch_model.bin, and a pickle can run any code "
        "when it is loaded: if another program wrote it, give the file itself, of which only the weights are read; if "
        "not, ask somebody who trusts it to save it as safetensors.",
    ),
    "half of a config": (
        text("checkpoint/config.json", "{"),
        RUN,
        "config.json of {place}/checkpoint cannot be read: …",
    ),
    "a config of another kind": (
        text("checkpoint/config.json", "[]"),
        RUN,
        "{place}/checkpoint does not say which class of model it is, because its config.json is missing or names none: "
        "give a folder that save_pretrained wrote, or --family.",
    ),
    "weights of other shapes": (
        entry("checkpoint/config.json", "block_out_channels", [16]),
        RUN,
        "no VQModel could be loaded from {place}/checkpoint: …",
    ),
    "another family's checkpoint": (
        nothing,
        RUN + " --family autoencoder",
        "family autoencoder is diffusers.AutoencoderKL; {place}/checkpoint is a checkpoint of VQModel.",
    ),
    "another library's checkpoint": (
        nothing,
        RUN + " --family mae",
        "no ViTMAEForPreTraining could be loaded from {place}/checkpoint: …",
    ),
    "weights that are not finite": (
        not_finite,
        RUN,
        "the variance of the model's latents of the retain images is nan, so f1 and f2 cannot be computed: check "
        "that weights and images are finite, and that the images are not all alike.",
    ),
    "a model of four channels": (
        entry("checkpoint/config.json", "in_channels", 4),
        RUN,
        "no VQModel could be loaded from {place}/checkpoint: …",
    ),
    "no such images": (nothing, RUN.replace("ours", "nobodys"), "there is no folder {place}/nobodys."),
    "an image for a folder": (nothing, RUN.replace("ours", "ours/0.png"), "there is no folder {place}/ours/0.png."),
    "no images in a folder": (
        lambda p: (p / "empty").mkdir(),
        RUN.replace("theirs", "empty"),
        "the folder {place}/empty holds no image (nor do the folders in it).",
    ),
    "a broken image": (
        text("theirs/0.png", "no image"),
        RUN,
        "1 image cannot be read: repair or remove, or skip with --skip-bad (from Python, skip_bad=True).",
    ),
    "images in both sets": (
        nothing,
        RUN.replace("theirs", "ours"),
        "12 images are in the forget set and in the retain set: the same image cannot be forgotten and retained; "
        "remove it from one of them.",
    ),
    "one image": (
        lambda p: [f.unlink() for f in (p / "ours").iterdir() if f.name != "0.png"],
        RUN,
        "both sets need at least two images: one to train on and one to validate with; so does each request. With "
        "--validation 0, one is enough.",
    ),
    "no classes": (
        nothing,
        RUN.replace(IMAGES, " --data-dir {place}/ours --forget-classes cat"),
        "the folder {place}/ours has no sub-folders: a folder of classes has one for each.",
    ),
    "no such class": (
        nothing,
        RUN.replace(IMAGES, " --data-dir {place} --forget-classes cat")
        .replace("{place}/out", "{place}/../out")
        .replace("--model {place}/checkpoint", "--model {place}/checkpoint"),
        "{place} has no class cat; it has checkpoint, ours, run, theirs.",
    ),
    "no such data set": (
        nothing,
        RUN.replace(IMAGES, " --dataset {place}/nowhere --forget-classes cat"),
        "there is no folder {place}/nowhere.",
    ),
    "a file for a data set": (
        nothing,
        RUN.replace(IMAGES, " --dataset {place}/ours/0.png --forget-classes cat"),
        "{place}/ours/0.png is a file; give the folder that holds the data set.",
    ),
    "a data set that runs code": (
        text("rows/rows.py", "import datasets"),
        RUN.replace(IMAGES, " --dataset {place}/rows --forget-classes cat"),
        "no split `train` of a data set could be opened from {place}/rows: it has a loading script, which the library "
        "datasets does not run any more: give a folder of images with --data-dir, or have the data set saved with "
        "save_to_disk.",
    ),
    "a data set without images": (
        text("rows/rows.csv", "name,label\na,1\n"),
        RUN.replace(IMAGES, " --dataset {place}/rows --forget-classes 1"),
        "no column is of type Image: name one with --image-column (from Python, image_column).",
    ),
    "half of a data set": (
        text("rows/dataset_dict.json", "{"),
        RUN.replace(IMAGES, " --dataset {place}/rows --forget-classes 1"),
        "no split `train` of a data set could be opened from {place}/rows: its JSON files are not what save_to_disk …",
    ),
    "films for images": (
        text("films/a.mp4", "film"),
        RUN.replace("ours", "films"),
        "the folder {place}/films holds no image (nor do the folders in it); it holds .mp4 (1).",
    ),
    "no such run": (nothing, "report {place}/nowhere", "there is no run folder at {place}/nowhere."),
    "half of metrics.json": (
        text("run/metrics.json", "{"),
        "report {place}/run",
        "{place}/run cannot be read as a run: JSONDecodeError: …",
    ),
    "metrics.json of another kind": (
        text("run/metrics.json", "[]"),
        "report {place}/run",
        "{place}/run cannot be read as a run: ValueError: metrics.json is not a JSON object.",
    ),
    "metrics.json with nothing in it": (
        text("run/metrics.json", "{}"),
        "report {place}/run",
        "{place}/run cannot be read as a run: ValueError: metrics.json has no valid f1_original: None.",
    ),
    "words for a number in metrics.json": (
        entry("run/metrics.json", "f1_star", "x"),
        "report {place}/run",
        "{place}/run cannot be read as a run: ValueError: metrics.json has no valid f1_star: 'x'.",
    ),
    "pickled samples": (pickled_pictures, "report {place}/run", "{place}/run cannot be read as a run: ValueError: …"),
    "half of the samples": (
        cut("run/samples.npz"),
        "report {place}/run",
        "{place}/run cannot be read as a run: BadZipFile: File is not a zip file.",
    ),
    "samples of nothing": (
        lambda p: np.savez(p / "run" / "samples.npz", a=np.zeros(3)),
        "report {place}/run",
        "{place}/run cannot be read as a run: ValueError: samples.npz has no valid arrays `original` and `is_forget`.",
    ),
    "samples of another shape": (
        lambda p: np.savez(p / "run" / "samples.npz", is_forget=np.array([True]), original=np.zeros(3)),
        "report {place}/run",
        "{place}/run cannot be read as a run: ValueError: samples.npz has no valid arrays `original` and `is_forget`.",
    ),
    "a point that is a path": (
        column("run/front.csv", "least-forgotten", "../../etc"),
        "report {place}/run",
        "{place}/run/front.csv cannot be read as a Pareto front: '../../etc' is not a point name.",
    ),
    "a point that is the folder above": (
        column("run/front.csv", "least-forgotten", ".."),
        "evaluate {place}/run --extractor mnist-cnn",
        "{place}/run/front.csv cannot be read as a Pareto front: '..' is not a point name.",
    ),
    "a column that is missing from front.csv": (
        column("run/front.csv", "name", "nome"),
        "report {place}/run",
        "{place}/run/front.csv cannot be read as a Pareto front: there is no column 'name'.",
    ),
    "words for a number in front.csv": (
        column("run/front.csv", "least-forgotten,least-forgotten", "least-forgotten,least-forgotten,x"),
        "report {place}/run",
        "{place}/run/front.csv cannot be read as a Pareto front: could not convert string to float: 'x'.",
    ),
    "an empty front": (
        text("run/front.csv", ""),
        "report {place}/run",
        "{place}/run is not a finished run: its front.csv lists no model.",
    ),
    "a history without its columns": (
        text("run/history.csv", "point,step\na,1\n"),
        "report {place}/run",
        "{place}/run cannot be read as a run: KeyError: 'f1'.",
    ),
    "a history that is no text": (
        lambda p: (p / "run" / "history.csv").write_bytes(b"\xff\xfe\x00"),
        "report {place}/run",
        "{place}/run cannot be read as a run: UnicodeDecodeError: …",
    ),
    "unknown sources": (
        text("run/sources.json", '{"data": 3, "wrong": 1}'),
        "evaluate {place}/run --extractor mnist-cnn",
        "{place}/run does not name its images and its model: sources.json, which `unlearn-ext sweep` writes, cannot "
        "be read. From Python, pass the model and the images to unlearn_ext.metrics.evaluate.",
    ),
    "a number for a task in sources.json": (
        text("run/sources.json", '{"task": 3}'),
        "evaluate {place}/run --extractor mnist-cnn",
        "{place}/run does not name its images and its model: sources.json, which `unlearn-ext sweep` writes, cannot "
        "be read. From Python, pass the model and the images to unlearn_ext.metrics.evaluate.",
    ),
    "half of an experiment's settings": (
        text("out/reproduction.json", "{"),
        "reproduce --quick --out {place}/out",
        "{place}/out contains no experiment: its reproduction.json cannot be read: …",
    ),
}
VALUES = {
    "no such family": (
        nothing,
        RUN + " --family gan",
        "there is no model family `gan`; known: vqgan, autoencoder, mae, diffusion, mage, latent-diffusion.",
    ),
    "lr that is no number": (nothing, RUN + " --lr nan", "lr is nan; it must be a finite number, 0 or more."),
    "lr below 0": (nothing, RUN + " --lr -1", "lr is -1.0; it must be a finite number, 0 or more."),
    "ε that is no number": (nothing, RUN.replace("0.5 ", "nan "), "Invalid value for '--epsilon': …"),
    "ε that is infinite": (
        nothing,
        RUN.replace("0.5 ", "inf "),
        "Invalid value for '--epsilon': 'inf' is no ε: give a number of 0 or more, the f1 to reach, or a share of the "
        "unmodified model's f1 with a percent sign, such as 12%.",
    ),
    "ε below 0": (nothing, RUN.replace("0.5 ", "-0.1 "), "Invalid value for '--epsilon': …"),
    "a negative share": (nothing, RUN.replace("0.5 ", "-5% "), "Invalid value for '--epsilon': …"),
    "two ε for one request": (
        nothing,
        RUN.replace("0.5 ", "0.5 --epsilon 0.6 "),
        "Invalid value: --epsilon is given twice for the request forget.",
    ),
    "an ε for no request": (
        nothing,
        RUN.replace("0.5 ", "ana=0.5 "),
        "Invalid value: --epsilon ana=0.5: there is no request ana; there is forget.",
    ),
    "two requests without names": (
        nothing,
        RUN + " --forget {place}/theirs",
        "Invalid value: several requests need names: give --forget NAME=DIR for each.",
    ),
    "a request without ε": (
        nothing,
        RUN.replace("--forget ", "--forget ana=").replace("0.5 ", "ana=0.5 ") + " --forget ben={place}/theirs",
        "Invalid value: the request ben has no ε: give --epsilon ben=VALUE.",
    ),
    "two requests and one ε": (
        nothing,
        RUN.replace("--forget ", "--forget ana=") + " --forget ben={place}/theirs",
        "Invalid value: say for which request --epsilon 0.5 is: --epsilon ana=0.5.",
    ),
    "a name twice": (
        nothing,
        RUN.replace("--forget ", "--forget ana=").replace("0.5 ", "ana=0.5 ") + " --forget ana={place}/theirs",
        "Invalid value: --forget is given twice for the request ana.",
    ),
    "a sweep of two requests": (
        nothing,
        SWEEP.replace("--forget ", "--forget ana=") + " --forget ben={place}/theirs",
        "Invalid value: a front has one ε, so `sweep` takes one request: use `run`, with an ε for each request.",
    ),
    "a run after a folder": (nothing, RUN + " --after {place}/ours", "{place}/ours is not a finished run: …"),
    "everything held out": (
        nothing,
        RUN + " --validation 1",
        "validation is 1.0; it is the fraction of the images that is held out, 0 or more and below 1.",
    ),
    "memory that is no number": (nothing, RUN + " --memory nan", "Invalid value for '--memory': …"),
    "seed below 0": (nothing, RUN + " --seed -1", "seed is -1; it must be a whole number, 0 or more and below 2**63."),
    "seed too large": (
        nothing,
        RUN + " --seed 99999999999999999999999",
        "seed is 99999999999999999999999; it must be a whole number, 0 or more and below 2**63.",
    ),
    "too large a hole": (
        nothing,
        RUN + " --task center-crop:2",
        "center-crop needs a fraction in (0, 1], as in center-crop:0.5, not 2.",
    ),
    "no such task": (
        nothing,
        RUN + " --task blur",
        "there is no task `blur`; known: center-crop:0.5, outpaint:0.5, random-mask:0.75, reconstruct.",
    ),
    "a task without its number": (
        nothing,
        RUN + " --task center-crop:x",
        "center-crop needs numbers after the colon, as in center-crop:0.5, not `center-crop:x`.",
    ),
    "no such precision": (
        nothing,
        RUN + " --precision int8",
        "there is no precision `int8`; known: float32, bfloat16, float16.",
    ),
    "no such augmentation": (
        nothing,
        RUN + " --augment rotate",
        "there is no augmentation `rotate`; known: flip, shift.",
    ),
    "no such device": (nothing, RUN + " --device abacus", "the device abacus cannot be used here: …"),
    "no such label": (
        nothing,
        SMALL + "--forget-classes 11",
        "forget at least one and at most nine of the classes 0 to 9 of mnist, not [11].",
    ),
    "all labels": (
        nothing,
        SMALL + "--forget-classes 0,1,2,3,4,5,6,7,8,9",
        "forget at least one and at most nine of the classes 0 to 9 of mnist, not [0, 1, 2, 3, 4, 5, 6, 7, 8, 9].",
    ),
    "no such built-in images": (
        nothing,
        SMALL + "--data cifar",
        "there is no built-in data set `cifar`; choose one of mnist, fashion-mnist.",
    ),
    "ε in words": (nothing, RUN.replace("0.5 ", "half "), "Invalid value for '--epsilon': …"),
    "no steps": (nothing, RUN + " --steps 0", "Invalid value for '--steps': …"),
    "one of two folders": (
        nothing,
        RUN.replace(" --retain {place}/theirs", ""),
        "Invalid value: your own images need two folders: give both --forget and --retain.",
    ),
    "labels in words": (
        nothing,
        SMALL + "--forget-classes cat",
        "Invalid value: for built-in images --forget-classes must be numbers separated by commas, such as 3,8, not "
        "cat.",
    ),
    "no minibatch": (nothing, RUN + " --batch-size 0", "Invalid value for '--batch-size': …"),
    "two sources of images": (
        nothing,
        RUN + " --data mnist",
        "Invalid value: give one of --data, --data-dir, --dataset, or --forget and --retain.",
    ),
    "own images without a model": (
        nothing,
        RUN.replace(" --model {place}/checkpoint", ""),
        "Invalid value: your own images need --model, the checkpoint to unlearn.",
    ),
    "no points": (nothing, SWEEP.replace("--points 1", "--points 0"), "Invalid value for '--points': …"),
    "no such extractor": (
        nothing,
        "evaluate {place}/run --extractor eye",
        "there is no feature extractor `eye`; known: efficientnet-lite0, mnist-cnn, fashion-mnist-cnn, "
        "inception-v3[:FILE], clip:FOLDER_OR_ID.",
    ),
    "no such family to compare": (
        nothing,
        "reproduce --family gan --out {place}/out",
        "family gan is not compared; choose from: vqgan, autoencoder, mae, diffusion.",
    ),
}
STATES = {
    "a file for a folder of runs": (
        text("out", "x"),
        RUN,
        "{place}/out cannot be written: File exists; choose another folder and repeat the command, with --resume to "
        "continue a run.",
    ),
    "runs among images": (
        nothing,
        RUN.replace("{place}/out", "{place}/ours/out"),
        "the output folder {place}/ours/out and the input {place}/ours are the same folder or one contains the other: "
        "choose another --out.",
    ),
    "runs in the checkpoint": (
        nothing,
        RUN.replace("{place}/out", "{place}/checkpoint"),
        "the output folder {place}/checkpoint and the input {place}/checkpoint are the same folder or one contains the "
        "other: choose another --out.",
    ),
    "the checkpoint among runs": (
        nothing,
        RUN.replace("{place}/out", "{place}"),
        "the output folder {place} and the input {place}/checkpoint are the same folder or one contains the other: "
        "choose another --out.",
    ),
    "a journal that is none": (
        text("out/.run.journal", "x"),
        RUN,
        "{place}/out/.run.journal is not the journal of a run …",
    ),
    "a sweep's journal that is none": (
        text("out/.front.csv.journal", "x"),
        SWEEP,
        "{place}/out/.front.csv.journal is not the journal of a run …",
    ),
    "somebody else's front.csv": (
        text("out/front.csv", "somebody's\n1\n"),
        SWEEP,
        "{place}/out contains front.csv, which no run wrote and this run would replace: move it away or choose another "
        "folder.",
    ),
    "no run in a folder": (
        nothing,
        "report {place}/checkpoint",
        "{place}/checkpoint is not a finished run: it contains no front.csv.",
    ),
    "a run without its sources": (
        nothing,
        "evaluate {place}/run",
        "{place}/run does not name its images and its model: sources.json, which `unlearn-ext sweep` writes, cannot "
        "be read. From Python, pass the model and the images to unlearn_ext.metrics.evaluate.",
    ),
}


@pytest.mark.parametrize(("spoil", "command", "sentence"), _cases(FILES, VALUES, STATES))
def test_a_command_says_what_is_wrong(place: Path, spoil: Callable[[Path], Any], command: str, sentence: str) -> None:
    spoil(place)
    code, last = said(place, command)
    assert code == (2 if sentence.startswith("Invalid value") else 1)
    compare(last.removeprefix("Error: "), sentence.format(place=place))


def compare(said: str, wanted: str) -> None:
    if wanted.endswith(" …"):
        assert said.startswith(wanted.removesuffix(" …"))
    else:
        assert said == wanted


PIXELS = torch.rand(2, 12, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def unlearned(**changed: Any) -> None:
    """Call ``unlearn`` on a tiny model, with some arguments changed."""
    given = {"forget": PIXELS[0] / 2, "retain": PIXELS[1], "task": CenterCrop(0.5), "epsilon": 0.5}
    ux.unlearn(**{"model": tiny.model("vqgan"), "settings": Settings(steps=1, batch_size=8)} | given | changed)


def swept(**changed: Any) -> None:
    """Call ``sweep`` on a tiny model, with some arguments changed."""
    given = {"task": CenterCrop(0.5), "points": 1, "settings": Settings(steps=1, batch_size=8)} | changed
    ux.sweep(tiny.model("vqgan"), PIXELS[0] / 2, PIXELS[1], **given)


def half() -> Any:
    model = tiny.model("vqgan")
    model.module.half()
    return model


# From Python: the call and the message.
SHAPES = {
    "no batch": (lambda: unlearned(forget=PIXELS[0, :, 0]),
                 "the forget images have the shape [12, 8, 8]; it must be [N, C, H, W]."),
    "no images": (lambda: unlearned(retain=PIXELS[1, :0]),
                  "there are no retain images: their shape is [0, 1, 8, 8]."),
    "colours": (lambda: unlearned(forget=PIXELS[0].expand(12, 3, 8, 8)),
                "the model takes images of 1 channels; the forget images have 3."),
    "nothing held out": (lambda: swept(held_out=(PIXELS[0, :0], PIXELS[1])),
                         "there are no forget validation images: their shape is [0, 1, 8, 8]."),
    "another side": (lambda: unlearned(model=tiny.model("mae"), forget=torch.zeros(4, 1, 16, 16)),
                     "the model takes images of 8x8 pixels, not 16x16."),
    "means of three channels": (lambda: type(tiny.model("mae"))(tiny.vitmae(), mean=(0.5, 0.5, 0.5)),
                                "mean and standard deviation need 1 numbers, one per channel of the model, and "
                                "standard deviations must be above 0."),
}  # fmt: skip
DTYPES = {
    "whole numbers": (lambda: unlearned(forget=torch.zeros(4, 1, 8, 8, dtype=torch.int64)),
                      "the forget images are int64; give uint8, or float32 in [-1, 1]."),
    "float64": (lambda: unlearned(retain=PIXELS[1].double()),
                "the retain images are float64; give uint8, or float32 in [-1, 1]."),
    "complex": (lambda: unlearned(retain=PIXELS[1] + 0j),
                "the retain images are complex64; give uint8, or float32 in [-1, 1]."),
    "an array": (lambda: unlearned(forget=PIXELS[0].numpy()),
                 "the forget images are a ndarray; give a tensor [N, C, H, W]."),
    "0 to 255": (lambda: unlearned(forget=torch.full((4, 1, 8, 8), 255.0)),
                 "the forget images range from 255 to 255; float images must be in [-1, 1]."),
    "NaN": (lambda: unlearned(forget=torch.full((4, 1, 8, 8), math.nan)),
            "the forget images range from nan to nan; float images must be in [-1, 1]."),
    "weights of half precision": (lambda: unlearned(model=half()),
                                  "the model's weights are float16; make them float32 (module.float()), and choose "
                                  "the precision of the computations in the settings."),
    "a module": (lambda: unlearned(model=tiny.vqmodel()),
                 "the model is a VQModel; wrap it in the class of its family in unlearn_ext.models."),
    "a task in words": (lambda: unlearned(task="center-crop:0.5"),
                        "the task is 'center-crop:0.5'; give one of unlearn_ext.tasks, such as CenterCrop(0.5)."),
    "ε in words": (
        lambda: unlearned(epsilon="0.3"),
        "ε is '0.3'; it must be a finite number, the f1 to reach, or a share of the unmodified model's f1, such as "
        '"12%".',
    ),
    "ε that is no number": (lambda: swept(epsilons=[0.3, math.nan]),
                            "ε is nan; it must be a finite number, the f1 to reach, or a share of the unmodified "
                            'model\'s f1, such as "12%".'),
    "steps and a half": (lambda: Settings(steps=1.5), "steps is 1.5; it must be a whole number, 1 or more."),
    "a rate of 2": (lambda: Settings(rate=2.0), "rate is 2.0; it must be a number above 0, 1 at most."),
    "less than no tolerance": (lambda: Settings(tolerance=-1.0), "tolerance is -1.0; it must be a number, 0 or more."),
    "a radius without end": (lambda: Settings(sharpness=math.inf),
                             "sharpness is inf; it must be a finite number, 0 or more."),
    "less than no points": (lambda: swept(points=-1), "points is -1; it must be 0 or more."),
}  # fmt: skip


@pytest.mark.parametrize(("call", "sentence"), _cases(SHAPES, DTYPES))
def test_a_call_says_what_is_wrong(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        call()
    compare(str(raised.value), sentence)
