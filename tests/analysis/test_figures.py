"""What figures draw against the tensors they were given; numbers behind them against plain computations."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from neuralop_sae.analysis import figures, mollweide, summaries
from neuralop_sae.analysis.drawing import INK, ColorScale, area_of, contour_levels, plane
from neuralop_sae.codes import ConceptCodes
from neuralop_sae.layers.concept_rules import TopK
from neuralop_sae.layers.domain_rules import Rectify
from neuralop_sae.layers.fourier import FourierBasis
from neuralop_sae.layers.spherical import SphericalBasis
from neuralop_sae.models import SAEFNO, SAESFNO


def make_sae(n_dim: int = 2, n_modes: int = 5, seed: int = 0) -> SAEFNO:
    torch.manual_seed(seed)
    sae = SAEFNO(3, 10, (n_modes,) * n_dim, concept_rule=TopK(4), domain_rule=Rectify())
    return sae.eval()


@pytest.fixture(scope="module")
def sae() -> SAEFNO:
    return make_sae()


@pytest.fixture(scope="module")
def fields() -> Tensor:
    return torch.randn(5, 3, 12, 10, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def codes(sae: SAEFNO, fields: Tensor) -> ConceptCodes:
    with torch.no_grad():
        return sae.encode(fields)


def drawn(ax: object) -> np.ndarray:
    return np.asarray(ax.images[0].get_array())  # type: ignore[attr-defined]


def test_strongest_concepts_are_those_of_most_decoded_energy(sae: SAEFNO, codes: ConceptCodes) -> None:
    dense = codes.to_dense().double()
    energy = dense.square().mean((2, 3)).sum(0) * sae.kernel_norms().double() ** 2
    concepts, shares = summaries.strongest_concepts(codes, sae, 4)
    assert concepts.tolist() == energy.argsort(descending=True)[:4].tolist()
    torch.testing.assert_close(shares, energy[concepts] / energy.sum(), rtol=1e-5, atol=0)
    assert len(summaries.strongest_concepts(codes, sae, 99)[0]) == 10


def test_summary_equals_a_dense_computation(sae: SAEFNO, fields: Tensor, codes: ConceptCodes) -> None:
    summary = summaries.summarize(sae, fields, n_samples=3, batch_size=2)
    dense = codes.to_dense().double()
    norms, on = dense.square().mean((2, 3)).sqrt(), dense != 0
    torch.testing.assert_close(summary.frequency, (norms > 0).double().mean(0))
    area = on.double().mean((2, 3))
    torch.testing.assert_close(summary.area, area.sum(0) / (norms > 0).sum(0).clamp_min(1))
    best = norms.topk(3, 0)
    torch.testing.assert_close(summary.norms, best.values.T, rtol=1e-5, atol=1e-7)
    positive = best.values.T > 0
    assert torch.equal(summary.samples[positive], best.indices.T[positive])
    with torch.no_grad():
        error = (sae(fields).reconstruction - fields).double().square().sum()
    variance = (fields - fields.mean((0, 2, 3), keepdim=True)).double().square().sum()
    assert summary.metrics["fve"] == pytest.approx(float(1 - error / variance), abs=1e-6)
    assert summary.metrics["l0"] == pytest.approx(float((norms > 0).sum(1).double().mean()))
    assert summary.metrics["l0_local"] == pytest.approx(float(on.double().sum(1).mean()))
    assert summary.metrics["dead_fraction"] == pytest.approx(float(((norms > 0).sum(0) == 0).double().mean()))


@pytest.mark.parametrize("n_modes", [5, 6])
def test_spectra_sum_to_the_kernel_norm_and_have_the_shape_of_the_impulse(n_modes: int) -> None:
    sae = make_sae(n_modes=n_modes)
    spectra = summaries.atom_spectra(sae, range(10))
    torch.testing.assert_close(spectra.energy.sum(1), sae.kernel_norms().detach().double() ** 2, rtol=1e-5, atol=0)
    with torch.no_grad():
        for weight in sae.concept_decoder.conv.parameters():
            weight.zero_()
    flat = summaries.atom_spectra(sae, [0, 1])
    torch.testing.assert_close(flat.gain(), torch.ones_like(flat.energy), rtol=1e-5, atol=0)


def test_dominant_wavenumber_is_that_of_a_concept_made_of_one_wave(sae: SAEFNO) -> None:
    class OneWave(SAEFNO):
        def atoms(self, concepts: object, shape: object) -> Tensor:
            at = torch.arange(shape[0]) / shape[0]  # type: ignore[index]
            return torch.cos(2 * math.pi * 2 * at)[:, None].expand(1, 3, *shape)  # type: ignore[misc]

    wave = OneWave(3, 10, (5, 5))
    spectra = summaries.atom_spectra(wave, [0])
    assert spectra.dominant().tolist() == [2]
    torch.testing.assert_close(spectra.energy[0, 2], torch.tensor(1.5, dtype=torch.float64), rtol=1e-6, atol=0)


def test_leading_component_is_that_of_the_singular_value_decomposition(sae: SAEFNO) -> None:
    maps, shares = summaries.leading_components(sae, [2, 7], (12, 10))
    for concept, shown, share in zip((2, 7), maps, shares, strict=True):
        _, s, vh = np.linalg.svd(sae.atoms([concept], (12, 10))[0].double().flatten(1).numpy(), full_matrices=False)
        expected = s[0] * vh[0] * np.sign(vh[0][np.abs(vh[0]).argmax()])
        np.testing.assert_allclose(shown.flatten().numpy(), expected, atol=1e-6)
        assert float(share) == pytest.approx(s[0] ** 2 / (s**2).sum(), rel=1e-6)


def test_code_maps_are_the_codes_and_share_a_scale_within_a_row(codes: ConceptCodes, fields: Tensor) -> None:
    concepts = codes.concept[codes.sample == 0][:2].tolist()
    figure = figures.code_maps_figure(codes, concepts, [0, 3], background=fields)
    dense = codes.to_dense()
    axes = [ax for ax in figure.axes if ax.images]
    for ax, (concept, sample) in zip(axes, [(c, s) for c in concepts for s in (0, 3)], strict=True):
        np.testing.assert_allclose(drawn(ax), dense[sample, concept].numpy(), rtol=1e-6)
    assert axes[0].images[0].get_clim() == axes[1].images[0].get_clim()
    assert axes[0].get_ylabel() == f"concept {concepts[0]}"
    assert axes[1].get_title() == "sample 3"
    assert axes[0].collections, "no contours of the background"
    named = figures.code_maps_figure(codes, concepts, [0, 3], numbers=[12, 45])
    assert [ax.get_title() for ax in named.axes[:2]] == ["sample 12", "sample 45"]
    of_concepts = figures.dominance_figure(codes, make_sae(), concepts, [0, 3], numbers=[12, 45])
    assert [ax.get_title() for ax in of_concepts.axes] == ["sample 12", "sample 45"]


def test_reconstruction_shares_scales(fields: Tensor) -> None:
    rebuilt = fields * torch.tensor([1.0, 0.5, 3.0]).view(3, 1, 1)
    figure = figures.reconstruction_figure(fields, rebuilt, sample=1, n_channels=1)
    channel = int(fields[1].flatten(1).var(1).argmax())
    original, copy, error = (ax for ax in figure.axes if ax.images)
    np.testing.assert_allclose(drawn(original), fields[1, channel].numpy(), rtol=1e-6)
    np.testing.assert_allclose(drawn(error), (rebuilt - fields)[1, channel].numpy(), atol=1e-6)
    limits = [ax.images[0].get_clim() for ax in (original, copy, error)]
    assert limits[0] == limits[1]
    assert np.ptp(limits[2]) == pytest.approx(np.ptp(limits[0]))
    assert sum(limits[2]) == 0


@pytest.mark.parametrize(
    ("grid", "values", "color"),
    [((8,), torch.ones(8), INK), ((4, 4), torch.ones(4, 4), "white"), ((4, 4), torch.linspace(-1, 1, 16), "black")],
)
def test_a_concept_that_is_off_is_said_to_be_in_a_color_that_is_seen(
    grid: tuple[int, ...], values: Tensor, color: str
) -> None:
    basis = FourierBasis((3,) * len(grid))
    codes = ConceptCodes(torch.tensor([0]), torch.tensor([0]), values.view(1, *grid), 2, 1, basis)
    (said,) = [text for ax in figures.code_maps_figure(codes, [0], [0, 1]).axes for text in ax.texts]
    assert (said.get_text(), said.get_color()) == ("off", color)
    assert [ax.get_title() for ax in figures.resolution_figure(codes, codes, [0], 1).axes[2:3]] == ["off"]


def test_atoms_say_which_part_and_how_much_of_the_energy(sae: SAEFNO) -> None:
    axes = np.array([ax for ax in figures.atoms_figure(sae, range(8), (8, 8)).axes[:24]]).reshape(4, 6)
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["atom", "without the\npointwise part"] * 2
    share = summaries.leading_components(sae, [7], (8, 8))[1]
    assert axes[2, 1].get_title() == f"concept 7\n{100 * float(share):.0f} % of its energy"


def test_dominance_is_the_argmax_of_written_strength(sae: SAEFNO, codes: ConceptCodes) -> None:
    strength = codes.to_dense()[0] * sae.kernel_norms().detach().view(-1, 1, 1)
    named = strength.flatten(1).sum(1).argsort(descending=True)[:2].tolist()
    got = summaries.dominant_concepts(codes, sae, named, 0)
    best, concept = strength.max(0)
    expected = torch.full_like(concept, 2)
    for i, c in enumerate(named):
        expected[concept == c] = i
    assert torch.equal(got, torch.where(best > 0, expected, -1))
    assert len(figures.dominance_figure(codes, sae, named, [0, 1]).axes) == 2


def test_resolution_compares_codes_where_grids_meet(sae: SAEFNO) -> None:
    coefficients = torch.randn(1, 3, 5, 3, dtype=torch.cfloat, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        low, high = (sae.encode(FourierBasis((5, 5)).synthesis(coefficients, n)) for n in ((12, 12), (24, 24)))
    concept = int(low.concept[0])
    torch.testing.assert_close(high.basis.restrict(high.of(concept), (12, 12)), low.of(concept), rtol=1e-4, atol=1e-5)
    figure = figures.resolution_figure(low, high, [concept])
    assert [ax.get_title() for ax in figure.axes[:3]] == ["12 \u00d7 12", "24 \u00d7 24", "r = 1.000"]


def test_fields_share_scales_and_name_norms(fields: Tensor) -> None:
    figure = figures.fields_figure({"a": fields[0], "b": 3 * fields[0], "c": fields[0, :1]}, shared=[("a", "b")])
    a, b, c = (ax for ax in figure.axes if ax.images)
    np.testing.assert_allclose(drawn(b), 3 * fields[0].norm(dim=0).numpy(), rtol=1e-6)
    assert a.images[0].get_clim() == b.images[0].get_clim()
    assert "norm over channels" in a.get_title()
    assert c.get_title() == "c"
    for wrong, message in (({}, "no fields"), ({"a": fields}, "axes: pass")):
        with pytest.raises(ValueError, match=message):
            figures.fields_figure(wrong)
    with pytest.raises(ValueError, match=r"shared names \['z'\]"):
        figures.fields_figure({"a": fields[0]}, shared=[("a", "z")])


@pytest.mark.parametrize("n_dim", [1, 3])
def test_other_dimensions(n_dim: int) -> None:
    sae, shape = make_sae(n_dim, n_modes=3), (8, 6, 7)[:n_dim]
    x = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        codes = sae.encode(x)
    concept = int(codes.concept[0])
    ax = figures.code_maps_figure(codes, [concept], [0], background=x).axes[0]
    code = codes.of(concept)[0]
    shown = ax.lines[-1].get_ydata() if n_dim == 1 else drawn(ax)
    np.testing.assert_allclose(shown, (code if n_dim == 1 else code[4]).numpy(), rtol=1e-6)
    for figure in (
        figures.reconstruction_figure(x, x),
        figures.dominance_figure(codes, sae, [concept], [0, 1], x),
        figures.concept_figure(sae, x, concept, inputs=x),
        figures.resolution_figure(codes, codes, [concept]),
        figures.atoms_figure(sae, [0, 1], shape),
    ):
        figure.draw_without_rendering()
        boxes = [box for ax in figure.axes if ax.get_title() and (box := ax.title.get_window_extent())]
        assert not any(a.overlaps(b) for a, b in combinations(boxes, 2)), "titles overlap"
    titles = [t.get_text() for t in [figures.reconstruction_figure(x, x).axes[0].title]]
    assert ("middle slice of the first axis" in titles[0]) == (n_dim == 3)
    for figure in (
        figures.atoms_figure(sae, [0, 1], shape),
        figures.spectra_figure(sae, [0, 1]),
        figures.dominance_figure(codes, sae, [concept], [0], x),
    ):
        figure.canvas.draw()
    with pytest.raises(ValueError, match="1 to 3 dimensions"):
        plane(torch.zeros(2, 2, 2, 2))


def test_color_scales_and_contours() -> None:
    assert ColorScale.of(torch.tensor([-1.0, 2.0])) == ColorScale("RdBu_r", -2.0, 2.0)
    assert ColorScale.of(torch.tensor([0.5, 2.0])) == ColorScale("viridis", 0.0, 2.0)
    gelu = ColorScale.of(torch.tensor([-0.125, 4.0]), torch.tensor([8.0]))
    assert gelu == ColorScale("viridis", -0.125, 8.0)
    assert ColorScale.of(torch.zeros(3)) == ColorScale("viridis", 0.0, 1.0)
    assert contour_levels(torch.tensor([3.0, 12.0, 3.0])) == [7.5]
    assert contour_levels(torch.ones(4)) == []
    quartiles = contour_levels(torch.arange(1001.0).flip(0))
    assert quartiles == pytest.approx([250.0, 500.0, 750.0], abs=0.5)


@pytest.fixture(scope="module")
def sphere() -> SAESFNO:
    torch.manual_seed(0)
    return SAESFNO(3, 10, (5, 10), concept_rule=TopK(4), domain_rule=Rectify(), isotropic=True).eval()


@pytest.fixture(scope="module")
def globes() -> Tensor:
    return torch.randn(2, 3, 9, 16, generator=torch.Generator().manual_seed(1))


def test_spectra_on_the_sphere(sphere: SAESFNO) -> None:
    """Energies sum to the kernel's norm; without spectral weights a concept copies; one harmonic is one degree."""
    spectra = summaries.atom_spectra(sphere, range(10), (9, 16))
    torch.testing.assert_close(spectra.energy.sum(1), sphere.kernel_norms().detach().double() ** 2, rtol=1e-5, atol=0)
    torch.testing.assert_close(spectra.impulse / spectra.impulse[0], 2.0 * torch.arange(5).double() + 1, rtol=1e-5, atol=0)

    class OneHarmonic(SAESFNO):
        def atoms(self, concepts: object, shape: tuple[int, int]) -> Tensor:
            coefficients = torch.zeros(5, 5, dtype=torch.complex128)
            coefficients[3, 2] = 1.0
            return self.basis.synthesis(coefficients, shape).expand(1, 3, *shape)

    spectra = summaries.atom_spectra(OneHarmonic(3, 10, (5, 10)), [0])
    assert spectra.dominant().tolist() == [3]
    torch.testing.assert_close(spectra.energy[0], torch.tensor([0, 0, 0, 3 * 2.0, 0]).double(), rtol=0, atol=1e-12)


def test_fields_on_the_sphere_are_maps_of_the_globe(sphere: SAESFNO, globes: Tensor) -> None:
    with torch.no_grad():
        codes = sphere.encode(globes)
    concept = int(codes.concept[0])
    colatitudes = sphere.basis.colatitudes(9)
    assert colatitudes is not None
    shown = [
        (figures.code_maps_figure(codes, [concept], [0], background=globes), codes.of(concept)[0]),
        (figures.fields_figure({"a": globes[0, :1]}, basis=sphere.basis), globes[0, 0]),
        (
            figures.reconstruction_figure(globes, globes, 1, 1, basis=sphere.basis),
            globes[1, globes[1].flatten(1).var(1).argmax()],
        ),
        (figures.resolution_figure(codes, codes, [concept]), codes.of(concept)[0]),
        (
            figures.dominance_figure(codes, sphere, [concept], [0], globes),
            summaries.dominant_concepts(codes, sphere, [concept], 0),
        ),
        (figures.field_image(globes[0, 0], ColorScale.of(globes), sphere.basis), globes[0, 0]),
    ]
    for figure, values in shown:
        figure.canvas.draw()
        np.testing.assert_allclose(drawn(figure.axes[0]), mollweide.pixels(values.double(), colatitudes).numpy())
        assert figure.axes[0].images[0].get_extent() == list(mollweide.EXTENT)
    lines = [len(figure.axes[0].collections) for figure, _ in shown]
    assert lines[0] == lines[4] == lines[1] + 1, "no contours of the background"


def test_contours_on_the_sphere_are_quartiles_of_its_area() -> None:
    """A quarter of the sphere lies north of 30 degrees, where the sine of latitude is a half."""
    basis = SphericalBasis((8, 16))
    field = basis.colatitudes(181)[:, None].cos().expand(181, 360)
    levels = contour_levels(field, area_of(basis, field))
    assert levels == pytest.approx([-0.5, 0.0, 0.5], abs=0.01)


def test_atoms_on_the_sphere_are_in_the_middle_of_the_map(sphere: SAESFNO) -> None:
    image = drawn(figures.atoms_figure(sphere, [4], (17, 32)).axes[0])
    row, column = np.argwhere(image == np.nanmax(image)).mean(0) / image.shape
    assert (row, column) == pytest.approx((0.5, 0.5), abs=0.01)


def test_importing_the_package_does_not_import_matplotlib() -> None:
    code = "import sys, neuralop_sae, neuralop_sae.analysis.figures; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
