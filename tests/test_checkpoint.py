"""Checkpoints: exact round trips, whole files only, and nothing that could be a pickle is ever opened as one."""

from __future__ import annotations

import json
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from neuralop_sae import checkpoint
from neuralop_sae.checkpoint import (
    check_writable,
    folder_atomically,
    load_model,
    read_tensors,
    save_model,
    write_atomically,
    write_json,
    write_tensors,
)
from neuralop_sae.layers import JumpReLU, TopFraction, TopK
from neuralop_sae.models import SAE, SAEFNO, SAETFNO, load

GOLDEN = Path(__file__).parent / "golden"
TENSORS = {
    "real": torch.arange(6.0).reshape(2, 3),
    "double": torch.tensor([1 / 3], dtype=torch.float64),
    "single complex": torch.tensor([1 + 2j, 3 - 1j]),
    "double complex": torch.tensor([[1 / 3 + 2j]], dtype=torch.complex128),
    "conjugate view": torch.tensor([1 + 2j]).conj(),
    "permuted": torch.arange(6.0).reshape(2, 3).T,
    "count": torch.tensor(7),
    "flags": torch.tensor([True, False]),
    "empty": torch.zeros(0, 3),
}


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.path}",))


@pytest.fixture
def model() -> SAE:
    return SAEFNO(3, 6, (5, 4), concept_rule=TopK(2), domain_rule="Rectify").eval()


@pytest.fixture
def folder(model: SAE, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "sae")
    return tmp_path / "sae"


def test_tensors_round_trip_exactly(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t.safetensors", TENSORS, {"who": "me"})
    read, header = read_tensors(tmp_path / "t.safetensors")
    assert header == {"who": "me"}
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor.resolve_conj()), name


def test_complex_tensors_lie_where_processors_read_them(tmp_path: Path) -> None:
    """Tensors in a safetensors file are aligned to 8 bytes, complex numbers of double precision need 16."""
    tensors = {"double": torch.ones(1, dtype=torch.float64), "complex": torch.ones(3, dtype=torch.complex128)}
    for padding in range(8):
        write_tensors(tmp_path / "t.safetensors", tensors, {"padding": " " * padding})
        read, _ = read_tensors(tmp_path / "t.safetensors")
        assert read["complex"].data_ptr() % 16 == 0


@pytest.mark.parametrize("factorization", ["tucker", "cp", "tt"])
def test_factorised_models_of_double_precision_round_trip(tmp_path: Path, factorization: str) -> None:
    model = SAETFNO(8, 256, (9, 9), factorization=factorization, rank=0.2).double().eval()
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    x = torch.randn(1, 8, 12, 12, dtype=torch.float64)
    assert torch.equal(loaded(x).reconstruction, model(x).reconstruction)


def test_tensors_that_share_memory_are_saved_whole(tmp_path: Path) -> None:
    base = torch.arange(10.0)
    write_tensors(tmp_path / "t", {"all": base, "part": base[2:4], "same": base})
    read, _ = read_tensors(tmp_path / "t")
    assert torch.equal(read["part"], base[2:4])
    assert torch.equal(read["same"], base)


def test_an_interrupted_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def interrupted(temporary: Path) -> None:
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, interrupted)
    assert json.loads(path.read_text()) == {"old": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_json_that_does_not_serialise_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}


def test_a_folder_takes_its_place_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "report"
    with folder_atomically(target) as folder:
        (folder / "a").write_text("first")
        assert not target.exists()

    def interrupted() -> None:
        with folder_atomically(target) as folder:
            (folder / "b").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert [(entry.name, entry.read_text()) for entry in target.iterdir()] == [("a", "first")]
    with folder_atomically(target) as folder:
        (folder / "c").write_text("second")
    assert [entry.name for entry in target.iterdir()] == ["c"]
    assert [entry.name for entry in target.parent.iterdir()] == ["report"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder")
    assert not any((tmp_path / "new" / "folder").iterdir())
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=f"cannot write to the output folder {folder}"):
            check_writable(folder)


def test_files_have_the_mode_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "ordinary").write_text("")
    write_json(tmp_path / "ours", {})
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)


def test_a_model_folder_holds_two_files_and_plain_data(folder: Path) -> None:
    assert sorted(entry.name for entry in folder.iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert config["schema_version"] == checkpoint.SCHEMA_VERSION == 1
    assert config["model"] == "SAEFNO"
    assert config["dtype"] == "float32"
    assert config["arguments"]["concept_rule"] == {"name": "TopK", "k": 2}
    assert config["arguments"]["n_modes"] == [5, 4]


def test_load_gives_the_same_model(model: SAE, folder: Path) -> None:
    x = torch.randn(2, 3, 8, 8)
    for loaded in (load(folder), SAE.from_pretrained(str(folder)), SAEFNO.from_pretrained(folder)):
        assert type(loaded) is SAEFNO
        assert not loaded.training
        assert loaded.config() == model.config()
        assert torch.equal(loaded(x).reconstruction, model(x).reconstruction)


def test_saving_again_replaces(folder: Path) -> None:
    other = SAEFNO(3, 8, (5, 4), concept_rule=JumpReLU(), domain_rule=TopFraction(0.2)).double()
    other.save_pretrained(folder)
    loaded = load(folder)
    assert loaded.config() == other.config()
    assert loaded.dtype == torch.float64


def test_save_where_a_file_is(tmp_path: Path, model: SAE) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="a model is saved as a folder"):
        model.save_pretrained(tmp_path / "file")


def test_missing_folder_and_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config.json \(found: no such folder\)"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no config.json \(found: nothing\)"):
        load(tmp_path / "empty")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model.safetensors \(found: config.json\)"):
        load(folder)
    with pytest.raises(FileNotFoundError, match="no file"):
        read_tensors(folder / "model.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 8, 200, -1])
def test_truncated_tensors(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"is not a whole safetensors file .* may be truncated, or a pickle"):
        load(folder)


@pytest.mark.parametrize("schema", [2, 99, 0, "1", None])
def test_other_schema(folder: Path, schema: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"schema_version": schema}
    write_json(folder / "config.json", config)
    with pytest.raises(ValueError, match=f"schema version {schema}; this version of neuralop_sae reads 1"):
        load(folder)


DAMAGED = ["", "{", "null", "3", "{}", '{"schema_version": ', "\x00\x01", "NaN"]
DAMAGED_LISTS = [text for text in ("[]", '["schema_version"]')]


@pytest.mark.parametrize("text", [*DAMAGED, *DAMAGED_LISTS])
def test_damaged_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "SAEXYZ"},
        {"model": None},
        {"arguments": None},
        {"dtype": "float16"},
        {"dtype": None},
        {"dtype": "load"},
    ],
    ids=str,
)
def test_configs_that_describe_no_model(folder: Path, change: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text()) | change
    write_json(folder / "config.json", {name: value for name, value in config.items() if value is not None})
    with pytest.raises(ValueError):  # noqa: PT011 (any readable ValueError, as the docstring of from_pretrained says)
        load(folder)


def test_unknown_arguments_in_a_config_are_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["arguments"]["no_such_argument"] = 1
    write_json(folder / "config.json", config)
    with pytest.raises((ValueError, TypeError), match="no_such_argument"):
        load(folder)


def test_tensors_that_do_not_fit(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["arguments"]["n_concepts"] = 7
    write_json(folder / "config.json", config)
    with pytest.raises(ValueError, match="the tensors do not fit the config"):
        load(folder)


def test_another_class(folder: Path) -> None:
    class Other(SAEFNO, name="test_other"):  # type: ignore[call-arg]
        pass

    with pytest.raises(ValueError, match=r"holds a SAEFNO, not a Other; neuralop_sae.load loads any"):
        Other.from_pretrained(folder)


def test_a_pickle_is_never_opened(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proof = tmp_path / "executed"

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a pickle was opened")

    for name in ("config.json", "model.safetensors"):
        before = (folder / name).read_bytes()
        for write in (pickle.dump, torch.save):
            with open(folder / name, "wb") as file:
                write(Malicious(proof), file)
            with monkeypatch.context() as patch:
                patch.setattr(torch, "load", refuse)
                patch.setattr(pickle, "load", refuse)
                patch.setattr(pickle, "Unpickler", refuse)
                with pytest.raises(ValueError, match=r"safetensors|damaged"):
                    load(folder)
        (folder / name).write_bytes(before)
    torch.save(Malicious(proof), tmp_path / "sae.pt")
    with pytest.raises(ValueError, match="Pickles are never read"):
        load(tmp_path / "sae.pt")
    # neuralop's own layout: <name>_state_dict.pt and <name>_metadata.pkl
    for name in ("m_state_dict.pt", "m_metadata.pkl"):
        torch.save(Malicious(proof), tmp_path / name)
    with pytest.raises(FileNotFoundError):
        SAEFNO.from_checkpoint(tmp_path, "m")
    with pytest.raises(FileNotFoundError):
        SAEFNO(3, 6, (5, 4), concept_rule=TopK(2)).load_checkpoint(tmp_path, "m")
    assert not proof.exists()


def test_neuralops_names(model: SAEFNO, tmp_path: Path) -> None:
    model.save_checkpoint(tmp_path, "best")
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")) == [
        "best/config.json",
        "best/model.safetensors",
        "best_state_dict.pt",
    ]
    loaded = SAEFNO.from_checkpoint(tmp_path, "best", map_location="cpu")
    other = SAEFNO(3, 6, (5, 4), concept_rule=TopK(2), domain_rule="Rectify").eval()
    other.load_checkpoint(tmp_path, "best")
    x = torch.randn(2, 3, 8, 8)
    for restored in (loaded, other):
        assert torch.equal(restored(x).reconstruction, model(x).reconstruction)


def test_save_model_refuses_nothing_and_load_returns_what_was_saved(tmp_path: Path) -> None:
    save_model(tmp_path / "deep" / "er", {"a": [1, None]}, {"t": torch.ones(2)})
    config, tensors = load_model(tmp_path / "deep" / "er")
    assert config == {"a": [1, None]}
    assert torch.equal(tensors["t"], torch.ones(2))


@pytest.mark.parametrize("folder", sorted(GOLDEN.glob("v*/*")), ids=lambda f: f"{f.parent.name}/{f.name}")
def test_golden_models_give_their_golden_outputs(folder: Path) -> None:
    """Written once per schema version by ``python tests/golden/write.py``; a change that alters what a stored model means
    fails here."""
    expected, _ = read_tensors(folder / "expected.safetensors")
    model = load(folder)
    out = model(expected["x"])
    torch.testing.assert_close(out.reconstruction, expected["reconstruction"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.codes.to_dense(), expected["codes"], rtol=1e-5, atol=1e-6)
    assert model.dtype == expected["x"].dtype


def test_there_is_a_golden_model_for_this_schema() -> None:
    assert len(list((GOLDEN / f"v{checkpoint.SCHEMA_VERSION}").glob("*/config.json"))) >= 3
