"""What each name of AUTOMATIC1111's API means here: the table by which `worker.api.a1111` translates a body."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

FILL_MODES = ("fill", "original", "latent_noise", "latent_nothing")
RESIZE_MODES = ("stretch", "crop", "fill", "latent")
GENERATORS = {"cpu": "cpu", "nv": "nv", "gpu": "nv"}
SAME_AS_FIRST_PASS = ("Use same sampler", "Use same scheduler", "Use same checkpoint")


@dataclass(frozen=True)
class Rule:
    """What one of A1111's names means.

    `field` is this worker's, `hires.scale` one of a nested record; None: there is none. Null and the values of
    `nothing` ask for nothing, and so does any value if `ignored`, or if the name `beside` asks for nothing. `value`
    turns A1111's value into this worker's.
    """

    field: str | None = None
    nothing: tuple[Any, ...] = ()
    beside: str = ""
    ignored: bool = False
    value: Callable[[Any], Any] = lambda value: value


def _of(choices: tuple[str, ...]) -> Callable[[Any], Any]:
    """A1111's number of a choice -> its name."""
    return lambda value: choices[value] if _is_int(value) and 0 <= value < len(choices) else value


def _as_bool(value: Any) -> Any:
    return bool(value) if _is_int(value) and value in (0, 1) else value


def _area(value: Any) -> Any:
    return {True: "masked", False: "whole"}[value] if isinstance(value, bool) else value


def _generator(value: Any) -> Any:
    return GENERATORS.get(value.lower(), value) if isinstance(value, str) else value


def _format(value: Any) -> Any:
    return "jpeg" if value == "jpg" else value


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _rule_of_strength(fixed: Any) -> Any:
    return "exact" if fixed is True else fixed


IGNORED = Rule(ignored=True)
BLANK = ("", 0)  # beside null: what the second pass' names mean "as the first pass" by


def _hires(field: str, *nothing: Any) -> Rule:
    return Rule(f"hires.{field}", (*BLANK, *nothing), beside="enable_hr")


# Names that other tools' jobs have too: they alone do not make a body one of A1111's API.
SHARED: Mapping[str, Rule] = {
    "prompt": Rule("prompt"),
    "negative_prompt": Rule("negative_prompt"),
    "seed": Rule("seed"),
    "steps": Rule("steps"),
    "width": Rule("width"),
    "height": Rule("height"),
    "cfg_scale": Rule("scale"),
    "sampler_name": Rule("sampler", ("",)),
    "scheduler": Rule("schedule", ("",)),
    "batch_size": Rule("num_images"),
    "init_images": Rule("image", ([],)),
    "denoising_strength": Rule("strength"),
    "subseed": Rule("variation_seed", (-1,), beside="subseed_strength"),
    "subseed_strength": Rule("variation_strength", (0, -1)),
    "tiling": Rule("tiling", (False,)),
    "eta": Rule("eta"),
    "s_churn": Rule("s_churn", (0,)),
    "s_tmin": Rule("s_tmin", (0,)),
    "s_tmax": Rule("s_tmax", (0,)),  # A1111's 0 is infinity, which is the default
    "s_noise": Rule("s_noise", (1,)),
    "mask": Rule("mask", ("",)),
    "mask_blur": Rule("mask_blur", beside="mask"),
    "mask_blur_x": Rule("mask_blur_x", beside="mask"),
    "mask_blur_y": Rule("mask_blur_y", beside="mask"),
    "inpainting_fill": Rule("inpaint_fill", beside="mask", value=_of(FILL_MODES)),
    "inpaint_full_res": Rule("inpaint_area", beside="mask", value=_area),
    "inpaint_full_res_padding": Rule("inpaint_padding", beside="mask"),
    "inpainting_mask_invert": Rule("mask_invert", beside="mask", value=_as_bool),
    "resize_mode": Rule("resize_mode", (0, "stretch"), beside="init_images", value=_of(RESIZE_MODES)),
    "infotext": Rule("parameters", ("",)),
}
RULES: Mapping[str, Rule] = {
    **SHARED,
    "sampler_index": Rule("sampler", ("",)),
    "n_iter": Rule("num_images"),
    "seed_resize_from_h": Rule(None, (0, -1)),
    "seed_resize_from_w": Rule(None, (0, -1)),
    "mask_round": IGNORED,
    "image_cfg_scale": Rule("image_scale", beside="init_images"),
    "initial_noise_multiplier": Rule(None, (1,), beside="init_images"),
    "latent_mask": Rule(None, ("",)),
    "enable_hr": Rule("hires", (False,)),
    "hr_scale": _hires("scale"),
    "hr_resize_x": _hires("width"),
    "hr_resize_y": _hires("height"),
    "hr_upscaler": _hires("upscaler"),
    "hr_second_pass_steps": _hires("steps"),
    "hr_prompt": _hires("prompt"),
    "hr_negative_prompt": _hires("negative_prompt"),
    "hr_sampler_name": _hires("sampler", *SAME_AS_FIRST_PASS),
    "hr_scheduler": _hires("schedule", *SAME_AS_FIRST_PASS),
    "hr_cfg": _hires("cfg"),
    "hr_checkpoint_name": Rule(None, (*BLANK, *SAME_AS_FIRST_PASS), beside="enable_hr"),
    "hr_additional_modules": IGNORED,
    "firstphase_width": Rule(None, (0,)),
    "firstphase_height": Rule(None, (0,)),
    "firstpass_image": Rule(None, ("",)),
    "s_min_uncond": Rule(None, (0,)),
    "restore_faces": Rule(None, (False,)),
    "styles": Rule(None, ([],)),
    "refiner_checkpoint": Rule(None, ("", "None")),
    "refiner_switch_at": IGNORED,
    "disable_extra_networks": Rule(None, (False,)),
    "distilled_cfg_scale": IGNORED,
    "script_name": Rule(None, ("", "None")),
    "script_args": IGNORED,
    "comments": IGNORED,
    "force_task_id": IGNORED,
    "send_images": IGNORED,
    "save_images": IGNORED,
    "include_init_images": IGNORED,
    "do_not_save_samples": IGNORED,
    "do_not_save_grid": IGNORED,
    "override_settings_restore_afterwards": IGNORED,
}
SETTINGS: Mapping[str, Rule] = {
    "CLIP_stop_at_last_layers": Rule("clip_skip", (0,)),
    "sd_model_checkpoint": Rule("model", ("",)),
    "sd_vae": Rule("vae", ("", "Automatic", "None")),
    "eta_noise_seed_delta": Rule("eta_noise_seed_delta", (0,)),
    "randn_source": Rule("rng", value=_generator),
    "img2img_fix_steps": Rule("strength_steps", (False,), value=_rule_of_strength),
    "samples_format": Rule("output_format", value=_format),
    "jpeg_quality": Rule("output_quality"),
    "save_images_add_number": IGNORED,
}
