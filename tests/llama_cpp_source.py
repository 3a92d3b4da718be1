"""Published chat templates and vocabularies: they lie in the source of llama-cpp-python, which `make peers` unpacks.

`LLMASOS_LLAMA_CPP` names another place where it is unpacked. Nothing of it is ever committed; tests that want it are
skipped where it is not.
"""

from __future__ import annotations

import os
from pathlib import Path

PLACE = Path(os.environ.get("LLMASOS_LLAMA_CPP") or Path(__file__).parents[1] / ".peers" / "llama_cpp" / "src")
TEMPLATES = sorted(PLACE.glob("**/vendor/llama.cpp/models/templates/*.jinja"))
VOCABULARIES = sorted(PLACE.glob("**/vendor/llama.cpp/models/ggml-vocab-*.gguf"))
WHY = f"the source of llama-cpp-python is not in {PLACE} (make peers, or LLMASOS_LLAMA_CPP)"
