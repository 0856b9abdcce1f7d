"""A bundle is served like the run that it was made of; a changed byte is refused."""

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import adrec

from torchrec_adrec.errors import ConfigError, ManifestError
from torchrec_adrec.runs.unpack import unpacked
from torchrec_adrec.serve.bundle import check_bundle, pack
from torchrec_adrec.serve.recommender import Recommender


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    pack(run, out)
    return out


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def test_folder_and_tar_answer_as_the_run_does(
    run: Path, bundle: Path, tmp_path: Path
) -> None:
    expected = Recommender.load(run).recommend({}).ads
    done = adrec("bundle", "--out", run, "--to", tmp_path / "b.tar")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'b.tar'}: ")
    assert [p.name for p in tmp_path.iterdir()] == ["b.tar"]
    for path in (bundle, tmp_path / "b.tar"):
        assert Recommender.load(path).recommend({}).ads.equals(expected)
    done = adrec("recommend", "--bundle", tmp_path / "b.tar", "--user", "7")
    assert done.returncode == 0, done.stderr


def test_nothing_inside_names_a_place_outside(run: Path, bundle: Path) -> None:
    names = [p for p in bundle.rglob("*") if p.is_file()]
    assert {p.relative_to(bundle).parts[0] for p in names} == {
        "data",
        "retrieval",
        "export",
        "index",
        "ranking",
        "manifest.json",
    }
    for path in names:
        assert not path.is_symlink()
        assert str(run).encode() not in path.read_bytes(), path
    # The run's rows stay where they are, and what only training reads.
    assert not list(bundle.rglob("train")) and not list(bundle.rglob("*.tsv"))


def test_the_same_run_makes_the_same_bytes(run: Path, tmp_path: Path) -> None:
    pack(run, tmp_path / "a.tar")
    pack(run, tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert all(not name.startswith(("/", ".")) for name in tar.getnames())


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_every_file_is_checked(copy: Path) -> None:
    """The first and the last byte of each, the manifest's among them."""
    check_bundle(copy)
    for path in sorted(p for p in copy.rglob("*") if p.is_file()):
        whole = path.read_bytes()
        for place in (0, -1):
            flip(path, place)
            with pytest.raises(ManifestError, match=str(path)):
                check_bundle(copy)
            path.write_bytes(whole)
    check_bundle(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: (b / "data/schema.json").unlink(), "schema.json is missing"),
        (lambda b: (b / "data/new").write_text(""), "new was added to the bundle"),
        (lambda b: (b / "index/CURRENT").write_text("x"), "CURRENT: expected sha256"),
        (lambda b: flip(b / "manifest.json", 5), "manifest.json"),
        (
            lambda b: (b / "manifest.json").write_text(
                (b / "manifest.json").read_text().replace(" ", "  ")
            ),
            "manifest.json was changed since",
        ),
    ],
)
def test_what_is_missing_added_or_changed_is_named(
    change: Callable[[Path], object], message: str, copy: Path
) -> None:
    change(copy)
    with pytest.raises(ManifestError, match=message):
        Recommender.load(copy)


def test_what_is_no_whole_tar_is_refused(run: Path, tmp_path: Path) -> None:
    pack(run, tmp_path / "whole.tar")
    whole = (tmp_path / "whole.tar").read_bytes()
    path = tmp_path / "cut.tar"
    for size in (0, 100, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(ManifestError, match=rf"{path}(: |/| holds no manifest)"):
            Recommender.load(path)
    with tarfile.open(path, "w") as tar:
        entry = tarfile.TarInfo("../outside")
        tar.addfile(entry)
    with pytest.raises(ManifestError, match="outside the destination"):
        Recommender.load(path)
    assert not (tmp_path / "outside").exists()


def test_a_place_that_is_taken_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "b.tar").write_text("mine")
    for name in ("there", "b.tar"):
        with pytest.raises(ConfigError, match=f"{name} exists already"):
            pack(run, tmp_path / name)
    with pytest.raises(ConfigError, match="expected a name in a folder that is there"):
        pack(run, tmp_path / "no/b.tar")
    assert (tmp_path / "b.tar").read_text() == "mine"


def test_a_run_that_breaks_off_leaves_nothing(run: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(run, tmp_path / "run"))
    (broken / "index/CURRENT").write_text("000009-0000000000000000\n")
    for name in ("b", "b.tar"):
        with pytest.raises(ManifestError, match="000009"):
            pack(broken, tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_folder_is_opened_where_it_is(tmp_path: Path) -> None:
    with unpacked(tmp_path) as folder:
        assert folder == tmp_path
