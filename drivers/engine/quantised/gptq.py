"""GPTQ as AutoGPTQ, GPTQModel and auto-round write it: `qweight`, `qzeros`, `scales` and, mostly, `g_idx` for a layer.

Words run down the inputs: qweight is int32 [inputs * bits / 32, columns], scales [groups, columns], qzeros [groups,
columns * bits / 32]. The first format stores zeros less one; `gptq_v2` and auto-round's own store them as they are.
With activation order (`desc_act`) `g_idx` says which group an input is in. GPT-2's layers are [inputs, columns] in its
unquantised checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llmasos.drivers.engine.quantised import awq, floats, integers
from llmasos.drivers.engine.quantised.fields import Fields, unsupported
from llmasos.drivers.engine.quantised.patterns import Expression
from llmasos.drivers.engine.quantised.stored import Affine, Parts, Stored, broken
from llmasos.modelfiles.files import quoted
from llmasos.modelfiles.tensors import Tensor

METHOD = "gptq"
CONV1D = ("gpt2",)  # architectures whose linear layers are [inputs, columns]
_INSTEAD = "use the model unquantised, or in the format gptq of 4 or 8 bits"
_HARMLESS = (
    "quant_method", "damp_percent", "damp_auto_increment", "desc_act", "static_groups", "sym", "true_sequential",
    "lm_head", "meta", "model_name_or_path", "model_file_base_name", "dataset", "batch_size", "block_name_to_quantize",
    "cache_block_outputs", "exllama_config", "max_input_length", "module_name_preceding_first_block",
    "modules_in_block_to_quantize", "pad_token_id", "tokenizer", "use_cuda_fp16", "use_exllama", "disable_exllama",
    "model_seqlen", "backend", "hyb_act", "mse", "act_group_aware", "format", "method", "offload_to_disk",
    "offload_to_disk_path", "parallel_packing", "quantizer", "rotation_config", "version", "quant_format", "device",
    "mock_quantization", "fail_safe", "failsafe", "gptaq", "foem",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layers:
    """The settings of a layer."""

    bits: int
    group: int  # inputs; -1 the whole column


def open_weights(fields: Fields, parts: Parts, architecture: str) -> tuple[dict[str, Stored], str]:
    """The layers that are quantised, and a word for how. Raises ENOTSUP, EIO."""
    format_ = fields.word("checkpoint_format", "gptq")
    if format_ not in ("gptq", "gptq_v2") or fields.flag("is_marlin_format", False):
        raise unsupported(METHOD, f"its format is {quoted(format_)}", _INSTEAD)
    if fields.word("pack_dtype", "int32") != "int32":
        raise unsupported(METHOD, "its words are not int32", _INSTEAD)
    whole = layers(fields)
    rules = _dynamic(fields.raw("dynamic"), whole)
    fields.finish(METHOD, _HARMLESS)

    def of(layer: str) -> Layers:
        return next((found for rule, found in rules if rule.begins(layer)), whole)

    return read(parts, of, whole, format_ == "gptq", architecture), described(METHOD, whole)


def layers(fields: Fields, default: Layers | None = None) -> Layers:
    bits = fields.integer("bits", 1, 16, default.bits if default else None)
    group = fields.integer("group_size", -1, 1 << 20, default.group if default else 128)
    if bits not in (2, 3, 4, 8) or group == 0:
        raise unsupported(METHOD, f"{bits} bits in groups of {group}", _INSTEAD)
    return Layers(bits, group)


def described(method: str, of: Layers) -> str:
    return f"{method} int{of.bits} {'channel' if of.group == -1 else f'g{of.group}'}"


def _dynamic(rules: Any, whole: Layers) -> list[tuple[Expression, Layers]]:
    """GPTQModel's exceptions: an expression for names, and what differs there; "-:" layers are not quantised at all."""
    if rules is None:
        return []
    all_ = Fields("quantization_config.dynamic", rules)
    found = []
    for text in rules:
        if not isinstance(text, str) or text.startswith("-:"):
            continue
        what = Fields(f"quantization_config.dynamic[{quoted(text)}]", all_.raw(text))
        of = layers(what, whole)
        what.finish(METHOD, ("desc_act", "sym", "mse", "damp_percent", "static_groups", "lm_head"))
        found.append((Expression(text.removeprefix("+:")), of))
    return found


def read(
    parts: Parts, of: Callable[[str], Layers], whole: Layers, less_one: bool, architecture: str
) -> dict[str, Stored]:
    """Every layer with a qweight; `of` says how one is quantised, `less_one` that zeros are stored so."""
    return {
        f"{layer}.weight": _layer(layer, of(layer), parts, less_one, architecture in CONV1D)
        for layer in parts.ending(".qweight")
    }


def _layer(layer: str, of: Layers, parts: Parts, less_one: bool, transposed: bool) -> Stored:
    words, high, columns = parts.matrix(f"{layer}.qweight", ("I32",))
    bits = of.bits
    if high * 32 % bits:
        raise broken(f"{layer}.qweight", f"its {high} words a column are no whole number of {bits} bits")
    inputs = high * 32 // bits
    size = inputs if of.group == -1 else of.group
    groups = -(-inputs // size)
    scale = parts.take(f"{layer}.scales", floats.FLOATS, (groups, columns))
    zeros = parts.take(f"{layer}.qzeros", ("I32",), (groups, integers.words(columns, bits)))
    order = None
    if f"{layer}.g_idx" in parts.names:
        index = parts.take(f"{layer}.g_idx", ("I32", "I64"), (inputs,))

        def order() -> np.ndarray:
            return index().data.astype(np.int64)

    return Affine(
        f"{layer}.weight",
        bits,
        columns,
        inputs,
        size,
        parts.kind(f"{layer}.scales"),
        0,
        lambda: integers.unpack(words().data.T, bits, inputs),
        lambda: floats.values(scale()).T,
        lambda: zero_points(zeros(), bits, columns, less_one).T,
        order,
        transposed,
    )


def zero_points(stored: Tensor, bits: int, columns: int, less_one: bool) -> np.ndarray:
    """int16 [groups, columns]. The one is added to whole words where fields do not cross them, as GPTQModel adds it:
    what it took away by subtraction may have borrowed from the next field."""
    words: np.ndarray = stored.data
    if less_one and bits != 3:
        words = (words.view(np.uint32) + np.uint32(sum(1 << place for place in range(0, 32, bits)))).view(np.int32)
    zeros = integers.unpack(words, bits, columns).astype(np.int16)
    return (zeros + 1) & 7 if less_one and bits == 3 else zeros


AUTO_ROUND = "auto-round"
_AUTO_HARMLESS = (
    "quant_method", "sym", "data_type", "act_bits", "act_data_type", "act_dynamic", "act_group_size", "act_sym", "amp",
    "autoround_version", "batch_size", "block_name_to_quantize", "dataset", "enable_minmax_tuning",
    "enable_norm_bias_tuning", "enable_quanted_input", "gradient_accumulate_steps", "iters", "lr", "low_gpu_mem_usage",
    "minmax_lr", "nsamples", "scale_dtype", "seqlen", "to_quant_block_names", "quant_lm_head", "lm_head",
    "damp_percent", "desc_act", "true_sequential", "zero_point", "version", "enable_alg_ext", "backend", "super_bits",
    "super_group_size", "static_kv_dtype", "enable_torch_compile", "modules_to_not_convert", "supported_types",
    "quant_block_list", "low_cpu_mem_usage", "momentum", "not_use_best_mse", "provider",
)  # fmt: skip


def open_auto_round(fields: Fields, parts: Parts, architecture: str) -> tuple[dict[str, Stored], str]:
    """auto-round writes GPTQ's tensors, with zeros less one or not, or AWQ's; exceptions stand in `extra_config`."""
    packing = fields.word("packing_format", "auto_round:auto_gptq")
    kinds = {
        "auto_gptq": "gptq",
        "gptq": "gptq",
        "gptqmodel": "plain",
        "auto_round": "plain",
        "auto_awq": "awq",
        "awq": "awq",
    }
    kind = kinds.get(packing.rpartition(":")[2])
    data, acts = fields.word("data_type", "int"), fields.raw("act_bits")
    if kind is None or data != "int" or not (acts is None or acts == 16):
        what = f"its packing is {quoted(packing)} of {quoted(data)} with activations of {quoted(acts)} bits"
        raise unsupported(AUTO_ROUND, what, "export the model with auto-round's format auto_gptq or auto_awq")
    whole = layers(fields)
    exact: dict[str, Layers] = {}
    expressions: list[tuple[Expression, Layers]] = []
    extra = fields.raw("extra_config")
    if extra is not None:
        all_ = Fields("quantization_config.extra_config", extra)
        for name in extra:
            what_ = replace_bits(Fields(f"quantization_config.extra_config[{quoted(name)}]", all_.raw(name)), whole)
            if what_ is not None:
                exact[name] = what_
                if any(char in name for char in "*+[(\\|^$"):
                    expressions.append((Expression(name), what_))
    fields.finish(AUTO_ROUND, _AUTO_HARMLESS)

    def of(layer: str) -> Layers:
        if layer in exact:
            return exact[layer]
        return next((found for rule, found in expressions if rule.begins(layer)), whole)

    form = described(AUTO_ROUND, whole)
    if kind == "awq":
        return awq.read(parts, lambda layer: of(layer).group, columns_first=False), form
    return read(parts, of, whole, kind == "gptq", architecture), form


def replace_bits(fields: Fields, whole: Layers) -> Layers | None:
    """An exception of auto-round's; None for a layer that stays as it is (16 bits and more)."""
    bits = fields.integer("bits", 1, 32, whole.bits)
    if bits >= 16:
        return None
    if fields.word("data_type", "int") != "int":
        raise unsupported(AUTO_ROUND, f"{fields.where} has {quoted(fields.raw('data_type'))}", _INSTEAD)
    of = layers(fields, replace(whole, bits=bits))
    fields.finish(AUTO_ROUND, _AUTO_HARMLESS)
    return of
