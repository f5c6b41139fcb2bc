"""Variables of the environment, each in a process of its own."""

from __future__ import annotations

from tests.hostile.contract import SECRET
from tests.hostile.written.attempt import Written, plan, words

ENVIRONMENT = {
    f"{name}={value[:20]}": Written(plan(), status, said, process=True, environment={name: value})
    for name, value, status, said in (
        ("PREFECT_API_URL", "foo", 0, ""),
        ("PREFECT_HOME", "/proc/x", 0, ""),
        ("HOME", "/proc", 0, ""),
        ("HOME", "", 0, ""),
        ("PREFECT_PROFILES_PATH", "/dev/null", 0, ""),
        ("PREFECT_LOGGING_LEVEL", "x", 2, "PREFECT_"),
        ("PYTHONIOENCODING", "ascii", 0, ""),
        ("PYTHONIOENCODING", "utf-16", 0, ""),
        ("COLUMNS", "1", 0, ""),
        ("FORETUNE_CACHE", "/proc/x", 0, ""),
        ("TMPDIR", "/none", 0, ""),
        ("PYTHONWARNINGS", "error", 0, ""),
        ("OMP_NUM_THREADS", "x", 0, ""),
    )
} | {
    f"simulate with {name}={value[:20]}": Written(words("simulate", "REQUEST"), 2, said, process=True, environment={name: value})
    for name, value, said in (
        ("PREFECT_API_URL", "foo", "PREFECT_API_URL"),
        ("PREFECT_API_URL", "http://127.0.0.1:9/api", "PREFECT_API_URL"),
        ("PREFECT_API_URL", f"http://k:{SECRET}@127.0.0.1:9/api", "PREFECT_API_URL"),
        ("PREFECT_HOME", "/proc/x", "PREFECT_HOME"),
        ("PREFECT_PROFILE", "none", "PREFECT_PROFILE"),
        ("HOME", "/proc", "PREFECT_HOME"),
    )
}  # fmt: skip
