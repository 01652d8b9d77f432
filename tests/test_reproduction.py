"""The scripts that test the method's claims: verdicts follow from criteria, the page from the results, every script runs."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

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
    for name in run_all.SCRIPTS:
        text = (FOLDER / f"{name}.py").read_text()
        assert "write(" in text or "run(" in text, f"{name} writes no result: it belongs into SHARED"


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_it_runs_in_little(modules, script, tmp_path):
    if script in modules[1].SHARED:
        pytest.skip("shared")
    command = [sys.executable, str(FOLDER / f"{script}.py"), "--quick", "--output", str(tmp_path)]
    subprocess.run(command, check=True, timeout=300)
    assert json.loads((tmp_path / f"{script}.json").read_text())["rows"]
    assert (tmp_path / f"{script}.png").stat().st_size > 5_000
