import pytest
from bigmodel_ext.compress.measure import threads
from torch import nn


@pytest.fixture(scope="package", autouse=True)
def _one_thread():
    """These models are too small to share: on a busy machine waiting for each other costs more than the work."""
    with threads(1):
        yield


@pytest.fixture
def cnn():
    """Two convolutions, one grouped, and a linear layer."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2), nn.Flatten(), nn.Linear(24, 10))
