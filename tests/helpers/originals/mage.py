"""MAGE (Li et al., arXiv 2211.09117) as its paper and the published checkpoints' layout describe it.

Layers have the names of the checkpoints, also those that the network does not use. Images are in [0, 1].
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


def attend(qkv, heads):
    """Return softmax(query · keyᵀ / √d) · value of every head, [N, T, D]."""
    query, key, value = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, 2))
    weights = (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5).softmax(-1)
    return (weights @ value).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        return self.proj(attend(self.qkv(x), self.heads))


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=1e-6), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=1e-6), Mlp(width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokenEmbedding(nn.Module):
    """BERT's embedding of tokens and their positions."""

    def __init__(self, vocabulary, width, positions):
        super().__init__()
        self.word_embeddings, self.position_embeddings = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-6)
        self.register_buffer("position_ids", torch.arange(positions)[None])

    def forward(self, tokens):
        return self.LayerNorm(self.word_embeddings(tokens) + self.position_embeddings(self.position_ids))


class MlmLayer(nn.Module):
    """BERT's head: logits are products with the word embeddings."""

    def __init__(self, taken, width, vocabulary):
        super().__init__()
        self.fc, self.ln = nn.Linear(taken, width), nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(1, 1, vocabulary))

    def forward(self, x, words):
        return self.ln(F.gelu(self.fc(x))) @ words.T + self.bias


def group_norm(channels):
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """A block without biases; where the width changes, the shortcut takes the block's result, not its input."""

    def __init__(self, taken, given):
        super().__init__()
        self.norm1, self.conv1 = group_norm(taken), nn.Conv2d(taken, given, 3, padding=1, bias=False)
        self.norm2, self.conv2 = group_norm(given), nn.Conv2d(given, given, 3, padding=1, bias=False)
        if taken != given:
            self.nin_shortcut = nn.Conv2d(given, given, 1, bias=False)

    def forward(self, x):
        made = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return made + (self.nin_shortcut(made) if hasattr(self, "nin_shortcut") else x)


def level(widths):
    """Return a module with a list of blocks, named as in the checkpoints."""
    module = nn.Module()
    module.block = nn.ModuleList(ResnetBlock(*pair) for pair in pairwise(widths))
    return module


def middle(width):
    module = nn.Module()
    module.block_1, module.block_2 = ResnetBlock(width, width), ResnetBlock(width, width)
    return module


class Encoder(nn.Module):
    def __init__(self, channels, width, factors, blocks, code):
        super().__init__()
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        sizes = [width, *(width * factor for factor in factors)]
        self.down = nn.ModuleList(level([a] + [b] * blocks) for a, b in pairwise(sizes))
        self.mid, self.norm_out, self.conv_out = middle(sizes[-1]), group_norm(sizes[-1]), nn.Conv2d(sizes[-1], code, 1)

    def forward(self, x):
        x = self.conv_in(x)
        for number, down in enumerate(self.down):
            x = F.avg_pool2d(x, 2) if number else x
            for block in down.block:
                x = block(x)
        return self.conv_out(F.silu(self.norm_out(self.mid.block_2(self.mid.block_1(x)))))


class Decoder(nn.Module):
    def __init__(self, channels, width, factors, blocks, code):
        super().__init__()
        sizes = [width * factor for factor in factors]
        self.conv_in, self.mid = nn.Conv2d(code, sizes[-1], 3, padding=1), middle(sizes[-1])
        self.up = nn.ModuleList(level([a] + [b] * blocks) for a, b in zip([*sizes[1:], sizes[-1]], sizes, strict=True))
        for number, size in enumerate(sizes):
            if number:
                self.up[number].upsample = nn.Module()
                self.up[number].upsample.conv = nn.Conv2d(size, size, 3, padding=1)
        self.norm_out, self.conv_out = group_norm(sizes[0]), nn.Conv2d(sizes[0], channels, 3, padding=1)

    def forward(self, x):
        x = self.mid.block_2(self.mid.block_1(self.conv_in(x)))
        for up in reversed(self.up):
            for block in up.block:
                x = block(x)
            if hasattr(up, "upsample"):
                x = up.upsample.conv(F.interpolate(x, scale_factor=2))
        return self.conv_out(F.silu(self.norm_out(x)))


class VQGAN(nn.Module):
    def __init__(self, channels, width, factors, blocks, codes, code):
        super().__init__()
        self.encoder = Encoder(channels, width, factors, blocks, code)
        self.decoder = Decoder(channels, width, factors, blocks, code)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(codes, code)

    def encode(self, images):
        """Return the index of the nearest code at each place, [N, h·w]."""
        found = self.encoder(images).flatten(2).transpose(1, 2)
        return (found[:, :, None] - self.quantize.embedding.weight).square().sum(-1).argmin(-1)

    def decode(self, tokens, side):
        return self.decoder(self.quantize.embedding(tokens).transpose(1, 2).unflatten(2, (side, side)))


class MAGE(nn.Module):
    def __init__(
        self, side=4, channels=3, width=24, depth=2, heads=3, decoder_width=16, decoder_depth=1, decoder_heads=2,
        vqgan_width=32, factors=(1, 2, 2), blocks=1, codes=24, code=8,
    ):  # fmt: skip
        super().__init__()
        patch, positions, vocabulary = 2 ** (len(factors) - 1), side**2 + 1, codes + 1001
        self.side, self.codes, self.fake_class, self.mask = side, codes, codes + 76, vocabulary - 1
        self.vqgan = VQGAN(channels, vqgan_width, factors, blocks, codes, code)
        self.token_emb = TokenEmbedding(vocabulary, width, positions)
        self.patch_embed = nn.Module()  # not used
        self.patch_embed.proj = nn.Conv2d(channels, width, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))  # not used
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, width))  # not used
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))  # not used
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, positions, decoder_width))  # not used
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, positions, decoder_width))
        self.decoder_blocks = nn.ModuleList(Block(decoder_width, decoder_heads) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_width, patch**2 * channels)  # not used
        self.mlm_layer = MlmLayer(decoder_width, width, vocabulary)

    def forward_encoder(self, tokens, masked, dropped):
        """Return the latents [N, 1 + kept, D] of the class token and of the tokens that are not dropped.

        Args:
            tokens: int64 [N, side²].
            masked: bool [N, side²].
            dropped: bool [N, side²]; as many in each image.
        """
        tokens = F.pad(tokens.masked_fill(masked, self.mask), (1, 0), value=self.fake_class)
        kept = ~F.pad(dropped, (1, 0), value=False)
        x = self.token_emb(tokens)
        x = x[kept].view(len(tokens), -1, x.shape[-1])
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward_decoder(self, latents, masked, dropped):
        """Return the logits [N, 1 + side², vocabulary]; masked tokens are replaced with the class token."""
        masked, kept = F.pad(masked, (1, 0), value=False), ~F.pad(dropped, (1, 0), value=False)
        x = self.decoder_embed(latents)
        fill = x[:, :1].expand(-1, masked.shape[1], -1)
        padded = fill.clone()
        padded[kept] = x.flatten(0, 1)
        x = torch.where(masked[..., None], fill, padded) + self.decoder_pos_embed_learned
        for block in self.decoder_blocks:
            x = block(x)
        return self.mlm_layer(self.decoder_norm(x), self.token_emb.word_embeddings.weight)
