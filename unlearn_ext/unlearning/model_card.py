"""The model card of an unlearned model: a README.md with the metadata that the Hugging Face hub reads."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from .ability import read_hole
from .dial import UNMODIFIED
from .hole import where
from .pareto import TRAINED, ParetoPoint
from .run_folder import RunFolder

__all__ = ["LIBRARIES", "model_card"]

# The class of each family's models in its own library.
LIBRARIES = {
    "vqgan": ("diffusers", "VQModel"),
    "autoencoder": ("diffusers", "AutoencoderKL"),
    "mae": ("transformers", "ViTMAEForPreTraining"),
    "diffusion": ("diffusers", "UNet2DModel"),
    "mage": ("unlearn_ext.models.mage", "MAGE"),
    "latent-diffusion": ("diffusers", "DiffusionPipeline"),  # loads the class that model_index.json names
}
_NOT_PROMISED = (
    "This is no proof of deletion and no privacy guarantee: nobody has certified that the forgotten images cannot be "
    "recovered from the weights or by further training.",
    "Further training, even on other images, brings part of the forgotten back.",
    "f1 is a distance between latents. It does not measure what a new decoder or a reader of the latents still finds.",
    "Only the encoder was changed. The decoder is that of the unmodified model.",
    "ε was asked for the images that were trained on, not for other images of the same people or things.",
)


def model_card(run: RunFolder, point: ParetoPoint, *, names: bool = False, file: str | None = None) -> str:
    """Return the model card of one model of a run.

    No file, class or person is named, because names are personal data too.

    Args:
        run: the run.
        point: the model.
        names: whether to name the requests.
        file: name of the model's only file, if it has the layout of the checkpoint file that the run began with.
    """
    library, class_name = LIBRARIES[run.metrics["family"]]
    return "\n".join([
        "---",
        f"library_name: {library.partition('.')[0]}",
        "pipeline_tag: image-to-image",
        "tags:",
        "- image-to-image",
        "- machine-unlearning",
        "license: unknown  # to fill in: that of the model before, and of the images it was trained on",
        "---",
        "",
        f"# Unlearned model ({class_name})",
        "",
        "A model that was made to forget images, while the damage to all other images was kept small. Two numbers "
        "describe it: what is left of the forgotten (f1, 0 if they look like noise to the encoder) and damage to the "
        "retained (f2, 0 if their encoding did not change). Both are in variances of the unmodified model's latents.",
        "",
        "## What was forgotten",
        "",
        *_requests(run, point, names),
        "",
        "## Numbers",
        "",
        *_table(("", "value"), _numbers(run, point)),
        "",
        "## How it was made",
        "",
        *_table(("", "value"), _making(run, point)),
        "",
        "## How to load it",
        "",
        *(_in_library(library, class_name) if file is None else _in_original(file)),
        "",
        "## What is not promised",
        "",
        *(f"- {sentence}" for sentence in _NOT_PROMISED),
        "",
    ])  # fmt: skip


def _in_library(library: str, class_name: str) -> list[str]:
    return [
        "```python",
        f"from {library} import {class_name}",
        "",
        f'model = {class_name}.from_pretrained("path/to/this/folder")',
        "```",
    ]


def _in_original(file: str) -> list[str]:
    return [
        f"`{file}` has the names and shapes of the checkpoint file that the model was made from, and only its weights. "
        "Load them as those of that file:",
        "",
        "```python",
        "from safetensors.torch import load_file",
        "",
        f'weights = load_file("{file}")',
        "```",
    ]


def _requests(run: RunFolder, point: ParetoPoint, names: bool) -> list[str]:
    """Return a table of the requests; for runs without ``requests.csv``, a sentence."""
    rows = [row for row in _read(run.path / "requests.csv") if row["point"] == point.name]
    if not rows:
        return ["One request for deletion. Its images are not part of this card."]
    heading = ("request", "images", "ε", "f1 before", "f1", "f1 of the worst image", "images above ε")
    columns = ("images", "epsilon", "f1_unmodified", "f1", "worst_f1", "above")
    cells = (
        (row["request"] if names else str(i + 1), *(_short(row[c]) for c in columns)) for i, row in enumerate(rows)
    )
    return [*_table(heading, cells), "", "The images are not part of this card."]


def _numbers(run: RunFolder, point: ParetoPoint) -> Iterator[tuple[str, str]]:
    original, psnr = float(run.metrics["f1_original"]), read_hole(run.path)
    yield "ε asked", f"{point.epsilon:.4f} ({100 * point.epsilon / original:.2g} % of the unmodified model's f1)"
    yield "what is left of the forgotten (f1)", f"{point.f1:.4f}"
    yield "the same, of the unmodified model", f"{original:.4f}"
    if not math.isnan(point.f1_validation):
        yield "the same, on images that were held out", f"{point.f1_validation:.4f}"
    yield "damage to the retained (f2)", f"{point.f2:.5f}"
    if not math.isnan(point.f2_validation):
        yield "the same, on images that were held out", f"{point.f2_validation:.5f}"
    if point.name in psnr:
        yield (
            f"PSNR {where(run.metrics['task'])} of the images to forget",
            f"{psnr[point.name]:.1f} dB; before {psnr[UNMODIFIED]:.1f} dB",
        )


def _making(run: RunFolder, point: ParetoPoint) -> Iterator[tuple[str, str]]:
    metrics = run.metrics
    yield "software", f"unlearn_ext {metrics['version']}, `{metrics.get('command') or 'sweep'}`"
    if metrics.get("finished"):
        yield "finished", metrics["finished"]
    yield "task", f"`{metrics['task']}`: what is hidden from the model"
    yield "seed", str(metrics["seed"])
    if rank := metrics["settings"].get("lora"):
        yield "trained", f"a low-rank adapter (LoRA) of rank {rank}, merged into the weights"
    yield "made of", "trained at this ε" if point.made_of == TRAINED else f"weighted average: `{point.made_of}`"


def _table(heading: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [heading, ("---",) * len(heading), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _short(number: str) -> str:
    try:
        return f"{float(number):.4g}"
    except ValueError:
        return number or "–"


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
