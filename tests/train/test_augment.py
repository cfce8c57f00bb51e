import pytest
import torch
from bigmodel_ext.train.augment import GEOMETRIC, NAMES, Augment, _warp

STRENGTH = dict.fromkeys(NAMES, 0.2) | {"rotate": 20.0}


def _images():
    return torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(5)) * 0.6 + 0.2


@pytest.mark.parametrize("name", NAMES)
def test_each_changes_every_image_and_obeys_its_seed(name):
    images, before = _images(), _images()
    first, again, other = (Augment({name: STRENGTH[name]}, seed)(images) for seed in (1, 1, 2))
    assert torch.equal(images, before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert bool(((first - images).abs().amax((1, 2, 3)) > 1e-4).all())
    assert first.shape == images.shape
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1


def test_all_together_are_deterministic_and_move_on_from_call_to_call():
    runs = []
    for _ in range(2):
        augment = Augment(STRENGTH, 7)
        runs.append([augment(_images()) for _ in range(3)])
        torch.rand(3)  # the global generator plays no part
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert not torch.equal(runs[0][0], runs[0][1])


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    Augment(STRENGTH, 7)(_images())
    assert torch.equal(torch.get_rng_state(), state)


def test_no_augmentation_is_no_change():
    images = _images()
    assert torch.equal(Augment({}, 0)(images), images)
    assert torch.equal(Augment(dict.fromkeys(NAMES, 0.0), 0)(images), images)


def test_warping_samples_where_the_matrix_says():
    images = _images()
    assert torch.allclose(_warp(images, torch.eye(3).repeat(32, 1, 1)), images, atol=1e-6)
    shift = torch.eye(3).repeat(32, 1, 1)
    shift[:, 0, 2] = 2 / 8  # one pixel
    moved = _warp(images, shift)
    assert torch.allclose(moved[..., :-1], images[..., 1:], atol=1e-5)
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]).repeat(32, 1, 1)
    turned = _warp(images, quarter)
    assert torch.allclose(turned, torch.rot90(images, 1, (2, 3)), atol=1e-5) or torch.allclose(
        turned, torch.rot90(images, -1, (2, 3)), atol=1e-5
    )


@pytest.mark.parametrize("name", GEOMETRIC)
def test_matrices_stay_within_their_strength(name):
    generator = torch.Generator().manual_seed(0)
    strength = STRENGTH[name]
    matrices = GEOMETRIC[name](500, strength, generator)
    reach = (matrices - torch.eye(3)).abs().amax(0)
    limit = {"rotate": 0.342021, "translate": 0.4}.get(name, 0.2)  # sin(20 degrees); 2 * 0.2
    assert float(reach.max()) <= limit + 1e-6
    assert float(reach.max()) > 0.95 * limit


@pytest.mark.parametrize(
    ("strengths", "message"),
    [({"blur": 1.0}, r"must be one of rotate, .* got 'blur'"),
     ({"noise": -1.0}, "noise must be finite and >= 0, got -1"),
     ({"scale": float("nan")}, "scale must be finite and >= 0, got nan")],
)  # fmt: skip
def test_refuses(strengths, message):
    with pytest.raises(ValueError, match=message):
        Augment(strengths, 0)
