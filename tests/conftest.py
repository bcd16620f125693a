"""Settings of all tests."""

from hypothesis import settings

# A slow moment of the machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
