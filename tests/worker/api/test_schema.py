import json

from worker.api.job import JOB
from worker.api.schema import schema


def test_the_schema_is_json_and_has_every_field() -> None:
    described = json.loads(json.dumps(schema(JOB), allow_nan=False))
    assert described["required"] == ["prompt"]
    assert described["properties"].keys() == {field.name for field in JOB}


def test_limits_defaults_and_null_are_in_the_schema() -> None:
    properties = schema(JOB)["properties"]
    assert properties["width"] == {
        "type": ["integer", "null"], "minimum": 64, "maximum": 2048, "multipleOf": 8,
        "description": "in pixels; at most `SD_MAX_PIXELS` together with `height` and `num_images`; "
        "default: the checkpoint's native size",
    }  # fmt: skip
    assert properties["output_format"] == {"type": "string", "enum": ["png", "jpeg", "webp"], "default": "png"}
    assert properties["strength"]["exclusiveMinimum"] == 0
    assert properties["image"]["type"] == ["string", "null"]
