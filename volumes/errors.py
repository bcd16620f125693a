"""The two ways a job ends badly, and how the command line reports them.

Every message says what was given, the rule, why the rule matters and what to do.
"""


class RequestError(ValueError):
    """The request is wrong and nothing was changed: exit status 2, the message alone is shown."""


class RunError(RuntimeError):
    """The run failed or left work undone: exit status 1; what was committed before stays."""


class DataError(RunError):
    """Stored voxels are damaged, missing or do not hold still: a fault of one box, not of the run.

    A run tries such a box again, then sets it aside and goes on with the others.
    """
