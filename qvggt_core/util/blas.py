"""Threads of the linear algebra behind NumPy, SciPy and OpenCV."""

from __future__ import annotations

import os
from pathlib import Path

_CHOSEN = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
_OF_PYTORCH = {"torch", "torch.libs"}


def limit_blas_threads() -> None:
    """Let NumPy, SciPy and OpenCV multiply on one thread in this process.

    A map is made of many small products, for which no second thread pays. OpenBLAS's threads wait
    for the next product in a loop, and take a core from the network all the while. PyTorch's own
    library is left as it is, and so are all if the environment has chosen (`OPENBLAS_NUM_THREADS`).
    """
    if any(name in os.environ for name in _CHOSEN):
        return
    # SciPy's is limited once it is loaded; neither is needed where nothing is reconstructed.
    import scipy.linalg  # noqa: F401
    from threadpoolctl import ThreadpoolController

    for library in ThreadpoolController().lib_controllers:
        if library.user_api == "blas" and not _OF_PYTORCH & {*Path(library.filepath).parts}:
            library.set_num_threads(1)
