"""The dense part of a step as one CUDA graph: forward, loss and backward in one launch.

A launch costs the host 25 to 40 microseconds on a GPU machine, and heads, loss and
their backward pass are some 150 of them, which at 8,192 rows the card finishes in half
a millisecond. A captured graph is one launch. Its inputs have addresses of their own:
looked-up vectors and the batch are copied there first.

For one rank: collectives stay outside of graphs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchrec_adrec.batch import Batch
from torchrec_adrec.distributed.optimizer import StepOptimizer
from torchrec_adrec.schema import Schema
from torchrec_adrec.tasks.after_lookup import AfterLookup, Outputs

WARM = 3  # runs before a capture: libraries choose their kernels and make workspaces


def run_as_graphs(model: nn.Module, optimizer: StepOptimizer, schema: Schema) -> bool:
    """Let a model's dense part run as graphs; False if its shapes change from step to
    step: histories have as many ids as they have.
    """
    if schema.sequences:
        return False
    after_lookup = next(m for m in model.modules() if isinstance(m, AfterLookup))
    parameters = list(optimizer.dense.params.values())
    accumulates = optimizer.config.accumulate > 1
    after_lookup.run = _Graphs(after_lookup, parameters, accumulates)
    return True


class _Graphs:
    """A graph for each shape; the number of anchors, filled up, makes one or two."""

    def __init__(
        self, after_lookup: AfterLookup, parameters: list[Tensor], accumulates: bool
    ) -> None:
        self.after_lookup, self.parameters = after_lookup, parameters
        self.accumulates = accumulates
        self._captured: dict[Any, _Graph] = {}

    def __call__(
        self, vectors: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Outputs]:
        """As `AfterLookup.guarded`."""
        if not self.after_lookup.training:
            return self.after_lookup.guarded(vectors, batch)
        key = (tuple(v.shape for v in vectors), batch.layout)
        graph = self._captured.get(key)
        if graph is None:
            graph = _Graph(self.after_lookup, self.parameters, vectors, batch)
            self._captured[key] = graph
        loss: Tensor = _Replay.apply(  # type: ignore[no-untyped-call]
            graph, self.accumulates, batch, *vectors
        )
        out = graph.outputs
        # The report is kept over steps; the rest is read before the next replay.
        return loss, out._replace(report=out.report.clone(), labels=batch.labels)


class _Graph:
    """One captured shape, with the tensors it reads and writes."""

    def __init__(
        self,
        after_lookup: AfterLookup,
        parameters: list[Tensor],
        vectors: Sequence[Tensor],
        batch: Batch,
    ) -> None:
        self.after_lookup, self.parameters = after_lookup, parameters
        self.vectors = [v.detach().clone().requires_grad_() for v in vectors]
        self.batch = Batch(batch.buffer.clone(), batch.layout)
        self.graph = torch.cuda.CUDAGraph()
        drawn = torch.cuda.get_rng_state()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM):
                self._run()
        torch.cuda.current_stream().wait_stream(stream)
        # thread_local: a thread that reads ahead may pin memory meanwhile.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self._run()
        # What the step draws must not depend on whether it was the one that captured.
        torch.cuda.set_rng_state(drawn)

    def _run(self) -> None:
        device = self.vectors[0].device.type
        low = torch.is_autocast_enabled(device)
        # A cast that was cached outside of the graph would be read by it for ever.
        with (
            torch.enable_grad(),
            torch.autocast(device, torch.bfloat16, enabled=low, cache_enabled=False),
        ):
            loss, self.outputs = self.after_lookup.guarded(self.vectors, self.batch)
            grads = torch.autograd.grad(
                loss, [*self.vectors, *self.parameters], allow_unused=True
            )
        self.loss = loss.detach()
        self.vector_grads = grads[: len(self.vectors)]
        self.parameter_grads = grads[len(self.vectors) :]

    def replay(self, vectors: Sequence[Tensor], batch: Batch) -> None:
        """Run it on other inputs."""
        for room, value in zip(self.vectors, vectors, strict=True):
            room.detach().copy_(value)
        self.batch.buffer.copy_(batch.buffer)
        self.graph.replay()


class _Replay(torch.autograd.Function):
    """Hangs a graph, which has already found the gradients, into backward."""

    @staticmethod
    def forward(
        ctx: Any, graph: _Graph, accumulates: bool, batch: Batch, *vectors: Tensor
    ) -> Tensor:
        graph.replay(vectors, batch)
        ctx.graph, ctx.accumulates = graph, accumulates
        return graph.loss.view_as(graph.loss)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # The loss is a step's last result: its own gradient is 1.
        graph: _Graph = ctx.graph
        for parameter, gradient in zip(
            graph.parameters, graph.parameter_grads, strict=True
        ):
            if gradient is None:
                continue
            if not ctx.accumulates:
                parameter.grad = gradient
            elif parameter.grad is None:
                parameter.grad = gradient.clone()
            else:
                parameter.grad += gradient
        return (None, None, None, *graph.vector_grads)
