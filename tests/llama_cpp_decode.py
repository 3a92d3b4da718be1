"""llama.cpp itself, in the environment of the peer (`make peers`): `python llama_cpp_decode.py` reads jobs from stdin,
one JSON object a line: {"file", "from", "type"} quantises; {"file", "ids", "out", "exact"} writes the logits of every
position [tokens, vocab] (.npy), with keys and values in fp32 if `exact`, else as llama.cpp has them by default.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
from typing import Any

import numpy as np

THREADS = 2


def quantise(lib: Any, job: dict[str, Any]) -> None:
    parameters = lib.llama_model_quantize_default_params()
    parameters.ftype = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{job['type']}")
    parameters.nthread = THREADS
    if status := lib.llama_model_quantize(job["from"].encode(), job["file"].encode(), ctypes.byref(parameters)):
        raise RuntimeError(f"llama_model_quantize of {job['from']} failed with {status}")


def logits(lib: Any, job: dict[str, Any]) -> None:
    ids = job["ids"]
    model = lib.llama_model_load_from_file(job["file"].encode(), lib.llama_model_default_params())
    if not model:
        raise RuntimeError(f"llama.cpp does not load {job['file']}")
    parameters = lib.llama_context_default_params()
    parameters.n_ctx = -(-len(ids) // 256) * 256
    parameters.n_batch = parameters.n_ctx
    parameters.n_threads = parameters.n_threads_batch = THREADS
    if job["exact"]:
        parameters.type_k = parameters.type_v = lib.GGML_TYPE_F32
        parameters.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = lib.llama_init_from_model(model, parameters)
    if not context:
        raise RuntimeError(f"llama.cpp makes no context for {job['file']}")
    vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    batch = lib.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, True
        batch.seq_id[i][0] = 0
    if status := lib.llama_decode(context, batch):
        raise RuntimeError(f"llama_decode of {job['file']} failed with {status}")
    rows = np.ctypeslib.as_array(lib.llama_get_logits(context), (len(ids), vocab))
    np.save(job["out"], rows)
    lib.llama_batch_free(batch)
    lib.llama_free(context)
    lib.llama_model_free(model)


def main() -> None:
    """Each job's answer is a line: empty, or what failed."""
    lib: Any = importlib.import_module("llama_cpp")
    lib.llama_backend_init()
    for line in sys.stdin:
        job = json.loads(line)
        try:
            (logits if "ids" in job else quantise)(lib, job)
            print(flush=True)
        except RuntimeError as error:
            print(error, flush=True)


if __name__ == "__main__":
    main()
