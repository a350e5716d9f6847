"""``EpsilonWrapper`` on two processes equals one process with the joined minibatch; checkpoints are resharded."""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel
from training import CONTROLS, STEPS, divide, network, share, train, whole

import unlearn_ext as ux

INNER = {
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.1),
    "adafactor": lambda params: torch.optim.Adafactor(params, lr=0.01),
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
}
SETTINGS = [(1, 0), (1, None), (3, None)]  # number of constraints, constraint_grad_ema


def made(model, inner, constraints, average):
    inner = INNER[inner](model.parameters())
    return ux.EpsilonWrapper(inner, CONTROLS[constraints], constraint_grad_ema=average)


def alone(inner, constraints, average):
    model = network()
    multipliers = train(model, made(model, inner, constraints, average))
    assert all(max(multipliers[i::constraints]) > 0 for i in range(constraints))  # each constraint was active
    return whole(model), multipliers


def placed(placement):
    return DistributedDataParallel(network()) if placement == "ddp" else divide(network(), placement)


def trained(placement, *settings):
    model = placed(placement)
    multipliers = train(model, made(model, *settings), share)
    return whole(model), multipliers


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(("inner", "placement"), [*[(i, "ddp") for i in INNER], ("adamw", (2,)), ("sgd", (2,))])
def test_two_processes_equal_one(processes, inner, placement, settings):
    parameters, multipliers = alone(inner, *settings)
    for mine, lam in processes.run(2, trained, placement, inner, *settings):
        torch.testing.assert_close(mine, parameters, rtol=1e-5, atol=1e-6)
        assert lam == pytest.approx(multipliers, rel=1e-4)


def first_half(placement, folder, *settings):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model = placed(placement)
    optimizer = made(model, *settings)
    train(model, optimizer, share, steps=STEPS // 2)
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)


def second_half(placement, folder, *settings):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    model = placed(placement)
    optimizer = made(model, *settings)
    weights, state = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    multipliers = train(model, optimizer, share, start=STEPS // 2, steps=STEPS - STEPS // 2)
    return whole(model), multipliers


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(("before", "after"), [("ddp", "ddp"), ((2,), (2,)), ("ddp", (2,))])
def test_training_resumes_from_a_checkpoint(processes, tmp_path, before, after, settings):
    processes.run(2, first_half, before, str(tmp_path), "adamw", *settings)
    parameters, multipliers = alone("adamw", *settings)
    for mine, lam in processes.run(2, second_half, after, str(tmp_path), "adamw", *settings):
        torch.testing.assert_close(mine, parameters, rtol=1e-5, atol=1e-6)
        assert lam == pytest.approx(multipliers[STEPS // 2 * settings[0] :], rel=1e-4)
