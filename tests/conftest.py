"""What the tests share.

One thread: tensors here are tiny, and tests may run beside something heavy.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from mdlib.data import loading
from mdlib.models.encoder import load_encoder

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def workers(monkeypatch):
    """Pictures and batches are prepared by worker processes, as for a GPU."""
    monkeypatch.setitem(loading.WORKERS, "cpu", 2)


@pytest.fixture(scope="session")
def zoo_root() -> Path:
    return Path(__file__).parent.parent / "data" / "zoo"


@pytest.fixture(scope="session")
def random_encoder():
    """The zoo encoder with random weights; tests that change it make a copy first."""
    torch.manual_seed(0)
    return load_encoder("zoo", weights="random", device="cpu")


@pytest.fixture
def pictures() -> torch.Tensor:
    """Two pictures whose sides are no multiple of the patch: (2, 3, 20, 27) uint8."""
    return torch.randint(0, 256, (2, 3, 20, 27), dtype=torch.uint8)
