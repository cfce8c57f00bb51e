import pytest
from bigmodel_ext.compress.measure import threads


@pytest.fixture(scope="package", autouse=True)
def _one_thread():
    """These models are too small to share: on a busy machine waiting for each other costs more than the work."""
    with threads(1):
        yield
