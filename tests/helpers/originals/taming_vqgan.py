"""The VQ-GAN of taming-transformers, from its description: modules of its names, and their forward pass.

Encoder and decoder follow DDPM's U-Net (arXiv 2006.11239, appendix B) without its time embedding and skip connections;
Esser et al., arXiv 2012.09841, table 7. Levels of the decoder are counted from the finest.
"""

import torch
from torch import nn
from torch.nn import functional as F


def _norm(channels):
    return nn.GroupNorm(32, channels, eps=1e-6)


def _conv(inputs, outputs, side=3, **options):
    return nn.Conv2d(inputs, outputs, side, padding=side // 2, **options)


class ResnetBlock(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs), _conv(inputs, outputs)
        self.norm2, self.conv2 = _norm(outputs), _conv(outputs, outputs)
        if inputs != outputs:
            self.nin_shortcut = _conv(inputs, outputs, 1)

    def forward(self, x):
        made = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return made + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """One head over all pixels."""

    def __init__(self, channels):
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (_conv(channels, channels, 1) for _ in range(4))

    def forward(self, x):
        normed = self.norm(x)
        q, k, v = (layer(normed).flatten(2) for layer in (self.q, self.k, self.v))  # [N, C, pixels]
        weights = torch.einsum("ncq,nck->nqk", q, k).div(q.shape[1] ** 0.5).softmax(2)
        return x + self.proj_out(torch.einsum("nqk,nck->ncq", weights, v).view_as(x))


class Middle(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.block_1, self.attn_1 = ResnetBlock(channels, channels), AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x):
        return self.block_2(self.attn_1(self.block_1(x)))


class Resample(nn.Module):
    def __init__(self, channels, stride):
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(channels, channels, 3, stride, padding=2 - stride)

    def forward(self, x):
        if self.stride == 2:  # one row and one column of zeros, at the bottom and at the right
            return self.conv(F.pad(x, (0, 1, 0, 1)))
        return self.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))


class Level(nn.Module):
    def __init__(self, inputs, outputs, blocks, attention, resample=None):
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(outputs if i else inputs, outputs) for i in range(blocks))
        self.attn = nn.ModuleList(AttnBlock(outputs) for _ in range(blocks if attention else 0))
        if resample:
            setattr(self, resample, Resample(outputs, 2 if resample == "downsample" else 1))

    def forward(self, x):
        for place, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[place](x)
        for name in ("downsample", "upsample"):
            x = getattr(self, name)(x) if hasattr(self, name) else x
        return x


class Encoder(nn.Module):
    def __init__(self, ch, ch_mult, num_res_blocks, attn_resolutions, in_channels, resolution, z_channels, **_):
        super().__init__()
        widths = [ch, *(ch * multiple for multiple in ch_mult)]
        last = len(ch_mult) - 1
        self.conv_in = _conv(in_channels, ch)
        self.down = nn.ModuleList(
            Level(widths[i], widths[i + 1], num_res_blocks, resolution // 2**i in attn_resolutions,
                  "downsample" if i < last else None)
            for i in range(last + 1)
        )  # fmt: skip
        self.mid = Middle(widths[-1])
        self.norm_out, self.conv_out = _norm(widths[-1]), _conv(widths[-1], z_channels)

    def forward(self, x):
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, ch, ch_mult, num_res_blocks, attn_resolutions, out_ch, resolution, z_channels, **_):
        super().__init__()
        widths = [ch * multiple for multiple in ch_mult]
        last = len(ch_mult) - 1
        self.conv_in = _conv(z_channels, widths[-1])
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            Level(widths[min(i + 1, last)], widths[i], num_res_blocks + 1, resolution // 2**i in attn_resolutions,
                  "upsample" if i else None)
            for i in range(last + 1)
        )  # fmt: skip
        self.norm_out, self.conv_out = _norm(widths[0]), _conv(widths[0], out_ch)

    def forward(self, x):
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Codebook(nn.Module):
    def __init__(self, codes, width):
        super().__init__()
        self.embedding = nn.Embedding(codes, width)

    def forward(self, x):
        vectors = x.permute(0, 2, 3, 1)
        distances = (vectors[..., None, :] - self.embedding.weight).square().sum(-1)
        return self.embedding(distances.argmin(-1)).permute(0, 3, 1, 2)


class VQModel(nn.Module):
    """Images in [-1, 1]; the encoder, a 1×1 convolution, the nearest code, a 1×1 convolution, the decoder."""

    def __init__(self, ddconfig, n_embed, embed_dim):
        super().__init__()
        self.encoder, self.decoder = Encoder(**ddconfig), Decoder(**ddconfig)
        self.quantize = Codebook(n_embed, embed_dim)
        self.quant_conv = _conv(ddconfig["z_channels"], embed_dim, 1)
        self.post_quant_conv = _conv(embed_dim, ddconfig["z_channels"], 1)
        self.loss = nn.ModuleDict({"discriminator": _conv(ddconfig["out_ch"], 1, 4)})

    def encode(self, x):
        """Return the latents before quantisation."""
        return self.quant_conv(self.encoder(x))

    def decode(self, latents):
        return self.decoder(self.post_quant_conv(self.quantize(latents)))
