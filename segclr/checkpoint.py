"""Reads the published weights: TensorFlow 2 checkpoints of the original architecture.

Such a checkpoint keeps every tensor under a key made from its plain name (see ``segclr.config``):
``_tf1_style_var_store/_vars/`` + the name with ``.`` doubled and ``/`` written ``.S`` +
``/.ATTRIBUTES/VARIABLE_VALUE``. The network's shape is read off the names and shapes, and every
tensor is accounted for: one that the network needs and the checkpoint lacks, one that it holds and
the network has no use for, and one of another shape or type are refused together, by name.

Left out by rule: the object graph, ``global_step``, ``save_counter``, the optimizer's slots and
settings, and the statistics that batch renormalisation keeps for training (``moving_stddev``,
``renorm_mean``, ``renorm_stddev``; with all normalisations of the residual blocks or with none).
The projection head may be absent.
"""

import dataclasses
import pathlib
import re
import string
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from segclr import bundle
from segclr.config import (
    BOTTLENECK,
    PROJECTION,
    NetworkConfig,
    stage_norms,
    tensor_shapes,
)
from segclr.errors import ModelError

STATE_FILE = "checkpoint"
"""Name of the file in which TensorFlow notes the latest checkpoint of a directory."""

_STORE = "_tf1_style_var_store/_vars/"
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_SLOT = "/.OPTIMIZER_SLOT/"
_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_COUNTERS = (f"global_step{_VALUE}", f"save_counter{_VALUE}")
_OPTIMIZER = "optimizer/"
_RENORM_TENSORS = ("moving_stddev", "renorm_mean", "renorm_stddev")
_LISTED = 20

Entries = dict[str, bundle.Entry]
"""Index entries by plain name."""


@dataclasses.dataclass(frozen=True, slots=True)
class CheckpointSummary:
    """What a checkpoint holds.

    Attributes:
        prefix: Its prefix.
        config: The network it fits; ``projection`` is None where that head is absent.
        tensors: Number of tensors that the network uses.
        ignored: Number of keys left out by rule.
        renorm: Whether the training statistics of batch renormalisation are there.
        step: Training step, where it is noted.
    """

    prefix: str
    config: NetworkConfig
    tensors: int
    ignored: int
    renorm: bool
    step: int | None


def resolve_prefix(path: str) -> str:
    """The prefix of the checkpoint that ``path`` means.

    Args:
        path: A prefix, an index file, or a directory with a state file or with one checkpoint.

    Raises:
        ModelError: If there is none, or several and nothing says which.
    """
    path = path.removesuffix(".index")
    if pathlib.Path(f"{path}.index").is_file():
        return path
    directory = pathlib.Path(path)
    if not directory.is_dir():
        raise ModelError(
            f"there is no model at {path}: neither a checkpoint ({path}.index) nor a directory "
            "with one. Give a checkpoint's prefix, its directory, a .keras file or 'untrained'"
        )
    state = directory / STATE_FILE
    if state.is_file():
        return _prefix_of_state(state)
    found = sorted(directory.glob("*.index"))
    if len(found) == 1:
        return str(found[0]).removesuffix(".index")
    if not found:
        raise ModelError(
            f"the directory {path} holds no checkpoint: no *.index file and no file named "
            f"{STATE_FILE!r}. Give a checkpoint's prefix, its directory, a .keras file or "
            "'untrained'"
        )
    names = _listing(index.name.removesuffix(".index") for index in found)
    raise ModelError(
        f"the directory {path} holds {len(found)} checkpoints and no file named {STATE_FILE!r} "
        f"that says which to take: {names}. Give the prefix of one of them"
    )


def inspect_checkpoint(path: str) -> CheckpointSummary:
    """What the checkpoint at a prefix or in a directory holds; no weights are read.

    Raises:
        ModelError: If it is absent, damaged, of another kind, or if its tensors are not exactly
            those of one network.
    """
    prefix = resolve_prefix(path)
    index = bundle.read_index(prefix)
    entries, ignored = _plain_entries(prefix, index)
    config = _infer_config(prefix, entries)
    renorm = _refuse_misfits(prefix, config, entries)
    step = index.get(_COUNTERS[0])
    return CheckpointSummary(
        prefix=prefix,
        config=config,
        tensors=len(tensor_shapes(config)),
        ignored=ignored + len(entries) - len(tensor_shapes(config)),
        renorm=renorm,
        step=None if step is None else int(bundle.read_tensor(prefix, _COUNTERS[0], step)),
    )


def iter_weights(
    prefix: str, config: NetworkConfig
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Plain name and value of each tensor that ``config`` needs, sorted by name, one at a time.

    Raises:
        ModelError: If the checkpoint lacks one, or holds it damaged or in another shape.
    """
    entries, _ = _plain_entries(prefix, bundle.read_index(prefix))
    for name, shape in sorted(tensor_shapes(config).items()):
        entry = entries.get(name)
        if entry is None or entry.shape != shape or entry.dtype != bundle.FLOAT32:
            found = "nothing" if entry is None else f"{entry.dtype_name} {entry.shape}"
            raise ModelError(
                f"the checkpoint {prefix} does not fit: {name} should be float32 {shape}, found "
                f"{found}"
            )
        yield name, bundle.read_tensor(prefix, name, entry).astype(np.float32, copy=False)


def read_weights(prefix: str, config: NetworkConfig) -> dict[str, npt.NDArray[np.float32]]:
    """The tensors that ``config`` needs, by plain name; read-only arrays. See ``iter_weights``."""
    return dict(iter_weights(prefix, config))


def _prefix_of_state(state: pathlib.Path) -> str:
    """The prefix that a state file names; a directory that was moved keeps its checkpoint."""
    try:
        text = state.read_text(errors="replace")
    except OSError as error:
        raise ModelError(f"the file {state} cannot be read: {error.strerror}") from error
    match = re.search(r'^model_checkpoint_path:\s*"([^"\\]+)"', text, flags=re.MULTILINE)
    if match is None:
        raise ModelError(
            f"the file {state} names no model_checkpoint_path, so the checkpoint to take is not "
            "known. Give the checkpoint's prefix"
        )
    named = pathlib.Path(match.group(1))
    for prefix in (state.parent / named, state.parent / named.name):
        if pathlib.Path(f"{prefix}.index").is_file():
            return str(prefix)
    raise ModelError(
        f"the file {state} names the checkpoint {named}, but there is no "
        f"{state.parent / named.name}.index. Fetch the whole checkpoint or give its prefix"
    )


def _plain_entries(prefix: str, index: Mapping[str, bundle.Entry]) -> tuple[Entries, int]:
    """The entries of an index by plain name, and how many keys are left out by rule."""
    if not any(key.startswith(_STORE) for key in index):
        raise ModelError(
            f"the checkpoint {prefix} {_other_kind(index)}. Only the published TensorFlow 2 kind, "
            f"whose keys begin with {_STORE!r}, is read"
        )
    entries: Entries = {}
    unused = []
    ignored = 0
    for key, entry in index.items():
        if key == _GRAPH or key in _COUNTERS or key.startswith(_OPTIMIZER) or _SLOT in key:
            ignored += 1
        elif key.startswith(_STORE) and key.endswith(_VALUE):
            entries[_unescape(key.removeprefix(_STORE).removesuffix(_VALUE))] = entry
        else:
            unused.append(key)
    if unused:
        raise ModelError(
            f"the checkpoint {prefix} does not fit: it holds {len(unused)} unknown keys: "
            f"{_listing(sorted(unused))}"
        )
    return entries, ignored


def _other_kind(index: Mapping[str, bundle.Entry]) -> str:
    """What a checkpoint without the published kind's keys looks like."""
    if any(key.startswith(("base_model_", f"{BOTTLENECK}/")) for key in index):
        return "is a TensorFlow 1 checkpoint (its keys are variable names)"
    if any(re.match(r"(model/)?resnet_model/", key) for key in index):
        return "is of the newer architecture (its keys begin with model/resnet_model/)"
    return f"is of an unknown kind (its first keys: {_listing(sorted(index), 3)})"


def _unescape(name: str) -> str:
    """The plain name of a key's middle part: ``.S`` stands for ``/``, ``..`` for ``.``."""
    return re.sub(r"\.(.)", lambda match: {"S": "/"}.get(match[1], match[1]), name)


def _infer_config(prefix: str, entries: Entries) -> NetworkConfig:
    """The network whose names and shapes these are, as far as they agree."""
    roots = sorted({"/".join(name.split("/")[:2]) for name in entries if name.startswith("base_")})
    match = re.fullmatch(r"base_model_0/resnet(\d+)", roots[0]) if roots else None
    if match is None:
        raise ModelError(
            f"the checkpoint {prefix} does not fit: it holds no base_model_0/resnet18 or the like, "
            f"but {_listing(sorted({name.split('/')[0] for name in entries}))}"
        )
    root = roots[0]
    stages = [_block_count(entries, f"{root}/stage_{stage}/block_") for stage in range(2, 6)]
    width = _width(entries, f"{root}/stage_1/conv1/kernel", f"{root}/stage_1/bn1/gamma")
    bottleneck = _head_widths(entries, BOTTLENECK)
    if width is None or bottleneck is None or min(stages) < 1:
        raise ModelError(
            f"the checkpoint {prefix} does not fit: a stem, four stages of blocks and a bottleneck "
            f"head are needed, found {stages} blocks, a stem of width {width} and a head of "
            f"widths {bottleneck}"
        )
    blocks = (stages[0], stages[1], stages[2], stages[3])
    config = NetworkConfig(blocks, width, bottleneck, _head_widths(entries, PROJECTION))
    if config.scope != root:
        raise ModelError(
            f"the checkpoint {prefix} does not fit: {root} has {blocks} blocks a stage, which "
            f"would be {config.scope} if its blocks had two convolutions each, and no other "
            "blocks are known"
        )
    return config


def _block_count(entries: Entries, start: str) -> int:
    """Blocks of a stage: up to the last letter that occurs."""
    letters = {name.removeprefix(start)[:1] for name in entries if name.startswith(start)}
    return max((string.ascii_lowercase.find(letter) + 1 for letter in letters if letter), default=0)


def _head_widths(entries: Entries, head: str) -> tuple[int, ...] | None:
    """Widths of a head's layers, up to the last that occurs; None without the head."""
    layers = [int(match[1]) for name in entries if (match := re.match(rf"{head}/nl_(\d+)/", name))]
    if not layers:
        return None
    widths = [
        _width(entries, f"{head}/nl_{i}/dense/kernel", f"{head}/nl_{i}/nl_{i}_bn/gamma")
        for i in range(min(max(layers), _LISTED) + 1)
    ]
    return tuple(width for width in widths if width is not None) or None


def _width(entries: Entries, *names: str) -> int | None:
    """Last dimension of the first of these tensors that is there."""
    for name in names:
        if name in entries:
            shape = entries[name].shape
            return shape[-1] if shape and shape[-1] > 0 else None
    return None


def _refuse_misfits(prefix: str, config: NetworkConfig, entries: Entries) -> bool:
    """Refuse a checkpoint that is not exactly ``config``; whether it has training statistics."""
    expected = tensor_shapes(config)
    extra = {
        f"{scope}/{tensor}": (channels,)
        for scope, channels in stage_norms(config)
        for tensor in _RENORM_TENSORS
    }
    renorm = any(name in entries for name in extra)
    if renorm:
        expected |= extra
    missing = sorted(name for name in expected if name not in entries)
    unused = sorted(name for name in entries if name not in expected)
    wrong = sorted(
        f"{name} is {entries[name].dtype_name} {entries[name].shape}, not float32 {shape}"
        for name, shape in expected.items()
        if name in entries
        and (entries[name].shape != shape or entries[name].dtype != bundle.FLOAT32)
    )
    parts = [
        f"{len(names)} {what}: {_listing(names)}"
        for what, names in (
            ("missing", missing),
            ("without use", unused),
            ("of another shape or type", wrong),
        )
        if names
    ]
    if parts:
        raise ModelError(
            f"the checkpoint {prefix} does not fit a {config.scope.split('/')[1]} of width "
            f"{config.width} with heads {config.bottleneck} and {config.projection}: tensors "
            + "; ".join(parts)
        )
    return renorm


def _listing(names: Iterable[str], limit: int = _LISTED) -> str:
    """Names for a message, at most ``limit`` of them."""
    given = list(names)
    rest = len(given) - limit
    return ", ".join(given[:limit]) + (f" and {rest} more" if rest > 0 else "")
