"""Write the golden models of the present schema version. Run once per version, and never again for a version that was
released: ``python tests/golden/write.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from neuralop_sae.checkpoint import SCHEMA_VERSION, write_tensors
from neuralop_sae.layers import BatchTopK, JumpReLU, LocalTopK, SoftThreshold, TopFraction, TopK
from neuralop_sae.models import SAEFNO

MODELS: dict[str, dict[str, Any]] = {
    "batchtopk": {"n_modes": (5, 4), "concept_rule": BatchTopK(2), "domain_rule": TopFraction(0.3), "code_grid": (7, 6)},
    "jumprelu": {"n_modes": (5,), "concept_rule": JumpReLU(0.3, 0.1), "domain_rule": SoftThreshold(0.02), "skip": None,
                 "selection": "exact"},
    "tucker": {"n_modes": (4, 3), "concept_rule": TopK(2), "domain_rule": LocalTopK(1), "factorization": "Tucker",
               "rank": 0.5, "encoder": "fno_block"},
}  # fmt: skip


def write(folder: Path) -> None:
    """One folder per model: what save_pretrained writes, and an input with its output."""
    for name, arguments in MODELS.items():
        torch.manual_seed(0)
        model = SAEFNO(in_channels=3, n_concepts=6, **arguments)
        model = model.double() if name == "jumprelu" else model
        x = 2 + 3 * torch.randn(4, 3, *(8, 9)[: model.n_dim], dtype=model.dtype)
        model.fit_normalization(x.transpose(0, 1).flatten(1).mean(1), 3.0)
        model.initialize_from(x, torch.Generator().manual_seed(0))
        model(x)  # training mode: sets running thresholds
        out = model.eval()(x)
        assert len(out.codes), name
        model.save_pretrained(folder / name)
        expected = {"x": x, "reconstruction": out.reconstruction, "codes": out.codes.to_dense()}
        write_tensors(folder / name / "expected.safetensors", expected)


if __name__ == "__main__":
    write(Path(__file__).parent / f"v{SCHEMA_VERSION}")
