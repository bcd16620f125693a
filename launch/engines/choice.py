"""From ``--runner`` to an engine."""

from launch.engines.base import Engine
from launch.engines.local import LocalEngine
from launch.engines.other import OtherEngine
from launch.engines.prism import PrismEngine

ENGINES: tuple[Engine, ...] = (LocalEngine(), PrismEngine())
"""The engines that this package knows."""


def engine_of(runner: str) -> Engine:
    """The engine that ``--runner`` names; one that is not known here is Beam's affair."""
    for engine in ENGINES:
        if runner.lower() in engine.names:
            return engine
    return OtherEngine()
