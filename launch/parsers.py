"""What the flags of jobs are made of: values, the flags that all have, parsers that raise.

Imports nothing heavy, so that ``--help`` is quick.
"""

import argparse
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

_CROP = re.compile(",".join([r"(-?\d+):(-?\d+)"] * 3))
_NEGATIVE = re.compile(r"-[\d.]")


class UsageError(ValueError):
    """The command line is wrong: exit status 2, the message alone is shown."""


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise UsageError(f"{message}; see {self.prog} --help")


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """A job of the command line.

    Attributes:
        name: What the user types.
        line: What it does, in a line.
        example: A command that works.
        required: Flags that it cannot do without.
        add_flags: Adds its flags to a parser.
        module: The module whose ``JOBS`` runs it; loaded when it is asked for.
        beam: Whether it is a Beam graph, which ``--graph`` shows.
    """

    name: str
    line: str
    example: str
    required: tuple[str, ...]
    add_flags: Callable[[argparse.ArgumentParser], None]
    module: str = "launch.jobs"
    beam: bool = True


def floats(text: str) -> tuple[float, float, float]:
    """Three numbers ``X,Y,Z``."""
    parts = text.split(",")
    try:
        values = [float(p) for p in parts]
    except ValueError:
        values = []
    if len(values) != 3:
        raise argparse.ArgumentTypeError(f"three numbers X,Y,Z are needed, got {text!r}")
    return (values[0], values[1], values[2])


def integers(text: str) -> tuple[int, int, int]:
    """Three integers ``X,Y,Z``."""
    parts = text.split(",")
    try:
        values = [int(p) for p in parts]
    except ValueError:
        values = []
    if len(values) != 3:
        raise argparse.ArgumentTypeError(f"three integers X,Y,Z are needed, got {text!r}")
    return (values[0], values[1], values[2])


def cube(text: str) -> tuple[int, int, int]:
    """Three integers, or one for all axes."""
    if "," in text:
        return integers(text)
    side = integer(text)
    return (side, side, side)


def cube_or_none(text: str) -> tuple[int, int, int] | str:
    """Three integers, one for all axes, or ``none``."""
    return text if text == "none" else cube(text)


def crop(text: str) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """A box ``X0:X1,Y0:Y1,Z0:Z1`` as its start and its stop."""
    match = _CROP.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"a box X0:X1,Y0:Y1,Z0:Z1 is needed, got {text!r}")
    x0, x1, y0, y1, z0, z1 = (int(n) for n in match.groups())
    return ((x0, y0, z0), (x1, y1, z1))


def steps(text: str) -> tuple[tuple[int, int, int], ...]:
    """Factors of one or several steps, each ``X,Y,Z`` or one number for all axes."""
    return tuple(cube(part) for part in text.split("/"))


def words(text: str) -> tuple[str, ...]:
    """Names between commas."""
    return tuple(w for w in text.split(",") if w)


def number(text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number is needed, got {text!r}") from None


def integer(text: str) -> int:
    """An integer."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"an integer is needed, got {text!r}") from None


def processes(text: str) -> int:
    """A number of processes, at least 1."""
    count = integer(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"at least 1 process is needed, got {count}")
    return count


def common(parser: argparse.ArgumentParser, beam: bool = True) -> None:
    """Add the flags that every job has, and those of every Beam graph."""
    group = parser.add_argument_group("running")
    group.add_argument("--config", metavar="FILE", help="YAML or JSON file that gives flags values")
    group.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    group.add_argument("--json", action="store_true", help="end stdout with a one-line summary")
    group.add_argument("--quiet", action="store_true", help="no plan and no progress on stderr")
    group.add_argument(
        "--verbose",
        action="store_true",
        help="show what Beam and TensorFlow write to stderr, and where an error was raised",
    )
    group.add_argument(
        "--workers", type=processes, default=1, metavar="N", help="local processes (default 1)"
    )
    group.add_argument(
        "--runner",
        default="DirectRunner",
        help="a Beam runner; DirectRunner, the default, runs in this process. Flags that this "
        "list does not have go to Beam: --project, --region, --temp_location, ...",
    )
    if beam:
        graph(group)


def graph(group: Any) -> None:
    """Add ``--graph``."""
    group.add_argument(
        "--graph",
        metavar="FILE",
        help="write the job's Beam graph, also with --dry-run: FILE.txt as text, FILE.svg as a "
        "picture, FILE without a suffix as both",
    )


def store(group: Any) -> None:
    """Add ``--store``."""
    group.add_argument("--store", metavar="URL", help="the embedding store")


def functions(group: Any) -> None:
    """Add ``--allow-functions``."""
    group.add_argument(
        "--allow-functions",
        type=words,
        default=(),
        metavar="PKG,...",
        help="packages whose functions a view may run",
    )


def scheduled(group: Any) -> None:
    """Add ``--scheduled``."""
    group.add_argument(
        "--scheduled",
        action="store_true",
        help="do nothing, and exit with 0, while another run works on the store",
    )


def job_parser(job: Job) -> Parser:
    """The parser of a job's flags."""
    parser = Parser(
        prog=f"segclr-beam {job.name}",
        description=job.line,
        epilog=f"example:\n  {job.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    job.add_flags(parser)
    common(parser, job.beam)
    needed = [a for a in parser._actions if a.dest in job.required]
    shown = [" ".join([*a.option_strings[-1:], _value_name(a)]) for a in needed]
    parser.usage = " ".join([parser.prog, *shown, "[flags]"])
    return parser


def flag_names(parser: argparse.ArgumentParser) -> list[str]:
    """Every long flag of a parser."""
    return [s for a in parser._actions for s in a.option_strings if s.startswith("--")]


def spelled(words: Sequence[str], own: Sequence[str]) -> list[str]:
    """Words as argparse understands them.

    A job's own flags may be written with ``_``: ``--dry_run`` would otherwise be a flag of Beam's
    that does nothing here. A negative value, as in ``--origin -8,0,0``, is joined to its flag; else
    argparse takes it for a flag.

    Args:
        words: Words of the command line or of a config file.
        own: The job's own flags.
    """
    done: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        dashed = name.replace("_", "-")
        if name.startswith("--") and dashed in own:
            done.append(dashed + equals + value)
        elif _NEGATIVE.match(word) and done and done[-1] in own:
            done[-1] += f"={word}"
        else:
            done.append(word)
    return done


def missing_flags(job: Job, parser: argparse.ArgumentParser, parsed: Any) -> Sequence[str]:
    """The flags that a job needs and did not get."""
    names = {a.dest: (a.option_strings or [_value_name(a)])[-1] for a in parser._actions}
    return [names[name] for name in job.required if getattr(parsed, name) is None]


def _value_name(action: argparse.Action) -> str:
    """What a flag's value, or a word without a flag, is called in messages."""
    return str(action.metavar or action.dest.upper())
