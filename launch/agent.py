"""`torchrun`, except that it starts ranks again only after a crash.

A refusal ends with exit code 2 (`errors.py`): the user has to change settings that do
not fit, free a full disk, or wait for another command in the run. If the ranks were
started again they would be refused again or, worse, go on as soon as the other command
has ended.
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
    """Watches the ranks as torch's agent does, without restarts after a refusal."""

    def _monitor_workers(self, worker_group: Any) -> Any:
        result = super()._monitor_workers(worker_group)
        # Torch reads this number right after, to choose between restart and end.
        if _is_refusal(result.failures):
            self._remaining_restarts = 0
        return result


def _is_refusal(failures: dict[int, Any]) -> bool:
    return any(failure.exitcode == REFUSED for failure in failures.values())


def main() -> None:
    """Take torchrun's arguments; a refusal has printed its line, without traceback."""
    # torchrun has no option for another agent: it takes the class of this name.
    api.LocalElasticAgent = Agent  # type: ignore[attr-defined]
    try:
        run.main()
    except ChildFailedError as error:
        if not _is_refusal(error.failures):
            raise
        sys.exit(REFUSED)


if __name__ == "__main__":
    main()
