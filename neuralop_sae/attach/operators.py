"""The site rules of neuralop's operators and layers.

Classes are named, not imported: neuralop 2.0.0 leaves out LocalNO and SFNO where torch-harmonics does not load, and
has no RNO and OTNO yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .rules import SiteRule, Stage, add_rule


def _fno_block(module: Any, call: int) -> Sequence[str]:
    skips = (f"fno_skips.{call}", f"channel_mlp_skips.{call}")
    conv, mlp = f"convs.{call}", f"channel_mlp.{call}"
    first, second = f"norm.{2 * call}", f"norm.{2 * call + 1}"
    if module.preactivation:
        return (first, *skips, conv, second, mlp)
    return (*skips, conv, first, mlp, second)


def _local_no_block(module: Any, call: int) -> Sequence[str]:
    # Index -1, of a layer without differential or local convolution, gives a path that does not exist.
    local = (f"differential.{module.differential_idx_list[call]}", f"local_convs.{module.disco_idx_list[call]}")
    skips, conv = (f"local_no_skips.{call}", f"channel_mlp_skips.{call}"), f"convs.{call}"
    first = f"norm.{module.n_norms * call}"
    mlp: tuple[str, ...] = ()
    if module.mlp is not None:
        second = f"norm.{module.n_norms * call + 1}"
        mlp = (second, f"mlp.{call}") if module.preactivation else (f"mlp.{call}", second)
    if module.preactivation:
        return (first, *local, *skips, conv, *mlp)
    return (*skips, conv, *local, first, *mlp)


def _uno(module: Any, call: int) -> Sequence[Stage]:
    blocks: list[Stage] = []
    for i in range(module.n_layers):
        blocks += [Stage(f"fno_blocks.{i}", padded=True, once=True), Stage(f"horizontal_skips.{i}", padded=True)]
    return (Stage("lifting"), *blocks, Stage("projection"))


def _codano(module: Any, call: int) -> Sequence[Stage]:
    layers: list[Stage] = []
    for i in range(module.n_layers):
        layers += [
            Stage(f"skip_map_module.{i}", padded=True, layout=_VARIABLES),
            Stage(f"attention_layers.{i}", padded=True),
        ]
    return (Stage("lifting", layout=_VARIABLES), *layers, Stage("projection", layout=_VARIABLES))


def _rno(module: Any, call: int) -> Sequence[Stage]:
    layers = (Stage(f"layers.{i}", padded=True) for i in range(module.n_layers))
    return (Stage("lifting", layout="batch*time channels ..."), *layers, Stage("projection"))


def _rno_cell(module: Any, call: int) -> Sequence[Stage]:
    gates: list[Stage] = []
    for i in range(len(module.input_gates)):
        gates += [Stage(f"input_gates.{i}", once=True, branch=True), Stage(f"hidden_gates.{i}", once=True)]
    return gates


# CODANO folds variables into the batch for its channel MLPs, and tokens for the layers inside its attention.
_VARIABLES = "batch*variables channels ..."
_TOKENS = "batch*tokens channels ..."
_POINTS = "batch points channels"
_POINTS_LAST = "batch channels points"

#: Rule by full name of the class.
OPERATORS: dict[str, SiteRule] = {
    # FNO, TFNO and SFNO
    "neuralop.models.fno.FNO": SiteRule((Stage("lifting"), Stage("fno_blocks", padded=True), Stage("projection"))),
    "neuralop.models.local_no.LocalNO": SiteRule(
        (Stage("lifting"), Stage("local_no_blocks", padded=True), Stage("projection"))
    ),
    "neuralop.models.otno.OTNO": SiteRule(
        (Stage("lifting"), Stage("fno_blocks", padded=True), Stage("projection", layout=_POINTS_LAST)),
        output="channels points",
        shared=("ind_dec",),
    ),
    "neuralop.models.uno.UNO": SiteRule(_uno),
    "neuralop.models.codano.CODANO": SiteRule(_codano),
    "neuralop.models.gino.GINO": SiteRule(
        ("gno_in", "lifting", "fno_blocks", "gno_out", Stage("projection", layout=_POINTS_LAST)),
        output=_POINTS,
        n_dim="in_coord_dim",
        shared=("input_geom", "latent_queries", "output_queries", "ada_in"),
    ),
    "neuralop.models.fnogno.FNOGNO": SiteRule(
        ("lifting", "fno_blocks", "gno", Stage("projection", layout=_POINTS_LAST)),
        output=_POINTS,
        n_dim="in_coord_dim",
        # Without gno_batched a call takes one sample, which has no batch axis.
        shared=lambda module: ("in_p", "out_p", "ada_in") if module.gno_batched else ("in_p", "out_p", "ada_in", "f"),
    ),
    # The base model runs under no_grad.
    "neuralop.models.uqno.UQNO": SiteRule(
        (Stage("base_model", frozen=True, branch=True), Stage("residual_model", branch=True)), called_like="base_model"
    ),
    "neuralop.models.rno.RNO": SiteRule(_rno),
    "neuralop.layers.fno_block.FNOBlocks": SiteRule(_fno_block, call_argument=("index", 1), n_calls="n_layers"),
    "neuralop.layers.local_no_block.LocalNOBlocks": SiteRule(_local_no_block, call_argument=("index", 1), n_calls="n_layers"),
    # Keys and queries may be coarser than the values; the mixer is called once per layer of its own.
    "neuralop.layers.coda_layer.CODALayer": SiteRule(
        (
            Stage("norm1", layout=_TOKENS),
            Stage("Key", layout=_TOKENS, once=True, branch=True),
            Stage("Query", layout=_TOKENS, once=True, branch=True),
            Stage("Value", layout=_TOKENS, once=True),
            Stage("multi_head_proj", layout=_TOKENS, once=True),
            Stage("attention_normalizer", layout=_TOKENS),
            Stage("mixer_in_normalizer", layout=_TOKENS),
            Stage("mixer", layout=_TOKENS),
            Stage("mixer_out_normalizer", layout=_TOKENS),
        ),
        scaling="resolution_scaling_factor",
    ),
    "neuralop.layers.gno_block.GNOBlock": SiteRule((), output=_POINTS),
    "neuralop.layers.rno_block.RNOBlock": SiteRule(
        (Stage("cell", repeats="time"),),
        output=lambda module: "batch time channels ..." if module.return_sequences else "batch channels ...",
        scaling="resolution_scaling_factor",
    ),
    "neuralop.layers.rno_block.RNOCell": SiteRule(_rno_cell),
}

for _name, _rule in OPERATORS.items():
    add_rule(_name, _rule)
