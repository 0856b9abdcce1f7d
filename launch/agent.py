"""`torchrun` that starts ranks again after a crash, but not after a refusal.

What the user caused ends with exit code 2 (`errors.py`): settings that do not fit, a
full disk, another command in the run. Tried again it would be refused again, or worse:
go on once the other command has ended.
"""

import sys
from typing import Any

from torch.distributed import run
from torch.distributed.elastic.agent.server.local_elastic_agent import (
    LocalElasticAgent,
)
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher import api

REFUSED = 2


class Agent(LocalElasticAgent):
    """Torch's agent, without restarts once a rank was refused."""

    def _monitor_workers(self, worker_group: Any) -> Any:
        result = super()._monitor_workers(worker_group)
        if _is_refusal(result.failures):
            self._remaining_restarts = 0
        return result


def _is_refusal(failures: dict[int, Any]) -> bool:
    return any(failure.exitcode == REFUSED for failure in failures.values())


def main() -> None:
    """Take torchrun's words; a refusal has said its line, and needs no traceback."""
    api.LocalElasticAgent = Agent  # type: ignore[attr-defined]
    try:
        run.main()
    except ChildFailedError as error:
        if not _is_refusal(error.failures):
            raise
        sys.exit(REFUSED)


if __name__ == "__main__":
    main()
