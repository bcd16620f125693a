"""Prism, Beam's portable engine in Go: a program beside this process, which does the work."""

import dataclasses
import pathlib
import shutil
from collections.abc import Sequence

import apache_beam

from launch.engines.base import Asked
from launch.parsers import UsageError

_LOCATION = "--prism_location"
_PACKAGE = "github.com/apache/beam/sdks/v2/go/cmd/prism"


@dataclasses.dataclass(frozen=True, slots=True)
class PrismEngine:
    """Prism on this machine; its workers are threads of this process.

    Beam alone would look for Prism's program on the internet and run whatever it gets. Here it is
    named by ``--prism_location`` or found as ``prism`` on the PATH.
    """

    names: tuple[str, ...] = ("prism", "prismrunner")
    local: bool = True

    def words(self, asked: Asked) -> Sequence[str]:
        """The flags, with the place of the program.

        Raises:
            UsageError: There is no program, or processes are asked for.
        """
        if asked.workers != 1:
            raise UsageError(
                f"--workers {asked.workers} is a number of processes, and with --runner "
                f"{asked.runner} this process works itself; leave it out, or leave out --runner"
            )
        given = _value(asked.words, _LOCATION)
        where = given or shutil.which("prism")
        if where is None:
            raise UsageError(
                f"--runner {asked.runner} needs Prism's program, and there is no prism on the "
                "PATH; nothing is downloaded unasked. Build it with: go install "
                f"{_PACKAGE}@v{apache_beam.__version__}, and give {_LOCATION} FILE"
            )
        if "://" not in where and not pathlib.Path(where).is_file():
            raise UsageError(
                f"{_LOCATION} {where} is no file; give Prism's program, which is built with: go "
                f"install {_PACKAGE}@v{apache_beam.__version__}"
            )
        more = () if given else (f"{_LOCATION}={where}",)
        return ("--runner=PrismRunner", *more, *asked.words)

    def check(self, asked: Asked) -> Sequence[str]:
        """Nothing: the program is there, and all else is this machine's."""
        return ()


def _value(words: Sequence[str], flag: str) -> str | None:
    """What a flag is given among words, the last time."""
    found = None
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == flag:
            found = value if equals else next(iter(words[i + 1 : i + 2]), None)
    return found
