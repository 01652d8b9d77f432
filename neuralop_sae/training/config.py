"""How to train, as plain data."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class TrainingConfig(BaseModel):
    """How to train; plain data, checked.

    Parameters
    ----------
    n_epochs, batch_size : int
        Passes over the activations, and fields per step.
    learning_rate : float
        Peak of Adam's learning rate.
    spectral_rate : float
        Learning rate of spectral kernels, in units of `learning_rate`. A step of Adam moves every number alike, and so a
        kernel of n modes root n times as far as a channel vector: with about one over that root (0.1 for 9 x 9 modes) and
        a larger `learning_rate` both learn fast. In dictionaries of 64 concepts that explained more on three operators (FVE
        of Kolmogorov flow 0.976 to 0.982); of 512 concepts 15 to 47 % were dead then, below 1 % at equal rates.
    warmup, decay : float
        Shares of the steps over which the rate rises from zero and, at the end, falls to zero.
    gradient_clip : float
        Largest norm of the whole gradient.
    auxiliary_weight, auxiliary_k : float, int
        Weight of the auxiliary loss, and how many dead concepts of each sample take part.
    dead_after : int
        A concept is dead after so many *fields* without being on.
    gate_weight : float
        Weight of the number of concepts on per sample, for rules with gates (JumpReLU).
    domain_weight : float
        Weight of :func:`~neuralop_sae.training.losses.domain_penalty`, which makes codes small and few in places.
    prefixes : tuple of int
        Increasing sizes of prefixes of the dictionary, below `n_concepts`, each of which has to reconstruct by itself
        (Matryoshka, Bussmann et al., arXiv 2503.17547): the loss is the mean over the prefixes and the whole, with the codes
        that come of the competition of all concepts.
    normalize, initialize : bool
        Whether to set the model's mean and scale from the activations, and its dictionary, before the first step.
    seed : int
        Of the order of the fields and the initial dictionary.
    check_every : int
        Steps between checks for NaN and Inf, after each of which the state is kept as the last good one where there is no
        folder for checkpoints.
    checkpoint_every : int
        Steps between checkpoints, where there is a folder for them; each is checked first, and is the last good state.
    log_every : int
        Steps per row of the history.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    n_epochs: int = Field(10, ge=1)
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(3e-3, gt=0)
    spectral_rate: float = Field(1.0, gt=0)
    warmup: float = Field(0.05, ge=0, le=1)
    decay: float = Field(0.4, ge=0, le=1)
    gradient_clip: float = Field(1.0, gt=0)
    auxiliary_weight: float = Field(1 / 32, ge=0)
    auxiliary_k: int = Field(16, ge=1)
    dead_after: int = Field(400, ge=1)
    gate_weight: float = Field(0.0, ge=0)
    domain_weight: float = Field(0.0, ge=0)
    prefixes: tuple[int, ...] = ()
    normalize: bool = True
    initialize: bool = True
    seed: int = 0
    check_every: int = Field(50, ge=1)
    checkpoint_every: int = Field(200, ge=1)
    log_every: int = Field(10, ge=1)
