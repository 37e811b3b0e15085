"""Errors that the caller or the operator can act on, and how names that a file brings are shown in them."""

from collections.abc import Iterable


class SDError(Exception):
    """An error that its reader can act on. `code` is the error code of a job that fails with it."""

    code = "internal"


class InvalidRequest(SDError):
    """A job asks for something that does not exist or lies outside the limits."""

    code = "invalid_input"


class InvalidImage(SDError):
    """A job's image could not be fetched, decoded or used."""

    code = "invalid_image"


class OutOfMemory(SDError):
    """A job does not fit into the device's memory, even alone."""

    code = "out_of_memory"


class Busy(SDError):
    """The engine's queue is full, or it is shutting down."""

    code = "busy"


class Broken(SDError):
    """The engine has failed for good; only a new process can go on."""


class NotFinite(SDError):
    """The networks computed infinities or NaN."""


class DeviceError(SDError):
    """A device or dtype that does not exist, or that torch cannot use on this machine."""


class ModelError(SDError):
    """A checkpoint or tokenizer file is missing, broken, or of an architecture that is not supported."""


def show(name: str, limit: int = 120) -> str:
    """The name for use in a message: printable ASCII on one line, cut after `limit` characters."""
    text = ascii(name[: limit + 1])[1:-1]
    return text if len(text) <= limit else text[:limit] + "..."


def show_some(names: Iterable[str], limit: int = 3) -> str:
    """The first `limit` names, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(show(name) for name in names[:limit]) + more
