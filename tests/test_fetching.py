"""Large downloads say how large they are, continue where they stopped, and are checked; those of zoo=small too."""

from __future__ import annotations

import hashlib
import json
import logging
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import write_images
from test_models import hub_cache

from vitsee.data import datasets
from vitsee.errors import UserError
from vitsee.io import fetching
from vitsee.io.fetching import fetch
from vitsee.models import hub, timm_architecture
from vitsee.options import DatasetOptions, ModelOptions
from vitsee.papers.publish import publish

CONTENT = bytes(range(256)) * 8192  # 2 MiB
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server:
    """A server of one file. ranges: which bytes it was asked for. at_once: how many it sends before it breaks off."""

    def __init__(self, content: bytes) -> None:
        self.content, self.ranges, self.at_once = content, [], len(content)
        outer = self

        class Answers(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(200)
                self.end_headers()

            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                outer.ranges.append(asked)
                start = int(asked[6:-1]) if asked else 0
                rest = outer.content[start:]
                if start and not rest:
                    self.send_response(416)
                    return self.end_headers()
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(rest)))
                self.end_headers()
                self.wfile.write(rest[: outer.at_once])
                return None

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self.url = f"http://127.0.0.1:{self.http.server_port}/file.tgz"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    served = Server(CONTENT)
    thread = threading.Thread(target=served.http.serve_forever, args=[0.01])
    thread.start()
    yield served
    served.http.shutdown()
    served.http.server_close()
    thread.join()


def test_a_download_says_how_large_it_is_and_appears_when_it_is_whole(server, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    fetch(server.url, tmp_path / "file.tgz", MD5, "dataset=x")
    assert (tmp_path / "file.tgz").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file.tgz"]
    assert f"dataset=x: downloading 2 MB into {tmp_path}, once" in caplog.text


def test_a_download_that_broke_off_continues_where_it_stopped(server, tmp_path):
    server.at_once = 1_500_000
    with pytest.raises(OSError, match="repeat the command to continue"):
        fetch(server.url, tmp_path / "file.tgz", MD5, "dataset=x")
    assert not (tmp_path / "file.tgz").exists()
    fetch(server.url, tmp_path / "file.tgz", MD5, "dataset=x")
    assert server.ranges == [None, "bytes=1500000-"]
    assert (tmp_path / "file.tgz").read_bytes() == CONTENT


def test_a_download_that_was_whole_before_it_had_its_name_is_not_repeated(server, tmp_path):
    (tmp_path / ".file.tgz.download").write_bytes(CONTENT)
    fetch(server.url, tmp_path / "file.tgz", MD5, "dataset=x")
    assert (tmp_path / "file.tgz").read_bytes() == CONTENT


def test_a_damaged_download_is_removed_and_the_next_one_begins_anew(server, tmp_path):
    (tmp_path / ".file.tgz.download").write_bytes(b"something else")
    with pytest.raises(OSError, match=r"file.tgz was damaged in transit and removed: repeat"):
        fetch(server.url, tmp_path / "file.tgz", MD5, "dataset=x")
    fetch(server.url, tmp_path / "file.tgz", MD5, "dataset=x")
    assert server.ranges == ["bytes=14-", None]


def test_two_processes_download_a_file_once(server, tmp_path):
    both = [
        threading.Thread(target=fetch, args=(server.url, tmp_path / "file.tgz", MD5, "dataset=x"))
        for _ in range(2)
    ]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert len(server.ranges) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file.tgz"]


def test_imagenette_is_downloaded_unpacked_and_read(server, tmp_path, monkeypatch):
    from torchvision.datasets import Imagenette

    content = write_images(tmp_path / "content" / "val", 6).parent
    with tarfile.open(tmp_path / "made.tgz", "w:gz") as tar:
        tar.add(content, arcname="imagenette2-320")
    server.content = (tmp_path / "made.tgz").read_bytes()
    server.at_once = len(server.content) - 10
    url = server.url.replace("file.tgz", "imagenette2-320.tgz")
    known = url, hashlib.md5(server.content).hexdigest()
    monkeypatch.setitem(Imagenette._ARCHIVES, "320px", known)
    asked = DatasetOptions(name="imagenette", kind="imagenette", root=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"downloading dataset=imagenette failed .*to continue"):
        datasets.load(asked, 32)
    assert len(datasets.load(asked, 32)) == 6


class Hub:
    """A hub with one file: what it says of it, and what it sends."""

    def __init__(self, sent: bytes, folder: Path) -> None:
        self.etag, self.size = hashlib.sha256(CONTENT).hexdigest(), len(CONTENT)
        self.sent, self.path = sent, folder / "model.safetensors"

    def download(self, place: str, file: str, revision: str | None) -> str:
        self.path.write_bytes(self.sent)
        return str(self.path)


@pytest.fixture
def of_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import huggingface_hub

    def of_hub(sent: bytes) -> Hub:
        there = Hub(sent, tmp_path)
        monkeypatch.setattr(hub, "require", lambda *args: None)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **k: None)
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: there)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", there.download)
        return there

    return of_hub


def test_weights_of_the_hub_say_how_large_they_are(of_hub, caplog):
    caplog.set_level(logging.INFO)
    there = of_hub(CONTENT)
    model = ModelOptions(name="vit_s32")
    assert hub.fetch_from_hub(model, "timm/vit_s32", None, "model.safetensors") == there.path
    assert "timm/vit_s32 of the Hugging Face hub): downloading 2 MB into " in caplog.text


def test_weights_that_are_damaged_on_the_way_are_removed_and_refused(of_hub):
    there = of_hub(CONTENT[:-1] + b"x")
    with pytest.raises(UserError, match=r"model.safetensors was damaged in transit and removed"):
        hub.fetch_from_hub(ModelOptions(name="vit_s32"), "timm/vit_s32", None, "model.safetensors")
    assert not there.path.exists()


def test_sizes_are_said_as_people_say_them():
    assert [fetching.megabytes(n) for n in (999, 1.5e6, 2.34e9)] == [
        "999 bytes", "2 MB", "2,340 MB",
    ]  # fmt: skip


def test_a_figure_of_zoo_small_needs_no_network_once_its_downloads_are_there(tmp_path, monkeypatch):
    import huggingface_hub

    name = "vit_small_patch32_224.augreg_in21k"
    net = timm_architecture.build(ModelOptions(name="made", timm=name), seed=9).half()
    hub_cache(tmp_path, name, net)
    write_images(tmp_path / "imagenette2-320" / "val", 4, side=64)
    monkeypatch.setenv("VITSEE_CACHE", str(tmp_path))
    look = partial(huggingface_hub.try_to_load_from_cache, cache_dir=tmp_path)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", look)
    monkeypatch.setattr("vitsee.io.reachable._ask", lambda url, seconds: "no route to host")
    words = ["zoo=small", "images=4", "batch_size=4", "untrained=false", "run.device=cpu"]
    words += ["run.workers=0", "run.progress=false", f"run.outputs={tmp_path / 'outputs'}"]
    (written,) = publish(["figure=figE1", *words])
    record = json.loads((written.folder / "figure.json").read_text())
    assert written.folder.name == "figE1-small"
    assert "vit_s32 for vit_base32 (ViT-S/32, ImageNet-21k)" in record["caption"]
    with pytest.raises(UserError, match=r"model=deit_ti16 .* must be downloaded, but .*no route"):
        list(publish(["figure=figE2", *words]))
