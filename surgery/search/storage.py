"""The database in which Optuna keeps a study, and its errors as one line each."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sqlite3
import stat
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

from gguf_tools.errors import InputError
from gguf_tools.formats.opened import note_opened
from gguf_tools.text import first_line

if TYPE_CHECKING:
    import optuna

HEARTBEAT = 3
"""Seconds between two signs of life of a worker."""
GRACE = 20
"""Seconds without one after which a trial is given to another worker."""
SQLITE = "sqlite:///"
TABLES = ("stud", "trial", "version_info", "alembic_version", "sqlite_")
"""How the names of the tables begin that Optuna and SQLite make."""
PAUSE = 0.5
"""Seconds before the tables of a storage are tried again that another worker is making."""


class Stored(Protocol):
    """What lies in a storage."""

    url: str


S = TypeVar("S", bound=Stored)
P = ParamSpec("P")
T = TypeVar("T")


def reported(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Have a method raise InputError, naming the storage, where the storage fails in it: a full disk, a lost connection."""

    @functools.wraps(method)
    def told(self: S, /, *args: P.args, **named: P.kwargs) -> T:
        """The method, with the storage's errors turned into InputError."""
        try:
            return method(self, *args, **named)
        except _failures() as error:
            raise unusable(self.url, error) from error

    return told


def _failures() -> tuple[type[Exception], ...]:
    """What Optuna and SQLAlchemy raise where a storage cannot be read or written."""
    from sqlalchemy.exc import SQLAlchemyError

    return (load_optuna().exceptions.OptunaError, SQLAlchemyError)


def load_optuna() -> Any:
    """The optuna package; InputError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise InputError(
            "tinyq search keeps its study with Optuna, which is not installed; pip install 'tinyq-gguf[search]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def storage_url(storage: str) -> str:
    """The URL of a storage as SQLAlchemy takes it: a path is that of an SQLite file, PostgreSQL's driver is psycopg.

    Raises InputError for a path with a question mark, after which SQLAlchemy reads options instead of the path.
    """
    if "://" not in storage:
        if "?" in storage:
            raise InputError(f"{storage}: has a question mark, which a database's path cannot have; give another path")
        return f"{SQLITE}{Path(storage).absolute()}"
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", storage)


def database_file(url: str) -> Path | None:
    """The file that an SQLite URL names, without the options after it; None for other databases."""
    return Path(url.removeprefix(SQLITE).partition("?")[0]) if url.startswith(SQLITE) else None


def opened_storage(url: str, *, make: bool) -> optuna.storages.RDBStorage:
    """Optuna's storage at a URL, with heartbeats, its tables made with `make`; InputError where it cannot be used."""
    storages = load_optuna().storages
    file = database_file(url)
    if file:
        _refuse_other(file, url, make)
    # SQLite's writers wait for each other instead of failing at once.
    engine = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    for last in (False, False, True):
        try:
            made: optuna.storages.RDBStorage = storages.RDBStorage(
                url,
                engine_kwargs=engine,
                heartbeat_interval=HEARTBEAT,
                grace_period=GRACE,
                skip_table_creation=not make,
            )
            if make and url.startswith("sqlite"):
                _relax(made)
            if file and file.exists():
                note_opened(file.stat())
            return made
        except Exception as error:
            # Workers that begin at the same time make the tables at the same time; one of them is refused.
            if last or "already exists" not in str(error):
                raise unusable(url, error) from error
            time.sleep(PAUSE)
    raise AssertionError("the last attempt returns or raises")


def _refuse_other(path: Path, url: str, make: bool) -> None:
    """Raise InputError for a file that holds anything but studies, before tables are made in it; `make` is whether they will be.

    A link is followed only to read: it may have come with a folder from elsewhere, and lead out of it.
    """
    if make and path.is_symlink():
        raise InputError(f"{path}: is a symbolic link; give its target, {os.path.realpath(path)}, with --storage")
    if not path.exists():
        return
    if not stat.S_ISREG(path.stat().st_mode):
        raise InputError(f"{path}: is not a regular file; give a study's database")
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=60)
        ) as database:
            names = [str(name) for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    except (sqlite3.Error, OSError) as error:
        raise unusable(url, error) from error
    # Another worker may be making the tables, one after the other.
    other = [name for name in names if not name.startswith(TABLES)]
    if other or not (names or make):
        holds = f"the table {other[0]}" if other else "no table"
        raise InputError(f"{path}: holds {holds}, and is no database of studies; give another path or URL")


def _relax(backend: optuna.storages.RDBStorage) -> None:
    """Let SQLite commit without waiting for the disk: nothing is lost if a process is killed, only if the machine is."""
    from sqlalchemy import event

    def relaxed(connection: Any, _: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    event.listen(backend.engine, "connect", relaxed)
    backend.engine.dispose()


def shown_url(url: str) -> str:
    """A storage URL without its password."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", url)


def unusable(url: str, error: Exception) -> InputError:
    """The error for a storage that cannot be used; the first line of the database's own error says why."""
    cause = error.__cause__ or error
    name = shown_url(url.removeprefix(SQLITE))
    return InputError(
        f"{name}: the storage cannot be used ({first_line(cause, 400)}); give another, or remove the cause"
    )
