"""The only source of tolerances: a float result may miss a float64 reference by twice what torch's own op in the same
dtype misses it by, plus a floor of a few units in the last place of the largest term."""

import torch

FLOOR_ULPS = 4


def assert_as_accurate(
    ours: torch.Tensor, torchs: torch.Tensor, exact: torch.Tensor, scale: float | None = None
) -> None:
    """ours, torchs: same dtype; exact: float64. `scale` is the size of the summed terms (default: the largest
    result). NaN and infinity must be where `exact` has them."""
    assert ours.shape == exact.shape, f"{tuple(ours.shape)} != {tuple(exact.shape)}"
    assert ours.dtype == torchs.dtype, f"{ours.dtype} != {torchs.dtype}"
    wide = ours.double()
    finite = exact.isfinite()
    assert torch.equal(wide.isnan(), exact.isnan()), "NaN in other places than the reference"
    assert torch.equal(wide[~finite].nan_to_num(), exact[~finite].nan_to_num()), "infinities differ"
    if not finite.any():
        return
    if scale is None:
        scale = exact[finite].abs().max().item()
    floor = FLOOR_ULPS * torch.finfo(ours.dtype).eps * scale
    allowed = 2 * (torchs.double() - exact)[finite].abs().max().item() + floor
    error = (wide - exact)[finite].abs().max().item()
    assert error <= allowed, f"max error {error:.3e} > allowed {allowed:.3e}"


def terms(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest sum of the magnitudes of a product's terms: what its rounding errors are relative to."""
    product = a.double().abs() @ b.double().abs()
    return product.max().item() if product.numel() else 0.0
