"""Coordinates of grids: of the inputs as they are, and of other grids of the same domain."""

from __future__ import annotations

import numpy as np
import pytest

import neuralop_sae as ns
from neuralop_sae.data.place import Place


def test_another_grid_of_a_box_begins_where_that_of_the_inputs_does() -> None:
    place = Place(ns.FourierBasis((1, 1)), (2.0, 4.0), {"y": (10.0, 11.0), "x": (-3.0, -2.0, -1.0, 0.0)})
    found = place.coordinates((5, 4, 4))  # five steps of time before the axes of the basis
    assert place.names(3) == ("d1", "y", "x")
    assert {name: values.tolist() for name, values in found.items()} == {
        "y": [10.0, 10.5, 11.0, 11.5],
        "x": [-3.0, -2.0, -1.0, 0.0],
    }


def test_another_grid_of_the_sphere_has_its_own_latitudes() -> None:
    place = Place(ns.SphericalBasis((1, 2)), None, {"lat": (90.0, 0.0, -90.0), "lon": (-180.0, -90.0, 0.0, 90.0)})
    found = place.coordinates((5, 8))
    np.testing.assert_allclose(found["lat"], [90, 45, 0, -45, -90], atol=1e-12)
    np.testing.assert_allclose(found["lon"], np.arange(8) * 45.0 - 180)


def test_what_no_basis_tells_is_left_out() -> None:
    middle = Place(ns.FourierBasis((1, 1)), None, {"lat": (45.0, -45.0), "lon": (0.0, 180.0)})
    assert list(middle.coordinates((2, 2))) == ["lat", "lon"]
    assert list(middle.coordinates((4, 4))) == ["lon"]
    assert Place(ns.FourierBasis((1, 1))).coordinates((4, 4)) == {}


def test_lengths_are_one_for_each_axis() -> None:
    with pytest.raises(ValueError, match="lengths has 1 numbers for the axes y, x"):
        Place(ns.FourierBasis((1, 1)), (1.0,)).coordinates((4, 4))
