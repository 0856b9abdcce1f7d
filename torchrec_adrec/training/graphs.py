"""Runs the dense part of a step as one CUDA graph: forward, loss and backward.

A launch costs the host 25 to 40 microseconds on a GPU machine. Heads, loss and their
backward pass are some 150 launches, which at 8,192 rows the card finishes in half a
millisecond; a captured graph is one launch. It reads its inputs at fixed addresses, so
the looked-up vectors and the batch are copied there first.

This is for one rank alone: collectives stay outside of graphs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchrec_adrec.batch import Batch
from torchrec_adrec.distributed.optimizer import StepOptimizer
from torchrec_adrec.schema import Schema
from torchrec_adrec.tasks.after_lookup import AfterLookup, Outputs

# Runs before a capture: in them libraries choose their kernels and make workspaces.
WARM = 3


def run_as_graphs(
    after_lookup: AfterLookup, optimizer: StepOptimizer, schema: Schema
) -> bool:
    """Let a model's dense part run as graphs, if its shapes are those of every step.

    Args:
        after_lookup: the dense part.
        optimizer: of the parameters whose gradients the graphs find.
        schema: with histories a batch has as many ids as they happen to have.

    Returns:
        Whether it does.
    """
    if schema.sequences:
        return False
    parameters = list(optimizer.dense.params.values())
    accumulates = optimizer.config.accumulate > 1
    after_lookup.run = _Graphs(after_lookup, parameters, accumulates)
    return True


class _Graphs:
    """Keeps a graph for each shape of a batch.

    There are one or two: the number of anchors, filled up, is all that may change.
    """

    def __init__(
        self, after_lookup: AfterLookup, parameters: list[Tensor], accumulates: bool
    ) -> None:
        self.after_lookup, self.parameters = after_lookup, parameters
        self.accumulates = accumulates
        self._captured: dict[Any, _Graph] = {}

    def __call__(
        self, vectors: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Outputs]:
        """Do what `AfterLookup.run_eagerly` does."""
        if not self.after_lookup.training:
            return self.after_lookup.run_eagerly(vectors, batch)
        key = (tuple(v.shape for v in vectors), batch.layout)
        graph = self._captured.get(key)
        if graph is None:
            graph = _Graph(self.after_lookup, self.parameters, vectors, batch)
            self._captured[key] = graph
        loss: Tensor = _Replay.apply(graph, self.accumulates, batch, *vectors)  # type: ignore[no-untyped-call]
        outputs = graph.outputs
        # The report is read a step later, when the graph has written the next one into
        # the same memory; all else is read before the next replay.
        report = outputs.report.clone()
        return loss, outputs._replace(report=report, labels=batch.labels)


class _Graph:
    """The graph of one shape, with the tensors that it reads and writes."""

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
        generator_state = torch.cuda.get_rng_state()
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
        torch.cuda.set_rng_state(generator_state)

    def _run(self) -> None:
        device = self.vectors[0].device.type
        use_bfloat16 = torch.is_autocast_enabled(device)
        # Without a cache: a cast that was cached outside of the graph would be read by
        # it for ever, and the weight behind it changes.
        with (
            torch.enable_grad(),
            torch.autocast(
                device, torch.bfloat16, enabled=use_bfloat16, cache_enabled=False
            ),
        ):
            loss, self.outputs = self.after_lookup.run_eagerly(self.vectors, self.batch)
            grads = torch.autograd.grad(
                loss, [*self.vectors, *self.parameters], allow_unused=True
            )
        self.loss = loss.detach()
        self.vector_grads = grads[: len(self.vectors)]
        self.parameter_grads = grads[len(self.vectors) :]

    def replay(self, vectors: Sequence[Tensor], batch: Batch) -> None:
        """Run the graph on other inputs."""
        for static, value in zip(self.vectors, vectors, strict=True):
            static.detach().copy_(value)
        self.batch.buffer.copy_(batch.buffer)
        self.graph.replay()


class _Replay(torch.autograd.Function):
    """Puts a graph into autograd: it runs in forward, and has found the gradients by
    then, so backward only hands them out.
    """

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
                # Of the graph itself: the next replay overwrites it, after the step.
                parameter.grad = gradient
            elif parameter.grad is None:
                parameter.grad = gradient.clone()
            else:
                parameter.grad += gradient
        return (None, None, None, *graph.vector_grads)
