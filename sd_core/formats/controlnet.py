"""Files of ControlNets and T2I-Adapters -> networks that steer a UNet.

A ControlNet lies in its authors' layout or diffusers', with or without `control_model.`, alone or in a checkpoint. Some
files hold only what differs from the UNet of a checkpoint: whole weights to add ("difference"), or such of low rank
(control-LoRA). They become a network together with a UNet.
"""

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from sd_core.errors import ModelError
from sd_core.formats import foreign, from_diffusers
from sd_core.formats.check import meta_network, require_equal
from sd_core.formats.detect import detect_encoder
from sd_core.formats.files import TensorFile
from sd_core.formats.keys import UNET_PREFIX, show
from sd_core.formats.origins import Origin, Origins, shapes_of
from sd_core.formats.t2i_adapter import adapter_config, adapter_names
from sd_core.formats.unpickle import open_checkpoint
from sd_core.formats.weights import assign, read_weights
from sd_core.layout.choose import bytes_in_use, lay_out
from sd_core.models.controlnet import ControlNet, ControlNetConfig
from sd_core.models.t2i_adapter import T2IAdapter
from sd_core.models.unet import UNet, UNetConfig

PREFIX = "control_model."
DIFFERENCE, CONTROL_LORA = "difference", "lora_controlnet"
"""Tensors that say by their presence what the others are."""

POOLED = "shuffle"
"""In the name of a file whose network reads a hint's style and not its shapes."""

MAX_HINT_WIDTH = 2**12

AnyGuide = TypeVar("AnyGuide", ControlNet, T2IAdapter)

_DIFFUSERS_HINT = "controlnet_cond_embedding"
_HINT_LAYER = re.compile(r"input_hint_block\.(\d{1,3})\.weight")
_OTHERS = (
    (r"^(task_embedding$|spatial_ch_projs\.|control_add_embedding\.)", "a ControlNet Union"),
    (r"^(controlnet_x_embedder|controlnet_blocks|pos_embed_input)\.", "a ControlNet for Flux or Stable Diffusion 3"),
    (r"^controlnet_cond_embedding\.(weight|bias)$|motion_modules\.", "a SparseCtrl (AnimateDiff)"),
    (r"^(add_embedding|label_emb)\.", "a ControlNet for Stable Diffusion XL"),
)


@dataclass(frozen=True)
class Change:
    """A ControlNet as what differs from a UNet's encoder: tensors by the network's own names.

    Those of `added` are added to the UNet's, `lows` are pairs (up, down) whose product is, all others are as they are.
    """

    key: str
    pooled: bool
    tensors: Mapping[str, Tensor]
    added: frozenset[str]
    lows: Mapping[str, tuple[Tensor, Tensor]]
    device: torch.device
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        pairs = (each for pair in self.lows.values() for each in pair)
        return sum(each.nbytes for each in (*self.tensors.values(), *pairs))

    def of(self, unet: UNet, unet_key: str) -> ControlNet:
        """The network that it makes of this UNet. ModelError if it was made for UNets of other widths."""
        base = unet.state_dict()
        weights = {name: self._whole(name, base.get(name)) for name in {*self.tensors, *self.lows}}
        for name, weight in base.items():
            if name not in weights and not name.startswith(("output_blocks.", "out.")):
                weights[name] = weight.to(self.device, torch.float32)
        config, key = _config(_shapes(weights), unet.config), f"{self.key} on {unet_key}"
        network = meta_network(lambda: ControlNet(config, key, pooled=self.pooled))
        require_equal(_shapes(weights), _shapes(network.state_dict()))
        lay_out(network, self.device, self.dtype)
        return _ready(network, self.dtype, {name: each.to(self.dtype) for name, each in weights.items()})

    def _whole(self, name: str, base: Tensor | None) -> Tensor:
        pair = self.lows.get(name)
        if pair is None and (name not in self.added or base is None):
            return self.tensors[name].float()
        if base is None:
            raise ModelError(f"it changes {show(name)}, which the checkpoint's UNet does not have")
        change = self.tensors[name].float() if pair is None else pair[0].float().flatten(1) @ pair[1].float().flatten(1)
        if change.numel() != base.numel():
            raise ModelError(
                f"it was made for UNets of other widths: {show(name)} is {list(base.shape)} in the checkpoint"
            )
        return base.to(self.device, torch.float32) + change.reshape(base.shape)


@dataclass(frozen=True)
class GuideFile:
    """What a file holds: a network, not loaded, or None for changes of a checkpoint's UNet.

    `ranks` are those of a control-LoRA's changes, `used` the tensors that are not ignored.
    """

    form: str
    network: ControlNet | T2IAdapter | None
    modules: int
    ranks: tuple[int, ...]
    used: frozenset[str]


def load_guide(path: Path, device: torch.device, dtype: torch.dtype) -> ControlNet | T2IAdapter | Change:
    """The network of a `.safetensors` or `.pth`, on a device in a dtype and laid out for it, in evaluation mode.

    A `.pth` is read by the allow-list reader, which runs nothing of it. Metadata is read as that of a checkpoint.
    ModelError, which names the file, if it is damaged or neither a ControlNet nor a T2I-Adapter of v1.x.
    """
    with open_checkpoint(path) as file:
        try:
            _refuse(file.shapes)
            status = os.fstat(file.file.fileno())
            key = f"{path} {status.st_size} {status.st_mtime_ns}"
            marks = _marks(file)
            if marks:
                names = controlnet_names(file.tensors)
                return _change(file, names, key, device, dtype, is_added=DIFFERENCE in marks.values())
            if foreign.recognize(file.shapes) == foreign.T2I_ADAPTER:
                return _loaded(*_t2i_adapter(file, key), device, dtype)
            return _loaded(*_controlnet(file, key), device, dtype)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None


def describe_guide(file: TensorFile) -> GuideFile:
    """What `load_guide` would read from a file. ModelError, which does not name it, for the same reasons."""
    _refuse(file.shapes)
    marks = _marks(file)
    if marks:
        names, shapes = controlnet_names(file.tensors), file.shapes
        used = frozenset(names.values()) | marks.keys()
        if DIFFERENCE in marks.values():
            return GuideFile("differences from the checkpoint's UNet", None, _modules(names), (), used)
        ranks = {shapes[stored][0] for name, stored in names.items() if name.endswith(".down") and shapes[stored]}
        return GuideFile("a control-LoRA", None, _modules(names), tuple(sorted(ranks)), used)
    is_adapter = foreign.recognize(file.shapes) == foreign.T2I_ADAPTER
    network, origins = _t2i_adapter(file, "") if is_adapter else _controlnet(file, "")
    used = frozenset(origin.stored for origin in origins.values())
    is_light = isinstance(network, T2IAdapter) and network.config.is_light
    return GuideFile("light" if is_light else "whole weights", network, _modules(origins), (), used)


def _marks(file: TensorFile) -> dict[str, str]:
    """The tensors that say by their presence what the others are: name in the file -> what it says."""
    bare = {name: name.removeprefix(PREFIX) for name in file.tensors}
    return {name: mark for name, mark in bare.items() if mark in (DIFFERENCE, CONTROL_LORA)}


def _modules(names: Collection[str]) -> int:
    return len({name.rpartition(".")[0] for name in names})


def controlnet_names(stored: Collection[str]) -> dict[str, str]:
    """Name in `ControlNet` -> name in the file, of all tensors that belong to one."""
    prefix = next((prefix for prefix in (PREFIX, "controlnet.") if any(name.startswith(prefix) for name in stored)), "")
    own = {name.removeprefix(prefix): name for name in stored if name.startswith(prefix)}
    if f"{_DIFFUSERS_HINT}.conv_in.weight" in own:
        blocks = len({name.split(".")[2] for name in own if name.startswith(f"{_DIFFUSERS_HINT}.blocks.")})
        canonical = {name.removeprefix(UNET_PREFIX): old for name, old in from_diffusers.unet_names(own).items()}
        own = {_from_diffusers(name, blocks): own[old] for name, old in canonical.items()}
    return {name: name_in_file for name, name_in_file in own.items() if name not in (DIFFERENCE, CONTROL_LORA)}


def _from_diffusers(name: str, blocks: int) -> str:
    """The name of what a UNet does not have, with so many blocks inside of the hint's embedding."""
    stem, _, ending = name.rpartition(".")
    number = stem.rpartition(".")[2]
    if stem.startswith(f"{_DIFFUSERS_HINT}.blocks."):
        return f"input_hint_block.{2 * int(number) + 2}.{ending}" if number.isdecimal() else name
    if stem.startswith("controlnet_down_blocks."):
        return f"zero_convs.{number}.0.{ending}"
    renamed = {
        f"{_DIFFUSERS_HINT}.conv_in": "input_hint_block.0",
        f"{_DIFFUSERS_HINT}.conv_out": f"input_hint_block.{2 * blocks + 2}",
        "controlnet_mid_block": "middle_block_out.0",
    }
    return f"{renamed[stem]}.{ending}" if stem in renamed else name


def _controlnet(file: TensorFile, key: str) -> tuple[ControlNet, Origins]:
    origins = {name: Origin.of(file, stored) for name, stored in controlnet_names(file.tensors).items()}
    shapes = shapes_of(origins)
    unet = detect_encoder(shapes, file.metadata, "the ControlNet")
    if unet.context_dim in foreign.CONTEXT_WIDTHS:
        raise ModelError(
            f"it is a ControlNet for {foreign.CONTEXT_WIDTHS[unet.context_dim].removeprefix('a ')}s, not for those of "
            f"v1.x: it attends to hidden states of width {unet.context_dim}"
        )
    network = meta_network(lambda: ControlNet(_config(shapes, unet), key, pooled=_is_pooled(file.path)))
    require_equal(shapes, _shapes(network.state_dict()))
    return network, origins


def _t2i_adapter(file: TensorFile, key: str) -> tuple[T2IAdapter, Origins]:
    origins = {name: Origin.of(file, stored) for name, stored in adapter_names(file.tensors).items()}
    config = adapter_config(shapes_of(origins))
    network = meta_network(lambda: T2IAdapter(config, key))
    require_equal(shapes_of(origins), _shapes(network.state_dict()))
    return network, origins


def _change(
    file: TensorFile, names: Mapping[str, str], key: str, device: torch.device, dtype: torch.dtype, *, is_added: bool
) -> Change:
    # Copies: what is read may lie in the file's memory map.
    tensors = {name: Origin.of(file, stored).read().to(device, copy=True) for name, stored in names.items()}
    lows = {}
    for name in [name for name in tensors if name.endswith(".up")]:
        module = name.removesuffix(".up")
        if f"{module}.down" not in tensors:
            raise ModelError(f"{show(name)} has no {show(module)}.down")
        lows[f"{module}.weight"] = tensors.pop(name), tensors.pop(f"{module}.down")
    for up, down in lows.values():
        if up.flatten(1).shape[1] != down.shape[0]:
            raise ModelError(f"ranks differ: {list(up.shape)} and {list(down.shape)} do not multiply")
    own = frozenset(tensors) if is_added else frozenset[str]()
    return Change(key, _is_pooled(file.path), tensors, own, lows, device, dtype)


def _config(shapes: Mapping[str, tuple[int, ...]], unet: UNetConfig) -> ControlNetConfig:
    """With the widths of the hint block that these tensors have."""
    layers = sorted((int(found[1]), shape) for name, shape in shapes.items() if (found := _HINT_LAYER.fullmatch(name)))
    widths = tuple(shape[0] for _, shape in layers if len(shape) == 4)
    first = layers[0][1] if layers else ()
    if len(first) != 4 or [index for index, _ in layers] != list(range(0, 2 * len(layers), 2)):
        raise ModelError("the ControlNet lacks its hint block (input_hint_block.0, 2, 4, ...)")
    if len(layers) != len(ControlNetConfig.hint_widths) + 1 or max(widths) > MAX_HINT_WIDTH or first[1] not in (1, 3):
        raise ModelError(f"a ControlNet whose hint block is not supported: widths {list(widths)}, {first[1]} channels")
    return ControlNetConfig(unet, first[1], widths[:-1])


def _loaded(network: AnyGuide, origins: Origins, device: torch.device, dtype: torch.dtype) -> AnyGuide:
    kept = lay_out(network, device, dtype)
    return _ready(network, dtype, read_weights(origins, kept, device, dtype))


def _ready(network: AnyGuide, dtype: torch.dtype, tensors: dict[str, Tensor]) -> AnyGuide:
    """The network with its weights; it is laid out already."""
    network.nbytes = bytes_in_use(network, dtype)
    assign(network, tensors)
    return network


def _refuse(shapes: Mapping[str, tuple[int, ...]]) -> None:
    bare = [name.removeprefix(PREFIX) for name in shapes]
    for pattern, what in _OTHERS:
        if any(re.search(pattern, name) for name in bare):
            raise ModelError(f"it is {what}; only those of v1.x are supported")
    kind = foreign.recognize(shapes)
    if kind not in (foreign.CONTROLNET, foreign.T2I_ADAPTER, foreign.DIFFUSERS_UNET):
        raise ModelError(f"not a ControlNet: it is {kind or 'a checkpoint'}")


def _is_pooled(path: Path) -> bool:
    return POOLED in path.stem.casefold()


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(each.shape) for name, each in tensors.items()}
