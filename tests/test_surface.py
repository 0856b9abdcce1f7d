"""What `import torchrec_adrec` promises."""

import subprocess
import sys

import pytest

import torchrec_adrec
from torchrec_adrec.config.run import load_config
from torchrec_adrec.schema import Schema
from torchrec_adrec.serve.recommender import Recommender


def test_the_public_names_are_the_classes_themselves() -> None:
    assert torchrec_adrec.__all__ == ["Config", "Recommender", "Schema", "load_config"]
    assert torchrec_adrec.Recommender is Recommender
    assert torchrec_adrec.Schema is Schema
    assert torchrec_adrec.load_config is load_config
    assert set(torchrec_adrec.__all__) < set(dir(torchrec_adrec))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Recomender'"):
        torchrec_adrec.Recomender  # noqa: B018


def test_settings_are_read_without_torch() -> None:
    code = "import sys; from torchrec_adrec import load_config; load_config(None);"
    code += "assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_type_checker_is_told_that_there_are_types() -> None:
    from importlib.resources import files

    assert files(torchrec_adrec).joinpath("py.typed").is_file()
