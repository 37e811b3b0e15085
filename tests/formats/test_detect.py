"""The architecture of a checkpoint, from its shapes and metadata."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sd_core.errors import ModelError
from sd_core.formats.check import Difference, compare, expected_shapes
from sd_core.formats.detect import Architecture, detect, require_supported
from sd_core.models.clip import CLIPConfig
from sd_core.models.unet import UNetConfig
from sd_core.models.vae import VAEConfig

Shapes = dict[str, tuple[int, ...]]

MANIFEST = Path(__file__).parents[1] / "data" / "v15_manifest.json"
V15 = Architecture(CLIPConfig(), UNetConfig(), VAEConfig())


def manifest() -> Shapes:
    return {name: tuple(shape) for name, shape in json.loads(MANIFEST.read_text()).items()}


def test_the_full_size_networks_have_exactly_the_public_checkpoints_tensors() -> None:
    assert len(manifest()) == 1_130
    assert compare(manifest(), expected_shapes(V15)) == Difference((), (), ())


def test_v15_is_detected_from_its_manifest() -> None:
    assert detect(manifest(), {}) == V15


widths = st.sampled_from([32, 64, 96])


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    context = draw(st.sampled_from([8, 40, 64, 128, 192]))
    channels = tuple(draw(st.lists(widths, min_size=1, max_size=4)))
    attending = draw(st.sets(st.integers(0, len(channels) - 1)))
    latent = draw(st.sampled_from([3, 4, 16]))
    return Architecture(
        text=CLIPConfig(
            vocab_size=draw(st.integers(3, 50)),
            max_length=draw(st.integers(2, 77)),
            width=context,
            layers=draw(st.integers(1, 12)),
            heads=max(1, context // 64),
            mlp_width=draw(st.integers(1, 64)),
        ),
        unet=UNetConfig(
            in_channels=draw(st.sampled_from([latent, 2 * latent + 1])),
            out_channels=latent,
            channels=channels,
            num_res_blocks=draw(st.integers(1, 3)),
            attention_levels=tuple(sorted(attending)),
            context_dim=context,
        ),
        vae=VAEConfig(
            in_channels=draw(st.sampled_from([1, 3])),
            z_channels=latent,
            channels=tuple(draw(st.lists(widths, min_size=1, max_size=4))),
            num_res_blocks=draw(st.integers(1, 3)),
        ),
    )


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(architecture=architectures(), seed=st.integers(0, 99))
def test_every_architecture_is_detected_from_its_shapes(architecture: Architecture, seed: int) -> None:
    names = list(expected_shapes(architecture).items())
    random.Random(seed).shuffle(names)
    assert detect(dict(names), {}) == architecture


def test_names_without_text_model_and_extras_change_nothing(tiny: Architecture) -> None:
    shapes: Shapes = {name.replace("text_model.", ""): shape for name, shape in expected_shapes(tiny).items()}
    shapes |= {"betas": (1000,), "cond_stage_model.transformer.embeddings.position_ids": (1, 77)}
    assert detect(shapes, {}) == tiny


def test_metadata_supplies_what_shapes_cannot_show(tiny: Architecture) -> None:
    metadata = {
        "sd_core.native_size": "128",
        "sd_core.num_heads": "4",
        "sd_core.text_heads": "2",
        "sd_core.prediction_type": "epsilon",
        "sd_core.scale_factor": "0.5",
        "format": "pt",
    }
    found = detect(expected_shapes(tiny), metadata)
    assert (found.native_size, found.unet.num_heads, found.text.heads) == (128, 4, 2)
    assert found.vae.scale_factor == 0.5


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"sd_core.native_size": "big"}, "native_size is 'big'"),
        ({"sd_core.native_size": "-8"}, "native_size is '-8'"),
        ({"sd_core.native_size": "100"}, "a multiple of 8"),
        ({"sd_core.native_size": "9000"}, "from 64 to 2048"),
        ({"sd_core.num_heads": "0"}, "num_heads is '0'"),
        ({"sd_core.num_heads": "٣"}, "num_heads is"),
        ({"sd_core.num_heads": "7"}, "does not divide into 7 heads"),
        ({"sd_core.text_heads": "5"}, "text encoder's width 32 does not divide into 5 heads"),
        ({"sd_core.scale_factor": "nan"}, "not a positive number"),
        ({"sd_core.scale_factor": "x"}, "not a positive number"),
        ({"sd_core.prediction_type": "sample"}, "prediction_type is 'sample'"),
    ],
)
def test_wrong_metadata_is_refused(tiny: Architecture, metadata: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        detect(expected_shapes(tiny), metadata)


UNET, TEXT, VAE = "model.diffusion_model.", "cond_stage_model.transformer.text_model.", "first_stage_model."

FOREIGN: dict[str, tuple[Shapes, str]] = {
    "kohya LoRA": ({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 64, 1, 1)}, "LoRA"),
    "peft LoRA": ({"unet.mid_block.attentions.0.to_q.lora_A.weight": (4, 64)}, "LoRA"),
    "diffusers LoRA": ({"unet.mid_block.to_q.lora.up.weight": (64, 4)}, "LoRA"),
    "LyCORIS": ({"lora_te_text_model_encoder_layers_0.hada_w1_a": (4, 64)}, "LoRA"),
    "embedding .pt": ({"string_to_param.*": (2, 768)}, "textual-inversion"),
    "embedding": ({"emb_params": (2, 768)}, "textual-inversion"),
    "embedding by token": ({"<cat-toy>": (768,)}, "textual-inversion"),
    "SDXL embedding": ({"clip_l": (2, 768), "clip_g": (2, 1280)}, "textual-inversion"),
    "ControlNet": ({"control_model.input_blocks.0.0.weight": (320, 4, 3, 3)}, "ControlNet"),
    "diffusers ControlNet": ({"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)}, "ControlNet"),
    "motion module": ({"down_blocks.0.motion_modules.0.proj_in.weight": (320, 320)}, "AnimateDiff"),
    "SD3": ({"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (1, 1)}, "Diffusion 3"),
    "Flux": ({"double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, "Flux"),
    "SDXL": ({"conditioner.embedders.0.transformer.x.weight": (1, 1)}, "Diffusion XL"),
    "SDXL UNet": ({"model.diffusion_model.label_emb.0.0.weight": (1280, 2816)}, "Diffusion XL"),
    "SD 2": ({"cond_stage_model.model.token_embedding.weight": (49408, 1024)}, r"Diffusion 2\.x"),
    "diffusers UNet": ({"down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3)}, "UNet in diffusers"),
    "diffusers VAE": ({"encoder.down_blocks.0.resnets.0.conv1.weight": (1, 1, 3, 3)}, "VAE in diffusers"),
    "VAE": ({"encoder.conv_in.weight": (128, 3, 3, 3)}, "a VAE alone"),
    "prefixed VAE": ({"first_stage_model.quant_conv.weight": (8, 8, 1, 1)}, "a VAE alone"),
    "text encoder": ({"text_model.embeddings.token_embedding.weight": (49408, 768)}, "a text encoder alone"),
    "IP-Adapter": (
        {"ip_adapter.1.to_k_ip.weight": (320, 768), "image_proj.proj.weight": (3072, 1024)},
        "an IP-Adapter",
    ),
    "IP-Adapter FaceID": ({"ip_adapter.0.to_q_lora.down.weight": (128, 320)}, "an IP-Adapter"),
    "old diffusers LoRA": ({"mid_block.attentions.0.to_q_lora.down.weight": (4, 320)}, "a LoRA"),
    "OFT": ({"oft_unet_mid_block_attentions_0_proj_in.oft_blocks": (4, 8, 8)}, "a LoRA"),
    "T2I-Adapter": ({"body.0.block1.weight": (320, 320, 3, 3)}, "a T2I-Adapter: put it into controlnet/"),
    "light T2I-Adapter": ({"body.0.body.0.block1.weight": (80, 80, 3, 3)}, "a T2I-Adapter"),
    "diffusers T2I-Adapter": ({"adapter.body.0.resnets.0.block1.weight": (320, 320, 3, 3)}, "a T2I-Adapter"),
    "old ESRGAN": ({"model.1.sub.0.RDB1.conv1.0.weight": (32, 64, 3, 3)}, "an upscaler"),
    "Real-ESRGAN": ({"params_ema.body.0.rdb1.conv1.weight": (32, 64, 3, 3)}, "put it into upscalers/"),
    "TAESD's decoder": ({"1.weight": (64, 4, 3, 3), "3.conv.0.weight": (64, 64, 3, 3)}, "a tiny autoencoder"),
    "AutoencoderTiny": ({"decoder.layers.0.weight": (64, 4, 3, 3)}, "a tiny autoencoder"),
    "control-LoRA": ({"lora_controlnet": (1,), "input_blocks.0.0.weight": (320, 4, 3, 3)}, "a ControlNet"),
    "ControlNet in a checkpoint": (
        {"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3), "control_model.out.0.bias": (1,)},
        "a ControlNet",
    ),
    "ControlLLLite": ({"lllite_unet_input_blocks_4_1_x.down.0.weight": (1, 1)}, "a ControlLLLite"),
    "hypernetwork": ({"768.0.linear.0.weight": (1536, 768)}, "a hypernetwork"),
    "CLIP": ({"vision_model.post_layernorm.weight": (1280,)}, "a CLIP image encoder"),
    "diffusers Flux": ({"single_transformer_blocks.0.attn.to_q.weight": (3072, 3072)}, "a Flux checkpoint"),
    "Stable Cascade": ({"clip_txt_pooled_mapper.weight": (8192, 1280)}, "a Stable Cascade checkpoint"),
    "PixArt": ({"t_block.1.weight": (6912, 1152)}, "a PixArt checkpoint"),
    "Wan": ({"blocks.0.cross_attn.norm_q.weight": (1536,)}, "a Wan checkpoint"),
    "Hunyuan DiT": ({"mlp_t5.0.weight": (8192, 2048)}, "a Hunyuan DiT checkpoint"),
    "SVD": ({"model.diffusion_model.input_blocks.1.0.time_stack.out_layers.3.bias": (320,)}, "Video Diffusion"),
    "diffusers SDXL UNet": ({"add_embedding.linear_1.weight": (1280, 2816)}, "Diffusion XL"),
    "T5": ({"encoder.block.0.layer.0.SelfAttention.q.weight": (4096, 4096)}, "a T5 text encoder"),
    "classifier": ({f"layer{n}.weight": (9, 9) for n in range(9)}, r"not recognized.*layer0\.weight.*and 6 more"),
    "nothing": ({}, "without tensors"),
}


@pytest.mark.parametrize(("shapes", "message"), FOREIGN.values(), ids=FOREIGN.keys())
def test_other_files_are_named(shapes: Shapes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        detect(shapes, {})


def test_a_wider_context_is_another_family(tiny: Architecture) -> None:
    for width, family in ((1024, r"2\.x"), (2048, "XL")):
        shapes = {
            name: (shape[0], width) if "attn2.to_k" in name else shape for name, shape in expected_shapes(tiny).items()
        }
        with pytest.raises(ModelError, match=family):
            detect(shapes, {})


@pytest.mark.parametrize(
    ("network", "message"),
    [(TEXT, "lacks the text encoder"), (VAE, "lacks the VAE.*--vae FILE")],
)
def test_a_missing_network_is_named(tiny: Architecture, network: str, message: str) -> None:
    shapes = {name: shape for name, shape in expected_shapes(tiny).items() if not name.startswith(network)}
    with pytest.raises(ModelError, match=message):
        detect(shapes, {})


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (UNET + "input_blocks.0.0.weight", None, "the UNet lacks .*input_blocks.0.0.weight"),
        (UNET + "input_blocks.0.0.weight", (32,), r"shape \[32\]"),
        (UNET + "input_blocks.1.0.out_layers.3.weight", (33, 32, 3, 3), "not a multiple of 32"),
        (UNET + "input_blocks.1.0.out_layers.3.weight", (2**40, 32, 3, 3), "which no v1.x network has"),
        (UNET + "input_blocks.1.0.out_layers.3.weight", (0, 32, 3, 3), "which no v1.x network has"),
        (UNET + "input_blocks.1.0.op.weight", (32, 32, 3, 3), "no residual blocks"),
        (UNET + "input_blocks.0.0.op.weight", (32, 32, 3, 3), "no residual blocks"),
        (TEXT + "embeddings.token_embedding.weight", (100, 40), "attends to hidden states of width 32"),
        (TEXT + "encoder.layers.0.mlp.fc1.weight", None, "the text encoder lacks"),
        (VAE + "post_quant_conv.weight", None, "the VAE lacks"),
        (VAE + "encoder.down.1.block.0.conv1.weight", None, "the VAE lacks"),
    ],
)
def test_tensors_that_determine_the_architecture_are_checked(
    tiny: Architecture, name: str, shape: tuple[int, ...] | None, message: str
) -> None:
    shapes = dict(expected_shapes(tiny))
    if shape is None:
        del shapes[name]
    else:
        shapes[name] = shape
    with pytest.raises(ModelError, match=message):
        detect(shapes, {})


@pytest.mark.slow
def test_a_missing_tensor_is_never_a_key_error(tiny: Architecture) -> None:
    """Whatever tensor is missing: the architecture is the same, or the difference is named."""
    whole = expected_shapes(tiny)
    for name in whole:
        shapes = {other: shape for other, shape in whole.items() if other != name}
        try:
            found = detect(shapes, {})
        except ModelError:
            continue
        assert found == tiny or compare(shapes, expected_shapes(found))


def test_very_long_module_lists_are_refused(tiny: Architecture) -> None:
    shapes = dict(expected_shapes(tiny))
    shapes |= {f"{TEXT}encoder.layers.{n}.layer_norm1.bias": (32,) for n in range(200)}
    with pytest.raises(ModelError, match="200 entries"):
        detect(shapes, {})


def test_a_vae_without_levels_is_named(tiny: Architecture) -> None:
    shapes = {name: shape for name, shape in expected_shapes(tiny).items() if "encoder.down." not in name}
    with pytest.raises(ModelError, match=r"encoder\.down\.0"):
        detect(shapes, {})


@pytest.mark.parametrize(
    ("channels", "message"), [(9, None), (8, None), (7, "is not supported"), (5, "is not supported"), (4, None)]
)
def test_only_unets_that_generate_inpaint_or_edit_are_supported(channels: int, message: str | None) -> None:
    architecture = Architecture(CLIPConfig(), UNetConfig(in_channels=channels), VAEConfig())
    if message is None:
        require_supported(architecture)
        return
    with pytest.raises(ModelError, match=message):
        require_supported(architecture)
