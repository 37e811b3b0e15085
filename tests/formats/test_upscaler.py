"""ESRGAN-type files: every layout gives the same network, and any other file is refused by its name."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sd_core.errors import ModelError
from sd_core.formats.upscaler import load_upscaler
from sd_core.models.rrdbnet import RRDBNet, RRDBNetConfig
from tests.support.upscalers import LAYOUTS, SMALL, random_weights, write_upscaler

CPU = torch.device("cpu")
PIXELS = torch.rand(1, 3, 10, 7, generator=torch.Generator().manual_seed(1))


def expected(config: RRDBNetConfig) -> torch.Tensor:
    network = RRDBNet(config)
    network.load_state_dict(random_weights(config))
    return network(PIXELS)


@torch.inference_mode()
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("wrapper", ["", "params", "params_ema", "state_dict"])
def test_every_layout_is_the_same_network(tmp_path: Path, layout: str, wrapper: str) -> None:
    write_upscaler(tmp_path / "x4.pth", layout=layout, wrapper=wrapper)
    network = load_upscaler(tmp_path / "x4.pth", CPU)
    assert (network.config, network.scale) == (SMALL, 4)
    torch.testing.assert_close(network(PIXELS), expected(SMALL), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize(("doublings", "layout"), [(0, "old"), (1, "old"), (3, "old"), (1, "new"), (3, "bsrgan")])
def test_the_number_of_doublings_is_read_from_the_names(tmp_path: Path, doublings: int, layout: str) -> None:
    config = RRDBNetConfig(features=8, growth=4, blocks=3, doublings=doublings)
    write_upscaler(tmp_path / "file.pth", config, layout)
    network = load_upscaler(tmp_path / "file.pth", CPU)
    assert network.config == config and network(PIXELS).shape == (1, 3, 10 << doublings, 7 << doublings)
    torch.testing.assert_close(network(PIXELS), expected(config), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize(("shuffle", "scale"), [(2, 2), (4, 1)])
def test_pixels_that_become_channels_first(tmp_path: Path, shuffle: int, scale: int) -> None:
    """Real-ESRGAN's x2 and x1: sides that are not a multiple of the shuffled blocks come back whole."""
    config = RRDBNetConfig(features=8, growth=4, blocks=1, shuffle=shuffle)
    write_upscaler(tmp_path / "file.pth", config, wrapper="params_ema")
    network = load_upscaler(tmp_path / "file.pth", CPU)
    assert network.config == config
    assert network(PIXELS).shape == (1, 3, 10 * scale, 7 * scale)


def test_safetensors_are_read_too_and_halves_are_widened(tmp_path: Path) -> None:
    save_file({name: each.half() for name, each in random_weights().items()}, tmp_path / "x4.safetensors")
    network = load_upscaler(tmp_path / "x4.safetensors", CPU)
    assert {each.dtype for each in network.parameters()} == {torch.float32}


def test_a_file_of_another_kind_is_refused_by_its_name(tmp_path: Path) -> None:
    def refusal(weights: dict[str, torch.Tensor]) -> str:
        path = tmp_path / "other.pth"
        torch.save(weights, path)
        with pytest.raises(ModelError) as caught:
            load_upscaler(path, CPU)
        assert str(path) in str(caught.value)
        return str(caught.value)

    weights = random_weights()
    assert "not an ESRGAN upscaler; its 1 tensors are" in refusal({"layers.0.weight": torch.zeros(2, 2)})
    gap = {name: each for name, each in weights.items() if name != "body.1.rdb2.conv3.bias"}
    assert "body.1.rdb2.conv3.bias" in refusal(gap)
    assert "other shapes" in refusal({**weights, "conv_first.weight": torch.zeros(8)})
    assert "not supported" in refusal({**weights, "conv_first.weight": torch.zeros(8, 5, 3, 3)})
    assert "not supported" in refusal({**weights, "conv_first.weight": torch.zeros(4096, 3, 3, 3)})
    (tmp_path / "page.pth").write_bytes(b"<!doctype html>")
    with pytest.raises(ModelError, match="web page"):
        load_upscaler(tmp_path / "page.pth", CPU)
