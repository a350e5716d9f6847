"""Hugging Face Trainer with gradient accumulation: a constraint inside ``training_step``.

A small GPT-2 is trained on all sentences, but may give the tokens of some of them a mean probability of at most ε.
"""

import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

import unlearn_ext as ux

EPSILON, TOKENS, LENGTH = 0.1, 31, 8
SMALL = {"vocab_size": TOKENS, "n_positions": LENGTH, "n_embd": 32, "n_head": 2, "n_layer": 2}


def sentences(step):
    """Return int64 [256, LENGTH]; every token is the one before plus ``step``, modulo TOKENS."""
    return (torch.randint(TOKENS, (256, 1)) + step * torch.arange(LENGTH)) % TOKENS


def probability(model, tokens):
    """Return the mean probability of all tokens but the first two."""
    return model(input_ids=tokens).logits[:, 1:-1].softmax(-1).gather(-1, tokens[:, 2:, None]).mean()


class ConstrainedTrainer(Trainer):
    """A Trainer whose batches also have sentences for the constraint."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Run a micro-batch of the constraint, then one of the objective."""
        private = inputs.pop("private").to(self.args.device)
        optimizer = self.optimizer.optimizer  # the Trainer's own is accelerate's wrapper
        with optimizer.constraint(scaler=self.accelerator.scaler) as hold:  # p.grad is ∇c here, ∇f2 again afterwards
            c = probability(model.eval(), private) / self.current_gradient_accumulation_steps  # without dropout
            self.accelerator.backward(c)
            hold(c)
        return super().training_step(model, inputs, num_items_in_batch)


def main():
    """Train on synthetic sentences and print the result."""
    set_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**SMALL))
    private, public = sentences(step=3), torch.cat([sentences(step=3), sentences(step=5)])[torch.randperm(512)]
    data = [{"private": private[i % 256], "input_ids": public[i], "labels": public[i]} for i in range(512)]
    optimizer = ux.EpsilonAdamW(model.parameters(), lr=3e-3, control=ux.EpsilonGap(EPSILON))
    batches = {"per_device_train_batch_size": 32, "gradient_accumulation_steps": 2, "num_train_epochs": 60}
    quiet = {"save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, remove_unused_columns=False, **batches, **quiet)
        ConstrainedTrainer(model, arguments, train_dataset=data, optimizers=(optimizer, None)).train()
    with torch.no_grad():
        c, others = (probability(model.eval(), tokens).item() for tokens in (private, sentences(step=5)))
    print(f"reached f1 {c:.4f}, asked ε = {EPSILON}; probability of the other sentences {others:.3f}")


if __name__ == "__main__":
    main()
