"""torch's default dtype, which is one for the whole process.

transformers makes the modules of a model under the dtype of its weights, and a computation in another thread would
meanwhile come out in that dtype, silently. So making a model and computing a torch step each hold this lock; reading
weights, which takes long, does not.
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

    guarded.guarded = True  # type: ignore[attr-defined]  # a mark on a function
    modeling_utils.local_torch_dtype = guarded
