"""Errors that the caller or the operator can act on."""


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
