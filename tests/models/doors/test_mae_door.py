"""Masked autoencoders in the original's layout: converted, compared with the original's outputs, and written back."""

import argparse
from pathlib import Path

import pytest
import torch
from originals.mae import MaskedAutoencoder

pytest.importorskip("safetensors")
from safetensors.torch import load_file, save_file

from unlearn_ext import models
from unlearn_ext.errors import UserError
from unlearn_ext.models import doors
from unlearn_ext.tasks import CenterCrop

HEADS = "num_heads: 4\ndecoder_num_heads: 2\n"
VISIBLE = "mae_visualize_vit_tiny.pth"  # the name says that it was trained without norm_pix_loss


@pytest.fixture(scope="module")
def original() -> MaskedAutoencoder:
    return MaskedAutoencoder().eval()


@pytest.fixture
def saved(original: MaskedAutoencoder, tmp_path: Path) -> Path:
    """Return a file as the original's program saves it, with its configuration beside it."""
    torch.save({"model": original.state_dict()}, tmp_path / VISIBLE)
    (tmp_path / "sizes.yaml").write_text(HEADS)
    return tmp_path / VISIBLE


def loaded(path: Path):
    return models.load("mae", path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_outputs_are_those_of_the_original(original, tmp_path, legacy):
    path = tmp_path / VISIBLE
    torch.save({"model": original.state_dict()}, path, _use_new_zipfile_serialization=not legacy)
    (tmp_path / "sizes.yaml").write_text(HEADS)
    model, images = loaded(path), torch.rand(2, 3, 16, 16) * 2 - 1
    given, visible = model.inputs(images, CenterCrop(0.5))
    with torch.no_grad():
        latents = model.encode(given, visible)
        mean, std = (torch.tensor(v)[:, None, None] for v in (model.mean, model.std))
        theirs = original.encode(((images + 1) / 2 - mean) / std, visible)
        assert torch.allclose(latents, theirs, atol=1e-5)
        predicted = model.module.decoder(latents, model._rank(visible)).logits
        assert torch.allclose(predicted, original.decode(theirs, visible), atol=1e-5)
    assert (model.size, model.channels, model.module.config.norm_pix_loss) == (16, 3, False)
    assert model.module.config.layer_norm_eps == 1e-6


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_every_weight_is_written_back(original, saved, prefix):
    weights = {f"{prefix}{name}": value for name, value in original.state_dict().items()}
    torch.save({"model": weights}, saved)
    model = loaded(saved)
    written = doors.write_back(model, saved)
    assert list(written) == list(weights)
    for name, value in weights.items():
        assert torch.equal(written[name], value), name
    with torch.no_grad():
        for parameter in model.encoder_parameters():
            parameter.add_(1)
    written = doors.write_back(model, saved)
    for name, value in original.state_dict().items():
        trained = name.startswith(("blocks", "norm", "patch_embed", "cls_token"))
        assert torch.equal(written[f"{prefix}{name}"], value + 1 if trained else value), name


def test_half_precision_is_kept(original, saved):
    torch.save({"model": original.half().state_dict()}, saved)
    original.float()
    model = loaded(saved)
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    written = doors.write_back(model, saved)
    assert {value.dtype for value in written.values()} == {torch.float16}


def test_weights_that_half_precision_cannot_hold_are_refused(original, saved):
    torch.save({"model": original.half().state_dict()}, saved)
    model = loaded(saved)
    with torch.no_grad():
        model.module.vit.layernorm.bias.fill_(1e5)
    with pytest.raises(
        UserError, match=r"the new norm\.bias is too large for torch\.float16, .* export without --format"
    ):
        doors.write_back(model, saved)


def test_a_training_run_of_ones_own(original, tmp_path):
    args = argparse.Namespace(norm_pix_loss=True, num_heads=4, decoder_num_heads=2, output_dir=Path("out"))
    optimizer = torch.optim.AdamW(original.parameters())
    path = tmp_path / "checkpoint-399.pth"
    torch.save({"model": original.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 399, "args": args}, path)
    assert models.family_of(path) == "mae"
    assert loaded(path).module.config.norm_pix_loss is True


def test_a_safetensors_file(original, saved):
    path = saved.with_suffix(".safetensors")
    save_file(dict(original.state_dict()), path)
    theirs = loaded(saved).module.state_dict()
    assert all(torch.equal(theirs[name], value) for name, value in loaded(path).module.state_dict().items())
    assert load_file(path).keys() == original.state_dict().keys()


@pytest.mark.parametrize(
    "name", ["blocks.1.mlp.fc2.bias", "decoder_norm.weight", "pos_embed", "blocks.2.attn.qkv.bias"]
)
def test_a_missing_weight_is_named(original, saved, name):
    weights = original.state_dict()
    if name == "pos_embed":  # without it, no door takes the file for a masked autoencoder
        del weights[name]
        torch.save(weights, saved)
        with pytest.raises(UserError, match="in no known layout"):
            loaded(saved)
        return
    del weights[name]
    torch.save(weights, saved)
    with pytest.raises(UserError, match=rf"lacks {name}: save the whole state dict"):
        loaded(saved)


def test_a_left_over_weight_is_named(original, saved):
    torch.save({**original.state_dict(), "head.weight": torch.zeros(3)}, saved)
    with pytest.raises(UserError, match=r"has head\.weight, which the model has no place for: save the whole"):
        loaded(saved)


@pytest.mark.parametrize(
    ("name", "weight", "sentence"),
    [
        ("decoder_norm.bias", torch.zeros(3), r"decoder_norm\.bias with shape \[3\] where the model has \[16\]"),
        ("blocks.0.attn.qkv.weight", torch.zeros(71, 24), r"qkv\.weight with shape \[71, 24\] where .* \[72, 24\]"),
        ("blocks.0.attn.qkv.weight", torch.tensor(1.0), r"qkv\.weight with shape \[\] where the model has \[72, 24\]"),
        (
            "patch_embed.proj.weight",
            torch.zeros(24, 3, 4, 8),
            r"shape \[24, 3, 4, 8\] where .* \[24, 3, 4, 4\]",
        ),
        ("patch_embed.proj.weight", torch.zeros(24, 3, 0, 0), r"with shape \[24, 3, 0, 0\]; it must have 4 dimensions"),
        ("patch_embed.proj.weight", torch.zeros(0, 3, 4, 4), r"with shape \[0, 3, 4, 4\]; it must have 4 dimensions"),
        ("pos_embed", torch.zeros(1, 0, 24), r"pos_embed with shape \[1, 0, 24\]; it must have 3 dimensions"),
        (
            "pos_embed",
            torch.zeros(1, 1, 24),
            r"decoder_pos_embed with shape \[1, 17, 16\] where .* \[1, 1, 16\]",
        ),
        (
            "decoder_embed.weight",
            torch.zeros(0, 24),
            r"with shape \[0, 24\]; it must have 2 dimensions",
        ),
        ("decoder_embed.weight", torch.zeros(2, 24), r"no model can be built from the shapes in .* \(.*divisible by 4"),
        ("norm.weight", torch.zeros(24).long(), r"has norm\.weight as torch\.int64, not as floating-point"),
    ],
)
def test_a_weight_of_another_shape_or_type_is_named(original, saved, name, weight, sentence):
    torch.save({**original.state_dict(), name: weight}, saved)
    with pytest.raises(UserError, match=sentence):
        loaded(saved)


def test_without_its_decoder_it_is_refused(original, saved):
    encoder = {n: v for n, v in original.state_dict().items() if "decoder" not in n and n != "mask_token"}
    torch.save({"model": encoder}, saved)
    with pytest.raises(UserError, match=r"only the encoder of a masked autoencoder.*get mae_visualize_vit_\*\.pth"):
        loaded(saved)


def test_what_the_weights_do_not_show_is_asked_for(original, tmp_path):
    path = tmp_path / "mine.pth"
    torch.save({"model": original.state_dict()}, path)
    with pytest.raises(UserError, match=r"how many attention heads divide its width of 24: write num_heads"):
        loaded(path)
    (tmp_path / "mine.yaml").write_text(HEADS)
    with pytest.raises(UserError, match="whether it was trained with norm_pix_loss"):
        loaded(path)
    (tmp_path / "mine.yaml").write_text(HEADS + "norm_pix_loss: true")
    assert loaded(path).module.config.norm_pix_loss
    for heads in (5, 0, "true"):
        (tmp_path / "mine.yaml").write_text(f"num_heads: {heads}\ndecoder_num_heads: 2\nnorm_pix_loss: true")
        with pytest.raises(UserError, match="write num_heads into a YAML file"):
            loaded(path)
    path = path.rename(tmp_path / VISIBLE)  # which would otherwise say it
    (tmp_path / "mine.yaml").write_text(HEADS + "norm_pix_loss: 'yes'")
    with pytest.raises(UserError, match="whether it was trained with norm_pix_loss"):
        loaded(path)


def test_another_family_is_refused(saved):
    with pytest.raises(UserError, match=r"is a checkpoint of family mae \(format mae\), not of vqgan"):
        models.load("vqgan", saved)
