"""Training on several processes under torchrun: data parallel, concept parallel, or both on a mesh of ranks.

Data parallel: every rank holds the dictionary and takes a share of each batch. Concept parallel: every rank holds a shard
of the dictionary and sees the whole batch; what travels is the k strongest scores of each sample and the sum of what the
shards write, m x K coefficients per sample (one field where the pointwise part needs the grid), of each nested prefix that
training asks for. Nothing that travels grows with the number of concepts. Gradients of rows travel between data ranks in their
factors, never as rows.

Two things are taken by each data rank over its own share of a batch: the ``k * batch`` pairs of ``BatchTopK``, whose
threshold is averaged over the ranks now and then, and the ratio in the auxiliary loss. Everything else is as on one process.

All traffic goes through :class:`Mesh`, which counts it.
"""

from __future__ import annotations

import inspect
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from ..layers.dense import OuterProducts
from ..layers.exchange import Exchange
from ..layers.rows import Part, RowGradients, Rows
from ..layers.selection import Selection
from ..models.base import SAE

State = dict[str, Tensor]


class Single:
    """A run on one process: nothing to share. :class:`Mesh` does the same for several."""

    n_data, n_concept, data_rank, concept_rank = 1, 1, 0, 0

    def __init__(self) -> None:
        self.traffic: Counter[str] = Counter()

    @property
    def is_main(self) -> bool:
        """Whether this rank speaks and writes for all."""
        return self.data_rank == 0 and self.concept_rank == 0

    def check(self, sae: SAE, n_fields: int, batch_size: int) -> None:
        """ValueError if the run cannot be distributed like this."""

    def shard_(self, sae: SAE) -> None:
        """Keep this rank's concepts of a model that holds all."""

    def wrap(self, sae: SAE) -> Callable[..., Any]:
        """What to call for a forward pass."""
        return sae

    def share(self, batch: Tensor) -> Tensor:
        """This rank's part of a batch of indices."""
        return batch

    def exchange_rows(self, rows: RowGradients) -> RowGradients:
        """Gradients of rows, averaged over the data ranks."""
        return rows

    def sum_of_shards(self, value: Tensor) -> Tensor:
        """Sum over the concept ranks."""
        return value

    def mean_of_data(self, value: Tensor) -> Tensor:
        """Mean over the data ranks."""
        return value

    def least_of_data(self, value: Tensor) -> Tensor:
        """Elementwise minimum over the data ranks."""
        return value

    def whole_state(self, state: State, axes: dict[str, int]) -> State | None:
        """The state of the undivided run, on the main rank; None elsewhere. `axes` names the tensors that are divided."""
        return state

    def my_state(self, state: State, axes: dict[str, int]) -> State:
        """This rank's part of an undivided state."""
        return state


class Mesh(Single):
    """Ranks on a grid of (data, concept), made by :func:`start`.

    Parameters
    ----------
    n_concept : int
        Shards of the dictionary; the world's size must be a multiple of it.
    device : torch.device
        Of this rank.
    """

    def __init__(self, n_concept: int, device: torch.device) -> None:
        super().__init__()
        world = dist.get_world_size()
        if n_concept < 1 or world % n_concept:
            raise ValueError(f"{world} processes cannot form groups of {n_concept} shards; take a divisor of {world}")
        self.n_concept, self.n_data, self.device = n_concept, world // n_concept, device
        mesh = init_device_mesh(device.type, (self.n_data, n_concept), mesh_dim_names=("data", "concept"))
        self.data, self.concept = mesh.get_group("data"), mesh.get_group("concept")
        self.data_rank, self.concept_rank = mesh.get_local_rank("data"), mesh.get_local_rank("concept")
        self._dense_bytes = 0

    def all_reduce(self, value: Tensor, group: dist.ProcessGroup, what: str, op: Any = dist.ReduceOp.SUM) -> Tensor:
        """A new tensor, reduced over a group."""
        out = value.detach().clone(memory_format=torch.contiguous_format)
        flat = torch.view_as_real(out) if out.is_complex() else out
        if dist.get_world_size(group) > 1:
            self.traffic[what] += flat.numel() * flat.element_size()
            dist.all_reduce(flat, op=op, group=group)
        return out

    def all_gather(self, value: Tensor, group: dist.ProcessGroup, what: str) -> list[Tensor]:
        """The tensors of all ranks of a group, which share one shape."""
        mine = value.detach().contiguous()
        flat = torch.view_as_real(mine.resolve_conj()) if mine.is_complex() else mine
        parts = [torch.empty_like(flat) for _ in range(dist.get_world_size(group))]
        self.traffic[what] += flat.numel() * flat.element_size()
        dist.all_gather(parts, flat.contiguous(), group=group)
        return [torch.view_as_complex(part) if mine.is_complex() else part for part in parts]

    def check(self, sae: SAE, n_fields: int, batch_size: int) -> None:
        sizes = {min(batch_size, n_fields), n_fields % batch_size or batch_size}
        if any(size % self.n_data for size in sizes):
            raise ValueError(
                f"every batch is shared by {self.n_data} data ranks, but {n_fields} fields in batches of {batch_size} give "
                f"batches of {sorted(sizes)}; choose multiples of {self.n_data}"
            )
        if self.n_concept == 1:
            return
        if not sae.concept_axes():
            raise ValueError(f"the dictionary of a {type(sae).__name__} cannot be divided; use data parallel ranks only")
        if sae.n_concepts % self.n_concept:
            raise ValueError(f"n_concepts={sae.n_concepts} is no multiple of the {self.n_concept} shards")

    @torch.no_grad()
    def shard_(self, sae: SAE) -> None:
        if self.n_concept == 1:
            return
        size = sae.n_concepts // self.n_concept
        for name, axis in sae.concept_axes().items():
            owner, _, leaf = name.rpartition(".")
            tensor = getattr(sae.get_submodule(owner), leaf)
            # clone keeps the order of the memory
            tensor.data = tensor.data.narrow(axis, self.concept_rank * size, size).clone()
        sae.divide(size, Shards(self))

    def wrap(self, sae: SAE) -> Callable[..., Any]:
        """For data parallel ranks torch's DDP, which averages all gradients but those of rows."""
        if self.n_data == 1:
            return sae
        by_row = [name for name in sae.concept_axes() if name in dict(sae.named_parameters())]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(sae, by_row)
        dense = (parameter for name, parameter in sae.named_parameters() if name not in by_row)
        self._dense_bytes = sum(parameter.numel() * parameter.element_size() for parameter in dense)
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {buffers: False}
        return DistributedDataParallel(sae, process_group=self.data, **options)

    def share(self, batch: Tensor) -> Tensor:
        return batch.chunk(self.n_data)[self.data_rank]

    def exchange_rows(self, rows: RowGradients) -> RowGradients:
        if self.n_data == 1:
            return rows
        self.traffic["dense gradients"] += self._dense_bytes
        shared = RowGradients()
        for parameter, order, part in rows.parts():
            for other in self._gather_part(part):
                shared.add(parameter, order, other)
        return shared

    def _gather_part(self, part: Part) -> Iterator[Part]:
        """A gradient's factors from all data ranks. The number of pairs of a rank may differ: it is padded with zeros."""
        n = len(part.index)
        sizes = [int(size) for size in self.all_gather(torch.tensor([n], device=self.device), self.data, "row gradients")]
        if max(sizes) == 0:
            return

        def gather(tensor: Tensor) -> list[Tensor]:
            padding = tensor.new_zeros(max(sizes) - n, *tensor.shape[1:])
            parts = self.all_gather(torch.cat([tensor, padding]), self.data, "row gradients")
            return [each[:size] for each, size in zip(parts, sizes, strict=True)]

        indices = gather(part.index)
        if isinstance(part, OuterProducts):
            lefts, samples = gather(part.left / self.n_data), gather(part.selection.sample)
            rights = self.all_gather(part.right, self.data, "row gradients")
            for index, left, sample, right in zip(indices, lefts, samples, rights, strict=True):
                selection = replace(part.selection, sample=sample, concept=index, every=None)
                yield OuterProducts(selection, left, right)
        elif isinstance(part, Rows):
            for index, values in zip(indices, gather(part.values / self.n_data), strict=True):
                yield Rows(index, values)
        else:
            raise TypeError(f"a {type(part).__name__} does not know how to travel between ranks")

    def sum_of_shards(self, value: Tensor) -> Tensor:
        return self.all_reduce(value, self.concept, "bookkeeping")

    def mean_of_data(self, value: Tensor) -> Tensor:
        return self.all_reduce(value, self.data, "bookkeeping") / self.n_data

    def least_of_data(self, value: Tensor) -> Tensor:
        return self.all_reduce(value, self.data, "bookkeeping", dist.ReduceOp.MIN)

    def whole_state(self, state: State, axes: dict[str, int]) -> State | None:
        if self.data_rank:
            return None
        whole = {}
        for name, tensor in state.items():
            if self.n_concept == 1 or name not in axes:
                whole[name] = tensor
                continue
            real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
            parts = [torch.empty_like(real, memory_format=torch.contiguous_format) for _ in range(self.n_concept)]
            main = dist.get_global_rank(self.concept, 0)
            dist.gather(real.contiguous(), parts if self.is_main else None, dst=main, group=self.concept)
            if self.is_main:
                joined = torch.cat(parts, axes[name])
                whole[name] = torch.view_as_complex(joined) if tensor.is_complex() else joined
        return whole if self.is_main else None

    def my_state(self, state: State, axes: dict[str, int]) -> State:
        if self.n_concept == 1:
            return state

        def part(name: str, tensor: Tensor) -> Tensor:
            return tensor.chunk(self.n_concept, axes[name])[self.concept_rank] if name in axes else tensor

        return {name: part(name, tensor) for name, tensor in state.items()}


class Shards(Exchange):
    """The exchange between the shards of a dictionary."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    def whole(self, n_concepts: int) -> int:
        return n_concepts * self.mesh.n_concept

    def first(self, n_concepts: int) -> int:
        return n_concepts * self.mesh.concept_rank

    def top(self, scores: Tensor, k: int) -> Tensor:
        best = scores.topk(min(k, scores.shape[-1]), dim=-1)
        values = nn.functional.pad(best.values, (0, max(0, k - scores.shape[-1])))
        everybody = torch.cat(self.mesh.all_gather(values, self.mesh.concept, "candidates"), -1)
        winners = torch.zeros_like(everybody, dtype=torch.bool).scatter(-1, everybody.topk(k, dim=-1).indices, True)
        mine = winners.chunk(self.mesh.n_concept, -1)[self.mesh.concept_rank][..., : best.values.shape[-1]]
        return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best.indices, mine) & (scores > 0)

    def pairs(self, scores: Tensor, k: int) -> Selection:
        return Selection.from_mask(self.top(scores, k))

    def strongest(self, slots: Tensor, k: int) -> Tensor:
        width = min(k, slots.shape[1])
        mine = slots.topk(width, dim=1).values if width else slots
        padding = slots.new_zeros(len(slots), k - width, *slots.shape[2:])
        everybody = _Gather.apply(torch.cat([mine, padding], 1), self.mesh)
        return everybody.topk(k, dim=1).values[:, -1:]

    def lowest(self, values: Tensor) -> Tensor:
        return self.mesh.all_reduce(values, self.mesh.concept, "bookkeeping", dist.ReduceOp.MIN)

    def sum(self, partial: Tensor) -> Tensor:
        return _Sum.apply(partial, self.mesh)  # type: ignore[no-any-return]

    def share(self, value: Tensor) -> Tensor:
        return _Share.apply(value, self.mesh.n_concept)  # type: ignore[no-any-return]

    def spread(self, field: Tensor) -> Tensor:
        return _Spread.apply(field, self.mesh)  # type: ignore[no-any-return]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, partial: Tensor, mesh: Mesh) -> Tensor:
        return mesh.all_reduce(partial, mesh.concept, "reconstruction")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, n: int) -> Tensor:
        return value / n

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, field: Tensor, mesh: Mesh) -> Tensor:
        ctx.mesh = mesh
        return field.view_as(field)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.mesh.all_reduce(grads[0], ctx.mesh.concept, "gradient of the input"), None


class _Gather(torch.autograd.Function):
    """Joins along axis 1; every rank's loss depends on every part, so the gradients of all ranks add up."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, mesh: Mesh) -> Tensor:
        ctx.mesh = mesh
        return torch.cat(mesh.all_gather(value, mesh.concept, "competition"), 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = ctx.mesh.all_reduce(grads[0], ctx.mesh.concept, "competition")
        return total.chunk(ctx.mesh.n_concept, 1)[ctx.mesh.concept_rank], None


@contextmanager
def start(n_concept: int = 1, device: str | None = None, timeout: timedelta = timedelta(minutes=10)) -> Iterator[Single]:
    """The ranks of this run: a :class:`Mesh` under torchrun, :class:`Single` otherwise.

    Parameters
    ----------
    n_concept : int
        Shards of the dictionary. The world's size over it is the number of data parallel ranks.
    device : str, optional
        "cpu" or "cuda"; by default a GPU per process where there is one.
    timeout : timedelta
        How long to wait for a rank that does not answer.

    Raises
    ------
    ValueError
        If the number of processes is no multiple of `n_concept`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        if n_concept != 1:
            raise ValueError(f"{n_concept} shards need as many processes: run under torchrun --nproc-per-node {n_concept}")
        yield Single()
        return
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type
    here = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(here)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=timeout)
    try:
        yield Mesh(n_concept, here)
    finally:
        dist.destroy_process_group()
