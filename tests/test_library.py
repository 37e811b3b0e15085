import inspect
import pydoc
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sd_core
from tests.support.upscalers import write_upscaler

DEMO = Path(__file__).resolve().parent.parent / "demo" / "weights" / "demo.safetensors"


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Iterator[sd_core.Model]:
    with sd_core.load(tiny_checkpoint, device="cpu") as model:
        yield model


def pixels(images: list[Image.Image]) -> list[np.ndarray]:
    return [np.asarray(image) for image in images]


def test_the_three_lines_of_the_readme_generate_an_image() -> None:
    script = (
        "import sd_core\n"
        f"model = sd_core.load({str(DEMO)!r})\n"
        "images = model.generate('a red star', steps=20, seed=1)\n"
        "print(images[0].size, images[0].mode, len(images), len(images[0].getcolors(128 * 128)) > 100)\n"
    )
    command = [sys.executable, "-W", "error", "-c", script]
    ended = subprocess.run(command, cwd=DEMO.parents[2], capture_output=True, text=True, timeout=300)
    assert (ended.stdout.strip(), ended.stderr, ended.returncode) == ("(128, 128) RGB 1 True", "", 0)


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = "import sys, sd_core; dir(sd_core); print([n for n in ('torch', 'numpy', 'PIL') if n in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", script], cwd=DEMO.parents[2], capture_output=True, text=True)
    assert (ended.stdout.strip(), ended.stderr) == ("[]", "")


def test_only_exported_names_exist() -> None:
    for name in sd_core.__all__:
        assert getattr(sd_core, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        sd_core.lod  # noqa: B018


def test_a_seed_gives_the_same_images_and_each_image_has_the_next_seed(model: sd_core.Model) -> None:
    both = pixels(model.generate("a cat", steps=2, seed=3, num_images=2))
    again = pixels(model.generate("a cat", steps=2, seed=4))
    assert np.abs(both[1].astype(int) - again[0]).max() <= 1
    assert not np.array_equal(both[0], both[1])


def test_image_to_image_has_the_images_size_or_the_requested_one(model: sd_core.Model) -> None:
    image = Image.new("RGB", (75, 66), (200, 40, 40))
    (own,) = model.generate("a cat", image=image, strength=0.5, steps=2, seed=1)
    (asked,) = model.generate("a cat", image=np.asarray(image), steps=2, seed=1, width=64, height=80)
    assert (own.size, asked.size) == ((72, 64), (64, 80))
    (gray,) = model.generate("a cat", image=image.convert("L"), steps=2, seed=1)
    assert gray.mode == "RGB"


def test_the_masked_part_of_an_image_is_repainted(model: sd_core.Model) -> None:
    image, mask = Image.new("RGB", (72, 64), (200, 40, 40)), Image.new("L", (72, 64))
    mask.paste(255, (16, 16, 48, 48))
    (painted,) = model.generate("a cat", image=image, mask=mask, steps=2, seed=1)
    changed = (np.asarray(painted) != np.asarray(image)).any(axis=2)
    assert not changed[np.asarray(mask) == 0].any() and changed[np.asarray(mask) > 0].mean() > 0.9
    (wider,) = model.generate("a cat", image=image, outpaint={"left": 8}, steps=1, seed=1)
    assert wider.size == (80, 64) and np.array_equal(np.asarray(wider)[:, 8:], np.asarray(image))
    with pytest.warns(UserWarning, match="mask selects no pixel"):
        (same,) = model.generate("a cat", image=image, mask=np.zeros((64, 72, 3), np.uint8))
    assert np.array_equal(np.asarray(same), np.asarray(image))
    with pytest.raises(sd_core.InvalidRequest, match="mask: needs an image"):
        model.generate("a cat", mask=mask)


def test_files_beside_the_checkpoint_are_found(tiny_checkpoint: Path, tmp_path: Path) -> None:
    weights = Path(shutil.copytree(tiny_checkpoint.parent, tmp_path / "w"))
    (weights / "upscalers").mkdir()
    write_upscaler(weights / "upscalers" / "x4.pth")
    with sd_core.load(weights / tiny_checkpoint.name, device="cpu") as model:
        hires = {"upscaler": "x4", "strength": 0.5}
        (image,) = model.generate("a cat", steps=1, seed=1, width=64, height=64, hires=hires)
        assert image.size == (128, 128)
        with pytest.raises(sd_core.InvalidRequest, match=r"hires\.upscaler: 'x5' is not here; there are: .*, x4"):
            model.generate("a cat", steps=1, hires={**hires, "upscaler": "x5"})


def test_every_bad_argument_is_named() -> None:
    with pytest.raises(sd_core.InvalidRequest) as caught:
        sd_core.load(DEMO, "cpu").generate("a cat", steps=0, sede=1, image="file.png")
    message = str(caught.value)
    for part in (
        "steps: 0 is not a whole number",
        "did you mean seed?",
        "image: a string of 8 characters is not an image",
    ):
        assert part in message


def test_warnings_are_issued_to_the_caller(model: sd_core.Model) -> None:
    with pytest.warns(UserWarning, match="strength did nothing") as caught:
        model.generate("a cat", steps=1, strength=0.5)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="prompt is longer than 75 tokens"):
        model.generate("a cat " * 80, steps=1, prompt_syntax="plain")


def test_help_lists_the_fields_with_their_defaults(model: sd_core.Model) -> None:
    parameters = inspect.signature(model.generate).parameters
    assert (parameters["steps"].default, parameters["seed"].default) == (25, None)
    assert "self" not in parameters
    assert next(iter(parameters)) == "prompt"
    assert parameters["prompt"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert "steps: int = 25" in pydoc.plain(pydoc.render_doc(sd_core.Model.generate))


def engine_threads() -> int:
    return sum(thread.name == "engine" for thread in threading.enumerate())


def test_the_engine_starts_with_the_first_image_and_can_be_closed(tiny_checkpoint: Path) -> None:
    before = engine_threads()
    model = sd_core.load(tiny_checkpoint, "cpu")
    assert engine_threads() == before
    with model:
        model.generate("a cat", steps=1)
        assert engine_threads() == before + 1
    assert engine_threads() == before
    model.close()
    assert len(model.generate("a cat", steps=1)) == 1
    del model
    assert engine_threads() == before


def test_calls_from_several_threads_share_one_engine(tiny_checkpoint: Path) -> None:
    before = engine_threads()
    with sd_core.load(tiny_checkpoint, "cpu") as model:
        callers = [threading.Thread(target=model.generate, args=("a cat",), kwargs={"steps": 2}) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert engine_threads() == before + 1


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(sd_core.ModelError, match=r"absent|vocab"):
        sd_core.load(tmp_path / "absent.safetensors")


def test_nested_fields_are_dictionaries(model: sd_core.Model) -> None:
    (image,) = model.generate("a cat", steps=1, seed=1, hires={"scale": 1.5, "upscaler": "Latent"}, freeu={"b1": 1.2})
    assert image.size == (96, 96)
    with pytest.raises(sd_core.InvalidRequest, match=r"hires.upscaler: '4x' is not here; there are: lanczos"):
        model.generate("a cat", hires={"upscaler": "4x"})
