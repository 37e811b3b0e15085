import torch

from sd_core.models.clip import CLIPTextEncoder


def test_a_token_changes_its_own_and_later_states_only(text_encoder: CLIPTextEncoder) -> None:
    ids = torch.arange(77)[None] % text_encoder.config.vocab_size
    changed = ids.clone()
    changed[0, 40] = 500
    before, after = text_encoder(ids), text_encoder(changed)
    torch.testing.assert_close(before[:, :40], after[:, :40])
    differs = (before - after).abs().amax(dim=-1)[0]
    assert differs[40:].min() > 1e-3


def test_one_token_at_two_places_has_two_states(text_encoder: CLIPTextEncoder) -> None:
    states = text_encoder(torch.full((1, 2), 7))
    assert (states[0, 0] - states[0, 1]).abs().max() > 1e-2


def test_states_have_the_dtype_of_the_weights(text_encoder: CLIPTextEncoder) -> None:
    states = text_encoder.to(torch.bfloat16)(torch.zeros(1, 77, dtype=torch.long))
    assert states.dtype == text_encoder.dtype == torch.bfloat16
    assert states.shape == (1, 77, text_encoder.config.width)
