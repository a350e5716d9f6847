"""The commands that train or evaluate models, on a tiny model and tiny images."""

from __future__ import annotations

import csv
import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call
from torch.nn import functional

from unlearn_ext import data, demo, models, pretrain
from unlearn_ext.models import diffusion
from unlearn_ext.unlearning import journal, objectives
from unlearn_ext.unlearning.settings import Settings

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a checkpoint, images to forget, images to retain, and an empty folder."""
    folder = tmp_path_factory.mktemp("work")
    diffusers.VQModel(
        in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4, latent_channels=2,
        num_vq_embeddings=8, sample_size=8, mid_block_add_attention=False,
    ).save_pretrained(folder / "checkpoint")  # fmt: skip
    rng = np.random.default_rng(0)
    for side, brightest in (("ours", 120), ("theirs", 256)):
        (folder / side).mkdir()
        for index in range(40):
            pixels = rng.integers(0, brightest, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / side / f"{index}.png")
    (folder / "empty").mkdir()
    return folder


def options(place: Path, retain: str = "theirs") -> list[str]:
    return ["--model", str(place / "checkpoint"), "--forget", str(place / "ours"), "--retain", str(place / retain)]


def test_sweep_writes_a_run_and_its_report(place: Path, tmp_path: Path) -> None:
    code, said = call("sweep", *options(place), "--out", str(tmp_path / "run"), "--points", "2", "--steps", "3")
    assert code == 0, said
    assert "most-forgotten" in said
    assert "f1 reached" in said
    assert (tmp_path / "run" / "report.html").is_file()
    assert len(list((tmp_path / "run").glob("*/config.json"))) == 7


def test_sharpness_is_recorded_and_part_of_what_a_run_is(place: Path, tmp_path: Path) -> None:
    command = ["sweep", *options(place), "--out", str(tmp_path), "--points", "1", "--steps", "3"]
    code, said = call(*command, "--sharpness", "0.05")
    assert code == 0, said
    assert json.loads((tmp_path / "metrics.json").read_text())["settings"]["sharpness"] == 0.05
    assert "sharpness" in (tmp_path / "report.html").read_text()
    code, said = call(*command, "--sharpness", "0.1", "--resume")
    assert code == 1
    assert "that differs in: sharpness;" in said


def test_a_tilde_in_out_is_the_home_folder(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    code, said = call("run", *options(place), "--out=~/run", "--epsilon", "0", "--steps", "1")
    assert code == 0, said
    assert (tmp_path / "run").is_dir()
    code, said = call("report", "~/nothing")
    assert code == 1
    assert str(tmp_path / "nothing") in said


def test_the_dial_adds_a_model_to_a_run_and_its_report(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, said = call("sweep", *options(place), "--out", str(run), "--points", "1", "--steps", "5")
    assert code == 0, said
    assert (run / said.partition("Recommended: ")[2].split()[0] / "config.json").is_file()
    code, said = call("dial", str(run), "--epsilon", "0.4567", "--epsilon", "0.35")
    assert code == 0, said
    assert "0.4567" in said
    for name in ("eps-0.4567", "eps-0.3500"):
        assert (run / name / "config.json").is_file()
        assert name in (run / "report.html").read_text(encoding="utf-8")
    with (run / "hole.csv").open(newline="", encoding="utf-8") as file:
        measured = [row["point"] for row in csv.DictReader(file)]
    assert sorted(measured) == sorted(["unmodified", *(path.parent.name for path in run.glob("*/config.json"))])
    code, said = call("dial", str(tmp_path / "nothing"), "--epsilon", "0.3")
    assert code == 1
    assert "there is no run folder at" in said


class Pixels:
    """An extractor that needs no weights."""

    name, size = "pixels", 8

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :4]

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        return features

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images]


def test_a_run_is_judged_from_anywhere(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchmetrics")
    monkeypatch.setattr("unlearn_ext.metrics.load_extractor", lambda name: Pixels())
    monkeypatch.chdir(place)
    run, sources = tmp_path / "run", ("--model", "checkpoint", "--forget", "ours", "--retain", "theirs")
    code, said = call("sweep", *sources, "--out", str(run), "--points", "1", "--steps", "3")
    assert code == 0, said
    monkeypatch.chdir(tmp_path)
    code, said = call("evaluate", str(run), "--extractor", "pixels")
    assert code == 0, said
    for words in (
        "by pixels",
        "real images",
        "unmodified",
        "most-forgotten",
        "validation: 8 to forget, 8 to retain",
        "fid",
        "psnr",
    ):
        assert words in said
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    assert float(rows[2]["psnr"]) < float(rows[0]["psnr"]) == float("inf")
    code, said = call("evaluate", str(run), "--extractor", "pixels", "--part", "training", "--images", "5")
    assert code == 0, said
    assert "training: 5 to forget, 5 to retain" in said
    assert "FID, KID and IS are left out" in said


def test_a_run_that_does_not_say_of_what_it_is_is_named(run_folder: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    code, said = call("evaluate", str(run_folder))
    assert code == 1
    assert "does not name its images and its model" in said


def test_run_keeps_one_model(place: Path, tmp_path: Path) -> None:
    code, said = call("run", "--epsilon", "0.5", *options(place), "--out", str(tmp_path), "--steps", "3")
    assert code == 0, said
    assert "validation" in said
    assert diffusers.VQModel.from_pretrained(tmp_path / "eps-0.5000", low_cpu_mem_usage=False)


def test_an_epsilon_outside_is_one_warning(place: Path, tmp_path: Path) -> None:
    code, said = call("run", "--epsilon", "99", *options(place), "--out", str(tmp_path), "--steps", "1")
    assert code == 0
    assert said.count("ε = 99 is above") == 1
    assert "UserWarning" not in said


@pytest.mark.parametrize(("retain", "sentence"), [("empty", "holds no image"), ("ours", "in the retain set")])
def test_images_that_cannot_be_used_are_one_sentence(place: Path, tmp_path: Path, retain: str, sentence: str) -> None:
    code, said = call("sweep", *options(place, retain), "--out", str(tmp_path))
    assert code == 1
    assert said.startswith("Error: ")
    assert sentence in said
    assert "Traceback" not in said


def test_classes_are_named_by_their_folders(place: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("cat", "dog"):
        (pictures / name).symlink_to(place / ("ours" if name == "cat" else "theirs"))
    out = tmp_path / "run"
    own = ["--model", str(place / "checkpoint"), "--data-dir", str(pictures), "--out", str(out), "--steps", "1"]
    code, said = call("run", "--epsilon", "0.5", *own, "--forget-classes", "cat")
    assert code == 0, said
    code, said = call("run", "--epsilon", "0.5", *own, "--forget-classes", "cot", "--out", str(tmp_path / "other"))
    assert code == 1
    assert "has no class cot; it has cat, dog" in said


def test_broken_images_stop_a_run_unless_they_may_be_skipped(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "theirs", tmp_path / "theirs")
    (tmp_path / "theirs" / "broken.png").write_bytes(b"no picture")
    arguments = ["run", "--epsilon", "0.5", *options(place), "--out", str(tmp_path / "run"), "--steps", "1"]
    arguments[arguments.index("--retain") + 1] = str(tmp_path / "theirs")
    code, said = call(*arguments)
    assert code == 1
    assert "broken.png: its content" in said
    assert not (tmp_path / "run").exists()
    code, said = call(*arguments, "--skip-bad")
    assert code == 0
    assert "1 image cannot be read, left out:" in said


def test_a_model_for_other_images_is_one_sentence(tmp_path: Path) -> None:
    diffusers.VQModel(in_channels=3, block_out_channels=(8,), norm_num_groups=4, sample_size=8).save_pretrained(
        tmp_path
    )
    code, said = call("run", "--epsilon", "0.5", "--model", str(tmp_path), "--data", "mnist")
    assert code == 1
    assert said == "Error: the model takes images of 3 channels; those of mnist have 1."


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make small models train for two steps on a few pictures, with an empty cache; return the cache folder."""
    pictures = torch.rand(24, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sizes = {size: functional.avg_pool2d(pictures, 32 // size) for size in (16, 32)}
    few = {size: data.divide("mnist", images[:12] / 2, images[12:]) for size, images in sizes.items()}
    monkeypatch.setattr(data, "load", lambda *_, size, **__: few[size])
    monkeypatch.setattr(objectives, "NOISE_IMAGES", 16)
    monkeypatch.setattr(diffusion, "SAMPLING_STEPS", 2)
    for family, recipe in pretrain.RECIPES.items():
        short = functools.partial(recipe, steps=2)
        short.size = recipe.size
        monkeypatch.setitem(pretrain.RECIPES, family, short)
    monkeypatch.setenv("UNLEARN_EXT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_family_without_a_small_model_is_one_sentence(tmp_path: Path) -> None:
    for command in ("pretrain", "demo", "run"):
        rest = ["--epsilon", "0.1"] if command == "run" else []
        code, said = call(command, "--family", "mage", "--out", str(tmp_path), *rest)
        assert code == 1
        assert said.startswith("Error: family mage has no small model, so it needs --model, a checkpoint; families")


@pytest.mark.parametrize("family", pretrain.RECIPES)
def test_without_a_checkpoint_every_family_has_a_small_model(quick: Path, tmp_path: Path, family: str) -> None:
    code, said = call("pretrain", "--family", family, "--forget-classes", "7")
    assert code == 0, said
    (folder,) = quick.iterdir()
    assert said.endswith(f"Model: {folder}")
    options = ["--epsilon", "0", "--family", family, "--forget-classes", "7", "--steps", "1"]
    tables = []
    for named in ([], ["--model", str(folder)]):
        code, said = call("run", *options, *named, "--out", str(tmp_path / f"run-{len(tables)}"))
        assert code == 0, said
        tables.append(said[said.index("ε = 0 asked") : said.index("Report: ")])
    assert tables[0] == tables[1]
    assert list(quick.iterdir()) == [folder]


@pytest.mark.parametrize(
    "family", ["vqgan", *(pytest.param(f, marks=pytest.mark.slow) for f in pretrain.RECIPES if f != "vqgan")]
)
def test_the_demo_shows_every_family(quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    monkeypatch.setitem(demo.CHOICES, family, demo.Choice(Settings(lr=1e-3, steps=12), points=1, share=0.9))
    code, said = call("demo", "--family", family, "--out", str(tmp_path / "run"))
    assert code == 0, said
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["family"] == family
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_folder_that_is_no_model_is_one_sentence(place: Path, tmp_path: Path) -> None:
    code, said = call("run", "--epsilon", "0.5", *options(place), "--model", str(place / "empty"))
    assert code == 1
    assert "Traceback" not in said


def test_every_flag_of_the_machine_at_once(place: Path, tmp_path: Path) -> None:
    flags = ["--device", "cpu", "--precision", "bfloat16", "--channels-last", "--checkpointing", "--memory", "0"]
    training = ["--steps", "2", "--batch-size", "4", "--lr", "1e-3", "--augment", "flip", "--augment", "shift"]
    code, said = call("run", "--epsilon", "0.5", *options(place), "--out", str(tmp_path), *flags, *training)
    assert code == 0, said
    assert (tmp_path / "eps-0.5000" / "config.json").is_file()


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--device", "abacus", "Error: the device abacus cannot be used here: "),
        ("--device", "cuda:99", "Error: the device cuda:99 cannot be used here: "),
        ("--precision", "int8", "Error: there is no precision `int8`; known: float32, bfloat16, float16."),
        ("--augment", "rotate", "Error: there is no augmentation `rotate`; known: flip, shift."),
    ],
)
def test_what_the_machine_cannot_do_is_one_sentence(
    place: Path, tmp_path: Path, option: str, value: str, sentence: str
) -> None:
    code, said = call("run", "--epsilon", "0.5", *options(place), "--out", str(tmp_path), option, value)
    assert code == 1
    assert said.startswith(sentence)
    assert "Traceback" not in said


@pytest.mark.parametrize("typed", ["salt, pepper,caf\u00e9", "caf\u00e9 , salt, pepper", "salt, pepper,cafe\u0301"])
def test_classes_as_they_are_typed(place: Path, tmp_path: Path, typed: str) -> None:
    """One class has a comma in its name; another has a decomposed accent."""
    theirs = sorted((place / "theirs").iterdir())
    images = {"salt, pepper": (place / "ours").iterdir(), "cafe\u0301": theirs[:20], "dog": theirs[20:]}
    for name, paths in images.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for path in paths:
            shutil.copy(path, tmp_path / "photos" / name)
    code, said = call(
        "run", "--epsilon", "0.5", "--model", str(place / "checkpoint"), "--steps", "1", "--out", str(tmp_path / "run"),
        "--data-dir", str(tmp_path / "photos"), "--forget-classes", typed,
    )  # fmt: skip
    assert code == 0, said


def test_a_data_set_with_a_column_of_images(place: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    paths = [str(path) for side in ("ours", "theirs") for path in sorted((place / side).iterdir())]
    columns = {"picture": paths, "label": [Path(path).parent.name for path in paths]}
    datasets.Dataset.from_dict(columns).cast_column("picture", datasets.Image()).save_to_disk(tmp_path / "set")
    arguments = ["run", "--epsilon", "0.5", "--model", str(place / "checkpoint"), "--steps", "1"]
    arguments += ["--out", str(tmp_path / "run"), "--dataset", str(tmp_path / "set")]
    code, said = call(*arguments, "--forget-classes", "ours")
    assert code == 0, said
    arguments[arguments.index("--out") + 1] = str(tmp_path / "other")
    code, said = call(*arguments, "--forget-classes", "ours", "--image-column", "photo")
    assert (code, said) == (1, "Error: there is no column `photo`; there are picture, label.")
    code, said = call(*arguments[:-1], str(tmp_path / "nothing"), "--forget-classes", "ours")
    assert code == 1
    assert said == f"Error: there is no folder {tmp_path / 'nothing'}."
    assert call(*arguments)[0] == 2


class Killed(BaseException):
    """Raised to simulate a killed process."""


@pytest.fixture
def killing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Write journals at every step; return a list of one item: the number of steps until the kill, 0 for never."""
    checkpoint, at = journal.Journal.checkpoint, [0]

    def killed(self: journal.Journal, state: object) -> None:
        checkpoint(self, state)
        at[0] -= 1
        if not at[0]:
            raise Killed

    monkeypatch.setattr(journal, "SECONDS", 0.0)
    monkeypatch.setattr(journal.Journal, "checkpoint", killed)
    return at


@pytest.mark.parametrize("command", [["run", "--epsilon", "0.5"], ["sweep", "--points", "1"]])
def test_a_command_goes_on(place: Path, tmp_path: Path, killing: list[int], command: list[str]) -> None:
    arguments = [*command, *options(place), "--steps", "4", "--batch-size", "16", "--out"]
    alone, out = str(tmp_path / "alone"), str(tmp_path / "killed")
    assert call(*arguments, alone)[0] == 0
    killing[0] = 5
    with pytest.raises(Killed):
        call(*arguments, out)
    code, said = call(*arguments, out)
    assert code == 1
    assert "contains an unfinished run: give --resume" in said
    assert call(*arguments, out, "--resume")[0] == 0
    weights = sorted(path.relative_to(alone) for path in Path(alone).glob("*/*.safetensors"))
    assert weights
    for path in weights:
        assert (Path(out) / path).read_bytes() == (Path(alone) / path).read_bytes()
    code, said = call(*arguments, out, "--resume")
    assert code == 0
    assert "is finished: nothing is left to do." in said


@pytest.mark.slow
def test_the_demo_goes_on(quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killing: list[int]) -> None:
    monkeypatch.setitem(demo.CHOICES, "vqgan", demo.Choice(Settings(lr=1e-3, steps=12), points=1))
    arguments = ["demo", "--out", str(tmp_path / "run"), "--resume"]
    killing[0] = 4
    with pytest.raises(Killed):
        call(*arguments)
    code, said = call(*arguments)
    assert code == 0, said
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_run_at_another_epsilon_needs_another_folder(place: Path, tmp_path: Path) -> None:
    arguments = [*options(place), "--out", str(tmp_path), "--steps", "2", "--resume"]
    code, said = call("run", "--epsilon", "0.5", *arguments)
    assert code == 0, said
    code, said = call("run", "--epsilon", "0.6", *arguments)
    assert code == 1
    assert "that differs in: epsilon;" in said
    code, said = call("run", "--epsilon", "0.5", *arguments)
    assert code == 0, said
    assert f"the run in {tmp_path} is finished" in said


def content(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder, except lock files, which have no content to compare."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


FRONT = "{out}/front.csv is the result of a finished run: choose another folder, give --resume to show it again if the "
FRONT += "command is the same (in Python resume=True), or --force to replace it (force=True)."
OTHER = "{out} contains the output of `unlearn-ext {command}`, and each command needs a separate folder: choose "
OTHER += "another folder."
DIFFERS = "{out} contains a finished run that differs in: {names}; repeat the command that started it, choose another "
DIFFERS += "folder, or give --force to replace it (in Python force=True)."
SWEEP, RUN = ["sweep", "--points", "1", "--steps", "2"], ["run", "--epsilon", "0.5", "--steps", "2"]


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every loading or training of models and data fail."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("too late")

    for name in ("models.load", "data.load", "data.load_folders", "pretrain.pretrained"):
        monkeypatch.setattr(f"unlearn_ext.{name}", fail)


# The earlier command in the folder, the command now, and its message.
REFUSED = {
    "the same sweep": (SWEEP, SWEEP, FRONT),
    "a sweep of other points": (SWEEP, [*SWEEP, "--points", "3"], FRONT),
    "a sweep of another family": (SWEEP, [*SWEEP, "--family", "mae"], FRONT),
    "a sweep that differs by its seed": (
        SWEEP, [*SWEEP, "--seed", "3", "--lr", "0.1", "--resume"],
        DIFFERS.replace("{names}", "lr, seed"),
    ),
    "a sweep of more points": (
        SWEEP, [*SWEEP, "--points", "2", "--resume"],
        DIFFERS.replace("{names}", "points"),
    ),
    "a demo": (SWEEP, ["demo"], FRONT),
    "a demo of another family": (
        SWEEP, ["demo", "--family", "mae", "--resume"],
        DIFFERS.replace("{names}", "family, lr, steps, points"),
    ),
    "a model": (SWEEP, RUN, OTHER.replace("{command}", "sweep")),
    "a model by force": (SWEEP, [*RUN, "--force"], OTHER.replace("{command}", "sweep")),
    "a comparison": (SWEEP, ["reproduce", "--quick"], OTHER.replace("{command}", "sweep")),
    "the same model": (RUN, RUN, FRONT),
    "a model of other settings": (RUN, [*RUN, "--batch-size", "4"], FRONT),
    "a model at nearly the same ε": (
        RUN, ["run", "--epsilon", "0.50001", *RUN[3:], "--resume"],
        DIFFERS.replace("{names}", "epsilon"),
    ),
    "a sweep beside models": (RUN, SWEEP, OTHER.replace("{command}", "run")),
    "a sweep beside models by force": (RUN, [*SWEEP, "--force"], OTHER.replace("{command}", "run")),
    "a demo beside models": (RUN, ["demo", "--resume"], OTHER.replace("{command}", "run")),
    "a comparison beside models": (RUN, ["reproduce"], OTHER.replace("{command}", "run")),
    "resume and force": (
        RUN, [*RUN, "--resume", "--force"],
        "--resume continues the run in the folder and --force replaces it: give one of them, not both.",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def done(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a folder with a finished `sweep` and one with a finished `run`; tests must not change them."""
    folders = {command[0]: tmp_path_factory.mktemp(command[0]) / "out" for command in (SWEEP, RUN)}
    for command in (SWEEP, RUN):
        assert call(*command, *options(place), "--out", str(folders[command[0]]))[0] == 0
    return folders


@pytest.mark.parametrize(("earlier", "now", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_finished_run_is_refused_before_anything_is_loaded(
    place: Path, done: dict[str, Path], unloaded: None, earlier: list[str], now: list[str], sentence: str
) -> None:
    out = done[earlier[0]]
    before = content(out)
    sources = options(place) if now[0] in ("sweep", "run") else []
    code, said = call(*now, *sources, "--out", str(out))
    assert (code, said) == (1, f"Error: {sentence.format(out=out)}")
    assert content(out) == before


@pytest.mark.parametrize("name", ["eps-0.5000/cat.png", "eps-0.5000"])
@pytest.mark.parametrize("given", [[], ["--force"], ["--resume"]])
def test_somebodys_own_folder_is_refused_before_anything_is_loaded(
    place: Path, tmp_path: Path, unloaded: None, name: str, given: list[str]
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    code, said = call(*RUN, *options(place), "--out", str(tmp_path), *given)
    assert code == 1
    assert f"Error: {tmp_path} contains eps-0.5000, which no run wrote" in said
    assert content(tmp_path) == {name: b"mine"}


@pytest.mark.parametrize("command", [SWEEP, RUN])
def test_force_replaces_a_run(place: Path, done: dict[str, Path], tmp_path: Path, command: list[str]) -> None:
    out = shutil.copytree(done[command[0]], tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    code, said = call(*command, *options(place), "--out", str(out), "--seed", "3", "--force")
    assert code == 0, said
    assert (out / "notes.txt").read_text() == "mine"
    code, said = call(*command, *options(place), "--out", str(out), "--seed", "3", "--resume")
    assert (code, "nothing is left to do" in said) == (0, True)


def test_a_sweep_of_other_classes_is_refused_before_a_small_model_is_trained(
    quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["sweep", "--points", "1", "--steps", "12", "--out", str(tmp_path / "run")]
    assert call(*arguments, "--forget-classes", "7")[0] == 0
    there = list(quick.iterdir())
    generator = torch.Generator().manual_seed(1)
    other = data.divide("mnist", *(torch.rand(2, 12, 1, 32, 32, generator=generator) * 2 - 1))
    monkeypatch.setattr(data, "load", lambda *_, **__: other)
    code, said = call(*arguments, "--forget-classes", "8", "--resume")
    assert code == 1
    assert "contains a finished run that differs in: forget, retain;" in said
    assert list(quick.iterdir()) == there


@pytest.mark.slow
def test_a_second_demo_shows_the_first_again(quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(demo.CHOICES, "vqgan", demo.Choice(Settings(lr=1e-3, steps=12), points=1))
    recipe = (Path(__file__).parents[2] / "Makefile").read_text().split("\ndemo:")[1].split("\n")[1]
    arguments = recipe.split("unlearn-ext ")[1].replace("runs/demo", str(tmp_path / "run")).split()
    for _ in range(2):
        code, said = call(*arguments)
        assert code == 0, said
        assert "Report: " in said
    assert "is finished: nothing is left to do" in said


def test_an_adapter_is_trained_saved_verified_and_exported(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("jsonschema")
    run, out = tmp_path / "run", tmp_path / "model"
    command = ["run", *options(place), "--out", str(run), "--epsilon", "60%", "--steps", "5"]
    code, said = call(*command, "--lora", "2")
    assert code == 0, said
    assert "vqgan: 1,262 parameters to train" in said
    (point,) = (folder for folder in run.glob("eps-*"))
    assert {path.name for path in point.iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}
    assert "the folder <code>unmodified</code>" in (run / "report.html").read_text()
    code, said = call(*command, "--lora", "4", "--resume")
    assert code == 1
    assert "that differs in: lora;" in said
    code, said = call("export", str(run), str(out), "--point", point.name)
    assert code == 0, said
    exported = diffusers.VQModel.from_pretrained(out, low_cpu_mem_usage=False)
    its = models.load("vqgan", point).encoder_parameters()[0]
    assert torch.equal(next(exported.encoder.parameters()), its)
    assert "a low-rank adapter (LoRA) of rank 2, merged" in (out / "README.md").read_text()
    code, said = call("verify", str(run))
    assert code == 0, said
    assert f"model {point.name}: f1 = " in said
    assert "adapters are merged into the weights for this" in said
    assert "although machine and versions are the same" not in said
    shutil.rmtree(run / "unmodified")
    code, said = call("verify", str(run))
    assert "its adapter cannot be used without the folder unmodified" in said
    code, said = call("run", *options(place)[:-2], "--after", str(run), "--lora", "3", "--out", str(tmp_path / "next"),
                      "--epsilon", "50%")  # fmt: skip
    assert code == 2
    assert "--lora is that of" in said
