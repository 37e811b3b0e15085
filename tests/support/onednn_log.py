"""The calls of oneDNN in a separate process, from the log that ONEDNN_VERBOSE turns on."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_MARK, _END = "## ", "## end "


@dataclass(frozen=True)
class Primitive:
    """One call of oneDNN: its kind (`convolution`, `reorder`, ...), its line of the log and its time."""

    kind: str
    line: str
    seconds: float


@dataclass
class Section:
    """What was called between `mark` and `mark_end`, and the seconds that the process itself measured for it."""

    label: str
    primitives: list[Primitive] = field(default_factory=list)
    seconds: float = 0.0

    def reorders(self) -> list[Primitive]:
        return [primitive for primitive in self.primitives if primitive.kind == "reorder"]


def mark(label: str) -> None:
    """Begin a section, in the process that is logged."""
    _write(_MARK + label)


def mark_end(seconds: float = 0.0) -> None:
    """End the section, which took `seconds`."""
    _write(f"{_END}{seconds}")


def _write(line: str) -> None:
    sys.stdout.write(f"\n{line}\n")
    sys.stdout.flush()


def sections(arguments: Sequence[str]) -> Iterator[Section]:
    """Each section of `python *arguments`, in order. Raises `RuntimeError` if the process fails."""
    environment = {**os.environ, "ONEDNN_VERBOSE": "1"}
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        section: Section | None = None
        for line in process.stdout:
            if section is not None and line.startswith(_END):
                section.seconds = float(line.removeprefix(_END))
                yield section
                section = None
            elif line.startswith(_MARK):
                section = Section(line.removeprefix(_MARK).strip())
            elif section is not None and (primitive := parse(line)) is not None:
                section.primitives.append(primitive)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {process.returncode}")


def parse(line: str) -> Primitive | None:
    """The call that a line of the log describes; None if the line is not about the execution of a call."""
    fields = line.strip().split(",")
    if fields[0] != "onednn_verbose" or "exec" not in fields:
        return None
    return Primitive(fields[fields.index("exec") + 2], line.strip(), float(fields[-1]) / 1e3)
