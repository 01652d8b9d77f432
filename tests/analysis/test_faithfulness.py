import pytest
import torch
from neuralop.data.transforms.data_processors import DefaultDataProcessor
from neuralop.data.transforms.normalizers import UnitGaussianNormalizer
from neuralop.models import FNO

import neuralop_sae as ns
from neuralop_sae.analysis.faithfulness import mean_relative_l2
from neuralop_sae.attach.sites import register_sites
from neuralop_sae.layers import FourierBasis


class Perfect(torch.nn.Module):
    """An autoencoder whose codes are the field."""

    def __init__(self):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(()))
        self.basis = FourierBasis((3, 3))

    def encode(self, x):
        return x

    def decode(self, codes, output_shape):
        return codes


@pytest.fixture
def operator():
    torch.manual_seed(0)
    return FNO(n_modes=(4, 4), in_channels=1, out_channels=1, hidden_channels=6, n_layers=2)


def test_losses_against_a_manual_splice(operator):
    x, y = torch.randn(10, 1, 8, 8), torch.randn(10, 1, 8, 8)
    sae = ns.SAEFNO(6, 12, (3, 3), concept_rule=ns.TopK(3))
    result = ns.faithfulness(operator, "fno_blocks.0", sae, {"x": x, "y": y}, batch_size=4)

    def error(edit):
        handle = operator.fno_blocks.register_forward_hook(
            lambda module, args, kwargs, out: edit(out) if args[1] == 0 else None, with_kwargs=True
        )
        with torch.no_grad():
            prediction = operator.eval()(x)
        handle.remove()
        return float(mean_relative_l2(prediction, y).mean())

    activations = ns.capture(operator, "fno_blocks.0", x)
    mean = activations.mean((0, 2, 3)).view(-1, 1, 1)
    assert result["loss_clean"] == pytest.approx(error(lambda out: out), rel=1e-5)
    assert result["loss_spliced"] == pytest.approx(error(lambda out: sae.eval()(out).reconstruction), rel=1e-5)
    assert result["loss_zero_ablated"] == pytest.approx(error(torch.zeros_like), rel=1e-5)
    assert result["loss_mean_ablated"] == pytest.approx(error(lambda out: mean.expand_as(out).contiguous()), rel=1e-5)


def test_a_perfect_autoencoder_recovers_everything(operator):
    x = torch.randn(6, 1, 8, 8)
    y = operator(x).detach() + 0.01 * torch.randn(6, 1, 8, 8)
    result = ns.faithfulness(operator, "fno_blocks.0", Perfect(), {"x": x, "y": y})
    assert result["loss_spliced"] == result["loss_clean"]
    assert result["loss_recovered"] == result["loss_recovered_mean"] == 1.0


def test_a_site_that_runs_once_per_step():
    class Steps(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = torch.nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.cell(self.cell(x).tanh())

    register_sites(Steps)(lambda module, call: (ns.Stage("cell", repeats="step"),))
    model, x, y = Steps(), torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    sae = ns.SAEFNO(3, 8, (3, 3))
    result = ns.faithfulness(model, "cell", sae, {"x": x, "y": y})
    mean = ns.capture(model, "cell", x).mean((0, 2, 3, 4)).view(1, 3, 1, 1).expand_as(y)
    assert result["loss_mean_ablated"] == pytest.approx(float(mean_relative_l2(mean, y).mean()), rel=1e-5)


def test_neuralop_loaders_processors_and_losses(operator):
    x, y = 3 + torch.randn(6, 1, 8, 8), 7 + torch.randn(6, 1, 8, 8)
    normalizers = []
    for values in (x, y):
        normalizer = UnitGaussianNormalizer(dim=[0, 2, 3])
        normalizer.fit(values)
        normalizers.append(normalizer)
    processor = DefaultDataProcessor(*normalizers)
    batches = [{"x": x[:4], "y": y[:4]}, {"x": x[4:], "y": y[4:]}]
    result = ns.faithfulness(operator, "fno_blocks.1", Perfect(), batches, data_processor=processor)
    operator.eval()
    with torch.no_grad():
        prediction = operator((x - x.mean()) / x.std()) * y.std() + y.mean()
    assert result["loss_clean"] == pytest.approx(float(mean_relative_l2(prediction, y).mean()), rel=1e-3)
    squared = ns.faithfulness(operator, "fno_blocks.1", Perfect(), batches, loss=torch.nn.functional.mse_loss)
    with torch.no_grad():
        expected = torch.nn.functional.mse_loss(operator(x), y)
    assert squared["loss_clean"] == pytest.approx(float(expected), rel=1e-5)


def test_a_missing_target_is_named(operator):
    with pytest.raises(ValueError, match="'y'"):
        ns.faithfulness(operator, "fno_blocks.0", Perfect(), {"x": torch.randn(2, 1, 8, 8)})
