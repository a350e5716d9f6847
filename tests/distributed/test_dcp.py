"""torch.distributed.checkpoint saves, loads and reshards the optimizers' state."""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel
from training import CONTROLS, OPTIMIZERS, STEPS, alone, divide, network, share, train, whole


def made(name, placement, **options):
    """Return the model of the small problem, under DDP or sharded over a mesh, and its optimizer."""
    model = DistributedDataParallel(network()) if placement == "ddp" else divide(network(), placement)
    return model, OPTIMIZERS[name](model.parameters(), **options)


def first_half(name, placement, folder, **options):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model, optimizer = made(name, placement, **options)
    train(model, optimizer, share, steps=STEPS // 2)
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)


def second_half(name, placement, folder, **options):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    model, optimizer = made(name, placement, **options)
    weights, state = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    steps = [optimizer.state[p]["step"] for p in model.parameters()]
    multipliers = train(model, optimizer, share, start=STEPS // 2, steps=STEPS - STEPS // 2)
    return whole(model), multipliers, [(type(step) is torch.Tensor, step.shape) for step in steps]


@pytest.mark.parametrize(("constraints", "decay"), [(1, 0.0), (1, 0.9), (3, 0.9)])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    ("before", "after"), [("ddp", "ddp"), ((2,), (2,)), ((2,), (2, 2)), ((2, 2), (2,)), ("ddp", (2,))]
)
def test_training_resumes_from_a_checkpoint(processes, tmp_path, name, before, after, constraints, decay):
    options = {"control": CONTROLS[constraints], "constraint_grad_ema": decay}

    def size(placement):
        return 4 if placement == (2, 2) else 2

    processes.run(size(before), first_half, name, before, str(tmp_path), **options)
    parameters, multipliers = alone(name, **options)
    for mine, lam, steps in processes.run(size(after), second_half, name, after, str(tmp_path), **options):
        torch.testing.assert_close(mine, parameters, rtol=1e-5, atol=1e-6)
        assert lam == pytest.approx(multipliers[STEPS // 2 * constraints :], rel=1e-4)
        assert all(step == (True, ()) for step in steps)
