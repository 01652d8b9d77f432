"""What every sparse autoencoder of this package is and does."""

from __future__ import annotations

import copy
import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from .. import checkpoint, notebook
from ..codes import ConceptCodes
from ..layers.basis import SpectralBasis
from ..layers.domain_size import length_factors
from ..layers.exchange import ALONE, Exchange
from ..layers.lifting import Lifting
from ..layers.sparsity import DomainRule, Rule
from ..registry import Registry

saes: Registry[type[SAE]] = Registry("sparse autoencoder")

F = TypeVar("F", bound=Callable[..., Any])
_CHUNK = 256


@dataclass(frozen=True)
class SAEOutput:
    """What a forward pass gives.

    Parameters
    ----------
    reconstruction : Tensor
        ``(B, channels, *grid)``, in the units and on the grid of the input.
    codes : ConceptCodes
        The codes of the concepts that are on.
    scores : Tensor
        ``(B, n_concepts)``: by what concepts were ranked, L2 norm of the code times norm of the kernel. Zero for concepts
        that were no candidates. Without gradient.
    gates : Tensor or None
        ``(n,)``: factors on the codes through which a threshold learns (JumpReLU).
    dead_reconstruction : Tensor or None
        ``(B, channels, *grid)``: what dead concepts would write for the input, mean left out, where it was asked for.
    prefix_reconstructions : tuple of Tensor
        ``(B, channels, *grid)`` for each prefix of the dictionary that was asked for: what the codes of its concepts write.
    """

    reconstruction: Tensor
    codes: ConceptCodes
    scores: Tensor
    gates: Tensor | None = None
    dead_reconstruction: Tensor | None = None
    prefix_reconstructions: tuple[Tensor, ...] = ()

    def __repr__(self) -> str:
        return f"SAEOutput(reconstruction {tuple(self.reconstruction.shape)}, {self.codes!r})"

    def _repr_html_(self) -> str:
        shapes = {"reconstruction": tuple(self.reconstruction.shape), "scores": tuple(self.scores.shape)}
        return notebook.facts("SAE output", shapes) + self.codes._repr_html_()


def full_precision(method: F) -> F:
    """Run a method of an SAE outside autocast: there are no complex half-precision kernels to speak of."""

    @functools.wraps(method)
    def run(self: SAE, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(self.mean.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return run  # type: ignore[return-value]


def _without_config_names(init: F) -> F:
    """A constructor that leaves out ``_config_name``, which zencfg 1.0 adds to a config and to each config in it, and which
    neuralop's ``get_model`` passes on."""

    def plain(values: Mapping[str, Any]) -> dict[str, Any]:
        items = ((name, value) for name, value in values.items() if name != "_config_name")
        return {name: plain(value) if isinstance(value, Mapping) else value for name, value in items}

    @functools.wraps(init)
    def run(self: SAE, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **plain(kwargs))

    return run  # type: ignore[return-value]


class SAE(nn.Module, ABC):
    """Base of all sparse autoencoders on fields.

    Subclasses give :attr:`basis`, :meth:`encode`, :meth:`decode`, :meth:`forward`, :meth:`dense_forward`, :meth:`atoms`,
    :meth:`kernel_norms` and :meth:`initialize_from`; keep each constructor argument as an
    attribute of the same name; and register themselves in ``saes``.

    Attributes
    ----------
    in_channels, n_concepts, n_dim : int
        Channels of a field, size of the dictionary, dimensions of the grid.
    mean, scale : Tensor
        Mean per channel ``(channels,)`` and one scale ``()`` of the activations; fields are centred and scaled by them.
    """

    in_channels: int
    n_concepts: int
    n_dim: int
    mean: Tensor
    scale: Tensor
    exchange: Exchange = ALONE
    _lifting: tuple[Lifting, ...] = ()  # in a tuple: its parameters are not this module's

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _without_config_names(cls.__init__)  # type: ignore[method-assign]

    def __init__(self, in_channels: int, n_concepts: int) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("n_concepts", n_concepts)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive int, got {value!r}")
        self.in_channels, self.n_concepts = in_channels, n_concepts
        self.register_buffer("mean", torch.zeros(in_channels))
        self.register_buffer("scale", torch.ones(()))

    @property
    @abstractmethod
    def basis(self) -> SpectralBasis:
        """Gives the quadrature and the resampling of fields and codes."""

    @abstractmethod
    def encode(self, x: Tensor) -> ConceptCodes:
        """Codes of a field ``(B, channels, *grid)``."""

    @abstractmethod
    def decode(self, codes: ConceptCodes, output_shape: Sequence[int] | None = None) -> Tensor:
        """The field ``(B, channels, *output_shape)`` that codes stand for; on the code grid by default."""

    @abstractmethod
    def forward(self, x: Tensor, *, dead: Tensor | None = None, dead_k: int = 16, prefixes: Sequence[int] = ()) -> SAEOutput:
        """Encode and decode a field ``(B, channels, *grid)``.

        Parameters
        ----------
        x : Tensor
            The field.
        dead : Tensor, optional
            Boolean ``(n_concepts,)``. If given, the output tells what the `dead_k` strongest of these concepts of each
            sample would write, for the auxiliary loss.
        dead_k : int
            How many of them.
        prefixes : sequence of int
            Sizes n of prefixes of the dictionary, concepts 0 to n - 1. The output tells what each reconstructs by itself, from
            the codes that come of the competition of all concepts.

        Raises
        ------
        ValueError
            If `prefixes` are not increasing sizes from 1 to ``n_concepts - 1``.
        """

    def __call__(self, x: Tensor, *args: Any, y: Tensor | None = None, **kwargs: Any) -> Any:
        """:meth:`forward`; with a target `y`, as neuralop's Trainer calls every model, the reconstruction alone, which its
        losses and processors can take."""
        out = super().__call__(x, *args, **kwargs)
        return out if y is None else out.reconstruction

    @abstractmethod
    def dense_forward(self, x: Tensor) -> SAEOutput:
        """The oracle: the same as :meth:`forward`, with everything materialised."""

    @abstractmethod
    def atoms(self, concepts: Sequence[int] | Tensor, shape: Sequence[int]) -> Tensor:
        """What each concept writes for a unit impulse, ``(n, channels, *shape)``, in normalised units."""

    @property
    def atom_grid(self) -> tuple[int, ...]:
        """A grid on which atoms are whole, so that their norms can be taken there."""
        return self.basis.smallest_grid()

    @abstractmethod
    def kernel_norms(self, concepts: Tensor | None = None) -> Tensor:
        """L2 norm of each concept's atom, ``(n_concepts,)``; or of the concepts ``(n,)`` that are named, with gradient where a
        model has one."""

    def look_through(self, lifting: Lifting) -> None:
        """Where the fields are lifted: rank concepts by :meth:`seen_norms`, of what they write as activations."""
        self._lifting = (lifting,)

    def seen_norms(self, concepts: Tensor | None = None) -> Tensor:
        """:meth:`kernel_norms`; where the fields are lifted, of the projected atoms, some at a time."""
        if not self._lifting:
            return self.kernel_norms(concepts)
        (lifting,) = self._lifting
        chosen = torch.arange(self.n_concepts, device=self.mean.device) if concepts is None else concepts
        with torch.no_grad():
            atoms = (lifting.project(self.atoms(some, self.atom_grid)) for some in chosen.split(_CHUNK))
            return torch.cat([self.basis.mean_square(some).sum(1).sqrt() for some in atoms])

    @abstractmethod
    def initialize_from(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Start the dictionary from activations ``(N, channels, *grid)``."""

    def concept_axes(self) -> dict[str, int]:
        """Names of parameters and buffers that hold something for each concept, with the axis that counts concepts. Empty
        for a model whose dictionary cannot be divided between processes."""
        return {}

    def divide(self, n_concepts: int, exchange: Exchange) -> None:
        """Become a shard of a dictionary: the tensors of :meth:`concept_axes` hold so many concepts by now."""
        raise NotImplementedError(f"the dictionary of a {type(self).__name__} cannot be divided")

    @property
    def moves(self) -> bool:
        """Whether concepts move with the field: not where each point has weights of its own."""
        return True

    @property
    def rectifies(self) -> bool:
        """Whether codes are never negative, so that an atom and its negative differ."""
        rule = getattr(self, "domain_rule", None)
        return not isinstance(rule, DomainRule) or rule.rectifies

    def on_domain(self, lengths: float | Sequence[float], domain: str = "physical") -> Self:
        r"""A model like this one for fields on a periodic box of another length.

        Sample fields with the grid step of training: on a box twice as long, 64 points become 128.

        Parameters
        ----------
        lengths : float or sequence of float
            How many times as long as the box of training the new one is, in all dimensions or in each. Any ratio.
        domain : {"physical", "index"}
            ``"physical"``: concepts keep their size. Spectral kernels are zero outside their old box, and modes are indexed
            anew by physical wavenumber, see :mod:`neuralop_sae.layers.domain_size`; there are as many more modes. Taps in
            physical units count on a reference grid of as many more points. ``"index"``: a copy. Modes keep their numbers, so
            that concepts stretch with the box.

        Returns
        -------
        SAE
            The new model. Rules are those of this one. A number of concepts per sample counts over the whole new box, and
            scores are root mean squares over it.

        Raises
        ------
        ValueError
            For impossible arguments, and for models whose concepts cannot keep their size: with factorised kernels, trunks or
            another basis than Fourier's, with weights for each point, on the sphere.

        Examples
        --------
        >>> import torch, neuralop_sae as ns
        >>> sae = ns.SAEFNO(in_channels=2, n_concepts=8, n_modes=(9, 9))
        >>> longer = sae.on_domain((2, 1))
        >>> longer.n_modes, longer(torch.randn(1, 2, 48, 24)).codes.grid
        ((19, 9), (48, 24))
        """
        if domain not in ("physical", "index"):
            raise ValueError(
                f"unknown domain {domain!r}; known: 'physical' (concepts keep their size), 'index' (they stretch)"
            )
        factors = length_factors(lengths, self.n_dim)
        return copy.deepcopy(self) if domain == "index" else self._with_lengths(factors)

    def _with_lengths(self, factors: tuple[float, ...]) -> Self:
        """:meth:`on_domain` with concepts of the same size."""
        raise ValueError(f"this {type(self).__name__} cannot change its domain: concepts would not keep their size")

    @property
    def dtype(self) -> torch.dtype:
        """Real dtype of the parameters."""
        return self.mean.dtype

    def normalize(self, x: Tensor) -> Tensor:
        """Checked field in normalised units and the model's dtype.

        Raises
        ------
        TypeError, ValueError
            If `x` is not a real field ``(batch, in_channels, *grid)``, or has a NaN or Inf. The latter is not looked for in
            training mode on an accelerator; :func:`neuralop_sae.train` checks the activations beforehand and the parameters
            now and then.
        """
        axes = ", ".join(["batch", f"channels={self.in_channels}", *(f"d{i + 1}" for i in range(self.n_dim))])
        if not isinstance(x, Tensor):
            raise TypeError(f"a field is a tensor ({axes}), got {type(x).__name__}")
        if x.is_complex() or x.dtype == torch.bool:
            raise TypeError(f"a field ({axes}) is real, got dtype {x.dtype}")
        if x.ndim != self.n_dim + 2:
            raise ValueError(
                f"a field for this {self.n_dim}-d model has {self.n_dim + 2} axes ({axes}), got {x.ndim}: {tuple(x.shape)}"
            )
        if x.shape[1] != self.in_channels:
            raise ValueError(
                f"axis 1 (channels) must be {self.in_channels}, got {x.shape[1]} in {tuple(x.shape)}; axes are ({axes})"
            )
        if 0 in x.shape:
            raise ValueError(f"the field is empty: {tuple(x.shape)}; axes are ({axes})")
        x = x.to(self.dtype)
        look = x.device.type == "cpu" or not self.training  # a training step does not wait for an accelerator
        if look and not x.sum().isfinite():  # one number to look at; it may also overflow
            bad = (~x.flatten(1).isfinite().all(1)).nonzero()[:, 0].tolist()
            if bad:
                raise ValueError(f"the field has NaN or Inf in samples {bad}")
        return (x - self._per_channel(self.mean)).div_(self.scale)

    def denormalize(self, x: Tensor) -> Tensor:
        """Back to the units of the activations."""
        return torch.addcmul(self._per_channel(self.mean), x, self.scale)

    def _per_channel(self, values: Tensor) -> Tensor:
        return values.view(-1, *(1,) * self.n_dim)

    @torch.no_grad()
    def fit_normalization(self, mean: Tensor, scale: Tensor | float) -> None:
        """Set the statistics by which fields are centred and scaled.

        Parameters
        ----------
        mean : Tensor
            Mean of each channel, ``(channels,)``.
        scale : Tensor or float
            Root mean square of the centred activations over all channels.
        """
        scale = torch.as_tensor(scale)
        if not (torch.isfinite(mean).all() and torch.isfinite(scale) and scale > 0):
            raise ValueError(
                f"mean must be finite and scale positive, got scale={float(scale)}: are the activations constant?"
            )
        self.mean.copy_(mean)
        self.scale.copy_(scale)

    def check_concepts(self, concepts: Sequence[int] | Tensor) -> Tensor:
        """Concept indices as a tensor on the model's device; ValueError if one is out of range."""
        index = torch.as_tensor(concepts, dtype=torch.int64, device=self.mean.device).flatten()
        bad = index[(index < 0) | (index >= self.n_concepts)]
        if len(bad):
            raise ValueError(f"concepts {bad.tolist()} are out of range: this model has concepts 0 to {self.n_concepts - 1}")
        return index

    def check_prefixes(self, prefixes: Sequence[int]) -> None:
        """ValueError unless these are increasing sizes of parts of the dictionary."""
        n_concepts = self.exchange.whole(self.n_concepts)
        if list(prefixes) != sorted({n for n in prefixes if 0 < n < n_concepts}):
            raise ValueError(
                f"prefixes are increasing sizes from 1 to {n_concepts - 1}, since the whole of n_concepts={n_concepts} always "
                f"counts; got {tuple(prefixes)}"
            )

    def config(self) -> dict[str, Any]:
        """Constructor arguments as plain data."""
        return {name: _plain(getattr(self, name)) for name in _arguments(type(self))}

    def _repr_html_(self) -> str:
        config = self.config()
        names = ("n_modes", "concept_rule", "domain_rule", "encoder", "factorization", "rank", "channels", "projection")
        n_parameters = sum(p.numel() * (2 if p.is_complex() else 1) for p in self.parameters())
        rows: dict[str, object] = {"in_channels": self.in_channels, "n_concepts": self.n_concepts}
        rows |= {name: config[name] for name in names if config.get(name) is not None}
        rows |= {"parameters": n_parameters, "device": self.mean.device, "dtype": self.dtype}
        return notebook.facts(type(self).__name__, rows)

    def save_pretrained(self, folder: str | Path, *, state: dict[str, Tensor] | None = None) -> None:
        """Write ``config.json`` and ``model.safetensors`` into a folder, which is made. `state`: what to write instead of
        the model's own tensors, where those are a shard."""
        description = {"model": saes.name_of(type(self), type(self).__name__), "dtype": str(self.dtype).removeprefix("torch.")}
        checkpoint.save_model(folder, {**description, "arguments": self.config()}, state or self.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, device: str | torch.device = "cpu") -> Self:
        """The model that :meth:`save_pretrained` wrote, in eval mode.

        Raises
        ------
        FileNotFoundError, ValueError
            See :func:`neuralop_sae.checkpoint.load_model`; ValueError also if the folder holds another class of model or
            its tensors do not fit its config.
        """
        config, tensors = checkpoint.load_model(folder)
        missing = [name for name in ("model", "dtype", "arguments") if name not in config]
        if missing:
            raise ValueError(f"{folder} describes no model: its config has no {', '.join(missing)}")
        if config["dtype"] not in ("float32", "float64"):
            raise ValueError(f"{folder} describes no model: an SAE is of dtype float32 or float64, not {config['dtype']!r}")
        kind = saes.get(str(config["model"]))
        if not issubclass(kind, cls):
            raise ValueError(f"{folder} holds a {kind.__name__}, not a {cls.__name__}; neuralop_sae.load loads any")
        model = kind(**config["arguments"]).to(getattr(torch, config["dtype"]))
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(f"{folder}: the tensors do not fit the config: {error}") from error
        return model.to(device).eval()

    # neuralop's BaseModel writes its own checkpoints as pickles and reads them unsafely; these take their place.
    def save_checkpoint(self, save_folder: str | Path, save_name: str) -> None:
        """neuralop's name for :meth:`save_pretrained`: saves the folder ``save_folder/save_name``, and beside it the tensors
        once more, and nothing else, as ``{save_name}_state_dict.pt``, without which neuralop's Trainer does not resume."""
        self.save_pretrained(Path(save_folder) / save_name)
        tensors = Path(save_folder) / f"{save_name}_state_dict.pt"
        checkpoint.write_atomically(tensors, lambda temporary: torch.save(self.state_dict(), temporary))

    def load_checkpoint(self, save_folder: str | Path, save_name: str, map_location: Any = None) -> None:
        """Load the tensors that :meth:`save_checkpoint` wrote into this model."""
        _, tensors = checkpoint.load_model(Path(save_folder) / save_name)
        self.load_state_dict(tensors)

    @classmethod
    def from_checkpoint(cls, save_folder: str | Path, save_name: str, map_location: Any = None) -> Self:
        """neuralop's name for :meth:`from_pretrained`."""
        return cls.from_pretrained(Path(save_folder) / save_name, device=map_location or "cpu")

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As in nn.Module. BaseModel's adds an unprefixed non-tensor key '_metadata', which breaks strict loading of any
        module that contains it (neuraloperator issue 700)."""
        return nn.Module.state_dict(self, *args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """nn.Module skips complex tensors when it casts; here a complex tensor is cast as the pair of reals it is."""
        wanted = fn(self.mean).dtype  # before any tensor is cast
        if wanted not in (torch.float32, torch.float64):
            raise TypeError(f"an SAE runs in float32 or float64, not {wanted}; for half precision use autocast")

        def cast(tensor: Tensor) -> Tensor:
            return torch.view_as_complex(fn(torch.view_as_real(tensor))) if tensor.is_complex() else fn(tensor)

        return super()._apply(cast, recurse)


def _arguments(kind: type) -> list[str]:
    """Names of a class's constructor arguments; ``**kwargs`` stands for those of the next class that has a constructor."""
    names: list[str] = []
    for owner in kind.__mro__:
        if "__init__" in vars(owner):
            parameters = inspect.signature(vars(owner)["__init__"]).parameters.values()
            names += [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in ("self", *names)]
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return names


def _plain(value: Any) -> Any:
    if isinstance(value, Rule):
        return value.config()
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value


def load(folder: str | Path, *, device: str | torch.device = "cpu") -> SAE:
    """Any model that was saved with :meth:`SAE.save_pretrained`, in eval mode."""
    return SAE.from_pretrained(folder, device=device)  # type: ignore[type-abstract]
