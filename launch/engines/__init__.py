"""The engines that run a graph: what each makes of the user's flags, and what it looks at before.

A graph never sees its engine. An engine never sees a graph: it turns what was typed into Beam's
options, and says what the environment gets wrong before anything is written or submitted.
"""

from launch.engines.base import Asked, Engine, beam_options
from launch.engines.choice import engine_of

__all__ = ["Asked", "Engine", "beam_options", "engine_of"]
