"""Lightning: two backward passes per step need manual optimization; Lightning's wrapper has the optimizer's methods."""

import logging
import warnings

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import unlearn_ext as ux

EPSILON = 0.1


class Unlearning(lightning.LightningModule):
    """A module that keeps f1 at ε and f2 small."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.encoder = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 4))
        self.frozen = nn.Linear(8, 4).requires_grad_(False)

    def configure_optimizers(self):
        """Return the optimizer."""
        control = ux.EpsilonGap(epsilon=EPSILON)
        return ux.EpsilonAdamW(self.encoder.parameters(), lr=2e-3, weight_decay=0.0, control=control)

    def training_step(self, batch, batch_idx):
        """Take one step with both losses."""
        forget, retain = batch
        optimizer = self.optimizers()
        f1 = self.encoder(forget).square().mean()
        self.manual_backward(f1)
        optimizer.hold_constraint(f1)  # precision="16-mixed": (f1, scaler=self.trainer.precision_plugin.scaler)
        f2 = (self.encoder(retain) - self.frozen(retain)).square().mean()
        self.manual_backward(f2)
        optimizer.step()
        optimizer.zero_grad()
        self.log_dict({"f1": optimizer.stats.constraint, "lambda": optimizer.stats.lam})


def main():
    """Train on synthetic data and print the result."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    lightning.seed_everything(0, verbose=False)
    forget, retain = torch.randn(512, 8), torch.randn(512, 8)
    module, loader = Unlearning(), DataLoader(TensorDataset(forget, retain), batch_size=64, shuffle=True)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    lightning.Trainer(max_epochs=25, accelerator="cpu", **quiet).fit(module, loader)
    with torch.no_grad():
        f1 = module.encoder(forget).square().mean().item()
    print(f"reached f1 {f1:.4f}, asked ε = {EPSILON}; f1 before: about 0.2")


if __name__ == "__main__":
    main()
