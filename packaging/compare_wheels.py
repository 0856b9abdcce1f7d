"""The sources of a release give the very wheel that the checkout gives.

    python packaging/compare_wheels.py dist

Builds a wheel of the source distribution in a folder of its own and compares the names
and bytes of all files with those of the wheel beside it.
"""

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path


def main(dist: Path) -> int:
    """Compare; return the exit code, after a line for every file that differs."""
    (wheel,) = dist.glob("torchrec_adrec-*.whl")
    (sources,) = dist.glob("torchrec_adrec-*.tar.gz")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with tarfile.open(sources) as archive:
            archive.extractall(folder, filter="data")
        (unpacked,) = folder.iterdir()
        built = folder / "built"
        args = ["wheel", "--quiet", "--no-deps", "--wheel-dir", str(built)]
        subprocess.run([sys.executable, "-m", "pip", *args, str(unpacked)], check=True)
        (other,) = built.glob("*.whl")
        differing = difference(contents(wheel), contents(other))
    for line in differing:
        print(line)
    print(f"{wheel.name}: the sources give {'another' if differing else 'the same'}")
    return 1 if differing else 0


def contents(wheel: Path) -> dict[str, bytes]:
    """Return name -> bytes of a wheel's files."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def difference(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """Name the files that only one has, or that differ; RECORD hashes the others."""
    lines = [f"only in the checkout's wheel: {name}" for name in one.keys() - other]
    lines += [f"only in the sources' wheel: {name}" for name in other.keys() - one]
    both = one.keys() & other.keys()
    lines += [f"differs: {name}" for name in both if one[name] != other[name]]
    return sorted(line for line in lines if not line.endswith("/RECORD"))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
