"""What the evidence says in the same words for every run: its purpose, and what is not promised (docs/limits.md)."""

from __future__ import annotations

__all__ = ["NOT_PROMISED", "PURPOSE"]

PURPOSE = (
    "Reduce what the model's encoder keeps of the images to forget to the limit that was asked for, and change as "
    "little as possible for the images to retain."
)

NOT_PROMISED = (
    "A limit on f1 is about this model's encoder and these images: how far its latents, the numbers that it computes "
    "from the visible part of an image, still are from those of noise. It says nothing about other models.",
    "It is not promised that nobody can restore the images: another decoder, or a network that is trained to read the "
    "latents, may find more than this model's own decoder shows.",
    "It is not promised that the images stay forgotten if the model is trained further.",
    "It is not promised that the images, or models that were trained on them, do not exist elsewhere: copies, backups, "
    "caches and earlier versions of the model are not touched by this program.",
    "This is not differential privacy, and no certified deletion: there is no proof that the model is the same as one "
    "that never saw the images.",
    "Only the encoder was trained. The decoder is that of the model before.",
    "The limit was enforced on the images that were used for training. For other pictures of the same person or thing, "
    "only the values on validation images say something, where there are any.",
    "f1 is a mean over images. Single images can be above the limit; the number of these and the worst one are stated.",
    "f1 does not say what a person recognises. Only somebody who looks at the model's pictures can.",
    "This file records what the program did and measured. It does not say whether that satisfies a law or a contract.",
)
