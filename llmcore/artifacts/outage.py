"""What goes wrong on the way to an S3 server: the network's part is tried again, the rest is one line."""

from __future__ import annotations

import http.client
import itertools
import logging
import os
import random
import time
from collections.abc import Callable
from typing import TypeVar

import urllib3
from boto3.exceptions import Boto3Error, RetriesExceededError, S3TransferFailedError, S3UploadFailedError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from botocore.exceptions import ConnectionError as ConnectionFault
from botocore.parsers import ResponseParserError

from llmcore.errors import LlmcoreError, OutageError, UnreachableError, UsageError

# for how long a request is tried again before the outage is an error; and the first one of a process, which may as well
# have been sent to a wrong address
OUTAGE_SECONDS = 120.0  # unless LLMCORE_OUTAGE_SECONDS says otherwise
OPEN_SECONDS = 10.0
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0

BY_THE_NETWORK = (
    ConnectionFault,
    HTTPClientError,
    ReadTimeoutError,
    IncompleteReadError,
    ResponseStreamingError,
    ResponseParserError,  # an answer that was cut off
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
)
BUSY = ("SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling", "RequestTimeTooSkewed")
MISTAKEN = (301, 400, 401, 403, 404)

Answer = TypeVar("Answer")


def code_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code"))


def answer_to(request: Callable[[], Answer], doing: str, where: str, opening: bool = False) -> Answer:
    """What the request returns, tried again with back-off and jitter while the network or the server fails.

    Raises OutageError after OUTAGE_SECONDS of that, UnreachableError, when `opening` a store, after OPEN_SECONDS;
    UsageError for what the server refuses. Errors of ours and of the local disk pass through.
    """
    seconds = min(_patience(), OPEN_SECONDS) if opening else _patience()
    until = time.monotonic() + seconds
    for attempt in itertools.count():
        try:
            return request()
        except (BotoCoreError, ClientError, Boto3Error, *BY_THE_NETWORK) as error:
            cause = _cause(error)
            text = f"cannot {doing} {where}: {_why(cause)}"
            if not _may_pass(cause):
                raise _refusal(cause, text) from error
            pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(attempt, 10)) * random.uniform(0.5, 1.0)
            if time.monotonic() + pause > until:
                if opening:
                    raise UnreachableError(f"{text}; check `store` and the AWS_* settings") from error
                raise OutageError(f"{text}; tried for {seconds:.0f} s; run again") from error
            logging.getLogger(__name__).warning("%s; trying again", text)
            time.sleep(pause)
    raise AssertionError


def _patience() -> float:
    text = os.environ.get("LLMCORE_OUTAGE_SECONDS")
    try:
        return OUTAGE_SECONDS if text is None else float(text)
    except ValueError as error:
        raise UsageError(f"LLMCORE_OUTAGE_SECONDS={text!r} is no number of seconds") from error


def _cause(error: BaseException) -> BaseException:
    """What lies below the wrapping of boto3's transfers."""
    below: BaseException | None = None
    if isinstance(error, RetriesExceededError):
        below = error.last_exception  # type: ignore[attr-defined]
    elif isinstance(error, (S3UploadFailedError, S3TransferFailedError)):
        below = error.__cause__ or error.__context__
    return error if below is None else _cause(below)


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, ClientError):
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
        return status >= 500 or status == 429 or code_of(error) in BUSY
    return isinstance(error, BY_THE_NETWORK)


def _refusal(error: BaseException, text: str) -> LlmcoreError:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(error, ClientError) else 400
    if status in MISTAKEN:
        return UsageError(f"{text}; check `store` and the AWS_* settings")
    return LlmcoreError(f"{text}; run again")


def _why(error: BaseException) -> str:
    if isinstance(error, ClientError):
        return f"{code_of(error)} (HTTP {error.response.get('ResponseMetadata', {}).get('HTTPStatusCode')})"
    return " ".join(str(error).split()) or type(error).__name__
