"""Operators out of neuralop's checkpoints, without unpickling."""

import warnings

import pytest
import torch
from neuralop.models import FNO, SFNO, TFNO, UNO
from safetensors.torch import save_file
from torch.nn import functional

from neuralop_sae.attach.checkpoints import load_operator, load_weights

SIZES = {"in_channels": 1, "out_channels": 1, "hidden_channels": 4, "n_layers": 2}


def make(name):
    torch.manual_seed(0)
    if name == "sfno":
        return SFNO(n_modes=(4, 8), **SIZES)
    if name == "tfno":
        return TFNO(n_modes=(4, 4), rank=0.5, **SIZES)
    return FNO(n_modes=(4, 4), non_linearity=functional.relu if name == "relu" else functional.gelu, **SIZES)


def save(model, folder, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_checkpoint(folder, name)
    return folder


@pytest.mark.parametrize("name", ["fno", "relu", "sfno", "tfno"])
def test_the_operator_is_the_one_that_was_saved(tmp_path, name):
    saved = make(name).eval()
    found = load_operator(save(saved, tmp_path, name))
    assert type(found) is type(saved)
    assert not found.training
    x = torch.randn(2, 1, 8, 16)
    assert torch.equal(found(x), saved(x))


@pytest.mark.parametrize("name", ["", "model", "model_state_dict.pt"])
def test_a_folder_a_name_in_it_or_the_file(tmp_path, name):
    save(make("fno"), tmp_path, "model")
    assert isinstance(load_operator(tmp_path / name), FNO)


def test_a_folder_of_several_lists_them(tmp_path):
    for name in ("best_model", "model"):
        save(make("fno"), tmp_path, name)
    with pytest.raises(ValueError, match=rf"name one of {tmp_path}/best_model, {tmp_path}/model"):
        load_operator(tmp_path)


def test_there_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        load_operator(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither a folder nor nothing_state_dict.pt"):
        load_operator(tmp_path / "nothing")


class Run:
    """What a pickle could do."""

    def __reduce__(self):
        return (print, ("run!",))


@pytest.mark.parametrize("where", ["arguments", "weights"])
def test_nothing_in_a_file_is_run(tmp_path, where, capsys):
    save(make("fno"), tmp_path, "fno")
    state = dict(make("fno").state_dict())
    if where == "arguments":
        state["_metadata"]["norm"] = Run()
    else:
        state["more"] = Run()
    torch.save(state, tmp_path / "fno_state_dict.pt")
    with pytest.raises(ValueError, match=r"fno_state_dict.pt holds builtins.print: pickled objects can run code"):
        load_operator(tmp_path)
    assert "run!" not in capsys.readouterr().out


def test_the_metadata_pickle_is_not_opened(tmp_path):
    save(make("fno"), tmp_path, "fno")
    (tmp_path / "fno_metadata.pkl").unlink()
    assert isinstance(load_operator(tmp_path), FNO)


def test_an_operator_that_neuralop_keeps_no_arguments_of(tmp_path):
    shape = {"uno_out_channels": [4, 4], "uno_n_modes": [[4, 4], [4, 4]], "uno_scalings": [[1, 1], [1, 1]]}
    model = UNO(**SIZES, **shape, channel_mlp_skip="linear")
    torch.save(model.state_dict(), tmp_path / "uno_state_dict.pt")
    with pytest.raises(ValueError, match="--model module:function --weights"):
        load_operator(tmp_path)
    filled = UNO(**SIZES, **shape, channel_mlp_skip="linear")
    load_weights(filled, tmp_path / "uno_state_dict.pt")
    assert all(torch.equal(tensor, filled.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("content", [b"", b"not a file of torch", b"PK\x03\x04 cut"])
def test_a_damaged_file(tmp_path, content):
    (tmp_path / "fno_state_dict.pt").write_bytes(content)
    with pytest.raises(ValueError, match="is no whole file of torch.save"):
        load_operator(tmp_path)


def test_weights_of_another_model(tmp_path):
    save_file({"other": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="other.safetensors is of another model"):
        load_weights(make("fno"), tmp_path / "other.safetensors")


def test_what_is_no_state_dict(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "fno_state_dict.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        load_operator(tmp_path)
