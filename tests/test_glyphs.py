"""The images of characters and what is measured on them, against closed forms."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from neuralop_sae.layers.sparsity import domain_rules

FOLDER = Path(__file__).parents[1] / "examples" / "reproduction"
NAMES = ("glyphs", "glyph_locality", "glyph_shift")


@pytest.fixture(scope="module")
def scripts():
    """The scripts as modules; the rule that they register goes with them."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        for table in ("_entries", "_spelling"):
            patch.setattr(domain_rules, table, dict(getattr(domain_rules, table)))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    for name in set(sys.modules) - before:
        if str(FOLDER) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def test_images_depend_on_the_seed_alone(scripts):
    x = scripts.glyphs.images(12, seed=3)
    assert torch.equal(x, scripts.glyphs.images(12, seed=3))
    assert torch.equal(x[:5], scripts.glyphs.images(5, seed=3))
    assert not torch.equal(x, scripts.glyphs.images(12, seed=4))


def test_images_are_whole_characters(scripts):
    x = scripts.glyphs.images(200, seed=0)
    assert x.shape == (200, 1, 32, 32)
    assert x.min() == 0
    assert x.max() == 1
    assert x.flatten(1).amax(1).min() > 0.5
    frame = torch.ones(32, 32, dtype=torch.bool)
    frame[1:-1, 1:-1] = False
    assert x[..., frame].max() == 0
    turned = scripts.glyphs.images(200, 0, turn=45.0)  # the widest reach the frame
    assert turned[..., frame].square().sum() < 1e-5 * turned.square().sum()


def test_every_font_has_every_character(scripts):
    for font in scripts.glyphs.FONTS:
        drawn = {scripts.glyphs.glyph(font, character).tobytes() for character in scripts.glyphs.CHARACTERS}
        assert len(drawn) > 0.9 * len(scripts.glyphs.CHARACTERS)  # a few look alike: l and I, O and 0


def test_a_quarter_turn_turns_and_a_move_moves(scripts):
    master = scripts.glyphs.glyph("DejaVuSerif", "R")
    before = np.asarray(master)
    turned = scripts.glyphs.mapped(master, np.zeros(2), 90.0, 1.0, 0.0)
    np.testing.assert_allclose(np.asarray(turned), np.rot90(before), atol=1)
    moved = scripts.glyphs.mapped(master, np.array([5, -3]), 0.0, 1.0, 0.0)
    np.testing.assert_allclose(np.asarray(moved), np.roll(before, (-3, 5), (0, 1)), atol=1)


def test_what_leaves_comes_in_or_does_not(scripts):
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(scripts.glyph_shift.shifted(x, 3, circular=True), x.roll((3, 3), (2, 3)))
    moved = scripts.glyph_shift.shifted(x, 3, circular=False)
    assert torch.equal(moved[..., 3:, 3:], x[..., :-3, :-3])
    assert moved[..., :3, :].abs().sum() == moved[..., :3].abs().sum() == 0


def test_locality_of_a_constant_a_point_and_half_the_domain(scripts):
    fields = torch.zeros(3, 1, 10, 10)
    fields[0] = 2.0
    fields[1, 0, 4, 7] = -3.0
    fields[2, 0, :5] = 1.0
    found = scripts.glyph_locality.locality(fields)
    torch.testing.assert_close(found["area"], torch.tensor([0.9, 0.01, 0.45], dtype=torch.float64))
    torch.testing.assert_close(found["participation"], torch.tensor([1.0, 0.01, 0.5], dtype=torch.float64))


def test_gaussian_fields_have_the_spectrum_but_not_the_place(scripts):
    bump = torch.zeros(4000, 1, 16, 16)
    bump[..., 6:9, 6:9] = 1.0
    noise = scripts.glyph_locality.gaussian(bump, torch.Generator().manual_seed(0))
    power = torch.fft.rfft2(noise).abs().square().mean((0, 1))
    expected = torch.fft.rfft2(bump[0, 0]).abs().square()
    torch.testing.assert_close(power, expected, rtol=0.15, atol=0.01)
    everywhere = noise.square().mean((0, 1))
    torch.testing.assert_close(everywhere, everywhere.mean().expand(16, 16), rtol=0.2, atol=0)
