"""Forwards of fixed shapes in fixed memory. Without a GPU a graph is replaced by repeating the computation."""

import copy
import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sd_core.engine.graphs import BUCKETS, MAX_GRAPHS, Bucket, CUDACapture, GraphedUNet, Replay
from sd_core.models.given import Given
from sd_core.models.unet import UNet, UNetConfig
from sd_core.models.unet_step import UNetStep

CONFIG = UNetConfig(channels=(32, 64), num_res_blocks=1, attention_levels=(0,), context_dim=32)


@pytest.fixture(scope="module")
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(CONFIG).eval().requires_grad_(requires_grad=False)


class Repeats:
    """A capture without a GPU: a replay computes again, from and into the same memory."""

    def __init__(self) -> None:
        self.captured = 0

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        self.captured += 1
        answer = run()

        def replay() -> None:
            answer.copy_(run())

        return replay, answer


def forward(pictures: list[int], side: int = 8, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Latents, timesteps, contexts and rows of images with these numbers of prompts."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(len(pictures), 4, side, side, generator=generator)
    timesteps = torch.rand(len(pictures), generator=generator) * 999
    context = torch.randn(sum(pictures), 77, CONFIG.context_dim, generator=generator)
    rows = torch.tensor([index for index, count in enumerate(pictures) for _ in range(count)])
    return latents, timesteps, context, None if len(rows) == len(pictures) else rows


MIXES = [[1], [2], [2, 2], [2, 1], [1, 1, 1], [2, 1, 1, 2, 2], [1] * 5, [2] * 7, [1] * 30 + [2]]


@pytest.mark.parametrize("pictures", MIXES, ids=str)
def test_a_graph_computes_what_the_network_does(unet: UNet, pictures: list[int]) -> None:
    capture = Repeats()
    graphed = GraphedUNet(unet, {}, capture)
    with torch.inference_mode():
        for seed in range(4):  # eager, captured, and two replays with other inputs and prompts
            latents, timesteps, context, rows = forward(pictures, seed=seed)
            expected = unet(latents, timesteps, unet.given(context, rows))
            answer = graphed(latents, timesteps, unet.given(context, rows))
            torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)
            assert capture.captured == min(seed, 1)


@pytest.mark.parametrize("pictures", [[1], [2], [2, 1], [2] * 7], ids=str)
def test_graphs_of_whole_and_outermost_steps_answer_as_the_network_does(unet: UNet, pictures: list[int]) -> None:
    capture = Repeats()
    graphed = GraphedUNet(unet, {}, capture)
    with torch.inference_mode():
        for seed in range(4):
            latents, timesteps, context, rows = forward(pictures, seed=seed)
            given = unet.given(context, rows)
            output, deep = unet.whole(latents, timesteps, given)
            for answer, expected in zip(graphed.whole(latents, timesteps, given), (output, deep), strict=True):
                torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)
            for scale in (1.0, -1.0):  # the same prompts with other features
                shallow = graphed.outermost(latents, timesteps, scale * deep, given)
                expected = unet.outermost(latents, timesteps, scale * deep, given)
                torch.testing.assert_close(shallow, expected, rtol=1e-4, atol=1e-5)
            assert capture.captured == (1, 2, 2, 2)[seed]


def test_a_graph_serves_smaller_forwards_without_traces_of_earlier_ones(unet: UNet) -> None:
    capture = Repeats()
    graphed = GraphedUNet(unet, {}, capture)
    mixes = [[2] * 6, [2] * 6, [2] * 5, [2, 2, 2, 2, 1], [2] * 6]  # 12, 12, 10, 9 and 12 rows: one bucket
    with torch.inference_mode():
        for seed, pictures in enumerate(mixes):
            latents, timesteps, context, rows = forward(pictures, seed=seed)
            expected = unet(latents, timesteps, unet.given(context, rows))
            answer = graphed(latents, timesteps, unet.given(context, rows))
            torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)
    assert capture.captured == 1


def test_an_output_is_a_copy_of_the_graphs_memory(unet: UNet) -> None:
    graphed = GraphedUNet(unet, {}, Repeats())
    latents, timesteps, context, rows = forward([2])
    given = unet.given(context, rows)
    graphed(latents, timesteps, given)
    first = graphed(latents, timesteps, given)
    kept = first.clone()
    graphed(latents + 1, timesteps, given)
    assert torch.equal(first, kept)


def test_unchanged_prompts_are_copied_once(unet: UNet, monkeypatch: pytest.MonkeyPatch) -> None:
    flattened, flatten = list[int](), UNetStep.flatten

    def counted(self: UNetStep, given: Given) -> list[Tensor]:
        flattened.append(1)
        return flatten(self, given)

    graphed = GraphedUNet(unet, {}, Repeats())
    latents, timesteps, context, rows = forward([2])
    given = unet.given(context, rows)
    for _ in range(2):
        graphed(latents, timesteps, given)
    monkeypatch.setattr(UNetStep, "flatten", counted)
    for _ in range(3):
        graphed(latents, timesteps, given)
    assert flattened == []
    graphed(latents, timesteps, unet.given(context, rows))
    assert flattened == [1]


def test_adapters_and_padding_run_without_a_graph(unet: UNet) -> None:
    capture = Repeats()
    graphed = GraphedUNet(unet, {}, capture)
    latents, timesteps, context, rows = forward([2])
    plain = unet.given(context, rows)
    adapted = replace(plain, adapters={"out.2": lambda _x, out, _padding, _gates=None: out + 1})
    for _ in range(3):
        torch.testing.assert_close(graphed(latents, timesteps, adapted), unet(latents, timesteps, plain) + 1)
    assert capture.captured == 0


def test_a_bucket_fits_its_forward_and_wastes_at_most_a_third() -> None:
    for prompts in range(1, BUCKETS[-1] + 1):
        for pictures in range((prompts + 1) // 2, prompts + 1):
            rows = None if pictures == prompts else torch.zeros(prompts, dtype=torch.long)
            given = Given({"attn2": (torch.empty(prompts, 77, 1), torch.empty(prompts, 77, 1))}, rows)
            bucket = Bucket.of(torch.empty(pictures, 4, 8, 6), given)
            assert bucket is not None
            assert (bucket.height, bucket.width, bucket.tokens) == (8, 6, 77)
            assert prompts <= bucket.rows <= 1.5 * prompts
            assert bucket.pictures in (bucket.rows, bucket.rows / 2)
            assert bucket.pictures >= pictures
            if rows is None:
                assert bucket.pictures == bucket.rows, "each image has its own prompt"


def test_more_rows_than_the_largest_bucket_run_without_a_graph(unet: UNet) -> None:
    capture = Repeats()
    graphed = GraphedUNet(unet, {}, capture)
    latents, timesteps, context, rows = forward([1] * 33, side=4)
    for _ in range(2):
        graphed(latents, timesteps, unet.given(context, rows))
    assert capture.captured == 0


def test_the_least_recently_used_graphs_are_dropped(unet: UNet) -> None:
    capture = Repeats()
    graphed = GraphedUNet(unet, {}, capture)

    def twice(side: int) -> None:
        latents, timesteps, context, rows = forward([1], side)
        for _ in range(2):
            graphed(latents, timesteps, unet.given(context, rows))

    twice(4)
    for side in range(5, 5 + MAX_GRAPHS):
        twice(side)
    assert capture.captured == 1 + MAX_GRAPHS
    twice(4 + MAX_GRAPHS)
    assert capture.captured == 1 + MAX_GRAPHS
    twice(4)
    assert capture.captured == 2 + MAX_GRAPHS
    graphed.clear()
    twice(4)
    assert capture.captured == 3 + MAX_GRAPHS


def test_if_capture_is_not_supported_all_run_without_graphs(unet: UNet, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(_run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    graphed = GraphedUNet(unet, {}, refuse)
    latents, timesteps, context, rows = forward([2])
    expected = unet(latents, timesteps, unet.given(context, rows))
    with caplog.at_level(logging.WARNING, "sd_core"):
        for _ in range(3):
            assert torch.equal(graphed(latents, timesteps, unet.given(context, rows)), expected)
    assert [record.message for record in caplog.records] == [
        "no CUDA graphs, steps take longer: operation not permitted when stream is capturing"
    ]


def test_capture_is_tried_again_after_a_lack_of_memory(unet: UNet) -> None:
    def full(_run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    graphed = GraphedUNet(unet, {}, full)
    latents, timesteps, context, rows = forward([2])
    graphed(latents, timesteps, unet.given(context, rows))
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            graphed(latents, timesteps, unet.given(context, rows))


def test_a_package_replaces_the_network_in_its_bucket(unet: UNet) -> None:
    step, called = UNetStep(unet), []

    def package(*inputs: Tensor) -> Tensor:
        called.append([tuple(each.shape) for each in inputs[:3]])
        answer: Tensor = step(*inputs)
        return answer

    graphed = GraphedUNet(unet, {Bucket(1, 2, 8, 8, 77): package}, Repeats())
    for pictures in ([2], [1], [2], [1]):
        latents, timesteps, context, rows = forward(pictures)
        expected = unet(latents, timesteps, unet.given(context, rows))
        answer = graphed(latents, timesteps, unet.given(context, rows))
        torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)
    assert called
    assert all(shapes == [(1, 4, 8, 8), (1,), (2,)] for shapes in called)


def test_a_warm_up_captures_the_graphs_of_packages(unet: UNet) -> None:
    step, capture = UNetStep(unet), Repeats()
    buckets = [Bucket(1, 2, 8, 8, 77), Bucket(2, 2, 8, 8, 77)]
    graphed = GraphedUNet(unet, dict.fromkeys(buckets, step), capture)
    graphed.warm_up()
    assert capture.captured == 2
    for pictures in ([2], [1, 1]):
        latents, timesteps, context, rows = forward(pictures)
        expected = unet(latents, timesteps, unet.given(context, rows))
        torch.testing.assert_close(graphed(latents, timesteps, unet.given(context, rows)), expected)
    assert capture.captured == 2


@pytest.mark.gpu
@pytest.mark.parametrize("pictures", MIXES, ids=str)
def test_a_cuda_graph_computes_what_the_network_does(unet: UNet, pictures: list[int]) -> None:
    on_gpu = copy.deepcopy(unet).cuda()
    graphed = GraphedUNet(on_gpu, {}, CUDACapture())
    with torch.inference_mode():
        for seed in range(4):
            latents, timesteps, context, rows = forward(pictures, seed=seed)
            on_device = latents.cuda(), timesteps.cuda()
            given = on_gpu.given(context.cuda(), None if rows is None else rows.cuda())
            expected = unet(latents, timesteps, unet.given(context, rows))
            torch.testing.assert_close(graphed(*on_device, given).cpu(), expected, rtol=1e-3, atol=1e-3)
