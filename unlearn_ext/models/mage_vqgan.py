"""The VQ-GAN of MAGE: convolutions without attention, and codes that the transformer reads as tokens.

Layers have the names of MAGE's published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["VQGAN"]


class VQGAN(nn.Module):
    """A VQ-GAN between images [N, C, H, W] in [0, 1] and codes [N, D, H / p, W / p].

    Args:
        channels: C, the number of image channels.
        widths: number of channels of the first convolution, then of each level; each level but the first halves the
            sides.
        blocks: number of blocks per level.
        codebook_size: number of codes.
        codebook_dim: D, the size of a code.
    """

    def __init__(
        self, channels: int, widths: Sequence[int], blocks: int, codebook_size: int, codebook_dim: int
    ) -> None:
        super().__init__()
        self.encoder = _Encoder(channels, widths, blocks, codebook_dim)
        self.decoder = _Decoder(channels, widths[1:], blocks, codebook_dim)
        self.quantize = _Codebook(codebook_size, codebook_dim)

    @property
    def codebook(self) -> torch.Tensor:
        """All codes, float [codebook_size, codebook_dim]."""
        return self.quantize.embedding.weight

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        """Return the index of the nearest code at each place of images, int64 [N, places] in row-major order."""
        found = self.encoder(images).flatten(2).transpose(1, 2)
        # ‖z − e‖² without ‖z‖², which is the same for all codes.
        return (self.codebook.square().sum(1) - 2 * found @ self.codebook.T).argmin(2)

    def images(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the images of codes [N, D, h, w]; about [0, 1], not clipped."""
        return self.decoder(codes)


class _Codebook(nn.Module):
    def __init__(self, size: int, code: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, code)


class _Block(nn.Module):
    """A residual block. Where it changes the width, its shortcut takes its own result, as in the original."""

    def __init__(self, taken: int, given: int) -> None:
        super().__init__()
        self.norm1 = _norm(taken)
        self.conv1 = nn.Conv2d(taken, given, 3, padding=1, bias=False)
        self.norm2 = _norm(given)
        self.conv2 = nn.Conv2d(given, given, 3, padding=1, bias=False)
        self.nin_shortcut = nn.Conv2d(given, given, 1, bias=False) if taken != given else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.conv1(F.silu(self.norm1(x)))
        made = self.conv2(F.silu(self.norm2(made)))
        return made + (x if self.nin_shortcut is None else self.nin_shortcut(made))


class _Middle(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1, self.block_2 = _Block(width, width), _Block(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block_2(self.block_1(x))


class _Level(nn.Module):
    """The blocks of one resolution, and a convolution after doubling the sides if the level is one that does."""

    def __init__(self, taken: int, given: int, blocks: int, doubles: bool = False) -> None:
        super().__init__()
        self.block = nn.Sequential(*(_Block(taken if i == 0 else given, given) for i in range(blocks)))
        self.upsample = nn.ModuleDict({"conv": nn.Conv2d(given, given, 3, padding=1)} if doubles else {})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(x)
        return self.upsample["conv"](F.interpolate(x, scale_factor=2)) if self.upsample else x


class _Encoder(nn.Module):
    def __init__(self, channels: int, widths: Sequence[int], blocks: int, code: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.down = nn.ModuleList(_Level(taken, given, blocks) for taken, given in pairwise(widths))
        self.mid = _Middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], code, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for number, level in enumerate(self.down):
            x = level(F.avg_pool2d(x, 2) if number else x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class _Decoder(nn.Module):
    def __init__(self, channels: int, widths: Sequence[int], blocks: int, code: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(code, widths[-1], 3, padding=1)
        self.mid = _Middle(widths[-1])
        pairs = zip([*widths[1:], widths[-1]], widths, strict=True)
        self.up = nn.ModuleList(
            _Level(taken, given, blocks, doubles=number > 0) for number, (taken, given) in enumerate(pairs)
        )
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)
