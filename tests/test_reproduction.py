"""The scripts that test the method's claims: verdicts follow from criteria, the page from the results, every script runs."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import neuralop_sae as ns
from neuralop_sae.data.domains import Box
from neuralop_sae.data.synthetic import Events

FOLDER = Path(__file__).parents[1] / "examples" / "reproduction"


@pytest.fixture
def modules(monkeypatch):
    """common and run_all, as the scripts import them."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load("common"), load("run_all")


@pytest.mark.parametrize(
    ("holds", "verdict"),
    [((True, True), "holds"), ((True, False), "holds partly"), ((False, False), "does not hold here")],
)
def test_verdicts_follow_from_criteria(modules, holds, verdict):
    common, _ = modules
    row = common.Row("c", "m", "f", "b", [common.Criterion(str(i), met) for i, met in enumerate(holds)])
    assert row.verdict == verdict


def test_spread_is_from_least_to_largest(modules):
    common, _ = modules
    assert common.spread([0.5]) == "0.500"
    assert common.spread([0.3, 0.1, 0.2]) == "0.200 (0.100 to 0.300)"


def test_the_page_says_what_the_results_say(modules, tmp_path):
    common, run_all = modules
    from matplotlib.figure import Figure

    rows = [
        common.Row("codes keep", "r at 2x", "0.999", "0.1", [common.Criterion("r at least 0.99", True)], "a remark"),
        common.Row("no more", "FVE", "0.5", "0.6", [common.Criterion("higher", False)]),
    ]
    common.write("/somewhere/keep.py", tmp_path, rows=rows, values={}, figure=Figure(), settings={}, started=0.0)
    assert json.loads((tmp_path / "keep.json").read_text())["rows"][1]["verdict"] == "does not hold here"
    page = run_all.page(tmp_path)
    assert "| codes keep | r at 2x | 0.999 | 0.1 | **holds** |" in page
    for part in ("- met: r at least 0.99", "a remark", "- not met: higher", f"]({tmp_path.name}/keep.png)"):
        assert part in page


def test_every_script_is_run(modules):
    _, run_all = modules
    runnable = {path.stem for path in FOLDER.glob("*.py") if "typer.run(main)" in path.read_text()}
    assert runnable == {*run_all.SCRIPTS, "run_all"}


@pytest.fixture
def scripts(monkeypatch):
    """What imports a script of the folder by its name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_an_operator_that_was_kept_is_the_one_that_was_trained(scripts, tmp_path):
    beds = scripts("beds")
    small = {"hidden_channels": 4, "n_layers": 1, "operator_epochs": 1, "operator_modes": (4, 4), "block": 0}
    problem = ns.quickstart.Darcy(n_train=20, n_test=2, resolutions=(8, 16), **small)
    trained, kept = (beds.Bed.of(problem, tmp_path) for _ in range(2))
    assert len(list(tmp_path.glob("operator_darcy_*.safetensors"))) == 1
    for part in ("train", "tune", "test"):
        torch.testing.assert_close(kept.activations[part], trained.activations[part], rtol=0, atol=0)
    assert not torch.equal(trained.randomised.activations["test"], trained.activations["test"])


def test_a_sign_for_each_odd_degree_takes_a_zonal_kernel_to_the_antipode(scripts):
    recovery = scripts("recovery")
    basis = ns.SphericalBasis((7, 14))
    coefficients = basis.analysis(torch.randn(3, 13, 24))
    signs = (-1.0) ** torch.arange(7)
    turned = basis.synthesis(coefficients * signs[:, None], (13, 24))
    torch.testing.assert_close(recovery.antipodal(basis.synthesis(coefficients, (13, 24))), turned, rtol=0, atol=1e-5)


def test_a_vector_holds_all_of_a_kernel_whose_channels_share_a_shape_and_half_of_one_that_turns(scripts):
    recovery = scripts("recovery")
    s = 2 * torch.pi * torch.arange(16, dtype=torch.float64) / 16
    shared = torch.tensor([3.0, -4.0])[:, None] * s.cos()
    turning = torch.stack([s.cos(), s.sin()])
    matching = recovery.match_vectors(
        torch.tensor([[1.0, 0.0], [-6.0, 8.0]]), torch.stack([shared, turning]), ns.FourierBasis(5)
    )
    assert matching.learned.tolist() == [1, 0]
    torch.testing.assert_close(matching.cosine, torch.tensor([1.0, 0.5**0.5]).double())


def test_a_shifted_impulse_through_the_window_is_the_true_code(scripts):
    representation = scripts("representation")
    bed = scripts("synthetic_bed").Bed("smooth", 0, n_test=1)
    true, box = bed.test(), Box(1)
    events = Events(torch.tensor([0]), torch.tensor([2]), torch.tensor([[0.25]]).double(), torch.tensor([1.5]).double())
    codes = torch.zeros(1, 5, 128)
    codes[0, 2, 32 + 16] = 1.5 * 128
    expected = replace(true, events=events, domain=box).codes(representation.WIDTH)
    seen = representation.through_window(codes, torch.full((5,), 16 / 128))
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-4 * float(expected.max()))


@pytest.mark.parametrize("name", ["truncated", "cnn"])
def test_the_penalty_counts_what_a_unit_integral_writes(scripts, name):
    bed = scripts("synthetic_bed")
    sae = bed.model(name, 0, channels=3).eval()
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.normal_()
    point = torch.zeros(1, 128)
    point[0, 40] = 128.0  # of unit integral
    codes = ns.ConceptCodes(torch.tensor([0]), torch.tensor([4]), point, 1, bed.N_CONCEPTS, sae.basis)
    none = replace(codes, values=0 * point)
    with torch.no_grad():
        written = sae.decode(codes) - sae.decode(none)
    norm = bed.size_of_unit_integral(sae, (128,)) * sae.kernel_norms()[4]
    torch.testing.assert_close(norm, written.square().mean(2).sum().sqrt(), rtol=1e-4, atol=0)


def kept(script):
    """The values that a script wrote."""
    return json.loads((FOLDER / "results" / f"{script}.json").read_text())["values"]


def texts(legend):
    return [text.get_text() for text in legend.get_texts()]


def test_figures_say_what_chance_is(scripts, monkeypatch):
    stability, recovery = scripts("glyph_stability"), scripts("recovery")
    (legend,) = stability.draw(kept("glyph_stability")).legends
    assert texts(legend) == [*stability.KINDS.values(), "chance, in the colour of the model"]
    monkeypatch.setattr(recovery, "trained", lambda bed, name, rate: recovery.model(name, bed.seed, bed.domain))
    bed = recovery.Bed("plane", 0, n_train=1, n_test=1)
    (legend,) = recovery.draw(kept("recovery_plane"), bed, dict.fromkeys(recovery.NAMES, 1e-2)).legends
    assert texts(legend) == ["chance"]


def test_the_drawn_concept_has_a_scale_in_words(scripts, monkeypatch):
    locality = scripts("locality")
    monkeypatch.setattr(
        locality, "trained", lambda bed, name, rate: locality.model(locality.MODES, bed.seed, locality.CHANNELS)
    )
    like = locality.Bed("smooth", 0, n_train=1, n_test=1, channels=locality.CHANNELS)
    figure = locality.draw(kept("locality"), like, dict.fromkeys(locality.NAMES, 1e-2))
    assert [ax.get_ylabel() for ax in figure.axes][1:] == ["FVE", "kernel / its norm"]


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_it_runs_in_little(modules, script, tmp_path):
    if script not in modules[1].SCRIPTS:
        pytest.skip("shared")
    command = [sys.executable, str(FOLDER / f"{script}.py"), "--quick", "--output", str(tmp_path)]
    subprocess.run(command, check=True, timeout=300)
    assert json.loads((tmp_path / f"{script}.json").read_text())["rows"]
    assert (tmp_path / f"{script}.png").stat().st_size > 5_000
