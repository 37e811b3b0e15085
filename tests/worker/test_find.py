"""Which checkpoints a worker loads, and what it says if there are none."""

import shlex
import subprocess
from pathlib import Path

import pytest

from worker.find import find
from worker.settings import Settings, StartupError, read_settings


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return tmp_path / "volume"


@pytest.fixture
def bundled(tmp_path: Path) -> Path:
    directory = tmp_path / "bundled"
    fill(directory, "demo.safetensors")
    return directory


def fill(directory: Path, *names: str, tokenizer: bool = True) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name in (*names, *(("vocab.json", "merges.txt") if tokenizer else ())):
        (directory / name).write_bytes(b"")
    return directory


def read(tmp_path: Path, **environ: str) -> Settings:
    environ = {"SD_OUTPUTS": str(tmp_path / "outputs"), **environ}
    return read_settings(environ, tmp_path / "volume", tmp_path / "workspace", tmp_path / "bundled")


def found(settings: Settings) -> Path:
    (only,) = find(settings)
    assert only.directory == only.checkpoint.parent
    return only.checkpoint


def refusal(settings: Settings) -> str:
    with pytest.raises(StartupError) as caught:
        find(settings)
    return str(caught.value)


def test_the_volume_comes_before_the_workspace_and_the_workspace_before_the_demo(
    tmp_path: Path, volume: Path, bundled: Path
) -> None:
    assert found(read(tmp_path)) == bundled / "demo.safetensors"
    fill(tmp_path / "workspace" / "weights", "b.safetensors")
    assert found(read(tmp_path)).name == "b.safetensors"
    (volume / "weights").mkdir(parents=True)  # exists, but is empty
    assert found(read(tmp_path)).name == "b.safetensors"
    fill(volume / "weights", "a.safetensors")
    assert found(read(tmp_path)).name == "a.safetensors"


def test_on_runpod_the_demo_is_never_used_instead(tmp_path: Path, volume: Path, bundled: Path) -> None:
    fill(volume / "weights", "readme.txt", tokenizer=False)
    message = refusal(read(tmp_path, RUNPOD_POD_ID="pod"))
    assert f"{volume / 'weights'}: readme.txt" in message
    assert f"{tmp_path / 'workspace' / 'weights'}: does not exist" in message
    assert str(bundled) not in message
    assert f"--local-dir {volume / 'weights'}" in message


def test_wrong_weights_are_never_replaced(tmp_path: Path, bundled: Path) -> None:
    nowhere = tmp_path / "nowhere"
    assert f"{nowhere}: does not exist" in refusal(read(tmp_path, SD_WEIGHTS=str(nowhere)))
    empty = fill(tmp_path / "empty", tokenizer=False)
    assert f"{empty}: is empty" in refusal(read(tmp_path, SD_WEIGHTS=str(empty)))


def test_weights_may_name_a_file(tmp_path: Path) -> None:
    file = fill(tmp_path / "w", "a.safetensors", "b.safetensors") / "b.safetensors"
    assert found(read(tmp_path, SD_WEIGHTS=str(file))) == file
    assert found(read(tmp_path, SD_WEIGHTS=str(file), SD_CHECKPOINT="b.safetensors")) == file
    assert "another one" in refusal(read(tmp_path, SD_WEIGHTS=str(file), SD_CHECKPOINT="a.safetensors"))
    assert "another one" in refusal(read(tmp_path, SD_WEIGHTS=str(file), SD_CHECKPOINT="b.safetensors:a.safetensors"))
    assert "does not exist" in refusal(read(tmp_path, SD_WEIGHTS=str(tmp_path / "w" / "c.safetensors")))
    assert "neither a .safetensors nor" in refusal(read(tmp_path, SD_WEIGHTS=str(tmp_path / "w" / "vocab.json")))


def test_the_usual_checkpoint_comes_before_others(tmp_path: Path) -> None:
    directory = fill(tmp_path / "w", "a.safetensors", "v1-5-pruned-emaonly.safetensors")
    assert found(read(tmp_path, SD_WEIGHTS=str(directory))).stem == "v1-5-pruned-emaonly"
    beside_another_kind = fill(tmp_path / "v", "vae.safetensors", "v1-5-pruned-emaonly.ckpt")
    assert found(read(tmp_path, SD_WEIGHTS=str(beside_another_kind))).stem == "v1-5-pruned-emaonly"


def test_of_several_checkpoints_without_a_choice_the_first_is_taken_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = fill(tmp_path / "w", "b.safetensors", "a.safetensors", ".hidden.safetensors")
    assert found(read(tmp_path, SD_WEIGHTS=str(directory))).name == "a.safetensors"
    assert "holds 2 checkpoints" in caplog.text and "the default is a.safetensors" in caplog.text
    assert "export SD_CHECKPOINT=b.safetensors" in caplog.text
    both_endings = fill(tmp_path / "v", "mine.ckpt", "vae.safetensors")
    assert found(read(tmp_path, SD_WEIGHTS=str(both_endings))).name == "vae.safetensors"
    caplog.clear()
    alone = fill(tmp_path / "u", "mine.ckpt", "mine.safetensors")
    assert found(read(tmp_path, SD_WEIGHTS=str(alone))).name == "mine.safetensors" and not caplog.text


def test_a_checkpoint_without_a_tokenizer_has_the_first_ones(tmp_path: Path, volume: Path) -> None:
    fill(volume / "weights", "a.safetensors", tokenizer=False)
    own = fill(tmp_path / "workspace" / "weights", "d.safetensors")
    assert [file.tokenizer for file in find(read(tmp_path, SD_CHECKPOINT="d:a"))] == [own, own]
    assert "must lie beside" in refusal(read(tmp_path, SD_CHECKPOINT="a:d"))


def test_several_checkpoints_may_be_named_the_default_first(tmp_path: Path, volume: Path) -> None:
    fill(volume / "weights", "a.safetensors", "b.ckpt", "c.safetensors")
    fill(tmp_path / "workspace" / "weights", "d.safetensors")
    several = find(read(tmp_path, SD_CHECKPOINT="d.safetensors: b.ckpt :a"))
    assert [file.checkpoint.name for file in several] == ["d.safetensors", "b.ckpt", "a.safetensors"]
    assert [file.directory.parent.name for file in several] == ["workspace", "volume", "volume"]
    assert "looked for x.safetensors" in refusal(read(tmp_path, SD_CHECKPOINT="a.safetensors:x.safetensors"))


@pytest.mark.parametrize("names", ["a.safetensors:a.safetensors", "a:A.SAFETENSORS", "a.ckpt:a.safetensors"])
def test_one_model_named_twice_is_refused(tmp_path: Path, names: str) -> None:
    directory = fill(tmp_path / "w", "a.safetensors", "a.ckpt")
    assert "differ in more than their endings" in refusal(
        read(tmp_path, SD_WEIGHTS=str(directory), SD_CHECKPOINT=names)
    )


def test_a_named_checkpoint_that_does_not_exist_is_never_replaced(tmp_path: Path, bundled: Path) -> None:
    message = refusal(read(tmp_path, SD_CHECKPOINT="mine.safetensors"))
    assert "looked for mine.safetensors" in message
    assert f"{bundled}: demo.safetensors" in message
    assert "neither" not in message
    assert "mine.bin ends in neither .safetensors nor .ckpt" in refusal(read(tmp_path, SD_CHECKPOINT="mine.bin"))
    assert f"nearest name in {bundled} is demo" in refusal(read(tmp_path, SD_CHECKPOINT="dmo.safetensors"))


def test_a_ckpt_is_used_only_without_its_safetensors(tmp_path: Path) -> None:
    directory = fill(tmp_path / "w", "v1-5-pruned-emaonly.ckpt")
    settings = read(tmp_path, SD_WEIGHTS=str(directory))
    assert found(settings).name == "v1-5-pruned-emaonly.ckpt"
    fill(directory, "v1-5-pruned-emaonly.safetensors")
    assert found(settings).name == "v1-5-pruned-emaonly.safetensors"


@pytest.mark.parametrize("file", ["Model.SAFETENSORS", "Model.Ckpt", "v1-5-pruned-emaonly.SafeTensors"])
def test_endings_in_any_case(tmp_path: Path, file: str) -> None:
    directory = fill(tmp_path / "w", file)
    assert found(read(tmp_path, SD_WEIGHTS=str(directory))).name == file
    assert found(read(tmp_path, SD_WEIGHTS=str(directory / file))).name == file
    for name in (file, file.lower(), file.upper(), Path(file).stem):
        assert found(read(tmp_path, SD_WEIGHTS=str(directory), SD_CHECKPOINT=name)).name == file


@pytest.mark.parametrize(
    ("link", "environ"),
    [
        ("mine.safetensors", {"SD_CHECKPOINT": "mine.safetensors"}),
        ("Mine.SAFETENSORS", {"SD_CHECKPOINT": "mine"}),
        ("v1-5-pruned-emaonly.safetensors", {}),
        ("only.ckpt", {}),
    ],
)
def test_a_link_to_nothing_is_named_and_never_replaced(
    tmp_path: Path, volume: Path, bundled: Path, link: str, environ: dict[str, str]
) -> None:
    directory = fill(volume / "weights", *(("other.safetensors",) if link.startswith("v1") else ()))
    (directory / link).symlink_to(tmp_path / "gone")
    message = refusal(read(tmp_path, **environ))
    assert f"{directory / link} is a symbolic link to nothing: {tmp_path / 'gone'} does not exist" in message
    assert f"{link} (a symbolic link to nothing, {tmp_path / 'gone'})" in message


def test_weights_that_are_a_link_to_nothing(tmp_path: Path) -> None:
    for name in ("w", "w.safetensors"):
        link = tmp_path / name
        link.symlink_to(tmp_path / "gone")
        assert f"{link}: a symbolic link to nothing, {tmp_path / 'gone'}" in refusal(
            read(tmp_path, SD_WEIGHTS=str(link))
        )


def test_a_tokenizer_file_that_is_a_link_to_nothing(tmp_path: Path) -> None:
    directory = fill(tmp_path / "w", "a.safetensors")
    (directory / "vocab.json").unlink()
    (directory / "vocab.json").symlink_to("gone")
    assert "vocab.json (a symbolic link to nothing, gone)" in refusal(read(tmp_path, SD_WEIGHTS=str(directory)))


def test_a_stray_link_to_nothing_beside_a_checkpoint_does_no_harm(tmp_path: Path) -> None:
    directory = fill(tmp_path / "w", "a.safetensors")
    (directory / "b.safetensors").symlink_to("gone")
    assert found(read(tmp_path, SD_WEIGHTS=str(directory))).name == "a.safetensors"


def test_a_link_out_of_the_directory_is_refused_with_commands_that_work(tmp_path: Path) -> None:
    (tmp_path / "else where").mkdir()
    (tmp_path / "else where" / "real.bin").write_bytes(b"weights")
    directory = fill(tmp_path / "w")
    (directory / "mine.safetensors").symlink_to(tmp_path / "else where" / "real.bin")
    settings = read(tmp_path, SD_WEIGHTS=str(directory), SD_CHECKPOINT="mine.safetensors")
    message = refusal(settings)
    assert "'mine.safetensors' is a symbolic link that leads out of its folder" in message
    (command,) = [line for line in message.splitlines() if line.startswith("  rm ")]
    subprocess.run(["/bin/sh", "-c", command], check=True)
    assert found(settings).read_bytes() == b"weights"


def test_links_inside_the_directory_and_in_hugging_faces_cache_are_used(tmp_path: Path) -> None:
    directory = fill(tmp_path / "w", "real.safetensors")
    (directory / "link.safetensors").symlink_to("real.safetensors")
    settings = read(tmp_path, SD_WEIGHTS=str(directory), SD_CHECKPOINT="link.safetensors")
    assert found(settings).name == "link.safetensors"
    repository = tmp_path / "models--someone--model"
    snapshot = fill(repository / "snapshots" / "0123")
    fill(repository / "blobs", "4567", tokenizer=False)
    (snapshot / "model.safetensors").symlink_to("../../blobs/4567")
    assert found(read(tmp_path, SD_WEIGHTS=str(snapshot))) == snapshot / "model.safetensors"


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_missing_tokenizer_file_is_named_with_the_remedy(tmp_path: Path, name: str) -> None:
    directory = fill(tmp_path / "two words", "a.safetensors")
    (directory / name).unlink()
    message = refusal(read(tmp_path, SD_WEIGHTS=str(directory)))
    assert f"The tokenizer's {name} must lie beside {directory / 'a.safetensors'}" in message
    download = (
        f"hf download openai/clip-vit-large-patch14 vocab.json merges.txt --local-dir {shlex.quote(str(directory))}"
    )
    assert download in message


def test_the_listing_of_a_long_directory_is_cut(tmp_path: Path) -> None:
    directory = fill(tmp_path / "w", *(f"{number:03}.txt" for number in range(100)), tokenizer=False)
    message = refusal(read(tmp_path, SD_WEIGHTS=str(directory)))
    assert "and 80 more" in message
