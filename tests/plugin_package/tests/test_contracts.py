"""What this package registers passes neuralop_sae's contracts, and is found where neuralop_sae alone is imported."""

import subprocess
import sys

import pytest
import torch
from neuralop_legendre import AtMost, LegendreBasis, LegendreConcepts, LegendreConv, LegendreNO, Shrink

import neuralop_sae as ns
from neuralop_sae.layers import ConceptDecoder, ConceptEncoder
from neuralop_sae.testing import check_basis, check_concept_layer, check_model, check_rule, check_sites


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_the_basis():
    check_basis(LegendreBasis((4, 3)), shapes=[(4, 3), (9, 8), (3, 5)])


def test_its_coefficients_are_those_of_the_polynomials():
    nodes = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64) * 0.6**0.5
    coefficients = LegendreBasis((3,)).analysis(nodes**2).real  # s^2 = 1/3 + 2/3 P_2
    torch.testing.assert_close(coefficients, torch.tensor([1 / 3, 0, 2 / 3 / 5**0.5], dtype=torch.float64))


@pytest.mark.parametrize("factorization", [None, "tucker"])
def test_the_concept_layer(factorization):
    arguments = {"conv_module": LegendreConv, "factorization": factorization, "rank": 0.5}
    check_concept_layer(ConceptEncoder(3, 8, (4, 4), **arguments), ConceptDecoder(3, 8, (4, 4), **arguments))


@pytest.mark.parametrize("rule", [AtMost(3, 0.2), Shrink(0.1)])
def test_the_rules(rule):
    check_rule(rule)


def make_sae():
    return ns.SAEFNO(3, 8, (4, 4), conv_module=LegendreConv, concept_rule=AtMost(3, 0.05), domain_rule=Shrink(0.05))


def test_a_model_of_them():
    check_model(make_sae(), torch.randn(3, 3, 9, 10))


def test_the_sites_of_the_operator():
    sites = check_sites(LegendreNO((4, 4), 1, 2, hidden_channels=3), torch.randn(2, 1, 8, 9))
    assert sites[-2:] == ["blocks.1", "projection"]


def test_a_saved_model_loads_where_neuralop_sae_alone_is_imported(tmp_path):
    sae, x = make_sae().eval(), torch.randn(2, 3, 9, 10)
    sae.save_pretrained(tmp_path / "sae")
    torch.save({"x": x, "reconstruction": sae(x).reconstruction.detach()}, tmp_path / "expected.pt")
    code = """
import sys, torch, neuralop_sae as ns
expected = torch.load(sys.argv[2])
assert torch.equal(ns.load(sys.argv[1])(expected["x"]).reconstruction, expected["reconstruction"])
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "sae", tmp_path / "expected.pt"], check=True)


@pytest.mark.parametrize(
    ("register", "name", "entry"),
    [
        (ns.register_basis, "legendre", LegendreBasis),
        (ns.register_concept_layer, LegendreConv, LegendreConcepts),
        (ns.register_concept_rule, "AtMost", AtMost),
        (ns.register_domain_rule, "Shrink", Shrink),
        (ns.register_sites, LegendreNO, lambda operator, call: ()),
    ],
)
def test_names_are_taken_once(register, name, entry):
    with pytest.raises(ValueError, match="is registered already"):
        register(name)(entry)
