"""Lightning's automatic optimization, with accumulation and clipping: a constraint inside ``training_step``."""

import logging
import warnings

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import unlearn_ext as ux

EPSILON, MICRO_BATCHES = 0.1, 2


class Unlearning(lightning.LightningModule):
    """A module that keeps f1 at ε and f2 small."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 4))
        self.frozen = nn.Linear(8, 4).requires_grad_(False)

    def configure_optimizers(self):
        """Return the optimizer."""
        control = ux.EpsilonGap(epsilon=EPSILON)
        return ux.EpsilonAdamW(self.encoder.parameters(), lr=2e-3, weight_decay=0.0, control=control)

    def training_step(self, batch, batch_idx):
        """Hold the constraint and return the objective, for which Lightning calls ``backward``."""
        forget, retain = batch
        with self.optimizers().constraint() as hold:  # p.grad is ∇f1 here, and what it was before afterwards
            f1 = self.encoder(forget).square().mean() / MICRO_BATCHES
            f1.backward()
            hold(f1)
        return (self.encoder(retain) - self.frozen(retain)).square().mean()


def main():
    """Train on synthetic data and print the result."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    lightning.seed_everything(0, verbose=False)
    forget, retain = torch.randn(512, 8), torch.randn(512, 8)
    module, loader = Unlearning(), DataLoader(TensorDataset(forget, retain), batch_size=32, shuffle=True)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    options = {"accumulate_grad_batches": MICRO_BATCHES, "gradient_clip_val": 1.0}  # clips ∇f2
    lightning.Trainer(max_epochs=25, accelerator="cpu", **options, **quiet).fit(module, loader)
    with torch.no_grad():
        f1 = module.encoder(forget).square().mean().item()
    print(f"reached f1 {f1:.4f}, asked ε = {EPSILON}; f1 before: about 0.2")


if __name__ == "__main__":
    main()
