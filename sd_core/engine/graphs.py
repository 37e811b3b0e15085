"""CUDA graphs of the UNet: a GPU is given a whole forward at once, where the host could not launch its kernels as fast.

A graph has fixed shapes and fixed memory. So a forward is brought to the next of a few sizes ("bucket"), its inputs are
copied to where the graph reads them, and what it answers to padding is cut off.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sd_core.engine.memory import is_out_of_memory
from sd_core.models.unet import Contexts, UNet, UNetStep

BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Rows of a forward; one with more runs without a graph. Steps of at most a half waste at most a third."""

MOST_GRAPHS = 24

COMPILED = "compiled"
"""The folder, in the directory of the checkpoint, of what `sd_core.engine.aot` keeps."""

Replay = Callable[[], None]
Capture = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]
"""Records a computation on fixed memory: how to repeat it, and where it puts its answer."""

Step = Callable[..., Tensor]
"""As `UNetStep.forward`."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bucket:
    """The shapes of one graph: latents (pictures, 4, height, width), contexts of `tokens`; rows = pictures or twice."""

    pictures: int
    rows: int
    height: int
    width: int
    tokens: int

    @classmethod
    def of(cls, latents: Tensor, contexts: Contexts) -> "Bucket | None":
        """The smallest that holds this forward; None where none does.

        Pictures that are at most half as many as the rows stay shared up to their prompts, others are repeated.
        """
        rows = next((size for size in BUCKETS if size >= len(contexts)), None)
        if rows is None:
            return None
        shared = rows % 2 == 0 and len(latents) <= rows // 2
        height, width = latents.shape[2:]
        return cls(rows // 2 if shared else rows, rows, height, width, contexts.read[0][0].shape[1])


def example(unet: UNet, bucket: Bucket) -> tuple[Tensor, Tensor, Contexts]:
    """Inputs of a bucket's shapes, as a UNet takes them."""
    weight = next(unet.parameters())
    latents = weight.new_zeros(
        bucket.pictures, unet.config.in_channels, bucket.height, bucket.width, dtype=torch.float32
    )
    rows = torch.arange(bucket.rows, device=weight.device) % bucket.pictures
    context = weight.new_zeros(bucket.rows, bucket.tokens, unet.config.context_dim)
    return latents, latents.new_zeros(bucket.pictures), unet.read(context, rows)


class _Graph:
    """One captured forward with the memory that it reads and writes."""

    def __init__(self, bucket: Bucket, step: Step, capture: Capture, latents: Tensor, contexts: Contexts) -> None:
        self._latents = latents.new_zeros(bucket.pictures, *latents.shape[1:])
        self._timesteps = torch.zeros(bucket.pictures, device=latents.device)
        self._rows = torch.zeros(bucket.rows, dtype=torch.long, device=latents.device)
        self._read = [
            each.new_zeros(bucket.rows, *each.shape[1:]) for keys_values in contexts.read for each in keys_values
        ]
        self._bucket = bucket
        self._load_contexts(contexts)
        self._replay, self._eps = capture(lambda: step(self._latents, self._timesteps, self._rows, *self._read))

    def _load_contexts(self, contexts: Contexts) -> None:
        given = [each for keys_values in contexts.read for each in keys_values]
        for fixed, each in zip(self._read, given, strict=True):
            fixed[: len(each)] = each
        if contexts.rows is not None:
            self._rows[: len(contexts.rows)] = contexts.rows
        self._contexts = contexts

    def __call__(self, latents: Tensor, timesteps: Tensor, contexts: Contexts) -> Tensor:
        if contexts is not self._contexts:  # most steps have those of the step before
            self._load_contexts(contexts)
        if self._bucket.pictures == self._bucket.rows:
            latents, timesteps = (contexts.spread(each, len(contexts)) for each in (latents, timesteps))
        self._latents[: len(latents)] = latents
        self._timesteps[: len(timesteps)] = timesteps
        self._replay()
        return self._eps[: len(contexts)].clone()


class GraphedUNet:
    """A UNet on a GPU, called as it is: forwards whose shape comes again run as graphs.

    `packages` are compiled forwards of some buckets; the others run the UNet itself.
    """

    def __init__(self, unet: UNet, packages: Mapping[Bucket, Step], capture: Capture) -> None:
        self._unet, self._packages, self._capture = unet, packages, capture
        self._plain = UNetStep(unet)
        self._graphs: OrderedDict[Bucket, _Graph | None] = OrderedDict()  # None: seen once
        self._captures = True

    def read(self, context: Tensor, rows: Tensor | None = None) -> Contexts:
        return self._unet.read(context, rows)

    def __call__(self, latents: Tensor, timesteps: Tensor, contexts: Contexts) -> Tensor:
        bucket = Bucket.of(latents, contexts) if self._captures else None
        graph = None if bucket is None else self._graph(bucket, latents, contexts)
        eps: Tensor = (graph or self._unet)(latents, timesteps, contexts)
        return eps

    def warm_up(self) -> None:
        """Captures the packages' graphs, which the first jobs of their shapes would wait for."""
        for bucket in self._packages:
            inputs = example(self._unet, bucket)
            for _ in range(2):
                self(*inputs)

    def clear(self) -> None:
        """Gives the graphs' memory back."""
        self._graphs.clear()

    def _graph(self, bucket: Bucket, latents: Tensor, contexts: Contexts) -> _Graph | None:
        """The bucket's graph, captured when it comes for the second time."""
        if bucket not in self._graphs:
            self._graphs[bucket] = None
            while len(self._graphs) > MOST_GRAPHS:
                self._graphs.popitem(last=False)
            return None
        self._graphs.move_to_end(bucket)
        if self._graphs[bucket] is None:
            step = self._packages.get(bucket, self._plain)
            try:
                self._graphs[bucket] = _Graph(bucket, step, self._capture, latents, contexts)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                # A driver or an operator that cannot be captured: all works without.
                log.warning("no CUDA graphs, steps take longer: %s", error)
                self._captures = False
                self.clear()
                return None
        return self._graphs[bucket]


def for_device(unet: UNet, device: torch.device, packages: Mapping[Bucket, Step]) -> UNet | GraphedUNet:
    """The UNet as its device runs it fastest."""
    return GraphedUNet(unet, packages, CUDACapture()) if device.type == "cuda" else unet


class CUDACapture:
    """Captures CUDA graphs that share one pool of memory: they run one after another."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        # The same two for all graphs: libraries keep a workspace for every stream. And two, because the end of a graph
        # frees the workspaces of the stream that it was captured on.
        self._warming, self._capturing = torch.cuda.Stream(), torch.cuda.Stream()

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        current = torch.cuda.current_stream()
        self._warming.wait_stream(current)
        with torch.cuda.stream(self._warming):
            run()  # libraries choose their kernels and take their workspaces outside the graph
        current.wait_stream(self._warming)
        graph = torch.cuda.CUDAGraph()
        # Other threads wait for their events meanwhile, which the strictest mode would take for a mistake.
        capture = torch.cuda.graph(graph, self._pool, self._capturing, capture_error_mode="thread_local")
        with torch.cuda.stream(current), capture:  # a capture that fails would leave this thread on its stream
            eps = run()
        return graph.replay, eps
