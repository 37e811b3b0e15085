from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sd_core.errors import ModelError
from sd_core.formats import parallel
from sd_core.formats.files import open_safetensors
from sd_core.formats.load import load_networks
from sd_core.formats.parallel import read_parallel

CPU = torch.device("cpu")


@pytest.mark.parametrize("piece", [1000, 2**25])
def test_every_tensor_arrives_whole(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(parallel, "PIECE", piece)
    with open_safetensors(tiny_checkpoint) as file:
        tensors = read_parallel(tiny_checkpoint, file.tensors, CPU)
    expected = load_file(tiny_checkpoint)
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].shape == tensor.shape
        assert torch.equal(tensors[name], tensor)


def test_a_file_that_ends_too_early_is_said_to(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with open_safetensors(tiny_checkpoint) as file:
        stored = file.tensors
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(tiny_checkpoint.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"cut\.safetensors ends inside the tensor .*: it is incomplete"):
        read_parallel(cut, stored, CPU)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_gpu_gets_the_same_weights(tiny_checkpoint: Path, dtype: torch.dtype) -> None:
    def weights(device: str) -> dict[str, Tensor]:
        networks = load_networks(tiny_checkpoint, torch.device(device), dtype)
        parts = (networks.text_encoder, networks.unet, networks.vae)
        return {f"{index}.{name}": value for index, part in enumerate(parts) for name, value in part.named_parameters()}

    ours, theirs = weights("cuda"), weights("cpu")
    for name, tensor in theirs.items():
        assert ours[name].device.type == "cuda"
        assert torch.equal(ours[name].cpu(), tensor)
