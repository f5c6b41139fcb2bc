"""The Prefect server that a run tells of itself: found, asked and explained in one line before anything starts."""

from __future__ import annotations

import contextlib
import io
import os
import tomllib
import warnings
from pathlib import Path

from foretune.storage.errors import BadInput, FolderInTheWay, StorageFault
from foretune.storage.places import Place
from foretune.storage.redaction import remember_secret

PATIENCE = 10.0
"""Seconds for a server to say which version it is."""


def open_prefect() -> None:
    """Import Prefect, whose settings are read then. BadInput for a profile or a setting that it cannot read."""
    _check_profiles()
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():  # it prints what it then raises
            warnings.simplefilter("ignore")  # of a home that cannot be made: `check_server` says it
            from prefect.settings import get_current_settings

            api = get_current_settings().api
    except Exception as error:  # of any kind that a validator raises
        raise BadInput(f"Prefect's settings cannot be read: {_fault(error)}; check the PREFECT_ variables") from error
    for secret in (api.key, api.auth_string):
        remember_secret(secret.get_secret_value() if secret is not None else None)


def check_server() -> None:
    """BadInput where the server that is named does not answer as one, or where one of our own could not store."""
    open_prefect()
    from prefect.settings import get_current_settings

    _check_profile()
    settings = get_current_settings()
    if settings.api.url:
        _ask(settings.api.url)
    elif not _writable(settings.home):
        raise BadInput(
            f"PREFECT_HOME {settings.home}: cannot be written, and Prefect keeps its database there; "
            "set PREFECT_HOME to another folder, or PREFECT_API_URL to a server"
        )


def _check_profiles() -> None:
    named = os.environ.get("PREFECT_PROFILES_PATH")
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect")
    place = Place(named or home / "profiles.toml")
    try:
        tomllib.loads(place.read_bytes().decode())
    except (FileNotFoundError, FolderInTheWay):
        return
    except StorageFault as error:
        raise BadInput(f"Prefect's profiles cannot be read: {error}") from error
    except ValueError as error:  # also what is not UTF-8
        raise BadInput(f"{place.uri}: not valid TOML ({error}); mend Prefect's profiles or remove the file") from None


def _check_profile() -> None:
    """Prefect would warn of it and take its default, another server than the one that was meant."""
    from prefect.settings import load_profiles

    profiles = load_profiles()
    active = os.environ.get("PREFECT_PROFILE", profiles.active_name)
    if active not in profiles.names:
        known = ", ".join(sorted(profiles.names))
        raise BadInput(f"Prefect has no profile {active}; set PREFECT_PROFILE to one of {known}, or unset it")


def _ask(url: str) -> None:
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    remedy = "start it, or correct or unset PREFECT_API_URL (and the profile's)"
    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            with get_client(sync_client=True, httpx_settings={"timeout": PATIENCE}) as client:
                if not isinstance(client.api_version(), str):
                    raise TypeError("not a version")
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status in (401, 403):
            remedy = "check PREFECT_API_KEY or PREFECT_API_AUTH_STRING"
        elif status == 429 or status >= 500:
            return  # busy: Prefect's own retries will do
        raise BadInput(f"Prefect server {url}: answers {status}; {remedy}") from error
    except httpx.TimeoutException as error:
        raise BadInput(f"Prefect server {url}: no answer within {PATIENCE:.0f} s; {remedy}") from error
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise BadInput(f"Prefect server {url}: cannot be reached ({_fault(error)}); {remedy}") from error
    except Exception as error:  # a page, another program's JSON: whatever the client makes of it
        raise BadInput(f"Prefect server {url}: what answers there is no Prefect server; {remedy}") from error


def _writable(home: Path) -> bool:
    """Whether a file can be written there: permissions alone do not say it of a read-only disk or of /proc."""
    place = Place(home / ".foretune-probe")
    try:
        place.write_bytes(b"")
        place.delete()
    except (StorageFault, OSError):
        return False
    return True


def _fault(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "further information" not in line]
    return " ".join(lines) or type(error).__name__
