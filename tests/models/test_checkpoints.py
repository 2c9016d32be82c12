"""Other makers' checkpoints: tensors come through, code never runs, and what is broken or not the
publisher's is refused.
"""

import argparse
import hashlib
import io
import os
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pooch
import pytest
import torch

from mdlib.core.weights import WeightsError, save_weights
from mdlib.models.checkpoints import fetch_checkpoint, read_checkpoint

BODY = {"conv.weight": torch.arange(6.0).view(2, 3), "norm.bias": torch.ones(2)}
# what torch.save writes, and wrote before 1.6: the published files are of both
FORMATS = {"zip": True, "legacy": False}
each_format = pytest.mark.parametrize("zipped", FORMATS.values(), ids=FORMATS)


def saved(content, *, zipped=True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def same(state, expected=BODY):
    return state.keys() == expected.keys() and all(
        torch.equal(state[key], expected[key]) for key in expected
    )


class Malicious:
    """Unpickling it makes a folder: what a stranger's .pth may do."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


# ---------------------------------------------------------------- reading


@each_format
@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"epoch": 3, "state_dict": s, "optimizer": {"lr": 1}},
        lambda s: {"model": s},
    ],
)
def test_a_state_dict_is_found_bare_or_inside_a_training_checkpoint(tmp_path, zipped, wrap):
    path = tmp_path / "w.pth"
    path.write_bytes(saved(wrap(BODY), zipped=zipped))
    assert same(read_checkpoint(path))


def test_safetensors_are_read_under_any_name(tmp_path):
    save_weights(tmp_path / "w.pth", BODY, header={})
    assert same(read_checkpoint(tmp_path / "w.pth"))


def test_one_network_is_taken_out_of_a_training_checkpoint_without_its_head(tmp_path):
    path = tmp_path / "w.pth"
    state = {"module.q." + key: value for key, value in BODY.items()}
    state |= {"module.k." + key: -value for key, value in BODY.items()}
    path.write_bytes(
        saved(state | {"module.q.fc.0.weight": torch.ones(1), "module.queue": torch.ones(1)})
    )
    assert same(read_checkpoint(path, networks=("absent.", "module.q.", "module."), head="fc."))
    assert "fc.0.weight" in read_checkpoint(path, networks=("module.q.",))
    assert read_checkpoint(path, networks=("module.",), head="queue").keys() == {
        k.removeprefix("module.") for k in state
    } | {"q.fc.0.weight"}


def test_a_head_stays_where_no_network_was_taken_out(tmp_path):
    """It may be one for classes, of a network that has seen labels: it must be left over when
    weights are fitted.
    """
    path = tmp_path / "w.pth"
    path.write_bytes(saved(BODY | {"fc.weight": torch.ones(1)}))
    assert "fc.weight" in read_checkpoint(path, networks=("module.encoder_q.",), head="fc.")


# ---------------------------------------------------------------- what is refused


@each_format
@pytest.mark.parametrize("inside", [False, True])
def test_a_file_that_would_run_code_is_refused_says_so_and_does_not_run(tmp_path, zipped, inside):
    path, trace = tmp_path / "w.pth", tmp_path / "the code ran"
    path.write_bytes(
        saved({**BODY, "x": Malicious(trace)} if inside else Malicious(trace), zipped=zipped)
    )
    with pytest.raises(WeightsError, match=r"w\.pth would run code on reading \(\w+\.mkdir\)"):
        read_checkpoint(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # it really was one


def test_a_checkpoint_with_a_scripts_arguments_is_refused_by_their_class(tmp_path):
    """As DINO's full checkpoints: only the publisher's file of the backbone alone can be read."""
    (tmp_path / "w.pth").write_bytes(saved({"teacher": BODY, "args": argparse.Namespace(lr=1)}))
    with pytest.raises(WeightsError, match=r"argparse.Namespace"):
        read_checkpoint(tmp_path / "w.pth")


@each_format
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, zipped):
    whole = saved(BODY, zipped=zipped)
    for cut in [0, 1, 2, 3, 10, 60, 200, len(whole) // 2, len(whole) - 10, len(whole) - 1]:
        (tmp_path / "w.pth").write_bytes(whole[:cut])
        with pytest.raises(WeightsError, match=r"w\.pth is not a whole"):
            read_checkpoint(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "page", [b"<!DOCTYPE html><title>404</title>", b"PK\x03\x04 no archive", b"\x80\x02 no pickle"]
)
def test_files_of_another_kind_are_refused(tmp_path, page):
    (tmp_path / "w.pth").write_bytes(page * 100)
    with pytest.raises(WeightsError, match=r"w\.pth is not a whole"):
        read_checkpoint(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (torch.ones(3), "holds a Tensor"),
        ([BODY], "holds a list"),
        ({**BODY, "epoch": 3}, "'epoch': 'int'"),
        ({"a": BODY}, "'a': 'dict'"),
    ],
)
def test_anything_but_tensors_by_name_is_refused(tmp_path, content, told):
    (tmp_path / "w.pth").write_bytes(saved(content))
    with pytest.raises(WeightsError, match=told):
        read_checkpoint(tmp_path / "w.pth")


def test_missing_files_and_folders_are_refused(tmp_path):
    for path in (tmp_path / "absent.pth", tmp_path):
        with pytest.raises(WeightsError, match="no weights at"):
            read_checkpoint(path)


# ---------------------------------------------------------------- fetching


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache" / "maskdistill"


@contextmanager
def serving(body: bytes, *, status=200, length=None):
    """A server of this one body.

    Yields its address and the list of the paths that were asked for.
    """
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(length or len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/published/w.pth.tar", asked
    finally:
        server.shutdown()
        server.server_close()


def test_a_checkpoint_is_fetched_once_and_then_found_without_a_network(cache):
    body = saved(BODY)
    digest = hashlib.md5(body).hexdigest()
    with serving(body) as (url, asked):
        path = fetch_checkpoint(url, md5=digest[:8])
        assert fetch_checkpoint(url) == path and asked == ["/published/w.pth.tar"]
    assert fetch_checkpoint(url, md5=digest[:8]) == path == cache / "w.pth.tar"
    assert same(read_checkpoint(path))


@pytest.mark.parametrize(
    ("body", "options", "told"),
    [
        (b"<!DOCTYPE html> try again later", {}, "another file than its publisher's"),
        (saved(BODY)[:100], {"length": len(saved(BODY))}, "cannot be fetched"),
        (b"nothing here", {"status": 404}, "cannot be fetched"),
    ],
    ids=["web page", "torn off", "404"],
)
def test_a_bad_download_is_refused_leaves_nothing_and_says_how_to_do_without(
    cache, body, options, told
):
    with (
        serving(body, **options) as (url, _),
        pytest.raises(WeightsError, match=told) as caught,
    ):
        fetch_checkpoint(url)
    assert url in str(caught.value) and "give the file's path as `weights`" in str(caught.value)
    assert not list(cache.iterdir())


def test_another_file_than_the_publishers_is_refused_even_from_the_cache(cache):
    with serving(saved(BODY)) as (url, _), pytest.raises(WeightsError, match="another file"):
        fetch_checkpoint(url, md5="a04e12f8")
    with serving(saved(BODY)) as (url, asked):
        path = fetch_checkpoint(url)
        path.write_bytes(path.read_bytes()[:-1] + b"!")
        with pytest.raises(WeightsError, match="another file"):
            fetch_checkpoint(url, md5=hashlib.md5(saved(BODY)).hexdigest())
        assert not path.exists() and len(asked) == 1


def test_without_a_network_the_message_says_how_to_do_without(cache):
    with serving(b"") as (url, _):
        pass  # nobody listens there any more
    with pytest.raises(WeightsError, match=r"cannot be fetched.*by other means"):
        fetch_checkpoint(url)
