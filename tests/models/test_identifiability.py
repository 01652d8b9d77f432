"""Without domain sparsity the kernels of an SAE mean nothing: they can be traded against the codes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import neuralop_sae as ns
from neuralop_sae.layers import FourierBasis


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm())


def random_filter(basis: FourierBasis, *shape: int) -> Tensor:
    """Spectra of real, invertible functions, ``(*shape, *mode_shape)``: of size 1/2 to 2, with any phase."""
    pairs = torch.randn(*shape, *basis.mode_shape, 2, dtype=torch.float64)
    spectrum = basis.gram(torch.view_as_complex(pairs))
    sizes = basis.gram(torch.rand(*shape, *basis.mode_shape, dtype=torch.float64) + 0j).real
    return spectrum / spectrum.abs() * 4 ** (2 * sizes - 1).clamp(-0.5, 0.5)


def traded(sae: Any, g: Tensor) -> Any:
    """The model with kernels ``d_c * g_c``, whose encoder reads ``g_c^-1 * z_c``."""
    other: Any = ns.SAEFNO(**sae.config()).double().eval()
    other.load_state_dict(sae.state_dict())
    with torch.no_grad():
        other.concept_decoder.conv.weight.tensor.mul_(g[:, None])
        other.concept_encoder.conv.weight.tensor.div_(g)
        mean = g[(slice(None), *(size // 2 for size in g.shape[1:-1]), 0)].real
        other.concept_encoder.conv.bias.div_(mean.view(-1, *(1,) * (g.ndim - 1)))
    return other


def make(domain_rule: str, modes: tuple[int, ...] = (7, 5), p: int = 6, m: int = 3) -> Any:
    torch.manual_seed(0)
    sae: Any = ns.SAEFNO(m, p, modes, concept_rule="All", domain_rule=domain_rule, skip=None).double().eval()
    with torch.no_grad():
        sae.concept_encoder.conv.bias.normal_()
    return sae


@pytest.mark.parametrize("modes", [(9,), (7, 5), (3, 5, 3)])
def test_kernels_and_codes_can_be_traded_without_domain_sparsity(modes: tuple[int, ...]) -> None:
    """(d * g, g^-1 * z) is as good as (d, z), for any invertible g per concept."""
    sae = make("Identity", modes)
    g = random_filter(sae.basis, 6)
    other, x = traded(sae, g), torch.randn(2, 3, *(size + 4 for size in modes), dtype=torch.float64)
    assert relative(other(x).reconstruction, sae(x).reconstruction) < 1e-10
    codes, other_codes = (model.encode(x).to_dense() for model in (sae, other))
    found, expected = (sae.basis.analysis(part) for part in (other_codes, codes))
    assert relative(found, expected / g) < 1e-10
    assert relative(other_codes, codes) > 0.1  # and not because nothing changed
    assert relative(other.atoms(range(6), x.shape[2:]), sae.atoms(range(6), x.shape[2:])) > 0.1


@pytest.mark.parametrize("domain_rule", ["Rectify", "SoftLocalTopK"])
def test_domain_sparsity_ends_the_trade(domain_rule: str) -> None:
    sae = make(domain_rule)
    other, x = traded(sae, random_filter(sae.basis, 6)), torch.randn(2, 3, 11, 9, dtype=torch.float64)
    assert relative(other(x).reconstruction, sae(x).reconstruction) > 0.1


@pytest.mark.parametrize("grid", [(15,), (9, 11)])
def test_one_random_concept_reconstructs_any_scalar_field(grid: tuple[int, ...]) -> None:
    """If it has all modes of the grid, and its code may be anything; not if the code is rectified."""
    errors = {}
    for domain_rule in ("Identity", "Rectify"):
        sae = make(domain_rule, grid, p=1, m=1)
        kernel = random_filter(sae.basis, 1, 1)
        with torch.no_grad():
            sae.concept_decoder.conv.weight.tensor.copy_(kernel)
            sae.concept_encoder.conv.weight.tensor.copy_(1 / kernel)
            sae.concept_encoder.zero_bias()
        x = torch.randn(4, 1, *grid, dtype=torch.float64)
        errors[domain_rule] = relative(sae(x).reconstruction, x)
    assert errors["Identity"] < 1e-10
    assert errors["Rectify"] > 0.1
