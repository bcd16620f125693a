import datetime
import importlib.metadata
import platform

from volumes import provenance


def test_now_is_utc_to_the_second():
    found = datetime.datetime.fromisoformat(provenance.now())
    assert found.utcoffset() == datetime.timedelta(0)
    assert abs((datetime.datetime.now(datetime.UTC) - found).total_seconds()) < 5
    assert found.microsecond == 0


def test_software_names_what_is_installed():
    found = provenance.software()
    assert found["python"] == platform.python_version()
    assert found["tensorstore"] == importlib.metadata.version("tensorstore")
    assert found["segclr-beam"] == provenance.version()


def test_an_uninstalled_checkout_has_a_version_too(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert provenance.version() == "uninstalled"
    assert provenance.software()["numpy"] == "absent"
