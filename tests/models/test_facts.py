"""Identities between models, in float64: lifting and the plain SAE, full modes and circular convolution."""

import pytest
import torch

import neuralop_sae as ns
from neuralop_sae.layers.lifting import Lifting

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def randomize(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3)
    return module.double().eval()


def mapped(plain, lifted):
    """The state of a plain SAE with the encoder E L and the dictionary P D of a lifted one."""
    up, down = lifted.lifting.weight, lifted.lifting.projection
    state, names = dict(lifted.inner.state_dict()), dict(plain.named_parameters())
    for name, value in state.items():
        if name not in names or value.shape == names[name].shape:
            continue
        axis = next(i for i, (a, b) in enumerate(zip(value.shape, names[name].shape, strict=True)) if a != b)
        encoder = "encoder" in name
        matrix = (up.T if encoder else down).to(value.dtype)
        state[name] = torch.tensordot(value, matrix, ([axis], [1])).movedim(-1, axis)
    return state | {"mean": lifted.mean, "scale": lifted.scale}


SAES = {
    "pointwise": ns.SAEPointwise(3, 10, k=3),
    "pointwise, sphere": ns.SAEPointwise(3, 10, k=3, grid="equiangular"),
    "mlp": ns.SAEMLP(3, 10, (9, 16), k=10),
    "cnn": ns.SAECNN(3, 10, (3, 2)),
    "fno": ns.SAEFNO(3, 10, (5, 5)),
    "sfno": ns.SAESFNO(3, 10, (4, 8)),
}


@pytest.mark.parametrize("projection", ["tied", "untied"])
@pytest.mark.parametrize("name", SAES)
def test_a_lifted_sae_infers_as_the_plain_one_with_the_mapped_dictionary(name, projection):
    """Fact 1 for one step, for any L and P."""
    lifted = randomize(ns.Lifted(SAES[name], channels=7, projection=projection))
    lifted.fit_normalization(torch.randn(3), 2.0)
    if hasattr(
        lifted.inner, "encoder_bias"
    ):  # a decoder's bias is subtracted before the lifted encoder, which L P does not keep
        lifted.inner.decoder_bias.data.zero_()
    kind = type(SAES[name])
    plain = kind(**SAES[name].config()).double().eval()
    plain.load_state_dict(mapped(plain, lifted))
    x = torch.randn(2, 3, 9, 16).double()
    with torch.no_grad():
        out, expected = lifted(x), plain(x)
    torch.testing.assert_close(out.codes.to_dense(), expected.codes.to_dense(), **CLOSE)
    torch.testing.assert_close(out.reconstruction, expected.reconstruction, **CLOSE)
    torch.testing.assert_close(lifted.atoms([2, 5], (9, 16)), plain.atoms([2, 5], (9, 16)), **CLOSE)
    torch.testing.assert_close(lifted.kernel_norms(), plain.kernel_norms(), **CLOSE)
    torch.testing.assert_close(out.scores, expected.scores, **CLOSE)


@pytest.mark.parametrize("rule", [ns.TopK(3), ns.BatchTopK(3), ns.JumpReLU(0.3)], ids=repr)
@pytest.mark.parametrize(
    "sae",
    [
        ns.SAEMLP(3, 10, (9, 16), k=3),
        ns.SAECNN(3, 10, (3, 2)),
        *(ns.SAEFNO(3, 10, (5, 5), selection=selection) for selection in ("two_stage", "exact", "energy")),
        ns.SAESFNO(3, 10, (4, 8)),
        ns.SAESFNO(3, 10, (4, 8), kernel="positional"),
    ],
    ids=lambda sae: "-".join([type(sae).__name__, *(str(getattr(sae, n, "")) for n in ("selection", "kernel"))]),
)
def test_the_same_concepts_are_on_in_a_lifted_sae_as_in_the_plain_one(sae, rule):
    """Fact 1 with a rule that has to choose: by what concepts write as activations, of which some of D~ is no part."""
    if not isinstance(sae, ns.SAEMLP):
        sae = type(sae)(**{**sae.config(), "concept_rule": rule})
    lifted = randomize(ns.Lifted(sae, channels=7))
    kernels = getattr(lifted.inner, "decoder_weight", None)
    if kernels is not None:
        lifted.inner.decoder_bias.data.zero_()
        nothing = torch.linalg.qr(lifted.lifting.weight, mode="complete").Q[:, -1]  # P maps it to zero
        kernels.data[0] += 100 * nothing.view(-1, *(1,) * (kernels.ndim - 2))
    plain = type(sae)(**sae.config()).double().eval()
    plain.load_state_dict(mapped(plain, lifted))
    x = torch.randn(20, 3, 9, 16).double()
    with torch.no_grad():
        out, expected = lifted(x), plain(x)
    assert torch.equal(out.codes.concept, expected.codes.concept)
    torch.testing.assert_close(out.reconstruction, expected.reconstruction, **CLOSE)


def iterate(x, write, n_iterations, residual):
    """Proximal gradient, ``z <- relu(z + a D*(x - D z) - t)``, with the adjoint from autograd."""
    codes = torch.zeros(2, 6, 8, 8, dtype=torch.float64)
    for _ in range(n_iterations):
        start = codes.clone().requires_grad_()
        remaining = residual(x, write(start.detach()))
        (gradient,) = torch.autograd.grad(write(start), start, remaining)
        codes = torch.relu(codes + 0.1 * gradient - 0.01)
    return codes


@pytest.mark.parametrize("n_iterations", [1, 2, 7])
def test_iterations_on_the_residual_of_the_activations_are_those_of_the_mapped_dictionary(n_iterations):
    """Fact 1 for any number of iterations: ``L^T D`` is all that enters, whatever L is. With the residual in the lifted space
    that needs a single iteration, or a dictionary in the range of an orthonormal L."""
    lifting = randomize(Lifting(3, 7))
    inner = randomize(ns.SAEFNO(7, 6, (5, 5))).concept_decoder
    for parameter in (inner.conv.bias, *lifting.parameters(), *inner.parameters()):
        parameter.requires_grad_(False)
    inner.conv.bias.zero_()
    x = torch.randn(2, 3, 8, 8).double()

    def difference(a, b):
        return a - b

    plain = iterate(x, lambda z: lifting.project(inner.dense_forward(z)), n_iterations, difference)
    original = iterate(
        lifting.lift(x), inner.dense_forward, n_iterations, lambda up, written: up - lifting.lift(lifting.project(written))
    )
    torch.testing.assert_close(original, plain, **CLOSE)
    assert plain.any()
    in_lifted_space = iterate(lifting.lift(x), inner.dense_forward, n_iterations, difference)
    assert torch.allclose(in_lifted_space, plain, **CLOSE) == (n_iterations == 1)
    lifting.weight.copy_(torch.linalg.qr(lifting.weight).Q)
    plain = iterate(x, lambda z: lifting.project(inner.dense_forward(z)), n_iterations, difference)
    orthonormal = iterate(lifting.lift(x), inner.dense_forward, n_iterations, difference)
    assert torch.allclose(orthonormal, plain, **CLOSE) == (n_iterations == 1)
    narrow = {name: tensor.clone() for name, tensor in inner.state_dict().items()}
    onto_range = (lifting.weight @ lifting.weight.T).to(torch.cdouble)
    weight = torch.einsum("ch...,hg->cg...", narrow["conv.weight.tensor"], onto_range)
    narrow |= {"conv.weight.tensor": weight, "skip.conv.weight": onto_range.real @ narrow["skip.conv.weight"][..., 0]}
    narrow["skip.conv.weight"] = narrow["skip.conv.weight"][..., None]
    inner.load_state_dict(narrow)
    plain = iterate(x, lambda z: lifting.project(inner.dense_forward(z)), n_iterations, difference)
    torch.testing.assert_close(iterate(lifting.lift(x), inner.dense_forward, n_iterations, difference), plain, **CLOSE)


def dictionary_gradients(lifted, x, codes):
    """Gradients of the reconstruction error by D = L^T D~, and by L and D~."""
    plain = ns.SAEPointwise(**SAES["pointwise"].config()).double().eval()
    plain.load_state_dict(mapped(plain, lifted))
    for model in (plain, lifted):
        (model.decode(codes) - x).square().mean().backward()
    return plain.decoder_weight.grad.T, lifted.lifting.weight.grad, lifted.inner.decoder_weight.grad.T


def test_lifting_preconditions_the_gradient():
    """Fact 2: to first order a step on L and D~ moves D by ``-eta (L^T L grad + grad D~^T D~)``, beyond that by ``eta^2 gL^T
    gD~``."""
    lifted = randomize(ns.Lifted(SAES["pointwise"], channels=7))
    lifted.inner.decoder_bias.data.zero_()  # it would go through L as well
    x = torch.randn(4, 3, 6, 6).double()
    codes = lifted.encode(x).detach()
    gradient, by_lifting, by_dictionary = dictionary_gradients(lifted, x, codes)
    up, inner = lifted.lifting.weight.detach().clone(), lifted.inner.decoder_weight.detach().T.clone()
    expected = up.T @ up @ gradient + gradient @ inner.T @ inner
    for rate in (1.0, 1e-3):
        torch.optim.SGD(lifted.parameters(), lr=rate).step()
        now = lifted.lifting.weight.detach().T @ lifted.inner.decoder_weight.detach().T
        second = by_lifting.T @ by_dictionary
        torch.testing.assert_close((up.T @ inner - now + rate**2 * second) / rate, expected, **CLOSE)
        with torch.no_grad():
            lifted.lifting.weight.copy_(up)
            lifted.inner.decoder_weight.copy_(inner.T)


def test_a_fixed_orthonormal_lifting_changes_nothing_under_gradient_descent():
    lifted = randomize(ns.Lifted(SAES["pointwise"], channels=7))
    lifted.lifting.weight.data.copy_(torch.linalg.qr(lifted.lifting.weight.detach()).Q)
    x = torch.randn(4, 3, 6, 6).double()
    codes = lifted.encode(x).detach()
    gradient, _, by_dictionary = dictionary_gradients(lifted, x, codes)
    torch.testing.assert_close(lifted.lifting.weight.detach().T @ by_dictionary, gradient, **CLOSE)


@pytest.mark.parametrize("grid", [(9,), (8,), (5, 7), (6, 8), (7, 6)])
def test_full_modes_are_a_circular_convolution(grid):
    """Fact 3: SAE-FNO with every mode of the grid and no skip is SAE-CNN with kernels as large as the grid."""
    odd = all(size % 2 for size in grid)  # else the impulse has a frequency that is its own mirror, and norms differ
    rules = {"concept_rule": ns.TopK(4) if odd else "All", "domain_rule": "SoftLocalTopK"}
    fno = ns.SAEFNO(3, 9, grid, skip=None, selection="exact", **rules).double().eval()
    cnn = ns.SAECNN(3, 9, grid, **rules).double().eval()
    dims, middle = tuple(range(-len(grid), 0)), [size // 2 for size in grid]
    with torch.no_grad():
        for parameter in fno.parameters():
            parameter.normal_()
        read = fno.basis.synthesis(fno.concept_encoder.conv.weight.to_tensor().transpose(0, 1), grid)
        written = fno.basis.synthesis(fno.concept_decoder.conv.weight.to_tensor(), grid)
        # The encoder's taps count towards s + t, the kernel of an integral operator towards s - t.
        cnn.encoder_weight.copy_(read.flip(dims).roll([1 + half for half in middle], dims))
        cnn.decoder_weight.copy_(written.roll(middle, dims))
        cnn.encoder_bias.copy_(fno.concept_encoder.conv.bias.flatten())
        cnn.decoder_bias.copy_(fno.concept_decoder.conv.bias.flatten())
        x = torch.randn(3, 3, *grid).double()
        out, expected = fno(x), cnn(x)
    torch.testing.assert_close(out.codes.to_dense(), expected.codes.to_dense(), **CLOSE)
    torch.testing.assert_close(out.reconstruction, expected.reconstruction, **CLOSE)
    if odd:
        torch.testing.assert_close(out.scores, expected.scores, **CLOSE)
        torch.testing.assert_close(fno.atoms([1, 4], grid), cnn.atoms([1, 4], grid), **CLOSE)
