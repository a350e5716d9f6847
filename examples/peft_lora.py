"""PEFT LoRA: forget sentences by training adapters alone; ε holds for the model with its adapters."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

import unlearn_ext as ux

EPSILON, TOKENS, LENGTH = 0.1, 31, 8
SMALL = {"vocab_size": TOKENS, "n_positions": LENGTH, "n_embd": 32, "n_head": 2, "n_layer": 2}


def sentences(step):
    """Return int64 [256, LENGTH]; every token is the one before plus ``step``, modulo TOKENS."""
    return (torch.randint(TOKENS, (256, 1)) + step * torch.arange(LENGTH)) % TOKENS


def loss(model, tokens):
    """Return the cross-entropy per token."""
    return model(input_ids=tokens, labels=tokens).loss


def probability(model, tokens):
    """Return the mean probability of all tokens but the first two, which the others follow from."""
    return model(input_ids=tokens).logits[:, 1:-1].softmax(-1).gather(-1, tokens[:, 2:, None]).mean()


def main():
    """Train a small GPT-2 on two sets of sentences, forget one of them by adapters and print the result."""
    torch.manual_seed(0)
    model, forget, retain = GPT2LMHeadModel(GPT2Config(**SMALL)), sentences(step=3), sentences(step=5)
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(300):
        loss(model, torch.cat([forget, retain])[torch.randint(512, (64,))]).backward()
        adam.step()
        adam.zero_grad()

    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["c_attn", "c_fc", "c_proj"], fan_in_fan_out=True)
    model = get_peft_model(model, lora).eval()  # freezes all other parameters
    adapters = [p for p in model.parameters() if p.requires_grad]
    optimizer = ux.EpsilonAdamW(adapters, lr=3e-3, control=ux.EpsilonGap(EPSILON, equality=True))
    for _ in range(300):
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
