import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import xarray

import neuralop_sae as ns
from neuralop_sae.analysis.probes import probe
from neuralop_sae.metrics import pearson

GAP = torch.rand(10, 8, 8)
GAP[3, 0, 0], GAP[7, 1] = torch.nan, torch.inf
PLANE, SPHERE = ns.FourierBasis((5, 5)), ns.SphericalBasis((4, 8))


def smooth(n, shape, seed, modes=3, basis=PLANE):
    """Independent fields of few modes, ``(n, *shape)``: their points hang together over a third of the domain."""
    generator = torch.Generator().manual_seed(seed)
    band = ns.FourierBasis((modes, modes)) if basis is PLANE else ns.SphericalBasis((modes, 2 * modes))
    spectrum = torch.randn(n, *band.mode_shape, dtype=torch.cdouble, generator=generator)
    return band.synthesis(spectrum.tril() if basis is SPHERE else spectrum, shape)


def row(table, concept, quantity, lag=0):
    found = table[(table.concept == concept) & (table.quantity == quantity) & (table.lag == lag)]
    assert len(found) == 1
    return found.iloc[0]


@pytest.mark.parametrize(("basis", "shape"), [(PLANE, (9, 8)), (SPHERE, (9, 16))])
def test_correlations_of_known_codes(channels, basis, shape):
    fields = smooth(20, (*shape,), 0, basis=basis)
    noise = torch.randn(20, *shape, dtype=torch.float64)
    x = torch.stack([fields, -2 * fields + 3, fields + noise, torch.zeros_like(fields)], 1)
    x[::2, 2] = 0  # off in half of the samples
    table = probe(channels(4, basis), x, {"field": fields}, batch_size=7, n_bootstrap=20, n_permutations=20)
    measure = basis.quadrature(shape, like=fields)
    for concept in range(3):
        assert row(table, concept, "field").correlation == pytest.approx(pearson(x[:, concept], fields, measure), abs=1e-12)
    assert row(table, 0, "field").correlation == pytest.approx(1)
    assert row(table, 1, "field").correlation == pytest.approx(-1)
    assert np.isnan(row(table, 3, "field").correlation)
    assert np.isnan(row(table, 3, "field").q_value)
    assert table.frequency.tolist() == [1, 1, 0.5, 0]
    assert row(table, 0, "field").auroc == pytest.approx(1, abs=2e-3)
    assert row(table, 1, "field").auroc == pytest.approx(0, abs=2e-3)


def exact_auroc(score, high, weight):
    """Over all pairs of points."""
    score, high, weight = (part.flatten() for part in (score, high, weight))
    a, b, wa, wb = score[high], score[~high], weight[high], weight[~high]
    wins = (a[:, None] > b).double() + 0.5 * (a[:, None] == b).double()
    return float((wa[:, None] * wb * wins).sum() / (wa.sum() * wb.sum()))


@pytest.mark.parametrize(("basis", "shape"), [(PLANE, (9, 8)), (SPHERE, (9, 16))])
def test_auroc_against_all_pairs_of_points(channels, basis, shape):
    field = smooth(12, shape, 0, basis=basis)
    noise = torch.randn(12, 2, *shape, dtype=torch.float64)
    x = torch.stack([torch.relu(field + noise[:, 0]), noise[:, 1] - 0.5 * field], 1)
    x[::3, 0] = 0
    table = probe(channels(2, basis), x, {"field": field}, quantile=0.8, n_bootstrap=50, n_permutations=5)
    weight = basis.quadrature(shape, like=field).expand_as(field)
    order = field.flatten().argsort()
    share = weight.flatten()[order].cumsum(0) / len(field)
    high = field > field.flatten()[order[int(torch.searchsorted(share, 0.8 * (1 - 1e-12)))]]
    assert float((high * weight).sum() / 12) == pytest.approx(0.2, abs=0.01)
    for concept in range(2):
        found = row(table, concept, "field")
        assert found.auroc == pytest.approx(exact_auroc(x[:, concept], high, weight), abs=1e-3)
        assert found.auroc_low < found.auroc < found.auroc_high


def test_norms_go_with_numbers(channels):
    number = torch.linspace(1, 2, 30, dtype=torch.float64)
    shape = smooth(30, (8, 8), 1)
    unit = shape / shape.square().mean((1, 2), keepdim=True).sqrt()
    x = torch.stack([number.view(-1, 1, 1) * unit, unit], 1)
    table = probe(channels(2, PLANE), x, {"reynolds": number, "field": shape}, n_bootstrap=50, n_permutations=200)
    assert row(table, 0, "reynolds").kind == "norm"
    assert row(table, 0, "reynolds").correlation == pytest.approx(1)
    assert row(table, 0, "reynolds").auroc == pytest.approx(1, abs=0.01)
    assert row(table, 0, "reynolds").q_value < 0.01
    assert np.isnan(row(table, 1, "reynolds").correlation)  # the norm is always one
    assert row(table, 0, "field").kind == "map"


def test_sparse_rows_and_tiles_give_what_the_whole_gives(channels):
    x, field = torch.relu(smooth(30, (8, 8), 0)).view(10, 3, 8, 8), smooth(10, (8, 8), 1)
    whole = probe(channels(3, PLANE), x, {"f": field}, n_bootstrap=20, n_permutations=20)
    tiled = probe(channels(3, PLANE), x, {"f": field}, n_bootstrap=20, n_permutations=20, tiles=(2, 4), batch_size=3)
    for name in ("correlation", "auroc", "chance", "p_value"):
        np.testing.assert_allclose(tiled[name], whole[name], atol=1e-12)


def test_fields_on_another_grid_are_resampled(channels):
    x, fine = smooth(10, (8, 8), 0)[:, None], smooth(10, (24, 20), 0)
    assert row(probe(channels(1, PLANE), x, {"f": fine}, n_bootstrap=5, n_permutations=5), 0, "f").correlation > 1 - 1e-12


def test_vectors_and_quantities_by_name(channels):
    vorticity = smooth(10, (16, 16), 0)
    vorticity = vorticity - vorticity.mean((1, 2), keepdim=True)
    square = vorticity.square().unsqueeze(1)
    options = {"fields": {"vorticity": vorticity}, "n_bootstrap": 5, "n_permutations": 5}
    named = probe(channels(1, PLANE), square, ["enstrophy", "strain"], **options)
    assert row(named, 0, "enstrophy").correlation > 1 - 1e-12
    given = {"own": lambda enstrophy: -enstrophy, "flow": torch.stack([vorticity, square[:, 0]], 1)}
    table = probe(channels(1, PLANE), square, given, **options)
    assert row(table, 0, "own").correlation < -1 + 1e-12
    assert row(table, 0, "flow[1]").correlation > 1 - 1e-12
    assert sorted(set(table.quantity)) == ["flow[0]", "flow[1]", "own"]


def test_arrays_of_numpy_and_xarray_are_physics_and_fields(channels):
    field = smooth(10, (8, 8), 0)
    labelled = xarray.DataArray(field.numpy().astype(">f8"), dims=("time", "lat", "lon"))
    options = {"n_bootstrap": 5, "n_permutations": 5}
    expected = probe(channels(1, PLANE), field[:, None], {"f": field}, **options)
    pd.testing.assert_frame_equal(probe(channels(1, PLANE), field[:, None].numpy(), {"f": field}, **options), expected)
    for given in (labelled, field.numpy(), field.numpy()[::-1].copy()[::-1], field.tolist()):
        pd.testing.assert_frame_equal(probe(channels(1, PLANE), field[:, None], {"f": given}, **options), expected)
        own = probe(channels(1, PLANE), field[:, None], {"f": lambda g: g.numpy()}, fields={"g": given}, **options)
        pd.testing.assert_frame_equal(own, expected)


def test_a_planted_concept_is_found_with_its_lag(channels):
    """The field follows the concept by 2 steps; both change slowly, in twelve trajectories of ten steps."""
    n_series, n_steps = 12, 10
    noise = smooth(n_series * (n_steps + 4), (8, 8), 0).view(n_series, n_steps + 4, 8, 8)
    slow = noise[:, 1:] + 0.6 * noise[:, :-1]
    code, field = slow[:, 2 : 2 + n_steps], slow[:, :n_steps]
    other = smooth(n_series * n_steps, (8, 8), 1)
    x = torch.stack([torch.relu(code.flatten(0, 1)), torch.relu(other)], 1)
    shuffled = torch.randperm(len(x))
    series = {
        "trajectory": np.repeat(np.arange(n_series), n_steps)[shuffled],
        "time": np.tile(0.5 * np.arange(n_steps), n_series)[shuffled],
    }
    lags = (-1.0, -0.5, 0, 0.5, 1.0, 1.5)
    table = probe(channels(2, PLANE), x[shuffled], {"f": field.flatten(0, 1)[shuffled]}, lags=lags, **series)
    planted = table[table.concept == 0]
    assert planted.loc[planted.correlation.idxmax(), "lag"] == 1.0
    assert row(table, 0, "f", 1.0).n_samples == n_series * (n_steps - 2)
    assert row(table, 0, "f", 1.0).q_value < 0.01
    assert (table[table.concept == 1].p_value > 0.01).all()
    shift = code[:, : n_steps - 2].flatten(0, 1).relu(), field[:, 2:].flatten(0, 1)
    assert row(table, 0, "f", 1.0).correlation == pytest.approx(pearson(*shift))


@pytest.mark.parametrize(("step", "unit", "lag"), [("6h", "hours", 6.0), ("24h", "days", 1.0), ("90min", "minutes", 90.0)])
def test_lags_of_dates_are_in_a_unit_that_people_read(channels, step, unit, lag):
    field = smooth(24, (8, 8), 0)
    x, f = torch.relu(field[1:])[:, None], {"f": field[:-1]}  # the field follows by a step
    dates = pd.date_range("2021-02-27", periods=23, freq=step)
    options = {"n_bootstrap": 10, "n_permutations": 20}
    table = probe(channels(1, PLANE), x, f, time=dates, lags=(0, lag, -lag), **options)
    assert table.columns[3:5].tolist() == ["lag", "lag_unit"]
    assert table.lag_unit.unique().tolist() == [unit]
    by_number = probe(channels(1, PLANE), x, f, time=np.arange(23.0), lags=(0, 1, -1), trajectory=np.zeros(23), **options)
    assert "lag_unit" not in by_number
    values = ["correlation", "low", "high", "p_value", "n_samples"]
    pd.testing.assert_frame_equal(table[values], by_number[values])
    assert table.loc[table.correlation.idxmax(), "lag"] == lag
    with pytest.raises(ValueError, match=f"no two samples have a partner at .*; lags are in {unit}, and"):
        probe(channels(1, PLANE), x, f, time=dates, lags=(0.5 * lag,))


def test_labels_of_activations_are_the_default(channels, held):
    x, f = torch.relu(smooth(40, (8, 8), 0))[:, None], {"f": smooth(40, (8, 8), 1)}
    labels = {"trajectory": np.repeat(np.arange(10), 4), "time": np.tile(np.arange(4), 10)}
    options = {"lags": (0, 1), "n_bootstrap": 20, "n_permutations": 20}

    def of(acts, **given):
        return probe(channels(1, PLANE), acts, f, **options, **given)

    own = of(held(x, **labels))
    pd.testing.assert_frame_equal(own, of(x, **labels))
    assert own.n_samples.tolist() == [40, 30]
    other = {"trajectory": np.zeros(40), "time": np.arange(40)}
    pd.testing.assert_frame_equal(of(held(x, **labels), **other), of(x, **other))
    options["lags"] = (0, 6)
    dates = pd.date_range("2020", periods=40, freq="6h").to_numpy()
    pd.testing.assert_frame_equal(of(held(x, dates)), of(x, time=dates))
    options["lags"] = (0, 1)
    _, test = held(x, **labels).train_test([0, 1, 2])
    part = probe(channels(1, PLANE), test, {"f": f["f"][:12]}, **options)
    assert part.n_samples.tolist() == [12, 9]


def test_what_all_samples_share_is_chance(channels):
    """Code and field both follow the mean flow, and nothing else: a correlation that tells nothing of the single sample."""
    mean = 2 * smooth(1, (8, 8), 0)
    x = torch.stack([mean + smooth(40, (8, 8), 1), mean + smooth(40, (8, 8), 2)], 1)
    found = row(probe(channels(2, PLANE), x, {"f": x[:, 1]}), 0, "f")
    assert found.correlation > 0.5
    assert found.chance == pytest.approx(found.correlation, abs=0.1)
    assert found.p_value > 0.05
    assert row(probe(channels(2, PLANE), x, {"f": x[:, 1]}), 1, "f").p_value < 0.01


@pytest.mark.parametrize("null", ["exchange", "translate"])
def test_false_discoveries_of_a_thousand_concepts_without_any_link(channels, null):
    """Strongly correlated in space, seldom on. p-values and intervals hold; taking points to be independent does not."""
    n, shape = 40, (8, 8)
    below, outside, naive, discoveries = [], [], [], []
    for seed in range(3):
        codes = smooth(n * 350, shape, 2 * seed).view(n, 350, *shape).relu()
        on = torch.rand(n, 350) < torch.linspace(0.05, 1, 350)
        fields = smooth(n * 3, shape, 2 * seed + 1).view(n, 3, *shape)
        x = codes * on[..., None, None]
        table = probe(channels(350, PLANE), x, {"a": fields[:, 0], "b": fields[:, 1], "c": fields[:, 2]}, null=null).dropna()
        below.append((table.p_value < 0.05).mean())
        outside.append((table.low * table.high > 0).mean())
        discoveries.append((table.q_value < 0.1).sum())
        score = np.arctanh(table.correlation) * (n * 64 - 3) ** 0.5
        naive.append((2 * scipy.stats.norm.sf(score.abs()) < 0.05).mean())
    assert len(table) > 1000
    assert 0.035 < np.mean(below) < 0.065
    assert np.mean(outside) < 0.09
    assert np.mean(naive) > 0.4
    assert max(discoveries) <= 3


def test_real_links_are_found_among_a_thousand_concepts(channels):
    n, shape, p, linked = 60, (8, 8), 1000, 50
    field = smooth(n, shape, 0)
    codes = smooth(n * p, shape, 1).view(n, p, *shape)
    codes[:, :linked] += 0.7 * field[:, None]
    on = torch.rand(n, p) < 0.3
    table = probe(channels(p, PLANE), codes.relu() * on[..., None, None], {"f": field}, n_bootstrap=20)
    found = set(table[table.q_value < 0.1].concept)
    assert len(found & set(range(linked))) > 0.8 * linked
    assert len(found - set(range(linked))) < 0.2 * len(found)


@pytest.mark.parametrize("null", ["exchange", "translate"])
def test_one_long_series(channels, null):
    """Everything changes slowly: a sample is like the ten before and after it."""
    noise = smooth(409 * 121, (4, 4), 0).view(409, 121 * 16)
    slow = torch.nn.functional.avg_pool1d(noise.T, 10, 1).T.reshape(400, 121, 4, 4)
    field, codes = slow[:, 0], slow[:, 1:].clone()
    codes[:, 0] += 0.5 * field
    table = probe(channels(120, PLANE), codes, {"f": field}, time=np.arange(400), block=40, null=null)
    assert table.p_value[0] < 0.02
    assert (table.p_value[1:] < 0.05).mean() < 0.1
    assert (table.low[1:] * table.high[1:] > 0).mean() < 0.1
    naive = probe(channels(120, PLANE), codes, {"f": field}, n_permutations=20, n_bootstrap=50)
    assert (naive.low[1:] * naive.high[1:] > 0).mean() > 0.3


def test_few_samples_are_moved_in_space(channels):
    """Three fields cannot be exchanged to any end; moved on the sphere along longitudes they can."""
    for basis, shape in ((PLANE, (16, 16)), (SPHERE, (17, 32))):
        field = smooth(3, shape, 0, modes=7 if basis is PLANE else 4, basis=basis)
        x = torch.stack([field.relu(), smooth(3, shape, 1, modes=7 if basis is PLANE else 4, basis=basis).relu()], 1)
        table = probe(channels(2, basis), x, {"f": field})
        assert row(table, 0, "f").p_value < 0.01
        assert row(table, 1, "f").p_value > 0.01
        assert row(table, 0, "f").low > 0.4


@pytest.mark.parametrize(
    ("n", "options"),
    [
        ((5, 1), {}),
        ((5, 1), {"tiles": (1, 1)}),
        ((2, 1), {}),
        ((4, 6), {"trajectory": np.repeat(np.arange(4), 6)}),
        ((1, 24), {"time": np.arange(24), "block": 8}),
    ],
)
def test_intervals_from_few_blocks_cover(channels, n, options):
    """100 codes without any link, in fields or series that change slowly: tiles of a field depend on each other, and do not
    count as independent. By the bootstrap alone 63 to 88 % of the intervals hold zero."""
    n_series, n_steps = n
    held = []
    for seed in range(4):
        noise = smooth(n_series * (n_steps + 2) * 101, (16, 16), seed).view(n_series, n_steps + 2, 101, 16, 16)
        slow = sum(noise[:, k : n_steps + k] for k in range(3 if n_steps > 1 else 1)).flatten(0, 1)
        table = probe(channels(100, PLANE), slow[:, 1:], {"f": slow[:, 0]}, n_permutations=100, **options)
        held.append((table.low * table.high < 0).mean())
    assert np.mean(held) > 0.88


def test_draws_depend_on_the_seed_alone(channels):
    x, field = smooth(30, (8, 8), 0).view(10, 3, 8, 8), smooth(10, (8, 8), 1)
    tables = [probe(channels(3, PLANE), x, {"f": field}, seed=seed, batch_size=b) for seed, b in ((0, 3), (0, 10), (1, 10))]
    np.testing.assert_allclose(tables[0].drop(columns=["quantity", "kind"]), tables[1].drop(columns=["quantity", "kind"]))
    assert (tables[0].low != tables[2].low).all()


def test_a_model_of_the_package_can_be_probed():
    sae = ns.SAEFNO(2, 12, (5, 5), concept_rule=ns.TopK(4)).train()
    x = torch.randn(12, 2, 8, 10)
    table = probe(sae, x, {"input": x[:, 0], "size": x.square().mean((1, 2, 3))}, n_bootstrap=10, n_permutations=10)
    assert sae.training
    dense = sae.eval().encode(x).detach().to_dense()
    for concept in range(12):
        expected = pearson(dense[:, concept], x[:, 0])
        assert row(table, concept, "input").correlation == pytest.approx(expected, abs=1e-5, nan_ok=True)
        norm = dense[:, concept].square().mean((1, 2)).sqrt()
        expected = pearson(norm, x.square().mean((1, 2, 3)))
        assert row(table, concept, "size").correlation == pytest.approx(expected, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"physics": {"f": torch.zeros(3, 8, 8)}}, ValueError, "N=10"),
        ({"physics": {"f": torch.full((10,), torch.nan)}}, ValueError, r"'f' has missing \(NaN\) .* in 10 of 10 samples"),
        (
            {"physics": {"f": GAP}},
            ValueError,
            r"in 2 of 10 samples \(3, 7\): leave these samples out of acts, physics",
        ),
        ({"physics": {"f": torch.zeros(10, dtype=torch.cfloat)}}, ValueError, "'f' is complex"),
        ({"time": np.full(10, "NaT", "datetime64[s]")}, ValueError, "some are missing"),
        ({"physics": {"f": np.full(10, "a")}}, TypeError, "'f' is a tensor or an array of numbers; got ndarray of <U1"),
        ({"physics": "vorticity"}, TypeError, "list of names"),
        ({"physics": ["vorticity"]}, ValueError, "does not follow"),
        ({"lags": (1,)}, ValueError, "pass trajectory= or time="),
        ({"lags": ()}, ValueError, "lags"),
        ({"null": "shuffle"}, ValueError, "'exchange' or 'translate'"),
        ({"quantile": 90}, ValueError, "quantile is a share"),
        ({"confidence": 95}, ValueError, "confidence is a share"),
        ({"n_permutations": 0}, ValueError, "n_permutations is at least 2"),
        ({"block": 0}, ValueError, "block is at least 1"),
        ({"tiles": (2,)}, ValueError, "tiles"),
        ({"trajectory": [0, 1]}, ValueError, "trajectory has one entry"),
    ],
)
def test_what_is_refused(channels, arguments, error, match):
    with pytest.raises(error, match=match):
        probe(channels(2, PLANE), torch.rand(10, 2, 8, 8), **{"physics": {"f": torch.rand(10, 8, 8)}, **arguments})
