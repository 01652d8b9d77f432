"""A file is read instead of work done, but only a whole one with the tensors expected."""

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from neuralop_sae.data.cache import cache_file, cached_tensors

SHAPES = {"x": (2, 3), "y": (4,)}


def made() -> dict[str, Tensor]:
    return {"x": torch.arange(6.0).reshape(2, 3), "y": torch.arange(4)}


def never() -> dict[str, Tensor]:
    raise AssertionError("made although there is a file")


def test_the_second_time_the_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "data.safetensors"
    first, second = cached_tensors(path, SHAPES, made), cached_tensors(path, SHAPES, never)
    assert first.keys() == second.keys() == SHAPES.keys()
    for name, tensor in made().items():
        assert torch.equal(first[name], tensor)
        assert torch.equal(second[name], tensor)
        assert second[name].dtype == tensor.dtype
    assert [file.name for file in path.parent.iterdir()] == ["data.safetensors"]


def test_a_file_is_named_where_there_is_a_folder(tmp_path: Path) -> None:
    # The number after the point stays: it is no suffix.
    assert cache_file(str(tmp_path), "flow_dt0.25") == tmp_path / "flow_dt0.25.safetensors"
    assert cache_file(None, "flow_dt0.25") is None


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert torch.equal(cached_tensors(None, SHAPES, made)["x"], made()["x"])
    assert list(tmp_path.iterdir()) == []


def rewritten(change: Callable[[dict[str, Tensor]], object]) -> Callable[[bytes], bytes]:
    def damage(good: bytes) -> bytes:
        tensors = safetensors.torch.load(good)
        change(tensors)
        return safetensors.torch.save(tensors)

    return damage


DAMAGE = {
    "empty": (lambda good: b"", "SafetensorError"),
    "truncated": (lambda good: good[:-1], "SafetensorError"),
    "flipped bit": (lambda good: good[:-3] + bytes([good[-3] ^ 1]) + good[-2:], "checksum differs"),
    "no checksum": (rewritten(lambda tensors: tensors.pop("crc32")), "checksum differs"),
    "missing tensor": (rewritten(lambda tensors: tensors.pop("y")), "other tensors"),
    "one more tensor": (rewritten(lambda tensors: tensors.update(z=torch.zeros(1))), "other tensors"),
    "other shape": (rewritten(lambda tensors: tensors.update(x=tensors["x"].T.contiguous())), "other tensors"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_made_anew_with_a_warning(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "data.safetensors"
    cached_tensors(path, SHAPES, made)
    good = path.read_bytes()
    damage, reason = DAMAGE[kind]
    path.write_bytes(damage(good))
    assert path.read_bytes() != good
    with pytest.warns(UserWarning, match=rf"data.safetensors is damaged \(.*{reason}.*\); generating it again"):
        assert torch.equal(cached_tensors(path, SHAPES, made)["x"], made()["x"])
    assert path.read_bytes() == good


def test_a_folder_that_cannot_be_written_is_noticed_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot write to the output folder .*file"):
        cached_tensors(tmp_path / "file" / "data.safetensors", SHAPES, never)


def test_an_interruption_leaves_no_file(tmp_path: Path) -> None:
    def interrupted() -> dict[str, Tensor]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_tensors(tmp_path / "data.safetensors", SHAPES, interrupted)
    assert list(tmp_path.iterdir()) == []
