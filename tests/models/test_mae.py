import importlib
import json

import pytest
import tiny
import torch

import unlearn_ext as ux
from unlearn_ext import models
from unlearn_ext.errors import UserError
from unlearn_ext.tasks import CenterCrop, Outpaint, RandomMask, Reconstruct
from unlearn_ext.unlearning.objectives import Objectives
from unlearn_ext.unlearning.settings import Settings

transformers = pytest.importorskip("transformers")
from unlearn_ext.models.mae import MAE  # noqa: E402

GRID, SIDE = 4, 16  # patches of 4 pixels


def vitmae(**options):
    return tiny.vitmae(**{"image_size": SIDE, "patch_size": 4, "num_channels": 3} | options)


@pytest.fixture
def mae():
    """Return a tiny ViTMAE for 16x16 images with random weights."""
    return MAE(vitmae())


@pytest.fixture
def pictures():
    """Return (forget, retain): dark and bright noise, each [24, 3, 16, 16]."""
    noise = 0.3 * torch.randn(2, 24, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return (noise[0] - 0.4).clamp(-1, 1), (noise[1] + 0.4).clamp(-1, 1)


@pytest.mark.parametrize(
    ("task", "patches"),
    [
        (CenterCrop(0.5), 12),
        (CenterCrop(0.4), 12),
        (Outpaint(0.5), 4),
        (RandomMask(0.75, GRID), 4),
        (Reconstruct(), 16),
    ],
)
def test_a_patch_is_visible_if_no_pixel_of_it_is_hidden(mae, pictures, task, patches):
    images, visible = mae.inputs(pictures[0], task)
    assert images is pictures[0]
    assert visible.shape == (24, patches)
    shown = torch.zeros(24, GRID**2, dtype=torch.bool).scatter(1, visible, True).view(-1, 1, GRID, GRID)
    pixels = shown.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert not (pixels & task.mask(pictures[0])).any()


def test_latents_are_those_of_the_class_itself_under_the_same_mask(mae, pictures):
    images, visible = mae.inputs(pictures[0], RandomMask(0.75, GRID))
    latents = mae.encode(images, visible)
    assert mae.module.config.mask_ratio == 0.75, "the configuration was left changed"
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    noise = torch.ones(24, GRID**2).scatter(1, visible, torch.arange(4.0).expand(24, -1) / 8)
    theirs = mae.module.vit((images + 1) / 2 * (1 / std) - mean / std, noise=noise)
    torch.testing.assert_close(latents, theirs.last_hidden_state)
    assert torch.equal(theirs.mask == 0, torch.zeros(24, GRID**2, dtype=torch.bool).scatter(1, visible, True))


def test_what_is_hidden_does_not_reach_the_latents(mae, pictures):
    task = CenterCrop(0.4)
    images, visible = mae.inputs(pictures[0], task)
    other = torch.where(task.mask(images), -images, images)
    assert torch.equal(mae.encode(images, visible), mae.encode(other, visible))


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_visible_patches_are_pasted_into_what_is_decoded(pictures, norm_pix_loss):
    mae, task = MAE(vitmae(norm_pix_loss=norm_pix_loss)), CenterCrop(0.5)
    inputs = mae.inputs(pictures[0], task)
    filled = mae.decode(mae.encode(*inputs), *inputs)
    changed = (filled != pictures[0]).any(1, keepdim=True)
    assert torch.equal(changed, task.mask(pictures[0]).expand_as(changed))
    inputs = mae.inputs(pictures[0], Reconstruct())
    assert (mae.decode(mae.encode(*inputs), *inputs) != pictures[0]).any(1).all()


def test_what_is_decoded_is_what_the_class_predicts(mae, pictures):
    images, visible = mae.inputs(pictures[0], Reconstruct())
    mean, std = (torch.tensor(v)[:, None, None] for v in (mae.mean, mae.std))
    mae.module.config.mask_ratio = 0.0
    noise = torch.arange(GRID**2).expand(24, -1) / GRID**2
    theirs = mae.module.unpatchify(mae.module(((images + 1) / 2 - mean) / std, noise=noise).logits)
    torch.testing.assert_close(mae.decode(mae.encode(images, visible), images, visible), 2 * (theirs * std + mean) - 1)


def test_normalised_patches_are_given_the_mean_and_spread_of_what_is_visible(pictures):
    mae = MAE(vitmae(norm_pix_loss=True))
    inputs = mae.inputs(pictures[0], Reconstruct())
    latents = mae.encode(*inputs)
    predicted = mae.module.unpatchify(mae.module.decoder(latents, torch.arange(GRID**2).expand(24, -1)).logits)
    mean, std = (value[:, None, None, None] for value in (pictures[0].mean((1, 2, 3)), pictures[0].std((1, 2, 3))))
    torch.testing.assert_close(mae.decode(latents, *inputs), predicted * std + mean)


@pytest.mark.parametrize("task", [CenterCrop(0.5), RandomMask(0.75, GRID)], ids=str)
def test_the_noise_target_is_noise_under_the_same_masks(mae, pictures, task):
    objectives = Objectives.freeze(mae, *pictures, task)
    images, visible = objectives.forget.batch(torch.arange(24)).inputs
    with torch.no_grad():
        draws = [mae.encode(torch.randn(images.shape), visible) for _ in range(64)]
    expected = torch.stack(draws).mean(0)
    found = objectives.forget.targets.expand_as(expected)
    spread = (draws[0] - expected).square().mean()
    assert (found - expected).square().mean() < 0.3 * spread
    assert len(objectives.forget.targets) == (1 if isinstance(task, CenterCrop) else 24)
    whole, zero = objectives.evaluate(mae.encode)
    parts = [objectives.f1(mae.encode, batch).item() for batch in objectives.forget.batches(torch.arange(24), 8)]
    assert sum(parts) / 3 == pytest.approx(whole, rel=1e-5)
    assert zero == pytest.approx(0, abs=1e-9)
    held_out = objectives.held_out(pictures[0][:1], pictures[1][:5])
    assert held_out.evaluate(mae.encode)[1] == pytest.approx(0, abs=1e-9)


def test_held_out_images_with_other_masks_have_noise_targets_of_their_own(mae, pictures):
    objectives = Objectives.freeze(mae, pictures[0][:1], pictures[1], RandomMask(0.75, GRID))
    assert len(objectives.forget.targets) == 1
    assert len(objectives.held_out(pictures[0][1:6], pictures[1]).forget.targets) == 5
    assert len(objectives.held_out(pictures[0][:1], pictures[1]).forget.targets) == 1


@pytest.mark.parametrize("task", [CenterCrop(0.5), RandomMask(0.75, GRID)], ids=str)
def test_what_is_unlearned_loads_in_transformers_and_differs_only_in_the_encoder(mae, pictures, task, tmp_path):
    settings = Settings(steps=40, batch_size=24, lr=1e-3)
    objectives = Objectives.freeze(mae, *pictures, task)
    epsilon = 0.7 * objectives.evaluate(mae.encode)[0]
    unlearned = ux.unlearn(mae, *pictures, task=task, epsilon=epsilon, settings=settings)
    assert objectives.evaluate(unlearned.encode)[0] == pytest.approx(epsilon, rel=0.02)
    unlearned.save_pretrained(tmp_path)
    theirs = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path)
    changed = {name for name, p in theirs.named_parameters() if not torch.equal(p, mae.module.get_parameter(name))}
    assert changed
    assert all(name.startswith("vit.") and "position" not in name for name in changed)
    assert theirs.config.mask_ratio == 0.75
    loaded = models.load("mae", tmp_path)
    inputs = loaded.inputs(pictures[0], task)
    torch.testing.assert_close(loaded.encode(*inputs), unlearned.encode(*inputs))


def test_a_whole_sweep_writes_models_and_pictures(mae, pictures, tmp_path):
    settings = Settings(steps=2, batch_size=8)
    front = ux.sweep(
        mae, *pictures, task=RandomMask(0.75, GRID), points=1, out=tmp_path, settings=settings,
        held_out=tuple(side[:3] + 0.01 for side in pictures),
    )  # fmt: skip
    assert all((tmp_path / point.name / "config.json").exists() for point in front)
    assert json.loads((tmp_path / "metrics.json").read_text())["family"] == "mae"


def test_the_processor_says_how_pixels_are_normalised(tmp_path):
    MAE(vitmae(), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)).save_pretrained(tmp_path)
    loaded = models.load("mae", tmp_path)
    assert (loaded.mean, loaded.std) == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    assert tuple(transformers.AutoImageProcessor.from_pretrained(tmp_path).image_std) == loaded.std
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": false}')
    assert models.load("mae", tmp_path).std == (1, 1, 1)
    (tmp_path / "preprocessor_config.json").unlink()
    assert models.load("mae", tmp_path).mean == (0.485, 0.456, 0.406)
    grey = MAE(vitmae(num_channels=1))
    assert (grey.mean, grey.channels, grey.size, grey.device.type) == ((0.5,), 1, SIDE, "cpu")


def test_reading_and_writing_draw_no_bars_and_leave_others_theirs(mae, tmp_path, capfd):
    mae.save_pretrained(tmp_path)
    models.load("mae", tmp_path)
    assert "it/s" not in capfd.readouterr().err
    assert transformers.utils.logging.is_progress_bar_enabled()


def test_tasks_and_images_that_it_cannot_take(mae):
    images = torch.randn(4, 3, SIDE, SIDE)
    with pytest.raises(UserError, match="no patch of the model wholly visible"):
        mae.inputs(images, CenterCrop(1.0))
    with pytest.raises(UserError, match=r"random-mask:F:4"):
        mae.inputs(images, RandomMask(0.1, 7))
    with pytest.raises(UserError, match="16x16 pixels, not 8x8"):
        mae.inputs(images[..., :8, :8], CenterCrop())
    with pytest.raises(UserError, match="a task with a mask"):
        mae.inputs(images, torch.zeros_like)


def test_what_is_no_vitmae_is_refused(model, tmp_path):
    with pytest.raises(UserError, match="this model is a Linear"):
        MAE(torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match="need 3 numbers"):
        MAE(vitmae(), mean=(0.5,))
    with pytest.raises(UserError, match="no ViTMAEForPreTraining could be loaded"):
        models.load("mae", tmp_path)
    MAE(vitmae()).save_pretrained(tmp_path / "mae")
    with pytest.raises(UserError, match="checkpoint of another library"):
        models.load("vqgan", tmp_path / "mae")
    model.save_pretrained(tmp_path / "vqgan")
    with pytest.raises(UserError, match="ViTMAEForPreTraining"):
        models.load("mae", tmp_path / "vqgan")
    config = importlib.import_module("transformers").ViTConfig()
    config.save_pretrained(tmp_path / "vit")
    with pytest.raises(UserError, match="checkpoint of vit"):
        models.load("mae", tmp_path / "vit")


def configured(folder, **entries):
    """Save a tiny ViTMAE for 16x16 images with patches of 4 pixels, and change entries of its config.json."""
    MAE(vitmae()).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return folder


@pytest.mark.filterwarnings("ignore:ε = ")
@pytest.mark.parametrize(
    "entries",
    [
        {"image_size": [16, 16]},
        {"patch_size": [4, 4]},
        {"image_size": [16, 16], "patch_size": [4, 4]},
        {"image_size": 16, "patch_size": [4, 4], "norm_pix_loss": True},
    ],
)
def test_sizes_of_images_and_patches_may_be_pairs(entries, pictures, tmp_path):
    plain = {name: value for name, value in entries.items() if name == "norm_pix_loss"}
    expected = models.load("mae", configured(tmp_path / "plain", **plain))
    loaded = models.load("mae", configured(tmp_path / "pairs", **entries))
    assert (loaded.size, loaded.module.config.patch_size) == (16, 4)
    inputs = loaded.inputs(pictures[0], CenterCrop(0.5))
    latents = loaded.encode(*inputs)
    assert torch.equal(latents, expected.encode(*inputs))
    assert torch.equal(loaded.decode(latents, *inputs), expected.decode(latents, *inputs))
    settings = Settings(steps=1, batch_size=8)
    unlearned = ux.unlearn(loaded, *pictures, task=CenterCrop(0.5), epsilon=0.3, settings=settings)
    unlearned.save_pretrained(tmp_path / "out")
    assert transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "out").config.image_size == 16


@pytest.mark.parametrize("size", [[16, 16], (16, 16)])
def test_a_module_may_have_its_size_as_a_pair(size, pictures):
    mae, plain = MAE(vitmae(image_size=size)), MAE(vitmae())
    inputs = mae.inputs(pictures[0], CenterCrop(0.5))
    assert mae.size == 16
    assert torch.equal(mae.encode(*inputs), plain.encode(*inputs))


@pytest.mark.parametrize("name", ["image_size", "patch_size"])
@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (None, "is None; the class supports only squares, so it must be one number of pixels"),
        ([8, 16], r"is \[8, 16\]; the class supports only squares, so it must be one number of pixels"),
        ([16, 8], r"is \[16, 8\]; the class supports only squares, so it must be one number of pixels"),
        (0, "is 0; it must be a whole number of pixels"),
        (-4, "is -4; it must be a whole number of pixels"),
        (4.0, "is 4.0; it must be a whole number of pixels"),
        ("16", "is '16'; it must be a whole number of pixels"),
        ([], r"is \[\]; it must be a whole number of pixels"),
        ([4, 4, 4], r"is \[4, 4, 4\]; it must be a whole number of pixels"),
    ],
)
def test_sizes_that_make_no_model_are_refused_at_load_time(name, value, sentence, tmp_path):
    with pytest.raises(UserError, match=f"{name} in the model's configuration {sentence}"):
        models.load("mae", configured(tmp_path, **{name: value}))


@pytest.mark.parametrize(("image", "patch"), [(16, 3), (18, 4), ([17, 17], [4, 4]), (8, 16)])
def test_patches_that_do_not_divide_the_images_are_refused_at_load_time(image, patch, tmp_path):
    with pytest.raises(UserError, match=r"images of \d+ pixels a side, which patches of \d+ do not divide"):
        models.load("mae", configured(tmp_path, image_size=image, patch_size=patch))


@pytest.mark.parametrize("entries", [{"image_size": 32}, {"patch_size": 8}, {"hidden_size": 16}])
def test_weights_of_another_shape_than_the_configuration_asks_for_are_refused(entries, tmp_path):
    with pytest.raises(UserError, match=r"has \S+ with shape \[.*\], but its config.json asks for \[.*\]"):
        models.load("mae", configured(tmp_path, **entries))
