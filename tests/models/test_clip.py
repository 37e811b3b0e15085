import torch

from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.given import NOTHING, Given


def test_a_token_changes_its_own_and_later_states_only(text_encoder: CLIPTextEncoder) -> None:
    ids = torch.arange(77)[None] % text_encoder.config.vocab_size
    changed = ids.clone()
    changed[0, 40] = 500
    before, after = text_encoder(ids), text_encoder(changed)
    torch.testing.assert_close(before[:, :40], after[:, :40])
    differs = (before - after).abs().amax(dim=-1)[0]
    assert differs[40:].min() > 1e-3


def test_a_token_has_different_states_at_different_places(text_encoder: CLIPTextEncoder) -> None:
    states = text_encoder(torch.full((1, 2), 7))
    assert (states[0, 0] - states[0, 1]).abs().max() > 1e-2


def test_states_have_the_dtype_of_the_weights(text_encoder: CLIPTextEncoder) -> None:
    states = text_encoder.to(torch.bfloat16)(torch.zeros(1, 77, dtype=torch.long))
    assert states.dtype == text_encoder.dtype == torch.bfloat16
    assert states.shape == (1, 77, text_encoder.config.width)


def test_token_vectors_give_the_same_as_their_ids(text_encoder: CLIPTextEncoder) -> None:
    ids = torch.arange(2 * 77).reshape(2, 77) % text_encoder.config.vocab_size
    vectors = text_encoder.text_model.embeddings.token_embedding(ids)
    torch.testing.assert_close(text_encoder(vectors), text_encoder(ids))


def test_it_stops_before_the_layers_to_skip_and_normalizes(text_encoder: CLIPTextEncoder) -> None:
    ids = torch.arange(77)[None]
    model = text_encoder.text_model
    x = model.embeddings(ids)
    for layer in list(model.encoder.layers)[:-1]:
        x = layer(x, NOTHING)
    torch.testing.assert_close(text_encoder(ids, skip=1), model.final_layer_norm(x))
    assert not torch.allclose(text_encoder(ids, skip=1), text_encoder(ids))


def test_every_layer_finds_its_adapter_by_its_name(text_encoder: CLIPTextEncoder) -> None:
    ids, plain = torch.arange(77)[None], text_encoder(torch.arange(77)[None])
    for name, layer in text_encoder.named_modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.LayerNorm):
            adapted = text_encoder(ids, given=Given(adapters={name: lambda _x, out, _padding, _gates=None: out + 1}))
            assert not torch.allclose(adapted, plain) or name.endswith("k_proj"), name
