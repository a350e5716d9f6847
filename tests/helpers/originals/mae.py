"""The original masked autoencoder (He et al., arXiv 2111.06377), with the names of its own program.

Written from the paper: a ViT on the visible patches with pre-normalised blocks; a linear map to the decoder's width;
mask tokens in the places of the hidden patches; more blocks; and a linear map to pixels.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        batch, count, width = tokens.shape
        query, key, value = (
            self.qkv(tokens).view(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        )
        mixed = scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, count, width))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.fc2(gelu(self.fc1(tokens)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = Attention(width, heads), Mlp(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class PatchEmbed(nn.Module):
    def __init__(self, patch: int, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class MaskedAutoencoder(nn.Module):
    """A masked autoencoder of small sizes; positions are random here, sines in the original's files."""

    def __init__(self, side: int = 16, patch: int = 4, channels: int = 3, width: int = 24, decoder: int = 16) -> None:
        super().__init__()
        count = (side // patch) ** 2
        self.patch_embed = PatchEmbed(patch, channels, width)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, count + 1, width), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, 4) for _ in range(3))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_embed = nn.Linear(width, decoder)
        self.mask_token = nn.Parameter(torch.randn(1, 1, decoder))
        self.decoder_pos_embed = nn.Parameter(torch.randn(1, count + 1, decoder), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(Block(decoder, 2) for _ in range(2))
        self.decoder_norm = nn.LayerNorm(decoder, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder, patch**2 * channels)

    def encode(self, images: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Return the latents [N, 1 + V, width] of the patches whose indices are visible, [N, V]."""
        tokens = self.patch_embed(images) + self.pos_embed[:, 1:]
        tokens = tokens.gather(1, visible[..., None].expand(-1, -1, tokens.shape[-1]))
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(images), -1, -1)
        tokens = torch.cat([first, tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def decode(self, latents: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Return the predicted pixels of all patches, [N, P, patch² · C]; within a patch rows, columns, channels."""
        tokens = self.decoder_embed(latents)
        every = self.mask_token.expand(len(tokens), self.decoder_pos_embed.shape[1] - 1, -1)
        every = every.scatter(1, visible[..., None].expand(-1, -1, tokens.shape[-1]), tokens[:, 1:])
        tokens = torch.cat([tokens[:, :1], every], 1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_pred(self.decoder_norm(tokens))[:, 1:]
