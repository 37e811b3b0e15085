"""The networks of all loaded models, looked up by the keys that works carry."""

import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from torch import nn

from sd_core.engine.graphs import Bucket, GraphedUNet, Step, for_device
from sd_core.errors import InvalidRequest, ModelError
from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.unet import UNet
from sd_core.models.vae import VAE
from sd_core.pipeline.model import StableDiffusion

# Pixels per latent: v1's autoencoder halves each side three times.
LATENT_PIXELS = 64

NO_PACKAGES: Mapping[str, Mapping[Bucket, Step]] = MappingProxyType({})


class Pool:
    """Networks by role and key; the first of the models is the default one.

    `packages` are compiled forwards by model name. Raises `ModelError` if two models have the same name, or are on
    different devices.
    """

    def __init__(
        self, models: Sequence[StableDiffusion], packages: Mapping[str, Mapping[Bucket, Step]] = NO_PACKAGES
    ) -> None:
        self.models: Mapping[str, StableDiffusion] = {model.info.name: model for model in models}
        if len(self.models) != len(models):
            raise ModelError(
                f"two of the checkpoints have the same name: {', '.join(model.info.name for model in models)}"
            )
        devices = {model.device for model in models}
        if len(devices) != 1:
            raise ModelError(f"one engine runs on one device, not on {', '.join(sorted(map(str, devices)))}")
        (self.device,) = devices
        self._text_encoders = {model.text_key: model.networks.text_encoder for model in models}
        self._unets = {model.unet_key: model.networks.unet for model in models}
        self._vaes = {model.vae_key: model.networks.vae for model in models}
        self._native_pixels = {model.unet_key: model.info.native_size**2 for model in models}
        self._steps = {
            model.unet_key: for_device(model.networks.unet, model.device, packages.get(model.info.name, {}))
            for model in models
        }

    @property
    def default(self) -> StableDiffusion:
        return next(iter(self.models.values()))

    @property
    def networks(self) -> list[nn.Module]:
        return [*self._text_encoders.values(), *self._unets.values(), *self._vaes.values()]

    def model(self, name: str | None) -> StableDiffusion:
        """The model of this name, or the default one. Raises `InvalidRequest` that lists the names."""
        if name is None:
            return self.default
        if name not in self.models:
            near = difflib.get_close_matches(name, self.models, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise InvalidRequest(f"model {name[:60]!r} is not loaded{hint} Loaded: {', '.join(self.models)}")
        return self.models[name]

    def text_encoder(self, key: str) -> CLIPTextEncoder:
        return self._text_encoders[key]

    def vae(self, key: str) -> VAE:
        return self._vaes[key]

    def unet(self, key: str) -> UNet:
        return self._unets[key]

    def step(self, key: str) -> UNet | GraphedUNet:
        """The UNet in the form that its device runs fastest; called as the UNet is."""
        return self._steps[key]

    def native_pixels(self, key: str) -> int:
        """Pixels of the images that this UNet was trained on."""
        return self._native_pixels[key]

    def warm_up(self) -> None:
        """Capture the graphs of compiled forwards, so that the first jobs of their shapes do not have to."""
        for step in self._steps.values():
            if isinstance(step, GraphedUNet):
                step.warm_up()

    def release(self) -> None:
        """Free the memory of captured graphs."""
        for step in self._steps.values():
            if isinstance(step, GraphedUNet):
                step.clear()
