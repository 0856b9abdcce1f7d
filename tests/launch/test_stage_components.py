"""The components of the stages: torchx takes each, and each says its command."""

import configparser
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from torchx.runner import get_runner
from torchx.specs.builders import materialize_appdef
from torchx.specs.file_linter import get_fn_docstring, validate

from torchrec_adrec.launch import components
from torchrec_adrec.pipeline.pipeline import COMPONENTS

TORCHX = Path(sys.executable).with_name("torchx")
TO_X = ["--out", "runs/x"]
# What is typed for a component -> what every rank gets after `-m torchrec_adrec`.
COMMANDS = {
    "prepare": ([], "prepare"),
    "train": (["--task", "ranking"], "train ranking"),
    "export": ([], "export"),
    "index": ([], "index"),
    "evaluate": (["--task", "retrieval"], "evaluate retrieval"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_stage_is_launched_as_it_was_typed(name: str) -> None:
    typed, command = COMMANDS[name]
    machine = ["-j", "2x4", "--cpu", "3", "--memory_mb", "5", "--image", "some:1"]
    machine += ["--mounts", "type=volume,src=claim,dst=/runs"]
    args = [*typed, *TO_X, "--config", "c.yaml", *machine, "--", "seed=1", "a.b=2"]
    (role,) = materialize_appdef(getattr(components, name), args).roles
    line = role.args[1]
    assert "--nnodes 2 --nproc_per_node 4" in line
    assert line.endswith(
        f"-m torchrec_adrec {command} --out runs/x --config c.yaml seed=1 a.b=2"
    )
    assert (role.resource.cpu, role.resource.memMB, role.image) == (3, 5, "some:1")
    assert [(m.src, m.dst_path) for m in role.mounts] == [("claim", "/runs")]


def test_a_pipeline_is_one_process_that_launches_the_stages() -> None:
    args = [*TO_X, "--ranks", "8", "--gpu", "8", "--", "seed=1"]
    (role,) = materialize_appdef(components.pipeline, args).roles
    assert (role.entrypoint, role.args[0]) == ("bash", "-c")
    assert role.args[1].endswith(
        " python -m torchrec_adrec run -j 1x8 --out runs/x seed=1"
    )
    assert (role.num_replicas, role.resource.gpu) == (1, 8)


def test_a_misspelt_task_is_refused_before_it_waits_for_a_cluster() -> None:
    for name in ("train", "evaluate"):
        with pytest.raises(ValueError, match="retreival: expected retrieval or rank"):
            getattr(components, name)(task="retreival", out="runs/x")


@pytest.mark.parametrize("name", [*COMMANDS, "pipeline", "ddp"])
def test_torchx_takes_it_and_its_help_explains_every_option(name: str) -> None:
    assert validate(str(REPOSITORY / "launch/components.py"), name) == []
    _, explained = get_fn_docstring(getattr(components, name))
    assert [option for option, text in explained.items() if not text.strip()] == []


def test_the_package_has_no_copy_of_the_folder() -> None:
    """A checkout on PYTHONPATH must not take the folder of one that is installed."""
    assert Path(components.__file__).resolve() == REPOSITORY / "launch/components.py"
    assert COMPONENTS.resolve() == REPOSITORY / "launch/components.py"


def test_installed_they_have_names_and_hide_none_of_torchx(tmp_path: Path) -> None:
    metadata = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base"]
    subprocess.run(
        [*metadata, tmp_path], check=True, capture_output=True, cwd=REPOSITORY
    )
    # What is installed comes after it: the same package counts once.
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    environment = dict(os.environ) | {"PYTHONPATH": path}
    listed = subprocess.run(
        [TORCHX, "builtins"], capture_output=True, text=True, env=environment
    ).stdout.split()
    assert {f"adrec.{name}" for name in (*COMMANDS, "pipeline", "ddp")} <= {*listed}
    assert {"dist.ddp", "utils.python"} <= {*listed}


@pytest.mark.parametrize("scheduler", ["slurm", "kubernetes"])
def test_an_example_sets_only_what_torchx_reads(scheduler: str) -> None:
    """torchx skips in silence what it does not know."""
    example = configparser.ConfigParser()
    example.read(REPOSITORY / f"launch/{scheduler}.torchxconfig")
    with get_runner() as runner:
        known = {name for name, _ in runner.scheduler_run_opts(scheduler)}
    assert example["cli:run"]["scheduler"] == scheduler
    assert {*example["cli:run"]} <= {"scheduler", "workspace"}
    assert {*example[scheduler]} <= known
    sections = [s for s in example.sections() if s not in ("cli:run", scheduler)]
    assert {*sections} == {f"component:adrec.{name}" for name in COMMANDS}
    for section in sections:
        component = getattr(components, section.rpartition(".")[2])
        assert {*example[section]} <= {*inspect.signature(component).parameters}
