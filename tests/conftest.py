"""Small known data, real rows where they are, and one finished run for all tests."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.config.run import Config, load_config
from torchrec_adrec.data.adapters import criteo, open_data
from torchrec_adrec.data.adapters.criteo import HASHES, INTEGERS
from torchrec_adrec.data.prepare.prepare import prepare
from torchrec_adrec.runtime.ranks import SingleProcess

if TYPE_CHECKING:
    from torchrec_adrec.distributed.process import Process
    from torchrec_adrec.export.update import Updater

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data sets: $ADREC_DATA, else beside the checkout.

    Their owners' terms do not let them be committed, so a checkout alone cannot run the
    tests that need them; they run wherever the data is. A folder that was named and is
    not there is an error, or a typing mistake would quietly leave them out.
    """
    named = os.environ.get("ADREC_DATA")
    if named and not Path(named).is_dir():
        pytest.fail(f"ADREC_DATA={named} is no folder, expected one of real data")
    folder = Path(named) if named else REPOSITORY.parent / "shared/data"
    if not folder.is_dir():
        pytest.skip("no real data: set ADREC_DATA to the folder of criteo_kaggle/")
    return folder


def module_at(path: str) -> ModuleType:
    """Import a file of the repository that stands in no package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, REPOSITORY / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def criteo_line(i: int, click: int = 0, c1: str = "0000000a") -> str:
    """One good raw row; its ad is number i % 7, its user number i % 11."""
    numbers = [str(i % 5) for _ in INTEGERS]
    hashes = [f"{i % 11:08x}" for _ in HASHES]
    hashes[0] = c1
    for ad_column in (2, 14, 15, 18, 25):
        hashes[ad_column - 1] = f"{1000 * ad_column + i % 7:08x}"
    return "\t".join([str(int(click)), *numbers, *hashes])


@pytest.fixture
def raw_file(tmp_path: Path) -> Path:
    path = tmp_path / "raw.tsv"
    path.write_text("\n".join(criteo_line(i, i % 3 == 0) for i in range(400)) + "\n")
    return path


def prepare_criteo(out: Path, *raw: Path, **settings: object) -> dict[str, Any]:
    """Prepare Criteo rows into a new folder; returns the report."""
    out.mkdir(exist_ok=True)
    files = tuple(map(str, raw))
    config = DataConfig.model_validate({"raw": files, **settings})
    prepare(config, criteo.open_data(config), out)
    return dict(json.loads((out / "report.json").read_text()))


def prepare_world(
    out: Path, seed: int = 0, min_count: int = 2, **synthetic: int
) -> dict[str, Any]:
    """Prepare rows of a known world, its truth beside; returns the report."""
    out.mkdir(exist_ok=True)
    config = DataConfig.model_validate(
        {"adapter": "synthetic", "synthetic": synthetic, "min_count": min_count}
    )
    prepare(config, open_data(config, seed, out, SingleProcess()), out, seed)
    return dict(json.loads((out / "report.json").read_text()))


@pytest.fixture
def prepared(raw_file: Path, tmp_path: Path) -> Path:
    prepare_criteo(tmp_path / "data", raw_file)
    return tmp_path / "data"


@pytest.fixture(scope="session")
def prepared_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of an own table with statistics of columns and of pairs."""
    from statistics_rows import prepare_rows, raw_rows

    out = tmp_path_factory.mktemp("statistics") / "data"
    prepare_rows(out, raw_rows(), folds=4, strengths=[10], pairs=3, pair_strength=5)
    return out


def adrec(*args: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `adrec` as a user would, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "torchrec_adrec", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | environment,
    )
    if args[:1] == ("run",) and "--out" in args and not done.returncode:
        no_restarts(Path(str(args[args.index("--out") + 1])))
    return done


def on_ranks(ranks: int, *args: object) -> subprocess.CompletedProcess[str]:
    """Run a command on real gloo ranks, through the launcher that torchx calls."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "torchrec_adrec", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )


def no_restarts(run: Path) -> None:
    """Fail where ranks of a run died and began again: nobody has killed them."""
    for path in sorted(run.glob("*/metrics.json")):
        train = json.loads(path.read_text()).get("train", {})
        if train.get("restarts"):
            log = run / "run.log"  # with -v there is none: all was printed
            text = log.read_text(errors="replace") if log.exists() else ""
            said = "\n".join(x for x in text.splitlines() if "| plan |" not in x)
            after = f"{path.parent.name} began again after {train['restarted_after']}"
            pytest.fail(f"{after}; {log}:\n{said}")


@pytest.fixture(scope="session")
def ranks_script(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[int, str], subprocess.CompletedProcess[str]]:
    """Run a piece of Python on several gloo ranks; it can import what tests can."""
    tests = REPOSITORY / "tests"
    folders = [REPOSITORY, tests, tests / "distributed", tests / "losses"]
    places = os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])

    def run(ranks: int, text: str) -> subprocess.CompletedProcess[str]:
        path = tmp_path_factory.mktemp("ranks") / "script.py"
        path.write_text(text)
        launcher = ["--standalone", "--nproc-per-node", str(ranks), str(path)]
        return subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *launcher],
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": places},
        )

    return run


SMALL = (
    "data.adapter=synthetic",
    "data.synthetic={rows: 24000, ads: 600, users: 400}",
    "train.batch_size=128",
    "train.checkpoint_every=50",
    "train.eval_batch_size=1024",
    "recommend.candidates=50",
    "retrieval.embedding_dim=8",
    "retrieval.hidden=[64]",
    "retrieval.output_dim=16",
    "retrieval.alpha=0.5",
    "retrieval.temperature=0.05",
    "retrieval.optimizer={tables_lr: 0.1, dense_lr: 0.003}",
    "ranking.layers=1",
    "ranking.model_dim=16",
)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All stages on two ranks, through torchx, on rows from the known rule."""
    out = tmp_path_factory.mktemp("runs") / "small"
    done = adrec("run", "--out", out, "-j", "1x2", *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    (out / "printed.txt").write_text(done.stdout + done.stderr)
    yield out


@pytest.fixture(scope="session")
def small_config(finished_run: Path) -> Config:
    return load_config(finished_run / "config.yaml")


TINY = (
    "retrieval={embedding_dim: 4, hidden: [8], output_dim: 4, dropout: 0}",
    "train={batch_size: 32, log_every: 1}",
)
StepsWith = Callable[..., AbstractContextManager[Any]]


@pytest.fixture
def steps_with(prepared: Path) -> StepsWith:
    """The towers' steps on one rank, tiny, with some settings replaced."""
    from torchrec_adrec.distributed.process import process_group
    from torchrec_adrec.schema import Schema
    from torchrec_adrec.tasks.sharded import build
    from torchrec_adrec.training.batch_source import BatchSource
    from torchrec_adrec.training.precision import MatmulPrecision
    from torchrec_adrec.training.step_runner import StepRunner

    @contextmanager
    def make(*overrides: str) -> Iterator[StepRunner]:
        config = load_config(None, [*TINY, *overrides])
        schema = Schema.load(prepared / "schema.json")
        with process_group("cpu") as process:
            source = BatchSource(
                prepared, schema, config.train, config.seed, process, prepared
            )
            sharded = build("retrieval", schema, config, process)
            precision = MatmulPrecision("highest", config.train.precision == "bfloat16")
            yield StepRunner(
                sharded, source, process, config.train, config.seed, precision
            )

    return make


@pytest.fixture
def one_rank() -> Iterator[None]:
    """A process group of this process alone, computing in one thread."""
    import torch

    from torchrec_adrec.distributed.process import process_group

    with process_group("cpu"):
        torch.set_num_threads(1)
        yield


@pytest.fixture(scope="module")
def process() -> "Iterator[Process]":
    """One rank, the process group of this process alone."""
    from torchrec_adrec.distributed.process import process_group

    with process_group("cpu") as process:
        yield process


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that serving needs, made in this process; the best step is not the last."""
    from trained_run import make_trained_run

    out = tmp_path_factory.mktemp("runs") / "run"
    make_trained_run(out)
    return out


@pytest.fixture(scope="session")
def named_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that serving needs, of ads that have names; nothing may change it."""
    from named_ads import make_run

    out = tmp_path_factory.mktemp("runs") / "named"
    make_run(out)
    return out


@pytest.fixture(scope="session")
def page_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run with its reports, whose users have a history of the ads."""
    from liked_ads import make_whole_run

    out = tmp_path_factory.mktemp("runs") / "shop"
    make_whole_run(out)
    return out


@pytest.fixture(scope="session")
def updater_of_named_run(named_run: Path) -> "Updater":
    from torchrec_adrec.export.update import Updater

    return Updater(named_run)


@pytest.fixture
def updater(
    named_run: Path, updater_of_named_run: "Updater", tmp_path: Path
) -> "Updater":
    """Of a copy of the named run, with the models that were read of the original."""
    from named_ads import copy_of

    opened = copy(updater_of_named_run)
    opened.run = copy_of(named_run, tmp_path / "run")
    return opened
