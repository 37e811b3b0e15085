"""Reports a sampler's steps, whatever the sampler."""

from collections.abc import Callable, Generator

from torch import Tensor

from sd_core.work import Call, Prediction, Sampling, answering

OnStep = Callable[[int, int, Tensor], None]
"""Called with the number of steps done, of calls done, and the clean latents (1, 4, h, w) predicted last."""


def after(steps: int, calls: int, on_step: OnStep) -> OnStep:
    """`on_step` for a sampler that follows another one of so many steps and calls."""

    def on_later_step(step: int, call: int, predicted_x0: Tensor) -> None:
        on_step(steps + step, calls + call, predicted_x0)

    return on_later_step


def watched(sampling: Sampling, on_step: OnStep) -> Sampling:
    """The same sampler, calling `on_step` after each step; a step may take several calls."""
    calls = 0
    last: tuple[int, Tensor] | None = None

    def answer(call: Call) -> Generator[Call, Prediction, Prediction]:
        nonlocal calls, last
        if last is not None and call.step != last[0]:
            on_step(last[0] + 1, calls, last[1])
        prediction = yield call
        calls += 1
        last = call.step, prediction.x0
        return prediction

    latents: Tensor = yield from answering(sampling, answer)
    if last is not None:
        on_step(last[0] + 1, calls, last[1])
    return latents
