"""`make test-processors`: the tests that compare sums, as on other processors.

Rounding belongs to a machine: which kernels it runs, and in how many threads. A newer
processor can act like an older one, and any number of cores like another.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
TESTS = (
    "tests/distributed/test_sharding_types.py",
    "tests/distributed/test_parity.py",
    "tests/losses/test_pointwise.py",
    "tests/losses/test_pairwise.py",
    "tests/losses/test_sampled_softmax.py",
    "tests/losses/test_losses_over_ranks.py",
    "tests/losses/test_chunked_softmax.py",
    "tests/losses/test_device_blocks.py",
)
CORES = "cores"  # that this process may use, as far as our code asks

# MKL leaves AMD's processors alone with its own switch, MKL_CBWR is for all.
PROCESSORS: tuple[Mapping[str, str], ...] = (
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"DNNL_MAX_CPU_ISA": "SSE41"},
    {"DNNL_MAX_CPU_ISA": "AVX2"},
    {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    {CORES: "1", "OMP_NUM_THREADS": "1"},
    {CORES: "4", "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"},
    {  # AVX2 and no bfloat16, as made from 2013 on
        "ATEN_CPU_CAPABILITY": "avx2",
        "DNNL_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
    },
    {  # SSE4.1 alone, and one core
        CORES: "1",
        "OMP_NUM_THREADS": "1",
        "ATEN_CPU_CAPABILITY": "default",
        "DNNL_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
    },
)
TIMES = re.compile(r"\(([\d,.]+|nan|inf) times\)")


def environment(processor: Mapping[str, str], folder: Path) -> dict[str, str]:
    """This process's, acting like another processor.

    `process_group` sets a rank's threads from the cores that it may use, and so passes
    over OMP_NUM_THREADS: Python is told of other cores when it starts.
    """
    settings = dict(processor)
    cores = settings.pop(CORES, None)
    places = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    if cores is not None:
        code = f"import os\nos.sched_getaffinity = lambda _: set(range({cores}))\n"
        (folder / "sitecustomize.py").write_text(code)
        places.insert(0, str(folder))
    return os.environ | settings | {"PYTHONPATH": os.pathsep.join(filter(None, places))}


def margins(printed: str) -> str:
    """The right result farthest from the reference, the planted fault nearest to it."""
    right: list[float] = [0.0]
    wrong: list[float] = []
    for line in printed.splitlines():
        times = [float(number.replace(",", "")) for number in TIMES.findall(line)]
        if times:
            (wrong if "planted: " in line else right).append(max(times))
    return (
        f"right within {max(right):.1f} times the noise, faults beyond"
        f" {min(wrong, default=float('nan')):,.0f}"
    )


def run(processor: Mapping[str, str], *options: str) -> bool:
    """Run the tests, print one line, and the tests' own words if one failed."""
    name = " ".join(f"{key}={value}" for key, value in processor.items())
    command = [sys.executable, "-m", "pytest", "-s", "--durations=0", *TESTS, *options]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env=environment(processor, Path(folder)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    seconds = time.monotonic() - began
    passed = done.returncode == 0
    if not passed:
        print(done.stdout)
    word = "passed" if passed else "FAILED"
    print(f"{word} {name}: {margins(done.stdout)} ({seconds:.0f} s)", flush=True)
    return passed


if __name__ == "__main__":
    results = [run(processor, *sys.argv[1:]) for processor in PROCESSORS]
    sys.exit(0 if all(results) else 1)
