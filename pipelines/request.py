"""What requests of several jobs are checked for."""

from volumes import objects
from volumes.errors import RequestError


def refuse_empty(**values: str | None) -> None:
    """Refuse flags that were given an empty value.

    Args:
        **values: Values by the names of their flags; None where one was not given.

    Raises:
        RequestError: One is empty.
    """
    for name, value in values.items():
        if value == "":
            raise RequestError(f"--{name} was empty; give it a value")


def refuse_secrets(written: str, **values: str | None) -> None:
    """Refuse locations that hold a password or a query string, where they would be written down.

    Args:
        written: Where they would be written.
        **values: Locations by the names of their flags; None where one was not given.

    Raises:
        RequestError: One holds a secret.
    """
    for name, value in values.items():
        if value is not None and objects.redacted(value) != value:
            raise RequestError(
                f"--{name} {objects.redacted(value)} was given with a password or a query string, "
                f"which would be written {written}; leave it out and give credentials in the "
                "environment"
            )


def refuse_unwritable(**values: str | None) -> None:
    """Refuse locations that nothing can be written to.

    Args:
        **values: Locations by the names of their flags; None where one was not given.

    Raises:
        RequestError: One is a web server's.
    """
    for name, value in values.items():
        if value is not None and value.startswith(("http://", "https://")):
            raise RequestError(
                f"--{name} {objects.redacted(value)} is a web server's, which is only read from; "
                "give a local directory or a gs:// or s3:// URL"
            )


def store_url(given: str) -> str:
    """The location of a store that is there.

    Raises:
        RequestError: There is none.
    """
    url = objects.absolute(given)
    if objects.read(objects.join(url, "store.json")) is None:
        raise RequestError(
            f"--store {objects.redacted(given)} is not an embedding store: it has no store.json; "
            "give the --output of an embed run"
        )
    return str(url)
