"""Where the tensors of an adapter come from."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Source:
    """Tensors by name that are read one at a time, on the CPU.

    What `read` returns need stay valid only until the next call. `digest` returns the sha256 of the tensors' bytes,
    which may take as long as all the rest, so it is called last; `header` says which of the bytes are which tensor.
    """

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    read: Callable[[str], Tensor] = field(repr=False)
    digest: Callable[[], str] = field(repr=False)
    header: bytes = field(repr=False)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> "Source":
        """Tensors in memory."""

        def digest() -> str:
            sha256 = hashlib.sha256()
            for tensor in tensors.values():
                sha256.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            return sha256.hexdigest()

        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        return cls(shapes, metadata or {}, tensors.__getitem__, digest, json.dumps(list(shapes.items())).encode())
