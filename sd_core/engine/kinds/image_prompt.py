"""Image prompts: images -> tokens, and what the attentions of a forward's rows read of them."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sd_core.cache import LRU
from sd_core.device import upload
from sd_core.engine.kinds.kind import Kind
from sd_core.engine.kinds.rows import Row
from sd_core.models.given import Given, ImageRead, KeysValues
from sd_core.models.ip_adapter import attention_order
from sd_core.models.unet import UNet
from sd_core.work import Context, ImagePrompt, ImageWork, UNetWork

IMAGES = 4
"""Images of one forward: with ViT-H they take about as long as a guided step of v1.5."""

# Images whose tokens are kept, and their bytes: 12 to 790 kB each with v1.5 in float32.
KEPT, KEPT_BYTES = 64, 2**25

# Images whose keys and values are kept, and their bytes: 0.4 to 26 MB each; and the same stacked for whole forwards.
READ, READ_BYTES = 32, 2**27
STACKED, STACKED_BYTES = 4, 2**27

Read = Mapping[str, KeysValues]
Shown = Mapping[str, Sequence[ImageRead]]


class ImageKind(Kind[ImageWork]):
    """Encodes images, several in a forward, and keeps the tokens of the last ones."""

    phase = "encode"

    def __init__(self) -> None:
        self._kept: LRU[Hashable, Context] = LRU(KEPT, KEPT_BYTES, lambda context: context.states.nbytes)

    @property
    def capacity(self) -> float:
        return IMAGES

    def key(self, work: ImageWork) -> tuple[Hashable, ...]:
        return (work.network.key,)

    def identity(self, work: ImageWork) -> Hashable:
        return *self.key(work), work.key

    def cost(self, work: ImageWork) -> float:  # noqa: ARG002
        return 1

    def bytes(self, work: ImageWork) -> int:
        return work.network.bytes_for(1)

    def run(self, works: Sequence[ImageWork]) -> list[Context]:
        kept = {work.key: self._kept.get(self.identity(work)) for work in works}
        contexts = {key: context for key, context in kept.items() if context is not None}
        unknown = [work for work in works if work.key not in contexts]
        for work, tokens in zip(unknown, self._tokens(unknown), strict=True):
            contexts[work.key] = Context(self.identity(work), tokens)
            self._kept.put(self.identity(work), contexts[work.key])
        return [contexts[work.key] for work in works]

    def release(self) -> None:
        self._kept.clear()

    @staticmethod
    def _tokens(works: Sequence[ImageWork]) -> list[Tensor]:  # (1, T, context_dim) each
        pixels = [work.pixels for work in works if work.pixels is not None]
        # Copies, because a view would keep the whole batch alive.
        tokens = [own.clone() for own in works[0].network.tokens(torch.cat(pixels)).split(1)] if pixels else []
        return [work.network.no_tokens() if work.pixels is None else tokens.pop(0) for work in works]


@dataclass(frozen=True)
class _Shown:
    """An image prompt of the row at this index of a forward."""

    index: int
    image: ImagePrompt


class ImageReader:
    """Keeps what the attentions of UNets read of images."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._read: LRU[Hashable, Read] = LRU(READ, READ_BYTES, _read_size)
        self._stacked: LRU[Hashable, Shown] = LRU(STACKED, STACKED_BYTES, _shown_size)

    def showing(self, given: Given, rows: Sequence[Row], unet: UNet) -> Given:
        """`given` with what the rows' attentions read of their images; the same object without any."""
        shown = [_Shown(index, image) for index, row in enumerate(rows) for image in row.image_prompts]
        if not shown:
            return given
        network = rows[0].work.network
        key = network, len(rows), tuple((each.index, each.image.tokens.key, each.image.weight) for each in shown)
        images = self._stacked.get(key)
        if images is None:
            images = self._images(network, unet, shown, len(rows))
            self._stacked.put(key, images)
        return replace(given, images=images)

    def clear(self) -> None:
        self._read.clear()
        self._stacked.clear()

    def _images(self, network: str, unet: UNet, shown: Sequence[_Shown], count: int) -> Shown:
        """What each attention reads of all images, those of one length together."""
        lengths: dict[int, list[_Shown]] = {}
        for each in shown:
            lengths.setdefault(each.image.tokens.states.shape[1], []).append(each)
        images: dict[str, list[ImageRead]] = {name: [] for name in attention_order(unet)}
        for group in lengths.values():
            indices = [each.index for each in group]
            rows = None if indices == list(range(count)) else upload(torch.tensor(indices), self._device)
            reads = [self._of(network, unet, each.image) for each in group]
            weights = [each.image.weight for each in group]
            for name, own in images.items():
                keys, values = (torch.cat([read[name][part] for read in reads]) for part in (0, 1))
                factors = upload(torch.tensor(weights), self._device).to(values.dtype)
                own.append(ImageRead(keys, values * factors[:, None, None], rows))
        return images

    def _of(self, network: str, unet: UNet, image: ImagePrompt) -> Read:
        """Keys and values of an image, (1, S, dim) each, computed if they are not kept."""
        key = network, image.tokens.key
        read = self._read.get(key)
        if read is None:
            read = {
                name: (keys.to(unet.dtype), values.to(unet.dtype))
                for name, (keys, values) in image.adapter.read(image.tokens.states, attention_order(unet)).items()
            }
            self._read.put(key, read)
        return read


def image_tokens(work: UNetWork) -> int:
    """Tokens that the rows of a work read of images.

    They cost a row of v1.5 at 512 x 512 so little that they are not counted there: 0.1 % of its arithmetic for 16
    tokens, 1.5 % for 257.
    """
    images = work.attached.image_prompts
    counts = (len(work.contexts) if image.rows is None else len(image.rows) for image in images)
    return sum(count * image.tokens.states.shape[1] for count, image in zip(counts, images, strict=True))


def _read_size(read: Read) -> int:
    return sum(each.nbytes for pair in read.values() for each in pair)


def _shown_size(shown: Shown) -> int:
    return sum(each.keys.nbytes + each.values.nbytes for of_layer in shown.values() for each in of_layer)
