"""The report's numbers against independent ones, what it refuses, and the page in a real browser."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

from neuralop_sae.analysis import mollweide
from neuralop_sae.analysis.drawing import ColorScale
from neuralop_sae.analysis.evidence import Evidence, Stability
from neuralop_sae.analysis.glossary import metric_groups
from neuralop_sae.analysis.page import number, percent
from neuralop_sae.analysis.relations import stability_by_chance
from neuralop_sae.analysis.report import report
from neuralop_sae.analysis.summaries import leading_components
from neuralop_sae.layers import bases
from neuralop_sae.layers.basis import SpectralBasis, register_basis
from neuralop_sae.layers.concept_rules import TopK
from neuralop_sae.layers.domain_rules import LocalTopK, Rectify
from neuralop_sae.models import SAEFNO, SAEMLP, SAESFNO, FieldPCA, SAEPointwise

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)
PROBES = pd.DataFrame(
    [
        (concept, quantity, "map", 0, r, r - 0.1, r + 0.1, q)
        for concept in range(12)
        for quantity, r, q in (("vorticity", 0.5, 0.01), ("strain", -0.8 + concept / 100, 0.02), ("chance", 0.85, 0.9))
    ],
    columns=["concept", "quantity", "kind", "lag", "correlation", "low", "high", "q_value"],
)
EFFECTS = pd.DataFrame(
    [(c, "drag", dose, (1 - dose) * c / 8, -0.25, 2.5) for c in range(11) for dose in (0.0, 2.0)],
    columns=["concept", "outcome", "dose", "effect", "low", "high"],
)
STABILITY = {0: 0.95, 3: 0.75, 5: 0.2}
LABELS = {0: "edges <b>&\"'", 3: "smooth interior"}


@pytest.fixture(scope="module")
def sae() -> SAEFNO:
    torch.manual_seed(0)
    return SAEFNO(3, 12, (5, 5), concept_rule=TopK(2), domain_rule=LocalTopK(1))


@pytest.fixture(scope="module")
def activations() -> Tensor:
    return torch.randn(7, 3, 10, 8, generator=torch.Generator().manual_seed(1)).cumsum(-1)


@pytest.fixture(scope="module")
def written(sae: SAEFNO, activations: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(
        sae,
        activations,
        path=tmp_path_factory.mktemp("report") / "deep" / "report.html",
        title="Title with <script>alert(1)</script>",
        inputs=activations[:, :1].sign(),
        history=SimpleNamespace(rows=[{"step": 0, "loss": 2.0, "fve": 0.1}, {"step": 1, "loss": 1.0, "fve": 0.4}]),
        model_card={"seed": 7, "command": "a < b & c", "torch": "told by the card"},
        high_resolution=activations[:2].repeat_interleave(2, -1).repeat_interleave(2, -2),
        labels=LABELS,
        probes=PROBES,
        effects=EFFECTS,
        stability=STABILITY,
        n_concepts=3,
        n_samples=2,
        batch_size=3,
    )


class Outline(HTMLParser):
    """Tags with attributes, rows of the table of concepts, and elements left open."""

    void = frozenset({"meta", "link", "img", "input", "br", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def rows(self) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.tags if tag == "tr" and "data-index" in attributes]


def tile(text: str, key: str) -> str:
    found = re.search(rf'data-metric="{key}">.*?class="value">(.*?)</p>', text, re.DOTALL)
    assert found, f"no tile {key}"
    return found[1]


def test_numbers_equal_independent_ones(sae: SAEFNO, activations: Tensor, written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    sae.eval()
    with torch.no_grad():
        out = sae(activations)
    sae.train()
    dense = out.codes.to_dense().double()
    norms = dense.square().mean((2, 3)).sqrt()
    energy = norms.square().sum(0) * sae.kernel_norms().detach().double() ** 2
    rows = {int(row["data-index"]): row for row in Outline(text).rows()}
    assert sorted(rows) == list(range(12))
    for concept, row in rows.items():
        on = norms[:, concept] > 0
        area = (dense[on, concept] != 0).double().mean() if on.any() else 0.0
        assert float(row["data-share"]) == pytest.approx(float(energy[concept] / energy.sum()), rel=1e-5)
        assert float(row["data-frequency"]) == pytest.approx(float(on.double().mean()))
        assert float(row["data-area"]) == pytest.approx(float(area))
        assert float(row["data-norm"]) == pytest.approx(float(sae.kernel_norms()[concept]), rel=1e-6)
        assert (row.get("class") == "dead") == (not on.any())
    shares = [float(row["data-share"]) for row in Outline(text).rows()]
    assert shares == sorted(shares, reverse=True)
    assert tile(text, "l0") == number(float((norms > 0).sum(1).double().mean()))
    assert tile(text, "dead_fraction") == percent(float((norms.sum(0) == 0).double().mean()))
    error = (out.reconstruction - activations).double().square().sum()
    variance = (activations - activations.mean((0, 2, 3), keepdim=True)).double().square().sum()
    assert tile(text, "fve") == percent(float(1 - error / variance))


def test_cards_show_the_strongest_samples(sae: SAEFNO, activations: Tensor, written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    sae.eval()
    with torch.no_grad():
        codes = sae.encode(activations)
    sae.train()
    cards = re.findall(r'<details open class="card" id="concept-(\d+)">(.*?)</details>', text, re.DOTALL)
    order = [int(row["data-index"]) for row in Outline(text).rows()]
    assert [int(c) for c, _ in cards] == order[:3]
    for concept, card in cards:
        rows = codes.concept == int(concept)
        norms, at = codes.norms()[rows].sort(descending=True)
        expected = [f"sample {codes.sample[rows][i]}, norm {number(float(n))}" for n, i in zip(norms, at, strict=True)]
        assert re.findall(r"sample \d+, norm [\d.e-]+", card) == expected[:2]
        maps = [codes.of(int(concept))[codes.sample[rows][i]] for i in at[:2]]
        background = activations[codes.sample[rows][at[0]], 0].sign()
        scale = ColorScale.of(*maps)
        drawn = pixels(re.findall(r'src="(data:image/png[^"]*)" alt="Code', card)[0])
        share = (maps[0].double() - scale.low) / (scale.high - scale.low)
        expected_colors = matplotlib.colormaps[scale.cmap](share.numpy())[..., :3]
        assert drawn.shape == (10, 8, 4)
        np.testing.assert_allclose(drawn[..., :3] / 255, expected_colors, atol=0.02)
        jumps = len(background.unique()) > 1
        assert (f'href="#outline-{codes.sample[rows][at[0]]}"' in card) == jumps


def pixels(uri: str) -> np.ndarray:
    """Of a PNG in a data URI, ``(rows, columns, 4)``."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGBA"))


def test_page_is_self_contained_well_formed_and_escaped(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    outline = Outline(text)
    assert outline.open == []
    for tag, attributes in outline.tags:
        for key in ("src", "href", "xlink:href"):
            assert attributes.get(key, "#").startswith(("#", "data:")), f"{tag} loads {attributes[key]}"
        if tag == "img":
            assert attributes["alt"]
        if tag == "svg" and attributes.get("aria-hidden") != "true":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert "<script>alert(1)" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "edges <b>" not in text
    assert "a &lt; b &amp; c" in text
    assert "told by the card" in text
    assert 'id="overview-history"' in text
    assert text.count('<th scope="row">torch</th>') == 1
    tables = [attributes for tag, attributes in outline.tags if tag == "table"]
    assert all(attributes.get("aria-label") for attributes in tables)
    assert "aria-pressed" not in text
    assert "Search by number, label or physics;" in text


def test_same_arguments_give_the_same_bytes_and_training_state_returns(
    sae: SAEFNO, activations: Tensor, tmp_path: Path
) -> None:
    sae.train()
    pages = [
        report(sae, activations[:2], path=tmp_path / name, n_concepts=1, n_samples=1).read_bytes()
        for name in ("a.html", "b.html")
    ]
    assert pages[0] == pages[1]
    assert sae.training
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_metrics_are_grouped_explained_or_listed() -> None:
    metrics = {
        "odd": "text",
        "l0": 12.0,
        "rollout": {"loss_recovered": 0.9871},
        "fve": float("nan"),
        "n": torch.tensor(3),
    }
    groups = metric_groups(metrics)
    assert list(groups["known"]) == ["Fidelity", "Sparsity"]
    shown = {t["key"]: (t["name"], t["value"]) for tiles in groups["known"].values() for t in tiles}
    assert shown["rollout.loss_recovered"] == ("Loss recovered (rollout)", "98.7 %")
    assert shown["fve"][1] == "n/a"
    assert shown["l0"][1] == "12"
    assert groups["others"] == [("odd", "text"), ("n", "3")]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, "0.123"), (1234.5, "1234"), (1e-7, "1e-07"), (3.0, "3"), (True, "True"), (99.96, "100")],
)
def test_numbers_have_three_digits(value: Any, text: str) -> None:
    assert number(value) == text


def test_a_model_with_no_concept_on_says_so(sae: SAEFNO, activations: Tensor, tmp_path: Path) -> None:
    silent = SAEFNO(3, 4, (5, 5), concept_rule={"name": "JumpReLU", "threshold": 1e6})
    text = report(silent, activations, path=tmp_path / "r.html", labels={}).read_text(encoding="utf-8")
    assert "No concept is on in these samples" in text
    assert tile(text, "dead_fraction") == "100 %"


def test_a_page_of_globes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sae = SAESFNO(2, 6, (4, 8), concept_rule=TopK(3))
    x = torch.randn(3, 2, 9, 16, generator=torch.Generator().manual_seed(0))
    page = report(sae, x, path=tmp_path / "r.html", inputs=x[:, :1], n_concepts=2, n_samples=2, high_resolution=x)
    text = page.read_text(encoding="utf-8")
    assert Outline(text).open == []
    assert "Mollweide" in text
    assert "counts by its area" in text
    assert "Degree l</button>" in text
    assert "degree l</text>" in text
    assert 'id="overview-spectra"' in text
    assert "cycles per domain" not in text
    atom = leading_components(sae, [int(Outline(text).rows()[0]["data-index"])], (9, 16))[0][0]
    drawn = pixels(re.findall(r'src="(data:image/png[^"]*)" alt="Atom', text)[0])
    shown = mollweide.pixels(atom, sae.basis.colatitudes(9), len(drawn))
    off = shown.isnan().numpy()
    assert ((drawn[..., 3] == 0) == off).all()
    colors = matplotlib.colormaps["RdBu_r"]((shown / atom.abs().max() / 2 + 0.5).numpy())[..., :3]
    np.testing.assert_allclose(drawn[~off, :3] / 255, colors[~off], atol=0.03)
    assert 'href="#graticule"' in text
    rows = {int(row["data-index"]): row for row in Outline(text).rows()}
    quadrature = sae.basis.quadrature((9, 16), like=x.double())
    sae.eval()
    with torch.no_grad():
        dense = sae.encode(x).to_dense()
    covered = ((dense != 0) * quadrature).sum((2, 3))
    for concept, row in rows.items():
        on = covered[:, concept] > 0
        assert float(row["data-area"]) == pytest.approx(float(covered[on, concept].mean()) if on.any() else 0.0)


def test_physics_effects_and_stability(sae: SAEFNO, activations: Tensor, written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    for row in Outline(text).rows():
        concept = int(row["data-index"])
        assert float(row["data-follows"]) == pytest.approx(0.8 - concept / 100), "not the closest that is a finding"
        assert ("data-effect" in row) == (concept < 11)
        assert concept == 11 or float(row["data-effect"]) == pytest.approx(concept / 8)
        assert ("data-stability" in row) == (concept in STABILITY and row.get("class") != "dead")
    chance = stability_by_chance(sae, sae, activations)
    living = {concept: cosine for concept, cosine in STABILITY.items() if not chance[concept].isnan()}
    assert 0 < len(living) < len(STABILITY)
    for concept, cosine in living.items():
        known = Stability(cosine, float(chance[concept]))
        shown = rf'data-index="{concept}".*?<td>{known.label} <span class="soft">{cosine:.2f} \({known.chance:.2f}\)'
        assert re.search(shown, text)
        assert re.search(rf'data-index="{concept}"[^>]* data-stability="{known.excess}"', text)
    assert f"on average {float(chance[list(living)].mean()):.2f}" in text
    for card in re.findall(r'<details open class="card".*?</details>', text, re.DOTALL):
        concept = int(re.findall(r'id="concept-(\d+)"', card)[0])
        assert re.findall(r'<th scope="row">(\w+)</th><td>([+-][\d.]+)</td>', card)[:3] == [
            ("chance", "+0.85"),
            ("strain", f"{concept / 100 - 0.8:+.2f}"),
            ("vorticity", "+0.50"),
        ]
        assert card.count('class="finding"') == 2
        assert "+0.40 to +0.60" in card
        assert concept == 11 or f"<td>{number(concept / 8)}</td><td>-0.25 to 2.5</td>" in card
        linked = re.findall(r'<a href="#concept-(\d+)">', card)
        assert linked
        assert str(concept) not in linked
    for key in ("physics", "stability", "tradeoff"):
        assert f'id="overview-{key}"' in text


@pytest.mark.parametrize(
    ("cosine", "chance", "label"),
    [
        (0.95, 0.0, "stable"),
        (0.95, 0.4, "stable"),
        (0.95, 0.8, "similar"),
        (0.75, 0.0, "similar"),
        (0.75, 0.5, "unstable"),
        (0.4, 0.4, "as chance"),
        (1.0, 1.0, "as chance"),
    ],
)
def test_the_word_for_stability_goes_by_the_excess_above_chance(cosine: float, chance: float, label: str) -> None:
    assert Stability(cosine, chance).label == label


def test_a_dictionary_that_learned_nothing_is_not_called_stable(sae: SAEFNO, activations: Tensor) -> None:
    torch.manual_seed(5)
    twin, stranger = SAEFNO(3, 12, (5, 5)), SAEFNO(3, 12, (5, 5))
    twin.load_state_dict(sae.state_dict(), strict=False)
    assert {found.label for found in Evidence.of(sae, activations, None, None, twin).stability.values()} == {"stable"}
    labels = [found.label for found in Evidence.of(sae, activations, None, None, stranger).stability.values()]
    assert set(labels) <= {"unstable", "as chance"}
    assert labels.count("as chance") >= 3


@pytest.mark.parametrize(("fve", "below"), [({2: 0.5, 4: -0.25}, True), ({1: 0.25, 4: 0.5}, False)])
def test_the_page_says_at_which_k_the_model_was_trained(
    sae: SAEFNO, activations: Tensor, tmp_path: Path, fve: dict[int, float], below: bool
) -> None:
    arguments: dict[str, Any] = {"n_concepts": 1, "n_samples": 1}
    text = report(sae, activations, path=tmp_path / "r.html", fve_by_k=fve, **arguments).read_text(encoding="utf-8")
    assert "The model was trained at k = 2, concepts per sample" in text
    assert ">trained at k = 2</text>" in text
    assert ("worse than the mean of the layer" in text) == below


def test_no_k_is_named_where_the_rules_have_none(activations: Tensor, tmp_path: Path) -> None:
    sae = SAEFNO(3, 4, (3, 3), domain_rule=Rectify())
    arguments: dict[str, Any] = {"fve_by_k": {1: 0.5}, "n_concepts": 1, "n_samples": 1}
    text = report(sae, activations, path=tmp_path / "r.html", **arguments).read_text(encoding="utf-8")
    assert 'id="overview-tradeoff"' in text
    assert "trained at k" not in text


def test_many_cards_are_text_until_opened(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sae = SAEFNO(1, 30, (3, 3), concept_rule=TopK(30))
    x = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    page = report(sae, x, path=tmp_path / "r.html", inputs=x, n_concepts=30, n_samples=1)
    text = page.read_text(encoding="utf-8")
    outline = Outline(text)
    cards = [attributes for tag, attributes in outline.tags if tag == "details" and attributes.get("class") == "card"]
    stored = [attributes for tag, attributes in outline.tags if tag == "script" and attributes.get("type") == "text/html"]
    assert len(cards) == 24 + len(stored)
    assert [attributes["id"] for attributes in stored] == [f"body-{card['id']}" for card in cards[24:]]
    assert text.index('type="text/html"') > text.index('performance.mark("ready")'), "the page waits for its cards"
    assert outline.open == []
    if CHROMIUM is not None:
        last = cards[-1]["id"]
        document = browse(page, f"#{last}", tmp_path / "profile")
        opened = document[document.index(f'id="{last}"') :]
        assert "Most similar atoms" in opened[: opened.index("</details>")]
        assert document.count('type="text/html"') == len(stored) - 1


def test_a_page_of_a_box(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    assert "Wavenumber (cycles per domain)</button>" in text
    assert "Mollweide" not in text


class HalfWaves(SpectralBasis):
    """cos(pi k s) at the midpoints of the unit square: the four methods that a basis must have, and no other."""

    n_dim = 2

    def __init__(self, n_modes: Sequence[int]) -> None:
        self.n_modes = self.mode_shape = tuple(n_modes)

    def _waves(self, shape: Sequence[int], like: Tensor) -> list[Tensor]:
        axes = [
            (torch.arange(n)[:, None], (torch.arange(size) + 0.5) / size) for n, size in zip(self.n_modes, shape, strict=True)
        ]
        return [(torch.cos(torch.pi * k * s) * (2 - (k == 0).double()).sqrt()).to(like) for k, s in axes]

    def analysis(self, field: Tensor) -> Tensor:
        a, b = self._waves(field.shape[-2:], field)
        return torch.einsum("...xy,kx,ly->...kl", field, a, b) / field.shape[-2:].numel() + 0j

    def synthesis(self, coefficients: Tensor, shape: Sequence[int]) -> Tensor:
        return torch.einsum("...kl,kx,ly->...xy", coefficients.real, *self._waves(shape, coefficients.real))

    def weights(self, shape: Sequence[int] | None = None, *, like: Tensor) -> Tensor:
        return torch.ones(self.mode_shape).to(like)

    def quadrature(self, shape: Sequence[int], *, like: Tensor) -> Tensor:
        return torch.full((1, 1), 1 / torch.Size(shape).numel()).to(like)


def test_a_basis_from_outside(tmp_path: Path) -> None:
    register_basis("half-waves")(HalfWaves)
    try:
        torch.manual_seed(0)
        sae = SAEFNO(2, 9, (4, 3), conv_module="half-waves", concept_rule=TopK(9))
    finally:
        for table in (bases._entries, bases._spelling):
            del table["half-waves"]
    x = torch.randn(3, 2, 9, 8, generator=torch.Generator().manual_seed(0))
    page = report(sae, x, path=tmp_path / "r.html", inputs=x, n_concepts=2, n_samples=1, high_resolution=x)
    text = page.read_text(encoding="utf-8")
    assert "Mode number</button>" in text
    assert "mode number</text>" in text
    assert 'id="overview-spectra"' in text
    assert 'id="overview-resolution"' in text
    assert len(re.findall('<details open class="card"', text)) == 2


@pytest.mark.parametrize(
    "sae",
    [
        lambda: SAEPointwise(3, 6, k=2),
        lambda: SAEPointwise(3, 6, k=2, grid="equiangular"),
        lambda: SAEMLP(3, 6, (9, 16), k=2),
        lambda: FieldPCA(3, 4, (9, 16)),
    ],
    ids=["pointwise", "globe", "mlp", "pca"],
)
def test_models_without_a_pointwise_part(sae: Any, tmp_path: Path) -> None:
    model, x = sae(), torch.randn(5, 3, 9, 16)
    model.initialize_from(x)
    page = report(model, x, path=tmp_path / "page.html", n_concepts=2, n_samples=1).read_text()
    assert type(model).__name__ in page


@pytest.mark.parametrize("n_dim", [1, 3])
def test_other_dimensions(n_dim: int, tmp_path: Path) -> None:
    sae = SAEFNO(2, 4, (3,) * n_dim, concept_rule=TopK(2))
    x = torch.randn(3, 2, *(6,) * n_dim, generator=torch.Generator().manual_seed(0))
    text = report(sae, x, path=tmp_path / "r.html", inputs=x[:, :1], n_concepts=1).read_text(encoding="utf-8")
    assert ("middle slice" in text) == (n_dim == 3)
    assert ("Maps show the middle slice of the first axis." in text) == (n_dim == 3)
    assert "Search by number or label;" in text
    card = re.findall(r'<details open class="card".*?</details>', text, re.DOTALL)[0]
    assert ("contours of the operator's input" in text) == ("with contours of the input" in card) == (n_dim == 3)
    assert ("Grey lines are the operator's input" in text) == ("with the input as a grey line" in card) == (n_dim == 1)
    assert ("linear-gradient" in card) == (n_dim == 3), "lines have no colours"
    assert bool(re.search(r'<div class="scale">from 0 to [\d.]+</div>', card)) == (n_dim == 1)


def test_one_sample_is_the_first_sample(sae: SAEFNO, activations: Tensor, tmp_path: Path) -> None:
    text = report(sae, activations[:1], path=tmp_path / "r.html", n_concepts=1).read_text(encoding="utf-8")
    assert "explained in the first sample when" in text


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"activations": [1.0]}, TypeError, "activations are a tensor"),
        ({"activations": torch.zeros(2, 3, 8)}, ValueError, "with 2 grid axes"),
        ({"activations": torch.zeros(2, 5, 8, 8)}, ValueError, "5 channels; this model was made for 3"),
        ({"inputs": torch.zeros(2, 1, 8, 8)}, ValueError, "inputs has 2 samples, activations 7"),
        ({"high_resolution": torch.zeros(9, 3, 8, 8)}, ValueError, "high_resolution has 9 samples"),
        ({"metrics": [1]}, TypeError, "metrics must be a mapping"),
        ({"history": {"loss": 1}}, TypeError, "history must be a sequence of mappings"),
        ({"n_concepts": 0}, ValueError, "n_concepts must be a positive int"),
        ({"probes": {}}, TypeError, "probes must be what probe returns"),
        ({"probes": pd.DataFrame({"concept": [0]})}, ValueError, "probes lacks the columns"),
        ({"effects": EFFECTS.assign(concept=12)}, ValueError, "effects is about concepts"),
        ({"stability": torch.ones(3)}, TypeError, "stability is another SAE"),
        ({"stability": {12: 0.5}}, ValueError, "stability names concepts"),
        ({"sae": "my_sae"}, TypeError, "sae must be an SAE"),
    ],
)
def test_refuses_what_does_not_fit(
    sae: SAEFNO, activations: Tensor, tmp_path: Path, change: dict[str, Any], error: type, message: str
) -> None:
    arguments: dict[str, Any] = {
        "sae": sae,
        "activations": activations,
        "path": tmp_path / "r.html",
        **change,
    }
    with pytest.raises(error, match=message):
        report(**arguments)
    assert not list(tmp_path.iterdir())


def test_unwritable_path_is_found_before_computing(
    sae: SAEFNO, activations: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("computed before the path was checked")

    monkeypatch.setattr(SAEFNO, "forward", fail)
    with pytest.raises(IsADirectoryError, match="is a folder: name a file in it"):
        report(sae, activations, path=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        report(sae, activations, path=tmp_path / "file" / "r.html")


def browse(page: Path, query: str, profile: Path, size: str = "800,600") -> str:
    """The page's document after its script ran in headless Chromium; fails on console errors."""
    assert CHROMIUM is not None
    switches = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    switches += " disable-component-update disable-sync disable-dev-shm-usage enable-logging=stderr v=0 dump-dom"
    command = [
        CHROMIUM,
        *(f"--{switch}" for switch in switches.split()),
        f"--user-data-dir={profile}",
        f"--window-size={size}",
    ]
    done = subprocess.run([*command, page.as_uri() + query], capture_output=True, text=True, timeout=60)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary: the page's script was not run in a browser")
def test_search_and_sort_in_a_browser(written: Path, tmp_path: Path) -> None:
    document = browse(written, "?sort=norm&order=ascending", tmp_path / "one")
    assert '<html lang="en" data-ready="true">' in document
    rows = Outline(document).rows()
    norms = [float(row["data-norm"]) for row in rows]
    assert norms == sorted(norms)
    assert len(norms) == 12
    assert re.search(r'data-key="norm" aria-sort="ascending"', document)
    assert re.search(r'data-key="share" aria-sort="none"', document)

    clicks = "for (const key of ['area', 'area']) document.querySelector(`[data-key=${key}] button`).click();"
    clicks += "document.getElementById('alive').click(); document.getElementById('fold').click();"
    clicked = tmp_path / "clicked.html"
    clicked.write_text(written.read_text(encoding="utf-8") + f"<script>{clicks}</script>", encoding="utf-8")
    document = browse(clicked, "", tmp_path / "clicks")
    rows = Outline(document.replace("</html>", "")).rows()
    areas = [float(row["data-area"]) for row in rows]
    assert areas == sorted(areas)
    assert all(("hidden" in row) == (row.get("class") == "dead") for row in rows)
    assert "Expand all cards" in document
    assert '<details open="" class="card"' not in document

    document = browse(written, "?q=strain&sort=effect", tmp_path / "three")
    found = Outline(document).rows()
    assert all("hidden" not in row for row in found)
    effects = [float(row["data-effect"]) for row in found if "data-effect" in row]
    assert effects == sorted(effects, reverse=True)
    assert "data-effect" not in found[-1]

    document = browse(written, "?q=smooth&sort=index", tmp_path / "two")
    visible = [row["data-index"] for row in Outline(document).rows() if "hidden" not in row]
    assert visible == ["3"]
    assert "1 of 12 concepts</output>" in document
    assert html.unescape(json.dumps(LABELS[0])[1:6]) in html.unescape(document)


def with_script(page: Path, script: str, path: Path) -> Path:
    """A page that also runs a script once it has loaded."""
    script = f'<script>addEventListener("load", () => {{ {script} }});</script>'
    path.write_text(page.read_text(encoding="utf-8").replace("</body>", script + "</body>"), encoding="utf-8")
    return path


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary: the page's script was not run in a browser")
def test_links_numbers_and_missing_values_in_a_browser(sae: SAEFNO, activations: Tensor, tmp_path: Path) -> None:
    page = report(
        sae,
        activations,
        path=tmp_path / "r.html",
        labels={7: "mode 3 of the walls", 8: "mode 30"},
        probes=PROBES.replace({"strain": "strain 0.5"}),
        effects=EFFECTS.assign(effect=EFFECTS.effect.where(EFFECTS.concept != 4)),
        n_concepts=3,
        n_samples=1,
    )
    number = re.findall(r'<a href="#concept-(\d+)">', page.read_text(encoding="utf-8"))[0]
    script = """const found = {}, rows = () => [...document.querySelectorAll("#concepts tbody tr")];
    for (const query of ["3", "30", "0.5", "5", "mode 3"]) {
      search.value = query;
      search.dispatchEvent(new Event("input"));
      found[query] = rows().filter(row => !row.hidden).map(row => Number(row.dataset.index)).sort((a, b) => a - b);
    }
    for (let i = 0; i < 2; i++) {
      const head = document.querySelector("[data-key=effect]");
      head.querySelector("button").click();
      found[head.ariaSort] = rows().map(row => row.dataset.effect ?? "none");
    }
    const card = document.getElementById("concept-NUMBER");
    card.open = false;
    document.querySelector("#concepts a[href='#concept-NUMBER']").click();
    found.open = card.open;
    document.body.dataset.found = JSON.stringify(found);""".replace("NUMBER", number)
    document = browse(with_script(page, script, tmp_path / "page.html"), f"#concept-{number}", tmp_path / "profile")
    found = json.loads(next(attributes["data-found"] for tag, attributes in Outline(document).tags if tag == "body"))
    assert found["open"], "a link to a card that was closed again left it closed"
    for order in ("ascending", "descending"):
        *known, last_but_one, last = found[order]
        assert (last_but_one, last) == ("nan", "none")
        assert list(map(float, known)) == sorted(map(float, known), reverse=order == "descending")
    searched = {query: found[query] for query in ("3", "30", "0.5", "5", "mode 3")}
    assert searched == {"3": [3, 7], "30": [8], "0.5": list(range(12)), "5": [5], "mode 3": [7]}


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary: the page was not laid out")
@pytest.mark.parametrize("size", ["800,900", "500,900"])
def test_figures_stay_legible_and_are_reached_where_they_scroll(written: Path, tmp_path: Path, size: str) -> None:
    script = """for (const each of document.querySelectorAll(".scroll")) {
      const svg = each.querySelector("svg"), natural = parseFloat(svg.style.getPropertyValue("--natural"));
      each.dataset.scrolls = each.scrollWidth > each.clientWidth;
      each.dataset.shrunk = svg.getBoundingClientRect().width / natural;
    }"""
    document = browse(with_script(written, script, tmp_path / "page.html"), "", tmp_path / "profile", size)
    found = [attributes for _, attributes in Outline(document).tags if attributes.get("class") == "scroll"]
    assert len(found) == len(re.findall('<figure class="panel', document))
    assert size != "500,900" or any(each["data-scrolls"] == "true" for each in found)
    for each in found:
        assert float(each["data-shrunk"]) >= (0.99 if size == "500,900" else 0.84)
        if each["data-scrolls"] == "true":
            assert (each["tabindex"], each["role"]) == ("0", "group")
            assert each["aria-label"].endswith(" (scrolls sideways)")
        else:
            assert not {"tabindex", "role", "aria-label"} & set(each)
    assert any(each.get("aria-label") == "Training (scrolls sideways)" for each in found) == (size == "500,900")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary: the page was not laid out")
def test_nothing_is_clipped_on_paper(sae: SAEFNO, activations: Tensor, tmp_path: Path) -> None:
    long = "a_quantity_with_a_name_of_38_letters__"
    page = report(
        sae,
        activations,
        path=tmp_path / "r.html",
        labels={0: "walls " * 20},
        probes=PROBES.replace({"strain": long}),
        effects=EFFECTS.replace({"drag": long}).assign(effect=-1.234e-7, low=-1.234e-7, high=-1.234e-8),
        stability=STABILITY,
        n_concepts=3,
    )
    page.write_text(page.read_text(encoding="utf-8").replace("@media print", "@media all"), encoding="utf-8")
    script = """const wide = [...document.querySelectorAll("main *")].filter(each => !each.parentElement.closest("svg")
      && each.getBoundingClientRect().right > document.documentElement.clientWidth + 1);
    const tables = [...document.querySelectorAll("table")].filter(each =>
      each.getBoundingClientRect().right > each.parentElement.getBoundingClientRect().right + 1);
    document.body.dataset.clipped = [...wide, ...tables].map(each => each.tagName).join(" ");"""
    # A4 with margins of a centimetre is 717 pixels wide.
    document = browse(with_script(page, script, tmp_path / "paper.html"), "", tmp_path / "profile", "717,1000")
    assert 'data-clipped=""' in document
