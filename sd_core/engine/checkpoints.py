"""The checkpoints that jobs may name: those loaded at start, and all others on the volume, read when asked for."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sd_core.cache import LRU
from sd_core.catalogue import Catalogue, Entry, Kind, UnknownFile
from sd_core.engine.graphs import Bucket, Step
from sd_core.errors import InvalidRequest, ModelError
from sd_core.formats.check import meta_networks
from sd_core.formats.detect import Architecture, detect, require_drawable
from sd_core.formats.files import TensorFile, first_bytes, is_pickle, open_safetensors
from sd_core.formats.unpickle import read_checkpoint
from sd_core.layout.choose import bytes_in_use, lay_out
from sd_core.pipeline.complete import find_model
from sd_core.pipeline.model import StableDiffusion
from sd_core.text.tokenizer import MERGES_FILE, VOCAB_FILE, CLIPTokenizer

# Headers that are kept, one for each version of a file.
MAX_KNOWN = 4096

Packages = Mapping[Bucket, Step]


def _as_it_is(path: Path) -> Path:
    return path


def _not_compiled(model: StableDiffusion) -> Packages:  # noqa: ARG001
    return {}


@dataclass(frozen=True)
class About:
    """What the head of a checkpoint says: `native_size` in pixels, the SHA-256 of the file that it was converted from,
    and the bytes that its networks take once they were used."""

    native_size: int
    sha256: str | None
    nbytes: int


class Checkpoints(Mapping[str, About]):
    """What the head of each checkpoint says, by name: of those loaded at start, the default first, then of all others
    in the catalogue, the new ones too. Safe to use from several threads.

    A lookup raises `InvalidRequest` if the file cannot be used. `safetensors` makes one of a file that is none, and
    `compiled` finds the compiled forwards for a model; both are called when a checkpoint is read.
    """

    def __init__(
        self,
        models: Sequence[StableDiffusion],
        catalogue: Catalogue | None = None,
        safetensors: Callable[[Path], Path] = _as_it_is,
        compiled: Callable[[StableDiffusion], Packages] = _not_compiled,
    ) -> None:
        self._catalogue = Catalogue({}) if catalogue is None else catalogue
        self._safetensors, self.compiled = safetensors, compiled
        first = models[0]
        self._tokenizer, self._tokenizer_dir = first.tokenizer, first.file.path.parent
        self._device, self._dtype_name, self._dtype = first.device, first.info.dtype, first.dtype
        self._first = {model.info.name: model.file for model in models}
        self._outside = {name for name, file in self._first.items() if not self._has(name, file)}
        self._known: LRU[Entry, About] = LRU(MAX_KNOWN)
        self._sizes: dict[Architecture, int] = {}
        self._lock = threading.Lock()  # over the two above
        for model in models:
            size = sum(bytes_in_use(network, self._dtype) for network in model.networks.all)
            self._sizes[model.networks.architecture] = size
            self._known.put(model.file, About(model.info.native_size, model.info.sha256, size))

    def __iter__(self) -> Iterator[str]:
        others = (entry.name for entry in self._catalogue.entries(Kind.CHECKPOINT))
        return iter(dict.fromkeys([*self._first, *others]))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, name: str) -> About:
        return self.about(self.find(name))

    def find(self, name: str | None) -> Entry:
        """The file that `name` means, as of now; None means the first. Raises `InvalidRequest` with the nearest."""
        known = find_model(name, list(self))
        if known in self._outside:
            return self._first[known]
        try:
            return self._catalogue.find(Kind.CHECKPOINT, known)
        except UnknownFile as error:
            raise InvalidRequest(f"model: {error}") from None

    def about(self, file: Entry) -> About:
        """What the head of a file says. Raises `InvalidRequest` if it is not a checkpoint that can be used."""
        with self._lock:
            known = self._known.get(file)
        if known is None:
            with _named(file):
                known = self._read_head(file)
            with self._lock:
                self._known.put(file, known)
        return known

    def load(self, file: Entry) -> StableDiffusion:
        """Read a checkpoint; takes seconds. Raises `InvalidRequest`."""
        with _named(file):
            path = self._safetensors(file.path)
            tokenizer = self._tokenizer_of(file.path.parent)
            return StableDiffusion.read(file, tokenizer, str(self._device), self._dtype_name, path)

    def _has(self, name: str, file: Entry) -> bool:
        try:
            return self._catalogue.find(Kind.CHECKPOINT, name).path == file.path
        except UnknownFile:
            return False

    def _read_head(self, file: Entry) -> About:
        with _opened(file.path) as opened:
            architecture = detect(opened.shapes, opened.metadata)
            sha256 = opened.metadata.get("sd_core.source_sha256")
        require_drawable(architecture)
        return About(architecture.native_size, sha256, self._bytes(architecture))

    def _bytes(self, architecture: Architecture) -> int:
        """What networks of this architecture take, which most checkpoints share."""
        with self._lock:
            size = self._sizes.get(architecture)
        if size is None:
            networks = meta_networks(architecture)
            for network in networks:
                lay_out(network, self._device, self._dtype)
            size = sum(bytes_in_use(network, self._dtype) for network in networks)
            with self._lock:
                self._sizes[architecture] = size
        return size

    def _tokenizer_of(self, directory: Path) -> CLIPTokenizer:
        """The tokenizer beside a checkpoint, or else the first model's."""
        has_own = all((directory / name).is_file() for name in (VOCAB_FILE, MERGES_FILE))
        if not has_own or directory == self._tokenizer_dir:
            return self._tokenizer
        return CLIPTokenizer.load(directory)


def _opened(path: Path) -> TensorFile:
    return read_checkpoint(path) if is_pickle(first_bytes(path)) else open_safetensors(path)


@contextmanager
def _named(file: Entry) -> Iterator[None]:
    """Errors about a file are about the field, and name the file as jobs do."""
    try:
        yield
    except ModelError as error:
        text = str(error).replace(str(file.path), file.file_name)
        raise InvalidRequest(f"model: {file.file_name!r} cannot be used: {text}") from error
    except OSError as error:
        raise InvalidRequest(f"model: {file.file_name!r} cannot be read: {error.strerror or error}") from error
