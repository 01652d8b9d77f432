"""Layouts: fields from tensors in a module's order, and back, in memory too."""

from __future__ import annotations

import pytest
import torch

from neuralop_sae.attach.layouts import axes_of, from_field, to_field

LAYOUTS = [
    ("batch channels ...", (2, 3, 4, 5), (2, 3, 4, 5)),
    ("batch points channels", (2, 7, 3), (2, 3, 7)),
    ("batch points channels", (7, 3), (1, 3, 7)),
    ("batch time channels ...", (2, 6, 3, 4, 5), (2, 3, 6, 4, 5)),
    ("batch ... channels", (2, 4, 5, 3), (2, 3, 4, 5)),
    ("batch ... channels time", (2, 4, 5, 3, 6), (2, 3, 4, 5, 6)),
    ("channels points", (3, 7), (1, 3, 7)),
    ("... channels", (4, 5, 3), (1, 3, 4, 5)),
]


@pytest.mark.parametrize(("layout", "shape", "expected"), LAYOUTS, ids=str)
def test_there_and_back(layout: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    field = to_field(x, layout)
    assert field.shape == expected
    for new in (field, field.contiguous(), field.clone()):
        back = from_field(new, x, layout)
        assert torch.equal(back, x)
        assert back.stride() == x.stride()
    axes = axes_of(layout, n_dim=2)
    assert len(axes) == len(expected)
    assert axes[1] == "channels"


def test_the_order_in_memory_is_that_of_the_module() -> None:
    x = torch.randn(2, 5, 3, 4).movedim(3, 1)
    back = from_field(torch.zeros(2, 4, 5, 3), x, "batch channels ...")
    assert back.stride() == x.stride() != torch.zeros(2, 4, 5, 3).stride()
    new = torch.randn(2, 4, 5, 3, requires_grad=True)
    from_field(new, x, "batch channels ...").sum().backward()
    assert torch.equal(new.grad, torch.ones_like(new))  # type: ignore[arg-type]


def test_axes_that_are_missing() -> None:
    for layout, shape in (
        ("batch points channels", (3,)),
        ("batch points channels", (1, 2, 3, 4)),
        ("batch channels ...", (2,)),
    ):
        with pytest.raises(TypeError, match=r"axes \(batch, .*\) was expected; got shape"):
            to_field(torch.zeros(shape), layout)
    assert axes_of("batch channels ...") == ("batch", "channels", "...")
