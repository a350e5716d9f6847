"""Which pictures a run saves."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from unlearn_ext.errors import UserError
from unlearn_ext.tasks import CenterCrop
from unlearn_ext.unlearning.phases import add_points, sweep
from unlearn_ext.unlearning.pictures import CHOICES, allowed, blurred, lower
from unlearn_ext.unlearning.run_folder import read_run
from unlearn_ext.unlearning.settings import Settings

QUICK = Settings(lr=3e-3, steps=6, batch_size=16)


def _samples(side: int = 28) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (6, 3, side, side)
    named = {name: rng.integers(0, 256, shape, dtype=np.uint8) for name in ("original", "corrupted", "model")}
    return {"is_forget": np.arange(6) % 2 == 0, **named}


@pytest.mark.parametrize("shape", [(28, 28), (64, 64), (65, 90), (9, 30), (8, 5)])
def test_at_most_64_colours_are_left(shape: tuple[int, int]) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 3, *shape), dtype=np.uint8)
    small = blurred(pictures)
    assert (small.shape, small.dtype) == (pictures.shape, np.uint8)
    for picture in small:
        assert len(np.unique(picture.reshape(3, -1), axis=1).T) <= 64
    np.testing.assert_array_equal(blurred(small), small)


def test_each_square_has_the_mean_of_its_pixels() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (1, 1, 32, 16), dtype=np.uint8)
    squares = picture.reshape(8, 4, 8, 2).mean((1, 3))
    np.testing.assert_allclose(blurred(picture)[0, 0, ::4, ::2], squares, atol=0.5)


def test_pictures_with_the_same_means_become_the_same() -> None:
    """So nothing else of a picture is left."""
    picture = np.random.default_rng(0).integers(0, 256, (1, 1, 64, 64), dtype=np.uint8)
    mirrored = picture.reshape(8, 8, 8, 8)[:, ::-1, :, ::-1].reshape(picture.shape)
    assert (mirrored != picture).any()
    np.testing.assert_array_equal(blurred(mirrored), blurred(picture))


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_applies_to_every_picture(choice: str) -> None:
    samples = _samples()
    shown = allowed(samples, choice)
    retain = ~samples["is_forget"]
    assert list(shown) == list(samples)
    for name in ("original", "corrupted", "model"):
        to_forget, to_retain = shown[name][shown["is_forget"]], shown[name][~shown["is_forget"]]
        given = samples[name][~retain]
        expected = {"all": given, "blurred": blurred(given)}.get(choice, given[:0])
        np.testing.assert_array_equal(to_forget, expected)
        np.testing.assert_array_equal(to_retain, samples[name][retain] if choice != "none" else given[:0])


def test_the_caller_keeps_their_pictures() -> None:
    samples = _samples()
    allowed(samples, "blurred")
    np.testing.assert_array_equal(samples["original"], _samples()["original"])


def test_choices_are_ordered() -> None:
    assert [lower("blurred", choice) for choice in CHOICES] == ["none", "retain", "blurred", "blurred"]


def test_an_unknown_choice_is_one_sentence(tiny_model, tiny_images) -> None:
    with pytest.raises(UserError, match="no choice of pictures `some`; known: none, retain, blurred, all"):
        sweep(tiny_model, *tiny_images, task=CenterCrop(0.5), pictures="some")


@pytest.fixture(scope="module")
def given(tiny_images):
    """Return arguments of a sweep, with images of 16 pixels: those of 8 have nothing to blur."""
    large = torch.nn.functional.interpolate(torch.cat(tiny_images), scale_factor=2)
    noise = torch.randn(large.shape, generator=torch.Generator().manual_seed(2))
    forget, retain = (large + 0.2 * noise).clamp(-1, 1).chunk(2)
    held_out = forget[40:], retain[40:]
    return {
        "forget": forget[:40], "retain": retain[:40], "held_out": held_out, "task": CenterCrop(0.5), "settings": QUICK,
    }  # fmt: skip


@pytest.mark.parametrize("choice", ["retain", "blurred"])
def test_a_run_saves_what_was_chosen_and_no_more(tmp_path, tiny_model, given, choice) -> None:
    sweep(tiny_model, **given, epsilons=[0.3], pictures=choice, out=tmp_path)
    add_points(tmp_path, tiny_model, **given, epsilons=[0.4])
    run = read_run(tmp_path)
    assert run.pictures == json.loads((tmp_path / "metrics.json").read_text())["pictures"] == choice
    for samples, count in ((run.samples, 6), (run.validation, 3)):
        assert {"original", "corrupted", "unmodified", *(point.name for point in run.points)} < set(samples)
        assert samples["is_forget"].sum() == (count if choice == "blurred" else 0)
        assert (~samples["is_forget"]).sum() == count
        for name, pictures in samples.items():
            if name != "is_forget":
                to_forget, to_retain = pictures[samples["is_forget"]], pictures[~samples["is_forget"]]
                np.testing.assert_array_equal(blurred(to_forget), to_forget)
                assert (blurred(to_retain) != to_retain).any(), name


def test_the_choice_is_part_of_the_run(tmp_path, tiny_model, given) -> None:
    sweep(tiny_model, **given, epsilons=[0.3], pictures="none", out=tmp_path)
    with pytest.raises(UserError, match="differs in: pictures"):
        sweep(tiny_model, **given, epsilons=[0.3], pictures="all", out=tmp_path, resume=True)
