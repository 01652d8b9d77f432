import pytest
import torch

from neuralop_sae.layers.lifting import Lifting


def test_it_starts_orthonormal_and_maps_each_point_by_itself():
    lifting = Lifting(3, 5)
    torch.testing.assert_close(lifting.weight.T @ lifting.weight, torch.eye(3))
    with torch.no_grad():
        lifting.weight.normal_()
    x = torch.randn(2, 3, 6, 7)
    up = lifting.lift(x)
    torch.testing.assert_close(up[1, :, 2, 3], lifting.weight @ x[1, :, 2, 3])
    torch.testing.assert_close(lifting.project(up)[1, :, 2, 3], lifting.weight.T @ up[1, :, 2, 3])
    torch.testing.assert_close(lifting.lift(x[..., ::2]), up[..., ::2])


def test_an_untied_projection_starts_as_the_transpose_and_learns_by_itself():
    lifting = Lifting(3, 5, projection="untied")
    torch.testing.assert_close(lifting.projection, lifting.weight.T)
    lifting.project(torch.randn(2, 5, 4)).square().sum().backward()
    assert lifting.weight.grad is None
    assert lifting.projection.grad.any()


@pytest.mark.parametrize(
    ("channels", "projection", "message"),
    [
        (2, "tied", "3 channels are lifted to as many or more, got channels=2"),
        (5, "both", "unknown projection 'both'; known: tied"),
    ],
)
def test_what_does_not_fit_is_refused(channels, projection, message):
    with pytest.raises(ValueError, match=message):
        Lifting(3, channels, projection=projection)
