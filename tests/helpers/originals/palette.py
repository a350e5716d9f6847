"""Palette's network, as "Palette: Image-to-Image Diffusion Models" and guided-diffusion's U-Net describe it.

Layers have the names of the published checkpoints; nothing here uses diffusers.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


def norm(channels):
    return nn.GroupNorm(32, channels)


def embedding(gammas, width):
    """Return cosines, then sines of γ at geometrically spaced frequencies, [N, width]."""
    half = width // 2
    angles = gammas[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
    return F.pad(torch.cat([angles.cos(), angles.sin()], 1), (0, width % 2))


class Residual(nn.Module):
    """BigGAN's residual block: the embedding scales and shifts the second norm, or is added before it."""

    def __init__(self, taken, given, width, scale_shift, resample=None):
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.Sequential(norm(taken), nn.SiLU(), nn.Conv2d(taken, given, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(width, given * (2 if scale_shift else 1)))
        self.out_layers = nn.Sequential(norm(given), nn.SiLU(), nn.Dropout(0.2), nn.Conv2d(given, given, 3, padding=1))
        self.skip_connection = nn.Identity() if taken == given else nn.Conv2d(taken, given, 1)

    def forward(self, x, condition):
        hidden = self.in_layers[:2](x)
        if self.resample is not None:
            hidden, x = self.resample(hidden), self.resample(x)
        hidden = self.in_layers[2](hidden)
        condition = self.emb_layers(condition)[..., None, None]
        if self.scale_shift:
            scale, shift = condition.chunk(2, 1)
            hidden = self.out_layers[1:](self.out_layers[0](hidden) * (1 + scale) + shift)
        else:
            hidden = self.out_layers(hidden + condition)
        return self.skip_connection(x) + hidden


class Attention(nn.Module):
    """Self-attention over pixels; the rows of ``qkv`` are ordered by head first, or by query, key and value first."""

    def __init__(self, channels, heads, by_head=True):
        super().__init__()
        self.heads, self.by_head = heads, by_head
        self.norm, self.qkv = norm(channels), nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x, condition):
        count, channels, *sides = x.shape
        x = x.flatten(2)
        mixed = self.qkv(self.norm(x))
        each = channels // self.heads
        if self.by_head:
            query, key, value = mixed.view(count, self.heads, 3, each, -1).unbind(2)
        else:
            query, key, value = mixed.view(count, 3, self.heads, each, -1).unbind(1)
        weights = torch.einsum("nhct,nhcs->nhts", query, key).div(each**0.5).softmax(-1)
        read = torch.einsum("nhts,nhcs->nhct", weights, value).reshape(count, channels, -1)
        return (x + self.proj_out(read)).view(count, channels, *sides)


class Down(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x, condition):
        return self.op(x)


class Up(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, condition):
        return self.conv(F.interpolate(x, scale_factor=2))


def halve(x):
    return F.avg_pool2d(x, 2)


def double(x):
    return F.interpolate(x, scale_factor=2)


class UNet(nn.Module):
    """The U-Net; arguments have the names and defaults of ``unet`` in the JSON files."""

    def __init__(
        self,
        in_channel,
        inner_channel,
        out_channel,
        res_blocks,
        attn_res,
        channel_mults=(1, 2, 4, 8),
        num_heads=1,
        num_head_channels=-1,
        use_scale_shift_norm=True,
        resblock_updown=True,
        use_new_attention_order=False,
        **unused,
    ):
        super().__init__()
        self.inner_channel = inner_channel
        width = 4 * inner_channel
        self.cond_embed = nn.Sequential(nn.Linear(inner_channel, width), nn.SiLU(), nn.Linear(width, width))

        def residual(taken, given, resample=None):
            return Residual(taken, given, width, use_scale_shift_norm, resample)

        def attention(channels):
            heads = num_heads if num_head_channels == -1 else channels // num_head_channels
            return Attention(channels, heads, not use_new_attention_order)

        sizes = [int(inner_channel * factor) for factor in channel_mults]
        channels = sizes[0]
        blocks, skips = [[nn.Conv2d(in_channel, channels, 3, padding=1)]], [channels]
        for level, size in enumerate(sizes):
            for _ in range(res_blocks):
                blocks.append([residual(channels, size)] + [attention(size)] * (2**level in attn_res))
                channels = size
                skips.append(channels)
            if level < len(sizes) - 1:
                blocks.append([residual(channels, channels, halve) if resblock_updown else Down(channels)])
                skips.append(channels)
        self.input_blocks = nn.ModuleList(nn.ModuleList(block) for block in blocks)
        middle = [residual(channels, channels), attention(channels), residual(channels, channels)]
        self.middle_block = nn.ModuleList(middle)
        blocks = []
        for level, size in reversed(list(enumerate(sizes))):
            for place in range(res_blocks + 1):
                blocks.append([residual(channels + skips.pop(), size)] + [attention(size)] * (2**level in attn_res))
                channels = size
                if level and place == res_blocks:
                    blocks[-1].append(residual(channels, channels, double) if resblock_updown else Up(channels))
        self.output_blocks = nn.ModuleList(nn.ModuleList(block) for block in blocks)
        self.out = nn.Sequential(norm(channels), nn.SiLU(), nn.Conv2d(channels, out_channel, 3, padding=1))

    def forward(self, x, gammas):
        condition = self.cond_embed(embedding(gammas, self.inner_channel))
        (first,), *rest = self.input_blocks
        x = first(x)
        skips = [x]
        for block in rest:
            for layer in block:
                x = layer(x, condition)
            skips.append(x)
        for layer in self.middle_block:
            x = layer(x, condition)
        for block in self.output_blocks:
            x = torch.cat([x, skips.pop()], 1)
            for layer in block:
                x = layer(x, condition)
        return self.out(x)


class Network(nn.Module):
    """What a checkpoint contains: the U-Net, and buffers of the noise schedule if it was set before saving."""

    def __init__(self, unet, betas=None):
        super().__init__()
        self.denoise_fn = UNet(**unet)
        if betas is not None:
            left = (1 - betas.double()).cumprod(0)
            before = F.pad(left[:-1], (1, 0), value=1.0)
            variance = (1 - before) / (1 - left) * betas
            self.register_buffer("gammas", left.float())
            self.register_buffer("sqrt_recip_gammas", (1 / left).sqrt().float())
            self.register_buffer("sqrt_recipm1_gammas", (1 / left - 1).sqrt().float())
            self.register_buffer("posterior_log_variance_clipped", variance.clamp(min=1e-20).log().float())
            self.register_buffer("posterior_mean_coef1", (betas * before.sqrt() / (1 - left)).float())
            self.register_buffer("posterior_mean_coef2", ((1 - before) * (1 - betas).sqrt() / (1 - left)).float())
