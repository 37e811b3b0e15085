"""Work of many pictures -> one forward, in smaller parts if memory does not hold it."""

import gc
from collections.abc import Collection, Sequence
from typing import Any

import torch

from sd_core.engine.kinds.kind import Kind
from sd_core.engine.memory import Memory, is_out_of_memory


class Runner:
    """Runs works of one kind, as the scheduler chose them, and decides what happens when a forward fails.

    `kinds` are all that share the device: memory that one of them lacks may be kept by another.
    """

    def __init__(self, memory: Memory, kinds: Collection[Kind[Any]]) -> None:
        self._memory, self._kinds = memory, kinds

    def warm_up(self) -> None:
        """Prepare what the first works would wait for, as far as memory holds it."""
        try:
            for kind in self._kinds:
                kind.warm_up()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._release()

    def run(self, kind: Kind[Any], works: Sequence[Any]) -> tuple[list[Any], bool]:
        """The answer to each work, in order, and whether memory held them all together. An exception is an answer too.

        Equal works are computed once. If a forward fails its halves are tried, so that only what cannot run alone
        fails, with the error that it met. Raises the device's error if the device is lost.
        """
        # A work that is like no other is identified by its place.
        identities = [
            (index,) if (identity := kind.identity(work)) is None else identity for index, work in enumerate(works)
        ]
        unique = dict(zip(identities, works, strict=True))
        answers, held = self._halved(kind, list(unique.values()))
        by_identity = dict(zip(unique, answers, strict=True))
        return [by_identity[identity] for identity in identities], held

    def require_device(self) -> None:
        """After a failure: raise if the GPU is lost. Most of CUDA's errors come again at every later call."""
        if self._memory.device.type == "cuda":
            torch.cuda.synchronize(self._memory.device)

    def _halved(self, kind: Kind[Any], works: Sequence[Any]) -> tuple[list[Any], bool]:
        try:
            self._memory.require(sum(map(kind.bytes, works)))
            return list(kind.run(works)), True
        except Exception as error:  # noqa: BLE001 - an answer too; the halves show whose it is
            failure = error.with_traceback(None)  # a traceback would keep the failed forward's tensors alive
        self.require_device()
        held = not is_out_of_memory(failure)
        if not held:
            self._release()
        if len(works) == 1:
            return [failure if held else self._in_parts(kind, works[0], failure)], held
        middle = len(works) // 2
        return self._halved(kind, works[:middle])[0] + self._halved(kind, works[middle:])[0], held

    def _in_parts(self, kind: Kind[Any], work: Any, failure: Exception) -> Any:
        """The answer to one work for which memory does not hold a whole forward."""
        try:
            if (part := kind.smallest(work)) is None:
                return failure
            self._memory.require(kind.bytes(part))
            return kind.run_in_parts(work)
        except Exception as error:  # noqa: BLE001 - as above
            return error.with_traceback(None)

    def _release(self) -> None:
        for kind in self._kinds:
            kind.release()
        gc.collect()
        if self._memory.device.type == "cuda":
            torch.cuda.empty_cache()
