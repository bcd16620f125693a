"""The one way a model is refused."""


class ModelError(ValueError):
    """A model is absent, unreadable, damaged or does not fit: the request is wrong.

    The message names the file or the value, what was found, what is needed and what to do.
    """
