from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sd_core.models.controlnet import ControlNet
from sd_core.models.given import Given, Residuals
from sd_core.models.layers import NORM_GROUPS
from sd_core.models.unet import UNet, UNetConfig
from tests.support.controls import TINY_CONTROLNET, controlnet, random_hint
from tests.support.random_weights import TINY

TIMES = torch.tensor([999.0, 421.37, 3.0])


@pytest.fixture(scope="module")
def network() -> ControlNet:
    return controlnet()


def latents_and_states(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(3, 4, 9, 7, generator=generator)
    return latents, torch.randn(rows, 77, TINY.unet.context_dim, generator=generator)


def hints(network: ControlNet) -> Tensor:
    return network.embed(torch.cat([random_hint(72, 56, seed) for seed in range(3)]))


def random_residuals(unet: UNet, rows: int, seed: int = 0) -> list[Tensor]:
    """Residuals for latents of 9 x 7."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(9, 7), (5, 4), (3, 2), (2, 1)]
    config = unet.config
    each = config.num_res_blocks + 1
    # The last output of a level, its halved one, belongs to the next size.
    levels = [0, *[level + (place == each - 1) for level in range(4) for place in range(each)][:-1]]
    shapes = [(rows, width, *sizes[level]) for width, level in zip(unet.skip_channels, levels, strict=True)]
    shapes.append((rows, config.channels[-1], *sizes[-1]))
    return [0.02 * torch.randn(shape, generator=generator) for shape in shapes]


@torch.inference_mode()
@pytest.mark.parametrize(
    "rows", [[0, 0, 1, 2, 2], *(pytest.param(rows, marks=pytest.mark.slow) for rows in ([2, 0, 1], [1, 1]))], ids=str
)
def test_rows_of_one_input_share_what_comes_before_their_prompts(network: ControlNet, rows: list[int]) -> None:
    image_of_row = torch.tensor(rows)
    latents, states = latents_and_states(len(rows))
    shared = network(latents, TIMES, hints(network), network.given(states, image_of_row))
    repeated = network(latents[image_of_row], TIMES[image_of_row], hints(network)[image_of_row], network.given(states))
    assert len(shared) == len(network.skip_channels) + 1
    for one, other in zip(shared, repeated, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_the_outermost_residual_is_the_first_of_all(network: ControlNet) -> None:
    latents, states = latents_and_states(5)
    given = network.given(states, torch.tensor([0, 0, 1, 2, 2]))
    (first,) = network.outermost(latents, hints(network), given)
    torch.testing.assert_close(first, network(latents, TIMES, hints(network), given)[0])


@torch.inference_mode()
@pytest.mark.parametrize(
    "rows",
    [[1, 2, 4], *(pytest.param(rows, marks=pytest.mark.slow) for rows in ([0], [0, 1, 2, 3, 4]))],
    ids=str,
)
def test_a_control_changes_its_own_rows_alone(unet: UNet, rows: list[int]) -> None:
    """Rows 0 and 1 continue one input, and only one of them may have it."""
    latents, states = latents_and_states(5)
    image_of_row = torch.tensor([0, 0, 1, 2, 2])
    plain = unet.given(states, image_of_row)
    residuals = random_residuals(unet, len(rows))
    output = unet(latents, TIMES, replace(plain, control=(Residuals(residuals, torch.tensor(rows)),)))
    for row in range(5):
        alone = Given(
            {name: (keys[row : row + 1], values[row : row + 1]) for name, (keys, values) in plain.keys_values.items()},
            control=(Residuals([each[rows.index(row)][None] for each in residuals]),) if row in rows else (),
        )
        image = image_of_row[row : row + 1]
        torch.testing.assert_close(
            output[row : row + 1], unet(latents[image], TIMES[image], alone), rtol=1e-4, atol=1e-4
        )
    changed = (output - unet(latents, TIMES, plain)).abs().amax(dim=(1, 2, 3)) > 0.01
    assert changed.nonzero().flatten().tolist() == rows


@torch.inference_mode()
def test_controls_add_up(unet: UNet) -> None:
    latents, states = latents_and_states(3)
    one, other = (random_residuals(unet, 3, seed) for seed in (0, 1))
    given = unet.given(states)
    both = unet(latents, TIMES, replace(given, control=(Residuals(one), Residuals(other))))
    summed = [a + b for a, b in zip(one, other, strict=True)]
    torch.testing.assert_close(both, unet(latents, TIMES, replace(given, control=(Residuals(summed),))))


@torch.inference_mode()
def test_a_residual_without_height_and_width_is_added_everywhere(unet: UNet) -> None:
    latents, states = latents_and_states(3)
    residuals = random_residuals(unet, 2)
    pooled = [each.mean(dim=(2, 3), keepdim=True) for each in residuals]
    spread = [each.mean(dim=(2, 3), keepdim=True).expand_as(each) for each in residuals]
    rows = torch.tensor([0, 2])
    given = unet.given(states)
    outputs = [unet(latents, TIMES, replace(given, control=(Residuals(each, rows),))) for each in (pooled, spread)]
    torch.testing.assert_close(*outputs)
    assert (outputs[0] - unet(latents, TIMES, given)).abs().max() > 0.01


@torch.inference_mode()
def test_the_outermost_block_adds_the_first_residual(unet: UNet) -> None:
    """On the deep features of the same step it equals the whole network."""
    latents, states = latents_and_states(5)
    residuals = random_residuals(unet, 2)
    rows = torch.tensor([1, 3])
    given = unet.given(states, torch.tensor([0, 0, 1, 2, 2]))
    whole, deep = unet.whole(latents, TIMES, replace(given, control=(Residuals(residuals, rows),)))
    first = replace(given, control=(Residuals(residuals[:1], rows),))
    torch.testing.assert_close(unet.outermost(latents, TIMES, deep, first), whole)
    assert (unet.outermost(latents, TIMES, deep, given) - whole).abs().max() > 0.01


@torch.inference_mode()
@pytest.mark.parametrize("attention_levels", [(0, 1, 2), (2,), ()], ids=str)
def test_features_change_their_own_rows_alone(attention_levels: tuple[int, ...]) -> None:
    """Also if they are added before the rows of one input have read their prompts."""
    torch.manual_seed(0)
    config = UNetConfig(
        channels=(NORM_GROUPS,) * 4, num_res_blocks=1, attention_levels=attention_levels, context_dim=16, num_heads=2
    )
    unet = UNet(config).eval()
    latents, states = torch.randn(2, 4, 8, 8), torch.randn(4, 5, 16)
    image_of_row = torch.tensor([0, 0, 1, 1])
    features = [torch.randn(2, NORM_GROUPS, side, side) for side in (8, 4, 2, 1)]
    plain = unet.given(states, image_of_row)
    output = unet(latents, TIMES[:2], replace(plain, features=(Residuals(features, torch.tensor([0, 3])),)))
    repeated = unet.given(states)
    all_rows = [
        torch.stack([each[0], torch.zeros_like(each[0]), torch.zeros_like(each[0]), each[1]]) for each in features
    ]
    expected = unet(latents[image_of_row], TIMES[image_of_row], replace(repeated, features=(Residuals(all_rows),)))
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    changed = (output - unet(latents, TIMES[:2], plain)).abs().amax(dim=(1, 2, 3)) > 1e-3
    assert changed.tolist() == [True, False, False, True]


@torch.inference_mode()
def test_a_hint_wraps_around_a_tiled_picture(network: ControlNet) -> None:
    hint = random_hint(64, 64)
    seamless = Given(padding=network.circular)
    moved = hint.roll((24, 40), dims=(2, 3))
    torch.testing.assert_close(
        network.embed(moved, seamless), network.embed(hint, seamless).roll((3, 5), dims=(2, 3)), rtol=1e-4, atol=1e-6
    )
    assert not torch.allclose(network.embed(moved), network.embed(hint).roll((3, 5), dims=(2, 3)), atol=1e-4)


@pytest.mark.parametrize("config", [UNetConfig(channels=(32, 64, 96), num_res_blocks=1, context_dim=16)])
def test_any_depth_and_width(config: UNetConfig) -> None:
    network = ControlNet(replace(TINY_CONTROLNET, unet=config))
    assert len(network.zero_convs) == len(network.input_blocks) == 6
    states = torch.randn(1, 5, 16)
    residuals = network(torch.randn(1, 4, 8, 8), TIMES[:1], network.embed(random_hint(64, 64)), network.given(states))
    assert [each.shape[1] for each in residuals] == [32, 32, 32, 64, 64, 96, 96]
