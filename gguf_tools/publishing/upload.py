"""Uploads a published folder to a repository on the hub: what is there already, what would be replaced, one commit.

Large files go up one after another, before the commit. The hub keeps each of them, so that an upload that was interrupted goes on
with the file that was not complete; nothing is visible before the commit, which has all files at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from gguf_tools.errors import InputError, OutputError, TinyqError
from gguf_tools.progress import StageProgress
from gguf_tools.publishing.names import is_full_id
from gguf_tools.sources.hub.client import (
    ATTEMPTS,
    TransientError,
    endpoint,
    pause,
    quiet_library,
    require_hub,
    transient,
    transport,
)
from gguf_tools.sources.hub.requests import files_of, json_at
from gguf_tools.sources.hub.threads import within
from gguf_tools.text import one_line, shortened

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN, with a token that may write"
ALONE = 1 << 16
"""Bytes from which on a file is sent before the commit, if the hub keeps such files apart (LFS); others go with the commit."""
ANSWER_SECONDS = 600.0
"""Most seconds for a request and its answer, and as many more as what is sent takes at `SLOWEST`."""
SLOWEST = 10_000
"""Bytes of an upload in a second."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A repository as it is: its commit (None if it does not exist) and the digest of each file.

    A digest is the SHA-256 of a large file, or the git object id (SHA-1) of another.
    """

    repository: str
    commit: str | None
    files: Mapping[str, str]

    def others(self, names: Sequence[str], folder: Path | None = None) -> tuple[str, ...]:
        """The files of these names that are there; with `folder`, only those that differ from the files in it."""
        there = [name for name in names if name in self.files]
        return tuple(name for name in there if folder is None or not self.has(name, folder / name))

    def has(self, name: str, path: Path) -> bool:
        """Whether the repository has a file of this name with the same content."""
        digest = self.files.get(name)
        return digest is not None and digest in _digests(path)


@dataclass(frozen=True, kw_only=True)
class Uploaded:
    """A finished upload: the commit's address, the names of the files that it has changed, and their bytes."""

    repository: str
    url: str
    names: tuple[str, ...]
    bytes: int


def check_repository(repository: str) -> None:
    """Raise InputError unless `repository` is OWNER/NAME as the hub accepts it."""
    if not is_full_id(repository):
        raise InputError(
            f"--to is {repository!r}; expected OWNER/NAME of letters, digits, '-', '_' and '.', such as me/model-GGUF"
        )


def look(repository: str) -> Remote:
    """The repository as it is, before any work. Raises OutputError if it cannot be written by the user of the token."""
    hub = _library(repository)
    if hub.get_token() is None:
        raise OutputError(f"{repository}: uploading needs a token; {LOG_IN}")
    user = _asked(repository, lambda: json_at("/api/whoami-v2"))
    owner = repository.partition("/")[0]
    orgs = user.get("orgs")
    spaces = [
        user.get("name"),
        *(each.get("name") for each in (orgs if isinstance(orgs, list) else []) if _is_map(each)),
    ]
    if owner.lower() not in [str(name).lower() for name in spaces if name]:
        raise OutputError(
            f"{repository}: the token is that of {user.get('name')}, who is neither {owner} nor a member of it; {LOG_IN}"
        )
    auth = user.get("auth")
    token = auth.get("accessToken") if _is_map(auth) else None
    if _is_map(token) and token.get("role") == "read":
        raise OutputError(f"{repository}: the token may only read; {LOG_IN}")
    return _remote(repository)


def upload(
    folder: Path,
    names: Sequence[str],
    repository: str,
    *,
    private: bool = False,
    force: bool = False,
    message: str = "Upload GGUF files",
    progress: StageProgress | None = None,
) -> Uploaded:
    """Upload these files of a folder in one commit; files that the repository has already are left out.

    Raises OutputError, saying how to go on, if the hub refuses or cannot be reached, and if a file that differs would be replaced
    without `force`.
    """
    hub = _library(repository)
    api = hub.HfApi()
    go_on = f"nothing was changed there; the files are complete in {folder}: go on with tinyq publish {folder} --to {repository}"
    with quiet_library():
        try:
            _asked(repository, lambda: api.create_repo(repository, private=private, exist_ok=True))
            remote = _remote(repository)
            refuse_replacing(remote, remote.others(names, folder), force=force)
            changed = [name for name in names if not remote.has(name, folder / name)]
            sizes = {name: (folder / name).stat().st_size for name in changed}
            if not changed:
                return Uploaded(repository=repository, url=_commit_url(remote), names=(), bytes=0)
            additions = [hub.CommitOperationAdd(name, folder / name) for name in changed]
            done, total = 0, sum(sizes.values())
            for name, addition in zip(changed, additions, strict=True):
                _tell(progress, done, total)
                if sizes[name] >= ALONE:
                    _asked(repository, partial(api.preupload_lfs_files, repository, [addition]), sizes[name])
                done += sizes[name]
            _tell(progress, done, total)
            commit = _asked(
                repository,
                lambda: api.create_commit(
                    repository, additions, commit_message=message, parent_commit=remote.commit, num_threads=1
                ),
                total,
            )
        except OutputError as error:
            raise OutputError(f"{error}; {go_on}") from error
    return Uploaded(repository=repository, url=str(commit.commit_url), names=tuple(changed), bytes=total)


def refuse_replacing(remote: Remote, names: Sequence[str], *, force: bool) -> None:
    """Raise OutputError if files in the repository would be replaced without `force`."""
    if names and not force:
        listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise OutputError(
            f"{remote.repository}: has {listed} already, which would be replaced; add --force to replace them, or give "
            "another --to"
        )


def _tell(progress: StageProgress | None, done: int, total: int) -> None:
    if progress is not None:
        progress("uploading", done, total)


def _library(repository: str) -> Any:
    """The module huggingface_hub. Raises InputError if it is not installed, or cannot be used in this environment."""
    return require_hub(repository, "uploading", "uploading needs huggingface_hub")


def _is_map(value: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a value of an answer is an object."""
    return isinstance(value, dict)


def _remote(repository: str) -> Remote:
    """The repository's files, without any if it does not exist."""
    from huggingface_hub.errors import RepositoryNotFoundError

    def described() -> dict[str, Any] | None:
        try:
            return json_at(f"/api/models/{repository}?blobs=true")
        except RepositoryNotFoundError:
            return None

    found = _asked(repository, described)
    if found is None:
        return Remote(repository=repository, commit=None, files={})
    files = {path: sha256 or oid for path, _, sha256, oid in files_of(found) if isinstance(path, str)}
    commit = found.get("sha")
    return Remote(
        repository=repository,
        commit=commit if isinstance(commit, str) else None,
        files={path: digest if isinstance(digest, str) else "" for path, digest in files.items()},
    )


def _commit_url(remote: Remote) -> str:
    return f"{endpoint()}/{remote.repository}/commit/{remote.commit}"


def _digests(path: Path) -> tuple[str, str]:
    """A file's SHA-256, and its SHA-1 as a git object, in hexadecimal."""
    plain, git = hashlib.sha256(), hashlib.sha1(usedforsecurity=False)
    git.update(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            plain.update(piece)
            git.update(piece)
    return plain.hexdigest(), git.hexdigest()


def _asked(repository: str, call: Callable[[], T], size: int = 0) -> T:
    """The result of a request that sends `size` bytes, repeated after errors that may pass. Raises OutputError, in one line."""
    attempt, limit = 0, ANSWER_SECONDS + size / SLOWEST
    while True:
        attempt += 1
        try:
            return within(limit, call)
        except TimeoutError as error:
            raise OutputError(
                f"{repository}: the hub gave no answer within {limit:.0f} s; check the connection"
            ) from error
        except TinyqError as error:
            raise OutputError(f"{repository}: {error}") from error
        except Exception as error:
            cause = _cause(error)
            again = transient(cause)
            if again is None or attempt == ATTEMPTS:
                raise _explained(cause, repository) from error
            pause(attempt, again.wait)


def _cause(error: Exception) -> Exception:
    """The answer or the failed connection behind an error; the library wraps it where it uploads a large file."""
    from huggingface_hub.errors import HTTPError

    found: BaseException | None = error
    while found is not None and not isinstance(found, HTTPError):
        found = found.__cause__
    return found if isinstance(found, Exception) else error


def _explained(error: Exception, repository: str) -> Exception:
    """The error to show for what huggingface_hub raised; one that it does not know is returned as it is."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    if isinstance(error, OfflineModeIsEnabled):
        return OutputError(f"{repository}: cannot be uploaded to while HF_HUB_OFFLINE is set; unset it")
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        said = shortened(one_line(error.response.headers.get("X-Error-Message") or error.server_message or ""), 300)
        if status == 401 and not isinstance(error, RepositoryNotFoundError):
            return OutputError(f"{repository}: the hub does not accept the token; {LOG_IN}")
        if status == 403:
            return OutputError(f"{repository}: the token may not write there ({said or status}); {LOG_IN}")
        if status in (401, 404):
            return OutputError(
                f"{repository}: the hub has no such repository that the token may write; check the name, or {LOG_IN}"
            )
        if status == 412:
            return OutputError(
                f"{repository}: was changed by someone else meanwhile; look at it and run the command again"
            )
        if status == 429:
            return OutputError(f"{repository}: the hub limits the number of requests (429); wait some minutes")
        return OutputError(f"{repository}: the hub answered with status {status}" + (f" ({said})" if said else ""))
    if isinstance(error, HTTPError | TransientError):
        said = f"the hub {endpoint()} cannot be reached ({transport(error)})"
        return OutputError(f"{repository}: {said}; check the connection")
    if isinstance(error, OSError | ValueError):
        return OutputError(f"{repository}: could not be uploaded ({shortened(one_line(str(error)), 200)})")
    if isinstance(error, MemoryError):
        return error
    # The library takes answers to be of the right form.
    said = shortened(one_line(f"{type(error).__name__}: {error}"), 160)
    return OutputError(
        f"{repository}: the hub's answer was not understood ({said}); check HF_ENDPOINT, or try again later"
    )
