from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sd_core.models.given import Adapter, Given
from sd_core.models.unet import UNet, UNetConfig
from tests.support.random_weights import TINY

CONTEXT = TINY.unet.context_dim

ADAPTED = torch.nn.Linear | torch.nn.Conv2d | torch.nn.GroupNorm | torch.nn.LayerNorm


def predict(unet: UNet, latents: Tensor, timesteps: Tensor, states: Tensor, rows: Tensor | None = None) -> Tensor:
    output: Tensor = unet(latents, timesteps, unet.given(states, rows))
    return output


@pytest.mark.parametrize("height", [8, 9, 15])
@pytest.mark.parametrize("width", [1, 12, 17])
def test_the_output_has_the_size_of_the_input(unet: UNet, height: int, width: int) -> None:
    output = predict(unet, torch.randn(1, 4, height, width), torch.tensor([500.0]), torch.randn(1, 77, CONTEXT))
    assert output.shape == (1, 4, height, width)
    assert output.isfinite().all()


def test_rows_do_not_affect_each_other(unet: UNet) -> None:
    """A row alone equals the same row beside others that are at other timesteps with other prompts."""
    latents, states = torch.randn(3, 4, 8, 8), torch.randn(3, 77, CONTEXT)
    timesteps = torch.tensor([999.0, 421.37, 0.0])
    together = predict(unet, latents, timesteps, states)
    for row in range(3):
        alone = predict(unet, latents[row : row + 1], timesteps[row : row + 1], states[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("argument", ["latents", "timesteps", "states"])
def test_the_output_depends_on_every_argument(unet: UNet, argument: str) -> None:
    arguments = {
        "latents": torch.randn(1, 4, 8, 8),
        "timesteps": torch.tensor([500.0]),
        "states": torch.randn(1, 77, CONTEXT),
    }
    other = {**arguments, argument: arguments[argument] + 1}
    assert (predict(unet, **arguments) - predict(unet, **other)).abs().max() > 0.01


def test_half_precision_weights_keep_float32_latents_and_timesteps(unet: UNet) -> None:
    """In bfloat16, 999 would be rounded to 1000."""
    unet.to(torch.bfloat16)
    latents, states = torch.randn(1, 4, 8, 8), torch.randn(1, 77, CONTEXT)
    near, far = (predict(unet, latents, torch.tensor([timestep]), states) for timestep in (999.0, 1000.0))
    assert near.dtype == torch.float32
    assert not torch.equal(near, far)


def test_half_precision_is_near_full_precision(unet: UNet) -> None:
    arguments = torch.randn(2, 4, 8, 8), torch.tensor([999.0, 17.0]), torch.randn(2, 77, CONTEXT)
    full = predict(unet, *arguments)
    error = predict(unet.to(torch.bfloat16), *arguments) - full
    assert 0 < error.std() < 0.1 * full.std()


def test_arguments_are_not_changed(unet: UNet) -> None:
    arguments = torch.randn(1, 4, 8, 8), torch.tensor([500.0]), torch.randn(1, 77, CONTEXT)
    copies = [argument.clone() for argument in arguments]
    predict(unet, *arguments)
    assert all(torch.equal(argument, copy) for argument, copy in zip(arguments, copies, strict=True))


@pytest.mark.parametrize("rows", [[0, 0, 1, 2, 2], [2, 0, 1], [1, 1, 1], [0]], ids=str)
def test_rows_of_one_input_share_what_comes_before_their_prompts(unet: UNet, rows: list[int]) -> None:
    """Whatever the order and number of rows; compared with one input per row."""
    image_of_row = torch.tensor(rows)
    latents, states = torch.randn(3, 4, 9, 7), torch.randn(len(rows), 77, CONTEXT)
    timesteps = torch.tensor([999.0, 421.37, 3.0])
    shared = predict(unet, latents, timesteps, states, image_of_row)
    repeated = predict(unet, latents[image_of_row], timesteps[image_of_row], states)
    torch.testing.assert_close(shared, repeated, rtol=1e-4, atol=1e-4)


def test_keys_and_values_of_prompts_serve_every_step(unet: UNet) -> None:
    states = torch.randn(2, 77, CONTEXT)
    given = unet.given(states)
    for timestep in (900.0, 20.0):
        latents, timesteps = torch.randn(2, 4, 8, 8), torch.full((2,), timestep)
        assert torch.equal(unet(latents, timesteps, given), predict(unet, latents, timesteps, states))


def test_each_attention_finds_its_keys_and_values_by_its_name(unet: UNet) -> None:
    """Their order does not matter, but exchanging those of two layers changes the output."""
    latents, timesteps, states = torch.randn(1, 4, 8, 8), torch.tensor([500.0]), torch.randn(1, 77, CONTEXT)
    given = unet.given(states)
    names = list(given.keys_values)
    assert all(name.endswith("attn2") for name in names)
    expected = unet(latents, timesteps, given)
    backwards = Given({name: given.keys_values[name] for name in reversed(names)})
    assert torch.equal(unet(latents, timesteps, backwards), expected)
    by_shape: dict[torch.Size, list[str]] = {}
    for name in names:
        by_shape.setdefault(given.keys_values[name][0].shape, []).append(name)
    first, second = next(found for found in by_shape.values() if len(found) > 1)[:2]
    read = dict(given.keys_values)
    read[first], read[second] = read[second], read[first]
    assert not torch.allclose(unet(latents, timesteps, Given(read)), expected)


@pytest.mark.slow
def test_every_layer_finds_its_adapter_by_its_name(unet: UNet) -> None:
    """An adapter that adds what a changed weight would add, on each layer in turn."""
    latents, timesteps, states = torch.randn(2, 4, 8, 8), torch.tensor([500.0, 3.0]), torch.randn(2, 77, CONTEXT)
    plain = unet.given(states)
    seen: list[str] = []
    for name, layer in unet.named_modules():
        if not isinstance(layer, ADAPTED):
            continue

        def note(_x: Tensor, out: Tensor, *_: object, name: str = name) -> Tensor:
            seen.append(name)
            return out

        if name.endswith(("attn2.to_k", "attn2.to_v")):
            unet.read(states, Given(adapters={name: note}))
        else:
            unet(latents, timesteps, Given(plain.keys_values, adapters={name: note}))
        assert seen[-1:] == [name], name
    assert len(seen) == len(set(seen))


def test_layers_get_the_adapters_of_inputs_until_there_is_one_entry_per_row(unet: UNet) -> None:
    """Each layer gets the ones that were made for as many entries as its input has, whichever layer expands."""
    latents, timesteps, states = torch.randn(2, 4, 8, 8), torch.tensor([500.0, 3.0]), torch.randn(3, 77, CONTEXT)
    counts: dict[str, list[int]] = {"input": [], "row": []}

    def counting(name: str) -> Adapter:
        def count(x: Tensor, out: Tensor, *_: object) -> Tensor:
            counts[name].append(len(x))
            return out

        return count

    layers = [name for name, layer in unet.named_modules() if isinstance(layer, ADAPTED)]
    of_inputs, of_rows = (dict.fromkeys(layers, counting(name)) for name in counts)
    given = replace(unet.given(states, torch.tensor([0, 1, 1])), adapters=of_inputs, row_adapters=of_rows)
    for identity in ({}, {unet.middle_attention: torch.tensor([2])}):
        _, deep = unet.whole(latents, timesteps, replace(given, identity=identity))
        unet.outermost(latents, timesteps, deep, given)
    assert set(counts["input"]) == {2}
    assert set(counts["row"]) == {3}


def test_every_wide_convolution_finds_its_padding_by_its_name(unet: UNet) -> None:
    """With circular padding everywhere, rolling the latents rolls the output: it has no border."""
    latents, timesteps, states = torch.randn(1, 4, 16, 16), torch.tensor([500.0]), torch.randn(1, 77, CONTEXT)
    plain = unet.given(states)
    expected = unet(latents, timesteps, plain)
    convolutions = {name: layer for name, layer in unet.named_modules() if isinstance(layer, torch.nn.Conv2d)}
    wide = [name for name, layer in convolutions.items() if layer.padding != (0, 0)]
    for name in wide:
        given = Given(plain.keys_values, padding={name: "circular"})
        assert not torch.allclose(unet(latents, timesteps, given), expected)
    everywhere = Given(plain.keys_values, padding=dict.fromkeys(wide, "circular"))
    rolled = unet(latents.roll(8, 3), timesteps, everywhere)
    torch.testing.assert_close(rolled, unet(latents, timesteps, everywhere).roll(8, 3), rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_the_outermost_block_on_kept_features(unet: UNet) -> None:
    """With the features of the same step it is the whole network; at another step, its formula written out."""
    image_of_row = torch.tensor([1, 0, 0])
    latents, later = torch.randn(2, 2, 4, 9, 8).unbind()
    times, states = torch.tensor([900.0, 300.0]), torch.randn(3, 77, CONTEXT)
    given = unet.given(states, image_of_row)
    output, deep = unet.whole(latents, times, given)
    assert torch.equal(output, unet(latents, times, given)) and deep.shape == (3, 32, 9, 8)
    torch.testing.assert_close(unet.outermost(latents, times, deep, given), output, rtol=1e-4, atol=1e-5)

    kept: dict[str, Tensor] = {}
    unet.output_blocks[-1].register_forward_pre_hook(lambda _, inputs: kept.__setitem__("joined", inputs[0]))
    shallow = unet.outermost(later, times - 40, deep, given)
    assert torch.equal(kept["joined"][:, :32], deep)
    torch.testing.assert_close(kept["joined"][:, 32:], unet.get_submodule("input_blocks.0.0")(later)[image_of_row])
    whole = unet(later, times - 40, given)
    assert torch.equal(kept["joined"][:, 32:], unet.get_submodule("input_blocks.0.0")(later)[image_of_row])
    assert not torch.allclose(shallow, whole, atol=1e-3), "the deep features are those of the earlier step"


def test_the_perturbed_attention_may_be_the_first_that_rows_reach(tiny_weights: dict[str, Tensor]) -> None:
    """In a network with attention in the middle block alone, rows of one input differ before their prompts."""
    torch.manual_seed(0)
    unet = UNet(UNetConfig(channels=(32, 64), num_res_blocks=1, attention_levels=(), context_dim=16, num_heads=2))
    unet.requires_grad_(False).eval()
    latents, times, states = torch.randn(1, 4, 8, 8), torch.tensor([500.0]), torch.randn(2, 5, 16)
    states[1] = states[0]
    plain = unet.given(states, torch.tensor([0, 0]))
    identity = {unet.middle_attention: torch.tensor([1])}
    own, perturbed = unet(latents, times, replace(plain, identity=identity))
    first, second = unet(latents, times, plain)
    torch.testing.assert_close(own, first)
    assert (perturbed - second).abs().max() > 1e-4
    assert unet.finest_attentions == []
