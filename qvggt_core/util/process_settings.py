"""Settings of a process that reconstructs: linear algebra on one thread, little to collect."""

from __future__ import annotations

import gc
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


def freeze_long_lived() -> None:
    """Leave the objects that there are now out of garbage collections.

    Python's full collections look at every object, here a third of a million of modules and
    layers, and every image makes enough new ones to call for some. What a call before left out is
    collected first, so that loading again loses nothing.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
