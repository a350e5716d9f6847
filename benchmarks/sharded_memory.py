"""Peak memory of each process while a masked autoencoder of ViT-B size is trained, whole or divided (`--fsdp`).

    MALLOC_MMAP_THRESHOLD_=200000 torchrun --nproc-per-node 2 benchmarks/sharded_memory.py
    MALLOC_MMAP_THRESHOLD_=200000 torchrun --nproc-per-node 2 benchmarks/sharded_memory.py --fsdp

It measures on the CPU. Without the environment variable, glibc keeps freed memory, and the numbers mean nothing.
"""

from __future__ import annotations

import resource
import sys

import torch
import torch.distributed as dist
import transformers

from unlearn_ext.models import shard
from unlearn_ext.models.mae import MAE
from unlearn_ext.tasks import CenterCrop
from unlearn_ext.unlearning import objectives
from unlearn_ext.unlearning.history import History
from unlearn_ext.unlearning.settings import Settings
from unlearn_ext.unlearning.trainer import Trainer

objectives.NOISE_IMAGES = 4  # fewer images, since their number does not matter for the peak


def main() -> None:
    """Take two steps with two images to forget and two to retain, and print the peak."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = MAE(transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig()))
    if "--fsdp" in sys.argv:
        model = shard(model)
    forget, retain = torch.rand(2, 2, 3, 224, 224) * 2 - 1
    goal = objectives.Objectives.freeze(model, forget, retain, CenterCrop(0.5), settings=Settings(batch_size=2))
    Trainer(model, goal, History()).approach(0.5, steps=2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"process {dist.get_rank()}: {peak:.2f} GB at the peak", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
