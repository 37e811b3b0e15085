"""Settings -> the checkpoints to load, or one message: what was looked for, where, and what to do about it."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sd_core.catalogue import ENDINGS, Catalogue, Entry, Kind, UnknownFile, has_ending
from worker.log import log
from worker.settings import Settings, StartupError

USUAL_NAME = "v1-5-pruned-emaonly"
V15_SOURCE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
TOKENIZER_SOURCE = "openai/clip-vit-large-patch14"
TOKENIZER_FILES = ("vocab.json", "merges.txt")
MAX_LISTED = 20


@dataclass(frozen=True)
class Found:
    """A checkpoint, perhaps still to be converted, and the directory with its tokenizer's files."""

    checkpoint: Path
    tokenizer: Path

    @property
    def directory(self) -> Path:
        return self.checkpoint.parent


def find(settings: Settings) -> tuple[Found, ...]:
    """The checkpoints to load at start, the default first, whose tokenizer others without one take.

    Raises `StartupError`.
    """
    try:
        checkpoints = _checkpoints(settings)
        _require_tokenizer(checkpoints[0])
        found = tuple(Found(each, _tokenizer(each, checkpoints[0])) for each in checkpoints)
    except OSError as error:
        raise StartupError(f"The weights cannot be read: {error}") from error
    if len({checkpoint.stem for checkpoint in checkpoints}) < len(checkpoints):
        chosen = "".join(f"\n  {checkpoint}" for checkpoint in checkpoints)
        raise StartupError(f"SD_CHECKPOINT must name files that differ in more than their endings:{chosen}")
    return found


def _checkpoints(settings: Settings) -> tuple[Path, ...]:
    if settings.weights is not None and not settings.weights.is_dir():
        return (_file(settings, settings.weights),)
    directories = settings.search if settings.weights is None else (settings.weights,)
    if not settings.checkpoints:
        return (_usual(settings, directories),)
    return tuple(_named(settings, directories, name) for name in settings.checkpoints)


def _file(settings: Settings, file: Path) -> Path:
    """The file that SD_WEIGHTS itself names."""
    if not file.is_file():
        raise StartupError(_nothing_found(settings, (file,), file.name))
    if not has_ending(Kind.CHECKPOINT, file.name):
        raise StartupError(f"SD_WEIGHTS={file} is neither a .safetensors nor a .ckpt file.\n{_contents(file.parent)}")
    if settings.checkpoints not in ((), (file.name,)):
        raise StartupError(
            f"SD_WEIGHTS={file} names a file and SD_CHECKPOINT={':'.join(settings.checkpoints)} another one.\n"
            f"Unset SD_CHECKPOINT, or set SD_WEIGHTS={shlex.quote(str(file.parent))}"
        )
    return file


def _named(settings: Settings, directories: Sequence[Path], name: str) -> Path:
    """The checkpoint that SD_CHECKPOINT names, from the first directory that has it."""
    problems: list[str] = []
    for directory in directories:
        try:
            return _catalogue(directory).find(Kind.CHECKPOINT, name).path
        except UnknownFile as error:
            if error.refused is not None:
                problems.append(_unusable(directory / error.refused, str(error)))
            elif error.nearest is not None:
                problems.append(f"The nearest name in {directory} is {error.nearest}.")
    if not has_ending(Kind.CHECKPOINT, name):
        problems.append(f"{name} ends in neither .safetensors nor .ckpt.")
    raise StartupError(_nothing_found(settings, directories, name, *problems))


def _usual(settings: Settings, directories: Sequence[Path]) -> Path:
    """Without SD_CHECKPOINT: the usual checkpoint, else the first one, of the first directory that has any."""
    for directory in directories:
        catalogue = _catalogue(directory)
        # Of a converted checkpoint and its source, the converted one comes first in the catalogue and is taken.
        by_name = {entry.name: entry for entry in reversed(catalogue.entries(Kind.CHECKPOINT))}
        if USUAL_NAME in by_name:
            return by_name[USUAL_NAME].path
        for file, reason in catalogue.refused(Kind.CHECKPOINT).items():
            # A checkpoint was meant to be here: another one, or the demo model, must not quietly take its place.
            if not by_name or Path(file).stem == USUAL_NAME:
                problem = _unusable(directory / file, f"{directory / file} {reason}")
                raise StartupError(_nothing_found(settings, (directory,), None, problem))
        if by_name:
            return _first(directory, list(by_name.values())).path
    raise StartupError(_nothing_found(settings, directories, None))


def _catalogue(directory: Path) -> Catalogue:
    return Catalogue({Kind.CHECKPOINT: (directory,)}, max_depth=1)


def _missing_tokenizer(directory: Path) -> list[str]:
    return [name for name in TOKENIZER_FILES if not (directory / name).is_file()]


def _tokenizer(checkpoint: Path, first: Path) -> Path:
    """The directory of its tokenizer: its own, or that of the first checkpoint."""
    return first.parent if _missing_tokenizer(checkpoint.parent) else checkpoint.parent


def _require_tokenizer(checkpoint: Path) -> None:
    if missing := _missing_tokenizer(checkpoint.parent):
        raise StartupError(
            f"The tokenizer's {' and '.join(missing)} must lie beside {checkpoint}.\n"
            f"{_contents(checkpoint.parent)}\n"
            f"For Stable Diffusion v1.x:\n  {_download(TOKENIZER_SOURCE, TOKENIZER_FILES, checkpoint.parent)}"
        )


def _first(directory: Path, entries: list[Entry]) -> Entry:
    """The default of several checkpoints of which none has the usual name, said in the log."""
    order = ENDINGS[Kind.CHECKPOINT]
    entries.sort(key=lambda entry: (order.index(entry.path.suffix.lower()), entry.name))
    first = entries[0]
    if len(entries) > 1:
        log.warning(
            f"{directory} holds {len(entries)} checkpoints and none is named {USUAL_NAME}: the default is "
            f"{first.file_name}. To choose another one, or several to load at the start with : between:\n"
            f"  export SD_CHECKPOINT={shlex.quote(entries[1].file_name)}"
        )
    return first


def _nothing_found(settings: Settings, looked: Sequence[Path], name: str | None, *problems: str) -> str:
    wanted = name or f"{USUAL_NAME}.safetensors (or .ckpt, or any other checkpoint)"
    source = "SD_WEIGHTS" if settings.weights is not None else "the default places; SD_WEIGHTS is not set"
    target = looked[0].parent if has_ending(Kind.CHECKPOINT, looked[0].name) else looked[0]
    lines = [f"No model: looked for {wanted} in {source}.", *map(_contents, looked), *problems]
    if settings.on_runpod:
        lines.append("On RunPod the demo model is never used instead.")
    return "\n".join(
        [
            *lines,
            "To put Stable Diffusion v1.5 there:",
            f"  {_download(V15_SOURCE, (USUAL_NAME + '.safetensors',), target)}",
            f"  {_download(TOKENIZER_SOURCE, TOKENIZER_FILES, target)}",
        ]
    )


def _download(repository: str, files: Sequence[str], target: Path) -> str:
    return f"hf download {repository} {' '.join(files)} --local-dir {shlex.quote(str(target))}"


def _unusable(path: Path, reason: str) -> str:
    """Why the checkpoint at `path` is not used and, if it is a link out of its folder, what to do about it."""
    if not path.is_symlink():
        return f"{reason}."
    target = Path(os.path.realpath(path))
    if not target.exists():
        return f"{path} is a symbolic link to nothing: {target} does not exist."
    link, file = shlex.quote(str(path)), shlex.quote(str(target))
    return f"{reason}. To put the file itself there:\n  rm {link} && cp {file} {link}"


def _contents(path: Path) -> str:
    """One line: what there is at `path`."""
    try:
        if not path.exists():
            return f"  {path}: {_to_nothing(path) if path.is_symlink() else 'does not exist'}"
        if path.is_file():
            return f"  {path}: a file"
        names = sorted(_listed(entry) for entry in path.iterdir())
    except OSError as error:
        return f"  {path}: cannot be read ({error.strerror})"
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"  {path}: " + (", ".join(names[:MAX_LISTED]) + more if names else "is empty")


def _listed(entry: Path) -> str:
    if entry.is_dir():
        return f"{entry.name}/"
    return f"{entry.name} ({_to_nothing(entry)})" if entry.is_symlink() and not entry.exists() else entry.name


def _to_nothing(link: Path) -> str:
    return f"a symbolic link to nothing, {os.readlink(link)}"  # noqa: PTH115 - the text of the link as it is
