import json
import os
from pathlib import Path

import pytest
import torch
from neuralop.models import FNO, SFNO
from typer.testing import CliRunner

import neuralop_sae as ns
from neuralop_sae.cli import app
from neuralop_sae.data.shallow_water import shallow_water
from neuralop_sae.quickstart import PROBLEMS, Darcy, NavierStokes, ShallowWater, prepare, quickstart
from neuralop_sae.quickstart.result import Result

SMALL = {"hidden_channels": 6, "n_layers": 2, "operator_epochs": 1, "n_concepts": 5}
TINY = Darcy(n_train=24, n_test=6, resolutions=(12, 24), sae_epochs=2, **SMALL)
FLOW = {"n_train": 2, "n_test": 1, "sae_epochs": 1, "rollout_steps": 3, **SMALL}
WEATHER = ShallowWater(
    resolutions=((9, 16), (17, 32)),
    operator_modes=(4, 8),
    sae_modes=(3, 6),
    generator={"lmax": 5, "spin_up": 0.0, "interval": 1.0, "n_pairs": 3},
    **FLOW,
)
TURBULENCE = NavierStokes(
    resolutions=(16, 32),
    operator_modes=(6, 6),
    sae_modes=(5, 5),
    generator={"max_wavenumber": 7, "spin_up": 0.0, "n_pairs": 3},
    **FLOW,
)
NAMES = [
    "fve",
    "relative_l2",
    "l0",
    "l0_local",
    "dead_fraction",
    "loss_clean",
    "loss_spliced",
    "loss_zero_ablated",
    "loss_mean_ablated",
    "loss_recovered",
    "code_consistency",
    "code_relative_l2",
    "fno_relative_l2",
    "n_concepts",
    "seconds",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    output = tmp_path_factory.mktemp("quickstart")
    return output, quickstart(output, TINY, progress=False, say=lambda line: None)


def test_it_writes_everything(run):
    output, metrics = run
    assert json.loads((output / "metrics.json").read_text()) == metrics
    assert set(NAMES) <= set(metrics)
    assert metrics["fno_relative_l2"] == metrics["loss_clean"]
    assert metrics["n_concepts"] == 5
    figures = {path.stem for path in (output / "figures").iterdir()}
    assert {"fields", "code_maps", "atoms", "spectra", "reconstruction"} <= figures
    assert "<html" in (output / "report.html").read_text()
    assert not list(output.glob(".*"))


def test_its_models_load_and_give_its_numbers(run):
    output, metrics = run
    sae = ns.load(output / "sae")
    operator = FNO.from_checkpoint(output / "fno", "fno")
    assert sae.in_channels == operator.hidden_channels == 6
    data = ns.data.darcy.darcy_flow(30, (12, 24), seed=0, cache_dir=output / "data", progress=False)
    x, y = data[12].x, data[12].y
    normal = [(values[:24].mean(), values[:24].std()) for values in (x, y)]
    inputs = (x[24:] - normal[0][0]) / normal[0][1]
    acts = ns.capture(operator, metrics["site"], inputs)
    assert ns.evaluate(sae, acts)["fve"] == pytest.approx(metrics["fve"], abs=1e-4)
    with torch.no_grad():
        prediction = operator.eval()(inputs) * normal[1][1] + normal[1][0]
    error = (prediction - y[24:]).flatten(1).norm(dim=1) / y[24:].flatten(1).norm(dim=1)
    assert float(error.mean()) == pytest.approx(metrics["fno_relative_l2"], rel=1e-3)


def test_what_is_prepared_is_what_it_looks_at(run):
    output, metrics = run
    lines = []
    found = prepare(TINY, cache_dir=output / "data", progress=False, say=lines.append)
    assert len(lines) == 4
    assert {part: len(acts) for part, acts in found.activations.items()} == {"train": 24, "coarse": 6, "fine": 6}
    assert found.metrics()["fve"] == pytest.approx(metrics["fve"], abs=1e-4)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers(run, tmp_path):
    again = quickstart(tmp_path, TINY, cache_dir=run[0] / "data", progress=False, say=lambda line: None)
    assert {name: again[name] for name in NAMES[:-1]} == {name: run[1][name] for name in NAMES[:-1]}


@pytest.mark.slow
@pytest.mark.skipif("NEURALOP_DATA" not in os.environ, reason="NEURALOP_DATA names no folder with neuralop's data")
def test_neuralops_own_files(tmp_path):
    problem = TINY.model_copy(update={"sae_epochs": 1, "data_root": Path(os.environ["NEURALOP_DATA"])})
    metrics = quickstart(tmp_path, problem, progress=False, say=lambda line: None)
    assert metrics["data"].startswith("neuralop's Darcy files, 16 and 32")
    assert metrics["n_samples"] == 50


def test_an_unwritable_output_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    lines = []
    with pytest.raises(OSError, match="cannot write to the output folder"):
        quickstart(tmp_path / "file" / "out", say=lines.append)
    assert not lines


def test_an_unusable_device_is_refused_before_any_work(tmp_path):
    lines = []
    with pytest.raises(ValueError, match="device 'abacus'"):
        quickstart(tmp_path, device="abacus", say=lines.append)
    with pytest.raises(ValueError, match="device 'abacus'"):
        prepare(TINY, cache_dir=tmp_path, device="abacus", say=lines.append)
    assert not lines


def test_command_line_says_what_is_wrong(tmp_path):
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, ["quickstart", "--output", str(tmp_path / "file")])
    assert result.exit_code == 2
    assert "cannot write to the output folder" in " ".join(result.output.split())
    result = CliRunner().invoke(
        app, ["quickstart", "--output", str(tmp_path / "out"), "--data-root", str(tmp_path / "nowhere")]
    )
    assert result.exit_code == 2
    assert "nowhere" in "".join(result.output.split())


def test_data_of_another_problem_are_refused(tmp_path):
    arguments = ["--problem", "shallow-water", "--data-root", str(tmp_path), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["quickstart", *arguments])
    assert result.exit_code == 2
    assert "--problem shallow-water cannot use" in " ".join(result.output.split())


def test_an_interrupted_run_keeps_what_it_trained(tmp_path, monkeypatch):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Result, "metrics", interrupt)
    monkeypatch.setitem(PROBLEMS, "darcy", lambda seed: TINY)
    result = CliRunner().invoke(app, ["quickstart", "--output", str(tmp_path)])
    assert result.exit_code == 130
    assert "interrupted" in result.output
    assert {path.name for path in tmp_path.iterdir()} == {"data", "fno", "sae"}
    assert ns.load(tmp_path / "sae").n_concepts == 5


def test_problems_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match="n_concept"):
        Darcy(n_concept=3)


@pytest.fixture(
    scope="module", params=[WEATHER, pytest.param(TURBULENCE, marks=pytest.mark.slow)], ids=lambda problem: problem.key
)
def flow(request, tmp_path_factory):
    output = tmp_path_factory.mktemp("flow")
    return request.param, output, quickstart(output, request.param, progress=False, say=lambda line: None)


def test_flows_write_everything(flow):
    problem, output, metrics = flow
    rollouts = {
        f"rollout_{which}" for which in ("clean", "spliced", "zero_ablated", "mean_ablated", "loss_recovered", "persistence")
    }
    operator = f"{problem.operator_name.lower()}_relative_l2"
    assert {*NAMES[:10], "code_consistency", "problem", operator, *rollouts} <= set(metrics)
    assert metrics["problem"] == problem.key
    assert metrics["n_samples"] == 3
    assert (output / "figures" / "rollout.png").exists()
    assert f"--problem {problem.key}" in (output / "report.html").read_text()


def test_weather_is_measured_by_area(flow, tmp_path):
    problem, output, metrics = flow
    if problem is not WEATHER:
        pytest.skip("flat")
    operator, sae = SFNO.from_checkpoint(output / "sfno", "sfno").eval(), ns.load(output / "sae")
    split = shallow_water(3, ((9, 16),), lmax=5, spin_up=0.0, interval=1.0, n_pairs=3, progress=False)[9, 16]
    x, y = split.x[6:], split.y[6:]
    area = sae.basis.quadrature((9, 16), like=x)
    assert area.std() > 0.1 * area.mean()

    def error(prediction):
        return float((((prediction - y) ** 2 * area).sum((1, 2, 3)) / (y**2 * area).sum((1, 2, 3))).sqrt().mean())

    with torch.no_grad():
        assert error(operator(x)) == pytest.approx(metrics["loss_clean"], rel=1e-4)
    acts = ns.capture(operator, metrics["site"], x)
    with torch.no_grad(), ns.splice(operator, metrics["site"], sae, keep_error=False):
        assert error(operator(x)) == pytest.approx(metrics["loss_spliced"], rel=1e-4)
    assert ns.evaluate(sae, acts)["fve"] == pytest.approx(metrics["fve"], abs=1e-4)


def test_futures_go_on_where_they_stopped(flow, tmp_path):
    problem, output, _ = flow
    like = problem.splits(output / "data", False).train
    states = problem.futures(like, output / "data", False)
    assert states.shape == (1, 4, len(problem.inputs), *like.x.shape[2:])
    coarse = problem.resolutions[0]
    times = {"lead_time": 3 * problem.lead_time, "interval": 3 * problem.lead_time, "n_pairs": 1}
    options = {**problem.generator, **times, "seed": problem.seed + 1_000_003, "progress": False}
    once = problem.trajectories(1, (coarse,), **options)[coarse]
    expected = (once.physical(once.y) - like.mean) / like.std
    torch.testing.assert_close(states[:, -1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("problem", [ShallowWater(), NavierStokes()], ids=lambda problem: problem.key)
def test_flows_at_full_size(problem, tmp_path):
    metrics = quickstart(tmp_path, problem, progress=False)
    least = {"fve": 0.95, "loss_recovered": 0.97, "code_consistency": 0.99}
    assert {name: metrics[name] for name, bound in least.items() if metrics[name] < bound} == {}
    assert metrics["l0_local"] <= problem.concepts_per_point
    assert metrics["dead_fraction"] <= 0.05
    assert metrics["rollout_clean"] < metrics["rollout_persistence"]
