"""Concepts in convolutions that this package does not know, and over bases that it does not know."""

import json
from collections.abc import Sequence

import pytest
import scipy.fft
import torch
from neuralop.layers.spectral_convolution import SpectralConv
from torch import Tensor, nn

import neuralop_sae as ns
from neuralop_sae.layers import ConceptDecoder, ConceptEncoder, bases, concept_layers, convolution_of
from neuralop_sae.layers.basis import SpectralBasis
from neuralop_sae.layers.opaque import Opaque
from neuralop_sae.testing import assert_equal, check_basis, check_concept_layer, check_model


class CosineBasis(SpectralBasis):
    """cos(pi k s) at the midpoints of the unit interval: the four methods that a basis must have, and no other."""

    def __init__(self, n_modes: Sequence[int]) -> None:
        self.n_modes = tuple(n_modes)
        self.n_dim, self.mode_shape = len(self.n_modes), self.n_modes

    def _matrix(self, n_modes: int, size: int, like: Tensor) -> Tensor:
        k, s = torch.arange(n_modes, dtype=torch.float64), (torch.arange(size, dtype=torch.float64) + 0.5) / size
        waves = torch.cos(torch.pi * k[:, None] * s) * (2 - (k == 0).double()).sqrt()[:, None]
        return torch.where(k < size, 1.0, 0.0)[:, None].mul(waves).to(like)

    def analysis(self, field: Tensor) -> Tensor:
        out = field
        for dim, n in zip(range(-self.n_dim, 0), self.n_modes, strict=True):
            matrix = self._matrix(n, field.shape[dim], field) / field.shape[dim]
            out = torch.tensordot(out.movedim(dim, -1), matrix.T, 1).movedim(-1, dim)
        return out + 0j

    def synthesis(self, coefficients: Tensor, shape: Sequence[int]) -> Tensor:
        out = coefficients.real
        for dim, n, size in zip(range(-self.n_dim, 0), self.n_modes, shape, strict=True):
            out = torch.tensordot(out.movedim(dim, -1), self._matrix(n, size, out), 1).movedim(-1, dim)
        return out

    def weights(self, shape: Sequence[int] | None = None, *, like: Tensor) -> Tensor:
        held = torch.ones(self.mode_shape)
        for axis, size in enumerate(shape or ()):
            index = torch.arange(self.mode_shape[axis]) < size
            held = held * index.view(-1, *(1,) * (self.n_dim - 1 - axis))
        return held.to(like)

    def quadrature(self, shape: Sequence[int], *, like: Tensor) -> Tensor:
        return torch.full((1,) * self.n_dim, 1 / torch.Size(shape).numel(), dtype=torch.float64).to(like)


class Grouped(nn.Module):
    """A convolution with neuralop's signature that nobody registered: a circular one of five taps."""

    def __init__(self, in_channels: int, out_channels: int, n_modes: Sequence[int], taps: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, taps, padding="same", padding_mode="circular")

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@pytest.fixture
def cosine():  # type: ignore[no-untyped-def]
    ns.register_basis("test-cosine")(CosineBasis)
    yield "test-cosine"
    for table in (bases._entries, bases._spelling):
        del table["test-cosine"]


def test_four_methods_make_a_basis() -> None:
    check_basis(CosineBasis((4, 3)), shapes=[(9, 7), (12, 8), (5, 6)])


def test_it_is_the_cosine_transform() -> None:
    field = torch.randn(8, dtype=torch.float64)
    expected = torch.as_tensor(scipy.fft.dct(field.numpy(), norm="ortho"))[:4] / 8**0.5
    assert_equal("dct", CosineBasis((4,)).analysis(field).real, expected)


@pytest.mark.parametrize("form", [None, "tucker", "cp", "tt"])
def test_a_registered_basis_holds_concepts(cosine: str, form: str | None) -> None:
    torch.manual_seed(0)
    arguments = {"conv_module": cosine, "factorization": form, "rank": 0.5}
    check_concept_layer(ConceptEncoder(3, 8, (4, 4), **arguments), ConceptDecoder(3, 8, (4, 4), **arguments))
    check_model(ns.SAEFNO(3, 8, (4, 4), concept_rule=ns.TopK(3), **arguments), torch.randn(3, 3, 9, 10))


def test_operators_before_and_after_over_a_registered_basis(cosine: str) -> None:
    torch.manual_seed(0)
    sae = ns.SAEFNO(3, 8, (4, 4), conv_module=cosine, concept_rule="JumpReLU", encoder="fno_block", decoder="fno_block")
    check_model(sae, torch.randn(2, 3, 9, 10))


def test_an_unknown_convolution_works_on_the_dense_path(tmp_path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    sae = ns.SAEFNO(3, 6, (5, 5), conv_module=Grouped, conv_options={"taps": 3}, concept_rule=ns.TopK(3))
    x = torch.randn(3, 3, 9, 10)
    check_model(sae, x)
    assert sae.concept_axes() == {}
    norms = sae.kernel_norms()
    assert_equal("norms", norms, sae.basis.mean_square(sae.atoms(range(6), sae.basis.smallest_grid())).sum(1).sqrt())
    history = ns.train(sae, x, ns.TrainingConfig(n_epochs=2, batch_size=3), progress=False)
    assert history.rows
    config = json.loads(json.dumps(sae.config()))
    assert config["conv_module"].endswith("test_conv_modules.Grouped")


def test_a_registered_convolution_is_found_by_name_and_class() -> None:
    assert type(convolution_of("SpectralConv", (4, 4))) is type(convolution_of(SpectralConv, (4, 4)))
    with pytest.raises(ValueError, match="is registered already"):
        ns.register_concept_layer(SpectralConv)(concept_layers.get("SpectralConv"))


def test_a_dotted_name_stays_on_the_dense_path() -> None:
    """It was saved so, before the class was registered."""
    assert type(convolution_of("neuralop.layers.spectral_convolution.SpectralConv", (4, 4))) is Opaque


def test_a_convolution_is_taken_as_it_is() -> None:
    convolution = convolution_of("SphericalConv", (4, 8), {"kernel": "positional"})
    assert convolution_of(convolution, (4, 8)) is convolution
    assert ConceptDecoder(3, 8, (4, 8), conv_module=convolution).convolution is convolution
    sae = ns.SAEFNO(3, 6, (5, 5), conv_module=Grouped, concept_rule=ns.TopK(3))
    assert sae.concept_encoder.convolution is sae.concept_decoder.convolution


@pytest.mark.parametrize("conv_module", [Grouped, "SpectralConv"])
def test_an_unknown_skip_is_refused_whatever_the_convolution(conv_module: type[nn.Module] | str) -> None:
    with pytest.raises(ValueError, match="unknown skip 'soft-gating'; known: 'linear'"):
        ns.SAEFNO(3, 6, (5, 5), conv_module=conv_module, skip="soft-gating")


class PlainWeight(nn.Module):
    """A layer whose weight is an ordinary parameter."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(in_channels, out_channels, 5, 3))


class OfPlainWeights(ns.Convolution):
    def __init__(self, n_modes: tuple[int, ...]) -> None:
        self.basis = ns.FourierBasis(n_modes)

    def make(self, in_channels, out_channels, *, factorization, rank):  # type: ignore[no-untyped-def]
        return PlainWeight(in_channels, out_channels)


class WithoutBasis(OfPlainWeights):
    def __init__(self, n_modes: tuple[int, ...]) -> None:
        pass


@pytest.mark.parametrize(
    ("convolution", "message"),
    [
        (OfPlainWeights((5, 5)), "PlainWeight.weight is a Parameter: concepts are read from a FactorizedTensor"),
        (WithoutBasis((5, 5)), "WithoutBasis.basis is None: the constructor of a Convolution has to set self.basis"),
    ],
)
def test_a_convolution_that_cannot_hold_concepts_is_refused(convolution: ns.Convolution, message: str) -> None:
    for layer in (ConceptEncoder, ConceptDecoder):
        with pytest.raises(TypeError, match=message):
            layer(3, 8, (5, 5), conv_module=convolution)


@pytest.mark.parametrize("decorated", [PlainWeight, lambda n_modes: None])
def test_only_a_convolution_is_registered(decorated) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TypeError, match=r"@register_concept_layer\(PlainWeight\) decorates a subclass of neuralop_sae.Conv"):
        ns.register_concept_layer(PlainWeight)(decorated)
    assert "PlainWeight" not in concept_layers


@pytest.mark.parametrize(
    ("conv_module", "options", "error", "message"),
    [
        (
            "wavelets",
            {},
            ValueError,
            "unknown conv_module 'wavelets'; known concept.*spectralconv.*fourier",
        ),
        ("some.module.Conv", {}, ValueError, "is the module 'some.module' not imported yet"),
        ("SphericalConv", {"gird": "lobatto"}, ValueError, "conv_options=.*do not fit 'SphericalConv'.*'gird'"),
        (3, {}, TypeError, "a name or a class of modules, got 3"),
    ],
)
def test_refusals(conv_module, options, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        ns.SAEFNO(3, 8, (4, 8), conv_module=conv_module, conv_options=options)
