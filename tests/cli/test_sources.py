"""What paths and names on the command line stand for."""

import numpy as np
import pytest
import torch
import xarray as xr
from neuralop.models import FNO
from safetensors.torch import save_file

from neuralop_sae.cli.sources import InputSettings, LabelSettings, OperatorSettings, imported

FUNCTIONS = """
import torch
def numbers():
    return torch.ones(3, 1, 8, 8)
def name():
    return "no module"
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    """A module ``own_functions`` in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_functions.py").write_text(FUNCTIONS)


def test_an_operator_of_a_function_with_weights(operator, tmp_path):
    arguments = {"n_modes": [4, 4], "in_channels": 1, "out_channels": 1, "hidden_channels": 4, "n_layers": 2}
    tensors = {name: tensor for name, tensor in operator.state_dict().items() if name != "_metadata"}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "fno.safetensors")
    given = {"model": "neuralop.models:FNO", "model_arguments": arguments, "weights": tmp_path / "fno.safetensors"}
    found = OperatorSettings(**given).operator()
    x = torch.randn(2, 1, 8, 8)
    assert isinstance(found, FNO)
    assert torch.equal(found(x), operator(x))


def test_what_is_no_operator(functions):
    with pytest.raises(TypeError, match="must give an operator, a torch.nn.Module; got str"):
        OperatorSettings(model="own_functions:name").operator()


def test_inputs_of_a_function(functions):
    assert InputSettings(inputs="own_functions:numbers").read_inputs().shape == (3, 1, 8, 8)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own_functions:nothing", "has no function 'nothing'; it has: numbers, name"),
        ("no_such_module_here:f", "there is no module 'no_such_module_here'"),
    ],
)
def test_names_that_do_not_exist(functions, name, said):
    with pytest.raises(ValueError, match=said):
        imported(name)


def test_arguments_for_a_checkpoint_are_refused(folder):
    with pytest.raises(ValueError, match="leave out --model-arguments"):
        OperatorSettings(model=str(folder), model_arguments={"n_modes": 3}).operator()


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
def test_tensors_by_name(tmp_path, suffix):
    path, held = tmp_path / f"inputs{suffix}", {"x": torch.randn(3, 1, 8), "y": torch.randn(3, 1, 8)}
    if suffix == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in held.items()})
    else:
        (save_file if suffix == ".safetensors" else torch.save)(held, path)
    found = InputSettings(inputs=str(path)).read_inputs()
    assert found.keys() == held.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in held.items())


def test_one_array(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((3, 1, 8), dtype=np.float32))
    assert torch.equal(InputSettings(inputs=str(tmp_path / "x.npy")).read_inputs(), torch.ones(3, 1, 8))


def test_netcdf_gives_fields_and_times(tmp_path):
    hours = np.datetime64("2020-01-01") + np.arange(3) * np.timedelta64(6, "h")
    coords = {"time": hours, "lat": np.linspace(90, -90, 5), "lon": np.arange(8) * 45.0}
    data = {name: (("time", "lat", "lon"), np.random.default_rng(0).normal(size=(3, 5, 8))) for name in ("t", "q")}
    xr.Dataset(data, coords).to_netcdf(tmp_path / "era.nc")
    inputs = InputSettings(inputs=str(tmp_path / "era.nc"), variables=["q"]).read_inputs()
    assert inputs[0]["x"].shape == (1, 5, 8)
    values, labels, lengths = LabelSettings().read_fields(tmp_path / "era.nc")
    assert list(values) == ["t", "q"]
    torch.testing.assert_close(values["q"][0], torch.from_numpy(data["q"][1][0]).float())
    assert lengths is None
    assert labels.time.diff().tolist() == [6 * 3600 * 10**6] * 2


class Run:
    """What a pickle could do."""

    def __reduce__(self):
        return (print, ("run!",))


@pytest.mark.parametrize("suffix", [".pt", ".npz"])
def test_pickles_are_not_read(tmp_path, suffix, capsys):
    path = tmp_path / f"evil{suffix}"
    if suffix == ".npz":
        np.savez(path, x=np.array([Run()], dtype=object))
    else:
        torch.save({"x": Run()}, path)
    with pytest.raises(ValueError, match="evil"):
        InputSettings(inputs=str(path)).read_inputs()
    assert "run!" not in capsys.readouterr().out


def test_files_of_another_kind(tmp_path):
    (tmp_path / "x.txt").touch()
    with pytest.raises(ValueError, match=r"is none of .safetensors, .npy, .npz"):
        InputSettings(inputs=str(tmp_path / "x.txt")).read_inputs()
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="holds no arrays"):
        InputSettings(inputs=str(tmp_path / "x.npz")).read_inputs()


def test_members_at_valid_times(tmp_path):
    hours = np.datetime64("2020-01-01") + np.arange(3) * np.timedelta64(6, "h")
    data = {"t": (("number", "valid_time", "y", "x"), np.random.default_rng(0).normal(size=(2, 3, 5, 8)))}
    xr.Dataset(data, {"valid_time": hours}).to_netcdf(tmp_path / "era.nc")
    path = {"inputs": str(tmp_path / "era.nc")}
    assert len(InputSettings(**path).read_inputs()) == 3
    given = {"time_dim": "valid_time", "trajectory_dim": "number"}
    inputs = InputSettings(**path, **given).read_inputs()
    assert (inputs.channels, inputs.trajectory.tolist()) == (["t"], [0, 0, 0, 1, 1, 1])
    assert LabelSettings(**given).read_fields(tmp_path / "era.nc").labels.trajectory.tolist() == [0, 0, 0, 1, 1, 1]
