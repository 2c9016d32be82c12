"""Weights as safetensors with the architecture in the header. Nothing is pickled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from mdlib.core.files import StoreError, atomic, sync


class WeightsError(StoreError):
    """A weights file is missing, broken, or of another architecture."""


def save_weights(path: Path, state: Mapping[str, Tensor], *, header: Mapping[str, object]) -> None:
    """Write a safetensors file.

    Args:
        path: where to; a file that is there is replaced.
        state: tensors by name, of any device.
        header: JSON values that say what the tensors are; header["architecture"] is checked on
            loading.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    with atomic(path) as temporary:
        safetensors.torch.save_file(
            tensors, temporary, metadata={k: json.dumps(v) for k, v in header.items()}
        )
        sync(temporary)  # a checkpoint is there to outlive whatever comes


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a safetensors file.

    Returns:
        The tensors by name, on the CPU, and the header: JSON values, or plain text where a value
        is no JSON.

    Raises:
        WeightsError: if the file is missing or not a whole safetensors file.
    """
    if not Path(path).is_file():
        raise WeightsError(f"no weights at {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = {k: _json_or_text(v) for k, v in (file.metadata() or {}).items()}
            names = file.keys()  # a list: the file itself cannot be iterated over
            return {name: file.get_tensor(name) for name in names}, header
    except safetensors.SafetensorError as error:
        raise WeightsError(
            f"{path} is not a whole safetensors file ({error}): fetch or train it again"
        ) from None


def _json_or_text(value: str) -> Any:
    """The value of a header's text."""
    try:
        return json.loads(value)
    except ValueError:
        return value  # files of other makers hold plain text, such as {"format": "pt"}


def load_weights(path: str | Path, *, architecture: Mapping[str, object]) -> dict[str, Tensor]:
    """Read the tensors of a file whose header names exactly this architecture.

    Raises:
        WeightsError: for a file that is missing, broken, or of another architecture.
    """
    state, header = read_weights(path)
    if header.get("architecture") != architecture:
        raise WeightsError(f"{path} holds {header.get('architecture')}, expected {architecture}")
    return state


def check_architecture(
    header: Mapping[str, Any], *, network: str, keys: tuple[str, ...], source: str | Path
) -> dict[str, Any]:
    """Look up the "architecture" of a header.

    Args:
        header: of a weights file.
        network: what architecture["network"] must be.
        keys: what it must have beside that.
        source: the file, for the message.

    Raises:
        WeightsError: if it is another network's, or lacks a key.
    """
    made = header.get("architecture")
    if not isinstance(made, dict) or made.get("network") != network or not set(keys) <= made.keys():
        raise WeightsError(f"{source} holds {made}, expected a {network} with {', '.join(keys)}")
    return made


def fit_weights(module: nn.Module, state: Mapping[str, Tensor], *, source: str | Path) -> None:
    """Load a state dict strictly: every key there, no key left over, every shape the same.

    Args:
        module: is filled in place.
        state: tensors by name.
        source: the file, for the message.

    Raises:
        WeightsError: with the first three of each kind that do not fit.
    """
    own = module.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{k}: {tuple(state[k].shape)} for {tuple(own[k].shape)}"
        for k in own
        if k in state and own[k].shape != state[k].shape
    ]
    if missing or extra or shapes:
        raise WeightsError(
            f"{source} does not fit: missing {missing[:3]}, left over {extra[:3]}, "
            f"shapes {shapes[:3]}"
        )
    module.load_state_dict(state)
