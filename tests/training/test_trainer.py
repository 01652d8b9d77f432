import gc
import json
from types import SimpleNamespace

import pytest
import torch
from neuralop import LpLoss

from neuralop_sae import (
    PCA,
    SAECNN,
    SAEFNO,
    SAESFNO,
    SAETFNO,
    BatchTopK,
    JumpReLU,
    Lifted,
    SAEPointwise,
    SoftLocalTopK,
    TopK,
    TrainingConfig,
    train,
)
from neuralop_sae.checkpoint import read_tensors, write_tensors
from neuralop_sae.training.losses import auxiliary_loss, domain_penalty
from neuralop_sae.training.run import Run
from neuralop_sae.training.statistics import channel_statistics


def make_activations(n=24, channels=4, grid=(12, 12), seed=0):
    """Fields with structure: few smooth patterns, mixed into channels, on an offset."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.randn(n, 3, 5, 3, dtype=torch.cfloat, generator=generator)
    from neuralop_sae import FourierBasis

    patterns = torch.relu(FourierBasis((5, 5)).synthesis(spectrum, grid))
    mixing = torch.randn(channels, 3, generator=generator)
    return torch.einsum("ci,bi...->bc...", mixing, patterns) + 2.0


def make_sae(seed=0, **kwargs):
    torch.manual_seed(seed)
    settings = {"concept_rule": BatchTopK(4), "domain_rule": SoftLocalTopK(2), **kwargs}
    return SAEFNO(4, 12, (5, 5), **settings)


CONFIG = TrainingConfig(n_epochs=4, batch_size=8, learning_rate=1e-2, log_every=3, check_every=5, dead_after=20)


@pytest.mark.parametrize("factorization", [None, "Tucker", "CP", "TT"])
def test_training_explains_more(factorization):
    sae = make_sae(factorization=factorization, rank=0.8)
    config = CONFIG.model_copy(update={"n_epochs": 20})
    history = train(sae, make_activations(), config, progress=False)
    assert history["fve"][-1] > max(0.6, history["fve"][0] + 0.1)
    assert not sae.training
    assert history.rows[-1]["step"] == 60


def test_a_model_without_parameters_is_refused():
    with pytest.raises(ValueError, match=r"PCA has no parameters to train; use its fit\(activations\)"):
        train(PCA(3, 2), torch.randn(4, 3, 8, 8))


def test_normalisation_is_that_of_the_activations():
    acts = make_activations()
    sae = make_sae()
    train(sae, acts, CONFIG, progress=False)
    torch.testing.assert_close(sae.mean, acts.mean((0, 2, 3)))
    centred = acts - acts.mean((0, 2, 3), keepdim=True)
    torch.testing.assert_close(sae.scale, centred.square().mean().sqrt())


def test_fused_adam_on_real_views_equals_plain_adam():
    acts = make_activations()
    ours, plain = make_sae(concept_rule="All"), make_sae(concept_rule="All")  # every row in every step
    config = CONFIG.model_copy(update={"n_epochs": 1, "auxiliary_weight": 0.0, "gradient_clip": 1e9, "warmup": 0, "decay": 0})
    train(ours, acts, config, progress=False)
    ((mean, scale),) = channel_statistics([plain], acts, 8)
    plain.fit_normalization(mean, scale)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(acts), generator=generator)[:64]
    plain.initialize_from(acts[chosen], generator)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-2, foreach=False, fused=False)
    plain.train()
    for index in torch.randperm(24, generator=torch.Generator().manual_seed(0)).split(8):
        optimizer.zero_grad()
        error = (acts[index] - plain(acts[index]).reconstruction).square().mean()
        (error / plain.scale**2).backward()
        optimizer.step()
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-5, msg=name)


def states_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize(
    ("rule", "loss", "prefixes"),
    [(BatchTopK(4), None, ()), (TopK(3), LpLoss(d=2), ()), (JumpReLU(0.3, 0.3), None, ()), (TopK(3), None, (2, 7))],
)
def test_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, rule, loss, prefixes, monkeypatch):
    acts = make_activations()
    config = CONFIG.model_copy(update={"checkpoint_every": 5, "gate_weight": 1e-3, "prefixes": prefixes})
    whole = make_sae(concept_rule=rule)
    expected = train(whole, acts, config, loss=loss, progress=False)

    class Stop(Exception):
        pass

    calls = []
    step = Run.one_step

    def stop_at_eight(run, x):
        calls.append(1)
        if len(calls) == 8:
            raise Stop
        return step(run, x)

    broken = make_sae(concept_rule=rule)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "one_step", stop_at_eight)
        with pytest.raises(Stop):
            train(broken, acts, config, loss=loss, checkpoint_dir=tmp_path, progress=False)
    resumed = make_sae(seed=5, concept_rule=rule)
    history = train(resumed, acts, config, loss=loss, checkpoint_dir=tmp_path, resume=True, progress=False)
    states_equal(whole.state_dict(), resumed.state_dict())
    assert [row["step"] for row in history.rows][-1] == expected.rows[-1]["step"]
    assert history["fve"][-1] == expected["fve"][-1]
    assert history["loss"][-1] == expected["loss"][-1]


def test_checkpoint_of_another_run_is_refused(tmp_path):
    acts = make_activations()
    train(make_sae(), acts, CONFIG, checkpoint_dir=tmp_path, progress=False)
    other = CONFIG.model_copy(update={"learning_rate": 0.5})
    with pytest.raises(ValueError, match=r"another run: config.learning_rate was 0.01, now 0.5\. Resume with the same"):
        train(make_sae(), acts, other, checkpoint_dir=tmp_path, resume=True, progress=False)
    tensors, header = read_tensors(tmp_path / "training.safetensors")
    assert any(name.startswith("optimizer.") for name in tensors)
    assert "progress" in header


@pytest.fixture
def earlier(tmp_path):
    """A run that stopped after 6 of 12 steps, saved by a version that knew less; and the state in which it should end."""
    acts, model = make_activations(), lambda: make_sae(concept_rule=TopK(3), domain_rule=SoftLocalTopK(2))
    config = CONFIG.model_copy(update={"checkpoint_every": 5})
    whole = model()
    train(whole, acts, config, progress=False)

    def stop(row):
        if row["step"] == 6:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(model(), acts, config, checkpoint_dir=tmp_path, on_log=stop, progress=False)
    path = tmp_path / "training.safetensors"
    tensors, header = read_tensors(path)
    run = json.loads(header["run"])
    for fields, name in ((run["config"], "prefixes"), (run["config"], "domain_weight"), (run["arguments"], "encoder")):
        del fields[name]
    del run["arguments"]["domain_rule"]["softness"]
    write_tensors(path, tensors, {**header, "run": json.dumps(run)})
    return SimpleNamespace(acts=acts, model=model, config=config, folder=tmp_path, state=whole.state_dict())


def resume(earlier, sae=None, **changes):
    config = earlier.config.model_copy(update=changes)
    sae = sae or earlier.model()
    train(sae, earlier.acts, config, checkpoint_dir=earlier.folder, resume=True, progress=False)
    return sae


def test_a_run_of_an_earlier_version_goes_on(earlier):
    sae, random = earlier.model(), torch.get_rng_state()
    states_equal(earlier.state, resume(earlier, sae).state_dict())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("changes", "rule", "said"),
    [
        ({"domain_weight": 0.5}, SoftLocalTopK(2), r"another run: config.domain_weight was 0.0, now 0.5\."),
        ({}, SoftLocalTopK(2, softness=0.1), r"another run: arguments.domain_rule.softness was 1.0, now 0.1\."),
    ],
)
def test_what_an_earlier_version_did_not_have_must_be_at_its_default(earlier, changes, rule, said):
    with pytest.raises(ValueError, match=said):
        resume(earlier, make_sae(concept_rule=TopK(3), domain_rule=rule), **changes)


def test_a_run_of_another_class_or_version_is_refused(earlier):
    with pytest.raises(ValueError, match="model was 'SAEFNO', now 'SAEPointwise'"):
        resume(earlier, SAEPointwise(4, 12, k=2))
    path = earlier.folder / "training.safetensors"
    tensors, header = read_tensors(path)
    run = json.loads(header["run"])
    run["arguments"]["of_tomorrow"] = 3
    write_tensors(path, tensors, {**header, "run": json.dumps(run)})
    with pytest.raises(ValueError, match="arguments.of_tomorrow was 3, now None"):
        resume(earlier)


def test_nan_stops_with_the_last_good_state(monkeypatch):
    acts = make_activations()
    sae = make_sae()
    good = {}
    step = Run.one_step

    def poison(run, x):
        out = step(run, x)
        if run.step == 4:
            good.update({name: tensor.clone() for name, tensor in run.sae.state_dict().items()})
        if run.step == 6:
            run.sae.concept_decoder.conv.bias.data.fill_(float("nan"))
        return out

    monkeypatch.setattr(Run, "one_step", poison)
    with pytest.raises(FloatingPointError, match="last good state"):
        train(sae, acts, CONFIG, progress=False)
    assert not sae.training
    states_equal(good, sae.state_dict())


def test_bad_activations_are_refused_before_training():
    sae = make_sae()
    acts = make_activations()
    acts[5, 0, 3, 3] = float("nan")
    with pytest.raises(ValueError, match="NaN or Inf"):
        train(sae, acts, CONFIG, progress=False)
    with pytest.raises(ValueError, match="channels"):
        train(sae, make_activations(channels=3), CONFIG, progress=False)
    with pytest.raises(ValueError, match="no activations"):
        train(sae, acts[:0], CONFIG, progress=False)
    for constant in (1.0, 1.1, 1000.3):  # the mean of some is not what they are to the last bit
        with pytest.raises(ValueError, match="constant"):
            train(sae, torch.full((6, 4, 9, 7), constant), CONFIG, progress=False)
    apart = torch.tensor([0.3, 1000.0, 1.1, 2.3]).view(4, 1, 1).expand(6, 4, 9, 7)
    with pytest.raises(ValueError, match="constant"):
        train(sae, apart, CONFIG, progress=False)


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
def test_statistics_of_activations_far_from_zero(offset):
    sae, acts = make_sae().double(), make_activations().double()
    ((mean, scale),) = channel_statistics([sae], acts + offset, 5)
    torch.testing.assert_close(mean - offset, acts.mean((0, 2, 3)), rtol=0, atol=1e-9)
    expected = (acts - acts.mean((0, 2, 3), keepdim=True)).square().mean().sqrt()
    torch.testing.assert_close(scale, expected, rtol=1e-9, atol=0)


def test_config_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="n_epoch"):
        TrainingConfig(n_epoch=3)
    with pytest.raises(ValueError, match="learning_rate"):
        TrainingConfig(learning_rate=-1.0)


def test_dead_concepts_get_a_gradient():
    sae = make_sae(concept_rule=TopK(2))
    acts = make_activations()
    sae.fit_normalization(*channel_statistics([sae], acts, 8)[0])
    with torch.no_grad():
        sae.concept_encoder.conv.bias[5] = -50.0  # wholly negative: never on
    dead = torch.zeros(12, dtype=torch.bool)
    dead[5] = True
    written = sae(acts, dead=dead, dead_k=4).dead_reconstruction
    auxiliary_loss(acts - acts.mean(), written, sae.basis).backward()
    layer = sae.concept_encoder
    assert layer.conv.weight.tensor.grad[:, 5].abs().max() > 0
    assert layer.skip.conv.weight.grad[5].abs().max() > 0
    assert layer.conv.bias.grad[5] != 0
    assert layer.conv.weight.tensor.grad[:, 4].abs().max() == 0


def test_dead_concepts_are_counted_in_fields_and_signed_codes_are_not_dead():
    from neuralop_sae.codes import ConceptCodes
    from neuralop_sae.training.revival import DeadConcepts

    dead = DeadConcepts(3, dead_after=10)
    values = torch.stack([torch.tensor([1.0, -1.0]), torch.zeros(2)])  # cancels; all zero
    basis = make_sae().basis
    codes = ConceptCodes(torch.tensor([0, 1]), torch.tensor([0, 1]), values, 4, 3, basis)
    for _ in range(3):
        dead.update(codes)
    assert dead.fields_since_on.tolist() == [0, 12, 12]
    assert dead.mask().tolist() == [False, True, True]


def test_defaults_do_not_collapse():
    """Plain top-k on functions keeps the same k concepts; the defaults must not."""
    acts = make_activations(n=48)
    torch.manual_seed(0)
    sae = SAEFNO(4, 12, (5, 5), concept_rule=TopK(12))
    train(sae, acts, CONFIG.model_copy(update={"n_epochs": 10}), progress=False)
    codes = sae.encode(acts)
    on = torch.bincount(codes.concept[codes.values.flatten(1).any(1)], minlength=12) > 0
    assert on.double().mean() >= 0.75


def test_pointwise_baseline_trains_too():
    torch.manual_seed(0)
    sae = SAEPointwise(4, 12, k=2)
    history = train(sae, make_activations(), CONFIG.model_copy(update={"n_epochs": 30}), progress=False)
    assert history["fve"][-1] > 0.8
    assert history.rows[-1]["l0_local"] <= 2


def test_a_new_run_puts_the_checkpoint_of_the_last_one_aside(tmp_path):
    acts = make_activations()
    train(make_sae(), acts, CONFIG, checkpoint_dir=tmp_path, progress=False)
    before = (tmp_path / "training.safetensors").read_bytes()
    train(make_sae(), acts, CONFIG.model_copy(update={"seed": 1}), checkpoint_dir=tmp_path, progress=False)
    assert (tmp_path / "training.previous.safetensors").read_bytes() == before
    assert (tmp_path / "training.safetensors").read_bytes() != before


@pytest.mark.parametrize("kind", ["SAEFNO", "SAETFNO", "SAEPointwise", "SAECNN"])
def test_a_domain_weight_makes_codes_small_without_moving_scale(kind):
    models = {
        "SAEFNO": lambda: SAEFNO(4, 12, (5, 5)),
        "SAETFNO": lambda: SAETFNO(4, 12, (5, 5), concept_rule=TopK(6), factorization="cp", rank=0.5),
        "SAEPointwise": lambda: SAEPointwise(4, 12, k=4),
        "SAECNN": lambda: SAECNN(4, 12, (3, 3)),
    }
    x, penalties = make_activations(), []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        sae = models[kind]()
        train(sae, x, CONFIG.model_copy(update={"domain_weight": weight, "n_epochs": 24}), progress=False)
        codes = sae.encode(x)
        penalties.append(domain_penalty(codes, sae.kernel_norms()).item())
    assert penalties[1] < 0.8 * penalties[0], penalties


def test_a_domain_weight_needs_norms_with_gradient():
    sae = Lifted(SAEFNO(4, 12, (3, 3), decoder="fno_block"), channels=6)
    with pytest.raises(ValueError, match="leave domain_weight at 0"):
        train(sae, make_activations(), CONFIG.model_copy(update={"domain_weight": 1.0}), progress=False)


@pytest.mark.parametrize("encoder", ["linear", "tied", "unrolled"])
@pytest.mark.parametrize("kind", ["complex", "real", "factorised"])
def test_nothing_of_a_step_outlives_it(kind, encoder):
    """Tensors with a history hold the memory of a whole step. Real weights conjugate to themselves, with their history."""
    x = torch.randn(8, 2, 9, 16)
    arguments = {"concept_rule": "All", "encoder": encoder, **({"n_iterations": 2} if encoder == "unrolled" else {})}
    make = {
        "complex": lambda: SAESFNO(2, 6, (4, 8), kernel="positional", **arguments),
        "real": lambda: SAESFNO(2, 6, (4, 8), isotropic=True, skip=None, **arguments),
        "factorised": lambda: SAETFNO(2, 6, (5, 5), factorization="cp", rank=0.5, **arguments),
    }[kind]

    def with_history():
        gc.collect()
        return [each for each in gc.get_objects() if type(each) is torch.Tensor and each.grad_fn is not None]

    before = len(with_history())
    train(make(), x, TrainingConfig(n_epochs=2, batch_size=4), progress=False)
    assert len(with_history()) == before
