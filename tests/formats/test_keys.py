"""The tensor names of a checkpoint."""

import pytest

from sd_core.errors import ModelError
from sd_core.formats.keys import canonical, canonical_names, ema_name, is_extra, is_weight, show, vae_names

UNET = "model.diffusion_model.input_blocks.1.0.in_layers.0.weight"


@pytest.mark.parametrize(
    "name",
    [
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "lvlb_weights",
        "logvar",
        "scale_factor",
        "model_ema.decay",
        "model_ema.num_updates",
        "model_ema.diffusion_modelinput_blocks00weight",
        "loss.logvar",
        "first_stage_model.loss.discriminator.main.0.weight",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
        "cond_stage_model.transformer.embeddings.position_ids",
        "cond_stage_model.transformer.text_projection.weight",
        "v_pred",
        "ztsnr",
    ],
)
def test_leftovers_of_training_are_extras(name: str) -> None:
    assert is_extra(name)
    assert not is_weight(name)


@pytest.mark.parametrize(
    "name",
    [
        UNET,
        "first_stage_model.quant_conv.bias",
        "betas.weight",
        "model.diffusion_model.betas",
        "alphas_cumprod\n",
        "ztsnr2",
    ],
)
def test_possible_weights_are_not_extras(name: str) -> None:
    assert not is_extra(name)


def test_both_spellings_of_the_text_encoder_become_one() -> None:
    old = "cond_stage_model.transformer.encoder.layers.0.mlp.fc1.weight"
    new = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    assert canonical(old) == canonical(new) == new
    assert canonical_names([old, UNET, "betas"]) == {new: old, UNET: UNET}
    with pytest.raises(ModelError, match="two names"):
        canonical_names([old, new])


def test_ema_names_have_no_dots() -> None:
    assert ema_name(UNET) == "model_ema.diffusion_modelinput_blocks10in_layers0weight"


def test_a_vae_is_found_alone_or_in_a_checkpoint() -> None:
    prefixed = "first_stage_model.encoder.conv_in.weight"
    assert vae_names(["encoder.conv_in.weight", "loss.logvar"]) == {prefixed: "encoder.conv_in.weight"}
    assert vae_names([prefixed, UNET, "first_stage_model.loss.logvar"]) == {prefixed: prefixed}


def test_names_are_shown_on_one_short_line() -> None:
    assert show("a\nb\x1b[31m") == r"a\nb\x1b[31m"
    assert len(show("x" * 1_000)) < 130
