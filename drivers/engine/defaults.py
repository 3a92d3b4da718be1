"""torch's default dtype, which is one for the whole process.

transformers makes the modules of a model under the dtype its weights will have, and what is computed meanwhile in another
thread would silently come out in that. So a model is made, and torch steps are computed, only while this lock is held;
reading weights, which takes long, is done without it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

DEFAULTS = threading.RLock()


def guard_transformers() -> None:
    """Have transformers change the default dtype only under the lock."""
    from transformers import modeling_utils

    changing: Any = modeling_utils.local_torch_dtype
    if hasattr(changing, "guarded"):
        return

    @contextmanager
    def guarded(*arguments: Any, **named: Any) -> Iterator[None]:
        with DEFAULTS, changing(*arguments, **named):
            yield

    guarded.guarded = True  # type: ignore[attr-defined]
    modeling_utils.local_torch_dtype = guarded
