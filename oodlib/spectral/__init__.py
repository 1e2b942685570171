"""Singular spectra of weight matrices: comparing them, editing them, and watching them while a model is trained."""

from oodlib.spectral.angles import Comparison, compare, principal_angles, wedin_bound
from oodlib.spectral.surgery import Edit, restore
from oodlib.spectral.svd import Spectrum, spectrum

__all__ = [
    "Comparison", "Edit", "RotationCallback", "Spectrum", "compare", "principal_angles", "restore", "spectrum",
    "wedin_bound",
]  # fmt: skip


def __getattr__(name: str):
    if name == "RotationCallback":  # late, for transformers takes seconds
        from oodlib.spectral.callback import RotationCallback

        return RotationCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
