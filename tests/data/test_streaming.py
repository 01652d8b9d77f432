"""A stream gives what capture gives, computed when it is asked for."""

from __future__ import annotations

import pytest
import torch
from neuralop.data.datasets.tensor_dataset import TensorDataset
from neuralop.data.transforms.data_processors import DefaultDataProcessor
from neuralop.data.transforms.normalizers import UnitGaussianNormalizer
from neuralop.models import FNO
from torch import Tensor
from torch.utils.data import DataLoader

import neuralop_sae as ns
from neuralop_sae.data.streaming import stream

SITES = ["fno_blocks.0", "fno_blocks.1"]


@pytest.fixture
def model() -> FNO:
    return FNO(n_modes=(4, 4), in_channels=1, out_channels=1, hidden_channels=3, n_layers=2)


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(12, 1, 8, 8)


ORDER = torch.tensor([7, 0, 11, 3])


def test_it_gives_what_capture_gives(model: FNO, inputs: Tensor) -> None:
    activations = stream(model, SITES[1], inputs)
    assert activations.shape == (12, 3, 8, 8)
    assert torch.equal(activations[ORDER], ns.capture(model, SITES[1], inputs[ORDER]))
    assert torch.equal(activations[2], ns.capture(model, SITES[1], inputs[2:3])[0])
    assert torch.equal(activations[-3:], ns.capture(model, SITES[1], inputs[-3:]))
    activations.prefetch(ORDER)
    assert torch.equal(activations[ORDER], ns.capture(model, SITES[1], inputs[ORDER]))


def test_training_on_a_stream_is_training_on_what_it_gives(model: FNO, inputs: Tensor) -> None:
    config = ns.TrainingConfig(n_epochs=1, batch_size=6)
    states = []
    for activations in (stream(model, SITES[0], inputs), ns.capture(model, SITES[0], inputs)):
        torch.manual_seed(0)
        sae = ns.SAEFNO(in_channels=3, n_concepts=8, n_modes=(4, 4), concept_rule=ns.TopK(2))
        ns.train(sae, activations, config, progress=False)
        states.append(sae)
    for one, other in zip(states[0].parameters(), states[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)  # sums over other batches differ in their last bits


def test_streams_of_several_sites_share_their_passes(model: FNO, inputs: Tensor) -> None:
    passes: list[int] = []
    streams = stream(model, SITES, inputs)
    assert list(streams) == SITES
    handle = model.register_forward_hook(lambda *_: passes.append(1))
    captured = ns.capture(model, SITES, inputs[ORDER])
    passes.clear()
    for site in SITES:
        assert torch.equal(streams[site][ORDER], captured[site])
    assert len(passes) == 1
    streams[SITES[0]].prefetch(ORDER.flip(0))
    streams[SITES[1]].prefetch(ORDER.flip(0))
    assert all(torch.equal(streams[site][ORDER.flip(0)], captured[site].flip(0)) for site in SITES)
    assert len(passes) == 2
    streams[SITES[0]][ORDER].zero_()  # what a user does to a batch stays with the user
    assert torch.equal(streams[SITES[0]][ORDER], captured[SITES[0]])
    passes.clear()
    orders = torch.arange(12).split(3)
    for order, following in zip(orders, [*orders[1:], None], strict=True):  # as a trainer goes through several sites
        for activations in streams.values():
            assert activations[order].shape == (3, 3, 8, 8)
            if following is not None:
                activations.prefetch(following)
    assert len(passes) == len(orders)
    handle.remove()


def test_the_operator_is_left_as_it_was(model: FNO, inputs: Tensor) -> None:
    model.train()
    hooks = [len(module._forward_hooks) for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    fields = stream(model, SITES[1], inputs)[ORDER]
    assert not fields.requires_grad
    assert model.training
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())


def test_neuralops_data_sets_and_processors(model: FNO, inputs: Tensor) -> None:
    normalizer = UnitGaussianNormalizer(mean=torch.full((1, 1, 1, 1), 0.5), std=torch.full((1, 1, 1, 1), 2.0))
    processor = DefaultDataProcessor(in_normalizer=normalizer)
    data = TensorDataset(inputs, inputs)
    expected = ns.capture(model, SITES[0], normalizer.transform(inputs[ORDER]))
    for source in (data, DataLoader(data, batch_size=5, shuffle=True), {"x": inputs, "y": inputs}):
        activations = stream(model, SITES[0], source, data_processor=processor)
        assert len(activations) == 12
        assert torch.equal(activations[ORDER], expected)
    torch.testing.assert_close(data[7]["x"], inputs[7], rtol=0, atol=0)


def test_inside_a_splice_it_gives_the_edited_activations(model: FNO, inputs: Tensor) -> None:
    activations = stream(model, SITES[1], inputs)
    plain = activations[ORDER]
    with ns.replace_activation(model, SITES[0], torch.zeros_like):
        edited = activations[ORDER]
        assert torch.equal(edited, ns.capture(model, SITES[1], inputs[ORDER]))
    assert not torch.equal(edited, plain)
    assert torch.equal(activations[ORDER], plain)


def test_parts_by_trajectory(model: FNO, inputs: Tensor) -> None:
    activations = stream(model, SITES[0], inputs, trajectory=torch.arange(12) // 3, time=torch.arange(12) % 3)
    train, test = activations.train_test([1])
    assert test.rows.tolist() == [3, 4, 5]
    assert test.time is not None
    assert test.time.tolist() == [0, 1, 2]
    assert torch.equal(test[:], ns.capture(model, SITES[0], inputs[3:6]))
    assert len(train) == 9


def test_inputs_without_numbers_are_refused(model: FNO, inputs: Tensor) -> None:
    for bad in (list(inputs.split(4)), {8: inputs}, (batch for batch in inputs.split(4)), "inputs"):
        with pytest.raises(TypeError, match="samples are asked for by number: inputs must be a tensor"):
            stream(model, SITES[0], bad)


def test_what_does_not_fit_is_found_at_once(model: FNO, inputs: Tensor) -> None:
    with pytest.raises(ValueError, match="unknown site"):
        stream(model, "fno_blocks.9", inputs)
    with pytest.raises(ValueError, match="there are 12 samples"):
        stream(model, SITES[0], inputs, trajectory=torch.arange(4))
    with pytest.raises(ValueError, match="no samples"):
        stream(model, SITES[0], inputs[:0])
    with pytest.raises(ValueError, match="no sites"):
        stream(model, [], inputs)


def test_an_error_in_the_other_thread_reaches_the_reader(model: FNO, inputs: Tensor) -> None:
    class Broken(torch.utils.data.Dataset[dict[str, Tensor]]):
        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            if index == 11:
                raise OSError("the disk is gone")
            return {"x": inputs[index]}

    activations = stream(model, SITES[0], Broken())
    activations.prefetch(ORDER)
    with pytest.raises(OSError, match="the disk is gone"):
        activations[ORDER]
    assert torch.equal(activations[[1, 2]], ns.capture(model, SITES[0], inputs[1:3]))
