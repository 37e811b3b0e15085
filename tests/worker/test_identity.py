import threading
from pathlib import Path
from typing import Any

from worker import log
from worker.identity import ModelIdentity


def wait_for_hash(identity: ModelIdentity) -> None:
    identity.hash_in_background()
    for thread in threading.enumerate():
        if thread.name == "checkpoint hash":
            thread.join()


def test_an_unknown_hash_is_computed_on_a_thread(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"abc")
    identity = ModelIdentity("a", None, file)
    assert identity.describe() == {"name": "a", "sha256": None}
    wait_for_hash(identity)
    assert identity.describe()["sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_known_hash_is_not_computed_again(tmp_path: Path) -> None:
    identity = ModelIdentity("a", "known", tmp_path / "absent")
    wait_for_hash(identity)
    assert identity.describe()["sha256"] == "known"


def test_a_file_that_cannot_be_hashed_costs_only_the_hash(tmp_path: Path, capsys: Any) -> None:
    log.configure("INFO")
    identity = ModelIdentity("a", None, tmp_path / "absent")
    wait_for_hash(identity)
    assert identity.describe()["sha256"] is None
    assert "cannot be hashed" in capsys.readouterr().out
