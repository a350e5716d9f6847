"""Run torch's own tests of optimizers, schedulers, SWA, GradScaler and optimizers in backward on this package.

    python tests/torchs_own/run.py PATH [pytest's options]

PATH is the folder ``test`` of a source tree of torch, preferably of the installed version: torch's wheels do not have
it, Debian's source package does. Nothing is downloaded. In the test files, ``torch.optim.SGD`` and ``AdamW`` are
``EpsilonSGD`` and ``EpsilonAdamW`` without a control, and torch's optimizer database contains only these two. The run
fails if a test outside ``EXPECTED`` fails, or if one in ``EXPECTED`` passes.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.testing._internal import common_optimizers

import unlearn_ext as ux

#: Test files, and the text that the ids of the selected tests contain.
FILES = {
    "test_optim.py": "TestOptimRenewed",
    "optim/test_lrscheduler.py": "",
    "optim/test_swa_utils.py": "",
    "optim/test_swap_in_optimizer_state.py": "",
    "test_torch.py": "grad_scal",
    "distributed/optim/test_named_optimizer.py": "",
    "distributed/optim/test_apply_optimizer_in_backward.py": "",
}

#: Patterns of test ids, and why these tests must fail.
EXPECTED = {
    r"test_errors_": "the errors are of the same kinds, in this package's words; test_torch_contract.py has the kinds",
    r"test_fused_error_on_params_on_meta": "the same error in other words",
    r"test_fused_matches_forloop_.*float64": "fused=True refuses float64, for which there are no kernels",
    r"NamedOptimizerTest::test_load_state_dict$": "it wants all states to differ; a momentum has a step counter here",
    r"in_backward_shared_params": "a parameter given twice is refused, and not stepped twice",
}

OURS = {"SGD": ux.EpsilonSGD, "AdamW": ux.EpsilonAdamW}
OPTIONS = {
    name: set(inspect.signature(cls).parameters) | {"foreach", "capturable", "differentiable"}
    for name, cls in OURS.items()
}


def drop_in(cls: type) -> type:
    """Return a subclass that also accepts torch's options, as long as they ask for nothing that it lacks."""

    class DropIn(cls):
        def __init__(self, params, *args, foreach=None, capturable=False, differentiable=False, **options):
            if capturable or differentiable or options.get("amsgrad"):
                raise TypeError("no such option")
            options.pop("amsgrad", None)
            super().__init__(params, *args, **options)

    DropIn.__name__ = DropIn.__qualname__ = cls.__name__.removeprefix("Epsilon")  # the tests look classes up by name
    return DropIn


def known(inputs: Callable, name: str) -> Callable:
    """Leave out inputs with options that the class does not have, and inputs with tensor betas."""

    def filtered(*args, **kwargs) -> list:
        return [given for given in inputs(*args, **kwargs) if set(options_of(given)) <= OPTIONS[name] and plain(given)]

    return filtered


def options_of(given) -> dict:
    return getattr(given, "optimizer_error_input", given).kwargs


def plain(given) -> bool:
    betas = options_of(given).get("betas", ())
    return not (isinstance(betas, tuple) and any(isinstance(beta, torch.Tensor) for beta in betas))


def infos() -> Iterator[common_optimizers.OptimizerInfo]:
    for info in common_optimizers.optim_db:
        name = info.optim_cls.__name__
        if name in OURS:
            info.optim_cls = getattr(torch.optim, name)
            info.optim_inputs_func = known(info.optim_inputs_func, name)
            info.optim_error_inputs_func = known(info.optim_error_inputs_func, name)
            info.supported_impls = ("fused",)
            info.supports_fused_on = ("cpu", "cuda")
            info.supports_sparse = info.supports_complex = info.has_capturable_arg = False
            info.supports_multiple_devices = False
            yield info


class Verdicts:
    """A pytest plugin that selects the tests of ``FILES`` and marks those of ``EXPECTED``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def pytest_collection_modifyitems(self, config, items) -> None:
        chosen = []
        for item in items:
            wanted = FILES[str(item.path.relative_to(self.root))]
            if wanted in item.nodeid:
                chosen.append(item)
            for pattern, reason in EXPECTED.items():
                if re.search(pattern, item.nodeid):
                    item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
        items[:] = chosen


def main(root: Path, options: list[str]) -> int:
    for name, cls in OURS.items():
        made = drop_in(cls)
        for module in (torch.optim, sys.modules[f"torch.optim.{name.lower()}"]):
            setattr(module, name, made)
    common_optimizers.optim_db[:] = list(infos())
    files = [str(root / name) for name in FILES if (root / name).exists()]
    if not files:
        sys.exit(f"{root} has none of {', '.join(FILES)}: give the folder `test` of a source tree of torch.")
    sys.path.insert(0, str(root))
    plugins = ["-p", "no:cacheprovider", "--rootdir", str(root), "-c", "/dev/null"]
    return pytest.main([*plugins, *files, *options], plugins=[Verdicts(root)])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
