"""The checkpoints that jobs may name: those loaded at start, and all others on the volume, read when asked for."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from sd_core.cache import LRU
from sd_core.catalogue import Catalogue, Entry, Kind, UnknownFile
from sd_core.engine.graphs import Bucket, Step
from sd_core.errors import InvalidRequest, ModelError
from sd_core.formats.check import contained_networks
from sd_core.formats.detect import SOURCE_SHA256_KEY, Contents
from sd_core.formats.load import contents_of
from sd_core.formats.unpickle import open_checkpoint
from sd_core.formats.vae import vae_of
from sd_core.layout.choose import bytes_in_use, lay_out
from sd_core.pipeline.complete import find_model
from sd_core.pipeline.model import StableDiffusion, StandaloneVAE
from sd_core.text.tokenizer import MERGES_FILE, VOCAB_FILE, CLIPTokenizer

# Headers that are kept, one for each version of a file.
MAX_KNOWN = 4096

Packages = Mapping[Bucket, Step]


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

    A lookup raises `InvalidRequest` if the file cannot be used. `compiled` finds the compiled forwards for a model that
    has been read.
    """

    def __init__(
        self,
        models: Sequence[StableDiffusion],
        catalogue: Catalogue | None = None,
        compiled: Callable[[StableDiffusion], Packages] = _not_compiled,
    ) -> None:
        self._catalogue = Catalogue({}) if catalogue is None else catalogue
        self.compiled = compiled
        first = models[0]
        self._tokenizer, self._tokenizer_dir = first.tokenizer, first.file.path.parent
        self._device, self._dtype_name, self._dtype = first.device, first.info.dtype, first.dtype
        self._first = {model.info.name: model.file for model in models}
        self._outside = {name for name, file in self._first.items() if not self._has(name, file)}
        self._known: LRU[Entry, About] = LRU(MAX_KNOWN)
        self._sizes: dict[Contents, int] = {}
        self._vae_sizes: LRU[Entry, int] = LRU(MAX_KNOWN)
        self._lock = threading.Lock()  # over the three above
        for model in models:
            size = sum(bytes_in_use(network, self._dtype) for network in model.by_key.values())
            self._sizes[model.networks.architecture.contents] = size
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

    def files(self, model: str | None, vae: Entry | None) -> dict[Entry, int]:
        """The files of a job's model, with the bytes that each takes once loaded. Raises `InvalidRequest`."""
        file = self.find(model)
        sizes = {file: self.about(file).nbytes}
        return sizes if vae is None else {**sizes, vae: self._vae_bytes(vae)}

    def load(self, file: Entry, models: Mapping[str, StableDiffusion]) -> StableDiffusion | StandaloneVAE:
        """Read a checkpoint or a VAE; takes seconds. Raises `InvalidRequest`.

        A checkpoint that lacks networks has those of the first one, which may be among the loaded `models`.
        """
        with _named(file):
            if file.kind is Kind.VAE:
                return StandaloneVAE.read(file, self._device, self._dtype)
            return self._read(file, lambda: self._first_of(models))

    def _first_of(self, models: Mapping[str, StableDiffusion]) -> StableDiffusion:
        file = self.find(None)
        loaded = models.get(file.name)
        if loaded is not None and loaded.file == file:
            return loaded
        with _named(file):
            return self._read(file)

    def _read(self, file: Entry, lender: Callable[[], StableDiffusion] | None = None) -> StableDiffusion:
        tokenizer = self._tokenizer_of(file.path.parent)
        return StableDiffusion.read(file, tokenizer, str(self._device), self._dtype_name, lender)

    def _has(self, name: str, file: Entry) -> bool:
        try:
            return self._catalogue.find(Kind.CHECKPOINT, name).path == file.path
        except UnknownFile:
            return False

    def _read_head(self, file: Entry) -> About:
        contents = contents_of(file.path)
        with open_checkpoint(file.path) as opened:
            sha256 = opened.metadata.get(SOURCE_SHA256_KEY)
        return About(contents.native_size, sha256, self._bytes(contents))

    def _bytes(self, contents: Contents) -> int:
        """What networks of this architecture take, which most checkpoints share."""
        with self._lock:
            size = self._sizes.get(contents)
        if size is None:
            size = sum(self._laid_out_bytes(network) for network in contained_networks(contents).values())
            with self._lock:
                self._sizes[contents] = size
        return size

    def _vae_bytes(self, file: Entry) -> int:
        with self._lock:
            size = self._vae_sizes.get(file)
        if size is None:
            with _named(file), open_checkpoint(file.path) as opened:
                _, network = vae_of(opened)
            size = self._laid_out_bytes(network)
            with self._lock:
                self._vae_sizes.put(file, size)
        return size

    def _laid_out_bytes(self, network: nn.Module) -> int:
        lay_out(network, self._device, self._dtype)
        return bytes_in_use(network, self._dtype)

    def _tokenizer_of(self, directory: Path) -> CLIPTokenizer:
        """The tokenizer beside a checkpoint, or else the first model's."""
        has_own = all((directory / name).is_file() for name in (VOCAB_FILE, MERGES_FILE))
        if not has_own or directory == self._tokenizer_dir:
            return self._tokenizer
        return CLIPTokenizer.load(directory)


@contextmanager
def _named(file: Entry) -> Iterator[None]:
    """Errors about a file are about its field, and name the file as jobs do."""
    field = "vae" if file.kind is Kind.VAE else "model"
    try:
        yield
    except ModelError as error:
        text = str(error).replace(str(file.path), file.file_name)
        raise InvalidRequest(f"{field}: {file.file_name!r} cannot be used: {text}") from error
    except OSError as error:
        raise InvalidRequest(f"{field}: {file.file_name!r} cannot be read: {error.strerror or error}") from error
