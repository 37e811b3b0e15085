"""Run the work of many images as one forward, or in smaller parts if it does not fit into memory."""

import gc
from collections.abc import Collection, Sequence
from typing import Any, Protocol

import torch

from sd_core.engine.kinds.kind import Kind
from sd_core.engine.memory import Memory, is_out_of_memory


class Cache(Protocol):
    """What takes memory that it could do without."""

    def release(self) -> None: ...


class Runner:
    """Runs the works of one kind that the scheduler chose, and decides what happens if a forward fails.

    `kinds` are all kinds on the device: if one lacks memory, another may be able to free some, and so may the `caches`.
    """

    def __init__(self, memory: Memory, kinds: Collection[Kind[Any]], caches: Collection[Cache] = ()) -> None:
        self._memory, self._kinds, self._caches = memory, kinds, caches

    def warm_up(self) -> None:
        """Prepare what the first works would otherwise wait for, as far as it fits into memory."""
        try:
            for kind in self._kinds:
                kind.warm_up()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._release()

    def run(self, kind: Kind[Any], works: Sequence[Any]) -> tuple[list[Any], bool]:
        """The answer to each work, in order, and whether all fit into memory together. An answer may be an exception.

        Equal works are computed once. If a forward fails, its halves are tried, so that only a work that cannot run
        alone fails, with its own error. Raises the device's error if the device is lost.
        """
        # A work without an identity is identified by its index.
        identities = [
            (index,) if (identity := kind.identity(work)) is None else identity for index, work in enumerate(works)
        ]
        unique = dict(zip(identities, works, strict=True))
        answers, fits = self._halved(kind, list(unique.values()))
        by_identity = dict(zip(unique, answers, strict=True))
        return [by_identity[identity] for identity in identities], fits

    def require_device(self) -> None:
        """After a failure, raise if the GPU is lost: most CUDA errors are raised again by every later call."""
        if self._memory.device.type == "cuda":
            torch.cuda.synchronize(self._memory.device)

    def _halved(self, kind: Kind[Any], works: Sequence[Any]) -> tuple[list[Any], bool]:
        try:
            self._memory.require(sum(map(kind.bytes, works)))
            return list(kind.run(works)), True
        except Exception as error:  # noqa: BLE001 - an answer; the halves show whose it is
            failure = error.with_traceback(None)  # a traceback would keep the failed forward's tensors alive
        self.require_device()
        fits = not is_out_of_memory(failure)
        if not fits:
            self._release()
        if len(works) == 1:
            return [failure if fits else self._in_parts(kind, works[0], failure)], fits
        middle = len(works) // 2
        return self._halved(kind, works[:middle])[0] + self._halved(kind, works[middle:])[0], fits

    def _in_parts(self, kind: Kind[Any], work: Any, failure: Exception) -> Any:
        """The answer to one work whose forward does not fit into memory."""
        try:
            if (part := kind.smallest(work)) is None:
                return failure
            self._memory.require(kind.bytes(part))
            return kind.run_in_parts(work)
        except Exception as error:  # noqa: BLE001 - as above
            return error.with_traceback(None)

    def _release(self) -> None:
        for each in (*self._kinds, *self._caches):
            each.release()
        gc.collect()
        if self._memory.device.type == "cuda":
            torch.cuda.empty_cache()
