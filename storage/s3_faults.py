"""What an S3 failure means: to be tried again, the user's to mend, or a fault in one clear line."""

from __future__ import annotations

import http.client
import logging
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import aiohttp
import tenacity
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError
from fsspec.exceptions import FSTimeoutError

from foretune.storage.errors import BadInput, Changed, StorageFault

logger = logging.getLogger(__name__)
T = TypeVar("T")

ATTEMPTS = 7
"""Waits of 0.2 s doubling to 5 s: about 11 s in all, longer than S3's usual slow-down after a burst."""
FIRST_WAIT, LONGEST_WAIT = 0.2, 5.0  # seconds
PATIENCE = 120.0  # seconds; no attempt begins later, so time-outs of 20 s each end too

_TRANSIENT_CODES = {
    "BadDigest",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "XAmzContentSHA256Mismatch",
}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken"}
_BARE = {"400", "BadRequest", "Bad Request"}
"""A HEAD has no body that could say what is wrong: an expired token is a bare 400."""
_CLOCK = {"RequestExpired", "RequestTimeTooSkewed"}


class Incomplete(Exception):
    """An answer that lacks what S3 always says: of another program, or of a proxy between."""


_TRANSIENT_TYPES = (
    Incomplete,
    aiohttp.ClientError,
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    ConnectionError,
    FSTimeoutError,
    http.client.HTTPException,
    ResponseParserError,
    TimeoutError,
)
_FAILURES = (OSError, boto.BotoCoreError, boto.ClientError, *_TRANSIENT_TYPES)


def code_of(error: BaseException) -> tuple[str, int]:
    """(S3's error code or the exception's name, HTTP status or 0); s3fs keeps the original as the cause."""
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return str(response.get("Error", {}).get("Code", "")), int(status)
    return type(error).__name__, 0


def is_transient(error: BaseException) -> bool:
    code, status = code_of(error)
    if status:
        return status >= 500 or status == 429 or code in _TRANSIENT_CODES
    return isinstance(error, _TRANSIENT_TYPES) and not isinstance(error, boto.SSLError)


def _code_after(state: tenacity.RetryCallState) -> str:
    error = state.outcome.exception() if state.outcome else None
    return code_of(error)[0] if error else ""


def attempt(call: Callable[[], T], uri: str) -> T:
    """`call()`, again after transient failures; FileNotFoundError where `uri` is missing.

    Raises BadInput for a bucket that does not exist and for credentials that are not set, StorageFault for
    everything else that retries cannot mend.
    """
    started = time.monotonic()
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(ATTEMPTS) | tenacity.stop_after_delay(PATIENCE),
        wait=tenacity.wait_exponential_jitter(multiplier=FIRST_WAIT, max=LONGEST_WAIT, jitter=FIRST_WAIT),
        retry=tenacity.retry_if_exception(is_transient),
        before_sleep=lambda state: logger.info("%s: %s, attempt %d", uri, _code_after(state), state.attempt_number),
        reraise=True,
    )
    try:
        return retrying(call)
    except _FAILURES as error:
        tries = retrying.statistics.get("attempt_number", 1)
        raise _explained(error, uri, tries, time.monotonic() - started) from error


def _explained(error: Exception, uri: str, tries: int, seconds: float) -> Exception:
    code, status = code_of(error)
    if code == "NoSuchBucket" or isinstance(error, boto.ParamValidationError):
        return missing_bucket(uri)
    if is_transient(error):
        return StorageFault(
            f"{uri}: S3 at {endpoint()} failed {tries} times in {seconds:.0f} s ({code}); check the endpoint "
            "and run again, what is stored is kept"
        )
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return BadInput(f"{uri}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if code in _EXPIRED or (status == 400 and code in _BARE):
        return BadInput(
            f"{uri}: S3 refuses the credentials ({code}: an expired AWS_SESSION_TOKEN looks like this); renew them"
        )
    if code in _CLOCK:
        return BadInput(f"{uri}: S3 refuses the request as too old ({code}); set this machine's clock")
    if isinstance(error, PermissionError) or status in (401, 403):
        return StorageFault(
            f"{uri}: S3 denies access ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they "
            "may do in this bucket"
        )
    if isinstance(error, FileNotFoundError) or status == 404:
        return FileNotFoundError(uri)
    if status == 412:
        return Changed(f"{uri}: changed while it was read; run again")
    return StorageFault(f"{uri}: S3 at {endpoint()} refuses the request ({code}: {error})")


def whole(answer: dict[str, Any], *names: str) -> dict[str, Any]:
    """The answer, or `Incomplete` where one of these is not in it."""
    missing = [name for name in names if not answer.get(name) and answer.get(name) != 0]
    if missing:
        raise Incomplete(f"no {', no '.join(missing)} in the answer")
    return answer


def missing_bucket(uri: str) -> BadInput:
    """The error for a bucket that is not there; a bucket is never created, a typo would make one."""
    name = uri.removeprefix("s3://").split("/")[0]
    return BadInput(
        f"{uri}: there is no bucket {name!r} at {endpoint()}; create it or correct the name, "
        "it is never created for you"
    )


def endpoint() -> str:
    """Where S3 is spoken to, as the environment says."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
