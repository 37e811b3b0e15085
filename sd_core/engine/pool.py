"""The networks of the loaded models, looked up by the keys that works carry, within a budget of bytes."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import nn

from sd_core.catalogue import Entry
from sd_core.engine.graphs import Bucket, CUDACapture, GraphedUNet, Step, for_device
from sd_core.engine.sharing import sharing
from sd_core.errors import ModelError
from sd_core.layout.choose import bytes_in_use
from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.unet import UNet
from sd_core.models.vae import Autoencoder
from sd_core.pipeline.model import StableDiffusion, StandaloneVAE

# Pixels per latent: v1's autoencoder halves each side three times.
LATENT_PIXELS = 64

Loaded = StableDiffusion | StandaloneVAE

NO_PACKAGES: Mapping[str, Mapping[Bucket, Step]] = MappingProxyType({})


class Pool:
    """Networks by role and key, of the models that stay loaded. Used on the engine thread, except `loaded`.

    `packages` are compiled forwards by model name. `budget` bounds the bytes of all weights together: models that no
    job uses are dropped for others, the least recently used first. `in_use` are the files of running jobs, by default
    all. Raises `ModelError` if two models have the same
    name, or are on different devices.
    """

    def __init__(
        self,
        models: Sequence[StableDiffusion],
        packages: Mapping[str, Mapping[Bucket, Step]] = NO_PACKAGES,
        budget: float = math.inf,
    ) -> None:
        names = [model.info.name for model in models]
        if len(set(names)) != len(names):
            raise ModelError(f"two of the checkpoints have the same name: {', '.join(names)}")
        devices = {model.device for model in models}
        if len(devices) != 1:
            raise ModelError(f"one engine runs on one device, not on {', '.join(sorted(map(str, devices)))}")
        (self.device,) = devices
        self.budget = budget
        self.in_use: Callable[[], Collection[Entry]] = lambda: self._loaded
        self._capture = CUDACapture() if self.device.type == "cuda" else None
        self._loaded: dict[Entry, Loaded] = {}  # the least recently used first
        self._steps: dict[str, UNet | GraphedUNet] = {}
        self._bytes: dict[str, int] = {}
        for model in models:
            self.add(sharing(model, self.by_key), packages.get(model.info.name, {}))

    @property
    def models(self) -> Mapping[str, StableDiffusion]:
        """The loaded models by name."""
        return {loaded.info.name: loaded for loaded in self._loaded.values() if isinstance(loaded, StableDiffusion)}

    @property
    def by_key(self) -> dict[str, nn.Module]:
        """All networks by their keys, each once."""
        return {key: network for loaded in self._loaded.values() for key, network in loaded.by_key.items()}

    @property
    def networks(self) -> list[nn.Module]:
        """All networks, each once."""
        return list(self.by_key.values())

    @property
    def bytes(self) -> int:
        """What the weights of all networks take once every layer was used."""
        return sum(self._bytes.values())

    def holds(self, files: Iterable[Entry]) -> bool:
        return all(file in self._loaded for file in files)

    def loaded(self, file: Entry) -> StableDiffusion | None:
        """The model that was read from this version of a file, if it is loaded now. Safe to call from any thread."""
        loaded = self._loaded.get(file)
        return loaded if isinstance(loaded, StableDiffusion) else None

    def model(self, files: Iterable[Entry]) -> StableDiffusion:
        """The model that was read from these files, a checkpoint and perhaps a VAE; it was then used last."""
        checkpoint, *vaes = files
        for file in (checkpoint, *vaes):
            self._loaded[file] = self._loaded.pop(file)
        model = self._loaded[checkpoint]
        assert isinstance(model, StableDiffusion)
        for file in vaes:
            vae = self._loaded[file]
            assert isinstance(vae, StandaloneVAE)
            model = model.with_vae(vae)
        return model

    def add(self, loaded: Loaded, packages: Mapping[Bucket, Step]) -> None:
        self._loaded[loaded.file] = loaded
        if isinstance(loaded, StableDiffusion) and loaded.unet_key not in self._steps:
            self._steps[loaded.unet_key] = for_device(loaded.networks.unet, loaded.device, packages, self._capture)
        self._index()

    def make_room(
        self, needed: int, in_use: Collection[Entry], kept: Collection[Entry], usable: Callable[[], int | None]
    ) -> bool:
        """Drop what is loaded until so many bytes fit the budget and are `usable`; false if running jobs keep them.

        What is `in_use` by them stays, and what is `kept` for the job that needs the room. If no job runs, there is
        room for a model that is larger than the budget.
        """
        while not self._fits(needed, usable):
            unused = [file for file in self._loaded if file not in in_use and file not in kept]
            if not unused:
                return not any(file in self._loaded for file in in_use)
            self._drop(unused[0])
        return True

    def _fits(self, needed: int, usable: Callable[[], int | None]) -> bool:
        if self.bytes + needed > self.budget:
            return False
        free = usable()
        return free is None or needed <= free

    def text_encoder(self, key: str) -> CLIPTextEncoder:
        return self._text_encoders[key]

    def vae(self, key: str) -> Autoencoder:
        return self._vaes[key]

    def unet(self, key: str) -> UNet:
        return self._unets[key]

    def step(self, key: str) -> UNet | GraphedUNet:
        """The UNet in the form that its device runs fastest; called as the UNet is."""
        return self._steps[key]

    def native_pixels(self, key: str) -> int:
        """Pixels of the images that this UNet was trained on."""
        return self._native_pixels[key]

    @property
    def max_native_pixels(self) -> int:
        return max(self._native_pixels.values())

    def warm_up(self) -> None:
        """Capture the graphs of compiled forwards, so that the first jobs of their shapes do not have to."""
        for step in self._steps.values():
            if isinstance(step, GraphedUNet):
                step.warm_up()

    def release(self) -> None:
        """Free the memory of captured graphs, and of models that no job uses."""
        in_use = self.in_use()
        for file in [file for file in self._loaded if file not in in_use]:
            self._drop(file)
        for step in self._steps.values():
            if isinstance(step, GraphedUNet):
                step.clear()

    def _drop(self, file: Entry) -> None:
        del self._loaded[file]
        self._index()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _index(self) -> None:
        """Look at the networks of all that is loaded, those that several have in common once."""
        models = list(self.models.values())
        dtypes = {key: loaded.dtype for loaded in self._loaded.values() for key in loaded.by_key}
        networks = self.by_key
        self._text_encoders = {model.text_key: model.networks.text_encoder for model in models}
        self._unets = {model.unet_key: model.networks.unet for model in models}
        self._vaes = {key: network for key, network in networks.items() if isinstance(network, Autoencoder)}
        self._native_pixels = {model.unet_key: model.info.native_size**2 for model in models}
        self._steps = {key: step for key, step in self._steps.items() if key in self._unets}
        known = self._bytes
        self._bytes = {key: known.get(key) or bytes_in_use(networks[key], dtypes[key]) for key in networks}
