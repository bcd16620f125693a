"""A folder over HTTP on the loopback for a browser: ranges of bytes, and any origin may read."""

import contextlib
import http.server
import pathlib
import re
import threading
from collections.abc import Iterator

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@contextlib.contextmanager
def served(folder: pathlib.Path) -> Iterator[tuple[str, list[str]]]:
    """The folder's URL, and the paths that were asked for; the server ends with the block."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def do_OPTIONS(self) -> None:
            self._answer(204, b"", ("Access-Control-Allow-Headers", "range"))

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            asked.append(self.path)
            file = folder / self.path.split("?")[0].strip("/")
            if not file.is_file():
                self._answer(404, b"")
                return
            data, wanted = file.read_bytes(), self.headers.get("Range")
            if wanted is None:
                self._answer(200, data)
                return
            first, stop = _part(wanted, len(data))
            told = f"bytes {first}-{stop - 1}/{len(data)}"
            self._answer(206, data[first:stop], ("Content-Range", told))

        def _answer(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Access-Control-Allow-Origin", "*")
            self.send_header("Access-Control-Expose-Headers", "content-range, content-length")
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()


def _part(wanted: str, size: int) -> tuple[int, int]:
    """First byte and the one after the last of a range."""
    found = _RANGE.fullmatch(wanted)
    assert found is not None, wanted
    first, last = found.groups()
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last else size
