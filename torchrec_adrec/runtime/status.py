"""A launched stage tells the `adrec run` that launched it how far it is.

The stage appends lines of JSON to a file that the environment names, and the parent
reads what is new. It is a file because a stage outlives a parent that was killed: a
write to a pipe that nobody reads any more would end the stage too.
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

STATUS_FILE = "ADREC_STATUS_FILE"  # environment: where this process's status goes


@dataclass(frozen=True)
class Status:
    """One message of a stage.

    Attributes:
        kind: `begin` and `end` of a stage, `progress` within it, `figures` on the
            validation rows, or a `warning` or an `error` that the user has to read.
        text: the stage's name, the title of the work, or the message; of `figures` the
            JSON of label -> figure -> value.
        done, total: finished and expected units of `progress`.
        note: the latest figure of `progress`, as `loss 0.7354`.
    """

    kind: Literal["begin", "end", "progress", "figures", "warning", "error"]
    text: str
    done: int = 0
    total: int | None = None
    note: str = ""


def send(status: Status) -> None:
    """Tell the parent, if there is one that listens."""
    path = os.environ.get(STATUS_FILE)
    if path is None:
        return
    line = json.dumps(asdict(status)) + "\n"
    # One unbuffered write to the end of a file: lines of several ranks do not mix. A
    # disk that is full ends the stage elsewhere, with a message of its own.
    with suppress(OSError), Path(path).open("ab", buffering=0) as file:
        file.write(line.encode())


class StatusHandler(logging.Handler):
    """Sends warnings of this process to the parent, so that they reach the terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        """Send the message without time and rank: the parent shows equal ones once."""
        send(Status("warning", record.getMessage()))


class StatusReader:
    """Reads, in the parent, what the stages have sent."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = 0

    def clear(self) -> None:
        """Forget what the last job has sent."""
        self.path.write_bytes(b"")
        self._position = 0

    def read(self) -> Iterator[Status]:
        """Yield the messages that are new since the last call."""
        with self.path.open("rb") as file:
            file.seek(self._position)
            text = file.read()
        # The last line may be half written.
        whole = text[: text.rfind(b"\n") + 1]
        self._position += len(whole)
        for line in whole.splitlines():
            yield Status(**json.loads(line))
