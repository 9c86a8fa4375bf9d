"""C4 from the hub: huggingface_hub's own file system, against a server here that speaks the hub's protocol."""

import http.server
import json
import re
import threading

import fsspec
import huggingface_hub.utils
import pytest
from texts import ALONE, same, take, write_c4

from llama.data import TextOptions, open_text, train_stream, validation_batches

REPO = "/api/datasets/allenai/c4"


def handler(folder, asked):
    class Hub(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            asked.append(self.path)
            if self.path.startswith(f"{REPO}/tree/main/en"):
                files = [{"type": "file", "path": f"en/{p.name}", "size": p.stat().st_size} for p in folder.iterdir()]
                self.answer(json.dumps([{**file, "oid": "0" * 40} for file in files]).encode())
            elif self.path.startswith(REPO):
                self.answer(json.dumps({"id": "allenai/c4", "sha": "0" * 40, "siblings": []}).encode())
            elif match := re.fullmatch(r"/datasets/allenai/c4/resolve/main/en/(.+)", self.path):
                first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
                self.answer((folder / match[1]).read_bytes()[first : last + 1], status=206)
            else:
                self.answer(b"{}", status=404)

        def answer(self, body, status=200):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    return Hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A server with a C4 of a few documents; returns what it was asked for."""
    asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(write_c4(tmp_path), asked)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = {"endpoint": f"http://127.0.0.1:{server.server_port}", "skip_instance_cache": True}
        monkeypatch.setitem(fsspec.config.conf, "hf", place)
        for name in (
            "reset_sessions",
            "close_session",
        ):  # an old or a new release's: a test before may have been offline
            getattr(huggingface_hub.utils, name, lambda: None)()
        yield asked
        server.shutdown()


def test_c4_of_the_hub_gives_the_batches_of_the_same_files_in_a_folder(tmp_path, hub):
    small = {"tokenizer": "bytes", "max_length": 64, "batch_size": 4, "shuffle_buffer": 8}
    both = [TextOptions(**small), TextOptions(data_path=str(tmp_path), **small)]
    texts = [open_text(options, ALONE) for options in both]
    assert texts[0].fingerprint() == texts[1].fingerprint()
    streams = [train_stream(options, text, ALONE, seed=0) for options, text in zip(both, texts, strict=True)]
    assert same(*(take(stream, 60) for stream in streams))
    assert same(*(list(validation_batches(options, text, ALONE)) for options, text in zip(both, texts, strict=True)))
    assert any("resolve/main/en/c4-validation.00000-of-00001.json.gz" in path for path in hub)
