"""The exception tree. A message says what was found, what was expected, what to do.

AdRecError
├── ConfigError       a setting, a path or a command line that cannot be used
├── SchemaError       columns that do not fit the schema
├── DataError         rows that cannot be used
├── CheckpointError   a checkpoint that does not fit the model that loads it
├── ManifestError     an artefact that is damaged, or was made from something else
├── GateError         an index that was measured and found too bad to publish
├── StageError        a launched stage that did not end well
└── StoppedError      training that was asked to stop, and has saved
"""


class AdRecError(Exception):
    """Base of every error that a user can cause; commands print it as one line.

    Attributes:
        code: the exit code of the command.
    """

    code = 2


class ConfigError(AdRecError):
    """A setting, a path or a command line that cannot be used."""


class SchemaError(AdRecError):
    """Columns that do not fit the schema."""


class DataError(AdRecError):
    """Rows that cannot be used."""


class CheckpointError(AdRecError):
    """A checkpoint that does not fit the model that loads it."""


class ManifestError(AdRecError):
    """An artefact that is damaged, or was made from something else."""


class GateError(AdRecError):
    """An index that was measured and found too bad to publish."""


class StageError(AdRecError):
    """A launched stage that did not end well."""


class StoppedError(AdRecError):
    """Training that was asked to stop, and has saved.

    The exit code is the shell's for the signal: 143 after SIGTERM, 130 after SIGINT.
    """

    def __init__(self, signal: int, step: int) -> None:
        super().__init__(
            f"interrupted at step {step}, saved; the same command goes on from there"
        )
        self.code = 128 + signal
