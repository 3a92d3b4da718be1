"""One layer as quantised files of some forms hold it."""

from __future__ import annotations

import json
from typing import Any

import torch

from llmasos.drivers.engine.quantised.bitsandbytes import CODES
from tests.drivers.quantised.written import random

FOUR = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def layer(**state: Any) -> dict[str, torch.Tensor]:
    about = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [3, 50]} | state
    raw = torch.frombuffer(bytearray(json.dumps(about).encode()), dtype=torch.uint8)
    codes = torch.randint(0, 256, (75, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return {
        "l.weight": codes,
        "l.weight.absmax": random(3).abs(),
        "l.weight.quant_map": torch.from_numpy(CODES["nf4"]),
        "l.weight.quant_state.bitsandbytes__nf4": raw,
    }


E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def fp8(scale: torch.Tensor, dtype: torch.dtype = E4M3) -> dict[str, torch.Tensor]:
    return {"l.weight": (random(128, 256) * 100).to(dtype), "l.weight_scale_inv": scale}
