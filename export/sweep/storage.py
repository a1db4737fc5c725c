"""Where a study lies: a file, a database, or Optuna's journal, opened with one sentence for what is wrong."""

from pathlib import Path

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.study import StudyDirection
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from edgeblt.bundle.whole_files import cannot_write
from edgeblt.errors import EdgebltError
from edgeblt.printable import printable

JOURNAL = "journal:"
STUDY_FILE = "study.sqlite"
_DATABASES = ("sqlite", "postgresql", "mysql")
_SECONDS_TO_WAIT = 60  # for another process that writes to the same SQLite file
_ATTEMPTS = 3  # two processes may make the tables of a new database at once
_DIRECTIONS = (StudyDirection.MINIMIZE, StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE)  # size, bits, speed


def open_study(name: str, url: str | None, directory: Path) -> optuna.Study:
    """The study of this name, made if it is new.

    url: a database (`postgresql://...`, `mysql://...`, `sqlite:///FILE`) or `journal:FILE`; None is a SQLite file in
        `directory`.

    Raises EdgebltError for a storage that cannot be opened, and for a study of that name with other objectives.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = _opened(url, directory)
    try:
        study = optuna.create_study(storage=storage, study_name=name, directions=_DIRECTIONS, load_if_exists=True)
    except (ValueError, optuna.exceptions.OptunaError, SQLAlchemyError) as error:
        raise EdgebltError(
            f"the study {name!a:.60} cannot be opened ({_first_line(error)}); give another name"
        ) from None
    if tuple(study.directions) != _DIRECTIONS:
        raise EdgebltError(f"the study {name!a:.60} is no sweep of edgeblt; give another name")
    return study


def shown_url(url: str) -> str:
    """The URL without its password."""
    try:
        return printable(sqlalchemy.make_url(url).render_as_string(hide_password=True))
    except ArgumentError:
        return "the URL"


def _opened(url: str | None, directory: Path) -> BaseStorage:
    if url is not None and url.startswith(JOURNAL):
        return _journal(Path(url.removeprefix(JOURNAL)))
    url = f"sqlite:///{(directory / STUDY_FILE).absolute()}" if url is None else url
    try:
        kind = sqlalchemy.make_url(url).get_backend_name()
    except (ArgumentError, ValueError):
        raise EdgebltError(
            f"the storage is {url!a:.100}, which is no URL; give postgresql://..., mysql://..., sqlite:///FILE or "
            f"{JOURNAL}FILE"
        ) from None
    if kind not in _DATABASES:
        raise EdgebltError(f"the storage is {shown_url(url)}; use one of {', '.join(_DATABASES)}, or {JOURNAL}FILE")
    return _database(url, {"connect_args": {"timeout": _SECONDS_TO_WAIT}} if kind == "sqlite" else {})


def _database(url: str, options: dict[str, object]) -> RDBStorage:
    for attempt in range(_ATTEMPTS):
        try:
            return RDBStorage(url, engine_kwargs=options)
        except ImportError:
            driver = "psycopg[binary]" if url.startswith("postgresql") else "the database's driver"
            raise EdgebltError(f"{shown_url(url)} needs {driver}; install it with pip") from None
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError, ValueError, OSError) as error:
            if attempt + 1 == _ATTEMPTS:
                raise EdgebltError(
                    f"{shown_url(url)} cannot be used ({_first_line(error)}); check the address, and that it runs"
                ) from None
    raise AssertionError


def _journal(path: Path) -> JournalStorage:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))
    except OSError as error:
        raise cannot_write(path, error) from None
    except (ValueError, optuna.exceptions.OptunaError) as error:
        raise EdgebltError(f"{path} is no journal of Optuna ({_first_line(error)}); give another file") from None


def _first_line(error: BaseException) -> str:
    """The reason in a line; SQLAlchemy's errors name the statement in further lines."""
    return printable(str(error).strip().partition("\n")[0])[:160] or type(error).__name__
