"""What a checkpoint's UNet predicts, as the file declares it: shapes cannot show this.

Sources: the ModelSpec metadata (`modelspec.prediction_type`), ComfyUI's metadata (`modelspec.predict_key`), the
marker tensors that ComfyUI, SD.Next and A1111 recognize (`v_pred`, `ztsnr`), and the configuration that A1111 reads
from a `.yaml` of the checkpoint's name beside it (`parameterization: "v"`).
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from sd_core.errors import ModelError
from sd_core.formats.keys import V_PREDICTION_MARKER, ZERO_SNR_MARKER, show

PREDICTION_TYPE_KEY = "sd_core.prediction_type"
ZERO_SNR_KEY = "sd_core.zero_terminal_snr"

EPSILON = "epsilon"
V_PREDICTION = "v_prediction"
PREDICTION_TYPES = (EPSILON, V_PREDICTION)

# What `beside` finds in a `.yaml`, as if the file itself had it in its metadata.
SIDECAR_KEY = "parameterization (.yaml beside the file)"
_MAX_SIDECAR = 2**20  # bytes; configurations have a few kilobytes
_PARAMETERIZATION = re.compile(r"""^\s*parameterization\s*:\s*(['"]?)([\w-]+)\1\s*(?:#.*)?$""", re.MULTILINE)

_TYPE_KEYS = (PREDICTION_TYPE_KEY, "modelspec.prediction_type", "modelspec.predict_key", SIDECAR_KEY)
_SPELLINGS = {
    "epsilon": EPSILON,
    "eps": EPSILON,
    "v": V_PREDICTION,
    "v_prediction": V_PREDICTION,
    "v_pred": V_PREDICTION,
    "vpred": V_PREDICTION,
    "vprediction": V_PREDICTION,
}
_EDM_MARKERS = ("edm_vpred.sigma_min", "edm_vpred.sigma_max", "edm_mean", "edm_std")
_DECIDE = f"`python -m builder convert SRC DST --prediction-type {'|'.join(PREDICTION_TYPES)}` decides"


def declared(names: Collection[str], metadata: Mapping[str, str]) -> tuple[str, bool]:
    """The prediction type, one of PREDICTION_TYPES, and whether the noise schedule has zero terminal SNR.

    `names` are the names of all tensors in the file. Without a declaration: epsilon, False. Metadata ZERO_SNR_KEY
    overrules its marker tensor, and PREDICTION_TYPE_KEY a `.yaml` beside the file, which may be that of the source.
    ModelError if the prediction type is unknown, or declared in two ways.
    """
    for marker in _EDM_MARKERS:
        if marker in names:
            raise ModelError(f"the marker tensor {marker} declares EDM's noise schedule, which is not supported")
    claims = {
        f"metadata {key} says {show(text, 40)}": _type(key, text)
        for key in _TYPE_KEYS
        if (text := metadata.get(key, "")).strip() and not (key == SIDECAR_KEY and PREDICTION_TYPE_KEY in metadata)
    }
    if V_PREDICTION_MARKER in names:
        claims[f"the marker tensor {V_PREDICTION_MARKER} says {V_PREDICTION}"] = V_PREDICTION
    types = set(claims.values()) or {EPSILON}
    if len(types) > 1:
        raise ModelError(f"the file contradicts itself: {', '.join(claims)}; {_DECIDE}")
    return types.pop(), _zero_snr(names, metadata)


def beside(path: Path) -> dict[str, str]:
    """What a `.yaml` of the same name beside a checkpoint declares, as metadata; nothing without one.

    ModelError if it cannot be read.
    """
    sidecar = path.with_suffix(".yaml")
    try:
        with sidecar.open(encoding="utf-8", errors="replace") as file:
            text = file.read(_MAX_SIDECAR)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ModelError(f"{sidecar} cannot be read: {error.strerror or error}") from error
    found = _PARAMETERIZATION.search(text)
    return {} if found is None else {SIDECAR_KEY: found[2]}


def is_marker(name: str) -> bool:
    """Whether a tensor of this name declares how the UNet was trained."""
    return name in (V_PREDICTION_MARKER, ZERO_SNR_MARKER, *_EDM_MARKERS)


def declare(
    prediction_type: str, markers: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]
) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Marker tensors (name -> shape) and metadata that declare `prediction_type`, whatever they declared before.

    Zero terminal SNR stays declared with v_prediction only: a network that predicts the noise cannot have it.
    """
    ignored = {*_TYPE_KEYS} if prediction_type == V_PREDICTION else {*_TYPE_KEYS, ZERO_SNR_KEY}
    kept = {key: text for key, text in metadata.items() if key not in ignored}
    left = {
        name: shape for name, shape in markers.items() if name == ZERO_SNR_MARKER and prediction_type == V_PREDICTION
    }
    return left, {**kept, PREDICTION_TYPE_KEY: prediction_type}


def _type(key: str, text: str) -> str:
    folded = text.strip().casefold().replace("-", "_").replace(" ", "_")
    if folded not in _SPELLINGS:
        raise ModelError(
            f"metadata {key} is {text[:40]!r}: only networks that predict {' or '.join(PREDICTION_TYPES)} "
            f"are supported; if the file is labelled wrongly, {_DECIDE}"
        )
    return _SPELLINGS[folded]


def _zero_snr(names: Collection[str], metadata: Mapping[str, str]) -> bool:
    text = metadata.get(ZERO_SNR_KEY, "").strip().casefold()
    if text not in ("", "true", "false"):
        raise ModelError(f"metadata {ZERO_SNR_KEY} is {text[:40]!r}, neither true nor false")
    return text == "true" if text else ZERO_SNR_MARKER in names
