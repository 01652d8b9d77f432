"""Our models on neuraloperator's development version, as far as stand-ins for its layers show it: further arguments, some of
which FNOBlocks hands to SpectralConv and its heirs, and an inverse transform that enforces Hermitian symmetry."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from neuralop.layers import spectral_convolution as upstream
from neuralop.layers.fno_block import FNOBlocks
from torch import Tensor

from neuralop_sae import SAEFNO, SAETFNO, TopK
from neuralop_sae.layers import convolutions
from neuralop_sae.layers import spectral_convolution as ours
from neuralop_sae.models import fno
from neuralop_sae.testing import check_model

Released = upstream.SpectralConv
IN_DEVELOPMENT = "enforce_hermitian_symmetry" in inspect.signature(Released.__init__).parameters


def hermitian_irfftn(spectrum: Tensor, s: Sequence[int], dim: Sequence[int], norm: str) -> Tensor:
    """The inverse in two stages; between them, what has to be real is made real."""
    out = torch.fft.ifftn(spectrum, s=s[:-1], dim=dim[:-1], norm=norm) if len(dim) > 1 else spectrum.clone()
    out[..., 0].imag.zero_()
    if s[-1] % 2 == 0:
        out[..., -1].imag.zero_()
    return torch.fft.irfft(out, n=s[-1], dim=dim[-1], norm=norm)


class DevelopmentConv(Released):
    """SpectralConv of the development version. What follows the first three arguments there is in another order."""

    def __init__(
        self, in_channels: int, out_channels: int, n_modes: Any, *, enforce_hermitian_symmetry: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(in_channels, out_channels, n_modes, **kwargs)
        self.enforce_hermitian_symmetry = enforce_hermitian_symmetry

    def forward(self, x: Tensor, output_shape: Any = None) -> Tensor:
        with patch.object(torch.fft, "irfftn", hermitian_irfftn):
            return super().forward(x, output_shape)  # type: ignore[no-any-return]


@pytest.fixture
def development(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our layers over the stand-ins."""
    monkeypatch.setattr(upstream, "SpectralConv", DevelopmentConv)
    spec = importlib.util.spec_from_file_location("neuralop_sae.layers.over_development", str(ours.__file__))
    assert spec is not None
    assert spec.loader is not None
    over = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(over)  # FourierConv on top of the stand-in
    assert issubclass(over.FourierConv, DevelopmentConv)

    class DevelopmentBlocks(FNOBlocks):
        def __init__(self, in_channels: int, out_channels: int, n_modes: Any, *, conv_module: Any, **kwargs: Any) -> None:
            options = {"enforce_hermitian_symmetry": True} if issubclass(conv_module, DevelopmentConv) else {}
            super().__init__(in_channels, out_channels, n_modes, conv_module=partial(conv_module, **options), **kwargs)

    monkeypatch.setattr(convolutions, "SpectralConv", DevelopmentConv)
    monkeypatch.setattr(convolutions, "FourierConv", over.FourierConv)
    monkeypatch.setattr(fno, "FNOBlocks", DevelopmentBlocks)


pytestmark = pytest.mark.skipif(IN_DEVELOPMENT, reason="this neuraloperator is what the stand-ins stand for")


@pytest.mark.parametrize("grid", [(8, 10), (8, 9), (12, 6)])
@pytest.mark.parametrize("factorization", [None, "tucker"])
def test_the_dense_oracle_is_the_sparse_path(factorization: str | None, grid: tuple[int, int], development: None) -> None:
    torch.manual_seed(0)
    kind: Any = SAETFNO if factorization else SAEFNO
    sae = kind(3, 8, (5, 4), concept_rule=TopK(3), **({"factorization": factorization, "rank": 0.6} if factorization else {}))
    assert type(sae.concept_encoder.conv) is DevelopmentConv
    assert sae.concept_encoder.conv.enforce_hermitian_symmetry
    check_model(sae, torch.randn(3, 3, *grid))


@pytest.mark.parametrize("n_dim", [1, 2])
def test_trunks_of_fno_blocks(n_dim: int, development: None) -> None:
    torch.manual_seed(0)
    sae = SAEFNO(3, 8, (4,) * n_dim, concept_rule=TopK(3), encoder="fno_block", decoder="fno_block")
    assert isinstance(sae.encoder_trunk.convs[0], DevelopmentConv)
    assert sae.encoder_trunk.convs[0].enforce_hermitian_symmetry
    check_model(sae, torch.randn(3, 3, *(8,) * n_dim))
    assert type(sae)(**sae.config()).config() == sae.config()


def test_weights_of_the_release_give_the_same_on_it(development: None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"concept_rule": TopK(3), "encoder": "fno_block"}
    theirs = SAEFNO(3, 8, (5, 4), **arguments).eval()
    monkeypatch.undo()
    mine = SAEFNO(3, 8, (5, 4), **arguments).eval()
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 8, 9)
    assert torch.equal(mine(x).reconstruction, theirs(x).reconstruction)
