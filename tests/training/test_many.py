"""Several models in one pass: each ends as if it had been trained alone, and every batch is read once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from neuralop import LpLoss
from torch import Tensor

import neuralop_sae as ns
from neuralop_sae.training.run import Run
from neuralop_sae.training.saved_run import CHECKPOINT_NAME

SHARED: dict[str, Any] = {"n_epochs": 3, "batch_size": 8, "learning_rate": 1e-2, "log_every": 2, "dead_after": 20}
CONFIGS = {
    "two": ns.TrainingConfig(**SHARED, checkpoint_every=4),
    "jump": ns.TrainingConfig(**SHARED, checkpoint_every=3, gate_weight=1e-3, gradient_clip=0.5),
    "points": ns.TrainingConfig(**SHARED, checkpoint_every=5, prefixes=(4,)),
    "sphere": ns.TrainingConfig(**SHARED, checkpoint_every=4, auxiliary_weight=0.1),
}
SITES = {"two": "a", "jump": "a", "points": "b", "sphere": "b"}
N_STEPS = 9


class Store:
    """Activations that count how often they are read."""

    def __init__(self, seed: int) -> None:
        self.fields = torch.randn(20, 4, 8, 12, generator=torch.Generator().manual_seed(seed)).cumsum(-1)
        self.reads: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self.fields)

    def __getitem__(self, index: Tensor) -> Tensor:
        self.reads[len(index)] += 1
        return self.fields[index]


def models() -> dict[str, ns.SAE]:
    torch.manual_seed(0)
    return {
        "two": ns.SAEFNO(4, 12, (5, 5), concept_rule=ns.BatchTopK(4), domain_rule=ns.LocalTopK(2)),
        "jump": ns.SAEFNO(4, 12, (3, 3), concept_rule=ns.JumpReLU(0.3, 0.3)),
        "points": ns.SAEPointwise(4, 12, k=2),
        "sphere": ns.SAESFNO(4, 12, (4, 8), concept_rule=ns.TopK(3)),
    }


def stores() -> dict[str, Store]:
    return {"a": Store(1), "b": Store(2)}


def train_many(saes: dict[str, ns.SAE], **kwargs: Any) -> dict[str, ns.TrainingHistory]:
    return ns.train_many(saes, stores(), CONFIGS, sites=SITES, progress=False, **kwargs)


def check_same(found: dict[str, ns.SAE], expected: dict[str, ns.SAE]) -> None:
    for name, sae in expected.items():
        other = found[name].state_dict()
        for key, tensor in sae.state_dict().items():
            assert torch.equal(tensor, other[key]), (name, key)


@pytest.mark.parametrize("loss", [None, LpLoss(d=2)])
def test_each_model_ends_as_if_it_had_been_trained_alone(loss: Any) -> None:
    alone, together, many = models(), models(), stores()
    expected = {
        name: ns.train(sae, stores()[SITES[name]], CONFIGS[name], loss=loss, progress=False) for name, sae in alone.items()
    }
    found = ns.train_many(together, many, CONFIGS, sites=SITES, loss=loss, progress=False)
    check_same(together, alone)
    assert list(found) == list(alone)
    assert {name: history.rows for name, history in found.items()} == {name: each.rows for name, each in expected.items()}
    assert not any(sae.training for sae in together.values())
    for store in many.values():  # 20 fields in batches of 8: for statistics and in each epoch; once all for the dictionary
        few = Counter({4: 2}) if loss else Counter()
        assert store.reads == Counter({8: 2 + 2 * 3, 4: 1 + 3, 20: 1}) + few


def test_models_of_one_site_take_one_configuration_and_sites_that_are_named_like_them() -> None:
    config = ns.TrainingConfig(**SHARED)
    one_site = {name: sae for name, sae in models().items() if name in ("two", "points")}
    named_alike = {site: models()["two"] for site in "ab"}
    ns.train_many(one_site, Store(1), config, progress=False)
    ns.train_many(named_alike, stores(), config, progress=False)
    for expected, found in ((Store(1), one_site["two"]), (Store(1), named_alike["a"]), (Store(2), named_alike["b"])):
        alone = models()["two"]
        ns.train(alone, expected, config, progress=False)
        check_same({"two": found}, {"two": alone})


def test_a_crash_is_resumed_bit_for_bit_by_models_that_are_at_different_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = models()
    expected = train_many(whole)
    one_step = Run.one_step

    def crash(run: Any, x: Tensor) -> Any:
        if run.name == "points" and run.step == 6:
            raise OSError("the store is gone")
        return one_step(run, x)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "one_step", crash)
        with pytest.raises(OSError, match="gone"):
            train_many(models(), checkpoint_dir=tmp_path)
    (tmp_path / "sphere" / CHECKPOINT_NAME).unlink()  # as if it had been added
    steps: Counter[str] = Counter()

    def count(run: Any, x: Tensor) -> Any:
        steps[run.name] += 1
        return one_step(run, x)

    resumed = models()
    with monkeypatch.context() as patch:
        patch.setattr(Run, "one_step", count)
        found = train_many(resumed, checkpoint_dir=tmp_path, resume=True)
    assert steps == {"two": N_STEPS - 4, "jump": N_STEPS - 6, "points": N_STEPS - 5, "sphere": N_STEPS}
    check_same(resumed, whole)
    for name, history in found.items():
        assert history.rows[-1] == expected[name].rows[-1]


@pytest.mark.parametrize("on_disk", [False, True])
def test_if_one_model_becomes_nan_all_are_left_in_their_last_good_state(
    on_disk: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_step, good, together = Run.one_step, {}, models()

    def poison(run: Any, x: Tensor) -> Any:
        if run.step == 3:
            good[run.name] = {key: tensor.clone() for key, tensor in run.sae.state_dict().items()}
        out = one_step(run, x)
        if run.step == 4 and run.name == "jump":
            run.sae.concept_decoder.conv.bias.data.fill_(float("nan"))
        return out

    configs = {name: config.model_copy(update={"check_every": 3, "checkpoint_every": 3}) for name, config in CONFIGS.items()}
    folder = tmp_path if on_disk else None
    arguments: dict[str, Any] = {"sites": SITES, "checkpoint_dir": folder, "progress": False}
    with monkeypatch.context() as patch:
        patch.setattr(Run, "one_step", poison)
        with pytest.raises(FloatingPointError, match="parameters of 'jump' became NaN or Inf between steps 3 and 6"):
            ns.train_many(together, stores(), configs, **arguments)
    for name, sae in together.items():
        assert not sae.training
        if name == "two":  # came before the one that failed, and was found good at that step
            continue
        for key, tensor in sae.state_dict().items():
            assert torch.equal(tensor, good[name][key]), (name, key)
    if on_disk:
        rest = {name: sae for name, sae in models().items() if name != "jump"}
        without = {name: {k: v for k, v in each.items() if k != "jump"} for name, each in (("c", configs), ("s", SITES))}
        ns.train_many(rest, stores(), without["c"], sites=without["s"], checkpoint_dir=tmp_path, resume=True, progress=False)
        whole = models()
        ns.train_many(whole, stores(), configs, sites=SITES, progress=False)
        check_same(rest, {name: whole[name] for name in rest})


def refused(match: str, saes: Any = None, activations: Any = None, config: Any = None, **kwargs: Any) -> None:
    unread = {site: Store(0) for site in "ab"}
    with pytest.raises(ValueError, match=match):
        ns.train_many(saes or models(), activations or unread, config or CONFIGS, progress=False, **kwargs)
    assert not any(store.reads for store in unread.values())


def test_what_does_not_fit_together_is_refused_before_anything_is_read() -> None:
    other = {**CONFIGS, "two": CONFIGS["two"].model_copy(update={"batch_size": 4})}
    refused(r"one batch_size, got \{'two': 4, 'jump': 8", config=other, sites=SITES)
    refused(r"config is by the names .*, got \['two'\]", config={"two": CONFIGS["two"]}, sites=SITES)
    refused(r"sites is by the names .*, got \['two'\]", sites={"two": "a"})
    refused(r"activations of the sites \['a', 'b'\], not of \['c'\]", sites={**SITES, "two": "c"})
    refused(r"not of \['jump', 'points', 'sphere', 'two'\]")
    refused("of one site: leave sites out", activations=Store(0), sites=SITES)
    short = Store(0)
    short.fields = short.fields[:4]
    refused(r"same samples, got \{'a': 20, 'b': 4\}", activations={"a": Store(0), "b": short}, sites=SITES)
    one = models()["two"]
    refused("one model has several of the names", saes={"a": one, "b": one}, config=CONFIGS["two"])
    refused("increasing sizes", config={**CONFIGS, "two": CONFIGS["two"].model_copy(update={"prefixes": (12,)})}, sites=SITES)
    with pytest.raises(ValueError, match="no models"):
        ns.train_many({}, stores())
