"""Small floats: every bit pattern means what torch says it means, and rounding is torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmasos.drivers.engine.quantised import floats
from llmasos.modelfiles.tensors import Tensor
from tests.drivers.quantised.written import same


@pytest.mark.parametrize(
    ("table", "dtype"),
    [
        (floats.E4M3, torch.float8_e4m3fn),
        (floats.E5M2, torch.float8_e5m2),
        (floats.E8M0, torch.float8_e8m0fnu),
    ],
)
def test_all_256_values_of_an_8_bit_float_are_torchs(table: np.ndarray, dtype: torch.dtype) -> None:
    theirs = torch.arange(256, dtype=torch.uint8).view(dtype).to(torch.float32)
    assert same(Tensor("F32", table), theirs)


def test_the_16_values_of_e2m1_are_those_of_the_standard() -> None:
    magnitudes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]  # OCP Microscaling Formats, table 5
    assert floats.E2M1.tolist() == magnitudes + [-value for value in magnitudes]
    assert np.signbit(floats.E2M1[8])


def test_exponents_are_powers_of_two_and_the_last_is_infinite() -> None:
    assert floats.EXPONENTS[:255].tolist() == [2.0 ** (byte - 127) for byte in range(255)]
    assert floats.EXPONENTS[255] == np.inf


@pytest.mark.parametrize(("kind", "dtype"), [("F16", torch.float16), ("BF16", torch.bfloat16), ("F32", torch.float32)])
def test_products_are_rounded_as_torch_rounds_them(kind: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (
        torch.randint(0, 1 << 16, (200_000,), generator=generator, dtype=torch.int32).to(torch.int16).view(torch.float16)
        for _ in range(2)
    )
    a, b = (x.nan_to_num(1.0, 2.0, 3.0).to(dtype) for x in (a, b))
    with np.errstate(over="ignore", invalid="ignore"):
        product = a.float().numpy() * b.float().numpy()
    ours = floats.stored_items(product, kind)
    assert same(Tensor(kind, ours), a * b)
    assert np.array_equal(floats.rounded(product, kind), Tensor(kind, ours).float32(), equal_nan=True)


@pytest.mark.parametrize(
    ("numbers", "fits"),
    [
        ([1.0, 65504.0], True),
        ([1.0, 2.0**100], True),
        ([1.0 + 2**-10, 2.0**100], False),
        ([1.1], False),
        ([np.inf], False),
    ],
)
def test_scales_fit_where_one_16_bit_type_holds_them_all(numbers: list[float], fits: bool) -> None:
    assert floats.fits_half(np.array(numbers, np.float32)) is fits
