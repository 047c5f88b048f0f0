"""Where the MLflow index lives and whether it answers: environment, addresses, probes. Imports no mlflow.

A run folder is complete without MLflow, so every question here is answered within seconds.
"""

import json
import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import requests

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # on by default in 3.17: job routes without a login
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",  # on by default in 3.17
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",  # a pooled connection would outlive a database set aside
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # would break --json
    "MLFLOW_CONFIGURE_LOGGING": "false",  # its import would undo the levels set below
}
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}  # its own: 247 s of silence
PROBE_S = 5.0
_log = logging.getLogger("lightbox.runs.index")
HEALTH_S = 3.0  # a server that is alive answers this within milliseconds


def prepare_environment() -> None:
    """Set what mlflow reads at import: no telemetry, no job execution, no pickle; short waits unless the user chose."""
    os.environ.update(ENVIRONMENT)
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # their tracebacks and retries; our one warning says it


def sqlite_uri(database: Path) -> str:
    """Address of a database file, as SQLAlchemy writes it."""
    return f"sqlite:///{database}"


def index_uri(out: Path) -> str:
    """MLFLOW_TRACKING_URI where it is set, else the database of the output folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(out / "mlflow.db")


def known_run_ids(out: Path) -> dict[str, str]:
    """MLflow run ids by name of the run's folder, as written beside the index; empty where there is none or damage."""
    path = out / "mlflow-runs.json"
    try:
        ids = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as err:
        ids = err
    if isinstance(ids, dict):
        return ids
    _log.warning("%s cannot be read and counts as empty: %s", path, ids)
    return {}


def database_of(uri: str) -> Path | None:
    """File behind a `sqlite:///` address; None for any other address."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def shown(uri: str) -> str:
    """An address without user and password, for messages and files."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else uri


def probe(uri: str, *, timeout_s: float = PROBE_S) -> None:
    """Ask whether the index can be written now, waiting at most `timeout_s` for a lock, or `HEALTH_S` for a server.

    mlflow alone would wait 20 s for a lock. Addresses other than `sqlite:///` and `http(s)://` are not probed.

    Raises:
        OSError: where nothing listens at the server's address, or it does not answer, or with a fault of its own.
        sqlite3.Error: where the database is absent, locked or damaged.
    """
    database = database_of(uri)
    if database is not None:
        address = f"{database.resolve().as_uri()}?mode=rw"  # mode=rw never creates the file
        with closing(sqlite3.connect(address, uri=True, timeout=timeout_s, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    elif urlsplit(uri).scheme in ("http", "https"):
        _probe_server(uri)


def _probe_server(uri: str) -> None:
    certificates = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH")
    is_checked = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() not in ("true", "1")
    address = f"{uri.rstrip('/')}/health"
    try:
        with requests.get(
            address, timeout=HEALTH_S, verify=certificates or is_checked, allow_redirects=False, stream=True
        ) as reply:
            status = reply.status_code
    except requests.Timeout as err:
        raise TimeoutError(f"it did not answer within {HEALTH_S:.0f} s") from err
    except requests.ConnectionError as err:
        raise ConnectionError(_root_cause(err)) from err
    if status >= 500:  # others, such as 401 or 404, come from a server that is alive, whatever it thinks of /health
        raise ConnectionError(f"it answers with status {status}")


def _root_cause(err: BaseException) -> str:
    """The system's own words, which stand at the end of a chain of four errors."""
    cause: BaseException | None = err
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(err)


def is_locked(err: Exception | None) -> bool:
    """True where another process holds the database: waiting helps, and setting the file aside would not."""
    return isinstance(err, sqlite3.OperationalError) and "locked" in str(err)


def set_aside(database: Path) -> Path:
    """Rename an unusable database to a free name beside it and return that name; nothing is deleted."""
    names = (database.with_name(f"{database.name}.aside-{number}") for number in range(1, 10_000))
    free = next(name for name in names if not name.exists())
    return database.rename(free)
