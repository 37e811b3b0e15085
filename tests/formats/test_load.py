"""Safetensors file -> networks."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sd_core.errors import ModelError
from sd_core.formats.check import expected_shapes, networks_shapes
from sd_core.formats.detect import Architecture
from sd_core.formats.load import Networks, load_networks
from sd_core.layout import onednn
from sd_core.layout.choose import lay_out
from sd_core.models.clip import CLIPConfig
from sd_core.models.unet import UNetConfig
from sd_core.models.vae import VAEConfig

CPU = torch.device("cpu")
TEXT, UNET, VAE = "cond_stage_model.transformer.", "model.diffusion_model.", "first_stage_model."
TOKENS = TEXT + "text_model.embeddings.token_embedding.weight"

Save = Callable[..., Path]
State = dict[str, Tensor]


def loaded(networks: Networks) -> State:
    parts = ((TEXT, networks.text_encoder), (UNET, networks.unet), (VAE, networks.vae))
    return {prefix + name: tensor for prefix, part in parts for name, tensor in part.state_dict().items()}


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("running", [torch.float32, torch.float16, torch.bfloat16])
def test_every_weight_arrives_in_the_running_dtype(
    tiny: Architecture, state: State, saved: Save, stored: torch.dtype, running: torch.dtype
) -> None:
    path = saved({name: tensor.to(stored) for name, tensor in state.items()}, {"note": "x"})
    networks = load_networks(path, CPU, running)
    assert networks.architecture == tiny
    assert networks.metadata == {"note": "x"}
    found = loaded(networks)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].dtype == running
        assert torch.equal(found[name], tensor.to(stored).to(running))
    for module in (networks.text_encoder, networks.unet, networks.vae):
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert all(parameter.device == CPU for parameter in module.parameters())


@pytest.mark.parametrize("packs", [True, False])
def test_weights_that_their_layers_cast_stay_as_stored(
    state: State, saved: Save, monkeypatch: pytest.MonkeyPatch, packs: bool
) -> None:
    monkeypatch.setattr(onednn, "packs", lambda _dtype: packs)
    networks = load_networks(
        saved({name: tensor.half() for name, tensor in state.items()}), CPU, torch.float32, packed=True
    )
    found = loaded(networks)
    kinds = (nn.Linear, nn.Conv2d) if packs else (nn.Conv2d,)
    layers = {
        prefix + name + ".weight"
        for prefix, network in ((TEXT, networks.text_encoder), (UNET, networks.unet), (VAE, networks.vae))
        for name, layer in network.named_modules()
        if isinstance(layer, kinds)
    }
    kept = {name for name, tensor in found.items() if tensor.dtype == torch.float16}
    assert kept == layers
    assert {tensor.dtype for name, tensor in found.items() if name not in kept} == {torch.float32}
    for network in (networks.text_encoder, networks.unet, networks.vae):
        assert network.dtype == torch.float32


@pytest.mark.parametrize("running", [torch.float32, torch.bfloat16])
def test_networks_compute_the_same_whenever_their_weights_are_cast(
    state: State, saved: Save, running: torch.dtype
) -> None:
    path = saved({name: tensor.half() for name, tensor in state.items()})
    at_once, at_use = (load_networks(path, CPU, running, packed=packed) for packed in (False, True))
    for network in (at_once.text_encoder, at_once.unet, at_once.vae):
        lay_out(network, CPU, running)
    answers = []
    for networks in (at_once, at_use):
        torch.manual_seed(0)
        context = networks.text_encoder(torch.arange(77)[None])
        eps = networks.unet(torch.randn(1, 4, 8, 8), torch.tensor([500.0]), networks.unet.given(context))
        answers.append((context, eps, networks.vae.decode(eps)))
    for first, second in zip(*answers, strict=True):
        assert torch.equal(first, second)


def test_loaded_networks_run(state: State, saved: Save) -> None:
    networks = load_networks(saved(state), CPU, torch.float32)
    context = networks.text_encoder(torch.zeros(1, 77, dtype=torch.int64))
    eps = networks.unet(torch.zeros(1, 4, 8, 8), torch.tensor([500.0]), networks.unet.given(context))
    assert eps.shape == (1, 4, 8, 8)
    assert networks.vae.decode(torch.zeros(1, 4, 2, 2)).shape == (1, 3, 16, 16)


def test_old_spellings_extras_and_mixed_dtypes_load(state: State, saved: Save) -> None:
    mixed = {
        name.replace("text_model.", ""): tensor.half() if "attn" in name else tensor for name, tensor in state.items()
    }
    mixed["alphas_cumprod"] = torch.zeros(1000)
    mixed["cond_stage_model.transformer.embeddings.position_ids"] = torch.arange(77)[None]
    networks = load_networks(saved(mixed), CPU, torch.float32)
    found = loaded(networks)
    assert all(
        torch.equal(found[name], tensor.half().float() if "attn" in name else tensor) for name, tensor in state.items()
    )


def test_weights_may_be_changed_without_changing_the_file(state: State, saved: Save) -> None:
    path = saved(state)
    before = path.read_bytes()
    networks = load_networks(path, CPU, torch.float32)
    networks.unet.out[2].bias.zero_()
    assert path.read_bytes() == before


def test_unaligned_files_of_old_writers_load(state: State, saved: Save) -> None:
    path = saved(state)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip() + b" "
    header += b" " * (1 - len(header) % 2)  # an odd length puts every tensor between element boundaries
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    assert len(header) % 2
    found = loaded(load_networks(path, CPU, torch.float32))
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor)
        assert found[name].data_ptr() % 4 == 0


CHANGES: dict[str, tuple[Callable[[State], object], str]] = {
    "a missing tensor": (lambda s: s.pop(UNET + "out.0.bias"), r"1 missing \(model\.diffusion_model\.out\.0\.bias\)"),
    "many missing": (
        lambda s: [s.pop(name) for name in [*s] if name.startswith(VAE + "decoder")],
        r"\d\d missing \(first_stage_model\.decoder.* and \d+ more\)",
    ),
    "an unknown tensor in a network": (
        lambda s: s.update({UNET + "extra.weight": torch.zeros(1)}),
        r"1 unexpected \(model\.diffusion_model\.extra\.weight\)",
    ),
    "another shape": (
        lambda s: s.update({UNET + "out.0.bias": torch.zeros(7)}),
        r"1 of another shape \(model\.diffusion_model\.out\.0\.bias is \[7\], not \[32\]\)",
    ),
    "whole numbers": (
        lambda s: s.update({UNET + "out.0.bias": torch.zeros(32, dtype=torch.int32)}),
        "holds torch.int32, not floating-point",
    ),
    "a depth-to-image checkpoint": (
        lambda s: s.update({UNET + "input_blocks.0.0.weight": torch.zeros(32, 5, 3, 3)}),
        "the UNet takes 5 channels and returns 4",
    ),
    "one tensor under two names": (
        lambda s: s.update({TOKENS.replace("text_model.", ""): torch.zeros(1)}),
        "two names",
    ),
    "an SDXL tensor": (
        lambda s: s.update({"conditioner.embedders.0.x": torch.zeros(1)}),
        "Stable Diffusion XL",
    ),
}


@pytest.mark.parametrize("channels", [9, 8], ids=["inpainting", "instruct-pix2pix"])
def test_checkpoints_for_images_are_known_by_their_shape(state: State, saved: Save, channels: int) -> None:
    path = saved({**state, UNET + "input_blocks.0.0.weight": torch.zeros(32, channels, 3, 3)})
    assert load_networks(path, CPU, torch.float32).unet.config.in_channels == channels


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_a_file_of_other_tensors_is_refused(
    state: State, saved: Save, change: Callable[[State], object], message: str
) -> None:
    changed = dict(state)
    change(changed)
    path = saved(changed)
    with pytest.raises(ModelError, match=message) as caught:
        load_networks(path, CPU, torch.float32)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_buffers_of_any_dtype_beside_the_weights_do_not_matter(state: State, saved: Save) -> None:
    ids = torch.arange(77)[None].to(torch.uint16)
    load_networks(saved(state | {"cond_stage_model.transformer.embeddings.position_ids": ids}), CPU, torch.float32)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_networks_of_eight_bit_floats_run(state: State, saved: Save, dtype: torch.dtype, packed: bool) -> None:
    path = saved({name: tensor.to(dtype) if tensor.ndim > 1 else tensor for name, tensor in state.items()})
    networks = load_networks(path, CPU, torch.float32, packed=packed)
    context = networks.text_encoder(torch.zeros(1, 77, dtype=torch.int64))
    eps = networks.unet(torch.ones(1, 4, 8, 8), torch.tensor([500.0]), networks.unet.given(context))
    assert eps.dtype == torch.float32 and eps.isfinite().all()


def test_a_declared_prediction_type_is_loaded(state: State, saved: Save) -> None:
    markers = {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    found = load_networks(saved(state | markers), CPU, torch.float32).architecture
    assert (found.prediction_type, found.zero_terminal_snr) == ("v_prediction", True)
    with pytest.raises(ModelError, match="prediction_type is 'sample'"):
        load_networks(saved(state, {"modelspec.prediction_type": "sample"}), CPU, torch.float32)


MEASURE = """
import resource, sys
from pathlib import Path
import torch
from sd_core.formats.load import load_networks
path, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
torch.zeros(8).to(torch.float16)  # torch's own setup
def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
before = status("VmRSS")
networks = load_networks(path, torch.device("cpu"), dtype)
parameters = [p for n in (networks.text_encoder, networks.unet, networks.vae) for p in n.parameters()]
sum(float(p.flatten()[::1024].sum()) for p in parameters)  # touches every page
print(status("VmRSS") - before, status("VmHWM") - before, sum(p.nbytes for p in parameters), "sympy" in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    ("stored", "running"), [("float16", "float16"), ("float16", "float32"), ("float32", "float16")]
)
def test_memory_is_little_more_than_the_weights(tmp_path: Path, stored: str, running: str) -> None:
    """A checkpoint of 110 million parameters, in a process of its own, after all its weights were used."""
    architecture = Architecture(
        text=CLIPConfig(vocab_size=60_000, width=768, layers=2, mlp_width=768),
        unet=UNetConfig(channels=(32, 640), num_res_blocks=1, attention_levels=(1,)),
        vae=VAEConfig(channels=(32, 256), num_res_blocks=1),
    )
    dtype = getattr(torch, stored)
    path = tmp_path / "model.safetensors"
    save_file({name: torch.zeros(shape, dtype=dtype) for name, shape in expected_shapes(architecture).items()}, path)
    command = [sys.executable, "-c", MEASURE, str(path), running]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    resident, peak, weights = map(int, output.split()[:3])
    assert weights > 150e6
    assert resident < 1.15 * weights
    # The largest tensor is a quarter of this small checkpoint; of v1.5 it is a twentieth.
    largest = 60_000 * 768 * dtype.itemsize
    assert peak < 1.15 * weights + largest
    # Building on the meta device must not import torch's compiler: over a second, and 70 MB.
    assert output.split()[3] == "False"


def test_shapes_of_networks_and_of_architectures_agree(tiny: Architecture, state: State, saved: Save) -> None:
    networks = load_networks(saved(state), CPU, torch.float32)
    found = networks_shapes({TEXT: networks.text_encoder, UNET: networks.unet, VAE: networks.vae})
    assert found == expected_shapes(tiny)
