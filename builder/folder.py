"""A folder as diffusers saves pipelines (unet/, vae/, text_encoder/, scheduler/) -> a checkpoint to convert."""

import contextlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from builder.source import Source
from sd_core.errors import ModelError
from sd_core.formats.detect import NATIVE_SIZE_KEY, NUM_HEADS_KEY, SCALE_FACTOR_KEY, TEXT_HEADS_KEY
from sd_core.formats.files import TensorFile
from sd_core.formats.from_diffusers import text_names, unet_names
from sd_core.formats.keys import is_extra, show
from sd_core.formats.origins import Origin
from sd_core.formats.prediction import PREDICTION_TYPE_KEY, ZERO_SNR_KEY
from sd_core.formats.unpickle import open_checkpoint
from sd_core.formats.vae import diffusers_vae_origins

MAX_JSON = 16 * 2**20  # bytes; the index of a sharded v1.x UNet has 60 kB

# File names without their ending, and the endings, the best first. The variants hold the same weights.
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_VARIANTS = ("", ".fp16", ".bf16")
_ENDINGS = (".safetensors", ".bin")

# What the networks cannot be configured to, by component.
_FIXED: dict[str, dict[str, Any]] = {
    "unet": {"norm_num_groups": 32, "act_fn": "silu", "time_embedding_type": "positional"},
    "vae": {"norm_num_groups": 32, "act_fn": "silu"},
    "text_encoder": {"hidden_act": "quick_gelu"},
}


def open_source(path: Path, stack: contextlib.ExitStack) -> Source:
    """A checkpoint file of any format or a folder; `stack` closes its files. ModelError that names the path."""
    if path.is_dir():
        return _open_folder(path, stack)
    file = stack.enter_context(open_checkpoint(path))
    try:
        return Source.of(file)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def _open_folder(folder: Path, stack: contextlib.ExitStack) -> Source:
    _require_v1(folder)
    origins: dict[str, Origin] = {}
    files: list[TensorFile] = []
    for component, named in (("unet", _unet), ("vae", diffusers_vae_origins), ("text_encoder", _text)):
        if component != "unet" and not (folder / component).is_dir():
            continue  # the architecture says what is missing
        for key, wanted in _FIXED[component].items():
            found = _config(folder / component / "config.json").get(key, wanted)
            if found != wanted:
                raise ModelError(f"{folder / component}: {key} is {found!r}, not v1.x's {wanted!r}")
        own = [stack.enter_context(open_checkpoint(path)) for path in _weight_files(folder / component)]
        files += own
        try:
            origins |= _together(own, named)
        except ModelError as error:
            raise ModelError(f"{folder / component}: {error}") from None
    return Source(folder, tuple(files), origins, _metadata(folder), {})


def _require_v1(folder: Path) -> None:
    """ModelError unless the folder is that of a pipeline of v1.x, as far as its index says."""
    name = _config(folder / "model_index.json").get("_class_name", "StableDiffusionPipeline")
    if not str(name).startswith("StableDiffusion") or str(name).startswith(("StableDiffusionXL", "StableDiffusion3")):
        raise ModelError(f"{folder}: not a Stable Diffusion v1.x checkpoint: it is a folder of {show(str(name), 60)}")
    if not (folder / "unet").is_dir():
        raise ModelError(f"{folder} is a directory without unet/: name a checkpoint file or a folder of diffusers'")


def _weight_files(component: Path) -> list[Path]:
    """The files of a component's weights: one, or all shards of an index."""
    for ending in _ENDINGS:
        for variant in _VARIANTS:
            for stem in _STEMS:
                whole = component / f"{stem}{variant}{ending}"
                if whole.is_file():
                    return [whole]
                for index in (f"{stem}{variant}{ending}.index.json", f"{stem}{ending}.index{variant}.json"):
                    if (component / index).is_file():
                        return _shards(component / index)
    raise ModelError(f"{component} holds no weights: neither {_STEMS[0]}.safetensors nor another usual name")


def _shards(index: Path) -> list[Path]:
    names = _config(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ModelError(f"{index} is damaged: its weight_map does not name files")
    shards = sorted(set(names.values()))
    for name in shards:
        if Path(name).name != name:
            raise ModelError(f"{index} names {show(name)}, which is not a file beside it")
    return [index.with_name(name) for name in shards]


def _together(files: Iterable[TensorFile], named: Callable[[TensorFile], dict[str, Origin]]) -> dict[str, Origin]:
    """The tensors of all shards, named as one file's: names depend on those of other tensors."""
    files = list(files)
    tensors = {name: (file, stored) for file in files for name, stored in file.tensors.items()}
    joined = TensorFile(files[0].path, files[0].format, {n: s for n, (_, s) in tensors.items()}, {}, files[0].file)
    return {
        name: Origin.of(tensors[origin.stored][0], origin.stored, origin.shape)
        for name, origin in named(joined).items()
    }


def _unet(file: TensorFile) -> dict[str, Origin]:
    return {name: Origin.of(file, stored) for name, stored in unet_names(file.tensors).items()}


def _text(file: TensorFile) -> dict[str, Origin]:
    return {name: Origin.of(file, stored) for name, stored in text_names(file.tensors).items() if not is_extra(name)}


def _metadata(folder: Path) -> dict[str, str]:
    """What the configurations say and shapes cannot show, as the metadata of a converted file."""
    unet, vae, text, scheduler = (
        _config(folder / path)
        for path in (
            "unet/config.json",
            "vae/config.json",
            "text_encoder/config.json",
            "scheduler/scheduler_config.json",
        )
    )
    # v1.x's configurations call the number of heads `attention_head_dim`.
    heads = unet.get("num_attention_heads") or unet.get("attention_head_dim")
    size = unet.get("sample_size")
    found = {
        NATIVE_SIZE_KEY: 8 * size if isinstance(size, int) else None,
        NUM_HEADS_KEY: heads,
        TEXT_HEADS_KEY: text.get("num_attention_heads"),
        SCALE_FACTOR_KEY: vae.get("scaling_factor"),
        PREDICTION_TYPE_KEY: scheduler.get("prediction_type"),
        ZERO_SNR_KEY: "true" if scheduler.get("rescale_betas_zero_snr") is True else None,
    }
    return {key: str(value) for key, value in found.items() if value is not None}


def _config(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file. ModelError if it is damaged."""
    try:
        with path.open("rb") as file:
            parsed = json.loads(file.read(MAX_JSON))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise ModelError(f"{path} does not hold a JSON object")
    return parsed
