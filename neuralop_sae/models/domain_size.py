"""A model for fields on a box of another length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from ..layers.concepts import ConceptDecoder, ConceptEncoder
from ..layers.dense import DenseKernels
from ..layers.domain_size import basis_on, kernels_on
from ..layers.fourier import FourierBasis

if TYPE_CHECKING:
    from .spectral import SpectralSAE

S = TypeVar("S", bound="SpectralSAE")


def _check_kernels(sae: SpectralSAE) -> None:
    """ValueError for a model whose kernels cannot be indexed anew."""
    decoder = sae.concept_decoder
    if type(sae.basis) is not FourierBasis or not isinstance(decoder, ConceptDecoder):
        reason = f"concepts over {type(sae.basis).__name__} in a {type(decoder.conv).__name__} have no box of another length"
    elif not isinstance(decoder.kernels, DenseKernels) or decoder.kernels.is_real:
        reason = "its kernels are factorised or real, but have to be dense and complex: train a SAEFNO, compress afterwards"
    elif not all(isinstance(trunk, nn.Identity) for trunk in (sae.encoder_trunk, sae.decoder_trunk)):
        reason = "the operators of 'fno_block' stretch with the box: take another encoder and decoder='linear'"
    else:
        return
    raise ValueError(f"this {type(sae).__name__} cannot change its domain: {reason}")


@torch.no_grad()
def reindexed(sae: S, lengths: Sequence[float]) -> S:
    """A model for a box of these lengths, in those of the box of training, with concepts of the same size: see
    :meth:`SAE.on_domain`."""
    _check_kernels(sae)
    basis = sae.basis
    assert isinstance(basis, FourierBasis)
    config = {**sae.config(), "n_modes": basis_on(basis, lengths).n_modes}
    if not isinstance(sae.code_grid, str):
        config["code_grid"] = [max(1, round(size * c)) for size, c in zip(sae.code_grid, lengths, strict=True)]
    with torch.random.fork_rng(devices=[]):  # what the constructor draws is overwritten
        new: Any = type(sae)(**config)
    new.to(sae.mean.device, sae.dtype)
    state = {name: tensor for name, tensor in sae.state_dict().items() if ".conv.weight." not in name}
    pairs = ((sae.concept_encoder, new.concept_encoder), (sae.concept_decoder, new.concept_decoder))
    for layer, other in pairs:
        if isinstance(layer, ConceptEncoder | ConceptDecoder):  # an adjoint encoder has no kernels
            other.conv.weight.tensor.copy_(kernels_on(basis, layer.conv.weight.tensor.to(torch.complex128), lengths))
    missing, unexpected = new.load_state_dict(state, strict=False)
    assert all(".conv.weight." in name for name in missing), missing
    assert not unexpected, unexpected
    new.train(sae.training)
    return new  # type: ignore[no-any-return]
