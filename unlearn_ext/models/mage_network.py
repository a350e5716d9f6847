"""The network of MAGE (Li et al., arXiv 2211.09117): a masked autoencoder over the tokens of a VQ-GAN.

Layers have the names of the published checkpoints. Weights that these have but MAGE does not use are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import UserError
from .mage_vqgan import VQGAN

__all__ = ["MAGEConfig", "MAGENetwork"]

# Words behind the codes: 1,000 classes, which MAGE does not use except for the one below, and the mask token.
_NO_CLASS = 76  # stands before the tokens of every image; with 1,024 codes it is word 1,100


@dataclass(frozen=True)
class MAGEConfig:
    """Sizes of a MAGE.

    Attributes:
        image_size: side of the images in pixels.
        num_channels: number of image channels.
        embed_dim: width of the encoder.
        depth: number of its blocks.
        num_heads: number of its attention heads.
        mlp_dim: width of the hidden layer of its blocks.
        decoder_embed_dim: likewise, of the decoder.
        decoder_depth: likewise.
        decoder_num_heads: likewise.
        decoder_mlp_dim: likewise.
        vocab_size: number of words: codes, classes and the mask token.
        codebook_size: number of codes of the VQ-GAN.
        codebook_dim: size of a code.
        vqgan_widths: number of channels of the VQ-GAN's first convolution, then of each of its levels.
        vqgan_blocks: number of blocks per level.

    Raises:
        UserError: a value is not a positive whole number, or they do not fit together.
    """

    image_size: int
    num_channels: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    decoder_embed_dim: int
    decoder_depth: int
    decoder_num_heads: int
    decoder_mlp_dim: int
    vocab_size: int
    codebook_size: int
    codebook_dim: int
    vqgan_widths: tuple[int, ...]
    vqgan_blocks: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "vqgan_widths", tuple(self.vqgan_widths))  # JSON has lists
        for field in fields(self):
            value = getattr(self, field.name)
            numbers = value if isinstance(value, tuple) else (value,)
            if not numbers or any(type(number) is not int or number < 1 for number in numbers):
                raise UserError(f"{field.name} of the MAGE is {value!r}; it must be a positive whole number.")
        for name, number, by in (
            ("embed_dim", self.embed_dim, self.num_heads),
            ("decoder_embed_dim", self.decoder_embed_dim, self.decoder_num_heads),
            ("image_size", self.image_size, self.patch_size),
            *(("a width of the VQ-GAN", width, 32) for width in self.vqgan_widths),
        ):
            if number % by:
                raise UserError(f"{name} of the MAGE is {number}; it must be a multiple of {by}.")
        if self.vocab_size < self.codebook_size + _NO_CLASS + 2 or len(self.vqgan_widths) < 2:
            raise UserError(
                f"the MAGE has {self.vocab_size} words and {len(self.vqgan_widths)} widths of the VQ-GAN; it needs at "
                f"least {self.codebook_size + _NO_CLASS + 2} words for {self.codebook_size} codes, and two widths."
            )

    @property
    def patch_size(self) -> int:
        """Side in pixels of the patch that a token stands for."""
        return 2 ** (len(self.vqgan_widths) - 2)

    @property
    def side(self) -> int:
        """Number of tokens along a side."""
        return self.image_size // self.patch_size


class MAGENetwork(nn.Module):
    """VQ-GAN, encoder and decoder.

    Args:
        config: the sizes.
    """

    def __init__(self, config: MAGEConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False
        positions = config.side**2 + 1
        self.vqgan = VQGAN(
            config.num_channels, config.vqgan_widths, config.vqgan_blocks, config.codebook_size, config.codebook_dim
        )
        self.token_emb = _TokenEmbedding(config.vocab_size, config.embed_dim, positions)
        self.blocks = _blocks(config.depth, config.embed_dim, config.num_heads, config.mlp_dim)
        self.norm = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.decoder_embed = nn.Linear(config.embed_dim, config.decoder_embed_dim)
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, positions, config.decoder_embed_dim))
        self.decoder_blocks = _blocks(
            config.decoder_depth, config.decoder_embed_dim, config.decoder_num_heads, config.decoder_mlp_dim
        )
        self.decoder_norm = nn.LayerNorm(config.decoder_embed_dim, eps=1e-6)
        self.mlm_layer = _Words(config.decoder_embed_dim, config.embed_dim, config.vocab_size)

    def encode(self, tokens: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return latents [N, 1 + P, embed_dim]; the first is that of the class token, which stands before the others.

        Hidden tokens are replaced with the mask token. None is dropped: the original drops tokens only in training, to
        save time, and not when it makes images.

        Args:
            tokens: int64 [N, P].
            hidden: bool [N, P].
        """
        tokens = tokens.masked_fill(hidden, self.config.vocab_size - 1)
        x = self.token_emb(F.pad(tokens, (1, 0), value=self.config.codebook_size + _NO_CLASS))
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.norm(x)

    def decode(self, latents: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Return the logits of the codes at all places, [N, P, codebook_size].

        Args:
            latents: [N, 1 + V, embed_dim]: of the class token, which also stands in all hidden places, and of the
                visible tokens.
            visible: int64 [N, V], the places of these tokens.
        """
        x = self.decoder_embed(latents)
        first, others = x[:, :1], x[:, 1:]
        filled = first.expand(-1, self.config.side**2, -1).scatter(1, visible[..., None].expand_as(others), others)
        x = torch.cat([first, filled], 1) + self.decoder_pos_embed_learned
        for block in self.decoder_blocks:
            x = block(x)
        words = self.token_emb.word_embeddings.weight
        return self.mlm_layer(self.decoder_norm(x), words)[:, 1:, : self.config.codebook_size]


class _TokenEmbedding(nn.Module):
    def __init__(self, words: int, width: int, positions: int) -> None:
        super().__init__()
        self.word_embeddings, self.position_embeddings = nn.Embedding(words, width), nn.Embedding(positions, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.word_embeddings(tokens) + self.position_embeddings.weight)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=1e-6), _Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=1e-6), _MLP(width, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Words(nn.Module):
    """The head of BERT: logits of words [N, T, words] are products with their embeddings."""

    def __init__(self, taken: int, width: int, words: int) -> None:
        super().__init__()
        self.fc, self.ln = nn.Linear(taken, width), nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(1, 1, words))

    def forward(self, x: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        return self.ln(F.gelu(self.fc(x))) @ embeddings.T + self.bias


def _blocks(depth: int, width: int, heads: int, hidden: int) -> nn.ModuleList:
    return nn.ModuleList(_Block(width, heads, hidden) for _ in range(depth))
