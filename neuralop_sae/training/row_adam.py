"""Adam on the rows of a dictionary that a step used."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from ..layers.rows import RowGradient

_LONG_ROW = 2**13
CHUNK_BYTES = 2**22
"""Of the rows that are formed and updated at a time: what stays in a CPU's cache."""


class RowAdam(torch.optim.Optimizer):
    r"""Adam in which every concept has a clock of its own.

    A step touches the rows whose gradient it is given, and nothing of the others: neither their values nor their moments
    change. A row's t-th update is the t-th update that Adam would make on that row alone, had there been no other steps:

    .. math:: m \leftarrow \beta_1 m + (1-\beta_1) g, \quad v \leftarrow \beta_2 v + (1-\beta_2) g^2, \quad
              \theta \leftarrow \theta - \eta\,\frac{m / (1-\beta_1^t)}{\sqrt{v / (1-\beta_2^t)} + \epsilon}

    with t the number of steps that used the row. Rows that every step uses are updated as by :class:`torch.optim.Adam`,
    and the same numbers come out. Two differences to torch.optim.SparseAdam, which has one clock for all rows: the first
    updates of a rare row are no larger than the learning rate (there they are up to :math:`(1-\beta_1)/\sqrt{1-\beta_2}`
    = 3.2 times as large), and complex parameters are taken, as pairs of reals.

    Parameters
    ----------
    params : iterable of Parameter or dict
        Parameters that may have rows, or groups of them.
    lr, betas, eps : float, (float, float), float
        As in torch.optim.Adam.

    References
    ----------
    .. [1] Kingma and Ba, Adam, arXiv 1412.6980.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if lr <= 0 or eps <= 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"lr > 0, eps > 0 and betas in [0, 1) are needed, got {lr}, {eps} and {betas}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], Any] | None = None,
        *,
        rows: Iterable[RowGradient] = (),
        scale: Tensor | float = 1.0,
    ) -> Any:
        """Update the rows of these gradients, as :meth:`RowGradients.sums` gives them, times `scale`."""
        loss = closure() if closure is not None else None
        groups = {parameter: group for group in self.param_groups for parameter in group["params"]}
        for gradient in rows:
            if gradient.parameter not in groups:
                raise ValueError("a gradient is of a parameter that this optimiser does not have")
            self._update(gradient, groups[gradient.parameter], scale)
        return loss

    def _moments(self, gradient: RowGradient) -> dict[str, Tensor]:
        state, view = self.state[gradient.parameter], as_real(gradient.view)
        if not state:
            state["exp_avg"] = view.new_zeros(len(view), math.prod(view.shape[1:]))
            state["exp_avg_sq"] = torch.zeros_like(state["exp_avg"])
            state["steps"] = torch.zeros(len(view), dtype=torch.float32, device=view.device)
        return state  # type: ignore[no-any-return]

    def _update(self, gradient: RowGradient, group: dict[str, Any], scale: Tensor | float) -> None:
        view, state = as_real(gradient.view), self._moments(gradient)
        row_bytes = state["exp_avg"][:1].numel() * state["exp_avg"].element_size()
        on_cpu = gradient.index.device.type == "cpu"
        for rows, values in gradient.chunks(CHUNK_BYTES):
            index, g = gradient.index[rows], as_table(values).mul_(scale)
            if on_cpu and row_bytes >= _LONG_ROW and view[0].is_contiguous():
                _update_in_place(view.flatten(1), state, index, g, group)
            else:
                used = None if on_cpu else (index < len(view)).to(g.dtype)[:, None]  # surplus entries, see RowGradient
                _update_rows(view, state, index.clamp_max(len(view) - 1), g, used, group)


def _update_in_place(table: Tensor, state: dict[str, Tensor], index: Tensor, g: Tensor, group: dict[str, Any]) -> None:
    """Long rows on a CPU, each as a tensor of its own, through torch's fused kernel: one pass, nothing gathered."""
    numbers = index.tolist()
    fused: Any = adam  # its annotations do not have tensors with steps of their own
    fused(
        [table[i] for i in numbers],
        list(g.unbind()),
        *([state[name][i] for i in numbers] for name in ("exp_avg", "exp_avg_sq")),
        [],
        [state["steps"][i] for i in numbers],
        fused=True,
        amsgrad=False,
        maximize=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        eps=group["eps"],
        weight_decay=0.0,
    )


def _update_rows(
    view: Tensor, state: dict[str, Tensor], index: Tensor, g: Tensor, used: Tensor | None, group: dict[str, Any]
) -> None:
    """One chunk of rows, small enough for the cache. Entries that `used` (n, 1) marks as surplus change nothing."""
    (beta, beta_square), lr, eps = group["betas"], group["lr"], group["eps"]
    old = {name: state[name].index_select(0, index) for name in ("exp_avg", "exp_avg_sq", "steps")}
    steps = old["steps"] + 1
    mean = torch.lerp(old["exp_avg"], g, 1 - beta)
    square = (beta_square * old["exp_avg_sq"]).addcmul_(g, g, value=1 - beta_square)
    for name, new in (("exp_avg", mean), ("exp_avg_sq", square), ("steps", steps)):
        if used is None:
            state[name].index_copy_(0, index, new)
        else:  # surplus entries repeat an index, which a copy would not survive
            change = (new - old[name]) * used.reshape(-1, *(1,) * (new.ndim - 1)).to(new.dtype)
            state[name].index_add_(0, index, change)
    clock = steps.to(torch.float64)[:, None]
    correction = (1 - beta_square**clock).rsqrt().to(g.dtype)
    rate = (-lr / (1 - beta**clock)).to(g.dtype)
    update = mean.mul_(rate).div_(square.sqrt_().mul_(correction).add_(eps))
    update = update if used is None else update * used
    view.index_add_(0, index, update.view(-1, *view.shape[1:]))


def as_table(tensor: Tensor) -> Tensor:
    """A contiguous ``(n, ...)`` as a real table ``(n, D)`` that shares its memory; a complex number is two columns."""
    real = as_real(tensor)
    return real.view(len(real), math.prod(real.shape[1:]))


def as_real(tensor: Tensor) -> Tensor:
    """A complex tensor as the pairs of reals it is, ``(..., 2)``; a real one as it is."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
