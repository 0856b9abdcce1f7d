"""The exception tree; a message says what was found, what was expected, what to do.

AdRecError
├── ConfigError       a setting, a path or a command line that cannot be used
│   ├── PlanError     tables that fit no sharding plan, with needed and available bytes
│   └── BusyError     a run in which another command is at work
├── SchemaError       columns that do not fit the schema
├── DataError         rows that cannot be used
├── ReaderError       a process that read rows ahead and died
├── CheckpointError   a checkpoint that does not fit the model that loads it
├── PredictionError   a prediction that is not finite
├── EligibilityError  an ad that may not be shown and was about to be returned
├── ManifestError     an artefact that is damaged or was made from other inputs
├── TrainingError     a model that cannot be trained on: not finite, or dead
│   └── NonFiniteLossError
├── GateError         an index that was measured and found too bad to publish
├── StageError        a launched stage that ended with an error
├── DiskError         a disk that is full, or a folder that may not be written
├── LostRankError     another rank that ended while this one waited for it
└── StoppedError      training that was asked to stop and has saved a checkpoint
"""

from pydantic import ValidationError

MOST_FAULTS = 3  # of a file, that one line names


def reason(error: Exception) -> str:
    """Say in one line why a file cannot be read.

    Args:
        error: an OSError, or what a reader of JSON raised.
    """
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, ValidationError):
        # Its own text has several lines, the input, and the address of a web page.
        faults = error.errors(include_url=False, include_input=False)
        lines = [
            ": ".join(filter(None, (".".join(map(str, f["loc"])), f["msg"])))
            for f in faults
        ]
        return "; ".join(lines[:MOST_FAULTS])
    return " ".join(str(error).split())


class AdRecError(Exception):
    """Base of every error that a user can cause; commands print it as one line.

    Attributes:
        code: the exit code of the command.
    """

    code = 2


class ConfigError(AdRecError):
    """A setting, a path or a command line that cannot be used."""


class PlanError(ConfigError):
    """Tables that fit no sharding plan.

    Attributes:
        needed, available: bytes over all ranks, 0 where memory is not the reason.
    """

    def __init__(self, message: str, needed: int = 0, available: int = 0) -> None:
        super().__init__(message)
        self.needed, self.available = needed, available


class BusyError(ConfigError):
    """A run in which another command is at work."""


class SchemaError(AdRecError):
    """Columns that do not fit the schema."""


class DataError(AdRecError):
    """Rows that cannot be used."""


class ReaderError(AdRecError):
    """A process that read rows ahead and died."""


class CheckpointError(AdRecError):
    """A checkpoint that does not fit the model that loads it."""


class PredictionError(AdRecError):
    """A prediction that is not finite, by which no ads can be ordered.

    Attributes:
        row: of the user whose it is among several.
    """

    def __init__(self, message: str, row: int = 0) -> None:
        super().__init__(message)
        self.row = row


class EligibilityError(AdRecError):
    """An ad that may not be shown and was about to be returned."""


class ManifestError(AdRecError):
    """An artefact that is damaged or was made from other inputs."""


class TrainingError(AdRecError):
    """A model that makes no sense to train any further."""


class NonFiniteLossError(TrainingError):
    """A loss that is NaN or infinite, raised before any weight has changed."""


class GateError(AdRecError):
    """An index that was measured and found too bad to publish."""


class StageError(AdRecError):
    """A launched stage that ended with an error.

    Attributes:
        signal: that this command was given while it waited for the stage, so that the
            stage was stopped rather than failed; 0: none.
    """

    def __init__(self, message: str, signal: int = 0) -> None:
        super().__init__(message)
        self.signal = signal


class DiskError(AdRecError):
    """A disk that is full, or a folder that may not be written."""


class LostRankError(AdRecError):
    """Another rank that ended while this one waited for it; a launcher may retry."""

    code = 1


class StoppedError(AdRecError):
    """Training that was asked to stop and has saved a checkpoint.

    The exit code is the shell's for the signal: 143 after SIGTERM, 130 after SIGINT.
    """

    def __init__(self, signal: int, step: int) -> None:
        super().__init__(
            f"interrupted at step {step}, saved; the same command goes on from there"
        )
        self.code = 128 + signal  # as shells report a process that a signal ended
