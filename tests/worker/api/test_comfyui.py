"""Graphs as ComfyUI saves them in its pictures."""

import json
import time
from dataclasses import dataclass
from typing import Any

import pytest

from sd_core.errors import InvalidRequest
from sd_core.fields import Record, option
from sd_core.request import Request
from tests.support.records import plain_record
from worker.api.comfyui import MAX_NODES, is_graph, read_graph
from worker.api.job import Limits, job_record, parse_request

LIMITS = Limits(2**24, {"v1-5-pruned-emaonly": 512})


@dataclass(frozen=True)
class Later(Request):
    """Fields as they may come to be."""

    rng: str = option("cpu", choices=("cpu", "nv"), label="RNG")
    prompt_syntax: str = option("a1111", choices=("a1111", "comfy"))
    clip_skip: int = option(1, low=1, high=12, label="Clip skip")
    strength_steps: str = option("scaled", choices=("scaled", "exact"))


PLAIN, LATER = plain_record(), job_record(Later)


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def usual(**changes: Any) -> dict[str, Any]:
    """The graph that ComfyUI starts with."""
    sampler = {
        "seed": 156680208700286, "steps": 20, "cfg": 8.0, "sampler_name": "euler", "scheduler": "normal",
        "denoise": 1.0, "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
    }  # fmt: skip
    return {
        "3": node("KSampler", **sampler),
        "4": node("CheckpointLoaderSimple", ckpt_name="sd15/v1-5-pruned-emaonly.safetensors"),
        "5": node("EmptyLatentImage", width=512, height=768, batch_size=1),
        "6": node("CLIPTextEncode", text="a glass bottle", clip=["4", 1]),
        "7": node("CLIPTextEncode", text="text, watermark", clip=["4", 1]),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", filename_prefix="ComfyUI", images=["8", 0]),
        **changes,
    }


def read(graph: dict[str, Any], record: Record = PLAIN) -> tuple[dict[str, Any], tuple[str, ...]]:
    assert is_graph(graph)
    found = read_graph(graph, record)
    return found.values, found.warnings


def test_the_usual_graph_becomes_a_job() -> None:
    values, warnings = read(usual())
    assert values == {
        "prompt": "a glass bottle", "negative_prompt": "text, watermark", "seed": 156680208700286, "steps": 20,
        "scale": 8.0, "sampler": "euler", "schedule": "default", "width": 512, "height": 768,
        "model": "v1-5-pruned-emaonly.safetensors", "prompt_syntax": "comfy", "rng": "cpu",
    }  # fmt: skip
    assert warnings == ()
    for given in (usual(), json.dumps(usual())):
        job = parse_request({"parameters": given, "steps": 4}, LIMITS)
        assert (job.request.model, job.request.seed, job.request.steps) == ("v1-5-pruned-emaonly", 156680208700286, 4)
        assert (job.sampler_name, job.request.width, job.warnings) == ("euler", 512, ())


def test_what_only_comfyui_means_is_set_where_a_field_for_it_exists() -> None:
    values, _ = read(usual(), LATER)
    assert (values["rng"], values["prompt_syntax"]) == ("cpu", "comfy")
    layer = node("CLIPSetLastLayer", stop_at_clip_layer=-2, clip=["4", 1])
    assert read(usual(**{"10": layer}), LATER)[0]["clip_skip"] == 2
    assert read(usual(**{"10": layer}))[1] == ("parameters: clip_skip did nothing: it is not available here",)
    image = {**usual(), "5": node("VAEEncode", pixels=["11", 0], vae=["4", 2]), "11": node("LoadImage", image="a.png")}
    image["3"]["inputs"]["denoise"] = 0.5
    values, _ = read(image, LATER)
    assert (values["strength"], values["strength_steps"]) == (0.5, "exact")
    assert "width" not in values


def test_values_behind_links_are_found() -> None:
    graph = usual(**{
        "20": node("PrimitiveInt", value=7), "21": node("String", string="from a node"),
        "6": node("CLIPTextEncode", text=["21", 0], clip=["4", 1]),
    })  # fmt: skip
    graph["3"]["inputs"]["seed"] = ["20", 0]
    values, warnings = read(graph)
    assert (values["seed"], values["prompt"], warnings) == (7, "from a node", ())


def test_a_graph_whose_sampler_has_its_settings_in_other_nodes() -> None:
    graph = usual(**{
        "3": node("SamplerCustomAdvanced", noise=["30", 0], guider=["31", 0], sampler=["32", 0], sigmas=["33", 0],
                  latent_image=["5", 0]),
        "30": node("RandomNoise", noise_seed=9),
        "31": node("CFGGuider", cfg=3, model=["4", 0], positive=["6", 0], negative=["7", 0]),
        "32": node("KSamplerSelect", sampler_name="heun"),
        "33": node("BasicScheduler", scheduler="karras", steps=11, denoise=1.0, model=["4", 0]),
    })  # fmt: skip
    values, warnings = read(graph)
    assert (values["seed"], values["scale"], values["sampler"], values["schedule"]) == (9, 3.0, "heun", "karras")
    assert (values["steps"], values["prompt"], values["negative_prompt"]) == (11, "a glass bottle", "text, watermark")
    assert values["model"] == "v1-5-pruned-emaonly.safetensors"
    assert warnings == ()


def test_loras_are_those_between_checkpoint_and_sampler() -> None:
    """In the order in which they are loaded; one for the model alone does not act on the text encoder."""
    both = {"strength_model": 0.8, "strength_clip": 0.5, "model": ["4", 0], "clip": ["4", 1]}
    graph = usual(**{
        "12": node("LoraLoader", lora_name="styles\\a.safetensors", **both),
        "13": node("LoraLoaderModelOnly", lora_name="b.safetensors", strength_model=-1, model=["12", 0]),
    })  # fmt: skip
    graph["3"]["inputs"]["model"] = ["13", 0]
    values, warnings = read(graph, job_record())
    assert values["loras"] == [
        {"name": "styles/a.safetensors", "weight": 0.8, "text_weight": 0.5},
        {"name": "b.safetensors", "weight": -1, "text_weight": 0.0},
    ]
    assert values["model"] == "v1-5-pruned-emaonly.safetensors"
    assert warnings == ()


def test_what_is_passed_over_is_said() -> None:
    graph = usual(**{
        "12": node("FreeU", model=["4", 0]),
        "13": node("ControlNetApply", conditioning=["6", 0], strength=1.0, image=["14", 0]),
        "14": node("LoadImage", image="a.png"),
        "15": node("LatentUpscale", samples=["3", 0], width=1024, height=1024),
        "16": node("KSampler", **{**usual()["3"]["inputs"], "seed": 5, "latent_image": ["15", 0]}),
        "8": node("VAEDecode", samples=["16", 0], vae=["4", 2]),
    })  # fmt: skip
    graph["3"]["inputs"] |= {"model": ["12", 0], "positive": ["13", 0], "sampler_name": "er_sde"}
    graph["5"]["inputs"]["batch_size"] = 4
    values, warnings = read(graph)
    assert (values["seed"], values["prompt"]) == (156680208700286, "a glass bottle")
    assert "sampler" not in values
    for part in (
        "the graph samples 2 times; only the first was understood", "the node FreeU is not understood here",
        "the node ControlNetApply is not understood here", "the graph generates several images at once",
        "the sampler and its schedule were ignored: sampler is 'er_sde'",
    ):  # fmt: skip
        assert any(part in warning for warning in warnings), part
    assert len(warnings) == 5


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        ({"1": node("SaveImage", images=["2", 0])}, "has no node that samples"),
        ({"1": {"class_type": "KSampler"}}, "has no node that samples"),
        ({"1": node("KSampler", seed=1, latent_image=["1", 0])}, "has no node that samples"),
        ({**usual(), "6": node("Unknown", thing=1)}, "has no prompt that can be read"),
        ({str(index): node("Note") for index in range(MAX_NODES + 1)}, "5,001 nodes, at most 5,000"),
    ],
)
def test_a_graph_that_generates_nothing_is_refused(graph: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        read(graph)


def test_circles_and_long_chains_end() -> None:
    circle = usual(**{"6": node("ConditioningCombine", conditioning_1=["6", 0], conditioning_2=["6", 0])})
    circle["3"]["inputs"]["model"] = ["12", 0]
    circle["12"] = node("LoraLoader", model=["12", 0])
    with pytest.raises(InvalidRequest, match="no prompt"):
        read(circle)
    # Each of 2,500 outputs leads to one chain of 2,500 nodes, which is followed once.
    half = MAX_NODES // 2
    chain = {str(index): node("Upscale", samples=[str(index + 1), 0]) for index in range(half)}
    ends = {f"end {index}": node("SaveImage", images=["0", 0]) for index in range(half)}
    started = time.process_time()
    with pytest.raises(InvalidRequest, match="samples"):
        read({**ends, **chain})
    assert time.process_time() - started < 10


@pytest.mark.parametrize("value", [{}, [], "x", {"a": 1}, {"a": {}}, {"a": {"class_type": 1}}, {"prompt": "x"}])
def test_other_json_is_not_a_graph(value: Any) -> None:
    assert not is_graph(value)


def test_nodes_of_any_shape_are_read_or_refused() -> None:
    for inputs in (None, [], {"latent_image": "5"}, {"latent_image": [None, 0]}, {"latent_image": [["5"], 0]}):
        graph = usual(**{"3": {"class_type": "KSampler", "inputs": inputs}})
        with pytest.raises(InvalidRequest):
            read(graph)
