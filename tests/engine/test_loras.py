"""Jobs with adapters: as a field and as tags, beside each other and beside jobs without."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sd_core.additions import Lora
from sd_core.engine.engine import Engine
from sd_core.errors import InvalidRequest
from sd_core.models.unet import UNet
from sd_core.nested import Hires
from sd_core.pipeline.model import StableDiffusion
from sd_core.request import Request
from tests.support.counting import counted
from tests.support.engine import hold_forwards
from tests.support.loras import engine_in, library_in, write_lora
from tests.support.pictures import levels_apart

REQUEST = Request("a cat", seed=3, width=64, height=64, steps=3, sampler="euler", schedule="default")
NAMES = ("red", "blue", "sub/green")


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory, tiny_model: StableDiffusion) -> Path:
    folder = tmp_path_factory.mktemp("volume")
    for seed, name in enumerate(NAMES):
        # Larger changes would make the network magnify the rounding of a batch.
        write_lora(folder / "loras" / f"{name}.safetensors", tiny_model, seed, rank=2 + seed, size=0.3)
    return folder


@pytest.fixture(scope="module")
def engine(volume: Path, tiny_model: StableDiffusion) -> Iterator[Engine]:
    with engine_in(volume, tiny_model) as engine:
        yield engine


def with_loras(**weights: float) -> Request:
    return replace(REQUEST, loras=tuple(Lora(name=name, weight=weight) for name, weight in weights.items()))


def with_prompt(prompt: str, **fields: object) -> Request:
    return replace(REQUEST, prompt=prompt, **fields)


def image_of(engine: Engine, request: Request) -> np.ndarray:
    return engine.submit(request).result().images[0]


def test_an_adapter_changes_the_image_and_the_next_job_has_none(engine: Engine) -> None:
    plain, adapted, again = (image_of(engine, each) for each in (REQUEST, with_loras(red=1.0), REQUEST))
    assert levels_apart(plain, adapted) > 5
    assert np.array_equal(plain, again)


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        ("a cat<lora:red:0.5>", (Lora(name="red", weight=0.5),)),
        ("a<lyco:red:0.5:0.25> cat", (Lora(name="red", weight=0.25, text_weight=0.5),)),
        ("a cat <lora:red><lora:sub/green.safetensors:-1>", (Lora(name="red"), Lora(name="sub/green", weight=-1.0))),
        ("a cat<lora:red:0.5><lora:red:0.25>", (Lora(name="red", weight=0.75),)),
        ("a cat<lora:red:0.5:dyn=1><lora:red:1:NONE>", ()),
    ],
)
def test_a_tag_means_what_the_field_means(engine: Engine, prompt: str, field: tuple[Lora, ...]) -> None:
    tagged, listed = image_of(engine, with_prompt(prompt)), image_of(engine, replace(REQUEST, loras=field))
    assert (levels_apart(tagged, listed) <= 1) == bool(field)
    assert levels_apart(tagged, image_of(engine, REQUEST)) > 5


def test_block_weights_and_ranks_change_the_image(engine: Engine) -> None:
    tags = ("", ":dyn=1", ":lbw=OUTALL", ":lbw=INALL", ":lbw=1" + ",0.5" * 25)
    images = [image_of(engine, with_prompt(f"a cat<lora:red:1{tag}>")) for tag in tags]
    for index, image in enumerate(images):
        assert all(levels_apart(image, other) > 1 for other in images[:index])


@pytest.mark.parametrize("syntax", ["comfy", "plain"])
def test_other_syntaxes_have_no_tags(engine: Engine, syntax: str) -> None:
    text = image_of(engine, with_prompt("a cat<lora:unknown:1>", prompt_syntax=syntax))
    assert levels_apart(text, image_of(engine, replace(REQUEST, prompt_syntax=syntax))) > 0
    listed = replace(with_loras(red=1.0), prompt_syntax=syntax)
    assert levels_apart(image_of(engine, listed), image_of(engine, replace(REQUEST, prompt_syntax=syntax))) > 5


def test_a_second_pass_has_the_adapters_of_its_own_prompt(engine: Engine) -> None:
    hires = Hires(scale=1.5, upscaler="latent", strength=0.7)
    own = {
        "none": image_of(engine, with_prompt("a cat<lora:red:1>", hires=replace(hires, prompt="a cat"))),
        "same": image_of(engine, with_prompt("a cat<lora:red:1>", hires=hires)),
        "same, written": image_of(
            engine, with_prompt("a cat<lora:red:1>", hires=replace(hires, prompt="a cat<lora:red:1>"))
        ),
        "other": image_of(engine, with_prompt("a cat<lora:red:1>", hires=replace(hires, prompt="a cat<lora:blue:1>"))),
        "listed": image_of(engine, replace(with_loras(red=1.0), hires=replace(hires, prompt="a cat"))),
    }
    assert levels_apart(own["same"], own["same, written"]) <= 1
    assert levels_apart(own["same"], own["listed"]) <= 1
    assert levels_apart(own["same"], own["none"]) > 5
    assert levels_apart(own["same"], own["other"]) > 5


def test_an_adapter_without_strength_is_not_read(volume: Path, tiny_model: StableDiffusion) -> None:
    with engine_in(volume, tiny_model) as engine:
        library = library_in(volume)
        engine = Engine([tiny_model], 4, library=library)
        plain = image_of(engine, REQUEST)
        assert np.array_equal(
            image_of(engine, with_prompt("a cat<lora:red:0>", loras=(Lora(name="blue", weight=0.0),))), plain
        )
        assert library.nbytes == 0
        image_of(engine, with_loras(red=0.5))
        assert library.nbytes > 0
        engine.close()


def test_the_result_names_the_hashes_of_what_was_used(engine: Engine) -> None:
    result = engine.submit(with_prompt("a cat<lora:sub/green:1><lora:red:0>", loras=(Lora(name="blue"),))).result()
    assert result.labels == {"Lora hashes": "sub/green: 000000000000, blue: 000000000000"}
    assert engine.submit(REQUEST).result().labels == {}


def test_parts_that_are_not_used_are_said_once(tmp_path: Path, volume: Path, tiny_model: StableDiffusion) -> None:
    tensors = load_file(volume / "loras" / "red.safetensors")
    tensors["lora_unet_of_another_model.lora_down.weight"] = torch.ones(2, 2)
    (tmp_path / "loras").mkdir()
    save_file(tensors, tmp_path / "loras" / "odd.safetensors")
    with engine_in(tmp_path, tiny_model) as engine:
        result = engine.submit(replace(with_loras(odd=1.0), num_images=2)).result()
        assert result.warnings == [
            "the LoRA 'odd.safetensors': 1 of its tensors did nothing: lora_unet_of_another_model.lora_down.weight"
        ]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (with_loras(rde=1.0), r"loras\[0\].name: 'rde' is not here; did you mean 'red'\?; there are: .*blue"),
        (with_prompt("<lora:gren:1>"), "prompt: <lora>: 'gren' is not here; did you mean"),
        (with_prompt("", hires=Hires(prompt="<lora:x:1>")), "hires.prompt: <lora>: 'x' is not here"),
        (with_loras(**{"../red": 1.0}), r"loras\[0\].name"),
        (with_prompt("<lora:/etc/passwd:1>"), "prompt: <lora>"),
        (with_prompt("<lora:red:1e9>"), "weights are numbers from -4 to 4"),
        (with_prompt("<lora:red:1:lbw=1,2>"), "prompt: <lora:'red'>: lbw has 2 numbers; 17 or 26 are needed"),
        (with_prompt("<lora:red:1>" * 50), "prompt: with the field loras it names 50 adapters; at most 8"),
        (with_prompt("<lora:red:1>" * 5, loras=(Lora(name="red"),) * 4), "names 9 adapters; at most 8"),
    ],
)
def test_what_is_wrong_is_said_when_a_job_is_submitted(engine: Engine, request_: Request, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        engine.submit(request_)


def test_a_broken_file_fails_its_own_job_alone(tmp_path: Path, volume: Path, tiny_model: StableDiffusion) -> None:
    (tmp_path / "loras").mkdir()
    whole = (volume / "loras" / "red.safetensors").read_bytes()
    (tmp_path / "loras" / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with engine_in(tmp_path, tiny_model) as engine:
        plain, broken = engine.submit(REQUEST), engine.submit(with_loras(cut=1.0))
        with pytest.raises(InvalidRequest, match=r"the LoRA 'cut.safetensors' cannot be used"):
            broken.result()
        assert np.array_equal(plain.result().images[0], image_of(engine, REQUEST))


def test_a_file_that_is_replaced_or_deleted_while_it_is_used_does_not_change_running_jobs(
    tmp_path: Path, tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "loras" / "style.safetensors"
    write_lora(path, tiny_model, seed=1)
    with engine_in(tmp_path, tiny_model) as engine:
        expected = image_of(engine, with_loras(style=1.0))
        with hold_forwards(monkeypatch) as (begun, _):
            running = engine.submit(with_loras(style=1.0))
            assert begun.wait(60)
            write_lora(path, tiny_model, seed=2, rank=8)
        assert np.array_equal(running.result().images[0], expected)
        replaced = image_of(engine, with_loras(style=1.0))
        assert levels_apart(replaced, expected) > 5
        path.unlink()
        with pytest.raises(InvalidRequest, match="'style' is not here"):
            engine.submit(with_loras(style=1.0))


@pytest.mark.parametrize("sampler", ["lcm", "tcd"])
def test_four_steps_without_guidance_are_one_row_each(
    engine: Engine, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What LCM-LoRA and Hyper-SD are used with."""
    forwards = counted(monkeypatch, UNet, "forward")
    fast = replace(with_loras(red=1.0), sampler=sampler, steps=4, scale=1.0)
    assert levels_apart(image_of(engine, fast), image_of(engine, replace(fast, loras=()))) > 5
    assert forwards == [1] * 8


@dataclass(frozen=True)
class Job:
    """A small job; `weights` are those of its field `loras`."""

    weights: dict[str, float]
    prompt: str
    seed: int
    steps: int
    scale: float
    images: int
    is_cancelled: bool

    @property
    def request(self) -> Request:
        return replace(
            with_loras(**self.weights),
            prompt=self.prompt,
            seed=self.seed,
            steps=self.steps,
            scale=self.scale,
            num_images=self.images,
        )


JOBS = st.builds(
    Job,
    weights=st.dictionaries(st.sampled_from(NAMES), st.sampled_from([-1.0, 0.0, 0.3, 1.0]), max_size=3),
    prompt=st.sampled_from(
        ["a cat", "", "a cat<lora:red:1>", "a <lora:blue:0.5:OUTALL>dog AND a cat<lora:sub/green:1:0>"]
    ),
    seed=st.integers(0, 9),
    steps=st.integers(1, 3),
    scale=st.sampled_from([1.0, 7.5]),
    images=st.integers(1, 2),
    is_cancelled=st.sampled_from([False, False, True]),
)


@pytest.mark.slow
@settings(max_examples=20, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.lists(JOBS, min_size=2, max_size=6))
def test_any_mix_of_jobs_gives_each_its_own_image_and_leaves_the_weights(
    engine: Engine, tiny_model: StableDiffusion, jobs: list[Job]
) -> None:
    networks = tiny_model.networks.unet, tiny_model.networks.text_encoder
    before = [{name: tensor.clone() for name, tensor in network.state_dict().items()} for network in networks]
    futures = [engine.submit(job.request) for job in jobs]
    for future, job in zip(futures, jobs, strict=True):
        if job.is_cancelled:
            future.cancel()
    for future, job in zip(futures, jobs, strict=True):
        if future.cancelled():
            continue
        for image, alone in zip(future.result().images, engine.submit(job.request).result().images, strict=True):
            assert levels_apart(image, alone) <= 1
    for kept, network in zip(before, networks, strict=True):
        after = network.state_dict()
        assert after.keys() == kept.keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in kept.items())


def test_a_mix_of_jobs_shares_forwards(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each beside a plain one; each gets the image that it gets alone."""
    requests = [
        REQUEST,
        with_loras(red=1.0),
        with_prompt("a dog<lora:blue:0.7>"),
        with_loras(**{"sub/green": -1.0, "red": 0.5}),
    ]
    alone = [image_of(engine, request) for request in requests]
    with hold_forwards(monkeypatch):
        futures = [engine.submit(request) for request in requests]
    forwards = counted(monkeypatch, UNet, "forward")
    for future, expected in zip(futures, alone, strict=True):
        assert levels_apart(future.result().images[0], expected) <= 1
    assert max(forwards, default=0) >= 3
