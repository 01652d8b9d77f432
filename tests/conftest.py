"""Shared fixtures: a seed for every test, and the devices that this machine has."""

from __future__ import annotations

import pytest
import torch

# Tensors in tests are tiny: a second thread only waits.
torch.set_num_threads(1)

# A package of its own, which tests/test_plugin_package.py installs elsewhere.
collect_ignore = ["plugin_package"]

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)
