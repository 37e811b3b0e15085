"""CUDA graphs of the UNet: the GPU receives a whole forward at once, faster than the host could launch its kernels.

A graph has fixed shapes and fixed memory. A forward is therefore padded to the next of a few sizes ("bucket"), its
inputs are copied to the memory that the graph reads, and the rows of padding are cut off its output.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sd_core.cache import LRU
from sd_core.engine.memory import is_out_of_memory
from sd_core.models.given import Given
from sd_core.models.unet import UNet
from sd_core.models.unet_step import KeepingStep, OutermostStep, UNetStep

# Rows of a forward; one with more runs without a graph. Padding to the next size wastes at most a third of the rows.
BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)

MAX_GRAPHS = 24

# Stands for a graph that is not captured yet, in a bucket that came once.
SEEN = "seen once"

Replay = Callable[[], None]
# Records a computation on fixed memory; returns a function that repeats it, and the tensor of its output.
Capture = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]

# Called as `UNetStep.forward` is.
Step = Callable[..., Tensor]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bucket:
    """The shapes of one graph: latents (pictures, 4, height, width), and `rows` contexts of `tokens` tokens.

    `rows` is `pictures` or twice that.
    """

    pictures: int
    rows: int
    height: int
    width: int
    tokens: int

    @classmethod
    def of(cls, latents: Tensor, given: Given) -> "Bucket | None":
        """The smallest bucket for this forward; None if it is too large for all.

        If there are at most half as many inputs as rows, rows share their input up to the prompts; otherwise inputs are
        repeated, one per row.
        """
        count, tokens = rows_and_tokens(given)
        rows = next((size for size in BUCKETS if size >= count), None)
        if rows is None:
            return None
        is_shared = rows % 2 == 0 and len(latents) <= rows // 2
        height, width = latents.shape[2:]
        return cls(rows // 2 if is_shared else rows, rows, height, width, tokens)


def rows_and_tokens(given: Given) -> tuple[int, int]:
    """The number of rows of a forward, and of tokens in their contexts."""
    keys, _ = next(iter(given.keys_values.values()))
    return keys.shape[0], keys.shape[1]


def example(unet: UNet, bucket: Bucket) -> tuple[Tensor, Tensor, Given]:
    """Inputs of a bucket's shapes, as a UNet takes them."""
    device = unet.device
    latents = torch.zeros(bucket.pictures, unet.config.in_channels, bucket.height, bucket.width, device=device)
    rows = torch.arange(bucket.rows, device=device) % bucket.pictures
    states = torch.zeros(bucket.rows, bucket.tokens, unet.config.context_dim, dtype=unet.dtype, device=device)
    return latents, torch.zeros(bucket.pictures, device=device), unet.given(states, rows)


class _Graph:
    """One captured forward, with the memory that it reads and writes."""

    def __init__(
        self,
        bucket: Bucket,
        plain: UNetStep,
        step: Step,
        capture: Capture,
        latents: Tensor,
        given: Given,
        deep: Tensor | None,
    ) -> None:
        self._bucket, self._plain = bucket, plain
        self._latents = latents.new_zeros(bucket.pictures, *latents.shape[1:])
        self._timesteps = torch.zeros(bucket.pictures, device=latents.device)
        self._image_of_row = torch.zeros(bucket.rows, dtype=torch.long, device=latents.device)
        self._read = [each.new_zeros(bucket.rows, *each.shape[1:]) for each in plain.flatten(given)]
        self._deep = [] if deep is None else [deep.new_zeros(bucket.rows, *deep.shape[1:])]
        self._load(given)
        self._replay, self._output = capture(
            lambda: step(self._latents, self._timesteps, self._image_of_row, *self._deep, *self._read)
        )

    def _load(self, given: Given) -> None:
        rows, _ = rows_and_tokens(given)
        for fixed, each in zip(self._read, self._plain.flatten(given), strict=True):
            fixed[:rows] = each
        if given.image_of_row is not None:
            self._image_of_row[:rows] = given.image_of_row
        self._given = given

    def __call__(self, latents: Tensor, timesteps: Tensor, given: Given, deep: Tensor | None) -> Tensor:
        if given is not self._given:  # most steps are given what the step before was
            self._load(given)
        if self._bucket.pictures == self._bucket.rows:
            latents, timesteps = given.per_row(latents), given.per_row(timesteps)
        self._latents[: len(latents)] = latents
        self._timesteps[: len(timesteps)] = timesteps
        if deep is not None:
            self._deep[0][: len(deep)] = deep
        self._replay()
        return self._output[: rows_and_tokens(given)[0]].clone()


class GraphedUNet:
    """A UNet on a GPU, called as the UNet is. Forwards whose shape is repeated run as graphs.

    `packages` are compiled forwards of some buckets; the others run the UNet itself. A forward that is given more than
    keys and values runs without a graph.
    """

    def __init__(self, unet: UNet, packages: Mapping[Bucket, Step], capture: Capture) -> None:
        self._unet, self._packages, self._capture = unet, packages, capture
        self._plain, self._keeping, self._outermost = UNetStep(unet), KeepingStep(unet), OutermostStep(unet)
        self._graphs: LRU[tuple[UNetStep, Bucket], _Graph | str] = LRU(MAX_GRAPHS)
        self._captures = True

    def __call__(self, latents: Tensor, timesteps: Tensor, given: Given) -> Tensor:
        graph = self._graph(self._plain, latents, given)
        if graph is not None:
            return graph(latents, timesteps, given, None)
        output: Tensor = self._unet(latents, timesteps, given)
        return output

    def whole(self, latents: Tensor, timesteps: Tensor, given: Given) -> tuple[Tensor, Tensor]:
        """As `UNet.whole`."""
        graph = self._graph(self._keeping, latents, given)
        if graph is None:
            return self._unet.whole(latents, timesteps, given)
        config = self._unet.config
        output, deep = graph(latents, timesteps, given, None).split([config.out_channels, config.channels[0]], dim=1)
        return output, deep.to(self._unet.dtype)

    def outermost(self, latents: Tensor, timesteps: Tensor, deep: Tensor, given: Given) -> Tensor:
        """As `UNet.outermost`."""
        graph = self._graph(self._outermost, latents, given, deep)
        if graph is None:
            return self._unet.outermost(latents, timesteps, deep, given)
        return graph(latents, timesteps, given, deep)

    def warm_up(self) -> None:
        """Capture the graphs of the packages, so that the first jobs of their shapes do not have to."""
        for bucket in self._packages:
            inputs = example(self._unet, bucket)
            for _ in range(2):
                self(*inputs)

    def clear(self) -> None:
        """Free the graphs' memory."""
        self._graphs.clear()

    def _graph(self, plain: UNetStep, latents: Tensor, given: Given, deep: Tensor | None = None) -> _Graph | None:
        """The graph of this step for the forward's bucket, captured when it comes for the second time."""
        bucket = Bucket.of(latents, given) if given.is_plain and self._captures else None
        if bucket is None:
            return None
        key = plain, bucket
        graph = self._graphs.get(key)
        if graph is None:
            self._graphs.put(key, SEEN)
            return None
        if isinstance(graph, str):
            step = self._packages.get(bucket, plain) if plain is self._plain else plain
            try:
                graph = _Graph(bucket, plain, step, self._capture, latents, given, deep)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                # Capture is not supported by this driver or operator: fall back to eager.
                log.warning("no CUDA graphs, steps take longer: %s", error)
                self._captures = False
                self.clear()
                return None
            self._graphs.put(key, graph)
        return graph


def for_device(
    unet: UNet, device: torch.device, packages: Mapping[Bucket, Step], capture: Capture | None = None
) -> UNet | GraphedUNet:
    """The UNet in the form that its device runs fastest; `capture` is the one that its graphs share with others'."""
    return GraphedUNet(unet, packages, capture or CUDACapture()) if device.type == "cuda" else unet


class CUDACapture:
    """Captures CUDA graphs that share one memory pool, which is safe because they run one after another.

    They may be of several UNets.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        # All graphs use the same streams, because libraries keep a workspace per stream. There are two, because the end
        # of a graph frees the workspaces of the stream that it was captured on.
        self._warming, self._capturing = torch.cuda.Stream(), torch.cuda.Stream()

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        current = torch.cuda.current_stream()
        self._warming.wait_stream(current)
        with torch.cuda.stream(self._warming):
            run()  # lets libraries choose kernels and allocate workspaces outside the graph
        current.wait_stream(self._warming)
        graph = torch.cuda.CUDAGraph()
        # Other threads may wait for events meanwhile, which the strictest mode would treat as an error.
        capture = torch.cuda.graph(graph, self._pool, self._capturing, capture_error_mode="thread_local")
        with torch.cuda.stream(current), capture:  # otherwise a failed capture would leave this thread on its stream
            output = run()
        return graph.replay, output
