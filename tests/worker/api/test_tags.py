"""Adapters in an infotext: as tags where the web UI can read them, and read back as the same adapters in any case."""

from typing import Any

import pytest

from sd_core.request import Request
from sd_core.text.tags import read_tags
from worker.api.infotext import infotext
from worker.api.job import Limits, parse_request

MODEL = {"name": "tiny", "sha256": None}
LIMITS = Limits(2**22, {"tiny": 64})


def parse(**fields: Any) -> Request:
    return parse_request({"prompt": "a cat", "width": 64, **fields}, LIMITS).request


def written(**fields: Any) -> str:
    job = parse_request({"prompt": "a cat", "width": 64, **fields}, LIMITS)
    return infotext(job, 3, MODEL, labels={"Lora hashes": "red: 0123456789ab"})


def named(request: Request) -> list[tuple[str, float, float | None]]:
    """All adapters of a request's first pass: name, weight in the UNet and in the text encoder."""
    tags = read_tags(request.prompt, "prompt").tags if request.prompt_syntax == "a1111" else ()
    return [(tag.name, tag.unet, tag.text) for tag in tags] + [
        (lora.name, lora.weight, lora.text_weight) for lora in request.loras
    ]


def test_tags_of_the_prompt_stay_where_they_are() -> None:
    text = written(prompt="a <lora:red:0.5> cat")
    assert text.startswith("a <lora:red:0.5> cat\nSteps: ")
    assert ', Lora hashes: "red: 0123456789ab", Version: ' in text


def test_adapters_of_the_field_become_tags() -> None:
    loras = [{"name": "red", "weight": 0.5}, {"name": "sub/my blue", "weight": -1, "text_weight": 0}]
    text = written(loras=loras, prompt="a cat<lora:first:1>", hires={"prompt": "a dog"})
    assert text.startswith("a cat<lora:first:1><lora:red:0.5><lora:sub/my blue:0.0:-1.0>\nSteps: ")
    assert 'Hires prompt: "a dog<lora:red:0.5><lora:sub/my blue:0.0:-1.0>"' in text
    assert "Exact fields" not in text


@pytest.mark.parametrize(
    "fields",
    [
        {"loras": [{"name": "red"}]},
        {"loras": [{"name": "red", "weight": 0.1}, {"name": "blue", "text_weight": 1e-05}]},
        {"loras": [{"name": "red"}], "prompt": "<lora:x:1:lbw=NONE> a (b:1.2"},
        {"loras": [{"name": "red"}], "prompt": ""},
        {"loras": [{"name": "red"}], "prompt_syntax": "comfy"},
        {"loras": [{"name": "red"}], "prompt_syntax": "plain"},
        {"loras": [{"name": "a:b>c, <d>"}]},
        {"loras": [{"name": "te=1"}]},
        {"loras": [{"name": " red "}]},
        {"loras": [{"name": "red"}], "prompt": "x" * 7_995},
    ],
)
def test_an_infotext_gives_back_the_same_adapters(fields: dict[str, Any]) -> None:
    again = parse_request({"width": 64, "parameters": written(**fields)}, LIMITS).request
    assert named(again) == named(parse(**fields))
    own, expected = (read_tags(each.prompt, "prompt").text for each in (again, parse(**fields)))
    assert own == expected
