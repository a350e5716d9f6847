"""Turn the typed options into a model and its images, and reject invalid combinations before anything is trained."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape

from .._utils.distributed import is_first, launched
from ..errors import UserError
from .ability import say_ability
from .asked import folders_to_forget, request_names
from .images import built_in, counts, named_images, recovered
from .options import Machine, Small, Sources, Training
from .place import Place
from .prompts import check_prompts, check_recorded, give_prompts
from .sources_file import kept
from .terminal import out

if TYPE_CHECKING:
    import torch

    from ..data import ForgetRetain
    from ..data.augment import Augment
    from ..models import I2IModel
    from ..tasks import Task
    from ..unlearning.earlier import Earlier
    from ..unlearning.progress import Callback
    from ..unlearning.settings import Settings

__all__ = [
    "Prepared", "continued", "device_named", "divided", "keep_apart", "prepare", "prepared_of", "recognised",
]  # fmt: skip


_COLUMNS = ("image_column", "label_column", "prompt_column")


@dataclass(frozen=True)
class Prepared:
    """A model before unlearning, its images, its task, and the settings of its training.

    Attributes:
        model: the unmodified model.
        images: images to forget and to retain; ``images.to_forget()`` returns those of each request.
        task: the task T.
        description: description of the images for the report.
        settings: training settings.
        augment: augmentation of training images.
        sources: the options that name the same images and model again.
        earlier: the earlier run that this one continues.
    """

    model: I2IModel
    images: ForgetRetain
    task: Task
    description: str
    settings: Settings
    augment: Augment | None = None
    sources: Sources = field(default_factory=Sources)
    earlier: Earlier | None = None


def prepare(
    sources: Sources,
    training: Training,
    machine: Machine,
    progress: Callback | None,
    place: Place | None = None,
    earlier: Earlier | None = None,
) -> Prepared:
    """Read the images, load or train the model, and move it to its device, or with ``--fsdp`` leave it on the CPU.

    Args:
        sources: images, task and model, as typed.
        training: training options.
        machine: device, precision and memory options.
        progress: called while a small model is trained.
        place: output folder of the run, checked as early as possible; None if nothing is written.
        earlier: the earlier run that this one continues; its model before unlearning, its task and its seed are used.

    Raises:
        UserError: the images, the model, the settings or the output folder cannot be used.
        typer.BadParameter: options contradict each other, or one that another needs is missing.
    """
    import torch

    from .. import models, tasks
    from ..data import augment, join
    from ..models.adapters import to_train
    from ..pretrain import pretrained
    from ..unlearning.identity import known, seen
    from ..unlearning.validation import check_model

    names = request_names(sources, earlier)
    if earlier:
        sources, training = continued(sources, training, earlier)
    _check(sources, is_continued=earlier is not None)
    _check_fsdp(machine, training)
    sources = recognised(sources)
    models.check_family(sources.family)
    check_prompts(sources)
    task, augmentation = tasks.parse(sources.task), augment.parse(sources.augment)
    settings = _settings(training, machine)
    device = device_named(machine.device)
    if place:
        place.check(known(sources.family, settings))
    if earlier and not sources.model:
        sources = replace(sources, model=str(_small_model(kept(earlier.first), settings, progress)))
    if sources.model:
        model = models.load(sources.family, sources.model, sources.model_config)
        images, description = named_images(sources, model.size, model.channels, settings)
    else:
        images, description = built_in(sources, settings.seed, validation=sources.validation)
        if place:
            place.check(seen({"forget": images.forget, "retain": images.retain}, task, augmentation))
        folder = pretrained(sources.family, images, task, seed=settings.seed, progress=progress)
        model = models.load(sources.family, folder)
    if earlier:
        new = images.renamed(names) if sources.retain else images.renamed(names).without_retain()
        former = recovered(earlier.run, model, settings.memory)
        check_recorded(earlier.run, former, sources)
        images = join(new, former, settings.memory)
        description = f"{description}, after {earlier.folder.name}"
        sources = _recorded(sources, names, kept(earlier.folder))
    channels = images.forget.shape[1]
    if model.channels != channels:
        raise UserError(f"the model takes images of {model.channels} channels; those of {images.name} have {channels}.")
    check_model(model)
    prompts = give_prompts(model, images, sources)
    _place(model, torch.device("cpu") if machine.fsdp else device, machine)
    trained = to_train(model, settings.lora, settings.seed)
    count = sum(parameter.numel() for parameter in trained.encoder_parameters())
    if sources.model_config:
        out.print(f"Configuration of the model: {escape(str(sources.model_config))}", soft_wrap=True)
    out.print(f"{model.family}: {count:,} parameters to train, on {device}, in {settings.precision}")
    out.print(counts(images), soft_wrap=True)
    if prompts:
        out.print(escape(prompts), soft_wrap=True)
    prepared = Prepared(model, images, task, description, settings, augmentation, sources, earlier)
    if place and is_first() and not machine.fsdp:
        _say_ability(prepared)
    return prepared


def divided(prepared: Prepared, machine: Machine) -> Prepared:
    """Divide the model's weights among the processes, if ``--fsdp`` was typed; every process must call it."""
    from ..models.sharding import shard

    if not machine.fsdp:
        return prepared
    prepared = replace(prepared, model=shard(prepared.model, device_named(machine.device)))
    _say_ability(prepared)
    return prepared


def prepared_of(run: Path, machine: Machine, progress: Callback | None = None) -> Prepared:
    """Return the unmodified model of a finished run and its images, with the uses that they had in the run.

    Images are recognised by their hashes. Warns if some have changed or are not there any more. Those of earlier
    requests, which the run continued, are included.

    Args:
        run: the run's folder.
        machine: device and memory format; the other settings are those of the run.
        progress: called while a small model is trained, if it is no longer in the cache.

    Raises:
        UserError: the folder is not that of a run, or no image of a set is at hand, or the model is not.
    """
    from .. import models, tasks
    from ..data import augment
    from ..unlearning.run_folder import read_run
    from ..unlearning.settings import Settings

    before, sources = read_run(run), recognised(kept(run))
    settings = Settings(**before.metrics["settings"])
    if not before.images:  # of an earlier version
        return replace(prepare(sources, Training(seed=settings.seed), machine, progress), settings=settings)
    task, augmentation = tasks.parse(sources.task), augment.parse(sources.augment)
    place = sources.model or _small_model(sources, settings, progress)
    model = models.load(sources.family, place, sources.model_config)
    images = recovered(before, model, settings.memory)
    if not len(images.forget) or not len(images.retain):
        side = "retain" if len(images.forget) else "forget"
        raise UserError(f"the images to {side} of {run} are not at hand any more, so its models cannot be evaluated.")
    check_recorded(before, images, sources)
    give_prompts(model, images, sources)
    _place(model, device_named(machine.device), machine)
    return Prepared(model, images, task, before.metrics["dataset"], settings, augmentation, sources)


def recognised(sources: Sources) -> Sources:
    """Return the options with the family of the model and the configuration of its file, if they were not typed.

    For a folder that contains the files of a model, or for one of them, the model is the file to load.

    Raises:
        UserError: the model is of no known family, or several files may be its configuration.
    """
    from .. import models

    if sources.model is None:
        if sources.model_config:
            raise typer.BadParameter("--model-config needs --model, the checkpoint file that it belongs to.")
        return replace(sources, family=sources.family or Small.family)
    typed = Path(sources.model).expanduser()
    place = models.doors.file_in(typed)
    configuration = Path(sources.model_config) if sources.model_config else None  # a text if it was saved
    if configuration is None and place.is_file():
        configuration = models.doors.find_configuration(place)
    family = sources.family or models.family_of(sources.model, configuration)
    model = sources.model if place == typed else str(place)
    return replace(sources, model=model, model_config=configuration, family=family)


def keep_apart(out: Path, sources: Sources, after: Path | None = None) -> None:
    """Raise ``UserError`` if an input folder and the output folder are the same or one contains the other."""
    to_forget = folders_to_forget(sources).values()
    models = (sources.model, sources.model_config, after)
    for read in (*models, sources.data_dir, sources.dataset, *to_forget, sources.retain):
        if read is not None and os.path.exists(original := Path(read).expanduser()):
            written, original = out.resolve(), original.resolve()
            if written == original or written in original.parents or original in written.parents:
                raise UserError(
                    f"the output folder {out} and the input {read} are the same folder or one contains the other: "
                    "choose another --out."
                )


def continued(sources: Sources, training: Training, earlier: Earlier) -> tuple[Sources, Training]:
    """Return the options of a run that continues an earlier one: its model, family, task and seed are that run's.

    Raises:
        typer.BadParameter: an option contradicts the earlier run.
    """
    before, seed = recognised(kept(earlier.folder)), int(earlier.run.metrics["seed"])
    for option, typed, usual, its in (
        ("--model", sources.model, None, before.model),
        ("--model-config", sources.model_config, None, before.model_config),
        ("--family", sources.family, Sources.family, before.family),
        ("--task", sources.task, Sources.task, before.task),
        ("--prompt", sources.prompt, None, before.prompt),
        ("--seed", training.seed, Training.seed, seed),
        ("--lora", training.lora, Training.lora, earlier.lora),
    ):
        if typed not in (usual, its):
            raise typer.BadParameter(
                f"with --after, {option} is that of {earlier.folder}, {its}: leave it out, because f1 and f2 are those "
                "of the original model."
            )
    if not sources.forget and sources.forget_classes is None:
        raise typer.BadParameter("with --after, say what to forget now: --forget DIR, or --forget-classes CLASSES.")
    if not any((sources.data, sources.data_dir, sources.dataset, sources.forget)):
        if before.forget:
            raise typer.BadParameter(f"{earlier.folder} has folders of images, without classes: give --forget DIR.")
        named = {name: getattr(before, name) for name in ("data", "data_dir", "dataset", "split", *_COLUMNS)}
        sources = replace(sources, **named)
    same = replace(
        sources, model=before.model, model_config=before.model_config, family=before.family, task=before.task,
        prompt=before.prompt,
    )  # fmt: skip
    return same, replace(training, seed=seed, lora=earlier.lora)


def _recorded(sources: Sources, names: Mapping[str, str], before: Sources) -> Sources:
    """Return the options to save for a run that continues another: names of requests, and the folder of retain images.

    With them, its images are found again even if the folder of the earlier run is gone.
    """
    forget = [f"{names[name]}={folder}" for name, folder in folders_to_forget(sources).items()]
    return replace(sources, forget=forget, retain=sources.retain or before.retain)


def _small_model(sources: Sources, settings: Settings, progress: Callback | None) -> Path:
    """Return the folder of the small model that a run without --model unlearned."""
    from .. import tasks
    from ..pretrain import pretrained

    images, _ = built_in(sources, settings.seed, validation=sources.validation)
    return pretrained(sources.family, images, tasks.parse(sources.task), seed=settings.seed, progress=progress)


def _check(sources: Sources, is_continued: bool) -> None:
    """Reject combinations of options that contradict each other or are incomplete."""
    if bool(sources.forget) != (sources.retain is not None) and not (sources.forget and is_continued):
        raise typer.BadParameter("your own images need two folders: give both --forget and --retain.")
    own = (sources.data_dir, sources.dataset, sources.forget or None)
    if sum(given is not None for given in (sources.data, *own)) > 1:
        raise typer.BadParameter("give one of --data, --data-dir, --dataset, or --forget and --retain.")
    if sources.forget and sources.forget_classes:
        raise typer.BadParameter("--forget and --retain have no classes: leave out --forget-classes.")
    classed = "--data-dir" if sources.data_dir else "--dataset" if sources.dataset else None
    if classed and not sources.forget_classes:
        raise typer.BadParameter(f"{classed} needs --forget-classes, the names of the classes to forget.")
    if any(own) and not sources.model and not is_continued:
        raise typer.BadParameter("your own images need --model, the checkpoint to unlearn.")


def _check_fsdp(machine: Machine, training: Training) -> None:
    """Reject ``--fsdp`` with options that it does not support, or without torchrun."""
    if not machine.fsdp:
        return
    others = {"--compile": machine.compile, "--channels-last": machine.channels_last, "--lora": training.lora}
    for option, typed in others.items():
        if typed:
            raise typer.BadParameter(f"{option} is not supported with --fsdp: leave one of them out.")
    if not launched():
        raise UserError(
            "--fsdp divides the model among several processes: start them with "
            "`torchrun --nproc-per-node N -m unlearn_ext …`."
        )


def _say_ability(prepared: Prepared) -> None:
    sets = {"images to forget": prepared.images.forget, "images to retain": prepared.images.retain}
    remedy = "unlearning them cannot show anything; see `unlearn-ext pretrain --help`"
    say_ability(prepared.model, prepared.task, sets, remedy)


def _settings(training: Training, machine: Machine) -> Settings:
    """Return the default settings, changed by the options that were typed."""
    from ..unlearning.settings import Settings

    given = {"steps": training.steps, "lr": training.lr, "batch_size": training.batch_size, "memory": machine.memory}
    typed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    typed |= {"sharpness": training.sharpness, "lora": training.lora}
    return Settings(seed=training.seed, precision=machine.precision, compile=machine.compile, **typed)


def device_named(name: str | None) -> torch.device:
    """Return the named device; without a name, this process's GPU if there is one, else the CPU.

    Raises:
        UserError: torch cannot use this device here.
    """
    import torch

    if name is None:
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"the device {name} cannot be used here: {str(error).splitlines()[0]}") from error


def _place(model: I2IModel, device: torch.device, machine: Machine) -> None:
    import torch

    model.module.to(device)
    if machine.channels_last:
        model.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's overloads
    if machine.checkpointing:
        model.enable_gradient_checkpointing()
