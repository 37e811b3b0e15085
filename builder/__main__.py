"""`python -m builder`: convert a checkpoint, compile its UNet for this GPU, or describe a model file.

Exit status: 0 done, 1 failed, 2 wrong usage.
"""

import argparse
import io
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from builder.convert import convert
from builder.inspect import inspect
from builder.source import DTYPES
from sd_core.errors import SDError
from sd_core.formats.files import converted_name
from sd_core.formats.prediction import PREDICTION_TYPES

_BAR_WIDTH = 40


def main(argv: Sequence[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        # File names may contain characters that the terminal's encoding lacks.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = _parser().parse_args(argv)
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        if arguments.command == "inspect":
            print("\n".join(inspect(arguments.file)))
        elif arguments.command == "compile":
            from builder.compile import compile_checkpoint  # imports the engine

            for package in compile_checkpoint(arguments.file, arguments.rows, dtype=arguments.dtype):
                print(package)
        else:
            destination = arguments.destination or converted_name(arguments.source)
            convert(
                arguments.source,
                destination,
                dtype=arguments.dtype,
                use_ema=arguments.use_ema,
                vae=arguments.vae,
                prediction_type=arguments.prediction_type,
                force=arguments.force,
                progress=_bar if sys.stderr.isatty() else None,
            )
            print(destination)
    except (SDError, OSError, MemoryError) as error:
        return _fail(str(error) or type(error).__name__)
    except KeyboardInterrupt:
        return _fail("interrupted: no unfinished file was left behind")
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m builder", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("convert", help="write a checkpoint as the worker's safetensors")
    command.add_argument("source", type=Path, metavar="SRC", help="a .ckpt, .safetensors or folder of diffusers'")
    command.add_argument("destination", type=Path, metavar="DST", nargs="?", help="default: beside SRC")
    command.add_argument("--dtype", choices=DTYPES, help="default: each tensor as stored")
    command.add_argument("--use-ema", action="store_true", help="take the UNet's moving averages (model_ema.*)")
    command.add_argument("--vae", type=Path, metavar="FILE", help="take the VAE from this file")
    command.add_argument("--force", action="store_true", help="replace a DST that is another file")
    command.add_argument(
        "--prediction-type",
        choices=PREDICTION_TYPES,
        help="what the UNet predicts (default: as the file declares, else epsilon)",
    )
    command = commands.add_parser("compile", help="compile the UNet of a safetensors file for this machine's GPU")
    command.add_argument("file", type=Path, metavar="FILE", help="as convert writes it; packages go beside it")
    command.add_argument(
        "--rows",
        type=int,
        nargs="+",
        default=[1, 2, 4, 8, 16],
        metavar="N",
        help="rows of the forwards: two per image with guidance, one without (default: 1 2 4 8 16)",
    )
    command.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help="SD_DTYPE of the worker")
    command = commands.add_parser("inspect", help="describe a checkpoint, LoRA, VAE or another model file")
    command.add_argument("file", type=Path, metavar="FILE")
    return parser


def _terminate(_signum: int, _frame: FrameType | None) -> None:
    """Treats SIGTERM as Ctrl-C, so that the temporary file and the lock are removed."""
    raise KeyboardInterrupt


def _fail(message: str) -> int:
    """Prints the message as one line and returns the exit status."""
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""
    print(clear + "error: " + " ".join(message.split()), file=sys.stderr)
    return 1


def _bar(done: int, total: int) -> None:
    filled = _BAR_WIDTH * done // max(total, 1)
    end = "\n" if done >= total else ""
    bar = "#" * filled + "." * (_BAR_WIDTH - filled)
    print(f"\r{bar} {done / 1e9:.2f} of {total / 1e9:.2f} GB", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
