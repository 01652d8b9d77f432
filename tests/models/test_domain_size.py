"""SAEs on a box of another length: what keeps its size, and what stretches."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import neuralop_sae as ns
from neuralop_sae.layers import FourierBasis
from neuralop_sae.layers.domain_size import basis_on, kernels_on
from neuralop_sae.testing import assert_equal, check_model

WIDTH = 0.07
GRID, MODES = (32, 32), (17, 17)


def gabors(p: int, m: int, basis: FourierBasis) -> Tensor:
    """Kernels ``(p, m, *mode_shape)`` that fit the unit box: waves of up to four cycles under an envelope of width .07."""
    s = (torch.arange(GRID[0], dtype=torch.float64) / GRID[0] + 0.5) % 1 - 0.5
    s1, s2 = torch.meshgrid(s, s, indexing="ij")
    angle, cycles = torch.rand(2, p, 1, 1, 1, dtype=torch.float64)
    phase = 2 * math.pi * torch.rand(p, m, 1, 1, dtype=torch.float64)
    along = (2 * math.pi * angle).cos() * s1 + (2 * math.pi * angle).sin() * s2
    waves = torch.cos(2 * math.pi * 4 * cycles * along + phase) * torch.exp(-(s1**2 + s2**2) / (2 * WIDTH**2))
    return basis.analysis(waves / waves.square().mean((1, 2, 3), keepdim=True).sqrt())


def make(p: int = 6, m: int = 2, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    sae: Any = ns.SAEFNO(m, p, MODES, **{"concept_rule": "All", "domain_rule": "Rectify", "skip": None} | kwargs)
    sae = sae.double().eval()
    with torch.no_grad():
        sae.concept_decoder.conv.weight.tensor.copy_(gabors(p, m, sae.basis))
        sae.concept_encoder.copy_adjoint(sae.concept_decoder)
    return sae


def smooth(n: int, seed: int) -> Tensor:
    """Random fields of up to six cycles, ``(n, 2, *GRID)``."""
    basis, generator = FourierBasis((13, 13)), torch.Generator().manual_seed(seed)
    pairs = torch.randn(n, 2, *basis.mode_shape, 2, dtype=torch.float64, generator=generator)
    return basis.synthesis(torch.view_as_complex(pairs), GRID)


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).detach())[0, 1])


@pytest.mark.parametrize("length", [0.7, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("n_modes", [(5, 5), (4, 6)])
def test_coefficients_are_integrals_over_the_old_box(n_modes: tuple[int, int], length: float) -> None:
    """Of the kernel times a wave of the new box, by Gauss-Legendre quadrature in double precision."""
    old, lengths = FourierBasis(n_modes), (length, 1.0)
    pairs = torch.randn(*old.mode_shape, 2, dtype=torch.float64)
    coefficients = torch.view_as_complex(pairs)
    nodes, weights = (torch.tensor(part) / 2 for part in np.polynomial.legendre.leggauss(60))
    new = basis_on(old, lengths)
    frequencies = [torch.tensor(list(k), dtype=torch.float64) for k in old.frequencies()]
    waves = [torch.exp(2j * math.pi * k[:, None] * nodes) for k in frequencies]
    twice = old.weights(like=nodes)  # an entry stands for its mirror image too
    kernel = torch.einsum("kl,kx,ly->xy", twice * coefficients, *waves).real
    wanted = [torch.tensor(list(k), dtype=torch.float64) / c for k, c in zip(new.frequencies(), lengths, strict=True)]
    against = [torch.exp(-2j * math.pi * k[:, None] * nodes) * weights for k in wanted]
    expected = torch.einsum("kx,ly,xy->kl", *against, kernel + 0j)
    assert_equal("coefficients", kernels_on(old, coefficients, lengths), expected)


@pytest.mark.parametrize("n_modes", [(5, 5), (4, 6), (1, 3)])
def test_a_box_of_the_same_length_changes_nothing(n_modes: tuple[int, int]) -> None:
    sae = ns.SAEFNO(2, 6, n_modes, concept_rule="All").double().eval()
    x = torch.randn(2, 2, 8, 9, dtype=torch.float64)
    assert_equal("reconstruction", sae.on_domain(1)(x).reconstruction, sae(x).reconstruction)


@pytest.mark.parametrize("encoder", ["linear", "tied", "unrolled"])
def test_codes_inside_two_halves_are_those_of_the_halves(encoder: str) -> None:
    """Away from the seams, where kernels see both halves. With modes that keep their numbers concepts are twice as long."""
    sae = make(encoder=encoder, n_iterations=3)
    left, right = smooth(4, 1), smooth(4, 2)
    whole = torch.cat([left, right], 2)
    inside = slice(GRID[0] // 4, 3 * GRID[0] // 4)
    expected = torch.cat([sae.encode(half).to_dense()[:, :, inside] for half in (left, right)], 2)
    found = {}
    for domain in ("physical", "index"):
        codes = sae.on_domain((2, 1), domain).encode(whole).to_dense()
        assert codes.shape == (4, 6, 2 * GRID[0], GRID[1])
        found[domain] = torch.cat([half[:, :, inside] for half in codes.chunk(2, 2)], 2)
    assert correlation(found["physical"], expected) > 0.99
    assert correlation(found["index"], expected) < 0.9


@pytest.mark.parametrize("length", [0.75, 1.5, 4.0])
def test_a_shifted_blob_has_the_same_code_on_any_box(length: float) -> None:
    """A field that is one concept's atom at one place, in a box that need not be a whole multiple."""
    sae = make()
    n = round(GRID[0] * length)
    grid = (n, GRID[1])
    longer = sae.on_domain((length, 1))
    code = torch.zeros(1, 6, *GRID, dtype=torch.float64)
    code[0, 0, 16, 16], position = GRID[0] * GRID[1], n // 3
    moved = torch.zeros(1, 6, *grid, dtype=torch.float64)
    moved[0, 0, position, 16] = n * GRID[1] / length  # an impulse of the same physical area
    fields = [model.concept_decoder.dense_forward(impulse) for model, impulse in ((sae, code), (longer, moved))]
    codes = [model.encode(model.denormalize(x)).to_dense() for model, x in zip((sae, longer), fields, strict=True)]
    window = slice(16 - 8, 16 + 8)
    expected, found = codes[0][:, :, window].detach(), codes[1].roll(16 - position, 2)[:, :, window].detach()
    assert float((found - expected).norm() / expected.norm()) < 0.02


def test_atoms_keep_their_physical_size() -> None:
    sae, twice = make(), [2 * size for size in GRID]
    atoms, middle = sae.atoms(range(6), GRID), slice(GRID[0] // 2, 3 * GRID[0] // 2)

    def width(atoms: Tensor) -> float:
        """Root mean square distance from the middle along the first axis, in grid steps."""
        steps = torch.arange(atoms.shape[2], dtype=torch.float64) - atoms.shape[2] // 2
        return math.sqrt(float((atoms.square().sum((0, 1, 3)) * steps**2).sum() / atoms.square().sum()))

    physical, index = (sae.on_domain(2, domain).atoms(range(6), twice) for domain in ("physical", "index"))
    assert min(correlation(a, b) for a, b in zip(physical[:, :, middle, middle], atoms, strict=True)) > 0.999
    assert abs(width(physical) / width(atoms) - 1) < 0.01
    assert abs(width(index) / width(atoms) - 2) < 0.02


def test_the_reconstruction_keeps_its_error() -> None:
    """On fields that the dictionary can write; concepts that stretch cannot write them."""
    sae = make()
    codes = torch.relu(torch.randn(4, 6, *GRID, dtype=torch.float64) - 2)
    halves = [sae.denormalize(sae.concept_decoder.dense_forward(part)) for part in (codes[:2], codes[2:])]
    halves = [half.detach() for half in halves]
    whole = torch.cat(halves, 2)

    def error(model: Any, x: Tensor) -> float:
        written = model(x).reconstruction.detach()
        best = (written * x).sum() / written.square().sum()  # the encoder was not trained: its scale is arbitrary
        return float((x - best * written).norm() / x.norm())

    before = sum(error(sae, half) for half in halves) / 2
    assert abs(error(sae.on_domain((2, 1)), whole) - before) < 0.05 * before
    assert error(sae.on_domain((2, 1), "index"), whole) > 1.1 * before


@pytest.mark.parametrize("encoder", ["linear", "tied", "unrolled"])
def test_contract(encoder: str) -> None:
    sae = ns.SAEFNO(2, 6, (5, 4), encoder=encoder, concept_rule=ns.TopK(2), code_grid=(6, 7))
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
    longer = sae.on_domain((1.5, 1))
    assert longer.n_modes == (9, 5)
    assert longer.code_grid == (9, 7)
    check_model(longer, torch.randn(3, 2, 12, 9))


@pytest.mark.parametrize(
    ("arguments", "lengths", "domain", "message"),
    [
        ({}, (2, 1, 1), "physical", "lengths are 2 positive factors on the lengths of the box of training"),
        ({}, 0, "physical", "got 0"),
        ({}, float("nan"), "physical", "got nan"),
        ({}, 2, "integer", "unknown domain 'integer'; known: 'physical'"),
        ({"factorization": "tucker", "rank": 0.5}, 2, "physical", "factorised or real, but have to be dense and complex"),
        ({"encoder": "fno_block"}, 2, "physical", "the operators of 'fno_block' stretch"),
        ({"conv_module": "SphericalConv", "n_modes": (4, 8)}, 2, "physical", "concepts over SphericalBasis"),
    ],
)
def test_refusals(arguments: dict[str, Any], lengths: Any, domain: str, message: str) -> None:
    sae = ns.SAEFNO(**{"in_channels": 2, "n_concepts": 6, "n_modes": (5, 5), **arguments})
    with pytest.raises(ValueError, match=re.escape(message)):
        sae.on_domain(lengths, domain)


def repeated(x: Tensor) -> Tensor:
    """The same field on a box twice as long, where it comes twice."""
    return torch.cat([x, x], -1)


MODELS: dict[str, ns.SAE] = {
    "fixed taps": ns.SAECNN(2, 6, (5, 5)),
    "physical taps": ns.SAECNN(2, 6, (5, 5), taps="physical", reference_grid=(12, 12)),
    "pointwise": ns.SAEPointwise(2, 6, k=2),
    "principal components": ns.PCA(2, 2),
}


@pytest.mark.parametrize("lift", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_models_to_compare_with_keep_their_concepts_too(name: str, lift: bool) -> None:
    sae: ns.SAE = ns.Lifted(MODELS[name], channels=2) if lift else MODELS[name]
    sae = sae.double().eval()
    x = torch.randn(3, 2, 24, 24, dtype=torch.float64)
    codes = sae.encode(x).to_dense()
    assert_equal("codes", sae.on_domain((1, 2)).encode(repeated(x)).to_dense(), repeated(codes))
    assert_equal("codes by index", sae.on_domain((1, 2), "index").encode(x).to_dense(), codes)
    stretched = sae.on_domain((1, 2), "index").encode(repeated(x)).to_dense()
    assert torch.allclose(stretched, repeated(codes)) == (name != "physical taps")


@pytest.mark.parametrize("encoder", ["linear", "tied", "unrolled"])
def test_a_lifted_model_changes_its_domain_inside(encoder: str) -> None:
    lifted = ns.Lifted(make(encoder=encoder), channels=3).double().eval()
    longer = lifted.on_domain((1, 2))
    assert longer.inner.n_modes == lifted.inner.on_domain((1, 2)).n_modes
    assert type(longer)(**longer.config()).inner.n_modes == longer.inner.n_modes
    x = smooth(2, 0)
    alike = correlation(longer.encode(repeated(x)).to_dense(), repeated(lifted.encode(x).to_dense()))
    assert alike > 0.99
    check_model(longer, repeated(x))


def test_a_factorised_model_by_index_is_a_copy() -> None:
    sae = ns.SAEFNO(2, 6, (5, 5), factorization="tucker", rank=0.5).eval()
    x = torch.randn(2, 2, 12, 12)
    assert torch.equal(sae.on_domain(2, "index")(x).reconstruction, sae(x).reconstruction)


@pytest.mark.parametrize(
    ("sae", "lengths", "message"),
    [
        (ns.SAEMLP(2, 6, (8, 8), k=2), 2, "it has weights for each point of its own grid (8, 8)"),
        (ns.SAEPointwise(2, 6, grid="equiangular"), 2, "is on the sphere, which has no box of another length"),
        (MODELS["physical taps"], 1.3, "have to be whole numbers"),
        (ns.Lifted(ns.SAEMLP(2, 6, (8, 8), k=2), channels=3), 2, "it has weights for each point"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_refusals_of_models_to_compare_with(sae: ns.SAE, lengths: float, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        sae.on_domain(lengths)
