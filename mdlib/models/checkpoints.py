"""Checkpoints of other makers: fetched by URL, read without running code, cut to one network.

torch.save writes pickles, and a pickle may run anything when it is read. Here `weights_only=True`
lets tensors and plain values through and nothing else. This is the only module that reads what
torch.save wrote; what this course writes is safetensors (`core.weights`).
"""

import re
from pathlib import Path
from typing import Any

import pooch
import torch
from torch import Tensor

from mdlib.core.weights import WeightsError, read_weights

CACHE = "maskdistill"  # a folder in the user's cache


def read_checkpoint(
    path: str | Path, *, networks: tuple[str, ...] = (), head: str | None = None
) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, or of what torch.save wrote.

    That is a state dict, bare or under "state_dict" or "model".

    Args:
        path: the file.
        networks: prefixes under which a training checkpoint may keep the wanted network beside
            others ("module.encoder_q."). The first that is met is cut off, and keys without it are
            left out. Where none is met, nothing is left out.
        head: what then goes on so ("fc.") is left out, too: a projection head is no part of a
            body. None for no head.

    Raises:
        WeightsError: for a file that is missing, broken, would run code, or holds anything but
            tensors.
    """
    if not _saved_by_torch(path):
        return read_weights(path)[0]
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds: it depends on the byte where a file breaks
        if asked := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise WeightsError(
                f"{path} would run code on reading ({asked[1]}): refused, only tensors are read"
            ) from None
        raise WeightsError(
            f"{path} is not a whole checkpoint ({type(error).__name__}): fetch it again"
        ) from None
    for name in ("state_dict", "model"):  # training scripts keep the optimizer's state beside it
        state = state.get(name, state) if isinstance(state, dict) else state
    if not isinstance(state, dict):
        raise WeightsError(f"{path} holds a {type(state).__name__}, expected tensors by name")
    prefix = next(
        (prefix for prefix in networks if any(key.startswith(prefix) for key in state)), None
    )
    if prefix is not None:
        state = {
            key.removeprefix(prefix): value
            for key, value in state.items()
            if key.startswith(prefix)
        }
        state = {
            key: value for key, value in state.items() if head is None or not key.startswith(head)
        }
    others = {
        key: type(value).__name__ for key, value in state.items() if not isinstance(value, Tensor)
    }
    if others:
        raise WeightsError(
            f"{path} holds {dict(list(others.items())[:3])}, expected nothing but tensors by name"
        )
    return state


def cached_checkpoint(url: str) -> Path:
    """Tell where `fetch_checkpoint` keeps what it fetched from an address."""
    return Path(pooch.os_cache(CACHE)) / url.rsplit("/", 1)[-1]


def fetch_checkpoint(url: str, *, md5: str = "") -> Path:
    """Download a published checkpoint into the user's cache, if it is not there.

    Args:
        url: its address.
        md5: the first digits of its digest, where its publisher names them.

    Returns:
        The file in the cache.

    Raises:
        WeightsError: if the download fails or is another file than the publisher's; it says how to
            do without.
    """
    way_out = "download it by other means and give the file's path as `weights`"
    place = cached_checkpoint(url)
    try:
        path = Path(pooch.retrieve(url, known_hash=None, fname=place.name, path=place.parent))
    except OSError as error:  # the errors of requests are OSErrors, too
        raise WeightsError(f"{url} cannot be fetched ({error}): {way_out}") from None
    if not _saved_by_torch(path) or not pooch.file_hash(path, alg="md5").startswith(md5):
        path.unlink()  # or the next try would find it in the cache
        raise WeightsError(f"{url} gave another file than its publisher's (a web page?): {way_out}")
    return path


def _saved_by_torch(path: str | Path) -> bool:
    """Whether a file begins as torch.save's do: as a zip archive, or a pickle before torch 1.6."""
    if not Path(path).is_file():
        raise WeightsError(f"no weights at {path}")
    with open(path, "rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02")
