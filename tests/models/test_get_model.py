"""neuralop's get_model makes our models from the configs of its scripts: zencfg before and after 1.0, configmypy."""

from __future__ import annotations

from typing import Any

import pytest
from configmypy import Bunch
from neuralop.models import get_model
from zencfg import ConfigBase

import neuralop_sae as ns


class ModelConfig(ConfigBase):
    """As in neuralop's config folder."""

    model_arch: str
    data_channels: int = 3
    n_concepts: int = 8


class RuleConfig(ConfigBase):
    name: str = "TopK"
    k: int = 3


class SAEFNOConfig(ModelConfig):
    model_arch: str = "saefno"
    n_modes: list[int] = [5, 5]  # noqa: RUF012
    concept_rule: RuleConfig = RuleConfig()


class SAETFNOConfig(SAEFNOConfig):
    model_arch: str = "SAETFNO"
    factorization: str = "cp"
    rank: float = 0.5


class SAESFNOConfig(SAEFNOConfig):
    model_arch: str = "saesfno"
    n_modes: list[int] = [4, 8]  # noqa: RUF012
    grid: str = "lobatto"


class SAEPointwiseConfig(ModelConfig):
    model_arch: str = "saepointwise"
    k: int = 2


class PatchingConfig(ConfigBase):
    levels: int = 0


class ScriptConfig(ConfigBase):
    """As in neuralop's scripts."""

    model: ModelConfig
    patching: PatchingConfig = PatchingConfig()


CONFIGS = [SAEFNOConfig, SAETFNOConfig, SAESFNOConfig, SAEPointwiseConfig]


def named(values: Any, name: str = "Config") -> Any:
    """What ``to_dict`` of zencfg 1.0 gives: ``_config_name`` in each dict."""
    if not isinstance(values, dict):
        return values
    plain = {key: value for key, value in values.items() if key != "_config_name"}
    return Bunch({"_config_name": name, **{key: named(value, f"{key.title()}Config") for key, value in plain.items()}})


@pytest.mark.parametrize("form", [lambda values: values, named, Bunch], ids=["zencfg", "zencfg 1.0", "configmypy"])
@pytest.mark.parametrize("config", CONFIGS)
def test_configs_of_every_kind_make_the_model(config: Any, form: Any) -> None:
    model = get_model(form(ScriptConfig(model=config()).to_dict()))
    assert isinstance(model, ns.SAE)
    assert type(model).__name__.lower() == config().model_arch.lower()
    assert (model.in_channels, model.n_concepts) == (3, 8)
    assert "_config_name" not in str(model.config())
    assert type(model)(**model.config()).config() == model.config()
    if isinstance(model, ns.SAEFNO):
        assert list(model.n_modes) == config().n_modes
        assert model.concept_rule.config() == {"name": "TopK", "k": 3}


def test_nested_options_lose_the_name_too() -> None:
    options = {"_config_name": "SphereConfig", "grid": "lobatto"}
    model = ns.SAEFNO(3, 8, (4, 8), conv_module="SphericalConv", conv_options=options)
    assert model.config()["conv_options"] == {"grid": "lobatto"}


def test_no_other_name_is_dropped() -> None:
    values = named(ScriptConfig(model=SAEFNOConfig()).to_dict())
    values.model["_config"] = 3
    with pytest.raises(TypeError, match="unexpected keyword argument '_config'"):
        get_model(values)


def test_patching_multiplies_the_channels() -> None:
    values = ScriptConfig(model=SAEFNOConfig(), patching=PatchingConfig(levels=1)).to_dict()
    assert get_model(named(values)).in_channels == 6


def test_upstreams_own_models_take_no_config_of_zencfg_1() -> None:
    """Why zencfg is held below 1 for neuraloperator 2.0.0. When this fails, the limit can go."""
    values = {"model_arch": "fno", "data_channels": 1, "out_channels": 1, "n_modes": [4, 4], "hidden_channels": 4}
    with pytest.raises(TypeError, match="unexpected keyword argument '_config_name'"):
        get_model(named({"model": values}))
