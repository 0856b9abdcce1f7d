"""A wheel holds every file that the code looks for beside itself."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, adrec

from torchrec_adrec import __version__
from torchrec_adrec.cli.demo import CONFIG
from torchrec_adrec.pipeline.pipeline import COMPONENTS

LIST = """
from distutils.core import run_setup
command = run_setup("setup.py", stop_after="init").get_command_obj("build_py")
command.ensure_finalized()
for package, _, _, names in command.data_files:
    for name in names:
        print(package.replace(".", "/") + "/" + name)
for package, module, _ in command.find_all_modules():
    print(package.replace(".", "/") + "/" + module + ".py")
"""


@pytest.fixture(scope="module")
def files() -> set[str]:
    """What setuptools would put into a wheel."""
    code = "import setuptools" + LIST
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_all_files_of_the_package_are_in_the_wheel(files: set[str]) -> None:
    package = REPOSITORY / "torchrec_adrec"
    # Links are followed: `launch` and `configs` are folders of the package too.
    paths = [
        Path(top) / n
        for top, _, names in os.walk(package, followlinks=True)
        for n in names
    ]
    expected = {
        str(path.relative_to(REPOSITORY))
        for path in paths
        if "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert len(expected) > 250
    assert expected <= files, expected - files


def test_the_demo_and_the_components_are_in_the_wheel(files: set[str]) -> None:
    for path in (CONFIG, COMPONENTS):
        assert str(path.relative_to(REPOSITORY)) in files


def test_sources_are_complete() -> None:
    """What is not in the package is named in MANIFEST.in."""
    named = set((REPOSITORY / "MANIFEST.in").read_text().split())
    for path in REPOSITORY.iterdir():
        is_source = path.suffix in (".md", ".txt") or path.name in (
            *("Dockerfile", "LICENSE", "Makefile", "benchmarks", "configs", "docs"),
            *("launch", "packaging", "tests"),
        )
        assert path.name in named or not is_source, path.name


def test_the_version_is_one() -> None:
    setup = (REPOSITORY / "setup.py").read_text()
    version = re.search(r'version="([^"]+)"', setup)
    assert version is not None and version[1] == __version__
    assert adrec("--version").stdout == f"torchrec_adrec {__version__}\n"


def test_the_shell_completes_commands() -> None:
    words = {"_ADREC_COMPLETE": "complete_bash", "COMP_WORDS": "adrec in"}
    done = adrec(**words, COMP_CWORD="1")
    assert {"index", "init"} <= set(done.stdout.split())


def test_the_demo_names_its_settings_itself(tmp_path: Path) -> None:
    done = adrec("run", "--demo", "--config", CONFIG)
    assert done.returncode == 2 and "leave --config out" in done.stderr
    done = adrec("run")
    assert done.returncode == 2 and "--demo" in done.stderr
