"""A process that dies by a signal leaves the reason behind.

A library that writes where it must not ends the process without an exception, and the
launcher starts all ranks again: nobody would learn of it. So every process prints the
stack of each of its threads before it dies, and the launcher tells the ranks that it
starts again what ended those before.
"""

import faulthandler
import json
import os

STDERR = 2
ENDINGS = "ADREC_ENDINGS"  # environment: JSON, what ended each attempt before this one


def print_stacks_on_crash() -> None:
    """Print the stack of every Python thread when a signal of a crash comes.

    These are SIGSEGV, SIGABRT, SIGBUS, SIGFPE and SIGILL; the process then dies by the
    signal, as without this.
    """
    # Not again where Python itself (PYTHONFAULTHANDLER) or pytest has chosen a file.
    if not faulthandler.is_enabled():
        faulthandler.enable(STDERR)


def endings() -> list[str]:
    """Return what ended each attempt of these ranks before, as `rank 0: SIGABRT`."""
    return list(json.loads(os.environ.get(ENDINGS, "[]")))


def keep_ending(text: str) -> None:
    """Tell the ranks that this launcher starts from now on what ended an attempt."""
    os.environ[ENDINGS] = json.dumps([*endings(), text])
