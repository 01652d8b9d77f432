"""Push and pull: folders, and a hub that is a folder too."""

import importlib
import json
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ruamel.yaml import YAML

import neuralop_sae as ns
from neuralop_sae.hub import ModelCard, pull, push

from .hub_stand_in import COMMIT, Hub

CARD = ModelCard(
    trained_on="48 fields of Darcy flow: 12 x 10",
    operator="FNO",
    model_digest="abc123",
    site="fno_blocks.2",
    metrics={"fve": 0.98765, "l0_local": 4.0},
    license="mit",
)


@pytest.fixture(scope="module")
def sae():
    torch.manual_seed(0)
    return ns.SAEFNO(2, 4, (5, 5)).eval()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for huggingface_hub, of the same calls, on a folder."""
    root, calls = tmp_path / "hub", []

    class HfApi:
        def create_repo(self, repo_id, *, private, exist_ok):
            calls.append(("create_repo", repo_id, private, exist_ok))

        def upload_folder(self, *, repo_id, folder_path, allow_patterns, commit_message):
            for name in allow_patterns:
                (root / repo_id).mkdir(parents=True, exist_ok=True)
                shutil.copy(Path(folder_path) / name, root / repo_id / name)
            return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def snapshot_download(repo_id, *, revision, allow_patterns):
        calls.append(("snapshot_download", repo_id, revision, sorted(allow_patterns)))
        return str(root / repo_id)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=HfApi, snapshot_download=snapshot_download))
    return SimpleNamespace(root=root, calls=calls)


def check_same(found, sae):
    assert found.config() == sae.config()
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in sae.state_dict().items())


def test_a_folder(sae, tmp_path):
    assert push(sae, tmp_path / "sae", card=CARD) == str(tmp_path / "sae")
    assert sorted(path.name for path in (tmp_path / "sae").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    check_same(pull(tmp_path / "sae"), sae)


def test_by_name(sae, hub):
    assert push(sae, "me/darcy", card=CARD) == "https://hub/me/darcy/commit/1"
    check_same(pull("me/darcy", revision="v1"), sae)
    files = ["README.md", "config.json", "model.safetensors"]
    assert sorted(path.name for path in (hub.root / "me" / "darcy").iterdir()) == files
    assert hub.calls == [("create_repo", "me/darcy", True, True), ("snapshot_download", "me/darcy", "v1", files)]


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A stand-in for the hub itself, to which the real huggingface_hub speaks."""
    pytest.importorskip("huggingface_hub")
    constants = importlib.import_module("huggingface_hub.constants")
    with Hub() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
        for name, value in {"ENDPOINT": server.url, "HUGGINGFACE_CO_URL_TEMPLATE": template}.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server
        server.shutdown()


def test_the_real_client(sae, server, tmp_path):
    assert push(sae, "me/darcy", card=CARD) == f"{server.url}/me/darcy/commit/{COMMIT}"
    assert server.created[0]["name"] == "darcy"
    assert server.created[0].get("visibility") == "private" or server.created[0]["private"]
    held = server.repositories["me/darcy"]
    assert sorted(held) == ["README.md", "config.json", "model.safetensors"]
    assert b"| fve | 0.9877 |" in held["README.md"]
    held["evil.pkl"] = b"not asked for"
    check_same(pull("me/darcy", revision="v1"), sae)
    assert not list((tmp_path / "cache").rglob("evil.pkl"))
    server.repositories.clear()
    check_same(pull("me/darcy", revision=COMMIT), sae)  # a commit that was fetched once needs no hub


def test_what_the_hub_does_not_give(sae, server):
    with pytest.raises(FileNotFoundError, match=r"me/none is no folder, and .* gave no such model \(.*404.*name a folder"):
        pull("me/none")
    server.shutdown()
    server.server_close()
    with pytest.raises(FileNotFoundError, match="me/none is no folder, and .*'user/name' of a model that you may read"):
        pull("me/none")


def test_a_folder_of_that_name_goes_first(sae, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    push(sae, "./me/darcy")
    check_same(pull("me/darcy"), sae)
    assert not hub.calls


def test_the_card_tells_what_it_was_given(sae, tmp_path):
    push(sae, tmp_path, card=CARD)
    text = (tmp_path / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    assert YAML(typ="safe", pure=True).load(header) == {
        "library_name": "neuralop_sae",
        "license": "mit",
        "tags": ["neural-operators", "sparse-autoencoder", "interpretability"],
    }
    for each in ("48 fields of Darcy flow", "fno_blocks.2", "abc123", "| fve | 0.9877 |", "SAEFNO, 4 concepts, 2 channels"):
        assert each in body
    assert f"ns.pull({json.dumps(str(tmp_path))})" in body


def test_what_is_not_given_is_left_out(sae, tmp_path):
    push(sae, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "license" not in text
    assert "None" not in text
    assert "metric" not in text


@pytest.mark.parametrize("where", ["name", "a/b/c", "a b/c", ""])
def test_what_is_neither_a_name_nor_a_folder(sae, where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is neither 'user/name' on the hub nor a folder"):
        push(sae, where)


def test_without_the_package(sae, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: push(sae, "me/darcy"), lambda: pull("me/darcy")):
        with pytest.raises(ImportError, match=r"pip install 'neuralop-sae\[hub\]'"):
            call()


def test_what_does_not_fit(sae, tmp_path):
    with pytest.raises(TypeError, match="card must be a ModelCard, got dict"):
        push(sae, tmp_path, card={"license": "mit"})
    push(sae, tmp_path)
    with pytest.raises(ValueError, match="has no revisions"):
        pull(tmp_path, revision="v1")
    with pytest.raises(FileNotFoundError):
        pull(tmp_path / "none")
