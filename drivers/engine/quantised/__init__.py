"""Quantised safetensors checkpoints as people publish them, read as the weights of the unquantised model.

vLLM and transformers have a module of layers for each method; here a method is a reader of names and numbers that gives
`llmasos.modelfiles.tensors.Weights`: under the unquantised names, dequantised to the bits of the method's own library, or
as integers where a native form holds them without loss. No torch: numpy does it all. A reader is imported with the first
model that needs it: most models need none, and a driver should start quickly.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmasos.drivers.engine.quantised.fields import Fields, unsupported
from llmasos.drivers.engine.quantised.forms import native_form
from llmasos.modelfiles.files import broken, quoted, read_object
from llmasos.modelfiles.tensors import SafetensorsWeights
from llmasos.syscalls.errno import SyscallError

if TYPE_CHECKING:
    from llmasos.drivers.engine.quantised.stored import Parts, QuantisedWeights, Stored

    _Reader = Callable[[Fields, Parts], tuple[dict[str, Stored], str]]

__all__ = ["METHODS", "check", "native_form", "open_quantised", "settings"]

METHODS = (
    "auto-round", "awq", "bitsandbytes", "compressed-tensors", "fbgemm_fp8", "fp8", "gptq", "modelopt", "mxfp4",
    "torchao",
)  # fmt: skip
_OTHERS = (
    "aqlm", "bitnet", "eetq", "exl2", "exl3", "fouroversix", "fp_quant", "gemma", "gguf", "higgs", "hqq", "metal",
    "mxfp8", "nvfp4", "quanto", "quark", "sinq", "spqr", "vptq",
)  # fmt: skip
_SAME = {"intel/auto-round": "auto-round", "modelopt_fp4": "modelopt"}
_KINDS = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


def settings(directory: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """How the weights of this model are quantised, as its files say; None where they are not. Raises EIO.

    That is `quantization_config` of config.json, else what modelopt and the first AutoGPTQ write into files of their own.
    """
    found = config.get("quantization_config")
    if found:
        if not isinstance(found, dict):
            raise _no_object(directory / "config.json", "its quantization_config", found)
        if found.get("quant_method") is None and found.get("config_groups"):
            return found | {"quant_method": "compressed-tensors"}
        if isinstance(method := found.get("quant_method"), str):
            return found | {"quant_method": _SAME.get(method, method)}
        return found
    if (file := directory / "hf_quant_config.json").is_file():
        inner = read_object(file).get("quantization")
        if not isinstance(inner, dict):
            raise _no_object(file, "its quantization", inner)
        return inner | {"quant_method": "modelopt"}
    if (file := directory / "quantize_config.json").is_file():
        whole = read_object(file)
        return whole | {"quant_method": whole.get("quant_method", "gptq")} if "bits" in whole else None
    return None


def check(found: dict[str, Any]) -> None:
    """Whether weights with these settings are read here at all. Raises ENOTSUP naming the method, EIO."""
    method = Fields("quantization_config", found).word("quant_method", "")
    if method not in METHODS:
        known = "known, and not read here" if method in _OTHERS else "not known"
        raise unsupported(
            method,
            f"the method is {known}",
            "use the model unquantised, or quantised by GPTQ, AWQ, compressed-tensors, FP8 or bitsandbytes",
        )


def open_quantised(directory: Path, config: dict[str, Any], weights: SafetensorsWeights) -> QuantisedWeights:
    """The weights of a quantised model. `config` is its config.json, `weights` its files.

    Raises ENOTSUP for methods and options that are not read, by name, EIO for tensors that are not as the configuration
    says.
    """
    from llmasos.drivers.engine.quantised.stored import Parts, QuantisedWeights

    found = settings(directory, config) or {}
    check(found)
    fields, parts = Fields("quantization_config", found), Parts(weights)
    method = fields.word("quant_method")
    stored, form = _reader(method, directory, config)(fields, parts)
    if not stored:
        raise broken(
            f"no weight in {directory} is quantised, and by its files {quoted(method)} did it; download it again, whole",
        )
    return QuantisedWeights(parts, stored, form)


def _reader(method: str, directory: Path, config: dict[str, Any]) -> _Reader:
    from llmasos.drivers.engine.quantised import (
        awq,
        bitsandbytes,
        compressed_tensors,
        fp8,
        gptq,
        mxfp4,
        torchao,
    )

    architecture = str(config.get("model_type"))
    kind = _KINDS.get(str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch."), "BF16")
    readers: dict[str, _Reader] = {
        "auto-round": partial(gptq.open_auto_round, architecture=architecture),
        "awq": awq.open_weights,
        "bitsandbytes": partial(bitsandbytes.open_weights, architecture=architecture),
        "compressed-tensors": compressed_tensors.open_weights,
        "fbgemm_fp8": partial(fp8.open_fbgemm, kind=kind),
        "fp8": partial(fp8.open_weights, kind=kind),
        "gptq": partial(gptq.open_weights, architecture=architecture),
        "modelopt": partial(fp8.open_modelopt, kind=kind),
        "mxfp4": mxfp4.open_weights,
        "torchao": partial(torchao.open_weights, directory=directory),
    }
    return readers[method]


def _no_object(file: Path, what: str, found: object) -> SyscallError:
    return broken(f"{file}: {what} holds {quoted(found)}, an object was wanted; download the model again")
