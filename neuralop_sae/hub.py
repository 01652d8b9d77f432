"""Sharing of trained models: by name through the Hugging Face Hub, or as a folder, with a model card."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from pydantic import BaseModel, ConfigDict

from . import checkpoint
from .models.base import SAE, load
from .notebook import shown

__all__ = ["ModelCard", "pull", "push"]

CARD_NAME = "README.md"
#: What is shared, and all that is fetched: never a pickle.
FILES = (checkpoint.CONFIG_NAME, checkpoint.WEIGHTS_NAME, CARD_NAME)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class ModelCard(BaseModel):
    """What others have to know of a model; what is not given is left out.

    Parameters
    ----------
    title : str
        Heading of the card.
    description : str, optional
        A few sentences, in Markdown.
    trained_on : str, optional
        The data and how they were made.
    operator : str, optional
        The operator whose activations they are.
    model_digest : str, optional
        SHA-256 of the operator's weights, as the manifest of an :class:`~neuralop_sae.data.store.ActivationStore` has it: only
        with this operator do the concepts mean anything.
    site : str, optional
        Where in the operator.
    metrics : dict of str to float
        What :func:`neuralop_sae.evaluate` gives, on held-out activations.
    license : str, optional
        Identifier of the licence, such as ``"mit"``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = "A sparse autoencoder of a neural operator"
    description: str | None = None
    trained_on: str | None = None
    operator: str | None = None
    model_digest: str | None = None
    site: str | None = None
    metrics: dict[str, float] = {}
    license: str | None = None

    def render(self, sae: SAE, name: str) -> str:
        """The card of a model in Markdown, with the header that the hub reads; `name` is what :func:`pull` is given."""
        return "\n".join(self._lines(sae, name)) + "\n"

    def _lines(self, sae: SAE, name: str) -> Iterator[str]:
        header = {"library_name": "neuralop_sae", "license": self.license}
        tags = ["neural-operators", "sparse-autoencoder", "interpretability"]
        # A JSON value is a YAML value.
        yield "---"
        yield from (f"{key}: {json.dumps(value)}" for key, value in header.items() if value is not None)
        yield from (f"tags: {json.dumps(tags)}", "---", "", f"# {self.title}", "")
        if self.description:
            yield from (self.description, "")
        given = {"Trained on": self.trained_on, "Operator": self.operator, "Site": self.site, "Digest": self.model_digest}
        kind, config = type(sae).__name__, sae.config()
        given |= {"Model": f"{kind}, {sae.n_concepts} concepts, {sae.in_channels} channels"}
        given |= {key: shown(config[key]) for key in ("n_modes", "concept_rule", "domain_rule") if config.get(key)}
        given |= {"Licence": self.license}
        yield from (f"- {key}: {value}" for key, value in given.items() if value is not None)
        if self.metrics:
            yield from ("", "| metric | value |", "|---|---|")
            yield from (f"| {key} | {value:.4g} |" for key, value in self.metrics.items())
        yield from ("", "```python", "import neuralop_sae as ns", "", f"sae = ns.pull({json.dumps(name)})", "```")


def push(
    sae: SAE, where: str | Path, *, card: ModelCard | None = None, private: bool = True, message: str = "Upload a model"
) -> str:
    """Share a model: its ``config.json``, its ``model.safetensors`` and a model card, and nothing else.

    Parameters
    ----------
    sae : SAE
        The model.
    where : str or Path
        ``"user/name"`` on the Hugging Face Hub, which is made if missing; or a folder: a `Path`, or a string that begins with
        ``./``, ``../`` or ``/``.
    card : ModelCard, optional
        What others have to know.
    private : bool
        Whether a repository that is made is seen by its owner alone.
    message : str
        Of the commit.

    Returns
    -------
    str
        Address of the commit, or the folder.

    Raises
    ------
    TypeError, ValueError
        If `card` is no card, or `where` neither a name nor a folder.
    ImportError
        If huggingface_hub, which only names on the hub need, is not installed.

    Examples
    --------
    >>> import neuralop_sae as ns
    >>> sae = ns.SAEFNO(in_channels=2, n_concepts=4, n_modes=(5, 5))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     written = push(sae, folder, card=ModelCard(site="fno_blocks.2", license="mit"))
    ...     type(pull(folder)).__name__, sorted(path.name for path in Path(folder).iterdir())
    ('SAEFNO', ['README.md', 'config.json', 'model.safetensors'])
    """
    if card is not None and not isinstance(card, ModelCard):
        raise TypeError(f"card must be a ModelCard, got {type(card).__name__}: pass ModelCard(site=..., license=...)")
    card = card or ModelCard()
    if _is_folder(where):
        _write(sae, Path(where), card, str(where))
        return str(where)
    api = _huggingface_hub().HfApi()
    name = str(where)
    with tempfile.TemporaryDirectory() as folder:
        _write(sae, Path(folder), card, name)
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=list(FILES), commit_message=message)
    return str(commit.commit_url)


def pull(where: str | Path, *, revision: str | None = None, device: str | torch.device = "cpu") -> SAE:
    """A model that :func:`push` shared, in eval mode.

    Parameters
    ----------
    where : str or Path
        A folder, or ``"user/name"`` on the Hugging Face Hub. A folder of that name goes first.
    revision : str, optional
        Branch, tag or commit on the hub; name a commit for the same model tomorrow.
    device : str or torch.device
        Where the model goes.

    Returns
    -------
    SAE
        The model.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`neuralop_sae.load`; FileNotFoundError also if the hub does not give the model, ValueError if a folder is
        asked for a revision.
    ImportError
        If huggingface_hub, which only names on the hub need, is not installed.
    """
    if Path(where).exists() or _is_folder(where):
        if revision is not None:
            raise ValueError(f"{where} is a folder, which has no revisions; got revision={revision!r}")
        return load(where, device=device)
    try:
        folder = _huggingface_hub().snapshot_download(str(where), revision=revision, allow_patterns=list(FILES))
    except OSError as error:
        errors = import_module("huggingface_hub.errors")
        if not isinstance(error, (errors.HfHubHTTPError, errors.LocalEntryNotFoundError)):
            raise
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"{where} is no folder, and the Hugging Face Hub gave no such model ({reason}): name a folder that push or "
            "save_pretrained wrote, or 'user/name' of a model that you may read, with a revision that it has"
        ) from error
    return load(folder, device=device)


def is_name(where: str) -> bool:
    """Whether this is how models on the hub are called, ``"user/name"``."""
    return _NAME.fullmatch(where) is not None


def _is_folder(where: str | Path) -> bool:
    if isinstance(where, Path) or where.startswith(("./", "../", "/")):
        return True
    if not is_name(where):
        raise ValueError(f"{where!r} is neither 'user/name' on the hub nor a folder: write a folder as './{where}'")
    return False


def _write(sae: SAE, folder: Path, card: ModelCard, name: str) -> None:
    sae.save_pretrained(folder)
    text = card.render(sae, name)
    checkpoint.write_atomically(folder / CARD_NAME, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _huggingface_hub() -> ModuleType:
    try:
        return import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "names on the hub need huggingface_hub: pip install 'neuralop-sae[hub]'. Folders do without", name=error.name
        ) from error
