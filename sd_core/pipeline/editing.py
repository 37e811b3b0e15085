"""What a job means to a checkpoint that edits images by instruction."""

from dataclasses import replace

from sd_core.errors import InvalidRequest
from sd_core.pipeline.model import StableDiffusion
from sd_core.request import Request


def meant(request: Request, model: StableDiffusion) -> Request:
    """The request as the model runs it: an edit begins with pure noise and does all steps, whatever the strength.

    Raises `InvalidRequest` if the model edits images and the request sends none.
    """
    if not model.takes_image:
        return request
    if request.image is None:
        raise InvalidRequest(f"image: the model {model.info.name!r} edits images, so it needs one")
    return replace(request, strength=1.0, strength_steps="scaled")
