import importlib.metadata
from typing import Any

import pytest

from torchrec_adrec.runtime import doctor


def test_this_environment_is_whole() -> None:
    assert [f.text for f in doctor.examine() if f.fix] == []


@pytest.mark.parametrize(
    ("package", "version", "fix"),
    [
        ("fbgemm-gpu", "1.9.0", "pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu"),
        ("fbgemm-gpu-cpu", "1.7.0", "pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu"),
        ("torchrec", "1.7.0", "pip install torchrec==1.8.0"),
        ("faiss-gpu", "1.15.1", "pip install faiss-cpu==1.15.1"),
    ],
)
def test_a_wrong_version_is_named_with_its_cure(
    package: str, version: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.version

    def version_of(name: str) -> Any:
        return version if name == package else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version_of)
    monkeypatch.setattr(doctor, "_probe", lambda: doctor.Finding("not run"))
    wrong = [f for f in doctor.examine() if f.fix]
    assert len(wrong) == 1
    assert version in wrong[0].text and fix in wrong[0].fix
