"""Files that cannot be used: one clear error each."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sd_core.adapters.apply import Adapter
from sd_core.errors import ModelError
from tests.support.adapter_files import drawn, lora_of

DIFFUSERS = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
KOHYA = f"lora_unet_{DIFFUSERS.replace('.', '_')}"
NORM = "lora_unet_conv_norm_out"
WIDTH, RANK = 64, 4
DOWN, UP = drawn(RANK, WIDTH), drawn(WIDTH, RANK)

Understood = Callable[..., Adapter]


def lora(**others: Tensor) -> dict[str, Tensor]:
    """A LoRA of one layer. `others` replace tensors or come beside them."""
    return lora_of(KOHYA, DOWN, UP, **others)


BAD: dict[str, tuple[dict[str, Tensor], str]] = {
    "ranks that differ": (lora(lora_up__weight=drawn(WIDTH, 3)), r"lora_down.weight of shape \[4, 64\] .*\[3, 64\]"),
    "another width": (lora(lora_up__weight=drawn(32, RANK)), r"lora_up.weight of shape \[32, 4\] .*\[64, 4\]"),
    "NaN": (lora(lora_up__weight=UP * math.nan), "lora_up.weight holds infinities or not-a-numbers"),
    "one infinity": (
        lora(lora_down__weight=DOWN.masked_fill(DOWN.max() == DOWN, math.inf)),
        "lora_down.weight holds inf",
    ),
    "an alpha that is not a number": (lora(alpha=torch.tensor(math.nan)), "alpha is nan"),
    "an alpha of several numbers": (
        lora(alpha=drawn(3)),
        r"alpha of torch.float32 and shape \[3\] is not a single number",
    ),
    "integers": (lora(lora_up__weight=UP.int()), "lora_up.weight holds torch.int32"),
    "a tensor without elements": (lora(lora_up__weight=torch.zeros(WIDTH, 0)), "has no elements"),
    "one half alone": ({f"{KOHYA}.lora_up.weight": UP}, r"lora_up.weight needs another tensor beside it \(down\)"),
    "nothing": ({}, "none of its 0 tensors"),
    "no name that fits": ({"lora_unet_x.lora_up.weight": UP, "y": UP}, "none of its 2 tensors fits .*lora_unet_x"),
    "a LoRA of a norm": (
        {"lora_unet_conv_norm_out.lora_up.weight": UP, "lora_unet_conv_norm_out.lora_down.weight": DOWN},
        "conv_norm_out.lora_up.weight is of the family LoRA, which does not fit its layer",
    ),
    "a change of norms for another layer": ({f"{KOHYA}.w_norm": drawn(WIDTH)}, "of the family norm"),
    "a core of another kernel": (
        {
            "lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight": drawn(RANK, 32),
            "lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight": drawn(32, RANK),
            "lora_unet_down_blocks_0_resnets_0_conv1.lora_mid.weight": drawn(RANK, RANK, 5, 5),
        },
        r"lora_mid.weight of shape \[4, 4, 5, 5\] does not fit a kernel of \[3, 3\]",
    ),
    "a magnitude of another width": (lora(dora_scale=drawn(32, 1)), r"dora_scale of shape \[32, 1\] does not fit"),
    "LoHa of another width": (
        {f"{KOHYA}.hada_{part}": drawn(RANK, WIDTH) for part in ("w1_a", "w1_b", "w2_a", "w2_b")},
        r"hada_w1_a of shape \[4, 64\] does not fit",
    ),
    "LoKr that does not divide": (
        {f"{KOHYA}.lokr_w1": drawn(5, 5), f"{KOHYA}.lokr_w2": drawn(12, 12)},
        "does not divide",
    ),
    "LoKr of another size": ({f"{KOHYA}.lokr_w1": drawn(4, 4), f"{KOHYA}.lokr_w2": drawn(12, 12)}, "lokr_w2 of shape"),
    "LoKr larger than the layer": ({f"{KOHYA}.lokr_w1": drawn(99, 99), f"{KOHYA}.lokr_w2": drawn(1, 1)}, "not divide"),
    "full of another size": ({f"{KOHYA}.diff": drawn(32, 64)}, r"diff of shape \[32, 64\] does not fit"),
    "GLoRA of other sizes": ({f"{KOHYA}.{part}.weight": drawn(4, 5) for part in ("a1", "a2", "b1", "b2")}, "a1"),
    "IA3 of another width": (
        {f"{KOHYA}.weight": drawn(5), f"{KOHYA}.on_input": torch.tensor(0)},
        r"weight of shape \[5\]",
    ),
    "OFT of another width": ({f"{KOHYA}.oft_blocks": drawn(5, 4, 4)}, r"oft_blocks of shape \[5, 4, 4\]"),
    "OFT of large numbers": ({f"{KOHYA}.oft_blocks": 3e38 * drawn(16, 4, 4).sign()}, "too large for a rotation"),
    "OFT of one dimension": ({f"{KOHYA}.oft_blocks": drawn(64)}, r"oft_blocks of shape \[64\]"),
    "BOFT of too many stages": ({f"{KOHYA}.oft_blocks": drawn(9, 16, 4, 4)}, r"oft_blocks of shape \[9, 16, 4, 4\]"),
    "OFT of blocks that are not square": ({f"{KOHYA}.oft_blocks": drawn(16, 4, 3)}, "oft_blocks of shape"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_cannot_be_used_is_one_error(case: str, understood: Understood) -> None:
    tensors, message = BAD[case]
    with pytest.raises(ModelError, match=message):
        understood(tensors)


def test_a_name_of_absurd_length_is_ignored(understood: Understood) -> None:
    long = "attn2.to_k." * 100_000 + "lora_down.weight"
    assert understood(lora() | {long: UP}).ignored == (long,)


PROMPT_KEYS = KOHYA.replace("attn1_to_q", "attn2_to_k")
OTHER_BASES: dict[str, tuple[dict[str, Tensor], dict[str, str], str]] = {
    "a second text encoder": (lora() | {"lora_te2_text_model_x.lora_up.weight": UP}, {}, "Stable Diffusion XL"),
    "prompts of SDXL": ({f"{PROMPT_KEYS}.lora_down.weight": drawn(4, 2048)}, {}, "Stable Diffusion XL"),
    "prompts of SD 2": ({f"{PROMPT_KEYS}.lora_down.weight": drawn(4, 1024)}, {}, r"Stable Diffusion 2\.x"),
    "prompts of SD 2 in PEFT's spelling": (
        {f"unet.{DIFFUSERS.replace('attn1.to_q', 'attn2.to_v')}.lora_A.weight": drawn(4, 1024)},
        {},
        r"Stable Diffusion 2\.x",
    ),
    "kohya's metadata of SDXL": (lora(), {"ss_base_model_version": "sdxl_base_v1-0"}, "Stable Diffusion XL"),
    "kohya's metadata of SD 2": (lora(), {"ss_base_model_version": "sd_v2_768_v"}, r"Stable Diffusion 2\.x"),
    "kohya's older metadata": (lora(), {"ss_v2": "True"}, r"Stable Diffusion 2\.x"),
    "model specification": (
        lora(),
        {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"},
        "Stable Diffusion XL",
    ),
    "Flux": ({"lora_unet_double_blocks_0_img_attn_proj.lora_up.weight": UP}, {}, "Flux"),
    "SD 3": ({"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": UP}, {}, "Stable Diffusion 3"),
}


@pytest.mark.parametrize("case", OTHER_BASES)
def test_an_adapter_of_another_family_is_refused_by_its_name(case: str, understood: Understood) -> None:
    tensors, metadata, base = OTHER_BASES[case]
    with pytest.raises(ModelError, match=f"it is an adapter for {base}, not for Stable Diffusion v1"):
        understood(tensors, metadata)


ENDINGS = (
    *("lora_down.weight", "lora_up.weight", "lora_mid.weight", "lora_A.weight", "lora_B.weight", "lora_B.bias"),
    *("alpha", "scale", "dora_scale", "lora_magnitude_vector", "diff", "diff_b", "w_norm", "b_norm"),
    *("weight", "on_input", "a1.weight", "a2.weight", "b1.weight", "b2.weight"),
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    *("oft_blocks", "oft_diag", "rescale"),
)
SIZES = (0, 1, 2, 3, 4, 16, 32, 64)
SHAPES = st.lists(st.sampled_from(SIZES), max_size=4).filter(lambda shape: math.prod(shape) < 2**16)
DTYPES = (torch.float32, torch.float16, torch.float8_e4m3fn, torch.int64, torch.bool, torch.complex64)


@given(
    layer=st.sampled_from([KOHYA, "lora_unet_conv_in", "lora_unet_down_blocks_0_downsamplers_0_conv", NORM]),
    parts=st.dictionaries(st.sampled_from(ENDINGS), st.tuples(SHAPES, st.sampled_from(DTYPES)), min_size=1, max_size=6),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_file_holds_is_an_adapter_or_one_error(
    layer: str, parts: dict[str, tuple[list[int], torch.dtype]], understood: Understood
) -> None:
    tensors = {f"{layer}.{part}": torch.ones(shape).to(dtype) for part, (shape, dtype) in parts.items()}
    try:
        adapter = understood(tensors)
    except ModelError:
        return
    assert adapter.unet
