"""A folder over HTTP on the loopback, as TensorStore reads it: with ranges of bytes."""

import contextlib
import http.server
import pathlib
import re
import threading
from collections.abc import Iterator

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class Served:
    """What a server of a folder was asked for.

    ``stalled`` is set when a file is asked for whose path ends in ``stall``; the answer waits for
    ``go_on``.
    """

    def __init__(self, stall: str | None) -> None:
        self.stall = stall
        self.stalled = threading.Event()
        self.go_on = threading.Event()
        self.requests: list[str] = []
        self.url = ""


def _part(data: bytes, asked: str) -> tuple[int, bytes]:
    """Where the range begins, and its bytes."""
    found = _RANGE.fullmatch(asked)
    assert found is not None, asked
    first, last = found.groups()
    if not first:
        start = max(0, len(data) - int(last))
        return start, data[start:]
    return int(first), data[int(first) : int(last) + 1 if last else None]


@contextlib.contextmanager
def served(folder: pathlib.Path, stall: str | None = None) -> Iterator[Served]:
    """Serve a folder; query strings and passwords are taken and ignored."""
    state = Served(stall)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state.requests.append(self.path)
            path = self.path.split("?")[0]
            if state.stall is not None and path.endswith(state.stall):
                state.stalled.set()
                state.go_on.wait(60)
            file = folder / path.strip("/")
            if not file.is_file():
                self.send_error(404)
                return
            data, asked = file.read_bytes(), self.headers.get("Range")
            if asked is None:
                self._answer(200, data)
                return
            start, part = _part(data, asked)
            stop = start + len(part) - 1
            self._answer(206, part, ("Content-Range", f"bytes {start}-{stop}/{len(data)}"))

        def do_HEAD(self) -> None:
            self.do_GET()

        def _answer(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield state
        finally:
            state.go_on.set()
            server.shutdown()
            thread.join()
