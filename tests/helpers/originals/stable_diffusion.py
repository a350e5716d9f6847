"""Stable Diffusion 1's U-Net and VAE in their original layout (Rombach et al., arXiv 2112.10752), with few channels."""

import math

import torch
from torch import nn
from torch.nn import functional


def norm(channels, eps=1e-5):
    return nn.GroupNorm(32, channels, eps=eps)


class ResBlock(nn.Module):
    def __init__(self, given, time, made):
        super().__init__()
        self.in_layers = nn.Sequential(norm(given), nn.SiLU(), nn.Conv2d(given, made, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, made))
        self.out_layers = nn.Sequential(norm(made), nn.SiLU(), nn.Dropout(0), nn.Conv2d(made, made, 3, padding=1))
        self.skip_connection = nn.Identity() if given == made else nn.Conv2d(given, made, 1)

    def forward(self, hidden, time, _):
        inner = self.in_layers(hidden) + self.emb_layers(time)[:, :, None, None]
        return self.skip_connection(hidden) + self.out_layers(inner)


class CrossAttention(nn.Module):
    def __init__(self, width, context, heads):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0))

    def forward(self, hidden, context):
        split = [
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q(hidden), self.to_k(context), self.to_v(context))
        ]
        query, key, value = split
        weights = (query @ key.transpose(2, 3) / math.sqrt(query.shape[3])).softmax(3)
        return self.to_out((weights @ value).transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, hidden):
        value, gate = self.proj(hidden).chunk(2, 2)
        return value * functional.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Dropout(0), nn.Linear(4 * width, width))

    def forward(self, hidden):
        return self.net(hidden)


class TransformerBlock(nn.Module):
    def __init__(self, width, context, heads):
        super().__init__()
        self.attn1 = CrossAttention(width, width, heads)
        self.ff = FeedForward(width)
        self.attn2 = CrossAttention(width, context, heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, hidden, context):
        first = self.norm1(hidden)
        hidden = hidden + self.attn1(first, first)
        hidden = hidden + self.attn2(self.norm2(hidden), context)
        return hidden + self.ff(self.norm3(hidden))


class SpatialTransformer(nn.Module):
    def __init__(self, width, context, heads):
        super().__init__()
        self.norm = norm(width, 1e-6)
        self.proj_in, self.proj_out = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, context, heads)])

    def forward(self, image, _, context):
        hidden = self.proj_in(self.norm(image)).flatten(2).transpose(1, 2)
        hidden = self.transformer_blocks[0](hidden, context).transpose(1, 2).view_as(image)
        return image + self.proj_out(hidden)


class Down(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, hidden, *_):
        return self.op(hidden)


class Up(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, hidden, *_):
        return self.conv(functional.interpolate(hidden, scale_factor=2.0))


class Stem(nn.Conv2d):
    def forward(self, hidden, *_):
        return super().forward(hidden)


class UNet(nn.Module):
    """The U-Net with attention in all levels except the last."""

    def __init__(self, channels, width=32, multiples=(1, 2), layers=1, context=64, heads=8):
        super().__init__()
        self.width, time = width, 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        self.input_blocks = nn.ModuleList([nn.ModuleList([Stem(channels, width, 3, padding=1)])])
        skips, current = [width], width
        for level, multiple in enumerate(multiples):
            for _ in range(layers):
                block = nn.ModuleList([ResBlock(current, time, multiple * width)])
                current = multiple * width
                if level < len(multiples) - 1:
                    block.append(SpatialTransformer(current, context, heads))
                self.input_blocks.append(block)
                skips.append(current)
            if level < len(multiples) - 1:
                self.input_blocks.append(nn.ModuleList([Down(current)]))
                skips.append(current)
        self.middle_block = nn.ModuleList(
            [ResBlock(current, time, current), SpatialTransformer(current, context, heads),
             ResBlock(current, time, current)]
        )  # fmt: skip
        self.output_blocks = nn.ModuleList()
        for level, multiple in reversed(list(enumerate(multiples))):
            for number in range(layers + 1):
                block = nn.ModuleList([ResBlock(current + skips.pop(), time, multiple * width)])
                current = multiple * width
                if level < len(multiples) - 1:
                    block.append(SpatialTransformer(current, context, heads))
                if level and number == layers:
                    block.append(Up(current))
                self.output_blocks.append(block)
        self.out = nn.Sequential(norm(current), nn.SiLU(), nn.Conv2d(current, 4, 3, padding=1))

    def forward(self, hidden, timesteps, context):
        half = self.width // 2
        angles = timesteps[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        time = self.time_embed(torch.cat([angles.cos(), angles.sin()], 1))
        kept = []
        for block in self.input_blocks:
            for layer in block:
                hidden = layer(hidden, time, context)
            kept.append(hidden)
        for layer in self.middle_block:
            hidden = layer(hidden, time, context)
        for block in self.output_blocks:
            hidden = torch.cat([hidden, kept.pop()], 1)
            for layer in block:
                hidden = layer(hidden, time, context)
        return self.out(hidden)


class VAEBlock(nn.Module):
    def __init__(self, given, made):
        super().__init__()
        self.norm1, self.conv1 = norm(given, 1e-6), nn.Conv2d(given, made, 3, padding=1)
        self.norm2, self.conv2 = norm(made, 1e-6), nn.Conv2d(made, made, 3, padding=1)
        if given != made:
            self.nin_shortcut = nn.Conv2d(given, made, 1)

    def forward(self, hidden):
        inner = self.conv1(functional.silu(self.norm1(hidden)))
        inner = self.conv2(functional.silu(self.norm2(inner)))
        return (self.nin_shortcut(hidden) if hasattr(self, "nin_shortcut") else hidden) + inner


class VAEAttention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = norm(width, 1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, image):
        query, key, value = (part(self.norm(image)).flatten(2) for part in (self.q, self.k, self.v))
        weights = (query.transpose(1, 2) @ key / math.sqrt(image.shape[1])).softmax(2)
        return image + self.proj_out((value @ weights.transpose(1, 2)).view_as(image))


class Holder(nn.Module):
    """A module whose parts are given by name."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def middle(width):
    return Holder(block_1=VAEBlock(width, width), attn_1=VAEAttention(width), block_2=VAEBlock(width, width))


class VAEDown(nn.Module):
    """Halve the sides, with one row and one column of zeros at the end."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, hidden):
        return self.conv(functional.pad(hidden, (0, 1, 0, 1)))


class VAE(nn.Module):
    def __init__(self, width=32, multiples=(1, 2), layers=1):
        super().__init__()
        last = multiples[-1] * width
        down, current = nn.ModuleList(), width
        for level, multiple in enumerate(multiples):
            blocks = nn.ModuleList()
            for _ in range(layers):
                blocks.append(VAEBlock(current, multiple * width))
                current = multiple * width
            parts = {"block": blocks}
            if level < len(multiples) - 1:
                parts["downsample"] = VAEDown(current)
            down.append(Holder(**parts))
        self.encoder = Holder(
            conv_in=nn.Conv2d(3, width, 3, padding=1), down=down, mid=middle(last), norm_out=norm(last, 1e-6),
            conv_out=nn.Conv2d(last, 8, 3, padding=1),
        )  # fmt: skip
        up, current = [], last
        for level, multiple in reversed(list(enumerate(multiples))):
            blocks = nn.ModuleList()
            for _ in range(layers + 1):
                blocks.append(VAEBlock(current, multiple * width))
                current = multiple * width
            parts = {"block": blocks}
            if level:
                parts["upsample"] = Up(current)
            up.insert(0, Holder(**parts))
        self.decoder = Holder(
            conv_in=nn.Conv2d(4, last, 3, padding=1), mid=middle(last), up=nn.ModuleList(up),
            norm_out=norm(current, 1e-6), conv_out=nn.Conv2d(current, 3, 3, padding=1),
        )  # fmt: skip
        self.quant_conv, self.post_quant_conv = nn.Conv2d(8, 8, 1), nn.Conv2d(4, 4, 1)

    def mean(self, images):
        encoder, hidden = self.encoder, self.encoder.conv_in(images)
        for level in encoder.down:
            for block in level.block:
                hidden = block(hidden)
            if hasattr(level, "downsample"):
                hidden = level.downsample(hidden)
        hidden = encoder.mid.block_2(encoder.mid.attn_1(encoder.mid.block_1(hidden)))
        hidden = encoder.conv_out(functional.silu(encoder.norm_out(hidden)))
        return self.quant_conv(hidden).chunk(2, 1)[0]

    def decode(self, latents):
        decoder, hidden = self.decoder, self.decoder.conv_in(self.post_quant_conv(latents))
        hidden = decoder.mid.block_2(decoder.mid.attn_1(decoder.mid.block_1(hidden)))
        for level in reversed(decoder.up):
            for block in level.block:
                hidden = block(hidden)
            if hasattr(level, "upsample"):
                hidden = level.upsample(hidden)
        return decoder.conv_out(functional.silu(decoder.norm_out(hidden)))
