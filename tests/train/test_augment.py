import pytest
import torch
from bigmodel_ext.train.augment import ALIASES, FLIPS, GEOMETRIC, LIMITS, NAMES, Augment, _warp, colour_axes

STRENGTH = dict.fromkeys(NAMES, 0.2) | {"rotate": 20.0} | dict.fromkeys(FLIPS, 0.5)


def _images():
    return torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(5)) * 0.6 + 0.2


@pytest.mark.parametrize("name", NAMES)
def test_each_changes_every_image_and_obeys_its_seed(name):
    images, before = _images(), _images()
    first, again, other = (Augment({name: STRENGTH[name]}, seed)(images) for seed in (1, 1, 2))
    assert torch.equal(images, before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    changed = (first - images).abs().amax((1, 2, 3)) > 1e-4
    assert bool(changed.all()) if name not in FLIPS else 8 <= int(changed.sum()) <= 24
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
    [({"blur": 1.0}, r"must be one of horizontal_flip, .* noise, flip, lighting, viewpoint, position, got 'blur'"),
     ({"noise": -1.0}, "noise must be finite and >= 0, got -1"),
     ({"rotate": float("nan")}, "rotate must be finite and >= 0, got nan"),
     ({"flip": 1.5}, r"strength of flip must be in \[0, 1\], got 1.5"),
     ({"crop": 1.0}, r"strength of crop must be in \[0, 0.99\], got 1.0"),
     ({"perspective": 0.5}, r"strength of perspective must be in \[0, 0.49\], got 0.5"),
     ({"lighting": 0.1, "contrast": 0.1}, "contrast is given twice: .* in lighting, contrast")],
)  # fmt: skip
def test_refuses(strengths, message):
    with pytest.raises(ValueError, match=message):
        Augment(strengths, 0)


def _colour_images(n=64):
    """Values in the middle, so that nothing is clamped, with channels that go together."""
    generator = torch.Generator().manual_seed(6)
    mix = torch.tensor([[1.0, 0.2, 0.0], [0.8, -0.1, 0.1], [0.5, 0.3, 0.2]])
    return 0.5 + 0.05 * torch.einsum("ij,njhw->nihw", mix, torch.randn(n, 3, 8, 8, generator=generator))


@pytest.mark.parametrize(("name", "dim"), [("horizontal_flip", -1), ("vertical_flip", -2), ("flip", -1)])
def test_a_flip_is_a_flip(name, dim):
    images = _images()
    assert torch.equal(Augment({name: 1.0}, 0)(images), images.flip(dim))
    half = Augment({name: 0.5}, 0)(images)
    same, flipped = ((half == other).flatten(1).all(1) for other in (images, images.flip(dim)))
    assert bool((same | flipped).all())
    assert 8 <= int(flipped.sum()) <= 24


def test_pca_noise_is_one_shift_an_image_along_the_axes():
    """Shifts are V sqrt(L) a: their covariance is strength^2 times that of the pixels, and where the colours lie in a
    plane so do the shifts."""
    images = _colour_images(4000)
    shifts = Augment({"pca_noise": 0.2}, 0)(images) - images
    assert float((shifts - shifts[:, :, :1, :1]).abs().max()) < 1e-6
    assert torch.allclose(shifts[:, :, 0, 0].T.cov() / 0.04, images.movedim(1, 0).flatten(1).cov(), rtol=0.1, atol=1e-4)
    plane = images.clone()
    plane[:, 2] = 0.5 * plane[:, 0] + 0.3 * plane[:, 1]
    moved = (Augment({"pca_noise": 0.2}, 0)(plane) - plane)[:, :, 0, 0]
    assert float((moved[:, 2] - 0.5 * moved[:, 0] - 0.3 * moved[:, 1]).abs().max()) < 1e-5
    assert float(moved.abs().max()) > 0.01


def test_pca_noise_of_one_channel_is_brightness():
    images = _images().repeat(100, 1, 1, 1)
    shifts = (Augment({"pca_noise": 0.1}, 0)(images) - images).flatten(1)
    assert float((shifts - shifts[:, :1]).abs().max()) < 1e-6
    assert float(shifts[:, 0].std()) == pytest.approx(0.1 * float(images.std()), rel=0.05)


def test_pca_noise_takes_its_axes_from_the_given_colours():
    grey = torch.rand(8, 1, 8, 8).expand(-1, 3, -1, -1)  # one axis: all channels alike
    images = _colour_images()
    shifts = (Augment({"pca_noise": 0.2}, 0, colours=grey)(images) - images)[:, :, 0, 0]
    assert torch.allclose(shifts, shifts[:, :1].expand(-1, 3), atol=1e-4)
    axes = colour_axes(images)
    assert torch.allclose(axes @ axes.T, images.movedim(1, 0).flatten(1).cov(correction=0), atol=1e-6)
    with pytest.raises(ValueError, match=r"must have 3 channels as colours has, got \[32, 1, 8, 8\]"):
        Augment({"pca_noise": 0.2}, 0, colours=grey)(_images())


def test_brightness_and_contrast_are_a_shift_and_a_factor():
    images = _images()
    shifts = (Augment({"brightness": 0.2}, 0)(images) - images).flatten(1)
    assert float((shifts - shifts[:, :1]).abs().max()) < 1e-6
    factors = (Augment({"contrast": 0.2}, 0)(images) / images).flatten(1)
    assert float((factors - factors[:, :1]).abs().max()) < 1e-5
    assert 0.8 <= float(factors.min()) < 0.85 < 1.15 < float(factors.max()) <= 1.2


def test_sharpness_sharpens_or_blurs():
    """Differences between neighbours grow in some images and shrink in others, and the mean stays."""
    images = _images().repeat(4, 1, 1, 1)
    changed = Augment({"sharpness": 0.5}, 0)(images)
    steps = [x[..., 1:-1, 1:-1].diff(dim=-1).square().mean((1, 2, 3)) for x in (images, changed)]
    assert 40 <= int((steps[1] > 1.05 * steps[0]).sum()) <= 88
    assert 40 <= int((steps[1] < 0.95 * steps[0]).sum()) <= 88
    with pytest.raises(ValueError, match=r"at least 3x3 for sharpness, got \[1, 1, 2, 8\]"):
        Augment({"sharpness": 0.5}, 0)(torch.rand(1, 1, 2, 8))


def test_noise_has_the_standard_deviation_it_says():
    noise = Augment({"noise": 0.02}, 0)(_images()) - _images()
    assert float(noise.std()) == pytest.approx(0.02, rel=0.05)
    assert float(noise.mean((2, 3)).abs().max()) < 0.02  # each pixel has its own


def test_a_crop_is_a_window_of_the_image():
    """The coordinates' image cropped: still linear, its range inside the old one and as wide as the window."""
    ramp = torch.linspace(0.0, 1.0, 64).expand(200, 1, 64, 64)
    cropped = Augment({"crop": 0.5}, 0)(ramp)
    cropped = cropped[:, 0, 1:-1, 1:-1]  # the border may mix with the outside
    assert torch.allclose(cropped, cropped[:, :1].expand_as(cropped), atol=1e-5)
    widths = (cropped[:, 0, -1] - cropped[:, 0, 0]) * 63 / 61
    assert 0.49 <= float(widths.min()) < 0.55
    assert 0.95 < float(widths.max()) <= 1.0
    steps = cropped[:, 0].diff(dim=1)
    assert torch.allclose(steps, steps[:, :1].expand_as(steps), atol=1e-4)
    assert float(cropped[:, 0, 5].max() - cropped[:, 0, 5].min()) > 0.3  # anywhere


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_what_it_stands_for(alias):
    images = _colour_images()
    named = Augment(dict.fromkeys(ALIASES[alias], 0.2), 3)(images)
    assert torch.equal(Augment({alias: 0.2}, 3)(images), named)
    assert not torch.equal(named, images)


@pytest.mark.parametrize("name", NAMES)
def test_examples_of_a_batch_differ(name):
    same = _colour_images(1).repeat(16, 1, 1, 1)
    assert len(Augment({name: STRENGTH[name]}, 0)(same).flatten(1).unique(dim=0)) >= (2 if name in FLIPS else 16)


@pytest.mark.parametrize("name", LIMITS)
def test_the_largest_strengths_stay_finite(name):
    changed = Augment({name: LIMITS[name]}, 0)(_colour_images())
    assert bool(changed.isfinite().all())


def test_a_restored_state_goes_on_where_it_was():
    images, augment = _colour_images(), Augment(STRENGTH, 7)
    augment(images)
    state = augment.state()
    expected = augment(images)
    again = Augment(STRENGTH, 0)
    again.restore(state)
    assert torch.equal(again(images), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_and_device_are_the_batchs(dtype):
    images = _colour_images().to(dtype)
    changed = Augment(STRENGTH, 0)(images)
    assert changed.dtype == dtype
    close = Augment(STRENGTH, 0)(images.float())
    assert float((changed.float() - close).abs().mean()) < (0.02 if dtype == torch.bfloat16 else 1e-5)


def test_inputs_that_are_no_images_are_refused():
    with pytest.raises(TypeError, match=r"images must be floating point with values in \[0, 1\], got torch.uint8"):
        Augment({"flip": 0.5}, 0)(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"must be \[batch, channels, height, width\], got \[8, 8\]"):
        Augment({"flip": 0.5}, 0)(torch.zeros(8, 8))
