"""Settings of the server: how much one client may ask of it, and how long it waits."""

from typing import Annotated

from pydantic import Field

from torchrec_adrec.config.base import Count, Settings

Seconds = Annotated[float, Field(gt=0)]


class ServeConfig(Settings):
    """The bounds of `adrec serve`; the stages of a run do not depend on them."""

    workers: Count = 1
    """Processes that answer, each with models and index of its own: memory times
    `workers`. More than the machine has cores helps nothing."""
    body_bytes: Count = 65_536
    """Largest body of a request; a larger one is refused with 413."""
    text_length: Count = 1_000
    """Most characters of one text of a user."""
    list_length: Count = 1_000
    """Most items of one list of a user."""
    batch_users: Count = 32
    """Most users of one POST /batch."""
    queue_length: Count = 64
    """Most users that wait for their turn; one more is refused with 429. A worker
    computes one user after the other, so the last one waits for all before it."""
    deadline_seconds: Seconds = 1.0
    """Longest wait of a user for its turn; after that nobody waits for the answer any
    more, so that it is refused with 429 and not computed."""
    receive_seconds: Seconds = 5.0
    """Longest time in which the head of a request has to arrive, then its body, and in
    which a client has to take its answer. The connection is closed after that."""
    connections: Count = 500
    """Most open connections of a worker. One more closes the one that has been waiting
    longest for the rest of its request. Keep it below half of `ulimit -n`."""
    refusal_share: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Share of the time that refused requests (4xx) may take. Beyond it their answers
    are held back, five seconds at most, so that a flood of wrong requests leaves the
    processor to the right ones. 1: never."""
    watch_seconds: Annotated[float, Field(ge=0)] = 0.25
    """How often the run's folder is looked at for a new version or changed ads, which
    are then loaded and served. A look reads a few small files. 0: never."""
    grace_seconds: Count = 10
    """Longest time that a stopped server gives to requests which are under way."""
