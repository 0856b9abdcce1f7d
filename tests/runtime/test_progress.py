"""Progress reaches the `adrec run` that launched the stage, from its first rank."""

from pathlib import Path

import pytest

from torchrec_adrec.runtime.progress import Progress
from torchrec_adrec.runtime.status import STATUS_FILE, Status, StatusReader


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StatusReader:
    reader = StatusReader(tmp_path / "status")
    reader.clear()
    monkeypatch.setenv(STATUS_FILE, str(reader.path))
    return reader


def count_to_three() -> None:
    with Progress("train", 3, "samples") as progress:
        for note in ("", "loss 3.2100", "loss 2.8700"):
            progress.advance(1, note)


def test_the_first_and_the_last_loss_are_sent_however_fast_steps_are(
    reader: StatusReader,
) -> None:
    count_to_three()
    statuses = list(reader.read())
    assert statuses[0] == Status("progress", "train", 0, 3)
    assert Status("progress", "train", 2, 3, "loss 3.2100") in statuses
    assert statuses[-1] == Status("progress", "train", 3, 3, "loss 2.8700")


def test_other_ranks_send_nothing(
    reader: StatusReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    count_to_three()
    assert list(reader.read()) == []
