"""The one place that writes artifacts.

Whatever is written is whole or absent: a temporary name first, then a rename.

Formats: masks as COCO-style JSON with RLE, semantic maps as palette PNG (VOC's), features as .npy,
weights as safetensors with the architecture in the header, everything else JSON. Nothing is
pickled.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
from PIL import Image
from torch import Tensor, nn

from mdlib.core.mask import MaskRecord, encoding_of, mask_area


class StoreError(Exception):
    """Something on disk is missing, broken or not what was expected."""


class WeightsError(StoreError):
    """A weights file is missing, broken, or of another architecture."""


# ---------------------------------------------------------------- files


@contextmanager
def atomic(path: Path):
    """Yields a temporary path beside `path`; renamed to `path` on success, removed on any failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)  # writers that replace the file lose its mode
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value) -> None:
    """Sorted keys and strict JSON: NaN is refused, because other readers cannot read it."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path, **options):
    """The value of a JSON file. options: of json.loads. Raises StoreError."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), **options)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
    except ValueError as error:
        raise StoreError(f"{path} is not JSON: {error}") from None


def digest_bytes(*parts: bytes) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "big"))
        sha.update(part)
    return sha.hexdigest()


def digest_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_folder(path: Path) -> str:
    """Of the names and sizes of all files below a folder, not of their bytes; hidden ones do not
    count.
    """
    found = [
        (p.relative_to(path).as_posix(), p.stat().st_size)
        for p in Path(path).rglob("*")
        if p.is_file()
    ]
    return digest_bytes(
        *(repr(entry).encode() for entry in sorted(found) if "/." not in f"/{entry[0]}")
    )


# ---------------------------------------------------------------- weights


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


# ---------------------------------------------------------------- masks and maps


def write_masks(path: Path, records: Iterable[Mapping]) -> None:
    """COCO-style JSON of predictions.

    A record: {"image_id", "mask" (H, W) bool, "score", and any JSON values}.

    Each is written as it comes: give a generator, and there is never more than one mask in memory.
    """
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write('{"annotations": [')
        for number, record in enumerate(records):
            encoded = encoding_of(record)
            annotation = {key: record[key] for key in record if key != "mask"} | {
                "segmentation": encoded,
                "area": mask_area(encoded),
            }
            file.write(
                (",\n" if number else "\n")
                + json.dumps(annotation, sort_keys=True, allow_nan=False)
            )
        file.write("\n]}\n")


def read_masks(path: Path) -> list[MaskRecord]:
    """What `write_masks` wrote: records with "mask" (H, W) bool again, none of them decoded yet."""

    def record(value: dict):  # called for each object of the file, inner ones first
        others = {key: each for key, each in value.items() if key not in ("segmentation", "area")}
        return MaskRecord(others, value["segmentation"]) if "segmentation" in value else value

    return read_json(path, object_hook=record)["annotations"]


def by_image(records: Iterable[Mapping], ids: list[str]) -> list[list[Mapping]]:
    """Records gathered by image: one list for each of `ids`, empty where an image has none; order
    is kept.

    Raises ValueError for a record of an image that is not among `ids`.
    """
    gathered: dict[str, list[Mapping]] = {image_id: [] for image_id in ids}
    for record in records:
        if record["image_id"] not in gathered:
            raise ValueError(f"a mask of {record['image_id']!r}, which the data set does not hold")
        gathered[record["image_id"]].append(record)
    return list(gathered.values())


def voc_palette() -> list[int]:
    """VOC's 256 colours, flat R, G, B: the bits of a label spread over three channels."""
    label, bit, channel = np.ogrid[:256, :8, :3]
    return ((label >> (3 * bit + channel) & 1) << (7 - bit)).sum(1).ravel().tolist()


def write_label_map(path: Path, labels: np.ndarray) -> None:
    """(H, W) integers in 0-255 -> palette PNG as VOC's."""
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"a label map holds integers, got {labels.dtype}")
    if labels.min() < 0 or labels.max() > 255:
        raise ValueError(f"a label map holds 0-255, got {labels.min()}..{labels.max()}")
    image = Image.fromarray(labels.astype(np.uint8)).convert("L")
    image.putpalette(voc_palette())
    with atomic(Path(path)) as temporary:
        image.save(temporary, format="PNG")


def read_label_map(path: Path) -> np.ndarray:
    """Palette or grey PNG -> (H, W) uint8 labels.

    Raises StoreError for a file that is missing, broken or coloured.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L"):
                raise StoreError(
                    f"{path} is {image.mode}, not a palette: its pixels are colours, not labels"
                )
            return np.array(image)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
    except (OSError, SyntaxError) as error:
        raise StoreError(f"{path} is not a whole PNG: {error}") from None


def write_array(path: Path, array: np.ndarray) -> None:
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)


def read_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
    except (ValueError, EOFError) as error:
        raise StoreError(f"{path} is not a whole .npy file: {error}") from None
