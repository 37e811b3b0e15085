"""Jobs with anything that people bring, together: each image is that of its solo run, and no weight changes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sd_core.additions import ControlNet, Lora
from sd_core.engine.engine import Engine
from sd_core.models.controlnet import ControlNetConfig
from sd_core.pipeline.model import StableDiffusion
from sd_core.request import Request
from tests.support.controls import hint_picture, random_controlnet, write_guide
from tests.support.loras import write_lora
from tests.support.pictures import levels_apart
from tests.support.volume import NAMES, SECONDS, engine_of, of, write_volume

LORAS = ("red", "blue")
SIDE = 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, smallest_checkpoint: Path) -> Path:
    """Three checkpoints, two LoRAs and a ControlNet."""
    folder = write_volume(tmp_path_factory.mktemp("mix") / "weights", smallest_checkpoint)
    model = StableDiffusion.load(folder / "tiny.safetensors", folder, "cpu", "fp32")
    for seed, name in enumerate(LORAS):
        write_lora(folder / "loras" / f"{name}.safetensors", model, seed, size=0.3)
    config = ControlNetConfig(model.networks.unet.config)
    write_guide(folder / "controlnet", "edges", random_controlnet(config))
    return folder


@pytest.fixture(scope="module")
def engines(folder: Path) -> Iterator[dict[int, Engine]]:
    """An engine for each budget, in models that stay loaded."""
    engines = {budget: engine_of(folder, budget) for budget in (1, 3)}
    yield engines
    for engine in engines.values():
        engine.close()


@dataclass(frozen=True)
class Job:
    model: str
    loras: frozenset[str]
    weight: float
    is_controlled: bool
    mode: str
    seed: int
    images: int
    is_cancelled: bool

    @property
    def request(self) -> Request:
        hint = ControlNet(model="edges", image=hint_picture(SIDE, SIDE, self.seed), mode=self.mode)
        return replace(
            of(self.model, self.seed),
            width=SIDE,
            height=SIDE,
            loras=tuple(Lora(name=name, weight=self.weight) for name in sorted(self.loras)),
            controlnets=(hint,) if self.is_controlled else (),
            num_images=self.images,
        )


JOBS = st.builds(
    Job,
    model=st.sampled_from(NAMES),
    loras=st.frozensets(st.sampled_from(LORAS)),
    weight=st.sampled_from([-1.0, 0.5, 1.0]),
    is_controlled=st.booleans(),
    mode=st.sampled_from(["balanced", "control"]),
    seed=st.integers(0, 5),
    images=st.integers(1, 2),
    is_cancelled=st.sampled_from([False, False, True]),
)


def state_of(engine: Engine) -> dict[str, torch.Tensor]:
    networks = engine.models["tiny"].networks
    each = (networks.text_encoder, networks.unet, networks.vae)
    return {name: tensor.clone() for network in each for name, tensor in network.state_dict().items()}


@pytest.mark.slow
@settings(
    max_examples=15,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(jobs=st.lists(JOBS, min_size=2, max_size=7), budget=st.sampled_from([1, 3]))
def test_each_image_is_that_of_its_solo_run(engines: dict[int, Engine], jobs: list[Job], budget: int) -> None:
    engine = engines[budget]
    engine.submit(of("tiny")).result(SECONDS)
    before = state_of(engine)
    futures = [engine.submit(job.request) for job in jobs]
    for future, job in zip(futures, jobs, strict=True):
        if job.is_cancelled:
            future.cancel()
    for future, job in zip(futures, jobs, strict=True):
        if not future.cancelled():
            images = future.result(SECONDS).images
            alone = engine.submit(job.request).result(SECONDS).images
            assert all(levels_apart(image, own) <= 1 for image, own in zip(images, alone, strict=True))
    engine.submit(of("tiny")).result(SECONDS)
    after = state_of(engine)
    assert all(torch.equal(after[name], kept) for name, kept in before.items())


def test_what_a_job_brings_changes_its_image(engines: dict[int, Engine]) -> None:
    """Else the images of the mixes would say nothing."""
    plain = Job("tiny", frozenset(), 1.0, is_controlled=False, mode="balanced", seed=1, images=1, is_cancelled=False)
    changed = [
        replace(plain, loras=frozenset({"red"})),
        replace(plain, is_controlled=True),
        replace(plain, model="second"),
    ]
    image, *others = (engines[3].submit(job.request).result(SECONDS).images[0] for job in [plain, *changed])
    assert all(levels_apart(image, other) > 4 for other in others)
