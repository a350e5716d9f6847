"""Mutated checkpoints and configurations get a sentence or are read; never a hang, never twice the file in memory.

``UNLEARN_EXT_FUZZ`` is the number of mutations per format; ``make fuzz`` sets a large one.
"""

import io
import os
import random
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
import torch

pytest.importorskip("safetensors")
from safetensors.torch import save

from unlearn_ext.errors import UserError
from unlearn_ext.models.doors import read

MUTATIONS = int(os.environ.get("UNLEARN_EXT_FUZZ", "60"))
SECONDS = 5.0  # for a file of a few kilobytes; most take a millisecond
# What reading any file may take besides its weights: the lists of a zip file and of a pickle.
CONSTANT = 1 << 20

WEIGHTS = {f"blocks.{i}.weight": torch.arange(12.0 * i).view(-1, 3).t() for i in range(1, 6)}
CONFIG = """# a model of taming
model:
  base_learning_rate: 4.5e-06
  params: {embed_dim: 256, n_embed: 1024}
  ddconfig:
    ch_mult: [1, 1, 2]
    attn_resolutions:
    - 16
"""
CONFIG_JSON = '{ // Palette\n "model": {"unet": [1, 2, {"a": null}], "path": "x//y"} /* end */ }'


def saved(content: object, **options: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def lightning(**options: object) -> bytes:
    return saved(
        {
            "epoch": 3, "state_dict": WEIGHTS, "callbacks": {torch.nn.Linear: {"best": torch.ones(2)}},
            "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3}]}],
            "hyper_parameters": {"path": Path("x"), "size": torch.Size([2]), "dtype": torch.float16},
        },
        **options,
    )  # fmt: skip


FORMATS = {
    "zip.pth": saved(WEIGHTS),
    "legacy.pth": saved(WEIGHTS, _use_new_zipfile_serialization=False),
    "zip.ckpt": lightning(),
    "protocol-4.ckpt": lightning(pickle_protocol=4),
    "legacy.ckpt": lightning(_use_new_zipfile_serialization=False),
    "x.safetensors": save({name: value.contiguous() for name, value in WEIGHTS.items()}),
    "x.yaml": CONFIG.encode(),
    "x.json": CONFIG_JSON.encode(),
}


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Change, insert, remove, repeat or move bytes; two thirds of the places are in the first or last kilobyte."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        length = max(len(found), 1)
        near = rng.randrange(min(length, 1024))
        place = rng.choice((rng.randrange(length), near, length - 1 - near))
        kind, end = rng.randrange(7), place + rng.choice((1, 1, 2, 4, 8, 64))
        if kind == 0:
            found[place:end] = rng.randbytes(end - place)
        elif kind == 1:
            found[place:end] = rng.choice((b"\x00", b"\xff", b"\x7f")) * (end - place)
        elif kind == 2:
            del found[place:end]
        elif kind == 3:
            found[place:place] = found[place:end] * rng.choice((1, 2, 100))
        elif kind == 4:
            source = rng.randrange(length)
            found[place:place] = found[source : source + end - place]
        elif kind == 5:
            del found[place:]
        elif found:
            found[place] ^= 1 << rng.randrange(8)
    return bytes(found)


@pytest.mark.parametrize("name", FORMATS)
def test_a_mutated_file_is_a_sentence_or_is_read(name, tmp_path):
    rng = random.Random(name)
    weights = path = tmp_path / name
    if path.suffix in (".yaml", ".json"):
        weights = tmp_path / "weights.pth"
        weights.write_bytes(saved({"a": torch.ones(2)}))
    configuration = None if weights is path else path
    path.write_bytes(FORMATS[name])
    assert read(weights, configuration).weights
    outcomes = {True: 0, False: 0}
    tracemalloc.start()
    try:
        for number in range(MUTATIONS):
            content = mutated(FORMATS[name], rng)
            path.write_bytes(content)
            tracemalloc.reset_peak()
            before, began = tracemalloc.get_traced_memory()[0], time.process_time()
            try:
                found = read(weights, configuration)
            except UserError as error:
                assert str(path) in str(error), f"mutation {number}"  # noqa: PT017
                assert "\n" not in str(error), f"mutation {number}"  # noqa: PT017
                outcomes[False] += 1
            else:
                storages = {weight.untyped_storage().data_ptr(): weight.nbytes for weight in found.weights.values()}
                assert sum(storages.values()) <= weights.stat().st_size, f"mutation {number}"
                outcomes[True] += 1
            assert time.process_time() - began < SECONDS, f"mutation {number}"
            peak = tracemalloc.get_traced_memory()[1] - before
            assert peak < 2 * len(content) + CONSTANT, f"mutation {number}: {peak} bytes for {len(content)}"
    finally:
        tracemalloc.stop()
    assert min(outcomes.values()) > MUTATIONS // 50, outcomes  # neither all damaged nor all harmless


READ_AND_MEASURE = """
import resource, sys
from pathlib import Path
from unlearn_ext.models.doors import read
read(Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = read(Path(sys.argv[2]))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zip", "legacy", "strided", "safetensors"])
def test_the_whole_process_takes_less_than_twice_the_file(kind, tmp_path):
    """The other tests cannot see what torch allocates."""
    paths = [tmp_path / name for name in ("small", "large")]
    for path, megabytes in zip(paths, (1, 200), strict=True):
        weights = {str(i): torch.ones(megabytes << 8, 100) for i in range(10)}
        if kind == "safetensors":
            path.write_bytes(save(weights))
            continue
        content = {name: weight.t() for name, weight in weights.items()} if kind == "strided" else weights
        optimizer = {"state": {i: {"exp_avg": weight + 1} for i, weight in enumerate(weights.values())}}
        saved_as = {"_use_new_zipfile_serialization": kind != "legacy"}
        torch.save({"model": content, "optimizer": optimizer}, path, **saved_as)
    command = [sys.executable, "-c", READ_AND_MEASURE, *map(str, paths)]
    taken = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert taken < 2 * paths[1].stat().st_size
