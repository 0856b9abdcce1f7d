"""`torchrun`, except that it starts ranks again only after a crash, and says which.

A refusal ends with exit code 2 (`errors.py`): the user has to change settings that do
not fit, free a full disk, or wait for another command in the run. If the ranks were
started again they would be refused again or, worse, go on as soon as the other command
has ended.
"""

import signal
import sys
from collections.abc import Mapping
from typing import Any

from torch.distributed import run
from torch.distributed.elastic.agent.server.local_elastic_agent import (
    LocalElasticAgent,
)
from torch.distributed.elastic.multiprocessing.errors import (
    ChildFailedError,
    ProcessFailure,
)
from torch.distributed.launcher import api

from torchrec_adrec.runtime.crashes import keep_ending
from torchrec_adrec.runtime.status import Status, send

REFUSED = 2
STOPPED = (-signal.SIGTERM, 128 + signal.SIGTERM)  # killed, or saved and ended


class Agent(LocalElasticAgent):
    """Watches the ranks as torch's agent does, without restarts after a refusal."""

    def _monitor_workers(self, worker_group: Any) -> Any:
        result = super()._monitor_workers(worker_group)
        # Torch reads this number right after, to choose between restart and end.
        if _is_refusal(result.failures):
            self._remaining_restarts = 0
        elif result.failures:
            ending = describe(result.failures)
            keep_ending(ending)
            _warn(f"{ending}; its last lines in the log say where")
        return result


def describe(failures: Mapping[int, ProcessFailure]) -> str:
    """Say which ranks ended and how, as `rank 0: SIGABRT`."""
    # Torch ends the others by SIGTERM as soon as one has ended: they are not the cause.
    causes = {n: f for n, f in failures.items() if f.exitcode not in STOPPED}
    return ", ".join(f"rank {n}: {_how(f)}" for n, f in (causes or failures).items())


def _how(failure: ProcessFailure) -> str:
    code = failure.exitcode
    return failure.signal_name() if code < 0 else f"exit code {code}"


def _warn(text: str) -> None:
    """Print a warning, and send it to an `adrec run` that shows the stages."""
    print(f"warning: {text}", file=sys.stderr, flush=True)
    send(Status("warning", text))


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
