"""The search for spins against brute force, exact energies and the plain reference."""

import itertools

import pytest
import shapes
import torch
from bigmodel_ext import _native, _reference
from bigmodel_ext import functional as F
from bigmodel_ext.formats import binary_coded

DESCENT = [0.0] * 8


def problem(n, k, group_size, bits, seed=0):
    """weight, moments of correlated inputs, alpha and random codes."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    x = draw(2 * k + 8, k) @ (torch.eye(k) + draw(k, k) / max(k, 1) ** 0.5)
    moments = x.T @ x / len(x) + 0.01 * torch.eye(k)
    groups = -(-k // group_size)
    alpha = (draw(n, groups, bits).abs() * 0.1 + 0.6 * 0.5 ** torch.arange(bits)).half()
    codes = torch.randint(0, 1 << bits, (n, k), dtype=torch.uint8, generator=generator)
    return draw(n, k), moments, alpha, codes


def energies(weight, moments, codes, alpha, group_size):
    """Exact, [N]: in float64, of the values as they are stored."""
    group = torch.arange(weight.shape[1]) // group_size
    spins = ((codes[..., None] >> torch.arange(alpha.shape[2])) & 1) * 2.0 - 1.0
    error = (alpha.double()[:, group] * spins).sum(2) - weight.double()
    return ((error @ moments.double()) * error).sum(1)


def factor(moments, order):
    lower = torch.linalg.cholesky(moments.double()[order][:, order])
    return (lower / lower.diagonal()).float()


def test_codes_stand_for_what_the_format_says():
    _, _, alpha, codes = problem(5, 37, 16, 3)
    spins = (((codes[:, None] >> torch.arange(3)[:, None]) & 1) * 2).to(torch.int8) - 1
    exact = binary_coded.decode(binary_coded.pack(spins), alpha, 37, 16)
    torch.testing.assert_close(F.ising_decode(codes, alpha, 16), exact, rtol=0, atol=1e-6)
    torch.testing.assert_close(_reference.ising_decode(codes, alpha, 16), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", shapes.ISING, ids=str)
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_every_instruction_set_finds_the_same_codes(shape, bits):
    n, k, group_size = shape
    weight, moments, alpha, codes = problem(n, k, group_size, bits)
    order = torch.randperm(k)
    lower = factor(moments, order)
    found = []
    for isa in _native.available_isas()[:3]:
        with _native.forced_isa(isa):
            assert _native.kernel_isa("ising_descend") == isa
            start = F.ising_start(weight, lower, order, alpha, group_size=group_size)
            cooled = F.ising_descend(
                weight, moments, codes, alpha, group_size=group_size, temperatures=[2.0, 0.5, 0, 0], seed=5
            )
            found.append((start, *cooled))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    if n and k:
        before = energies(weight, moments, codes, alpha, group_size).sum()
        assert energies(weight, moments, *found[0][1:], group_size).sum() < before


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("shape", [s for s in shapes.ISING if s[1] < 128 or s[0] == 18], ids=str)
def test_kernels_do_what_the_reference_does(shape):
    bits = 3 if shape[1] % 2 else 2
    n, k, group_size = shape
    weight, moments, alpha, codes = problem(n, k, group_size, bits)
    order = torch.randperm(k)
    start = F.ising_start(weight, factor(moments, order), order, alpha, group_size=group_size)
    assert_nearly_the_same(start, _reference.ising_start(weight, factor(moments, order), order, alpha, group_size))
    for heats in ([0.0], [1.0]):
        ours = F.ising_descend(weight, moments, codes, alpha, group_size=group_size, temperatures=heats, seed=2**40 + 3)
        theirs = _reference.ising_descend(weight, moments, codes, alpha, group_size, heats, True, True, 2**40 + 3)
        assert_nearly_the_same(ours[0], theirs[0])
        ours_e, theirs_e = (energies(weight, moments, *found, group_size) for found in (ours, theirs))
        torch.testing.assert_close(ours_e.sum(), theirs_e.sum(), rtol=0.01, atol=1e-12)


def assert_nearly_the_same(ours, theirs):
    """Two levels may be equally near but for rounding, and what follows differs then in that row."""
    assert ours.dtype == theirs.dtype == torch.uint8
    rows = (ours != theirs).any(1)
    assert rows.sum() <= 0.05 * len(ours), f"{int(rows.sum())} of {len(ours)} rows differ"


def test_any_number_of_threads_finds_the_same(threads):
    weight, moments, alpha, codes = problem(100, 96, 32, 2)  # 7 tiles, which two threads work on in parts of 4
    heats = [1.0, 0.2, 0.0]
    found = F.ising_descend(weight, moments, codes, alpha, group_size=32, temperatures=heats)
    whole = [
        F.ising_descend(
            weight[i : i + 1], moments, codes[i : i + 1], alpha[i : i + 1], group_size=32, temperatures=[0.0]
        )
        for i in (0, 50, 99)
    ]  # a row by itself: rows know nothing of each other
    together = F.ising_descend(weight, moments, codes, alpha, group_size=32)
    assert all(torch.equal(together[0][i], one[0][0]) for i, one in zip((0, 50, 99), whole, strict=True))
    torch.set_num_threads(1)
    again = F.ising_descend(weight, moments, codes, alpha, group_size=32, temperatures=heats)
    assert torch.equal(found[0], again[0])
    assert torch.equal(found[1], again[1])


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize(("spins", "scales"), [(True, False), (False, True), (True, True)])
def test_no_sweep_raises_the_energy_of_any_row(bits, spins, scales, float_isa):
    weight, moments, alpha, codes = problem(40, 130, 64, bits)
    state, last = (codes, alpha), energies(weight, moments, codes, alpha, 64)
    first = last.sum()
    for _ in range(5):
        new = F.ising_descend(weight, moments, *state, group_size=64, spins=spins, scales=scales)
        assert spins or torch.equal(new[0], state[0])
        assert scales or torch.equal(new[1], state[1])
        now = energies(weight, moments, *new, 64)
        assert (now <= last * (1 + 1e-6)).all(), f"rises by {((now - last) / last).max():.2e}"
        state, last = new, now
    assert last.sum() < 0.9 * first


def test_at_the_end_no_single_weight_has_a_better_level():
    weight, moments, alpha, codes = problem(10, 40, 16, 3)
    state = F.ising_descend(
        weight, moments, codes, alpha, group_size=16, temperatures=[1e-9] + [0.0] * 40, scales=False
    )
    value = F.ising_decode(*state, 16).double()
    field = (value - weight.double()) @ moments.double()
    levels = torch.stack([F.ising_decode(torch.full_like(codes, c), state[1], 16) for c in range(8)]).double()
    moved = levels - value
    rise = moved * (2 * field + moved * moments.double().diagonal())
    assert rise.min() >= -1e-3 * energies(weight, moments, *state, 16).min()


def test_scales_alone_reach_the_joint_least_squares():
    weight, moments, alpha, codes = problem(6, 48, 16, 2)
    found = F.ising_descend(
        weight, moments, codes, alpha, group_size=16, temperatures=[1e-9] * 60, spins=False
    )[1]  # fmt: skip
    spins = ((codes[..., None] >> torch.arange(2)) & 1) * 2.0 - 1.0
    planes = torch.zeros(6, 48, 3, 2, dtype=torch.float64)
    for g in range(3):
        planes[:, 16 * g : 16 * (g + 1), g] = spins[:, 16 * g : 16 * (g + 1)].double()
    planes = planes.flatten(2)
    normal = planes.mT @ moments.double() @ planes
    best = torch.linalg.solve(normal, planes.mT @ (moments.double() @ weight.double()[..., None]))[..., 0]
    error = (planes @ best[..., None])[..., 0] - weight.double()
    least = ((error @ moments.double()) * error).sum(1)
    assert (energies(weight, moments, codes, found, 16) <= least * 1.001).all()


@pytest.mark.parametrize(("bits", "k"), [(1, 8), (2, 7), (3, 5)])
def test_brute_force_over_all_spins(bits, k):
    """Of all states with the scales given, the search finds the best or nearly."""
    weight, moments, alpha, _ = problem(24, k, 8, bits)
    order = moments.diagonal().argsort()
    states = torch.tensor(list(itertools.product(range(1 << bits), repeat=k)), dtype=torch.uint8)
    spins = ((states[..., None] >> torch.arange(bits)) & 1) * 2.0 - 1.0
    error = torch.einsum("skb,nb->snk", spins.double(), alpha[:, 0].double()) - weight.double()
    least = ((error @ moments.double()) * error).sum(2).min(0).values
    start = F.ising_start(weight, factor(moments, order), order, alpha, group_size=8)

    def reached(heats, seed=0):
        found = F.ising_descend(
            weight, moments, start, alpha, group_size=8, temperatures=heats, seed=seed, scales=False
        )
        energy = energies(weight, moments, *found, 8)
        assert (energy >= least * (1 - 1e-6)).all()
        return energy

    begun, descended = reached([]), reached(DESCENT)
    cooled = [8.0 * 0.97**i for i in range(150)] + DESCENT
    annealed = torch.stack([reached(cooled, seed) for seed in range(8)]).min(0).values
    assert begun.sum() >= descended.sum()
    assert descended.sum() <= 1.25 * least.sum()
    share = (annealed <= least * (1 + 1e-6)).float().mean()
    assert share >= 0.9, f"annealing finds the best state of {share:.0%} of the rows"
    assert annealed.sum() <= 1.005 * least.sum()


def test_annealing_finds_what_descent_does_not():
    weight, moments, alpha, codes = problem(32, 64, 64, 1)
    run = lambda heats, seed=0: F.ising_descend(  # noqa: E731
        weight, moments, codes, alpha, group_size=64, temperatures=heats, seed=seed, scales=False
    )
    cooled = [4.0 * 0.9**i for i in range(50)] + DESCENT
    descended, annealed = (energies(weight, moments, *run(heats), 64).sum() for heats in (DESCENT, cooled))
    assert annealed < 0.97 * descended
    assert torch.equal(run(cooled, 1)[0], run(cooled, 1)[0])
    assert not torch.equal(run(cooled, 1)[0], run(cooled, 2)[0])


def test_inputs_stay_and_strides_do_not_matter():
    weight, moments, alpha, codes = problem(20, 40, 8, 2)
    kept = codes.clone(), alpha.clone()
    found = F.ising_descend(weight, moments, codes, alpha, group_size=8)
    assert torch.equal(codes, kept[0])
    assert torch.equal(alpha, kept[1])
    strided = F.ising_descend(weight.T.contiguous().T, moments.T, codes.T.contiguous().T, alpha, group_size=8)
    assert torch.equal(strided[0], found[0])


BAD = [
    (dict(weight=torch.zeros(3, 8).double()), TypeError, "weight must be float32"),
    (dict(weight=torch.zeros(3)), ValueError, "weight must have 2 dimensions"),
    (dict(moments=torch.eye(7)), ValueError, r"moments must have shape \[8, 8\]"),
    (dict(moments=torch.diag(torch.tensor([1.0] * 7 + [0.0]))), ValueError, "positive diagonal, got 0 at input 7"),
    (dict(moments=torch.eye(8) * torch.nan), ValueError, "positive diagonal, got nan"),
    (dict(codes=torch.full((3, 8), 4, dtype=torch.uint8)), ValueError, r"codes must be below 2\^2, got 4"),
    (dict(codes=torch.zeros(3, 8)), TypeError, "codes must be uint8"),
    (dict(alpha=torch.ones(3, 1, 2)), TypeError, "alpha must be float16"),
    (dict(alpha=torch.ones(3, 1, 5).half()), ValueError, "1 to 4 scales"),
    (dict(alpha=torch.ones(3, 2, 2).half()), ValueError, r"alpha must have shape \[3, 1, 2\]"),
    (dict(group_size=0), ValueError, "group_size must be at least 1, got 0"),
    (dict(temperatures=[-1.0]), ValueError, "temperatures must be finite and not negative, got -1"),
]


@pytest.mark.parametrize(("change", "error", "text"), BAD)
def test_what_is_refused(change, error, text):
    args = dict(weight=torch.zeros(3, 8), moments=torch.eye(8), codes=torch.zeros(3, 8, dtype=torch.uint8),
                alpha=torch.ones(3, 1, 2).half(), group_size=8, temperatures=[0.0]) | change  # fmt: skip
    with pytest.raises(error, match=text):
        F.ising_descend(**args)


def test_an_order_out_of_range_is_refused():
    with pytest.raises(ValueError, match="order must hold inputs in"):
        F.ising_start(
            torch.zeros(2, 3), torch.eye(3), torch.tensor([0, 1, 3]), torch.ones(2, 1, 1).half(), group_size=8
        )
