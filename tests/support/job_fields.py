"""Jobs by their fields, for tests of how they are read."""

from typing import Any

import pytest

from sd_core.errors import InvalidRequest
from worker.api.job import Job, Limits, parse_request

LIMITS = Limits(max_pixels=2048 * 2048, native_sizes={"tiny": 512})


def parse(**fields: Any) -> Job:
    return parse_request({"prompt": "a cat", **fields}, LIMITS)


def value_of(job: Job, field: str) -> Any:
    """What a job holds for a field of any kind."""
    return {"sampler": job.sampler_name, "image": job.source, "mask": job.mask_source}.get(field, job.values[field])


def problem(**fields: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    return str(caught.value)
