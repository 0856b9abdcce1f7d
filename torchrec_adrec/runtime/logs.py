"""How a process logs, and which warnings of libraries it leaves out.

Each filter names one message, so that a new warning of a library is seen.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchrec_adrec.runtime.crashes import print_stacks_on_crash
from torchrec_adrec.runtime.status import STATUS_FILE, StatusHandler

VERBOSE = "ADREC_VERBOSE"  # environment: set by -v, for the processes of the stages
OURS = "torchrec_adrec"

# (the start of a message, its category): deprecations inside the libraries' own calls,
# of which none can be mended here.
LIBRARY_WARNINGS = (
    # torchx and torchrec import modules of torch that do nothing on this build.
    ("torch.distributed is disabled", UserWarning),
    # TorchRec's tables are ShardedTensors; asking one for its size warns.
    ("Please use DTensor instead", FutureWarning),
)


def setup_logging() -> None:
    """Give every stage one line format; under a launcher it names the rank."""
    print_stacks_on_crash()
    rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    who = f"rank {rank}/{size} | " if rank is not None else ""
    logging.basicConfig(
        level=logging.WARNING,  # fbgemm describes every table of every rank at INFO
        format=f"%(asctime)s {who}%(levelname)s %(name)s | %(message)s",
        datefmt="%H:%M:%S",
    )
    # The lines of every table are at DEBUG; a run's log file has them too.
    has_log_file = STATUS_FILE in os.environ
    show_details(VERBOSE in os.environ or has_log_file)
    if has_log_file:
        handler = StatusHandler(logging.WARNING)
        logging.getLogger(OURS).addHandler(handler)
    silence_libraries()


def show_details(is_verbose: bool) -> None:
    """Log or leave out what only -v shows, as a line for every table."""
    logging.getLogger(OURS).setLevel(logging.DEBUG if is_verbose else logging.INFO)


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out our warnings and what is less, where a summary of them follows."""
    logger = logging.getLogger(OURS)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def be_verbose() -> None:
    """Show details here, and in the processes that this one launches."""
    os.environ[VERBOSE] = "1"
    show_details(True)


def log_to_file(path: Path) -> None:
    """Send this process's log lines, and warnings of libraries, to the end of a file.

    Nothing of them is printed any more.
    """
    logging.basicConfig(
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s | %(message)s",
        datefmt="%H:%M:%S",
        handlers=[logging.FileHandler(path)],
        force=True,
    )
    logging.captureWarnings(True)


def silence_libraries() -> None:
    """Leave out the warnings that say nothing to a user of this package."""
    # The planner warns of every choice that our own plan report explains.
    logging.getLogger("torchrec.distributed.planner").setLevel(logging.ERROR)
    logging.getLogger("torch.fx._symbolic_trace").addFilter(_is_no_tracing_advice)
    for message, category in LIBRARY_WARNINGS:
        warnings.filterwarnings("ignore", message, category)
    # Deprecations of torch that torch and torchrec themselves still call.
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module="(torch|torchrec)[.]"
    )


def _is_no_tracing_advice(record: logging.LogRecord) -> bool:
    """Drop one line: torchrec asks `is_fx_tracing()` in every lookup, and torch advises
    the caller to use another function.
    """
    return not record.getMessage().startswith("is_fx_tracing will return true for both")
