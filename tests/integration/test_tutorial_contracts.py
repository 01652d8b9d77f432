"""The tutorials on extension: their own classes pass the contracts that they show, and would not pass if they were wrong."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from neuralop_sae.attach.rules import site_rules
from neuralop_sae.layers import bases, concept_layers

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _nothing_stays_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (bases, concept_layers, site_rules):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
        monkeypatch.setattr(registry, "_spelling", dict(registry._spelling))


def run_contracts(path: str, monkeypatch: pytest.MonkeyPatch, right: str = "", wrong: str = "") -> None:
    """Run a tutorial up to its last block that calls a ``check_*``, with the first `right` in it replaced by `wrong`."""
    script = (EXAMPLES / path).read_text(encoding="utf-8")
    assert right in script
    blocks = script.replace(right, wrong, 1).split("\n# %%\n")
    last = max(i for i, block in enumerate(blocks) if re.search(r"\bcheck_\w+\(", block))
    module = ModuleType("tutorial")  # by this name a saved model finds the tutorial's classes again
    monkeypatch.setitem(sys.modules, "tutorial", module)
    torch.manual_seed(0)
    exec(compile("\n# %%\n".join(blocks[: last + 1]), path, "exec"), module.__dict__)


@pytest.mark.parametrize("path", ["layers/plot_cosine_basis.py", "layers/plot_concept_layer.py", "attach/plot_site_rule.py"])
def test_classes_of_tutorials_pass_their_contracts(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run_contracts(path, monkeypatch)


@pytest.mark.parametrize(
    ("path", "right", "wrong", "message"),
    [
        ("layers/plot_cosine_basis.py", "- 2 * degree - 1)", "- 2 * degree)", r"on the grid \(11, 9\)"),
        ("layers/plot_cosine_basis.py", "written = torch", "written = -torch", "sparse = dense"),
        ("layers/plot_concept_layer.py", 'rfft2(x, norm="forward")', "rfft2(x)", "energies = mean square"),
        ("attach/plot_site_rule.py", ', repeats="step"', "", "fires once per pass"),
    ],
    ids=["quadrature", "layer", "transform", "calls"],
)
def test_a_mistake_in_them_is_noticed(
    path: str, right: str, wrong: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AssertionError, match=message):
        run_contracts(path, monkeypatch, right, wrong)
