"""A folder over HTTP on the loopback, in a process of its own, that takes its time."""

import contextlib
import functools
import http.server
import multiprocessing
import pathlib
import re
import time
from collections.abc import Iterator
from typing import Any

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")

# It ends by itself, whatever becomes of who started it.
_LONGEST_S = 3600.0


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers GET and HEAD, also for a range of bytes, after a delay."""

    protocol_version = "HTTP/1.1"

    def __init__(self, folder: pathlib.Path, delay_s: float, *args: Any) -> None:
        """Keep what is served."""
        self._folder, self._delay_s = folder, delay_s
        super().__init__(*args)

    def do_GET(self) -> None:
        """Answer."""
        time.sleep(self._delay_s)
        file = self._folder / self.path.split("?")[0].strip("/")
        if not file.is_file():
            self.send_error(404)
            return
        data, match = file.read_bytes(), _RANGE.fullmatch(self.headers.get("Range", ""))
        if match is None:
            self._answer(200, data)
            return
        first, last = match.groups()
        start = int(first) if first else max(0, len(data) - int(last))
        stop = int(last) + 1 if first and last else len(data)
        part = data[start:stop]
        self._answer(206, part, f"bytes {start}-{start + len(part) - 1}/{len(data)}")

    do_HEAD = do_GET

    def _answer(self, status: int, body: bytes, content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        if self.command == "GET":
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class _Server(http.server.ThreadingHTTPServer):
    """Takes many connections at once; with the usual five the sixth waits for a second."""

    daemon_threads = True
    request_queue_size = 256


def _serve(folder: str, delay_s: float, port: Any) -> None:
    handler = functools.partial(_Handler, pathlib.Path(folder), delay_s)
    server = _Server(("127.0.0.1", 0), handler)
    port.put(server.server_address[1])
    server.timeout = 1.0
    until = time.monotonic() + _LONGEST_S
    while time.monotonic() < until:
        server.handle_request()


@contextlib.contextmanager
def served(folder: pathlib.Path, delay_s: float) -> Iterator[str]:
    """Serve a folder while the body runs; gives its URL.

    Args:
        folder: What is served.
        delay_s: How long each answer waits.
    """
    spawn = multiprocessing.get_context("spawn")
    port = spawn.Queue()
    process = spawn.Process(target=_serve, args=(str(folder), delay_s, port), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{port.get(timeout=60)}"
    finally:
        process.terminate()
        process.join()
