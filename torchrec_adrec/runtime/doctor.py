"""Check what is installed, whether it fits together, and how to repair it."""

import importlib.metadata
import platform
import subprocess
import sys
from dataclasses import dataclass

# The one combination that was run. No wheel names the torch that it was built for, so
# pip cannot see that two of them do not fit.
PINNED = {
    "torch": "2.13.0",
    "torchrec": "1.8.0",
    "torchx": "0.7.0",
}
FBGEMM = "1.8.0"
FAISS = "1.15.1"
STUB = "packaging/fbgemm-gpu"

PROBE = """
import torch, fbgemm_gpu, torchrec, faiss
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
ebc = EmbeddingBagCollection(tables=[EmbeddingBagConfig(
    name="t", embedding_dim=4, num_embeddings=4, feature_names=["f"])])
ebc(KeyedJaggedTensor(keys=["f"], values=torch.tensor([1, 2]),
                      lengths=torch.tensor([1, 1], dtype=torch.int32)))
torch.ops.fbgemm.asynchronous_complete_cumsum(torch.tensor([1, 2]))
from torchrec.distributed.model_parallel import DistributedModelParallel
gpus = torch.cuda.device_count()
print(f"devices: {gpus} GPUs, {torch.get_num_threads()} CPU threads;"
      f" faiss {faiss.__version__} [{faiss.get_compile_options().strip()}],"
      f" {getattr(faiss, 'get_num_gpus', lambda: 0)()} GPUs")
"""


@dataclass(frozen=True)
class Finding:
    """A line of the report; `fix` is the command, empty where nothing is wrong."""

    text: str
    fix: str = ""


def examine() -> list[Finding]:
    """Check versions first, then run the libraries in a process that may crash."""
    findings = [Finding(f"python {platform.python_version()} on {platform.machine()}")]
    findings += [_version(name, expected) for name, expected in PINNED.items()]
    findings += [_fbgemm(), _faiss()]
    findings.append(_probe())
    return findings


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _version(name: str, expected: str) -> Finding:
    actual = _installed(name)
    if actual is not None and actual.split("+")[0] == expected:
        return Finding(f"{name} {actual}")
    return Finding(
        f"{name}: found {actual or 'nothing'}, expected {expected}",
        f"pip install {name}=={expected}",
    )


def _fbgemm() -> Finding:
    """Expect the CPU build behind our stub, or the CUDA build, at the one version."""
    gpu, cpu = _installed("fbgemm-gpu"), _installed("fbgemm-gpu-cpu")
    if (gpu, cpu) == (f"{FBGEMM}+cpu", FBGEMM) or (gpu, cpu) == (FBGEMM, None):
        return Finding(f"fbgemm-gpu {gpu}, fbgemm-gpu-cpu {cpu or 'not installed'}")
    text = (
        f"fbgemm: found fbgemm-gpu {gpu or 'nothing'} and fbgemm-gpu-cpu"
        f" {cpu or 'nothing'}, expected {FBGEMM}+cpu (the stub in {STUB}) and {FBGEMM};"
        " another build over it crashes or fails to import"
    )
    return Finding(text, cpu_repair())


def cpu_repair() -> str:
    """Return the command that installs the CPU build anew.

    It removes both wheels first: they share the folder `fbgemm_gpu`, so one installed
    over the other leaves a mixture.
    """
    return (
        "pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu &&"
        f" pip install ./{STUB} fbgemm-gpu-cpu=={FBGEMM}   # in the repository"
    )


def _faiss() -> Finding:
    builds = {n: _installed(n) for n in ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs")}
    installed = {name: version for name, version in builds.items() if version}
    text = ", ".join(f"{n} {v}" for n, v in installed.items()) or "nothing"
    if len(installed) == 1 and FAISS in installed.values():
        return Finding(text)
    return Finding(
        f"faiss: found {text}, expected one build of {FAISS} (all import as faiss)",
        f"pip uninstall -y {' '.join(builds)} && pip install faiss-cpu=={FAISS}",
    )


def _probe() -> Finding:
    # In a process of its own: libraries that do not fit may end it by a signal.
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROBE], capture_output=True, text=True
    )
    if run.returncode == 0:
        return Finding(run.stdout.strip())
    lines = run.stderr.strip().splitlines() or [f"exit code {run.returncode}"]
    return Finding(f"the libraries do not run together: {lines[-1]}", cpu_repair())
