"""An MLflow server on PostgreSQL with an artifact proxy, in one folder: started, watched and stopped together.

| in the folder | what |
|---|---|
| `postgres/` | the database; PostgreSQL listens on a Unix socket only, so it takes no port and asks for no password |
| `socket/` | that socket, for its owner and root alone |
| `artifacts/` | files of runs, which the server hands out and takes in: clients need no access to them |
| `backups/` | a dump before each `--upgrade` |
| `postgres.log`, `mlflow.log` | what both say |

Processes of both are children in sessions of their own, so that Ctrl-C ends them in order. What a killed command left
running is ended by the next one. PostgreSQL refuses to run as root, so it then runs as the user `postgres`.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
from filelock import FileLock, Timeout

from lightbox.errors import RequestError, WorkError
from lightbox.runs import index_place

HOST = "127.0.0.1"
NAME = "mlflow"  # of the database and of its role
START_S, STOP_S = 180.0, 30.0  # the first start migrates an empty database; on a busy machine that is a minute
LONGEST_SOCKET = 107  # bytes that a Unix socket's path may have on Linux
PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin")  # Debian's and Red Hat's, which stand on no PATH
CLIENT_ONLY = ("MLFLOW_TRACKING_URI", "MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "MLFLOW_CONFIGURE_LOGGING")


@dataclass(frozen=True)
class Account:
    """Whose PostgreSQL's processes are: None in both means ours."""

    user: int | None = None
    group: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """For `subprocess`."""
        return {} if self.user is None else {"user": self.user, "group": self.group, "extra_groups": []}


def serve(folder: Path, port: int, *, upgrade: bool = False, workers: int = 1, on_ready: Callable[[str], None]) -> None:
    """Run the server until it is interrupted.

    Args:
        folder: of its data; made where there is none.
        port: of 127.0.0.1.
        upgrade: dump the database, then bring its tables to the installed MLflow's, before the start.
        workers: processes that answer.
        on_ready: called once with the address, when it answers.

    Raises:
        RequestError: a port in use, no PostgreSQL or another version of it, a folder that it cannot use or that another
            such command holds.
        WorkError: where one of the two does not start, or ends by itself.
    """
    check_port(port, folder)
    folder = folder.expanduser().resolve()
    programs, account = find_programs(folder), find_account()
    check_folder(folder, account)
    with _alone(folder):
        _end_leftovers(folder, programs, account)
        check_port(port, folder)  # a leftover may have held it, see there
        database = _start_postgres(folder, programs, account)
        server = None
        try:
            if upgrade:
                upgrade_tables(folder, programs)
            server = _start_mlflow(folder, port, workers)
            on_ready(f"http://{HOST}:{port}")
            _watch({"PostgreSQL": (database, "postgres.log"), "MLflow": (server, "mlflow.log")}, folder)
        finally:
            if server is not None:
                _end_group(server.pid)
            _end(database, signal.SIGINT)  # "fast": it does not wait for clients to leave


def check_port(port: int, folder: Path) -> None:
    """Raise `RequestError` where another program listens there; a leftover of a command on `folder` does not count.

    Without this check MLflow would migrate its database for a minute before it finds out.
    """
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as err:
            if _leftover_group(folder) is not None:
                return
            raise RequestError(
                f"--port is {port}",
                f"The server cannot listen at {HOST}:{port}: {err.strerror}",
                "Give a free port with --port, or end the program that listens there",
            ) from err


def find_programs(folder: Path) -> Path:
    """The newest PostgreSQL's folder of programs, or that of the version which made the database in `folder`.

    Raises:
        RequestError: where there is none, or no driver for it.
    """
    if find_spec("psycopg") is None:
        raise RequestError(
            "The driver psycopg is not installed",
            "MLflow cannot talk to PostgreSQL without it",
            "Install the extra 'server' of lightbox-core (`uv sync` does)",
        )
    on_path = shutil.which("initdb")
    places = [Path(on_path).resolve().parent] if on_path else []
    places += [found for pattern in PLACES for found in Path("/").glob(pattern[1:])]
    versions = {version(place): place for place in places if (place / "postgres").is_file()}
    if not versions:
        raise RequestError(
            "The programs of a PostgreSQL server are needed",
            f"There is no `initdb` on the PATH, nor in {' or '.join(PLACES)}",
            "Install it, on Debian and Ubuntu with `apt-get install postgresql`",
        )
    made_by = folder / "postgres" / "data" / "PG_VERSION"
    if not made_by.is_file():
        return versions[max(versions)]
    wanted = int(made_by.read_text(encoding="utf-8").split(".")[0])
    if wanted not in versions:
        raise RequestError(
            f"The database in {folder} was made by PostgreSQL {wanted}",
            f"Only {', '.join(map(str, sorted(versions)))} is installed here, and cannot read it",
            "Install that version, or give another folder: `lightbox compare --rebuild-index` fills it from the runs",
        )
    return versions[wanted]


def version(programs: Path) -> int:
    """Major version, from `postgres --version`."""
    said = subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    return int(said.split()[2].split(".")[0])


def find_account() -> Account:
    """Ours, or that of the user `postgres` where we are root.

    Raises:
        RequestError: where we are root and there is no such user.
    """
    if os.geteuid() != 0:
        return Account()
    try:
        entry = pwd.getpwnam("postgres")
    except KeyError as err:
        raise RequestError(
            "The command runs as root, and there is no user 'postgres'",
            "PostgreSQL refuses to run as root",
            "Run it as another user, or make that one with `useradd --system postgres`",
        ) from err
    return Account(entry.pw_uid, entry.pw_gid)


def check_folder(folder: Path, account: Account) -> None:
    """Make the folder.

    Raises:
        RequestError: where its path is too long for a socket, or it cannot be written or entered.
    """
    path = str(folder / "socket" / ".s.PGSQL.5432")
    if len(path.encode()) > LONGEST_SOCKET:
        raise RequestError(
            f"The folder is {folder}",
            f"The socket in it would be {path}, longer than the {LONGEST_SOCKET} bytes that a socket's path may have",
            "Give a folder with a shorter path",
        )
    try:
        (folder / "artifacts").mkdir(parents=True, exist_ok=True)
        for name, mode in (("postgres", 0o700), ("socket", 0o700)):
            (folder / name).mkdir(mode=mode, exist_ok=True)
            if account.user is not None:
                os.chown(folder / name, account.user, account.group or -1)
        subprocess.run(["true"], cwd=folder / "postgres", check=True, **account.options)
    except OSError as err:
        who = "the user 'postgres', as which PostgreSQL runs for root," if account.user is not None else "you"
        raise RequestError(
            f"The folder is {folder}",
            f"It must be writable, and {who} must be able to enter it: {err.strerror}",
            "Give another folder, or the right to enter this one and those above it",
        ) from err


def database_uri(folder: Path) -> str:
    """Address of the database for MLflow."""
    return f"postgresql+psycopg://{NAME}@/{NAME}?host={quote(str(folder / 'socket'), safe='')}"


def upgrade_tables(folder: Path, programs: Path) -> None:
    """Dump the database, then migrate it; PostgreSQL runs, and MLflow does not.

    Raises:
        WorkError: where one of both fails. The dump is kept.
    """
    (folder / "backups").mkdir(exist_ok=True)
    dump = folder / "backups" / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}.dump"
    source = ["--host", folder / "socket", "--username", NAME, NAME]
    _run([programs / "pg_dump", "--format=custom", f"--file={dump}", *source], folder, "mlflow.log")
    _run([sys.executable, "-m", "mlflow", "db", "upgrade", database_uri(folder)], folder, "mlflow.log")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as err:
        raise RequestError(
            f"The folder is {folder}", "Another such command serves it", "Use that one, or give another folder"
        ) from err
    try:
        yield
    finally:
        lock.release()


def _start_postgres(folder: Path, programs: Path, account: Account) -> subprocess.Popen[Any]:
    data = folder / "postgres" / "data"
    if not data.is_dir():
        _make_database(folder, programs, account)
    command = [programs / "postgres", "-D", data, "-c", "listen_addresses="]
    command += ["-c", f'unix_socket_directories="{folder / "socket"}"']
    process = _spawn(command, folder, "postgres.log", **account.options)
    ready = [programs / "pg_isready", "--quiet", "--host", folder / "socket"]
    _await(lambda: subprocess.run(ready).returncode == 0, process, "PostgreSQL", folder / "postgres.log")
    return process


def _make_database(folder: Path, programs: Path, account: Account) -> None:
    """Into a folder beside its place, then there: a kill leaves none half made."""
    half = folder / "postgres" / "new"
    shutil.rmtree(half, ignore_errors=True)
    # The socket's folder is closed to others, so whoever reaches it is trusted.
    access = ["--auth-local=trust", "--auth-host=reject", f"--username={NAME}"]
    form = ["--encoding=UTF8", "--no-locale", "--data-checksums"]
    _run([programs / "initdb", "-D", half, *access, *form], folder, "postgres.log", **account.options)
    single = [programs / "postgres", "--single", "-D", half, "postgres"]
    _run(single, folder, "postgres.log", words=f"CREATE DATABASE {NAME}\n", **account.options)
    half.rename(folder / "postgres" / "data")


def _start_mlflow(folder: Path, port: int, workers: int) -> subprocess.Popen[Any]:
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database_uri(folder)]
    command += ["--artifacts-destination", (folder / "artifacts").as_uri()]
    command += ["--host", HOST, "--port", str(port), "--workers", str(workers)]
    process = _spawn(command, folder, "mlflow.log", env=_server_environment())
    (folder / "mlflow.pid").write_text(str(process.pid), encoding="utf-8")

    def answers() -> bool:
        with contextlib.suppress(OSError):
            index_place.probe(f"http://{HOST}:{port}")
            return True
        return False

    try:
        _await(answers, process, "MLflow", folder / "mlflow.log")
    except BaseException:  # an interrupt, too, must not leave it running
        _end_group(process.pid)
        raise
    return process


def _server_environment() -> dict[str, str]:
    environment = os.environ | index_place.ENVIRONMENT
    return {name: value for name, value in environment.items() if name not in CLIENT_ONLY}


def _watch(children: dict[str, tuple[subprocess.Popen[Any], str]], folder: Path) -> None:
    """Return never; raise `WorkError` where a child ends by itself."""
    while True:
        time.sleep(0.5)
        for name, (process, log) in children.items():
            if process.poll() is not None:
                raise _ended(name, process, folder / log)


def _await(is_ready: Callable[[], bool], process: subprocess.Popen[Any], name: str, log: Path) -> None:
    end = time.monotonic() + START_S
    while not is_ready():
        if process.poll() is not None:
            raise _ended(name, process, log)
        if time.monotonic() > end:
            _end(process, signal.SIGTERM)
            raise WorkError(f"{name} was started", f"It did not answer within {START_S:.0f} s", f"Read {log}")
        time.sleep(0.2)


def _ended(name: str, process: subprocess.Popen[Any], log: Path) -> WorkError:
    why = f"It ended with {process.returncode}; its last words: {_last_words(log)}"
    do = f"Read {log}; the same command starts again, and nothing in the database is lost"
    if "out-of-date database schema" in _tail(log):
        why = "Its tables are those of another MLflow than the one installed"
        do = "Give --upgrade, which makes a dump and then changes them"
    return WorkError(f"{name} was started in {log.parent}", why, do)


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-3000:]


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in _tail(log).splitlines() if line.strip()]
    return lines[-1][:300] if lines else "none"


def _spawn(command: list[Any], folder: Path, log: str, **options: Any) -> subprocess.Popen[Any]:
    with (folder / log).open("ab") as file:
        return subprocess.Popen(
            [str(word) for word in command],
            cwd=folder / "postgres",
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **options,
        )


def _run(command: list[Any], folder: Path, log: str, *, words: str = "", **options: Any) -> None:
    """Run one program to its end, with `words` on its input; raise `WorkError` where it fails."""
    options = {"env": _server_environment(), "cwd": folder / "postgres"} | options
    with (folder / log).open("ab") as file:
        given = [str(word) for word in command]
        done = subprocess.run(given, input=words.encode(), stdout=file, stderr=subprocess.STDOUT, **options)
    if done.returncode:
        raise WorkError(
            f"{Path(given[0]).name} was run in {folder}",
            f"It ended with {done.returncode}; its last words: {_last_words(folder / log)}",
            f"Read {folder / log}, and give the same command again",
        )


def _leftover_group(folder: Path) -> int | None:
    """Process group of an MLflow that a killed command left running, known by its number and its command line."""
    try:
        group = int((folder.expanduser() / "mlflow.pid").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return group if _members(group) else None


def _members(group: int) -> list[psutil.Process]:
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and "mlflow" in " ".join(process.cmdline()):
                members.append(process)
    return members


def _end_leftovers(folder: Path, programs: Path, account: Account) -> None:
    group = _leftover_group(folder)
    if group is not None:
        _end_group(group)
    (folder / "mlflow.pid").unlink(missing_ok=True)
    control, data = programs / "pg_ctl", folder / "postgres" / "data"
    options = {"cwd": folder / "postgres", "capture_output": True} | account.options
    if data.is_dir() and subprocess.run([control, "status", "-D", data], **options).returncode == 0:
        subprocess.run([control, "stop", "-w", "-m", "fast", "-D", data], **options)


def _end_group(group: int) -> None:
    """End MLflow's processes, which form a group, politely and then not."""
    members = _members(group)
    for process in members:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(members, timeout=STOP_S / 3)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_S / 3)


def _end(process: subprocess.Popen[Any], number: int) -> None:
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGQUIT)  # PostgreSQL recovers from its log at the next start
            process.wait(timeout=STOP_S)
