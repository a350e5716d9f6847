"""Forget sentences in a small language model: their tokens are to have a mean probability of ε."""

import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

import unlearn_ext as ux

EPSILON, TOKENS, LENGTH = 0.1, 31, 8
SMALL = {"vocab_size": TOKENS, "n_positions": LENGTH, "n_embd": 32, "n_head": 2, "n_layer": 2}


def sentences(step):
    """Return int64 [256, LENGTH]; every token is the one before plus ``step``, modulo TOKENS."""
    return (torch.randint(TOKENS, (256, 1)) + step * torch.arange(LENGTH)) % TOKENS


def logits(model, tokens):
    """Return the logits of all tokens but the first two, which the others follow from."""
    return model(tokens).logits[:, 1:-1]


def loss(model, tokens):
    """Return the cross-entropy per token."""
    return cross_entropy(logits(model, tokens).flatten(0, 1), tokens[:, 2:].flatten())


def probability(model, tokens):
    """Return the mean probability of a token: bounded, and its mean over minibatches is that over all sentences."""
    return logits(model, tokens).softmax(-1).gather(-1, tokens[:, 2:, None]).mean()


def main():
    """Train a small GPT-2 on two sets of sentences, forget one of them and print the result."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**SMALL))
    forget, retain = sentences(step=3), sentences(step=5)
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(300):
        loss(model, torch.cat([forget, retain])[torch.randint(512, (64,))]).backward()
        adam.step()
        adam.zero_grad()

    model.eval()  # as it is deployed: without dropout
    optimizer = ux.EpsilonAdamW(model.parameters(), lr=1e-3, control=ux.EpsilonGap(EPSILON, equality=True))
    for _ in range(200):
        c = probability(model, forget[torch.randint(256, (32,))])
        c.backward()
        optimizer.hold_constraint(c)
        loss(model, retain[torch.randint(256, (32,))]).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        f1, kept = probability(model, forget), probability(model, retain)
    print(f"reached f1 {f1:.4f}, asked ε = {EPSILON}; retained {kept:.3f}")


if __name__ == "__main__":
    main()
