"""Published checkpoint -> the worker's safetensors: prune, check, cast, hash, write atomically."""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from builder import VERSION
from builder.folder import open_source
from builder.lock import hold
from builder.source import DTYPES, Part, Source, dtype_name, plan
from builder.write import remove_partial, write_safetensors
from sd_core.errors import ModelError
from sd_core.formats.detect import OVERRIDES, SOURCE_SHA256_KEY, Contents
from sd_core.formats.files import open_safetensors
from sd_core.formats.prediction import EPSILON, PREDICTION_TYPE_KEY, PREDICTION_TYPES, ZERO_SNR_KEY
from sd_core.formats.unpickle import open_checkpoint
from sd_core.pipeline.preview import METADATA_KEY as LATENT_TO_RGB_KEY

ARCHITECTURE_KEY = "sd_core.architecture"
DTYPE_KEY = "sd_core.dtype"
VERSION_KEY = "sd_core.builder_version"
OPTIONS_KEY = "sd_core.options"

# Metadata of a safetensors source that its conversion keeps.
CARRIED = (*OVERRIDES, LATENT_TO_RGB_KEY)

_CHUNK = 8 * 2**20  # bytes

# Called with the bytes hashed and written so far, and their total.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Options:
    dtype: str | None
    use_ema: bool
    vae: Path | None
    prediction_type: str | None
    force: bool
    is_partial: bool = False


def convert(
    source: Path,
    destination: Path,
    *,
    dtype: str | None = None,
    use_ema: bool = False,
    vae: Path | None = None,
    prediction_type: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write the networks of a `.ckpt`, a `.safetensors` or a folder of diffusers' as safetensors; return `destination`.

    `dtype` is fp16, bf16 or fp32 (default: each tensor as stored). `use_ema` takes the UNet's moving averages. `vae`
    is a file whose VAE replaces the source's. `prediction_type`, epsilon or v_prediction, replaces what the source
    declares. An existing destination is kept if the same source and options made it, and replaced only with `force`
    otherwise. One process at a time writes a destination; others wait.
    On ModelError, whose message is one line, the destination is unchanged.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ModelError(f"the dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if prediction_type is not None and prediction_type not in PREDICTION_TYPES:
        raise ModelError(f"the prediction type {prediction_type!r} is not one of {', '.join(PREDICTION_TYPES)}")
    _check_paths(source, destination)
    with _locked(source, destination):
        return _convert(source, destination, _Options(dtype, use_ema, vae, prediction_type, force), progress)


def ensure_converted(source: Path, destination: Path, progress: Progress | None = None) -> Path:
    """Convert `source` unless `destination` exists, and return `destination`. Workers that share a volume call this.

    The first worker converts; the others wait and use its file. The source may lack the text encoder or the VAE.
    ModelError as for `convert`.
    """
    if destination.is_file():
        return destination
    _check_paths(source, destination)
    with _locked(source, destination):
        if destination.is_file():
            return destination
        options = _Options(dtype=None, use_ema=False, vae=None, prediction_type=None, force=False, is_partial=True)
        return _convert(source, destination, options, progress)


def sha256(path: Path, done: Callable[[int], None] | None = None) -> str:
    """The file's SHA-256 in hexadecimal. `done` is called with the bytes of each chunk."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            if done is not None:
                done(len(chunk))
    return digest.hexdigest()


def _check_paths(source: Path, destination: Path) -> None:
    if not source.exists():
        raise ModelError(f"{source} does not exist")
    if destination.exists() and destination.samefile(source):
        raise ModelError(f"{destination} is the source itself: name another destination")
    if destination.is_dir():
        raise ModelError(f"{destination} is a directory: name the file to write")
    if not destination.parent.is_dir():
        raise ModelError(f"{destination.parent}, where the result is to be written, is not a directory")


@contextlib.contextmanager
def _locked(source: Path, destination: Path) -> Iterator[None]:
    """Holds the destination's lock. An OSError inside becomes a ModelError of one line."""
    try:
        with hold(destination.with_name(f".{destination.name}.lock")):
            remove_partial(destination)
            yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ModelError(f"{source} could not be converted to {destination}: {reason}") from error


def _convert(source: Path, destination: Path, options: _Options, progress: Progress | None) -> Path:
    with contextlib.ExitStack() as stack:
        checkpoint = open_source(source, stack)
        vae = stack.enter_context(open_checkpoint(options.vae)) if options.vae is not None else None
        dtype = DTYPES[options.dtype] if options.dtype is not None else None
        try:
            contents, parts = plan(
                checkpoint,
                vae,
                dtype,
                use_ema=options.use_ema,
                prediction_type=options.prediction_type,
                is_partial=options.is_partial,
            )
        except ModelError as error:
            raise ModelError(f"{source}: {error}") from None
        before = _state(checkpoint)
        report = _counter(checkpoint, options.vae, parts, progress)
        metadata = _metadata(
            source_sha256=_sha256_of(checkpoint, report),
            vae_sha256=sha256(options.vae, report) if options.vae is not None else None,
            contents=contents,
            parts=parts,
            options=options,
            carried={key: checkpoint.metadata[key] for key in CARRIED if key in checkpoint.metadata},
        )
        if destination.exists() and not options.force:
            _require_same(destination, metadata)
            return destination
        write_safetensors(destination, parts, metadata, report, lambda: _require_unchanged(checkpoint, before))
    return destination


def _sha256_of(source: Source, done: Callable[[int], None]) -> str:
    """The SHA-256 of a file, or of what `sha256sum` prints for the files of a folder, sorted by name."""
    if not source.path.is_dir():
        return sha256(source.path, done)
    paths = sorted(file.path for file in source.files)
    lines = [f"{sha256(path, done)}  {path.relative_to(source.path).as_posix()}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _state(source: Source) -> list[tuple[int, int]]:
    statuses = [os.fstat(file.file.fileno()) for file in source.files]
    return [(status.st_size, status.st_mtime_ns) for status in statuses]


def _require_unchanged(source: Source, before: list[tuple[int, int]]) -> None:
    if _state(source) != before:
        raise ModelError(f"{source.path} was changed while it was converted: the result was discarded, run it again")


def _counter(source: Source, vae: Path | None, parts: list[Part], progress: Progress | None) -> Callable[[int], None]:
    """A function that is called with bytes done and reports their sum as progress."""
    hashed = [file.path for file in source.files] + ([] if vae is None else [vae])
    total = sum(path.stat().st_size for path in hashed) + sum(part.size for part in parts)
    done = 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    return report


def _metadata(
    *,
    source_sha256: str,
    vae_sha256: str | None,
    contents: Contents,
    parts: list[Part],
    options: _Options,
    carried: Mapping[str, str],
) -> dict[str, str]:
    chosen = {"dtype": options.dtype, "use_ema": options.use_ema, "vae_sha256": vae_sha256}
    return {
        "format": "pt",
        **carried,
        PREDICTION_TYPE_KEY: contents.prediction_type,
        ZERO_SNR_KEY: str(contents.zero_terminal_snr).lower(),
        SOURCE_SHA256_KEY: source_sha256,
        ARCHITECTURE_KEY: json.dumps(dataclasses.asdict(contents)),
        DTYPE_KEY: dtype_name(part.dtype for part in parts),
        VERSION_KEY: VERSION,
        OPTIONS_KEY: json.dumps(chosen),
    }


def _require_same(destination: Path, metadata: Mapping[str, str]) -> None:
    """ModelError unless the existing file was made from the same source in the same way."""
    try:
        with open_safetensors(destination) as file:
            found = dict(file.metadata)
    except ModelError as error:
        raise ModelError(f"{error}; --force replaces it") from None
    # Files of older builders declare no prediction type, which means the defaults.
    found = {PREDICTION_TYPE_KEY: EPSILON, ZERO_SNR_KEY: "false"} | found
    same = (SOURCE_SHA256_KEY, VERSION_KEY, OPTIONS_KEY, PREDICTION_TYPE_KEY, ZERO_SNR_KEY)
    if any(found.get(key) != metadata[key] for key in same):
        raise ModelError(
            f"{destination} exists and was made from another source or with other options; --force replaces it"
        )
