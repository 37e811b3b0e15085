"""The prediction type of a source: conversions keep it as metadata, or replace it by choice."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from builder.convert import convert
from sd_core.errors import ModelError
from sd_core.formats.load import load_networks
from tests.support.outcome import Save, State, identity, metadata_of, same

V_PREDICTION = {"sd_core.prediction_type": "v_prediction", "sd_core.zero_terminal_snr": "false"}
DECLARED: dict[str, tuple[State, dict[str, str], dict[str, str]]] = {
    "nothing": ({}, {}, {"sd_core.prediction_type": "epsilon", "sd_core.zero_terminal_snr": "false"}),
    "v": ({}, {"modelspec.prediction_type": "v"}, V_PREDICTION),
    "v_prediction": ({}, {"modelspec.prediction_type": "v_prediction"}, V_PREDICTION),
    "ComfyUI's key": ({}, {"modelspec.predict_key": "v"}, V_PREDICTION),
    "an earlier conversion": (
        {},
        V_PREDICTION | {"sd_core.zero_terminal_snr": "true"},
        {"sd_core.zero_terminal_snr": "true"},
    ),
    "marker": ({"v_pred": torch.tensor([])}, {}, V_PREDICTION),
    "both markers": (
        {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])},
        {},
        V_PREDICTION | {"sd_core.zero_terminal_snr": "true"},
    ),
}


@pytest.mark.parametrize(("markers", "metadata", "expected"), DECLARED.values(), ids=DECLARED.keys())
def test_the_prediction_type_is_kept_in_the_metadata(
    tmp_path: Path,
    destination: Path,
    state: State,
    markers: State,
    metadata: dict[str, str],
    expected: dict[str, str],
) -> None:
    source = tmp_path / "model.safetensors"
    save_file(state | markers, source, metadata)
    convert(source, destination)
    assert same(load_file(destination), state)
    assert metadata_of(destination).items() >= expected.items()
    found = load_networks(destination, torch.device("cpu"), torch.float32).architecture
    assert found.prediction_type == metadata_of(destination)["sd_core.prediction_type"]
    assert found.zero_terminal_snr == (metadata_of(destination)["sd_core.zero_terminal_snr"] == "true")


@pytest.mark.parametrize("nested", [True, False])
def test_markers_of_a_pickle_are_kept(save: Save, state: State, destination: Path, nested: bool) -> None:
    markers = {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    source = save(state | markers)
    if not nested:
        torch.save({"state_dict": state} | markers, source)
    convert(source, destination)
    assert metadata_of(destination).items() >= (V_PREDICTION | {"sd_core.zero_terminal_snr": "true"}).items()


def test_a_prediction_type_by_choice_replaces_the_declared_one(save: Save, state: State, destination: Path) -> None:
    marked = save(state | {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}, "marked.ckpt")
    convert(marked, destination, prediction_type="epsilon")
    found = load_networks(destination, torch.device("cpu"), torch.float32).architecture
    assert (found.prediction_type, found.zero_terminal_snr) == ("epsilon", False)
    before = identity(destination)
    with pytest.raises(ModelError, match="other options; --force replaces it"):
        convert(marked, destination)
    convert(marked, destination, prediction_type="epsilon")
    assert identity(destination) == before
    convert(save(state), destination, prediction_type="v_prediction", force=True)
    assert metadata_of(destination).items() >= V_PREDICTION.items()
    with pytest.raises(ModelError, match="'flow' is not one of epsilon, v_prediction"):
        convert(marked, destination, prediction_type="flow")


def test_a_declaration_that_is_refused_can_be_replaced(tmp_path: Path, state: State, destination: Path) -> None:
    source = tmp_path / "model.safetensors"
    for markers, metadata, message in (
        ({}, {"modelspec.prediction_type": "sample"}, "prediction_type is 'sample'"),
        ({"v_pred": torch.tensor([])}, {"modelspec.prediction_type": "epsilon"}, "contradicts itself"),
    ):
        save_file(state | markers, source, metadata)
        with pytest.raises(ModelError, match=rf"{message}.*--prediction-type"):
            convert(source, destination)
        convert(source, destination, prediction_type="v_prediction", force=True)
        assert metadata_of(destination).items() >= V_PREDICTION.items()


def test_a_conversion_by_an_older_builder_is_kept(save: Save, state: State, destination: Path) -> None:
    source = save(state)
    metadata = metadata_of(convert(source, destination))
    old = {key: text for key, text in metadata.items() if key not in V_PREDICTION}
    assert len(old) == len(metadata) - 2
    save_file(load_file(destination), destination, old)
    before = identity(destination)
    convert(source, destination)
    assert identity(destination) == before


def test_the_yaml_of_a_source_is_kept_in_the_metadata(save: Save, state: State, destination: Path) -> None:
    source = save(state)
    source.with_suffix(".yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    convert(source, destination)
    assert metadata_of(destination)["sd_core.prediction_type"] == "v_prediction"
