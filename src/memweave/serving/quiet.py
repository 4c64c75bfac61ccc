"""The one place that keeps libraries from talking over us while they load and save models."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.RLock()  # progress bars and warning filters are settings of the process


@contextmanager
def quiet() -> Iterator[None]:
    """Draw no progress bars of transformers, and leave out a warning that only PEFT's makers can act on.

    That is PEFT 0.21 asking transformers for `is_gradient_checkpointing`, an attribute's old name. Every other warning
    is shown. Imports transformers.
    """
    from transformers.utils import logging

    with _lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # as it is published
        try:
            yield
        finally:
            if shown:
                logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # as it is published
