"""Fetching the archives of VOC and COCO from publishers or mirrors, and unpacking them safely.

A file that is whole is not fetched again. A download that broke off is kept under another name
(.NAME.<mirror>.part) and goes on from there, where the server can do that. One process at a time
fetches a file: a lock of the operating system, .NAME.lock, lies beside it. An archive is unpacked
beside its place and moved there when it is whole. Nothing is written outside: an archive with a
link, a device or a name that leads out of its folder is refused (VOC, SBD and COCO have none).
Where no checksum is known, an archive must be whole by its own structure, and a zip file by its
own CRCs.
"""

import gzip
import hashlib
import lzma
import os
import shutil
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import Any

import pooch
from tqdm import tqdm

from mdlib.core.files import StoreError, write_text
from mdlib.core.lock import Lock
from mdlib.core.progress import track
from mdlib.data.sources import SOURCES, TERMS, Source

TIMEOUT = 30  # seconds without an answer
# what the libraries raise for an archive that is damaged, or packed or locked in a way of its own
DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
)


class DownloadError(StoreError):
    """A file could not be fetched or is not what it should be; the message says what to do."""


class _AlreadyWhole(Exception):
    """What is kept of an earlier try is as long as the server's file."""


def fetch_dataset(name: str, root: str | Path) -> None:
    """Fetch and unpack all that a data set needs into `root`, and print its licence and terms.

    What was fetched before is left as it is.

    Args:
        name: a key of `sources.SOURCES`.
        root: the folder for the data set.

    Raises:
        ValueError: for an unknown name.
        DownloadError: for what cannot be fetched.
    """
    if name not in SOURCES:
        raise ValueError(
            f"no source is known for data set {name!r}; expected one of {sorted(SOURCES)}"
        )
    print(TERMS[name])
    for source in SOURCES[name]:
        fetch(source, root)


def fetch(source: Source, root: str | Path) -> Path:
    """Fetch a file from the first mirror that has it whole, and unpack it.

    An archive that was put at root by hand is taken as it is.

    Returns:
        The file, or the folder that it filled.

    Raises:
        DownloadError: with what each mirror said, and where the disk has no room.
        StoreError: while another process fetches the file.
    """
    root = Path(root).absolute()
    if source.folder is not None and _mark(root, source.folder, source.file).is_file():
        return root / source.folder
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free / 1e9
    kept = [root / source.file, *(_part(root / source.file, url) for url in source.urls)]
    there = max((path.stat().st_size for path in kept if path.is_file()), default=0) / 1e9
    needed = source.gigabytes * (2 if source.folder else 1) - min(there, source.gigabytes)
    if free < needed:
        raise DownloadError(
            f"{source.file} needs about {needed:.1f} GB in {root}, {free:.1f} GB are free"
        )
    busy = f"{{who}} fetches {source.file} there already: wait until it has ended"
    with Lock(root / f".{source.file}.lock").held(busy=busy):
        path = root / source.file
        if not _is_whole(path, source):
            _fetch_from_mirrors(source, path)
        return unpack(path, root, source=source) if source.folder is not None else path


def _part(path: Path, url: str) -> Path:
    """Where a file is kept while it is fetched from a mirror."""
    return path.with_name(f".{path.name}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part")


def _is_whole(path: Path, source: Source) -> bool:
    """Whether a file is there, and is the publisher's where its checksum is known."""
    return path.is_file() and source.md5 in (None, pooch.file_hash(str(path), alg="md5"))


def _fetch_from_mirrors(source: Source, path: Path) -> None:
    """Fetch a file from the first mirror that has it whole; DownloadError says what each said."""
    said = []
    for url in source.urls:
        part = _part(path, url)
        try:
            _download(url, part, source)
            if _is_whole(part, source):
                os.replace(part, path)
                return
            part.unlink()
            said.append(f"{url}: not the publisher's file, its checksum is another")
        except DownloadError as error:
            said.append(f"{url}: {error}")
        except (OSError, ValueError) as error:  # a bad header is a ValueError
            if (
                getattr(error, "errno", None) is not None
            ):  # of this machine's disk, not of the network
                raise
            answer = getattr(error, "response", None)
            reason = (
                f"HTTP {answer.status_code}"
                if answer is not None
                else f"no connection, or it broke off ({type(error).__name__})"
            )
            said.append(f"{url}: {reason}")
    raise DownloadError(
        f"{source.file} could not be fetched:\n  "
        + "\n  ".join(said)
        + f"\nTry again later, or fetch it another way and put it at {path}"
        + ("; or give the folder of a data set that is unpacked already" if source.folder else "")
    )


def _download(url: str, part: Path, source: Source) -> None:
    """Fetch into `part`, from where it broke off."""

    def look(answer: Any, **_: object) -> None:  # called when the header is there
        if answer.status_code == 416 and answer.headers.get("Content-Range") == f"bytes */{begun}":
            raise _AlreadyWhole
        if answer.status_code == 416:
            file.truncate(0)
            raise DownloadError(
                "what was kept of an earlier try does not fit; the next try begins anew"
            )
        if answer.is_redirect or not answer.ok:
            return  # pooch follows, or raises
        if "html" in answer.headers.get("Content-Type", ""):
            raise DownloadError("an HTML page came instead of the file")
        if answer.status_code != 206:
            file.truncate(0)  # the server begins anew

    try:
        with suppress(_AlreadyWhole), open(part, "ab") as file:
            begun = file.tell()
            headers = {"Accept-Encoding": "identity"} | (
                {"Range": f"bytes={begun}-"} if begun else {}
            )
            every = 0.1 if sys.stderr.isatty() else 10.0  # seconds
            with tqdm(
                total=1, unit="B", unit_scale=True, desc=url.rpartition("/")[2], mininterval=every
            ) as bar:
                pooch.HTTPDownloader(
                    bar, 1 << 16, timeout=TIMEOUT, headers=headers, hooks={"response": look}
                )(url, file, None)
        problem = _what_is_wrong(part, Path(url).suffix, source.lines)
        if problem:
            part.write_bytes(b"")
            raise DownloadError(problem)
    finally:
        if part.is_file() and not part.stat().st_size:
            part.unlink()


def _what_is_wrong(path: Path, suffix: str, lines: int | None) -> str | None:
    """Why a downloaded file cannot be the one that was asked for, or None."""
    with open(path, "rb") as file:
        head = file.read(512).lstrip().lower()
    if not head:
        return "an empty file came"
    if head.startswith((b"<!doctype html", b"<html", b"<head")):
        return "an HTML page came instead of the file"
    if suffix == ".zip" and not zipfile.is_zipfile(path):
        return "what came is not a whole zip archive"
    if suffix in (".tar", ".tgz") and not tarfile.is_tarfile(path):
        return "what came is not a tar archive"
    if lines:
        with open(path, "rb") as file:
            found = sum(1 for _ in file)
        if abs(found - lines) > lines / 100:
            return f"what came has {found:,} lines, the list has about {lines:,}"
    return None


# ---------------------------------------------------------------- unpacking


def unpack(archive: Path, root: Path, *, source: Source) -> Path:
    """Unpack root/source.folder out of a tar or zip file: whole or not at all, over what is there.

    Args:
        archive: the file.
        root: the folder for the data set.
        source: with the folder that the archive fills.

    Returns:
        That folder.

    Raises:
        ValueError: for a source that fills no folder.
        DownloadError: for an archive that is truncated or damaged, that holds something else,
            or one with a link, a device or a name that leads out of its folder.
    """
    if source.folder is None:
        raise ValueError(f"{source.file} is no archive: it is used as it is")
    room = root / f".{source.file}.unpacking"
    shutil.rmtree(room, ignore_errors=True)  # of a run that was killed
    try:
        room.mkdir()
        (_unzip if zipfile.is_zipfile(archive) else _untar)(archive, room)
        if not (room / source.folder).is_dir():
            raise DownloadError(
                f"{archive} holds no folder {source.folder}: is it another archive?"
            )
        _move(room / source.folder, root / source.folder)
    except (*DAMAGE, ValueError) as error:
        raise DownloadError(
            f"{archive} is damaged or unsafe ({error}): delete it and fetch it again"
        ) from None
    finally:
        shutil.rmtree(room, ignore_errors=True)
    write_text(_mark(root, source.folder, source.file), "")
    return root / source.folder


def _mark(root: Path, folder: str, file: str) -> Path:
    """The file that says that an archive was unpacked whole; it goes when its folder is deleted."""
    return root / folder / f".{file}.unpacked"


def _untar(archive: Path, room: Path) -> None:
    """Unpack a tar file; one whose end is missing is a TarError."""
    with tarfile.open(archive) as file:
        members = file.getmembers()
        file.fileobj.seek(file.offset)
        # tarfile takes a broken header for the end
        if file.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("the end is missing")
        while file.fileobj.read(1 << 20):  # to the end: there stands the checksum of a packed one
            pass
        _refuse(archive, ((m.name, m.isfile() or m.isdir()) for m in members))
        shown = track(members, total=len(members), what=f"unpacking {archive.name}")
        file.extractall(room, members=shown, filter="data")


def _unzip(archive: Path, room: Path) -> None:
    """Unpack a zip file."""
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        kinds = (stat.S_IFMT(m.external_attr >> 16) for m in members)  # 0 where none is written
        plain = (kind in (0, stat.S_IFREG, stat.S_IFDIR) for kind in kinds)
        _refuse(archive, zip((m.filename for m in members), plain, strict=True))
        for member in track(members, total=len(members), what=f"unpacking {archive.name}"):
            file.extract(member, room)


def _refuse(archive: Path, members: Iterable[tuple[str, bool]]) -> None:
    """Refuse an archive with what is no plain file or folder, or with a name that leads out of it.

    Args:
        archive: for the message.
        members: the name of each, and whether it is a plain file or a folder.
    """
    for name, plain in members:
        place = PureWindowsPath(name)  # knows both kinds of slashes, and drives
        if not plain or place.anchor or ".." in place.parts:
            what = "leads out of its folder" if plain else "is a link or a device"
            raise DownloadError(
                f"{archive} is unsafe: {name!r} {what}. Delete it and fetch it again"
            )


def _move(source: Path, target: Path) -> None:
    """A folder into its place by one rename; where there is one already, its content over that."""
    if source.is_dir() and target.is_dir():
        for child in source.iterdir():
            _move(child, target / child.name)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
