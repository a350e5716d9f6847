"""Mixed precision with torch.amp.GradScaler: pass the scaler to ``hold_constraint``, since it scaled f1's gradient.

Older GPUs need float16 autocast with a scaler. bfloat16 needs no scaler, and the loop does not change.
"""

import copy

import torch
from torch import nn

import unlearn_ext as ux

EPSILON = 0.2


def main():
    """Train on synthetic data and print the result."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 4)).to(device)
    original = copy.deepcopy(model)
    forget, retain = (torch.randn(256, 8, device=device) + shift for shift in (1, -1))
    with torch.no_grad():
        kept = original(retain)

    optimizer = ux.EpsilonAdamW(model.parameters(), lr=2e-3, weight_decay=0.0, control=ux.EpsilonGap(epsilon=EPSILON))
    scaler = torch.amp.GradScaler(device)
    for _ in range(150):
        with torch.autocast(device, dtype=torch.float16):
            f1 = (model(forget).float() - 1).square().mean()
        scaler.scale(f1).backward()
        optimizer.hold_constraint(f1, scaler=scaler)  # f1 is not scaled; its gradient is unscaled here
        with torch.autocast(device, dtype=torch.float16):
            f2 = (model(retain).float() - kept).square().mean()
        scaler.scale(f2).backward()
        scaler.step(optimizer)  # an overflow in either gradient skips the step ...
        scaler.update()  # ... and lowers the scale
        optimizer.zero_grad()

    with torch.no_grad():
        f1, f2 = (model(forget) - 1).square().mean().item(), (model(retain) - kept).square().mean().item()
    print(f"reached f1 {f1:.4f}, asked ε = {EPSILON}; f2 {f2:.4f}; scale {scaler.get_scale():.0f}")


if __name__ == "__main__":
    main()
