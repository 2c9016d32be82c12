"""Weights as safetensors with the architecture in the header. Nothing is pickled."""

import json
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from mdlib.core.files import StoreError, atomic


class WeightsError(StoreError):
    """A weights file is missing, broken, or of another architecture."""


def save_weights(path: Path, state: dict[str, Tensor], *, header: dict) -> None:
    """header: JSON values that say what the tensors are; header["architecture"] is checked on
    loading.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    with atomic(path) as temporary:
        safetensors.torch.save_file(
            tensors, temporary, metadata={k: json.dumps(v) for k, v in header.items()}
        )


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict]:
    """(tensors, header).

    Raises WeightsError if the file is missing or not a whole safetensors file.
    """
    if not Path(path).is_file():
        raise WeightsError(f"no weights at {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = {k: _json_or_text(v) for k, v in (file.metadata() or {}).items()}
            return {name: file.get_tensor(name) for name in file.keys()}, header
    except safetensors.SafetensorError as error:
        raise WeightsError(
            f"{path} is not a whole safetensors file ({error}): fetch or train it again"
        ) from None


def _json_or_text(value: str):
    try:
        return json.loads(value)
    except ValueError:
        return value  # files of other makers hold plain text, such as {"format": "pt"}


def load_weights(path: Path, *, architecture: dict) -> dict[str, Tensor]:
    """The tensors of a file whose header names exactly this architecture."""
    state, header = read_weights(path)
    if header.get("architecture") != architecture:
        raise WeightsError(f"{path} holds {header.get('architecture')}, expected {architecture}")
    return state


def check_architecture(header: dict, *, network: str, keys: tuple[str, ...], source) -> dict:
    """The "architecture" of a header, if it is this network's and has these keys; else
    WeightsError.
    """
    made = header.get("architecture")
    if not isinstance(made, dict) or made.get("network") != network or not set(keys) <= made.keys():
        raise WeightsError(f"{source} holds {made}, expected a {network} with {', '.join(keys)}")
    return made


def fit_weights(module: nn.Module, state: dict[str, Tensor], *, source) -> None:
    """Load a state dict strictly: every key there, no key left over, every shape the same."""
    own = module.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{k}: {tuple(state[k].shape)} for {tuple(own[k].shape)}"
        for k in own
        if k in state and own[k].shape != state[k].shape
    ]
    if missing or extra or shapes:
        raise WeightsError(
            f"{source} does not fit: missing {missing[:3]}, left over {extra[:3]}, shapes {shapes[:3]}"
        )
    module.load_state_dict(state)
