"""Maps, instances and overlays for new pictures, from a finished run.

    model = MaskDistill.from_run(RunArtifacts(Path("reports/demo")))
    labels, masks = model.predict(image)

or `python -m mdlib predict IMAGES --run RUN`.
"""

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision.models.detection import MaskRCNN

from mdlib.core.colours import WHITE, class_colours, overlay
from mdlib.core.files import (
    StoreError,
    atomic,
    digest_bytes,
    digest_file,
    read_json,
    sync,
    write_json,
)
from mdlib.core.label_map import void_of, write_label_map
from mdlib.core.lock import Lock
from mdlib.core.mask import Mask, is_file_of_masks, write_masks
from mdlib.data import InMemory
from mdlib.data.folder import INSTANCES, RESULTS, PictureFiles, identity, open_pictures
from mdlib.data.images import ImageError
from mdlib.data.listing import preview
from mdlib.data.names import shown
from mdlib.method import crf, detector, segmenter
from mdlib.method.segmenter import Segmenter
from mdlib.run.artifacts import RunArtifacts
from mdlib.run.identity import device, library_digest, versions

SURE = 0.3  # detections from this score on are drawn; all are in instances.json
LARGEST = 2_000_000  # pixels in which the networks see a picture; a larger one is shrunk for them
# of the CRF: pixels, and pixels times outputs, of which one takes about 95 bytes of memory where
# every pixel has another colour; so 20 megapixels take less than 3 GB
CRF_LARGEST, CRF_LARGEST_WORK = 700_000, 18_000_000
PARTS = ".parts"  # what is done, until all is done
RUN_FOLDERS = ("artifacts", "export", "figures", "notebooks", "predictions")  # folders of a run
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # what stops the next picture as well


@dataclass(frozen=True)
class MaskDistill:
    """What a run has learned, for new pictures.

    Attributes:
        detector: Mask R-CNN, in eval mode.
        segmenter: DeepLab, in eval mode.
        side: pixels of the square in which the segmenter sees a picture.
        classes: names of the class indices.
        cluster_to_class: (1 + k,) int64 class of background and of each cluster, -1 without one.
        crf: settings of the CRF, keywords of `dense_crf`, or None to leave it out.
    """

    detector: MaskRCNN
    segmenter: Segmenter
    side: int
    classes: tuple[str, ...]
    cluster_to_class: np.ndarray
    crf: crf.CrfSettings | None

    @classmethod
    def from_run(cls, run: RunArtifacts) -> "MaskDistill":
        """The trained networks of a run.

        Raises:
            StoreError: where stage 02, 03 or 05 has not run.
            WeightsError: for broken weights.
        """
        clusters, crf_settings = run.clusters(), run.crf()
        if crf_settings is not None and not crf.available():
            print("the run used a CRF, which is not installed here: maps are the network's own")
            crf_settings = None
        mask_rcnn = run.detector()
        deeplab, side = run.segmenter()
        return cls(
            detector=mask_rcnn,
            segmenter=deeplab,
            side=side,
            classes=clusters.classes,
            cluster_to_class=clusters.cluster_to_class,
            crf=crf_settings,
        )

    def predict(
        self, image: np.ndarray, *, image_id: str = "image"
    ) -> tuple[np.ndarray, list[Mask]]:
        """Segment a new picture and find its objects.

        Args:
            image: (H, W, 3) uint8 RGB.
            image_id: what its masks name it.

        Returns:
            The map as `labels` gives it, and the detector's masks with clusters, best first.
        """
        seen = InMemory({image_id: shrink(image, LARGEST)})
        (masks,) = detector.predict(self.detector, seen, batch=1, device=device())
        return self.labels(image), [_enlarged(mask, image.shape[:2]) for mask in masks]

    def labels(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (H, W) clusters, 0 background and 1 + cluster; see label_map."""
        image_hw, image = image.shape[:2], shrink(image, LARGEST)
        one = InMemory({"image": image})
        (logits,) = segmenter.predict_logits(
            self.segmenter, one, side=self.side, batch=1, device=device()
        )
        if self.crf is None:
            labels = segmenter.label_map(logits, image_hw=image.shape[:2])
        else:
            most = min(CRF_LARGEST, CRF_LARGEST_WORK // len(logits))
            one = InMemory({"image": shrink(image, most)})
            (labels,) = segmenter.refined_maps([logits.numpy()], one, self.crf, workers=1)
        return resize_nearest(labels, image_hw)

    def digest(self) -> str:
        """A digest of all that a prediction depends on besides the picture."""
        weights = [*self.detector.state_dict().values(), *self.segmenter.state_dict().values()]
        settings = (
            self.side,
            self.detector.transform.min_size,
            self.classes,
            self.cluster_to_class.tolist(),
            self.crf,
        )
        return digest_bytes(
            repr(settings).encode(), *(weight.cpu().numpy().tobytes() for weight in weights)
        )


def shrink(image: np.ndarray, most: int) -> np.ndarray:
    """A picture (H, W, 3) uint8 of at most about `most` pixels; a smaller one as it is."""
    height, width = image.shape[:2]
    scale = (most / (height * width)) ** 0.5
    if scale >= 1:
        return image
    size = max(1, round(scale * width)), max(1, round(scale * height))
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def resize_nearest(labels: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """(h, w) of any dtype -> (H, W): each pixel has the value at its place."""
    if labels.shape == tuple(image_hw):
        return labels
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for new, old in zip(image_hw, labels.shape, strict=True)
    )
    # column by column in memory, as masks are encoded: four times as fast
    return labels.T.take(rows, 1).take(columns, 0).T


def _enlarged(mask: Mask, image_hw: tuple[int, int]) -> Mask:
    """A mask at the size of the picture."""
    if mask.size == tuple(image_hw):
        return mask
    return Mask.from_pixels(
        resize_nearest(mask.pixels(), image_hw),
        image_id=mask.image_id,
        score=mask.score,
        cluster=mask.cluster,
    )


def run(paths: list[Path], *, run_dir: Path, out: Path | None) -> int:
    """Predict all pictures into a folder; one that cannot be read or written is a line.

    Written: clusters/ID.png (0 background, 1 + cluster), maps/ID.png (class indices; a cluster
    without a class is void), overlays/ID.png (smaller than a large photograph), and instances.json
    in COCO's format. Until all is done, what is done lies in .parts; a second start with the same
    run and pictures goes on from there. `out` and the folders of the run are no pictures. A folder
    is for one set of pictures, which may grow, and for one process at a time.

    Args:
        paths: files, and folders with all pictures below them; see `data.folder` for the ids.
        run_dir: the finished run.
        out: where to; None: the run's own predictions/.

    Returns:
        How many pictures have no result.

    Raises:
        StoreError: where there is no picture, a stage that is needed has not run, a result would
            replace a picture, what is no result or that of other pictures, another process works
            there, or the disk is full.
        WeightsError: for broken weights.
    """
    out = out or run_dir / "predictions"
    foreign = [
        out,
        run_dir,
        *(out / kind for kind in RESULTS),
        *(run_dir / own for own in RUN_FOLDERS),
    ]
    pictures = open_pictures(paths, without=foreign)
    _keep_what_is_there(out, pictures)  # before the networks: a wrong path is told at once
    model = MaskDistill.from_run(RunArtifacts(run_dir))
    busy = f"another prediction ({{who}}) works in {shown(out)}: wait until it has ended"
    with Lock(out / ".predict.lock").held(busy=busy):
        _keep_what_is_there(out, pictures)  # what another may have written since
        return _predict_all(_Results(out, model, pictures))


def _predict_all(results: "_Results") -> int:
    """Predict what is not there yet; gives how many pictures have no result."""
    out, pictures = results.out, results.pictures
    done = [i for i in range(len(pictures)) if results.part(i)]
    if done:
        print(f"{len(done)} of {len(pictures)} are there already")
    for i in sorted({*range(len(pictures))} - {*done}):
        try:
            print(results.add(i))
            done.append(i)
        except (ImageError, MemoryError, RuntimeError) as error:
            print(f"skipped: {_reason(error, pictures.file_name(i))}")
        except OSError as error:
            if error.errno in NO_ROOM:
                raise StoreError(
                    f"{out}: {error.strerror}. Make room and start again: "
                    f"{len(done)} of {len(pictures)} pictures are kept"
                ) from None
            print(f"skipped: {_reason(error, pictures.file_name(i))}")
    results.finish(sorted(done))
    print(f"{len(done)} of {len(pictures)} pictures: {shown(out)}")
    return len(pictures) - len(done)


def _reason(error: Exception, file_name: str) -> str:
    """Why a picture has no result; an ImageError names its file itself."""
    if isinstance(error, ImageError):
        return str(error)
    return f"{file_name}: {type(error).__name__}: {shown(error)}"


def _keep_what_is_there(out: Path, pictures: PictureFiles) -> None:
    """Refuse a folder for the results where they would replace pictures, or what is no result.

    Nor may it hold results of other pictures, whose maps would be left without their instances.
    """
    read = {identity(path) for path in pictures.paths if os.path.exists(path)}
    results = [out / kind / f"{name}.png" for kind in RESULTS for name in pictures.ids]
    instances = out / INSTANCES
    for path in (*results, instances):
        if path.exists() and identity(path) in read:
            raise StoreError(
                f"{shown(path)} is one of the pictures, and its prediction would replace it: "
                "choose another --out"
            )
    own = is_file_of_masks(instances)
    if instances.exists() and not own:
        raise StoreError(f"{shown(instances)} was not written by `predict`: choose another --out")
    held = [kind for kind in RESULTS if (out / kind).is_dir() and any((out / kind).iterdir())]
    if held and not own and not (out / PARTS).is_dir():
        raise StoreError(
            f"{shown(out)} holds {', '.join(held)} that no prediction wrote: choose another --out"
        )
    if own and (others := _others(instances, pictures)):
        raise StoreError(
            f"{shown(out)} holds the results of {len(others)} other pictures: "
            f"{preview(others)}. Choose another --out, or remove "
            f"{INSTANCES}, {', '.join(RESULTS)} there"
        )


def _others(instances: Path, pictures: PictureFiles) -> list[str]:
    """The files of earlier predictions that are not among the pictures."""
    these = {(name, os.path.abspath(pictures.file_name(i))) for i, name in enumerate(pictures.ids)}
    try:
        before = [(image["name"], image["source"]) for image in read_json(instances)["images"]]
        return [source for name, source in before if (name, source) not in these]
    except (KeyError, TypeError):
        raise StoreError(
            f"{shown(instances)} was not written by `predict`: choose another --out"
        ) from None


class _Results:
    """The results of all pictures, each written when it is there.

    A part, .parts/ID.json, holds a digest of what it was made of (the picture, the networks, the
    code and the libraries), digests of the other files, the picture's size, its masks, and a digest
    of all that. It is written last, and counts where each digest is right.
    """

    def __init__(self, out: Path, model: MaskDistill, pictures: PictureFiles):
        self.out, self.model, self.pictures = out, model, pictures
        code = library_digest("mdlib.run.predict")
        self.made_by = (model.digest(), code, json.dumps(versions()), device())
        self.colours = class_colours(len(model.cluster_to_class))
        kind = np.uint8 if len(model.classes) <= void_of(np.uint8) else np.uint16
        named = model.cluster_to_class
        self.class_of = np.where(named < 0, void_of(kind), named).astype(kind)
        for folder in (*RESULTS, PARTS):
            (out / folder).mkdir(parents=True, exist_ok=True)

    def _path(self, i: int) -> Path:
        """Where the part of picture i lies."""
        return self.out / PARTS / f"{self.pictures.ids[i]}.json"

    def _files(self, i: int) -> dict[str, Path]:
        """The files of picture i by their kind."""
        return {kind: self.out / kind / f"{self.pictures.ids[i]}.png" for kind in RESULTS}

    def _made_of(self, i: int) -> str:
        """A digest of all that the results of picture i depend on."""
        path = self.pictures.paths[i]
        picture = digest_file(path) if path.is_file() else ""  # a pipe would wait for ever
        return digest_bytes(
            *(text.encode() for text in (self.pictures.ids[i], picture, *self.made_by))
        )

    def _digests(self, i: int) -> dict[str, str]:
        """The digests of picture i's files by their kind."""
        return {kind: digest_file(path) for kind, path in self._files(i).items()}

    def part(self, i: int) -> dict[str, Any] | None:
        """The part of picture i; None where there is none, or something has changed since."""
        try:
            part = read_json(self._path(i))
            sealed = {key: part[key] for key in ("made_of", "files", "size", "masks")}
            same = (
                part["digest"] == _digest(sealed)
                and sealed["made_of"] == self._made_of(i)
                and sealed["files"] == self._digests(i)
            )
        except (StoreError, OSError, LookupError, TypeError, RecursionError):
            return None
        return sealed if same else None

    def add(self, i: int) -> str:
        """Predict picture i and write its results; gives a line that says what was found."""
        image_id, model, files = self.pictures.ids[i], self.model, self._files(i)
        made_of = self._made_of(i)  # before it is read: it may be replaced meanwhile
        image = self.pictures.image(i)
        labels, masks = model.predict(image, image_id=image_id)
        write_label_map(files["clusters"], labels)
        write_label_map(files["maps"], self.class_of[labels])
        _write_overlay(files["overlays"], image, labels, masks, self.colours)
        part: dict[str, Any] = {
            "made_of": made_of,
            "files": self._digests(i),
            "size": image.shape[:2],
            "masks": [asdict(mask) for mask in masks],
        }
        write_json(self._path(i), {**part, "digest": _digest(part)})
        sure = sum(mask.score >= SURE for mask in masks)
        found = f"{image_id}: {len(np.setdiff1d(labels, [0]))} clusters, {sure} objects"
        height, width = shrink(image, LARGEST).shape[:2]
        if (height, width) == image.shape[:2]:
            return found
        full = f"{image.shape[1]} x {image.shape[0]}"
        return f"{found} (seen in {width} x {height} of its {full} pixels)"

    def finish(self, done: list[int]) -> None:
        """Write instances.json of the pictures `done`; where these are all, remove their parts."""
        sizes: dict[str, tuple[int, int]] = {}
        for i in done:
            height, width = read_json(self._path(i))["size"]
            sizes[self.pictures.ids[i]] = (height, width)
        if done:  # else an earlier file stays
            write_masks(
                self.out / INSTANCES,
                self._masks(done),
                images=sizes,
                categories=_category_names(self.model),
                more={self.pictures.ids[i]: self._names(i) for i in done},
            )
            sync(self.out / INSTANCES)  # before the parts go
        for i in done if len(done) == len(self.pictures) else ():  # else the next start needs them
            self._path(i).unlink()
        if not any((self.out / PARTS).iterdir()):  # those of other pictures stay
            (self.out / PARTS).rmdir()

    def _names(self, i: int) -> dict[str, str]:
        """What instances.json says of where picture i lies: as it was given, and absolute."""
        file = self.pictures.file_name(i)
        return {"file_name": file, "source": os.path.abspath(file)}

    def _masks(self, done: list[int]) -> Iterator[Mask]:
        """The masks of the pictures `done`, picture by picture."""
        for i in done:
            yield from (Mask(**mask) for mask in read_json(self._path(i))["masks"])


def _digest(part: dict[str, Any]) -> str:
    """A digest of a part's values."""
    return digest_bytes(json.dumps(part, sort_keys=True).encode())


def _category_names(model: MaskDistill) -> list[str]:
    """The name of each cluster in instances.json."""
    names = (shown(model.classes[c]) if c > 0 else "unnamed" for c in model.cluster_to_class[1:])
    return [f"{name} (cluster {j})" for j, name in enumerate(names)]


def _write_overlay(
    path: Path, image: np.ndarray, labels: np.ndarray, masks: list[Mask], colours: np.ndarray
) -> None:
    """The map painted over the picture, and the sure objects as white outlines above it."""
    image = shrink(image, LARGEST)  # a large photograph is painted smaller
    labels = resize_nearest(labels, image.shape[:2])
    present = np.setdiff1d(labels, [0])
    painted = image / 255
    if present.size:
        regions = np.stack([labels == c for c in present])
        painted = overlay(image, regions, colours=[tuple(colours[c]) for c in present])
    sure = [resize_nearest(mask.pixels(), image.shape[:2]) for mask in masks if mask.score >= SURE]
    if sure:
        flat = (painted * 255).round().astype(np.uint8)
        painted = overlay(flat, np.stack(sure), colours=(WHITE,), strength=0.0)
    with atomic(path) as temporary:
        Image.fromarray((painted * 255).round().astype(np.uint8)).save(temporary, format="PNG")
