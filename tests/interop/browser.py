"""Neuroglancer in headless Chromium: a state goes in, the picture of the data comes out.

The page comes from the neuroglancer package, served on the loopback by the package itself; it
answers with a picture once every chunk that is visible has been drawn. The browser draws in
software, and every host but the loopback is unknown to it.
"""

import contextlib
import os
import pathlib
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import neuroglancer
import numpy as np
import numpy.typing as npt
import pytest

Pixels = npt.NDArray[np.uint8]

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-extensions",
    "--disable-sync",
    "--metrics-recording-only",
    "--password-store=basic",
    "--remote-debugging-port=0",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
_LIMIT_S = 120


def chromium() -> str:
    """The browser's program; the test is skipped where there is none, and fails in CI."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found is not None:
            return found
    reason = "needs Chromium on PATH (Debian: apt-get install chromium)"
    if os.environ.get("CI") == "true" or os.environ.get("SEGCLR_BEAM_CI"):
        pytest.fail(reason)
    pytest.skip(reason)


class Window:
    """An open page.

    Args:
        viewer: The package's end of it.
        process: The browser.
        log: Where the browser's own messages go.
    """

    def __init__(
        self, viewer: neuroglancer.Viewer, process: "subprocess.Popen[bytes]", log: pathlib.Path
    ) -> None:
        self.viewer = viewer
        self._process = process
        self._log = log

    def picture(self, state: dict[str, Any], size: tuple[int, int]) -> Pixels:
        """What a state looks like once all of it is loaded: uint8 ``[height, width, 4]``, RGBA."""
        with self.viewer.config_state.txn() as config:
            config.show_ui_controls = False
            config.show_panel_borders = False
            config.viewer_size = list(size)
        self.viewer.set_state(neuroglancer.ViewerState(state))
        for _ in range(5):  # the page may answer before it has its new size
            taken = self._taken()
            if taken.shape[:2] == size[::-1]:
                return taken
        raise AssertionError(f"the page is {taken.shape[1::-1]} pixels where {size} were asked for")

    def _taken(self) -> Pixels:
        """What the page shows, once all of it is loaded."""
        answered = threading.Event()
        answers: list[Any] = []

        def answer(reply: Any) -> None:
            answers.append(reply)
            answered.set()

        self.viewer.async_screenshot(answer)
        if not answered.wait(_LIMIT_S):
            ended, told = self._process.poll(), self._log.read_text(errors="replace")[-2000:]
            raise TimeoutError(f"no picture within {_LIMIT_S} s; browser: {ended}, {told}")
        taken: Pixels = answers[0].screenshot.image_pixels
        return taken


@contextlib.contextmanager
def window() -> Iterator[Window]:
    """A browser with the viewer's page, ended with the block."""
    program = chromium()
    viewer = neuroglancer.Viewer()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        log = pathlib.Path(scratch, "log")
        home = {"HOME": scratch, "XDG_CONFIG_HOME": scratch, "XDG_CACHE_HOME": scratch}
        words = [program, *_FLAGS, f"--user-data-dir={scratch}/profile", viewer.get_viewer_url()]
        with log.open("wb") as out:
            process = subprocess.Popen(
                words, stdout=out, stderr=subprocess.STDOUT, env=os.environ | home
            )
        try:
            yield Window(viewer, process, log)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            neuroglancer.stop()
