"""The `huggingface_hub` library: whether it is there, what its errors mean to the user, and calls that are tried again."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from gguf_tools.errors import CheckpointError, InputError
from gguf_tools.sources.hub.addresses import has_user, is_server
from gguf_tools.sources.hub.names import HubName
from gguf_tools.text import one_line, shortened

INSTALL = "pip install 'tinyq-gguf[hub]'"
OLDEST = (1, 0)
"""The first version of huggingface_hub whose functions are those that are used here."""
ATTEMPTS = 8
"""Attempts that bring nothing, one after the other, before a request is given up, which is after about two minutes."""
FIRST_CONTACT = 2
"""Attempts to reach the hub for a name that may have been meant as a path."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds before a request is repeated: they double, up to the longest; a server may ask for more (Retry-After)."""
TOLD = 10.0
"""Seconds from which on a wait is announced."""
LONGEST_ASKED = 600.0
"""Most seconds that a server's Retry-After is obeyed."""
LASTING = ("UnsupportedProtocol", "TooManyRedirects", "LocalProtocolError")
"""Failures of the transport that come again with the same request."""
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
"""Status codes after which the same request may succeed."""

T = TypeVar("T")


class HubError(CheckpointError):
    """A source on the hub cannot be read; says what is missing (exit code 2)."""


@dataclass
class TransientError(Exception):
    """Something that may be gone when the request is repeated: what, and how many seconds the server asks to wait."""

    what: str
    wait: float | None = None


def require_hub(
    wanted: str,
    use: str = "reading from the hub",
    needed: str = "no such file or folder; to read a repository of that name from the hub, huggingface_hub is needed",
) -> Any:
    """The module huggingface_hub. Raises InputError, naming what is `wanted`, if it is not installed or too old.

    `use` says in the error what it is for, and `needed` that it is not there.
    """
    check_endpoint()
    try:
        hub = importlib.import_module("huggingface_hub")
        importlib.import_module("huggingface_hub.hf_api")  # what the library itself needs
    except ValueError as error:
        raise InputError(
            f"{wanted}: huggingface_hub cannot be used with the variables of this environment that begin with HF_ "
            f"({shortened(one_line(str(error)), 160)}); check their values"
        ) from error
    except ImportError as error:
        raise InputError(f"{wanted}: {needed} ({one_line(str(error)) or 'not installed'}): {INSTALL}") from error
    version = tuple(int(part) for part in hub.__version__.split(".")[:2] if part.isdigit())
    if version < OLDEST:
        raise InputError(
            f"{wanted}: {use} needs huggingface_hub {'.'.join(map(str, OLDEST))} or later; "
            f"{hub.__version__} is installed; {INSTALL}"
        )
    return hub


def check_endpoint() -> None:
    """Raise InputError if HF_ENDPOINT is set to what is no address; huggingface_hub fails with it while it is imported."""
    url = os.environ.get("HF_ENDPOINT", "")
    if has_user(url):
        raise InputError("HF_ENDPOINT has a user name in its address, which is not supported; use HF_TOKEN for a token")
    if url and not is_server(url):
        raise InputError(
            f"HF_ENDPOINT is {shortened(one_line(url), 120)!r}, which is no address; expected one such as "
            "https://huggingface.co, or unset it"
        )


@contextlib.contextmanager
def quiet_library() -> Iterator[None]:
    """Without huggingface_hub's own progress bars and log lines, which would stand between the command's."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from huggingface_hub.utils.logging import get_verbosity, set_verbosity

    level, shown = get_verbosity(), not are_progress_bars_disabled()
    set_verbosity(logging.ERROR)
    if shown:
        disable_progress_bars()
    try:
        yield
    finally:
        set_verbosity(level)
        if shown:
            enable_progress_bars()


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT, or the public one."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids requests."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def unreachable(error: BaseException) -> bool:
    """Whether an error says that no answer came from the hub: no connection, a timeout, or offline mode."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    return isinstance(error, HTTPError | OfflineModeIsEnabled | TransientError) and not isinstance(
        error, HfHubHTTPError
    )


def transient(error: BaseException) -> TransientError | None:
    """The reason to repeat a request that ended with this error; None if it would end so again."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return TransientError(f"status {status}", asked_wait(error.response)) if status in TRANSIENT else None
    if isinstance(error, TransientError):
        return error
    if isinstance(error, OfflineModeIsEnabled) or not unreachable(error) or type(error).__name__ in LASTING:
        return None
    return TransientError(transport(error))


def asked_wait(response: Any) -> float | None:
    """The seconds that a response asks to wait before the next request (Retry-After), None if it does not say."""
    text = response.headers.get("Retry-After", "").strip()
    if not (text.isascii() and text.isdigit()):
        return None
    return min(float(text), LONGEST_ASKED)


def repeated(call: Callable[[], T], name: HubName, *, known: bool = False) -> T:
    """The result of `call`, repeated after errors that may pass. Raises HubError; `known` is that of `explained`."""
    attempt = 0
    while True:
        try:
            return call()
        except InputError:
            raise
        except Exception as error:
            again = transient(error)
            attempt += 1
            most = FIRST_CONTACT if unreachable(error) and not known else ATTEMPTS
            if again is None or attempt >= most:
                raise explained(error, name, known=known) from error
            if (again.wait or 0) > TOLD:
                warnings.warn(f"{name}: {again.what}; the request is repeated in {again.wait:g} s", stacklevel=2)
            pause(attempt, again.wait)


def pause(attempt: int, asked: float | None = None) -> None:
    """Wait before a request is repeated for the `attempt`th time, as long as the server `asked`, or longer each time."""
    time.sleep(min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT) if asked is None else asked)


def explained(error: BaseException, name: HubName, *, known: bool = False) -> Exception:
    """The error to show for what huggingface_hub raised while `name` was read; other exceptions are returned as they are.

    Unless it is `known` that the repository exists, the name may also have been meant as a path.
    """
    from huggingface_hub import errors

    page = f"{endpoint()}/{name.repository}"
    where = one_line(str(name)) if known else f"{one_line(str(name))}: no such file or folder"
    if isinstance(error, errors.GatedRepoError):
        way = f"accept its licence at {page}"
        if _has_token():
            return HubError(
                f"{name.repository}: is gated, and the account of your token has no access to it; {way} with that account"
            )
        return HubError(f"{name.repository}: is gated; {way}, then {LOG_IN}")
    if isinstance(error, errors.DisabledRepoError):
        return HubError(f"{name}: the hub has disabled this repository; see {page}")
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"{name}: the repository has no revision {name.revision}; see {page}/commits/main")
    if isinstance(error, errors.EntryNotFoundError):
        return HubError(f"{name}: the repository has no such file; see {page}/tree/{name.revision}")
    if isinstance(error, errors.OfflineModeIsEnabled):
        said = "what is needed of it is not in the hub's cache, and HF_HUB_OFFLINE forbids to download it"
        return HubError(f"{where}{_joined(known)}{said}; check the name or unset HF_HUB_OFFLINE")
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(error, name, where, known)
    if unreachable(error):
        said = f"the hub {endpoint()} cannot be reached ({transport(error)})"
        return HubError(f"{where}{_joined(known)}{said}; check the {'' if known else 'name and the '}connection")
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return HubError(f"{name}: {place}{error.strerror or shortened(one_line(str(error)), 200)}")
    if type(error).__name__ == "InvalidURL":
        return HubError(f"{name}: {shortened(one_line(str(error)), 200)}; check HF_ENDPOINT")
    return error if isinstance(error, Exception) else HubError(str(name))


LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def _joined(known: bool) -> str:
    return ": " if known else ", and "


def _refused(error: Any, name: HubName, where: str, known: bool) -> HubError:
    """The error for an answer of the hub with a status code other than success."""
    from huggingface_hub.errors import RepositoryNotFoundError

    status = error.response.status_code
    said = shortened(one_line(error.response.headers.get("X-Error-Message") or ""), 200)
    token = _has_token()
    if status == 401 and "credentials" in said.lower():
        place = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "`hf auth login`"
        return HubError(f"{name}: the hub does not accept the token of {place}; make a new one, then {LOG_IN}")
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        who = "that your token may read" if token else "that is public"
        way = "check the name and the token" if token else f"check the name or, if it is private, {LOG_IN}"
        return HubError(f"{where}{_joined(known)}the hub has no repository {name.repository} {who}; {way}")
    if status == 403:
        return HubError(
            f"{name}: the hub refuses it ({said or status}); {'check the rights of the token' if token else LOG_IN}"
        )
    if status == 429:
        way = "wait some minutes" if token else f"wait some minutes, or {LOG_IN}, which raises the limit"
        return HubError(f"{name}: the hub {endpoint()} limits the number of requests (429); {way}")
    return HubError(f"{name}: the hub {endpoint()} answered with status {status} {said}".rstrip() + "; " + _way(status))


def _way(status: int) -> str:
    """What to do about an answer of this status."""
    return "try again later" if status in TRANSIENT or status >= 500 else "check the name, HF_ENDPOINT and the proxy"


def _has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def transport(error: BaseException) -> str:
    """A failure of the connection in a few words."""
    if isinstance(error, TransientError):
        return error.what
    if type(error).__name__ == "LocalProtocolError":  # its message has the header, which may be the token
        return "a header that cannot be sent"
    return shortened(one_line(str(error)), 120) or type(error).__name__
