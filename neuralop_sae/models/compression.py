"""A trained dense dictionary turned into a factorised one, from which fine-tuning goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import notebook
from ..layers.concepts import ConceptDecoder, ConceptEncoder
from ..layers.decompose import decompose_
from ..metrics import FieldStatistics
from .base import SAE
from .fno import SAEFNO, SAETFNO
from .spectral import SpectralSAE

_WEIGHTS = ("concept_encoder.conv.weight.", "concept_decoder.conv.weight.")


@dataclass(frozen=True, repr=False)
class Compression:
    """What :func:`compress` gives.

    Parameters
    ----------
    sae : SpectralSAE
        The factorised model: a :class:`~neuralop_sae.SAETFNO` for a :class:`~neuralop_sae.SAEFNO`.
    encoder_error, decoder_error : float
        Relative error of the spectral weights, entries counted as the basis counts coefficients
        (:meth:`neuralop_sae.SpectralBasis.weights`): 0 is exact, 1 as bad as zero weights.
    n_parameters, dense_n_parameters : int
        Real numbers in the spectral weights of encoder and decoder, after and before.
    fve, dense_fve : float or None
        Fraction of variance explained of the activations, after and before, in eval mode; None without activations.
    """

    sae: SpectralSAE
    encoder_error: float
    decoder_error: float
    n_parameters: int
    dense_n_parameters: int
    fve: float | None = None
    dense_fve: float | None = None

    def __repr__(self) -> str:
        config = self.sae.config()
        parts = [
            f"{type(self.sae).__name__}, {config['factorization']}, rank {config['rank']}: {self.n_parameters:,} of"
            f" {self.dense_n_parameters:,} spectral parameters ({self.n_parameters / self.dense_n_parameters:.1%})",
            f"relative error {self.encoder_error:.3g} (encoder), {self.decoder_error:.3g} (decoder)",
        ]
        if self.fve is not None:
            parts.append(f"FVE {self.fve:.3f}, was {self.dense_fve:.3f}")
        return f"Compression({', '.join(parts)})"

    def _repr_html_(self) -> str:
        config = self.sae.config()
        rows: dict[str, object] = {"model": type(self.sae).__name__, "factorization": config["factorization"]}
        rows |= {"rank": config["rank"], "spectral parameters": self.n_parameters, "before": self.dense_n_parameters}
        rows |= {"relative error, encoder": self.encoder_error, "relative error, decoder": self.decoder_error}
        if self.fve is not None:
            rows |= {"FVE": self.fve, "FVE before": self.dense_fve}
        return notebook.facts("Compression", rows)


@torch.no_grad()
def compress(
    sae: SpectralSAE,
    factorization: str = "tucker",
    rank: float | int | Sequence[int] = 0.05,
    *,
    activations: Tensor | None = None,
    n_iterations: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
) -> Compression:
    r"""Factorise the spectral weights of a trained dense model.

    Encoder and decoder are decomposed one by one (:func:`neuralop_sae.layers.decompose.decompose_`), by the norm

    .. math:: \|W\|^2 = \sum_{c, i, \kappa} w_\kappa |W_{ci}(\kappa)|^2

    with the Parseval weights w of the basis, in which an entry of the half spectrum that stands for two frequencies counts
    twice. All else is the dense model's: pointwise parts, biases, trunks, mean and scale, the rules' thresholds and
    counters, training flags, frozen parameters, dtype and device. The dense model stays as it is.

    A trained dictionary is seldom of low rank, so compression is where fine-tuning starts. Switch off what
    :class:`neuralop_sae.TrainingConfig` sets anew before the first step, as in the example.

    Parameters
    ----------
    sae : SpectralSAE
        A dense :class:`~neuralop_sae.SAEFNO`, or another spectral model whose constructor takes `factorization` and `rank`,
        which then makes the factorised one.
    factorization : {"tucker", "cp", "tt"}
        Form of the weights. CP is found by alternating least squares, for small dictionaries only: about a minute on one CPU
        core, where the others take a fifth of a second (256 concepts, 16 channels, 9 x 9 modes, rank 0.2).
    rank : float, int or sequence of int
        A share of the dense parameters, or ranks; see :class:`~neuralop_sae.SAETFNO`.
    activations : Tensor, optional
        ``(N, channels, *grid)``. If given, the result tells the fraction of their variance that is explained.
    n_iterations, seed : int
        Of the decomposition.
    batch_size : int
        Activations at a time.

    Returns
    -------
    Compression

    Raises
    ------
    TypeError, ValueError
        If the model is of another kind or factorised already, the factorization is unknown, the rank impossible, the
        activations do not fit the model, or its weights are not finite.

    Examples
    --------
    >>> import torch, neuralop_sae as ns
    >>> from neuralop_sae.models.compression import compress
    >>> sae = ns.SAEFNO(in_channels=4, n_concepts=64, n_modes=(5, 5), concept_rule=ns.TopK(4))
    >>> activations = torch.randn(16, 4, 12, 12)
    >>> compressed = compress(sae, rank=0.5, activations=activations)
    >>> compressed.encoder_error < compress(sae, rank=0.1).encoder_error < 1
    True
    >>> finer = ns.TrainingConfig(n_epochs=1, initialize=False, normalize=False)
    >>> history = ns.train(compressed.sae, activations, finer, progress=False)
    """
    _check(sae, factorization, rank)
    new = _empty_copy(sae, factorization, rank)
    dense_fve = None if activations is None else _fve(sae, activations, batch_size)
    encoder_error = _decompose(sae.concept_encoder, new.concept_encoder, n_iterations, seed)
    decoder_error = _decompose(sae.concept_decoder, new.concept_decoder, n_iterations, seed)
    fve = None if activations is None else _fve(new, activations, batch_size)
    return Compression(new, encoder_error, decoder_error, _n_spectral(new), _n_spectral(sae), fve, dense_fve)


def _check(sae: SpectralSAE, factorization: str, rank: float | int | Sequence[int]) -> None:
    if not isinstance(sae, SpectralSAE) or not {"factorization", "rank"} <= sae.config().keys():
        raise TypeError(
            f"compress takes an SAEFNO, or a spectral SAE whose constructor takes factorization and rank,"
            f" got {type(sae).__name__}"
        )
    config = sae.config()
    if config["factorization"] is not None:
        raise ValueError(
            f"this {type(sae).__name__} is factorised already ({config['factorization']}, rank {config['rank']});"
            " compress the dense model that it came from, or train a factorised one of another rank"
        )
    if config["encoder"] in ("tied", "unrolled"):
        raise ValueError(
            f"compress takes models whose encoder has weights of its own, encoder='linear' or 'fno_block'; this one is"
            f" {config['encoder']!r}: train a factorised one instead"
        )
    if not isinstance(factorization, str):
        raise TypeError(f"factorization is a name, 'tucker', 'cp' or 'tt', got {factorization!r}")
    ranks = rank if isinstance(rank, Sequence) and not isinstance(rank, str) else [rank]
    if not isinstance(rank, float) and not all(isinstance(r, int) and not isinstance(r, bool) for r in ranks):
        raise TypeError(
            f"rank is a share of the dense parameters (a float in (0, 1]), an int or a sequence of ints, got {rank!r}"
        )


def _empty_copy(sae: SpectralSAE, factorization: str, rank: float | int | Sequence[int]) -> SpectralSAE:
    """The factorised model with everything of the dense one but its spectral weights. ValueError if the factorization or
    rank is impossible: the constructor knows."""
    kind = SAETFNO if type(sae) is SAEFNO else type(sae)
    with torch.random.fork_rng(devices=[]):  # what the constructor draws is overwritten
        new = kind(**{**sae.config(), "factorization": factorization, "rank": rank})
    new.to(sae.mean.device, sae.dtype)
    state = {name: tensor for name, tensor in sae.state_dict().items() if not name.startswith(_WEIGHTS)}
    missing, unexpected = new.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert all(name.startswith(_WEIGHTS) for name in missing), missing
    learns = {name: parameter.requires_grad for name, parameter in sae.named_parameters()}
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(learns.get(name, True))
    trains = {name: module.training for name, module in sae.named_modules()}
    for name, module in new.named_modules():
        module.training = trains.get(name, sae.training)
    return new


def _decompose(
    dense: ConceptEncoder | ConceptDecoder, layer: ConceptEncoder | ConceptDecoder, n_iterations: int | None, seed: int
) -> float:
    """Fill a layer's spectral weight; the relative error. The Parseval weights of a half spectrum depend on the last axis
    alone, so that the scaled weight has the same rank, and the scale comes off that axis' factor: ``(size, rank)`` in
    Tucker and CP, ``(rank, size, 1)`` in TT."""
    weights = dense.basis.weights(like=dense.conv.bias).reshape(*dense.convolution.kernel_shape, -1).sum(-1)
    columns = weights.flatten(0, -2).amax(0) if weights.ndim > 1 else weights
    present = weights > 0  # the sphere has no coefficients above its diagonal
    assert torch.equal(columns * present, weights), weights
    scale = columns.sqrt()
    scaled = dense.conv.weight.tensor * (scale * present)
    error = decompose_(layer.conv.weight, scaled, n_iterations=n_iterations, seed=seed)
    list(layer.conv.weight.factors)[-1].div_(scale[:, None])
    return error


def _fve(sae: SAE, activations: Tensor, batch_size: int) -> float:
    """Fraction of variance explained in eval mode; training flags are restored."""
    if not isinstance(activations, Tensor):
        raise TypeError(f"activations are a tensor (N, channels, *grid), got {type(activations).__name__}")
    statistics = FieldStatistics()
    flags = [(module, module.training) for module in sae.modules()]
    try:
        sae.eval()
        for x in activations.split(batch_size):
            x = x.to(sae.mean.device)
            out = sae(x).reconstruction
            statistics.update(x, out, sae.basis.quadrature(x.shape[2:], like=out))
    finally:
        for module, training in flags:
            module.training = training
    return statistics.fve()


def _n_spectral(sae: SpectralSAE) -> int:
    """Real numbers in the spectral weights."""
    parameters = (p for layer in (sae.concept_encoder, sae.concept_decoder) for p in layer.conv.weight.parameters())
    return sum(2 * p.numel() if p.is_complex() else p.numel() for p in parameters)
