"""What objects show in a notebook is well-formed, escaped, and true."""

import math
from xml.etree import ElementTree

import pandas as pd
import pytest
import torch
from neuralop.models import FNO

import neuralop_sae as ns
from neuralop_sae import notebook
from neuralop_sae.analysis.attribution import AblationCheck, Attribution
from neuralop_sae.analysis.causal import CausalTest
from neuralop_sae.analysis.recruitment import Recruitment
from neuralop_sae.training.history import TrainingHistory


def parse(text):
    """As XML, which is stricter than HTML: unclosed or unescaped text is an error."""
    return ElementTree.fromstring(f"<div>{text}</div>")


def rows(text):
    """Cells of each row, of all tables."""
    return [["".join(cell.itertext()) for cell in row] for row in parse(text).iter("tr")]


@pytest.fixture(scope="module")
def sae():
    torch.manual_seed(0)
    return ns.SAEFNO(2, 6, (5, 5), concept_rule=ns.TopK(3)).eval().requires_grad_(False)


def test_text_is_escaped():
    text = notebook.facts("<b>", {"<i>": "<script>alert(1)</script>"}) + notebook.table("&", ['"'], [["<x>"]])
    assert rows(text) == [["<i>", "<script>alert(1)</script>"], ['"'], ["<x>"]]


def test_a_curve_goes_through_its_points():
    points = parse(notebook.curve("loss", [0, 10, 20], [1.0, 3.0, 2.0])).find(".//polyline").get("points")
    assert points == "0.0,60.0 120.0,0.0 240.0,30.0"
    assert notebook.curve("loss", [0, 1], [1.0, math.nan]) == ""


def test_a_model(sae):
    found = dict(rows(sae._repr_html_()))
    assert found["n_concepts"] == "6"
    assert found["n_modes"] == "5 x 5"
    assert found["concept_rule"] == "TopK(k=3)"
    n_parameters = sum(torch.view_as_real(p).numel() if p.is_complex() else p.numel() for p in sae.parameters())
    assert found["parameters"] == f"{n_parameters:,}"


def test_codes(sae):
    codes = sae.encode(torch.randn(4, 2, 12, 10))
    facts = rows(codes._repr_html_())
    assert ["samples", "4"] in facts
    assert ["code grid", "12 x 10"] in facts
    dense = codes.to_dense()
    energy = dense.square().sum((0, 2, 3))
    concept, share, norm = facts[facts.index(["concept", "on in", "norm (rms)"]) + 1]
    assert int(concept) == int(energy.argmax())
    assert float(share) == pytest.approx(float(dense[:, int(concept)].flatten(1).any(1).float().mean()))
    assert float(norm) == pytest.approx(float((energy.max() / (4 * 120)).sqrt()), rel=1e-3)


def test_no_codes(sae):
    codes = sae.encode(torch.randn(1, 2, 12, 10)).keep(torch.tensor([], dtype=torch.int64))
    assert rows(codes._repr_html_())[-1] == ["concept", "on in", "norm (rms)"]


def test_a_history():
    history = TrainingHistory([{"step": s, "loss": 1 / s, "fve": 1 - 1 / s} for s in (1, 2, 4)], seconds=2.0)
    assert ["loss", "0.25"] in rows(history._repr_html_())
    assert len(list(parse(history._repr_html_()).iter("polyline"))) == 2
    frame = history.to_frame()
    assert list(frame.index) == [1, 2, 4]
    assert list(frame.fve) == history["fve"]
    assert TrainingHistory().to_frame().empty
    assert rows(TrainingHistory()._repr_html_()) == [["rows", "0"]]


def test_sites():
    sites = ns.find_sites(FNO((4,), 1, 1, hidden_channels=4, n_layers=1, domain_padding=0.2))
    frame = sites.to_frame()
    assert list(frame.site) == sites
    assert list(frame.padded) == [site.padded for site in sites]
    assert rows(sites._repr_html_())[-1] == ["projection", "batch, channels, d1", "False", "False"]
    assert rows(sites[-1]._repr_html_()) == [rows(sites._repr_html_())[0], rows(sites._repr_html_())[-1]]


def test_a_compression(sae):
    compressed = ns.compress(sae, rank=0.5)
    found = dict(rows(compressed._repr_html_()))
    assert found["model"] == "SAETFNO"
    assert found["spectral parameters"] == f"{compressed.n_parameters:,}"
    assert "FVE" not in found


def test_an_output(sae):
    out = sae(torch.randn(4, 2, 12, 10))
    found = rows(out._repr_html_())
    assert ["reconstruction", "4 x 2 x 12 x 10"] in found
    assert ["samples", "4"] in found
    assert "tensor" not in repr(out)


def test_a_lifted_model(sae):
    found = rows(ns.Lifted(sae, channels=5)._repr_html_())
    assert [row[1] for row in found if row[0] == "in_channels"] == ["2", "5"]
    assert ["channels", "5"] in found


def test_a_frame_says_how_many_rows_it_leaves_out():
    data = pd.DataFrame({"<a>": range(9), "b": 0.5})
    text = notebook.frame("Nine", data, n=2)
    assert "".join(parse(text).find(".//caption").itertext()) == "Nine: the first 2 of 9 rows"
    assert rows(text) == [["<a>", "b"], ["0", "0.5"], ["1", "0.5"]]
    assert "first" not in notebook.frame("Nine", data, n=9)


def test_a_store(tmp_path):
    operator = FNO((4,), 1, 1, hidden_channels=4, n_layers=1)
    store = ns.ActivationStore.write(tmp_path / "a.zarr", operator, "fno_blocks.0", torch.randn(3, 1, 16))
    assert rows(store._repr_html_())[1] == ["fno_blocks.0", "3", "4", "16"]


def test_a_causal_test():
    effects = pd.DataFrame({"concept": range(20), "effect": 0.5})
    found = CausalTest(effects, effects, effects.head(3), effects, effects)
    assert rows(found._repr_html_())[1] == ["0", "0.5"]
    assert "first 8 of 20 rows" in found._repr_html_()
    assert repr(found).startswith("CausalTest(effects: 20 rows, controls: 20 rows, tests: 3 rows")


def test_an_attribution_and_its_check():
    found = Attribution(torch.tensor([0, 0, 1]), torch.tensor([1, 3, 3]), torch.tensor([0.5, -1.0, -3.0]).double(), 2, 6)
    assert rows(found._repr_html_()) == [
        ["concept", "attribution", "magnitude", "frequency"],
        ["3", "-2", "2", "1"],
        ["1", "0.25", "0.25", "0.5"],
    ]
    assert repr(found) == "Attribution(2 of 6 concepts, 2 samples)"
    table = pd.DataFrame({"concept": [1, 1], "sample": [0, 1], "attributed": [0.5, 1.5], "ablated": [1.0, 2.0]})
    check = AblationCheck(table, math.nan, math.nan, 0.25)
    assert ["relative_error", "0.25"] in rows(check._repr_html_())
    assert rows(check._repr_html_())[-1] == ["1", "1", "1.5"]
    assert repr(check) == "AblationCheck(pearson=nan, spearman=nan, relative_error=0.25)"


def test_recruitment():
    frequency = pd.DataFrame({100: [0.5, 0.5, 0.0], 400: [0.5, 0.0, 0.0]})
    found = Recruitment(frequency, 0.01, frequency)
    assert rows(found._repr_html_())[1:] == [["100", "2", "1"], ["400", "1", "0"]]
    assert repr(found) == "Recruitment(concepts used at 100: 2, 400: 1; 1 at all)"


def test_a_figure_shows_itself_without_pyplot(sae):
    figure = ns.figures.usage_figure(torch.tensor([0.5, 0.2]), torch.tensor([0.8, 0.2]))
    assert figure._repr_png_().startswith(b"\x89PNG")
