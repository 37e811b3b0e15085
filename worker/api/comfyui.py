"""The graph that ComfyUI saves in its pictures (`prompt`, of API nodes) -> values of a job's fields.

A graph is `{id: {"class_type": ..., "inputs": {name: value or [id, output]}}}`. The sampler of the saved picture is
found from the output node; prompts, size and checkpoint are found by following its inputs.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from sd_core.errors import InvalidRequest
from sd_core.fields import Record
from worker.api.found import PREFIX, Found, usable

MAX_NODES = 5_000
MAX_SHOWN = 64  # characters of a node's type
# Inputs that lead from a saved picture back to its sampler, and on to an earlier one.
PICTURE = ("images", "image", "samples", "latent_image", "latent", "pixels")
# Inputs of a sampler that lead to nodes with its settings.
SETTINGS = ("noise", "guider", "sampler", "sigmas")
# Where a prompt's text stands, and what leads to it.
TEXT = ("text", "string", "value", "text_g", "prompt")
CONDITIONING = ("conditioning", "conditioning_1", "positive", "negative")
NAMES: Mapping[str, tuple[str, ...]] = {
    "seed": ("seed", "noise_seed"),
    "steps": ("steps",),
    "scale": ("cfg",),
    "sampler": ("sampler_name",),
    "schedule": ("scheduler",),
}
# ComfyUI's ways: its own prompt syntax, and noise from the CPU's generator.
WAYS = {"prompt_syntax": "comfy", "rng": "cpu"}


def is_graph(value: object) -> bool:
    """Whether this JSON value is a graph of ComfyUI's API."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(node, dict) and isinstance(node.get("class_type"), str) for node in value.values())
    )


def read_graph(nodes: Mapping[str, Mapping[str, Any]], record: Record) -> Found:
    """The values of a graph that `is_graph`. Raises `InvalidRequest` if it is too large or samples nothing."""
    if len(nodes) > MAX_NODES:
        raise InvalidRequest(f"{PREFIX}: the graph has {len(nodes):,} nodes, at most {MAX_NODES:,} are allowed")
    graph = _Graph(nodes)
    samplers = graph.samplers()
    if not samplers:
        raise InvalidRequest(f"{PREFIX}: the graph has no node that samples")
    first = samplers[-1]  # a later one continues what an earlier one drew
    if len(samplers) > 1:
        graph.warnings.append(f"the graph samples {len(samplers)} times; only the first was understood")
    values: dict[str, Any] = {name: graph.setting(first, names) for name, names in NAMES.items()}
    values["prompt"] = graph.text(first, ("positive", "conditioning"))
    values["negative_prompt"] = graph.text(first, ("negative",))
    if values["prompt"] is None:
        raise InvalidRequest(f"{PREFIX}: the graph has no prompt that can be read")
    values |= graph.latents(first) | graph.model(first)
    values |= WAYS
    found = usable(record, {name: value for name, value in values.items() if value is not None}, {})
    return Found(found.values, (*(f"{PREFIX}: {warning}" for warning in graph.warnings), *found.warnings))


class _Graph:
    """Nodes by their ids, and warnings about what is ignored in them."""

    def __init__(self, nodes: Mapping[str, Mapping[str, Any]]) -> None:
        self._nodes = nodes
        self.warnings: list[str] = []

    def samplers(self) -> list[str]:
        """The nodes that sample, from the one next to an output back to the first."""
        used = {link for key in self._nodes for name in PICTURE if (link := self._link(key, name)) is not None}
        seen: set[str] = set()
        for key in self._nodes:
            if key not in used:
                found = [passed for passed in self._back(key, PICTURE, seen) if self._samples(passed)]
                if found:
                    return found
        return []

    def setting(self, sampler: str, names: tuple[str, ...]) -> Any:
        """The value of the first of these inputs, of the sampler or of a node that holds its settings."""
        holders = [sampler, *(link for name in SETTINGS if (link := self._link(sampler, name)) is not None)]
        for holder in holders:
            for name in names:
                link = self._link(holder, name)
                value = self._inputs(holder).get(name) if link is None else self._primitive(link)
                if isinstance(value, str | int | float):
                    return value
        return None

    def text(self, sampler: str, names: tuple[str, ...]) -> str | None:
        """The prompt behind a conditioning input, of the sampler or of its guider."""
        start = self._linked(sampler, names)
        for key in () if start is None else self._back(start, (*CONDITIONING, *TEXT), set()):
            inputs = self._inputs(key)
            texts = [value for name in TEXT if isinstance(value := inputs.get(name), str)]
            if texts:
                return texts[0]
            if self._link(key, "conditioning_2") or not any(self._link(key, name) for name in TEXT):
                self._pass_over(key)
        return None

    def latents(self, sampler: str) -> dict[str, Any]:
        """Size, or strength if the sampler starts from a picture."""
        source = self._link(sampler, "latent_image")
        inputs = self._inputs(source) if source is not None else {}
        if isinstance(inputs.get("width"), int) and isinstance(inputs.get("height"), int):
            if inputs.get("batch_size", 1) != 1:
                self.warnings.append("the graph generates several images at once; only the first can be repeated")
            return {"width": inputs["width"], "height": inputs["height"]}
        strength = self.setting(sampler, ("denoise",))
        return {} if strength is None else {"strength": strength, "strength_steps": "exact"}

    def model(self, sampler: str) -> dict[str, Any]:
        """Checkpoint, LoRAs and CLIP layer."""
        values: dict[str, Any] = {}
        loras: list[dict[str, Any]] = []
        start = self._linked(sampler, ("model",))
        for key in () if start is None else self._back(start, ("model",), set()):
            name = self._inputs(key).get("ckpt_name")
            if isinstance(name, str):
                values["model"] = name.replace("\\", "/").rpartition("/")[2]
            elif (lora := self._lora(key)) is not None:
                loras.append(lora)
            else:
                self._pass_over(key)
        if loras:
            values["loras"] = loras[::-1]  # the one next to the checkpoint first
        layers = [layer for key in self._nodes if (layer := self._inputs(key).get("stop_at_clip_layer")) is not None]
        if layers and isinstance(layers[0], int) and layers[0] < -1:
            values["clip_skip"] = -layers[0]
        return values

    def _lora(self, key: str) -> dict[str, Any] | None:
        """The LoRA that a node loads; one that loads it into the model only has no `strength_clip`."""
        inputs = self._inputs(key)
        name, weight = inputs.get("lora_name"), inputs.get("strength_model")
        if not isinstance(name, str) or not isinstance(weight, int | float):
            return None
        return {"name": name.replace("\\", "/"), "weight": weight, "text_weight": inputs.get("strength_clip", 0.0)}

    def _samples(self, key: str) -> bool:
        return self._link(key, "latent_image") is not None and self.setting(key, NAMES["seed"]) is not None

    def _linked(self, sampler: str, names: tuple[str, ...]) -> str | None:
        """The node behind the first of these inputs that is linked, of the sampler or of its guider."""
        guider = self._link(sampler, "guider")
        holders = [sampler] if guider is None else [sampler, guider]
        links = (self._link(holder, name) for holder in holders for name in names)
        return next((link for link in links if link is not None), None)

    def _back(self, key: str, names: tuple[str, ...], seen: set[str]) -> Iterator[str]:
        """This node and those before it, through the first of the named inputs that is linked, up to one in `seen`."""
        following: str | None = key
        while following is not None and following not in seen:
            seen.add(following)
            yield following
            links = (self._link(following, name) for name in names)
            following = next((link for link in links if link is not None), None)

    def _link(self, key: str, name: str) -> str | None:
        """The node that this input is linked to."""
        value = self._inputs(key).get(name)
        if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int):
            return str(value[0]) if str(value[0]) in self._nodes else None
        return None

    def _inputs(self, key: str) -> Mapping[str, Any]:
        inputs = self._nodes[key].get("inputs")
        return inputs if isinstance(inputs, dict) else {}

    def _primitive(self, key: str) -> Any:
        """The value of a node that only holds one, such as a number or a text."""
        values = [value for value in self._inputs(key).values() if isinstance(value, str | int | float)]
        return values[0] if len(values) == 1 else None

    def _pass_over(self, key: str) -> None:
        warning = f"the node {self._nodes[key]['class_type'][:MAX_SHOWN]} is not understood here"
        if warning not in self.warnings:
            self.warnings.append(warning)
