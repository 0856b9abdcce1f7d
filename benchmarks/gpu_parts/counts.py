"""Launches, copies and waits of a step, as the profiler of torch counts them."""

from argparse import Namespace
from collections import Counter
from typing import Any

from torch.profiler import ProfilerActivity, profile

from gpu_parts.steppers import ready_batches, stepper, wait, ways_of
from torchrec_adrec.distributed.process import Process

STEPS, WARM = 6, 6
KINDS = {
    "launches": ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC"),
    "graphs": ("cudaGraphLaunch",),
    "copies": ("cudaMemcpyAsync", "cudaMemcpy"),
    "fills": ("cudaMemsetAsync",),
    "waits": (
        *("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
    ),
}


def measure(process: Process, args: Namespace) -> dict[str, Any]:
    """Of each way, at the middle batch size."""
    size = args.batch_size[len(args.batch_size) // 2]
    batches, schema = ready_batches(size, process)
    figures: dict[str, Any] = {"batch_size": size}
    for way in ways_of(process, args):
        step = stepper(way, size, batches, schema, process)
        for _ in range(WARM):
            step()
        wait(process)
        figures[way] = _counted(step, process)
    return figures


def _counted(step: Any, process: Process) -> dict[str, Any]:
    activities = [ProfilerActivity.CPU]
    if process.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as trace:
        for _ in range(STEPS):
            step()
        wait(process)
    names: Counter[str] = Counter()
    device_ms = 0.0
    kernels: Counter[str] = Counter()
    for event in trace.events():
        names[event.name] += 1
        if event.device_type.name == "CUDA":
            device_ms += event.self_device_time_total / 1e3
            kernels[event.name[:70]] += event.self_device_time_total
    figures: dict[str, Any] = {
        kind: round(sum(names[n] for n in members) / STEPS, 1)
        for kind, members in KINDS.items()
    }
    aten = sum(n for name, n in names.items() if name.startswith("aten::"))
    figures["aten_calls"] = round(aten / STEPS, 1)
    figures["device_milliseconds"] = round(device_ms / STEPS, 3)
    figures["longest_kernels_ms"] = {
        name: round(micro / 1e3 / STEPS, 3) for name, micro in kernels.most_common(8)
    }
    return figures
