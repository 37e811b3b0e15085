"""What an operator can do about a model that could not be loaded: commands that work as they are written."""

import errno
import shlex
from collections.abc import Sequence
from pathlib import Path

from sd_core.errors import ModelError
from worker.find import TOKENIZER_FILES, Found
from worker.settings import Settings

UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT)
ELSEWHERE = '"$HOME/sd-weights"'


def remedy(settings: Settings, found: Sequence[Found], file: Found, error: Exception) -> str:
    """Advice about `error`, which was raised for `file`, one of all the checkpoints `found`."""
    if _is_unwritable(file, error):
        return _convert_elsewhere(found)
    if isinstance(error, ModelError | OSError):
        destination = file.checkpoint.with_suffix(".safetensors")
        return (
            f"To see what the file is:\n  python -m builder inspect {_quoted(file.checkpoint)}\n"
            f"To make it anew from a published checkpoint:\n"
            f"  python -m builder convert SOURCE {_quoted(destination)} --force"
        )
    return (
        f"SD_DEVICE is {settings.device}, SD_DTYPE is {settings.dtype}. To run on the processor:\n"
        f"  export SD_DEVICE=cpu SD_DTYPE=auto"
    )


def _is_unwritable(file: Found, error: Exception) -> bool:
    """Whether a conversion failed because its result cannot be written beside the source."""
    cause = error.__cause__
    if not isinstance(cause, OSError) or cause.errno not in UNWRITABLE:
        return False
    return cause.filename is None or Path(cause.filename) != file.checkpoint


def _convert_elsewhere(found: Sequence[Found]) -> str:
    commands = [f"mkdir -p {ELSEWHERE}"]
    for file in found:
        checkpoint, result = file.checkpoint, _result(file)
        if result != checkpoint.name:
            commands.append(f"python -m builder convert {_quoted(checkpoint)} {ELSEWHERE}/{shlex.quote(result)}")
        else:
            commands.append(f"cp {_quoted(checkpoint)} {ELSEWHERE}")
    tokenizer = " ".join(_quoted(found[0].directory / name) for name in TOKENIZER_FILES)
    names = ":".join(_result(file) for file in found)
    commands += [
        f"cp {tokenizer} {ELSEWHERE}",
        f"export SD_WEIGHTS={ELSEWHERE} SD_CHECKPOINT={shlex.quote(names)}",
    ]
    return (
        "Nothing can be written beside the checkpoint. Convert it where the directory can be written to, or convert it "
        "to another place and use it from there:\n" + "\n".join(f"  {command}" for command in commands)
    )


def _result(file: Found) -> str:
    """The name of the file that the worker loads in the end."""
    is_source = file.checkpoint.suffix.lower() == ".ckpt"
    return file.checkpoint.with_suffix(".safetensors").name if is_source else file.checkpoint.name


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
