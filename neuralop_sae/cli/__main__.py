"""``python -m neuralop_sae.cli``, as torchrun starts it."""

from . import app

if __name__ == "__main__":
    app()
