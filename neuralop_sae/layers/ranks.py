"""Ranks of factorised dictionaries, from the share of the dense parameters that they may spend."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Rank = int | tuple[int, ...]


@dataclass(frozen=True)
class _Shape:
    """p concepts of m channels and some modes; `axis` counts concepts."""

    p: int
    m: int
    modes: tuple[int, ...]
    axis: int

    def ordered(self, concept: int, channel: int) -> tuple[int, int]:
        return (concept, channel) if self.axis == 0 else (channel, concept)

    @property
    def full(self) -> tuple[int, ...]:
        return (*self.ordered(self.p, self.m), *self.modes)

    @property
    def size(self) -> int:
        return math.prod(self.full)


def dictionary_rank(
    factorization: str,
    rank: float | int | Sequence[int],
    *,
    n_channels: int,
    n_concepts: int,
    mode_shape: Sequence[int],
    axis: int,
) -> Rank:
    r"""The explicit rank of a dictionary's weight, as neuralop's SpectralConv takes it.

    Upstream turns a fraction into ranks in proportion to the sizes of all axes, (1, 92, 1, 1) for 64 channels, 65536 concepts
    and 16 x 9 modes at 0.01: kernels that all have one shape. Here channels and modes stay full and the concept axis takes the
    budget, since what is to be compressed is the number of different kernels:

    - Tucker: the largest number r of templates, at most min(p, mK), with :math:`r (p + m K) + m^2 + \sum_j k_j^2` parameters.
      With fewer than min(p, m) templates a dictionary cannot write every channel at every frequency. Where full axes leave
      less than that, and less than half of what any axes could leave (p is not much larger than m K, the core takes the
      budget), templates (of min(p, m)), channels and modes are all cut to the same share of their size, and what remains is
      spent on r.
    - CP: the largest r with :math:`r (1 + p + m + \sum_j k_j)` parameters.
    - TT: with b the rank between the first two axes and the modes, an encoder has the ranks (1, m, b, ...) and about p m b
      parameters; b is the largest that fits. A decoder has the ranks (1, r, b, ...) with the *same* b and the largest
      r, at most min(p, mb): any such decoder has an exact adjoint among such encoders. Only where even b = 1 does not fit,
      the encoder's first rank is less than m. For large p that happens at 1/K, and b > 1 needs 2/K: prefer Tucker there.

    Parameters
    ----------
    factorization : {"tucker", "cp", "tt"}
        Form of the weight; case and the prefix "complex" do not matter.
    rank : float, int or sequence of int
        A float in (0, 1] is the largest share of the dense weight's p m K (complex) parameters; the smallest ranks are given
        where even they exceed it. An int is one rank for all axes, cut for Tucker and TT to what an axis allows. A sequence
        has a rank per axis for Tucker, one more with ends 1 for TT, in the weight's order of axes.
    n_channels, n_concepts : int
        m and p.
    mode_shape : sequence of int
        Modes as the weight stores them, (16, 9) for ``n_modes=(16, 16)``.
    axis : {0, 1}
        The axis that counts concepts: 1 in an encoder (m, p, *modes), 0 in a decoder (p, m, *modes).

    Returns
    -------
    int or tuple of int
        Int for CP, tuple for Tucker and TT.

    Raises
    ------
    ValueError
        If the rank is none of the above, with what is allowed.

    Examples
    --------
    >>> sizes = dict(n_channels=64, n_concepts=65536, mode_shape=(16, 9))
    >>> dictionary_rank("tucker", 0.01, axis=0, **sizes)
    (80, 64, 16, 9)
    >>> dictionary_rank("tt", 0.02, axis=1, **sizes), dictionary_rank("tt", 0.02, axis=0, **sizes)
    ((1, 64, 2, 9, 1), (1, 128, 2, 9, 1))
    """
    name = factorization.lower().removeprefix("complex")
    if name not in _FORMS:
        raise ValueError(f"no ranks for factorization {factorization!r}; known: {', '.join(_FORMS)}")
    spend, limits = _FORMS[name]
    shape = _Shape(n_concepts, n_channels, tuple(mode_shape), axis)
    if isinstance(rank, float):
        if not 0 < rank <= 1:
            raise ValueError(f"rank {rank} as a share of the dense parameters has to be in (0, 1]; an int is a rank itself")
        return spend(shape, math.floor(rank * shape.size + 1e-6))
    return _checked(name, rank, limits(shape))


def _checked(name: str, rank: int | Sequence[int], limits: Rank) -> Rank:
    """Explicit ranks, if they are possible."""
    if isinstance(limits, int):
        if isinstance(rank, int) and 1 <= rank <= limits:
            return rank
    elif isinstance(rank, int):
        if 1 <= rank <= max(limits):
            return tuple(min(rank, limit) for limit in limits)
    elif len(rank) == len(limits) and all(1 <= r <= limit for r, limit in zip(rank, limits, strict=True)):
        return tuple(rank)
    what = f"from 1 to {limits}" if isinstance(limits, int) else f"{len(limits)} ranks from 1 to {limits}, or an int"
    raise ValueError(f"rank {rank!r} is impossible for {name}; allowed: {what}, or a float in (0, 1]")


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest n from 1 to `most` that fits, fitting being monotone; 1 if none does."""
    low, high = 1, max(most, 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _tucker_limits(shape: _Shape) -> Rank:
    return shape.full


def _tucker(shape: _Shape, budget: int) -> Rank:
    def ranks(r: int, others: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape.ordered(r, others[0]), *others[1:])

    def fits(r: int, others: tuple[int, ...]) -> bool:
        return _tucker_size(shape.full, ranks(r, others)) <= budget

    def best(others: tuple[int, ...]) -> int:
        return _largest(lambda r: fits(r, others), min(shape.p, math.prod(others)))

    full = (shape.m, *shape.modes)
    wanted = min(shape.p, shape.m)
    r = best(full)
    if fits(r, full) and r >= min(wanted, budget // (2 * shape.p)):
        return ranks(r, full)
    steps = 4096  # shares of the full size, in steps finer than one rank

    def cut(share: int) -> tuple[int, ...]:
        return tuple(max(1, size * share // steps) for size in (wanted, *full))

    share = _largest(lambda n: fits(cut(n)[0], cut(n)[1:]), steps)
    others = cut(share)[1:]
    return ranks(best(others), others)


def _tucker_size(sizes: tuple[int, ...], ranks: tuple[int, ...]) -> int:
    return math.prod(ranks) + sum(size * rank for size, rank in zip(sizes, ranks, strict=True))


def _cp_limits(shape: _Shape) -> Rank:
    return shape.size // max(shape.full)


def _cp(shape: _Shape, budget: int) -> Rank:
    most = shape.size // max(shape.full)
    return _largest(lambda r: r * (1 + sum(shape.full)) <= budget, most)


def _tt_limits(shape: _Shape) -> Rank:
    return _tt_full(shape.full)


def _tt_full(sizes: tuple[int, ...], first: int = 1) -> tuple[int, ...]:
    """The largest ranks that a train over these axes can use, `first` being the one before the first axis."""
    inner = (min(first * math.prod(sizes[:k]), math.prod(sizes[k:])) for k in range(1, len(sizes)))
    return (first, *inner, 1)


def _tt_size(sizes: tuple[int, ...], ranks: tuple[int, ...]) -> int:
    return sum(left * size * right for left, size, right in zip(ranks[:-1], sizes, ranks[1:], strict=True))


def _tt(shape: _Shape, budget: int) -> Rank:
    def encoder(a: int, tail: tuple[int, ...]) -> bool:
        return _tt_size((shape.m, shape.p, *shape.modes), (1, a, *tail)) <= budget

    n_modes = math.prod(shape.modes)
    b = _largest(lambda b: encoder(shape.m, _tt_full(shape.modes, b)), min(n_modes, shape.p * shape.m))
    tail = _tt_full(shape.modes, b)
    if not encoder(shape.m, tail):
        tail = (1,) * (len(shape.modes) + 1)
    b = tail[0]
    if shape.axis == 1:
        return (1, _largest(lambda a: encoder(a, tail), min(shape.m, shape.p * b)), *tail)
    most = min(shape.p, shape.m * b)
    return (1, _largest(lambda r: _tt_size(shape.full, (1, r, *tail)) <= budget, most), *tail)


_FORMS: dict[str, tuple[Callable[[_Shape, int], Rank], Callable[[_Shape], Rank]]] = {
    "tucker": (_tucker, _tucker_limits),
    "cp": (_cp, _cp_limits),
    "tt": (_tt, _tt_limits),
}


def decoder_rank(factorization: str, rank: Sequence[int], n_concepts: int) -> tuple[int, ...]:
    """Explicit ranks of a decoder (p, m, *modes) from those of its encoder (m, p, *modes), such that it can hold the
    encoder's adjoint: for Tucker the first two change places; a train (1, a, b, ...) becomes (1, min(p, a b), b, ...)."""
    first, second, *rest = rank
    if factorization.lower().removeprefix("complex") != "tt":
        return (second, first, *rest)
    return (first, min(n_concepts, second * rest[0]), *rest) if rest else (first, second)
