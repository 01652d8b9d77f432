"""What a store says about itself is whole, or an error."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from neuralop.models import FNO
from torch import nn

from neuralop_sae.data.manifest import MANIFEST_NAME, Manifest, StoredArray, crc32, model_digest


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "model": "FNO",
        "model_digest": "ab12",
        "sites": ("lifting",),
        "batch_size": 4,
        "shard_size": None,
        "dtype": "float32",
        "padded": False,
        "basis": {"name": "fourier", "n_modes": [1]},
        "lengths": (0.1,),
        "units": {},
        "arrays": {"lifting/8": StoredArray(site="lifting", shape=(3, 8), n_samples=2, crc32={"activations": 7})},
    }
    return Manifest(**(fields | changes))


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    manifest(n_batches=3).write(tmp_path)
    assert Manifest.read(tmp_path) == manifest(n_batches=3)


def test_a_flipped_byte_is_an_error(tmp_path: Path) -> None:
    manifest().write(tmp_path)
    path = tmp_path / MANIFEST_NAME
    good = path.read_bytes()
    for place in range(0, len(good), 5):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        try:
            found = Manifest.read(tmp_path)
        except ValueError as error:
            assert "damaged" in str(error) or "schema" in str(error)  # noqa: PT017
        else:
            assert chr(good[place]) in " \n", place  # white space between the entries
            assert found == manifest()


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"checksum": 1}', "\x80"])
def test_what_is_no_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="manifest.json (is damaged|has schema version None)"):
        Manifest.read(tmp_path)


def test_another_schema(tmp_path: Path) -> None:
    manifest().write(tmp_path)
    data = json.loads((tmp_path / MANIFEST_NAME).read_text())
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(data | {"schema_version": 2}))
    with pytest.raises(ValueError, match="has schema version 2; this version of neuralop_sae reads 1"):
        Manifest.read(tmp_path)


def test_differences_are_those_of_the_request_not_of_progress() -> None:
    assert manifest().differences(manifest(n_batches=5, n_samples=9, complete=True, arrays={})) == []
    assert manifest().differences(manifest(dtype="float16", padded=True)) == [
        "dtype was 'float32', now 'float16'",
        "padded was False, now True",
    ]


def test_the_checksum_goes_on() -> None:
    whole = torch.randn(6, 3)
    assert crc32(whole[2:], crc32(whole[:2])) == crc32(whole) == zlib.crc32(whole.numpy().tobytes())
    assert crc32(whole.T) == zlib.crc32(whole.numpy().T.tobytes())
    for dtype in (torch.bfloat16, torch.complex64, torch.bool, torch.int64):
        assert crc32(torch.ones(3, dtype=dtype)) != crc32(torch.zeros(3, dtype=dtype))
    assert crc32(torch.tensor(1.0)) != crc32(torch.tensor(2.0))


def test_the_digest_is_that_of_the_weights() -> None:
    torch.manual_seed(0)
    model = FNO((4,), 1, 1, 4, n_layers=1)
    digest = model_digest(model)
    assert digest == model_digest(model.train())
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-6
    assert model_digest(model) != digest
    assert model_digest(nn.Linear(2, 2)) != model_digest(nn.Linear(2, 2))
