"""The tiny autoencoders TAESD, TAEF1, TAESD3 and TAEF2, from their description: layers in the order of their numbers.

Source: README of https://github.com/madebyollin/taesd: convolutions with ReLU in residual blocks, nearest-neighbour
upsampling, latents clamped by tanh; TAEF2's deepest blocks add a group norm over the whole image. Images are in [0, 1].
"""

import torch
from torch import nn

WIDTH = 64


def _conv(inputs, outputs, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class Block(nn.Module):
    def __init__(self, pooled=False):
        super().__init__()
        convs = (_conv(WIDTH, WIDTH) for _ in range(3))
        self.conv = nn.Sequential(next(convs), nn.ReLU(), next(convs), nn.ReLU(), next(convs))
        if pooled:
            self.pool = nn.Sequential(
                nn.Conv2d(WIDTH, 4 * WIDTH, 1, bias=False), nn.GroupNorm(4, 4 * WIDTH), nn.ReLU(),
                nn.Conv2d(4 * WIDTH, WIDTH, 1, bias=False),
            )  # fmt: skip

    def forward(self, x):
        if hasattr(self, "pool"):
            x = x + self.pool(x)
        return (self.conv(x) + x).relu()


class Clamp(nn.Module):
    def forward(self, x):
        return torch.tanh(x / 3) * 3


def encoder(channels, pooled=False):
    """Return an encoder from images in [0, 1] to latents of ``channels`` channels."""
    layers = [_conv(3, WIDTH), Block()]
    for stage in range(3):
        layers += [_conv(WIDTH, WIDTH, stride=2, bias=False), *(Block(pooled and stage == 2) for _ in range(3))]
    return nn.Sequential(*layers, _conv(WIDTH, channels))


def decoder(channels, pooled=False):
    """Return a decoder from latents of ``channels`` channels to images in [0, 1]."""
    layers = [Clamp(), _conv(channels, WIDTH), nn.ReLU()]
    for stage in range(3):
        blocks = (Block(pooled and stage == 0) for _ in range(3))
        layers += [*blocks, nn.Upsample(scale_factor=2), _conv(WIDTH, WIDTH, bias=False)]
    return nn.Sequential(*layers, Block(), _conv(WIDTH, 3))
