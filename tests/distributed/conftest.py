import pytest
import torch
from processes import Processes


@pytest.fixture(scope="session")
def processes(tmp_path_factory):
    """Return the shared worker processes; see ``Processes.run``."""
    if not torch.distributed.is_available():
        pytest.skip("this torch was built without torch.distributed")
    team = Processes(tmp_path_factory.mktemp("stores"))
    yield team
    team.end()
