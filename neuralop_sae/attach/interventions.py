"""Replace activations of a pretrained operator: by a function of them, or through an autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from .hooks import Firings, eval_mode, hooked
from .padding import unpadded_slices
from .rewrite import Edit
from .sites import resolve_site

if TYPE_CHECKING:
    from typing import Self

    from ..codes import ConceptCodes


class Autoencoder(Protocol):
    """What `splice` asks of a sparse autoencoder; it is an ``nn.Module`` as well."""

    def encode(self, x: Tensor, /) -> ConceptCodes:
        """Codes of fields ``(B, channels, *grid)``."""

    def decode(self, codes: ConceptCodes, /, output_shape: tuple[int, ...]) -> Tensor:
        """Fields ``(B, channels, *output_shape)`` of codes."""


class Replacement:
    """Context manager that replaces the activation at a site; made by `replace_activation` and `splice`.

    It can be entered again after it was left, but not while it is active.
    """

    def __init__(
        self,
        model: nn.Module,
        site: str,
        function: Callable[[Tensor], Tensor],
        *,
        padded: bool = False,
        frozen: Sequence[nn.Module] = (),
    ) -> None:
        self.site = resolve_site(model, site)
        self._model = model
        self._function = function
        self._padded = padded
        self._frozen = frozen
        self._stack: ExitStack | None = None
        self._firings = Firings()

    def __enter__(self) -> Self:
        if self._stack is not None:
            raise RuntimeError(f"this replacement at {str(self.site)!r} is active already; make another one to nest them")
        with ExitStack() as stack:
            stack.enter_context(eval_mode(*self._frozen))
            self._firings = stack.enter_context(hooked(self._model, self.site, self._replace))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()
        if kind is None and self._firings.passes and not self._firings.acted:
            raise RuntimeError(
                f"nothing was replaced at {str(self.site)!r}: the model ran, but never called this module"
                + ("" if self.site.nth is None else f" {self.site.nth + 1} times in a pass")
            )

    def _replace(self, activation: Tensor) -> Tensor:
        if self._padded or not self.site.padded:
            return self._checked(activation)
        inside = unpadded_slices(self._model, self.site, activation.shape)
        # A new tensor: the model may go on with this one elsewhere (identity skips of neuralop return their
        # input).
        whole = activation.clone()
        whole[inside] = self._checked(activation[inside])
        return whole

    def _checked(self, activation: Tensor) -> Tensor:
        new = self._function(activation)
        if not isinstance(new, Tensor):
            raise TypeError(f"site {str(self.site)!r}: the replacement must be a tensor; got {type(new).__name__}")
        if new.shape != activation.shape:
            raise ValueError(
                f"site {str(self.site)!r}: the replacement has shape {tuple(new.shape)}, the activation "
                f"(batch, channels, *grid) = {tuple(activation.shape)}"
            )
        return new.to(activation.dtype)


def replace_activation(
    model: nn.Module, site: str, function: Callable[[Tensor], Tensor], *, padded: bool = False
) -> Replacement:
    """Replace the activation at a site by a function of it, inside a ``with`` block.

    Parameters
    ----------
    model : nn.Module
        The operator.
    site : str
        A name from `find_sites`.
    function : callable
        Takes the activation ``(B, channels, *grid)`` and returns its replacement, of the same shape. It must
        not change its argument in place.
    padded : bool, optional
        Whether the function sees neuralop's domain padding at a site that has it. By default it sees the
        unpadded domain and the margins keep the model's own values.

    Returns
    -------
    Replacement
        The context manager.

    Raises
    ------
    ValueError
        If the site is unknown; during the forward pass, if the shapes differ.
    RuntimeError
        At the end of the block, if the model ran in it but never called the module of the site.

    Notes
    -----
    Replacements at the same site act in the order in which they were entered. A module that is called several
    times in one pass, such as a recurrent cell, is replaced at every call, one by one; ``"name.k"`` names one of
    them. The function sees channels second whatever the layout of the module, and what it returns is put back in
    the module's own. Code made by ``torch.compile`` runs eagerly in the block.

    Examples
    --------
    >>> from neuralop.models import FNO
    >>> model, x = FNO(n_modes=(4,), in_channels=1, out_channels=1, hidden_channels=4), torch.randn(2, 1, 8)
    >>> with replace_activation(model, "fno_blocks.3", torch.zeros_like):
    ...     y = model(x)
    >>> torch.equal(y[0], y[1])
    True
    """
    return Replacement(model, site, function, padded=padded)


def splice(
    model: nn.Module,
    site: str,
    sae: Any,
    edits: Edit | Sequence[Edit] = (),
    keep_error: bool = True,
    padded: bool = False,
) -> Replacement:
    """Put a sparse autoencoder into an operator, and edit its codes on the way, inside a ``with`` block.

    With activation x, codes c = encode(x) and edited codes e(c), the operator goes on with ::

        keep_error=True     stop(x - decode(c)) + decode(e(c))
        keep_error=False    decode(e(c))

    where stop(.) passes no gradient. The error is that of the clean codes, so it cannot undo an edit, and it
    is added as ``x + (decode(e(c)) - decode(c))``: an edit that changes nothing gives the operator's own
    output bit for bit.

    Parameters
    ----------
    model : nn.Module
        The operator.
    site : str
        A name from `find_sites`.
    sae : nn.Module
        The autoencoder, with ``encode`` and ``decode``. It is in eval mode inside the block. Activations are
        cast to its dtype, and its output is cast back.
    edits : callable or sequence of callables, optional
        Functions codes -> codes, applied in order, such as `ablate` and `steer`.
    keep_error : bool, optional
        Whether to add what the autoencoder does not reconstruct.
    padded : bool, optional
        Whether the autoencoder sees neuralop's domain padding; see `replace_activation`.

    Returns
    -------
    Replacement
        The context manager. Gradients reach the operator's inputs, the autoencoder and the tensors used by
        edits; with `keep_error` what the autoencoder does not reconstruct carries none.

    Raises
    ------
    ValueError
        If the site is unknown; during the forward pass, if the autoencoder is on another device.
    TypeError
        If the autoencoder or an edit is not of a type listed here.
    RuntimeError
        At the end of the block, if the model ran in it but never called the module of the site.

    Examples
    --------
    >>> with splice(model, "fno_blocks.2", sae, edits=[ablate(3), steer(7, scale=2.0)]):  # doctest: +SKIP
    ...     y = model(x)
    """
    if not isinstance(sae, nn.Module) or not all(callable(getattr(sae, name, None)) for name in ("encode", "decode")):
        raise TypeError(f"sae must be an nn.Module with encode and decode; got {type(sae).__name__}")
    chain = (edits,) if callable(edits) or not isinstance(edits, Iterable) else tuple(edits)
    for edit in chain:
        if not callable(edit):
            raise TypeError(f"an edit is a function codes -> codes; got {type(edit).__name__}")
    return Replacement(model, site, _Spliced(sae, chain, keep_error), padded=padded, frozen=(sae,))


@dataclass(frozen=True)
class _Spliced:
    """Activation -> activation, through an autoencoder."""

    sae: Any
    edits: tuple[Edit, ...]
    keep_error: bool

    def __call__(self, x: Tensor) -> Tensor:
        sae: Autoencoder = self.sae
        grid = tuple(x.shape[2:])
        # Under autocast, half-precision transforms fail on grids that are not powers of two.
        with torch.autocast(x.device.type, enabled=False):
            codes = sae.encode(x.to(self._dtype(x)))
            edited = self._edit(codes)
            new = sae.decode(edited, output_shape=grid)
            if not self.keep_error:
                return new
            if _same(codes, edited):
                # The same codes decoded twice may differ in the last bits on a GPU (atomic additions).
                clean = new.detach()
            else:
                with torch.no_grad():
                    clean = sae.decode(codes, output_shape=grid)
            return x.detach() + (new - clean)

    def _dtype(self, x: Tensor) -> torch.dtype:
        for tensor in (*self.sae.parameters(), *self.sae.buffers()):
            if tensor.device != x.device:
                raise ValueError(f"the SAE is on {tensor.device}, the activation on {x.device}: move it with sae.to(...)")
            if tensor.is_floating_point() or tensor.is_complex():
                return x.dtype if x.is_complex() else tensor.dtype.to_real()
        return x.dtype

    def _edit(self, codes: ConceptCodes) -> ConceptCodes:
        if not self.edits:
            return codes
        # Copies, so that an edit that writes in place does not change the clean codes, and with them the
        # error.
        tensors = {name: getattr(codes, name).clone() for name in ("sample", "concept", "values")}
        edited = replace(codes, **tensors)
        for edit in self.edits:
            edited = edit(edited)
            if not isinstance(edited, type(codes)):
                raise TypeError(f"edit {edit!r} must return {type(codes).__name__}; got {type(edited).__name__}")
        return edited


def _same(a: ConceptCodes, b: ConceptCodes) -> bool:
    return a is b or all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("sample", "concept", "values"))
