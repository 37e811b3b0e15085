"""What a file's metadata says of its scales: PEFT stores no alpha beside the tensors."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sd_core.adapters.names import TEXT, UNET

METADATA = "lora_adapter_metadata"
"""Where diffusers writes PEFT's configurations: one JSON object whose keys begin with the network's name."""

CONFIG = "adapter_config"
"""Where a reader puts the text of an `adapter_config.json` that lies beside the file, as PEFT itself writes it."""

_PREFIXES = {UNET: "unet.", TEXT: "text_encoder."}


@dataclass(frozen=True)
class Scales:
    """PEFT's configuration for each network, if there is one."""

    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> "Scales":
        """Metadata that does not say how to scale is not an error: alpha is then the rank."""
        whole, alone = _parsed(metadata.get(METADATA)), _parsed(metadata.get(CONFIG))
        configs = {}
        for network, prefix in _PREFIXES.items():
            own = {key.removeprefix(prefix): value for key, value in whole.items() if key.startswith(prefix)}
            configs[network] = own or alone
        return cls(configs)

    def scale(self, network: str, layer: str, rank: int) -> float:
        """alpha / rank, or alpha / sqrt(rank) (Kalajdzievski 2023, rsLoRA), of a layer as the file names it."""
        config = self.configs.get(network, {})
        alpha = config.get("lora_alpha")
        pattern = config.get("alpha_pattern")
        for key, value in pattern.items() if isinstance(pattern, dict) else ():
            if layer == key or layer.endswith(f".{key}"):
                alpha = value
        if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha) or not alpha:
            return 1.0
        return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") is True else rank)


def _parsed(text: str | None) -> dict[str, Any]:
    """The JSON object in a text, empty if there is none."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
