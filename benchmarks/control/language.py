"""Forgetting in a tiny GPT-2 by token probability."""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .networks import fit
from .problem import Problem

SENTENCES, LENGTH, TOKENS = 256, 8, 32


@cache
def _sentences() -> Tensor:
    """Return int64 [2, SENTENCES, LENGTH]: two languages; first token and half of the successors differ."""
    generator = torch.Generator().manual_seed(0)
    languages = []
    common = torch.randint(2, TOKENS, (TOKENS, 2), generator=generator)
    for first in range(2):
        successors = common.clone()
        successors[::2] = torch.randint(2, TOKENS, (TOKENS // 2, 2), generator=generator)
        tokens = [torch.full((SENTENCES,), first), torch.randint(2, TOKENS, (SENTENCES,), generator=generator)]
        for _ in range(LENGTH - 2):
            rare = (torch.rand(SENTENCES, generator=generator) < 0.1).long()
            tokens.append(successors[tokens[-1], rare])
        languages.append(torch.stack(tokens, 1))
    return torch.stack(languages)


def _logits(module: nn.Module, tokens: Tensor) -> Tensor:
    return module(tokens).logits[:, 1:-1]  # the token after the first is random


@cache
def _pretrained() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=TOKENS,
        bos_token_id=None,
        eos_token_id=None,
        n_positions=LENGTH,
        n_embd=24,
        n_layer=2,
        n_head=2,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    )
    module, tokens = GPT2LMHeadModel(config), _sentences().flatten(0, 1)
    fit(module, lambda i: _cross_entropy(module, tokens[i]), len(tokens), 500, lr=1e-2)
    return module


def _cross_entropy(module: nn.Module, tokens: Tensor) -> Tensor:
    return F.cross_entropy(_logits(module, tokens).flatten(0, 1), tokens[:, 2:].flatten())


def forget_sentences(epsilon: float) -> Problem:
    """Return a language model that is to give the tokens of one language a mean probability of ε."""
    forgotten, kept = _sentences()
    module = copy.deepcopy(_pretrained())

    def constraint(i: Tensor) -> Tensor:
        probabilities = _logits(module, forgotten[i]).softmax(-1)
        return probabilities.gather(-1, forgotten[i][:, 2:, None]).mean()

    return Problem(
        list(module.parameters()),
        constraint,
        lambda i: _cross_entropy(module, kept[i]),
        SENTENCES,
        epsilon,
        {"EpsilonSGD": 0.1, "EpsilonAdamW": 1e-3},
        steps=400,
    )
