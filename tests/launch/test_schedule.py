"""The files of launch/schedule, each read as the program reads it that they are for."""

import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from typing import Any

import pytest
import yaml

from launch import flags, parsers

SCHEDULE = pathlib.Path(__file__).resolve().parents[2] / "launch" / "schedule"
UNITS = ("segclr-beam-reprocess.service", "segclr-beam-reprocess.timer")
WORDS = ["reprocess", "--store", "STORE", "--scheduled", "--json", "--quiet"]


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not on this machine")
    return path


def ran(*words: str | pathlib.Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def entries(text: str) -> tuple[dict[str, str], list[tuple[list[str], str]]]:
    """A crontab's variables, and its lines as five fields and a command."""
    variables, lines = {}, []
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if found := re.fullmatch(r"([A-Z_]+)=(\S+)", line):
            variables[found[1]] = found[2]
        else:
            *fields, command = line.split(None, 5)
            lines.append((fields, command))
    return variables, lines


LIMITS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


def refused(fields: list[str]) -> list[str]:
    """The fields of a cron expression that are no lists of numbers, ranges and steps in bounds."""
    if len(fields) != 5:
        return fields
    return [f for f, limits in zip(fields, LIMITS, strict=True) if not _is_field(f, *limits)]


def _is_field(field: str, low: int, high: int) -> bool:
    for part in field.split(","):
        found = re.fullmatch(r"(?:\*|(\d+)(?:-(\d+))?)(?:/([1-9]\d*))?", part)
        if found is None:
            return False
        first, last = found[1], found[2]
        ends = [int(n) for n in (first, last) if n is not None]
        if ends != sorted(ends) or any(not low <= n <= high for n in ends):
            return False
    return True


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("17 2 * * *", []),
        ("*/15 0-6,22 1,15 */2 1-5", []),
        ("60 24 0 13 8", ["60", "24", "0", "13", "8"]),
        ("5-1 x */0 ? MON", ["5-1", "x", "*/0", "?", "MON"]),
        ("1 2 3 4", ["1", "2", "3", "4"]),
    ],
)
def test_the_reader_of_cron_fields_itself(expression: str, expected: list[str]) -> None:
    assert refused(expression.split()) == expected


def cronjob() -> dict[str, Any]:
    return dict(yaml.safe_load((SCHEDULE / "cronjob.yaml").read_text()))


def container() -> dict[str, Any]:
    (found,) = cronjob()["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    return dict(found)


def unit(name: str) -> list[tuple[str, str, str]]:
    """A unit's settings as (section, key, value)."""
    section, found = "", []
    for line in (SCHEDULE / name).read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.append((section, key, value))
    return found


def commands() -> dict[str, list[str]]:
    """The words after the program in each file, STORE for the store."""
    _, ((_, line),) = entries((SCHEDULE / "crontab").read_text())
    cron, *_ = line.split(">>")
    (start,) = [value for _, key, value in unit(UNITS[0]) if key == "ExecStart"]
    listed = {
        "crontab": shlex.split(cron)[1:],
        UNITS[0]: shlex.split(start)[1:],
        "cronjob.yaml": [*container()["command"], *container()["args"]][1:],
    }
    places = ("$STORE", "${STORE}", "$(STORE)")
    return {k: ["STORE" if w in places else w for w in words] for k, words in listed.items()}


@pytest.mark.parametrize("name", ["crontab", UNITS[0], "cronjob.yaml"])
def test_the_command_is_the_one_to_schedule(name: str) -> None:
    assert commands()[name] == WORDS


def test_the_command_is_understood() -> None:
    job = flags.JOBS.get("reprocess")
    if job is None:
        pytest.skip("the job reprocess is not in launch.flags.JOBS")
    for words in commands().values():
        parser = parsers.job_parser(job)
        parsed, left_over = parser.parse_known_args(
            parsers.spelled(words[1:], parsers.flag_names(parser))
        )
        assert left_over == []
        assert parsers.missing_flags(job, parser, parsed) == []
        assert (parsed.store, parsed.scheduled, parsed.json, parsed.quiet) == (
            "STORE",
            True,
            True,
            True,
        )


def test_the_crontab_has_one_line_whose_words_are_set() -> None:
    text = (SCHEDULE / "crontab").read_text()
    variables, lines = entries(text)
    ((fields, command),) = lines
    assert refused(fields) == []
    assert text.endswith("\n")
    assert "%" not in command
    assert set(re.findall(r"\$(\w+)", command)) == {"SEGCLR_BEAM", "STORE", "LOG"} <= set(variables)
    # cron takes a value as it stands: it replaces no variable in it.
    assert [v for v in variables.values() if "$" in v] == []
    assert ran(tool("sh"), "-n", "-c", command).returncode == 0


def test_the_crontab_starts_what_it_says(tmp_path: pathlib.Path) -> None:
    variables, ((_, command),) = entries((SCHEDULE / "crontab").read_text())
    program = tmp_path / "a program"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    place = {"SEGCLR_BEAM": str(program), "STORE": "/a store", "LOG": str(tmp_path / "log")}
    done = subprocess.run(
        [variables["SHELL"], "-c", command], env=variables | place, check=True, capture_output=True
    )
    assert done.stdout + done.stderr == b""
    words = (tmp_path / "log").read_text().splitlines()
    assert words == [w if w != "STORE" else "/a store" for w in WORDS]


def test_cron_takes_the_crontab(tmp_path: pathlib.Path) -> None:
    crontab = tool("crontab")
    usage = ran(crontab, "-h")
    said = usage.stdout + usage.stderr
    options = [o for o, sign in (("-n", "dry run"), ("-T", "-T")) if sign in said]
    if not options:
        pytest.skip(f"{crontab} cannot check a file without installing it")
    done = ran(crontab, options[0], SCHEDULE / "crontab")
    assert done.returncode == 0, done.stderr
    broken = tmp_path / "crontab"
    broken.write_text("77 2 * * * true\n")
    assert ran(crontab, options[0], broken).returncode != 0


def test_systemd_takes_the_units(tmp_path: pathlib.Path) -> None:
    analyze = tool("systemd-analyze")
    for name in UNITS:
        text = (SCHEDULE / name).read_text()
        # Only the program's place is another here.
        (tmp_path / name).write_text(
            re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", text, flags=re.MULTILINE)
        )
    done = ran(analyze, "verify", "--man=no", *(tmp_path / name for name in UNITS))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    # It is that strict: a setting that is misspelt is told.
    broken = tmp_path / UNITS[0]
    broken.write_text(broken.read_text().replace("NoNewPrivileges=", "NoNewPrivilege="))
    assert "NoNewPrivilege" in ran(analyze, "verify", "--man=no", broken).stderr


def test_systemd_understands_when() -> None:
    settings = {(section, key): value for section, key, value in unit(UNITS[1])}
    assert settings["Timer", "Persistent"] == "true"
    assert settings["Install", "WantedBy"] == "timers.target"
    analyze = tool("systemd-analyze")
    done = ran(analyze, "calendar", settings["Timer", "OnCalendar"])
    assert done.returncode == 0
    assert "Next elapse" in done.stdout
    assert ran(analyze, "timespan", settings["Timer", "RandomizedDelaySec"]).returncode == 0


def test_the_service_is_one_shot_and_hides_nothing_that_a_run_needs() -> None:
    settings = {key: value for _, key, value in unit(UNITS[0])}
    assert settings["Type"] == "oneshot"
    assert settings["EnvironmentFile"].startswith("/")
    assert settings["KillSignal"] == "SIGINT"
    harmful = {"PrivateDevices", "MemoryDenyWriteExecute", "ProtectProc", "PrivateUsers"}
    assert harmful.isdisjoint(settings)


def test_the_cron_job_has_the_fields_that_matter() -> None:
    document = cronjob()
    assert (document["apiVersion"], document["kind"]) == ("batch/v1", "CronJob")
    # A name of at most 52 characters, since the controller appends eleven.
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", document["metadata"]["name"])
    assert len(document["metadata"]["name"]) <= 52
    spec = document["spec"]
    assert refused(spec["schedule"].split()) == []
    assert "TZ" not in spec["schedule"]
    assert spec["concurrencyPolicy"] == "Forbid"
    job = spec["jobTemplate"]["spec"]
    counts = (
        spec["startingDeadlineSeconds"],
        spec["successfulJobsHistoryLimit"],
        job["activeDeadlineSeconds"],
    )
    assert [n for n in counts if type(n) is not int or n <= 0] == []
    # A run that hangs must be gone before the next one is due.
    assert job["activeDeadlineSeconds"] < 24 * 3600
    # A second pod would take the first for alive for 60 s, and end well without having worked.
    assert (job["backoffLimit"], job["template"]["spec"]["restartPolicy"]) == (0, "Never")


def test_the_container_is_bounded_and_has_where_to_write() -> None:
    found = container()
    assert re.fullmatch(r"[a-z0-9./-]+:[\w.-]+", found["image"])
    resources = found["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    assert {"cpu", "memory"} <= set(resources["requests"])
    assert found["securityContext"]["readOnlyRootFilesystem"] is True
    pod = cronjob()["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    volumes = {v["name"] for v in pod["volumes"]}
    mounts = {m["mountPath"]: m["name"] for m in found["volumeMounts"]}
    assert mounts["/tmp"] in volumes
    environment = {e["name"]: e["value"] for e in found["env"]}
    assert environment["HOME"] == "/tmp"
    referred = set(re.findall(r"\$\((\w+)\)", " ".join(found["args"])))
    assert referred == {"STORE"} <= set(environment)
    # YAML turns an unquoted value of another type into that type; Kubernetes takes text alone.
    assert [v for v in environment.values() if not isinstance(v, str)] == []


def filled(value: Any) -> Any:
    """The value without members that are null or empty, which kubectl adds."""
    if isinstance(value, dict):
        kept = {k: filled(v) for k, v in value.items()}
        return {k: v for k, v in kept.items() if v not in (None, {}, [])}
    return [filled(v) for v in value] if isinstance(value, list) else value


def through_kubectl(path: pathlib.Path) -> subprocess.CompletedProcess[str]:
    words = ["set", "image", "--local", "-f", str(path), "reprocess=another:1", "-o", "json"]
    return ran(tool("kubectl"), *words)


def test_kubectl_knows_every_field(tmp_path: pathlib.Path) -> None:
    # It reads into its own types, which drop what they do not know, and writes what is left.
    done = through_kubectl(SCHEDULE / "cronjob.yaml")
    assert done.returncode == 0, done.stderr
    written = done.stdout.replace('"another:1"', json.dumps(container()["image"]))
    assert filled(json.loads(written)) == cronjob()
    text = (SCHEDULE / "cronjob.yaml").read_text()
    broken = tmp_path / "cronjob.yaml"
    broken.write_text(text.replace("backoffLimit: 0", "backoffLimits: 1"))
    assert "backoffLimits" not in through_kubectl(broken).stdout
    broken.write_text(text.replace("backoffLimit: 0", "backoffLimit: none"))
    assert "cannot unmarshal string" in through_kubectl(broken).stderr


def test_the_schema_of_kubernetes_takes_the_cron_job() -> None:
    validate = pytest.importorskip(
        "kubernetes_validate", reason="the package kubernetes-validate is not installed"
    )
    version = validate.latest_version()
    validate.validate(cronjob(), version, strict=True)
    broken = cronjob()
    broken["spec"]["concurrencypolicy"] = broken["spec"].pop("concurrencyPolicy")
    with pytest.raises(validate.ValidationError, match="concurrencypolicy"):
        validate.validate(broken, version, strict=True)
