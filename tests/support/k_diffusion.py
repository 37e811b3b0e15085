"""k-diffusion's samplers, without the training code that its package imports, and its dependencies.

Its `sampling` module needs of the package only one function of `utils`.
"""

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

from torch import Tensor


def _append_dims(x: Tensor, dimensions: int) -> Tensor:
    return x[(...,) + (None,) * (dimensions - x.ndim)]


def load() -> Any:
    """The module `k_diffusion.sampling`."""
    found = importlib.util.find_spec("k_diffusion")
    assert found is not None and found.submodule_search_locations
    package, utils = ModuleType("k_diffusion"), ModuleType("k_diffusion.utils")
    package.__path__ = list(found.submodule_search_locations)
    vars(utils)["append_dims"] = _append_dims
    vars(package)["utils"] = utils
    sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
    return importlib.import_module("k_diffusion.sampling")


k_diffusion = load()
