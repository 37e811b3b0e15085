"""A pure-PyTorch core for Stable Diffusion v1.x: models, samplers, pipeline and engine.

```python
import sd_core

model = sd_core.load("checkpoint.safetensors")
images = model.generate("a red star", steps=20, seed=1)
```

`import sd_core` alone imports nothing heavy: each name below is imported at its first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sd_core.engine.engine import Engine
    from sd_core.errors import (
        Broken,
        Busy,
        DeviceError,
        InvalidImage,
        InvalidRequest,
        ModelError,
        NotFinite,
        OutOfMemory,
        SDError,
    )
    from sd_core.model import Model, load
    from sd_core.request import Request, Result

_HOMES = {
    "load": "sd_core.model",
    "Model": "sd_core.model",
    "Engine": "sd_core.engine.engine",
    "Request": "sd_core.request",
    "Result": "sd_core.request",
}

__all__ = [
    "Broken",
    "Busy",
    "DeviceError",
    "Engine",
    "InvalidImage",
    "InvalidRequest",
    "Model",
    "ModelError",
    "NotFinite",
    "OutOfMemory",
    "Request",
    "Result",
    "SDError",
    "load",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "sd_core.errors")), name)


def __dir__() -> list[str]:
    return __all__
