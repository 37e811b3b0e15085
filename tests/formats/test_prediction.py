"""What the UNet predicts, as checkpoint files declare it."""

import pytest

from sd_core.errors import ModelError
from sd_core.formats.check import expected_shapes
from sd_core.formats.detect import Architecture, detect, require_supported
from sd_core.formats.prediction import EPSILON, V_PREDICTION, declare, declared

KEYS = ("sd_core.prediction_type", "modelspec.prediction_type", "modelspec.predict_key")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("spellings", "expected"),
    [
        (("epsilon", "eps", "EPS", " Epsilon "), EPSILON),
        (("v", "V", "v_prediction", "v-prediction", "V Prediction", "vpred", "v-pred", "v_pred"), V_PREDICTION),
    ],
)
def test_metadata_declares_the_prediction_type(key: str, spellings: tuple[str, ...], expected: str) -> None:
    for text in spellings:
        assert declared([], {key: text}) == (expected, False)


@pytest.mark.parametrize(
    ("markers", "expected"),
    [
        ([], (EPSILON, False)),
        (["v_pred"], (V_PREDICTION, False)),
        (["v_pred", "ztsnr"], (V_PREDICTION, True)),
        (["ztsnr"], (EPSILON, True)),
        (["model.v_pred", "v_pred.weight", "x_ztsnr"], (EPSILON, False)),
    ],
)
def test_marker_tensors_declare_the_prediction_type(markers: list[str], expected: tuple[str, bool]) -> None:
    assert declared(["betas", *markers], {}) == expected


def test_declarations_that_agree_are_one() -> None:
    metadata = dict.fromkeys(KEYS, "v") | {"sd_core.zero_terminal_snr": "true"}
    assert declared(["v_pred", "ztsnr"], metadata) == (V_PREDICTION, True)
    assert declared([], {"modelspec.prediction_type": "", "modelspec.predict_key": "v"}) == (V_PREDICTION, False)


def test_metadata_overrules_the_marker_of_zero_terminal_snr() -> None:
    assert declared(["v_pred", "ztsnr"], {"sd_core.zero_terminal_snr": "false"}) == (V_PREDICTION, False)
    assert declared(["v_pred"], {"sd_core.zero_terminal_snr": "True"}) == (V_PREDICTION, True)


@pytest.mark.parametrize(
    ("names", "metadata", "messages"),
    [
        ([], {"modelspec.prediction_type": "sample"}, ["modelspec.prediction_type is 'sample'", "epsilon or v_pred"]),
        ([], {"modelspec.predict_key": "flow"}, ["modelspec.predict_key is 'flow'"]),
        ([], {"sd_core.prediction_type": "velocity"}, ["sd_core.prediction_type is 'velocity'"]),
        ([], {"sd_core.zero_terminal_snr": "yes"}, ["zero_terminal_snr is 'yes'"]),
        (
            ["v_pred"],
            {"modelspec.prediction_type": "epsilon"},
            ["prediction_type says epsilon", "marker tensor v_pred"],
        ),
        (
            [],
            {"modelspec.prediction_type": "v", "sd_core.prediction_type": "epsilon"},
            ["modelspec.prediction_type says v", "sd_core.prediction_type says epsilon", "--prediction-type"],
        ),
        (["edm_vpred.sigma_max", "edm_vpred.sigma_min"], {}, ["edm_vpred.sigma_min declares EDM"]),
    ],
)
def test_unknown_and_contradictory_declarations_are_refused(
    names: list[str], metadata: dict[str, str], messages: list[str]
) -> None:
    with pytest.raises(ModelError) as caught:
        declared(names, metadata)
    assert all(message in str(caught.value) for message in messages)


@pytest.mark.parametrize("prediction_type", [EPSILON, V_PREDICTION])
def test_a_declaration_replaces_all_others(prediction_type: str) -> None:
    markers = {"v_pred": (0,), "ztsnr": (0,), "edm_mean": (4,)}
    metadata = dict(zip(KEYS, ("sample", "v", "epsilon"), strict=True)) | {"other": "kept"}
    left, changed = declare(prediction_type, markers, metadata)
    assert declared(left, changed) == (prediction_type, prediction_type == V_PREDICTION)
    assert changed == {"sd_core.prediction_type": prediction_type, "other": "kept"}
    changed = declare(prediction_type, {}, {"sd_core.zero_terminal_snr": "true"})[1]
    assert declared([], changed) == (prediction_type, prediction_type == V_PREDICTION)


def test_the_architecture_has_what_the_file_declares(tiny: Architecture) -> None:
    shapes = expected_shapes(tiny)
    found = detect(shapes | {"v_pred": (0,), "ztsnr": (0,)}, {})
    assert (found.prediction_type, found.zero_terminal_snr) == ("v_prediction", True)
    require_supported(found)
    assert detect(shapes, {"modelspec.prediction_type": "epsilon"}) == tiny
    with pytest.raises(ModelError, match="'sample'"):
        detect(shapes, {"modelspec.prediction_type": "sample"})


def test_zero_terminal_snr_needs_v_prediction(tiny: Architecture) -> None:
    found = detect(expected_shapes(tiny) | {"ztsnr": (0,)}, {})
    with pytest.raises(ModelError, match=r"zero terminal SNR .* --prediction-type v_prediction"):
        require_supported(found)
