"""Which file published weights are, so that a run can record what it was made with."""

from pathlib import Path

from mdlib.models.backbones import PUBLISHED_WEIGHTS
from mdlib.models.checkpoints import fetch_checkpoint
from mdlib.models.encoder import ZOO_ARCHITECTURE, ZOO_WEIGHTS
from mdlib.models.hub import PUBLISHED, fetch_vit


def published_file(network: str, weights: str | None) -> Path | None:
    """Find the file that a network loads for weights that are known by name, and fetch it first.

    Args:
        network: an encoder of `load_encoder`, or a backbone.
        weights: as `load_encoder` and `build_map` take them.

    Returns:
        The file; None where `weights` names a file itself, or nothing is loaded.

    Raises:
        WeightsError: it cannot be fetched.
    """
    if weights in PUBLISHED_WEIGHTS:
        url, md5 = PUBLISHED_WEIGHTS[weights]
        return fetch_checkpoint(url, md5=md5)
    if weights is None and network in PUBLISHED:
        return fetch_vit(network)
    if weights is None and network == ZOO_ARCHITECTURE["name"]:
        return Path(ZOO_WEIGHTS)
    return None
