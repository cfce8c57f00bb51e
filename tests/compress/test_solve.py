"""Pruning one matrix: against exact and brute-force optima."""

import itertools

import pytest
import torch
from bigmodel_ext.compress.prune import solve
from bigmodel_ext.convert import largest_mask
from hidden import hidden_inputs


def _problem(n, k, rows=200):
    x = hidden_inputs(rows, k, max(1, k // 3)).double()
    return torch.randn(n, k).double(), x.T @ x / rows


def _share(gone, k):
    return lambda score, first: largest_mask(
        score, round(gone * (first + score.shape[1]) / k) - round(gone * first / k)
    )


def _exact(target, h, stay):
    """The optimum of a row with these weights."""
    v = torch.zeros_like(target)
    v[stay] = torch.linalg.solve(h[stay][:, stay], (h @ target)[stay])
    return v


class TestSolve:
    def test_least_squares_is_the_optimum_on_its_support(self):
        target, h = _problem(6, 24)
        stay = torch.rand(6, 24) < 0.5
        stay[0], stay[1] = True, False
        v = solve.least_squares(target, h, stay, steps=40)
        torch.testing.assert_close(v, torch.stack([_exact(t, h, s) for t, s in zip(target, stay, strict=True)]))

    @pytest.mark.parametrize("k", [5, 8])
    def test_admm_is_near_the_best_of_all_masks(self, k):
        found, best, greedy = 0.0, 0.0, 0.0
        for seed in range(20):
            torch.manual_seed(seed)
            target, h = _problem(1, k)
            kept = k // 2
            stay = solve.admm(target, h, _share(k - kept, k))
            assert int(stay.sum()) == kept
            found += solve.error(solve.least_squares(target, h, stay), target, h)
            masks = [torch.zeros(k, dtype=torch.bool).index_fill(0, torch.tensor(c), True)
                     for c in itertools.combinations(range(k), kept)]  # fmt: skip
            best += min(solve.error(_exact(target[0], h, m)[None], target, h) for m in masks)
            by_size = largest_mask(target.abs(), k - kept)[0]
            greedy += solve.error(_exact(target[0], h, by_size)[None], target, h)
        assert best <= found * (1 + 1e-9)
        assert found < 1.4 * best, f"{found:.4f} with ADMM's masks, {best:.4f} with the best"
        assert found < 0.9 * greedy, f"{found:.4f}, and {greedy:.4f} with the largest weights"

    def test_the_scale_of_inputs_does_not_matter(self):
        target, h = _problem(8, 20)
        scale = 10 ** torch.linspace(-2, 2, 20, dtype=torch.float64)
        stay = solve.admm(target, h, _share(10, 20))
        assert torch.equal(solve.admm(target / scale, h * scale * scale[:, None], _share(10, 20)), stay)

    def test_sparsegpt_prunes_a_column_at_the_optimum(self):
        """Pruned in their order, columns are each made up for by all behind them: exact where that is all there is."""
        target, h = _problem(7, 10)
        first = torch.ones(7, 10, dtype=torch.bool)
        first[:, :4] = False
        v = solve.sparsegpt(target, h, lambda score, start: first)
        torch.testing.assert_close(v, torch.stack([_exact(t, h, s) for t, s in zip(target, first, strict=True)]))

    @pytest.mark.parametrize("k", [127, 128, 300])
    def test_sparsegpt_beats_magnitude_across_blocks_of_columns(self, k):
        target, h = _problem(16, k, rows=3 * k)
        v = solve.sparsegpt(target, h, _share(k // 2, k))
        assert torch.equal((v == 0).sum(1), torch.full((16,), k // 2))
        plain = torch.where(largest_mask(target.abs(), k // 2), target, 0.0)
        assert solve.error(v, target, h) < 0.6 * solve.error(plain, target, h)
        least = solve.error(solve.least_squares(target, h, v != 0, 300), target, h)
        assert least <= solve.error(v, target, h)
        by_admm = solve.least_squares(target, h, solve.admm(target, h, _share(k // 2, k)))
        assert solve.error(by_admm, target, h) < 0.9 * least
