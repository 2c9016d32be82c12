"""Downloads against a server of this machine: what is whole comes once, what is not is refused by
name, and nothing leaves its folder.
"""

import contextlib
import dataclasses
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from torchvision.datasets import SBDataset
from torchvision.datasets.voc import DATASET_YEAR_DICT

from mdlib.core.files import StoreError
from mdlib.data import download
from mdlib.data.download import DownloadError, fetch, fetch_dataset, unpack
from mdlib.data.sources import SOURCES, TERMS, Source

HTML = b"\n<!DOCTYPE html><html><body>Please log in</body></html>"


class Handler(BaseHTTPRequestHandler):
    """Serves server.files[path] = bytes; the first part of the path says what goes wrong."""

    def do_GET(self):
        kind = self.path.split("/")[1]
        content = self.server.files.get(self.path.rpartition("/")[2], b"")
        asked = self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        if kind == "missing":
            return self.send_error(404)
        if kind == "moved":
            self.send_response(302)
            self.send_header("Location", "/good/" + self.path.rpartition("/")[2])
            return self.end_headers()
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked and kind != "norange" else 0
        if asked and begin >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if begin else 200)
        self.send_header(
            "Content-Type",
            "text/html; charset=utf-8" if kind == "page" else "application/octet-stream",
        )
        if kind == "badlength":
            self.send_header("Content-Length", "many")
        elif kind != "nolength":
            self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        if kind == "gated" and not self.server.gate.is_set():
            self.wfile.write(content[: len(content) // 2])
            self.server.gate.wait(60)
            with contextlib.suppress(OSError):  # its reader was killed
                self.wfile.write(content[len(content) // 2 :])
            return None
        self.wfile.write(
            content[: len(content) // 2] if kind == "half" and not begin else content[begin:]
        )

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """A server with `files` (name -> bytes), `asked` [(path, range)] and `url(kind, name)`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.asked = {}, []
    server.url = lambda kind, name: f"http://127.0.0.1:{server.server_port}/{kind}/{name}"
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def tar(members: dict[str, bytes | tarfile.TarInfo], *, mode: str = "w") -> bytes:
    """A tar file of names -> contents, or names -> a TarInfo that is no plain file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, content in members.items():
            if isinstance(content, bytes):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                content.name = name
                archive.addfile(content)
    return out.getvalue()


def special(kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


def zipped(members: dict[str, bytes], *, link: str | None = None) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o120777 if name == link else 0o100644) << 16
            archive.writestr(info, content)
    return out.getvalue()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def tree(folder) -> dict[str, bytes]:
    """All files below a folder, but for marks and archives at its top."""
    paths = [
        p
        for p in folder.rglob("*")
        if p.is_file() and p.parent != folder and not p.name.endswith(".unpacked")
    ]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


MEMBERS = {"set/a.txt": b"alpha" * 4000, "set/deep/b.txt": b"beta"}


# ---------------------------------------------------------------- fetching


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("set.tar", tar(MEMBERS)),
        ("set.tgz", tar(MEMBERS, mode="w:gz")),
        ("set.zip", zipped(MEMBERS)),
    ],
)
def test_an_archive_is_fetched_unpacked_and_not_fetched_again(server, tmp_path, name, content):
    server.files[name] = content
    source = Source(name, (server.url("good", name),), 0.001, md5(content), "set")
    assert fetch(source, tmp_path / "root") == tmp_path / "root" / "set"
    assert tree(tmp_path / "root") == MEMBERS
    (tmp_path / "root" / name).unlink()  # the archive is no longer needed
    fetch(source, tmp_path / "root")
    assert server.asked == [(f"/good/{name}", None)]
    shutil.rmtree(tmp_path / "root" / "set")  # but a deleted folder comes back
    fetch(source, tmp_path / "root")
    assert tree(tmp_path / "root") == MEMBERS and len(server.asked) == 2


def test_a_file_that_is_no_archive_is_taken_as_it_is_and_once(server, tmp_path):
    server.files["list.txt"] = b"one\ntwo\n"
    source = Source("list.txt", (server.url("good", "list.txt"),), 0.001)
    for _ in range(2):
        assert fetch(source, tmp_path).read_bytes() == b"one\ntwo\n"
    assert len(server.asked) == 1
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".lock"] == ["list.txt"]


def test_mirrors_are_tried_in_their_order_until_one_has_the_file(server, tmp_path):
    good = tar(MEMBERS)
    server.files |= {
        "set.tar": good,
        "page.tar": HTML,
        "other.tar": tar({"set/a.txt": b"tampered"}),
    }
    urls = (
        server.url("missing", "set.tar"),
        server.url("good", "page.tar"),
        server.url("good", "other.tar"),
        server.url("moved", "set.tar"),
    )
    fetch(Source("set.tar", urls, 0.001, md5(good), "set"), tmp_path)
    assert tree(tmp_path) == MEMBERS
    assert [path.split("/")[1] for path, _ in server.asked] == [
        "missing",
        "good",
        "good",
        "moved",
        "good",
    ]


def test_all_that_went_wrong_is_said_with_what_to_do(server, tmp_path):
    server.files |= {
        "set.tar": tar(MEMBERS),
        "page.tar": HTML,
        "text.tar": b"not an archive",
        "empty.tar": b"",
    }
    names = [
        "missing/set.tar",
        "page/set.tar",
        "good/page.tar",
        "good/text.tar",
        "good/empty.tar",
        "good/set.tar",
    ]
    urls = tuple(server.url(*name.split("/")) for name in names)
    source = Source("set.tar", ("http://127.0.0.1:9/set.tar", *urls), 0.001, "0" * 32, "set")
    with pytest.raises(DownloadError) as caught:
        fetch(source, tmp_path)
    lines = str(caught.value).splitlines()
    reasons = [
        "no connection",
        "HTTP 404",
        "HTML page",
        "HTML page",
        "not a tar archive",
        "empty file",
        "checksum",
    ]
    for line, url, reason in zip(lines[1:-1], source.urls, reasons, strict=True):
        assert url in line and reason in line
    assert str(tmp_path / "set.tar") in lines[-1]
    assert [path.name for path in tmp_path.iterdir()] == [".set.tar.lock"]


def test_without_a_network_an_archive_put_there_by_hand_is_taken(tmp_path):
    (tmp_path / "set.tar").write_bytes(tar(MEMBERS))
    source = Source("set.tar", ("http://127.0.0.1:9/set.tar",), 0.001, md5(tar(MEMBERS)), "set")
    fetch(source, tmp_path)
    assert tree(tmp_path) == MEMBERS


# ---------------------------------------------------------------- what broke off


def test_a_broken_download_never_looks_whole_and_goes_on_where_it_stopped(server, tmp_path):
    content = tar(MEMBERS | {"set/large": np.random.default_rng(0).bytes(400_000)})
    server.files["set.tar"] = content
    source = Source("set.tar", (server.url("half", "set.tar"),), 0.001, None, "set")
    with pytest.raises(DownloadError, match="broke off"):
        fetch(source, tmp_path)
    (part,) = tmp_path.glob(".*.part")
    kept = part.read_bytes()
    assert part.name.endswith(".part") and len(kept) > 100_000 and content.startswith(kept)
    fetch(source, tmp_path)
    assert [asked for _, asked in server.asked] == [None, f"bytes={len(kept)}-"]
    assert (tmp_path / "set.tar").read_bytes() == content and len(tree(tmp_path)) == 3
    assert [path.name for path in tmp_path.glob(".*")] == [".set.tar.lock"]


@pytest.mark.parametrize("kind", ["norange", "nolength"])
def test_a_server_that_cannot_go_on_begins_anew(server, tmp_path, kind):
    content = tar(MEMBERS)
    server.files["set.tar"] = content if kind == "norange" else content + b"\0" * 512
    source = Source("set.tar", (server.url(kind, "set.tar"),), 0.001, None, "set")
    digest = hashlib.sha256(source.urls[0].encode()).hexdigest()[:8]
    (tmp_path / f".set.tar.{digest}.part").write_bytes(
        b"x" * 700 if kind == "norange" else content[:700]
    )
    fetch(source, tmp_path)
    assert (
        server.asked[0][1] == "bytes=700-"
        and (tmp_path / "set.tar").read_bytes() == server.files["set.tar"]
    )


def test_a_part_that_is_longer_than_the_file_is_dropped(server, tmp_path):
    server.files["list.txt"] = b"short"
    source = Source("list.txt", (server.url("good", "list.txt"),), 0.001)
    (
        tmp_path / f".list.txt.{hashlib.sha256(source.urls[0].encode()).hexdigest()[:8]}.part"
    ).write_bytes(b"much longer")
    with pytest.raises(DownloadError, match="begins anew"):
        fetch(source, tmp_path)
    assert fetch(source, tmp_path).read_bytes() == b"short"


@pytest.mark.parametrize("name", ["set.zip", "list.txt"])
@pytest.mark.parametrize("right", [True, False])
def test_a_part_that_is_whole_is_not_fetched_again(server, tmp_path, name, right):
    content = server.files[name] = zipped(MEMBERS) if name == "set.zip" else b"one\ntwo\n"
    folder, wanted = "set" if name == "set.zip" else None, md5(content) if right else "0" * 32
    source = Source(name, (server.url("good", name),), 0.001, wanted, folder)
    digest = hashlib.sha256(source.urls[0].encode()).hexdigest()[:8]
    (tmp_path / f".{name}.{digest}.part").write_bytes(content)
    if right:
        fetch(source, tmp_path)
        assert (tmp_path / name).read_bytes() == content
    else:
        with pytest.raises(DownloadError, match="its checksum is another"):
            fetch(source, tmp_path)
    assert server.asked == [(f"/good/{name}", f"bytes={len(content)}-")]
    assert not list(tmp_path.glob(".*.part"))


def test_a_part_needs_no_room_again(server, tmp_path, monkeypatch):
    server.files["list.txt"] = b"0123456789" * 100_000
    source = Source("list.txt", (server.url("good", "list.txt"),), 0.001)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=400_000))
    with pytest.raises(DownloadError, match=r"list.txt needs about"):
        fetch(source, tmp_path)
    digest = hashlib.sha256(source.urls[0].encode()).hexdigest()[:8]
    (tmp_path / f".list.txt.{digest}.part").write_bytes(server.files["list.txt"][:700_000])
    fetch(source, tmp_path)
    assert (tmp_path / "list.txt").read_bytes() == server.files["list.txt"]


def test_a_list_with_another_number_of_lines_is_refused(server, tmp_path):
    server.files["list.txt"] = b"404: Not Found"
    source = Source("list.txt", (server.url("good", "list.txt"),), 0.001, lines=3)
    with pytest.raises(DownloadError, match="has 1 lines, the list has about 3"):
        fetch(source, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".list.txt.lock"]
    server.files["list.txt"] = b"a\nb\nc"
    fetch(source, tmp_path)


def test_after_a_header_that_is_wrong_the_next_mirror_is_asked(server, tmp_path):
    server.files["list.txt"] = b"one"
    urls = tuple(server.url(kind, "list.txt") for kind in ("badlength", "good"))
    fetch(Source("list.txt", urls, 0.001), tmp_path)
    assert len(server.asked) == 2


def test_a_part_is_kept_when_a_page_comes_instead_of_the_rest(server, tmp_path):
    source = Source("set.tar", (server.url("page", "set.tar"),), 0.001, None, "set")
    part = tmp_path / f".set.tar.{hashlib.sha256(source.urls[0].encode()).hexdigest()[:8]}.part"
    part.write_bytes(b"12345")
    server.files["set.tar"] = HTML
    with pytest.raises(DownloadError, match="HTML page"):
        fetch(source, tmp_path)
    assert part.read_bytes() == b"12345"


@pytest.mark.parametrize("name", ["set.zip", "set.tar", "set.tgz"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
def test_a_truncated_archive_is_refused_even_where_no_length_and_no_checksum_tell(
    server, tmp_path, name, share
):
    # 512 of header, 1024 of content
    members = {f"set/{i}.txt": b"0123456789" * 60 for i in range(30)}
    content = {
        "set.zip": zipped(members),
        "set.tar": tar(members),
        "set.tgz": tar(members, mode="w:gz"),
    }[name]
    server.files[name] = content[: int(len(content) * share)]
    with pytest.raises(DownloadError, match=r"whole zip|damaged"):
        fetch(Source(name, (server.url("nolength", name),), 0.001, None, "set"), tmp_path)
    assert not tree(tmp_path)


def test_a_full_disk_is_said_before_anything_is_fetched(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3_000_000_000))
    with pytest.raises(DownloadError, match=r"set.tar needs about 4.0 GB .* 3.0 GB are free"):
        fetch(Source("set.tar", (server.url("good", "set.tar"),), 2.0, None, "set"), tmp_path)
    assert not server.asked


def test_a_fault_of_the_disk_is_no_fault_of_the_mirror(server, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    server.files["list.txt"] = b"one"
    monkeypatch.setattr(download, "_download", full)
    with pytest.raises(OSError, match="No space"):
        fetch(Source("list.txt", (server.url("good", "list.txt"),), 0.001), tmp_path)


FETCH = """
import sys
from pathlib import Path
from mdlib.data.download import fetch
from mdlib.data.sources import Source
fetch(Source("set.zip", (sys.argv[1],), 0.001, None, "set"), Path(sys.argv[2]))
"""


def start(server, folder, kind="good"):
    """A process that fetches set.zip into the folder."""
    command = [sys.executable, "-c", FETCH, server.url(kind, "set.zip"), str(folder)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_until(true):
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


LARGE = MEMBERS | {"set/large": np.random.default_rng(0).bytes(400_000)}


def test_a_second_process_is_told_who_fetches(server, tmp_path):
    server.files["set.zip"] = zipped(LARGE)
    server.gate = threading.Event()
    first = start(server, tmp_path, "gated")
    wait_until(lambda: server.asked)
    with pytest.raises(StoreError, match=f"process {first.pid}, since .* fetches set.zip there"):
        fetch(Source("set.zip", (server.url("good", "set.zip"),), 0.001, None, "set"), tmp_path)
    server.gate.set()
    assert first.wait(60) == 0 and tree(tmp_path) == LARGE


def test_a_fetch_that_was_killed_goes_on(server, tmp_path):
    server.files["set.zip"] = zipped(LARGE)
    server.gate = threading.Event()
    first = start(server, tmp_path, "gated")
    wait_until(lambda: any(part.stat().st_size for part in tmp_path.glob(".*.part")))
    first.kill()
    first.wait()
    server.gate.set()
    kept = max(part.stat().st_size for part in tmp_path.glob(".*.part"))
    source = Source("set.zip", (server.url("gated", "set.zip"),), 0.001, None, "set")
    fetch(source, tmp_path)
    assert server.asked[-1][1] == f"bytes={kept}-" and tree(tmp_path) == LARGE
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"set", "set.zip", ".set.zip.lock"}


def test_a_file_that_is_not_the_publishers_is_dropped_and_fetched_again(server, tmp_path):
    server.files["set.zip"] = zipped(MEMBERS)
    source = Source(
        "set.zip", (server.url("good", "set.zip"),), 0.001, md5(server.files["set.zip"]), "set"
    )
    (tmp_path / "set.zip").write_bytes(zipped({"set/a.txt": b"another"}))
    fetch(source, tmp_path)
    assert tree(tmp_path) == MEMBERS
    wrong = dataclasses.replace(source, file="b.zip", md5="0" * 32)
    with pytest.raises(DownloadError, match="its checksum is another"):
        fetch(wrong, tmp_path)
    assert not list(tmp_path.glob("*b.zip*.part")) and not (tmp_path / "b.zip").exists()


# ---------------------------------------------------------------- unpacking


REFUSED = {
    "up.tar": tar({"set/a": b"1", "../evil": b"2"}),
    "inner.tar": tar({"set/a": b"1", "set/../../evil": b"2"}),
    "symlink.tar": tar({"set/a": b"1", "set/out": special(tarfile.SYMTYPE, "../../evil")}),
    "absolute-link.tar": tar({"set/a": b"1", "set/out": special(tarfile.SYMTYPE, "/etc")}),
    "through-link.tar": tar({"set/out": special(tarfile.SYMTYPE, "../.."), "set/out/evil": b"2"}),
    "hardlink.tar": tar({"set/a": b"1", "set/out": special(tarfile.LNKTYPE, "../evil")}),
    "device.tar": tar({"set/a": b"1", "set/null": special(tarfile.CHRTYPE)}),
    "inner-link.tar": tar({"set/a": b"1", "set/b": special(tarfile.SYMTYPE, "a")}),
    "inner-hardlink.tar": tar({"set/a": b"1", "set/b": special(tarfile.LNKTYPE, "set/a")}),
    "pipe.tar": tar({"set/a": b"1", "set/pipe": special(tarfile.FIFOTYPE)}),
    "deep-links.tar": tar(  # CVE-2025-4517: a path too long to be resolved
        {
            "/".join(["set", *["d" * 247] * i, "l"]): special(tarfile.SYMTYPE, "../" * (i + 3))
            for i in range(16)
        }
    ),
    "drive.tar": tar({"set/a": b"1", "C:/evil": b"2"}),
    "backslash.zip": zipped({"set/a": b"1", "..\\evil": b"2"}),
    "up.zip": zipped({"set/a": b"1", "set/../../evil": b"2"}),
    "absolute.zip": zipped({"set/a": b"1", "/etc/evil": b"2"}),
    "symlink.zip": zipped({"set/a": b"1", "set/out": b"/etc"}, link="set/out"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_leave_the_folder_is_refused_and_nothing_is_kept(tmp_path, name):
    root = tmp_path / "root"
    root.mkdir()
    (root / name).write_bytes(REFUSED[name])
    with pytest.raises(DownloadError, match="unsafe"):
        unpack(root / name, root, source=Source(name, (), 0, None, "set"))
    assert [p.name for p in tmp_path.rglob("*")] == ["root", name]


@pytest.mark.parametrize("evil", ["../evil", "set/../../evil", "/{}/evil", "C:/evil", "..\\evil"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_no_name_of_an_archive_writes_outside_its_folder(tmp_path, kind, evil):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    root.mkdir()
    elsewhere.mkdir()
    members = {"set/a": b"1", evil.format(elsewhere): b"2"}
    (root / "archive").write_bytes((tar if kind == "tar" else zipped)(members))
    with contextlib.suppress(DownloadError):  # names are refused, or made harmless
        unpack(root / "archive", root, source=Source("archive", (), 0, None, "set"))
    there = {p.relative_to(tmp_path).parts[:2] for p in tmp_path.rglob("*")}
    assert there <= {("root",), ("elsewhere",), ("root", "archive"), ("root", "set")}


def test_a_zip_with_a_changed_byte_is_refused_whole(tmp_path):
    content = bytearray(zipped(MEMBERS))
    content[content.index(b"beta")] ^= 1
    (tmp_path / "set.zip").write_bytes(content)
    with pytest.raises(DownloadError, match=r"damaged.*b.txt.*delete it"):
        unpack(tmp_path / "set.zip", tmp_path, source=Source("set.zip", (), 0, None, "set"))
    assert not (tmp_path / "set").exists()


def changed(content, place, value):
    """Bytes with other ones at a place."""
    return content[:place] + value + content[place + len(value) :]


def with_entry(content, offset, value):
    """A zip with another value in the entry of its directory."""
    return changed(content, content.index(b"PK\x01\x02") + offset, value)


NOISE = {"set/a": np.random.default_rng(0).bytes(50_000)}
GZ, XZ = tar(NOISE, mode="w:gz"), tar(NOISE, mode="w:xz")
DAMAGED = {
    "the CRC of a tgz": changed(GZ, len(GZ) - 8, bytes([GZ[-8] ^ 255])),
    "a byte of a tgz": changed(GZ, 20_000, bytes([GZ[20_000] ^ 255])),
    "the end of a tgz": GZ[:-9],
    "a byte of an xz": changed(XZ, 20_000, bytes([XZ[20_000] ^ 255])),
    "a password": with_entry(zipped(MEMBERS), 8, b"\1"),
    "an unknown method": with_entry(zipped(MEMBERS), 10, b"\x63\0"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_whatever_is_wrong_with_an_archive_is_a_download_error(tmp_path, what):
    (tmp_path / "archive").write_bytes(DAMAGED[what])
    with pytest.raises(DownloadError, match="damaged or unsafe"):
        unpack(tmp_path / "archive", tmp_path, source=Source("archive", (), 0, None, "set"))
    assert [p.name for p in tmp_path.iterdir()] == ["archive"]


def test_another_archive_is_refused(tmp_path):
    (tmp_path / "set.tar").write_bytes(tar({"other/a": b"1"}))
    with pytest.raises(DownloadError, match="no folder set"):
        unpack(tmp_path / "set.tar", tmp_path, source=Source("set.tar", (), 0, None, "set"))
    assert [p.name for p in tmp_path.iterdir()] == ["set.tar"]


def test_two_archives_fill_one_folder_and_a_bad_one_leaves_it_as_it_was(tmp_path):
    """As VOC 2007's trainval and test do."""
    first = {"kit/VOC/a.txt": b"1", "kit/VOC/images/1.jpg": b"one"}
    second = {"kit/VOC/images/2.jpg": b"two", "kit/VOC/lists/test.txt": b"2"}
    # bad: cut in a header
    contents = {"first.tar": tar(first), "bad.tar": tar(second)[:1100], "second.tar": tar(second)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    unpack(tmp_path / "first.tar", tmp_path, source=Source("first.tar", (), 0, None, "kit/VOC"))
    with pytest.raises(DownloadError, match="damaged"):
        unpack(tmp_path / "bad.tar", tmp_path, source=Source("bad.tar", (), 0, None, "kit/VOC"))
    assert tree(tmp_path) == first
    unpack(tmp_path / "second.tar", tmp_path, source=Source("second.tar", (), 0, None, "kit/VOC"))
    assert tree(tmp_path) == first | second


def test_what_a_killed_run_left_is_no_part_of_the_folder(tmp_path):
    left = tmp_path / ".set.tar.unpacking" / "set"
    left.mkdir(parents=True)
    (left / "half.txt").write_bytes(b"ha")
    (tmp_path / "set.tar").write_bytes(tar(MEMBERS))
    unpack(tmp_path / "set.tar", tmp_path, source=Source("set.tar", (), 0, None, "set"))
    assert tree(tmp_path) == MEMBERS and not left.exists()


# ---------------------------------------------------------------- sources


def test_checksums_are_those_that_torchvision_lists():
    known = {
        entry["filename"]: entry["md5"]
        for year, entry in DATASET_YEAR_DICT.items()
        if year in ("2012", "2007", "2007-test")
    }
    known[SBDataset.filename] = SBDataset.md5
    written = {
        source.file: source.md5 for sources in SOURCES.values() for source in sources if source.md5
    }
    assert written == known


def test_each_mirror_holds_the_same_file():
    for sources in SOURCES.values():
        for source in sources:
            assert len(source.urls) >= 2 and all(
                url.endswith(f"/{source.file}") for url in source.urls
            )


def test_a_data_set_is_fetched_with_its_terms_said(server, tmp_path, monkeypatch, capsys):
    server.files |= {"a.zip": zipped({"x/1": b"1"}), "b.txt": b"2"}
    sources = (
        Source("a.zip", (server.url("good", "a.zip"),), 0.001, None, "x"),
        Source("b.txt", (server.url("good", "b.txt"),), 0.001),
    )
    monkeypatch.setitem(download.SOURCES, "coco", sources)
    fetch_dataset("coco", tmp_path)
    assert (tmp_path / "x" / "1").read_bytes() == b"1" and (tmp_path / "b.txt").read_bytes() == b"2"
    assert TERMS["coco"] in capsys.readouterr().out and "CC BY 4.0" in TERMS["coco"]
    assert TERMS.keys() == SOURCES.keys()


def test_an_unknown_data_set_has_no_source(tmp_path):
    with pytest.raises(ValueError, match=r"'imagenet'.*'coco', 'voc2007', 'voc2012'"):
        fetch_dataset("imagenet", tmp_path)
