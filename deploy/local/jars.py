"""The Java libraries of the stack: a lock file with sha256, and fetching by that list and nothing else.

Belongs here: what is locked, whether what lies on disk is whole, and fetching it with the Ivy that ships inside PySpark.
Not here: class paths of the programs that use the jars (`kafka`, `crm_resources.spark`).
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies
from xml.sax.saxutils import quoteattr

from deploy.local.errors import StackError

LOCK_FILE = Path(__file__).with_name("jars.lock.json")


@dataclass(frozen=True)
class Root:
    """What a group is resolved from when the lock is rewritten.

    Attributes:
        coordinates: `organisation:module:revision`.
        transitive: take its dependencies along.
        excludes: patterns `organisation:module` of dependencies that stay out, `*` for anything.
    """

    coordinates: str
    transitive: bool = False
    excludes: tuple[str, ...] = ()


# Spark ships these; the asynchronous HTTP client of netty is not used.
_AWS_EXCLUDES = (
    "io.netty:*",
    "org.slf4j:*",
    "commons-logging:*",
    "commons-codec:*",
    "org.apache.httpcomponents:*",
    "software.amazon.awssdk:netty-nio-client",
)


def _aws(module: str) -> Root:
    return Root(f"software.amazon.awssdk:{module}:2.35.4", transitive=True, excludes=_AWS_EXCLUDES)


ROOTS: dict[str, tuple[Root, ...]] = {
    "kafka": (
        Root("org.apache.kafka:kafka_2.13:4.3.1", transitive=True),
        # kafka-consumer-groups and friends; its dependencies would bring Kafka Connect and a web server (47 jars more).
        Root("org.apache.kafka:kafka-tools:4.3.1"),
        # Kafka logs through slf4j 1.7; this binding sends it to log4j 2. Kafka's own distribution adds it, its POM does not.
        Root("org.apache.logging.log4j:log4j-slf4j-impl:2.25.4"),
    ),
    # Spark ships what its connectors depend on; a second copy on the class path would clash.
    "spark": (
        Root("io.delta:delta-spark_4.2_2.13:4.4.0"),
        Root("io.delta:delta-storage:4.4.0"),
        Root("org.apache.spark:spark-sql-kafka-0-10_2.13:4.2.0"),
        # The one published version that resolves everywhere; it works with Spark 4.2.0 (measured end to end).
        Root("org.apache.spark:spark-token-provider-kafka-0-10_2.13:4.0.0"),
        Root("org.apache.kafka:kafka-clients:3.9.2"),
        Root("org.apache.commons:commons-pool2:2.13.1"),
    ),
    # Hadoop's S3 file system with the parts of the AWS SDK it needs: 16 MB instead of the 641 MB of the SDK's bundle.
    "s3a": (
        Root("org.apache.hadoop:hadoop-aws:3.5.0"),
        _aws("s3"),
        _aws("s3-transfer-manager"),
        _aws("apache-client"),
        _aws("sts"),
        Root("software.amazon.s3.analyticsaccelerator:analyticsaccelerator-s3:1.3.1"),
    ),
}

OBJECT_STORE_GROUP = "s3a"
"""Group that only a lake on an object store needs."""

OFFLINE_NOTE = "check the network, or name a mirror with CRM_IVY_SETTINGS=<ivysettings.xml>, then `make up` again"


class JarState(StrEnum):
    """What lies on disk in place of a locked jar."""

    WHOLE = "whole"
    MISSING = "missing"
    DAMAGED = "damaged"


@dataclass(frozen=True)
class Jar:
    """One locked library: Maven coordinates, its file name in the group's folder, sha256 of the file in hex."""

    organisation: str
    module: str
    revision: str
    file: str
    sha256: str

    @property
    def coordinates(self) -> str:
        """`organisation:module:revision`."""
        return f"{self.organisation}:{self.module}:{self.revision}"


Lock = dict[str, tuple[Jar, ...]]
Progress = Callable[[str, int, int], None]
"""Called with the group, the jars done and the jars asked for."""


def read_lock(path: Path = LOCK_FILE) -> Lock:
    """Locked jars by group.

    Raises:
        StackError: the lock file is absent or not readable as one.
    """
    try:
        content = json.loads(path.read_text())
        return {group: tuple(Jar(**entry) for entry in jars) for group, jars in content.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise StackError(f"{path} is not a readable list of jars ({error})", "restore it with `git checkout`") from error


def needed(lock: Lock, *, object_store: bool) -> Lock:
    """Groups a stack needs; pure.

    Args:
        lock: all groups.
        object_store: whether a lake is on an object store.
    """
    return {group: jars for group, jars in lock.items() if object_store or group != OBJECT_STORE_GROUP}


def state_of(jar: Jar, folder: Path) -> JarState:
    """Whether the jar stands whole in its group's folder."""
    path = folder / jar.file
    if not path.is_file():
        return JarState.MISSING
    return JarState.WHOLE if sha256_of(path) == jar.sha256 else JarState.DAMAGED


def inspect(root: Path, lock: Lock) -> dict[tuple[str, Jar], JarState]:
    """State of every locked jar below the jars' root folder, by group and jar."""
    return {(group, jar): state_of(jar, root / group) for group, jars in lock.items() for jar in jars}


def ensure(root: Path, lock: Lock, *, java: str = "java", progress: Progress = lambda *_: None) -> int:
    """Make every locked jar stand whole below `root`; what is whole is kept.

    Args:
        root: folder with one sub-folder per group.
        lock: what must be there.
        java: the Java program that runs Ivy.
        progress: told about each jar that arrives.

    Returns:
        Number of jars fetched; 0 when nothing was to do.

    Raises:
        StackError: a jar could not be fetched, or arrived twice with a wrong sha256.
    """
    if _is_as_locked(root, lock):
        # Nothing is written then: the folder may belong to somebody else.
        return 0
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root):
        absent = {group: [jar for jar in jars if state_of(jar, root / group) is not JarState.WHOLE] for group, jars in lock.items()}
        wanted = {group: jars for group, jars in absent.items() if jars}
        with ThreadPoolExecutor(max_workers=len(wanted) or 1) as pool:
            done = [pool.submit(_fetch_group, root, group, jars, java, progress) for group, jars in wanted.items()]
        for future in done:
            future.result()
        for group, jars in lock.items():
            _remove_unlocked(root / group, jars)
    return sum(len(jars) for jars in wanted.values())


def relock(java: str = "java", path: Path = LOCK_FILE) -> Lock:
    """Resolve the roots anew, transitively where asked, and rewrite the lock file. Needs the network.

    Raises:
        StackError: a root could not be resolved.
    """
    lock: Lock = {}
    with tempfile.TemporaryDirectory(prefix="crm-jars-") as scratch:
        for group, roots in ROOTS.items():
            files = _retrieve(roots, Path(scratch) / group, Path(scratch) / "cache", java)
            found = (Jar(*name, file=file.name, sha256=sha256_of(file)) for name, file in files.items())
            lock[group] = tuple(sorted(found, key=lambda jar: jar.file))
    text = json.dumps({group: [asdict(jar) for jar in jars] for group, jars in lock.items()}, indent=2)
    path.write_text(text + "\n")
    return lock


def sha256_of(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _is_as_locked(root: Path, lock: Lock) -> bool:
    whole = all(state is JarState.WHOLE for state in inspect(root, lock).values())
    return whole and all({file.name for file in (root / group).glob("*.jar")} == {jar.file for jar in jars} for group, jars in lock.items())


def _fetch_group(root: Path, group: str, jars: Sequence[Jar], java: str, progress: Progress) -> None:
    folder = root / group
    folder.mkdir(exist_ok=True)
    cache = root / ".ivy" / group
    left = list(jars)
    for last_try in (False, True):
        with tempfile.TemporaryDirectory(prefix=f".fetch-{group}-", dir=root) as scratch:
            roots = [Root(jar.coordinates) for jar in left]
            files = _retrieve(roots, Path(scratch), cache, java, partial(_report, progress, group, len(left)))
            wrong: list[Jar] = []
            for jar in left:
                file = files.get((jar.organisation, jar.module, jar.revision))
                if file is None or sha256_of(file) != jar.sha256:
                    wrong.append(jar)
                else:
                    file.replace(folder / jar.file)
        left = wrong
        if not left:
            progress(group, len(jars), len(jars))
            return
        # A torn download would otherwise be served from Ivy's cache again.
        shutil.rmtree(cache, ignore_errors=True)
        if last_try:
            names = ", ".join(jar.coordinates for jar in left)
            raise StackError(f"fetched twice with a sha256 other than the locked one: {names}", OFFLINE_NOTE)


def _retrieve(
    roots: Sequence[Root],
    target: Path,
    cache: Path,
    java: str,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[tuple[str, str, str], Path]:
    """Have Ivy place the libraries below `target`; returns the files by organisation, module, revision."""
    target.mkdir(parents=True, exist_ok=True)
    recipe = target / "ivy.xml"
    recipe.write_text(_ivy_xml(roots))
    pattern = target / "[organisation]" / "[artifact]" / "[revision]" / "[artifact]-[revision](-[classifier]).[ext]"
    command = [
        java,
        *_proxy_options(),
        "-jar",
        str(_ivy_jar()),
        *_settings_options(roots, target),
        *("-cache", str(cache), "-ivy", str(recipe), "-confs", "default"),
        *("-retrieve", str(pattern), "-types", "jar", "bundle"),
    ]
    output: list[str] = []
    arrived = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as process:
        for line in process.stdout or ():
            output.append(line.rstrip())
            if "[SUCCESSFUL ]" in line:
                arrived += 1
                progress(arrived)
    if process.returncode != 0:
        missing = sorted(set(re.findall(r"(?:UNRESOLVED DEPENDENCY: |unresolved dependency: |:: )(\S+#\S+;[^\s:]+)", "\n".join(output))))
        log = cache.parent / f"{cache.name}.log"
        log.write_text("\n".join(output) + "\n")
        raise StackError(f"could not fetch {', '.join(missing[:3]) or 'the jars'} (the whole story is in {log})", OFFLINE_NOTE)
    placed = {}
    for file in target.glob("*/*/*/*.jar"):
        organisation, module, revision = file.relative_to(target).parts[:3]
        placed[(organisation, module, revision)] = file
    return placed


def _report(progress: Progress, group: str, wanted: int, arrived: int) -> None:
    progress(group, arrived, wanted)


def _ivy_xml(roots: Sequence[Root]) -> str:
    lines = []
    for root in roots:
        organisation, module, revision = map(quoteattr, root.coordinates.split(":"))
        lines.append(
            f'<dependency org={organisation} name={module} rev={revision} transitive="{str(root.transitive).lower()}" '
            f'conf="default->{"default" if root.transitive else "master(default)"}">{_excluded(root.excludes)}</dependency>'
        )
    return (
        '<ivy-module version="2.0"><info organisation="crm" module="jars"/>'
        '<configurations><conf name="default"/></configurations>'
        f"<dependencies>{''.join(lines)}</dependencies></ivy-module>\n"
    )


def _excluded(patterns: Sequence[str]) -> str:
    pairs = (pattern.split(":") for pattern in patterns)
    return "".join(f"<exclude org={quoteattr(organisation)} module={quoteattr(module)}/>" for organisation, module in pairs)


def _ivy_jar() -> Path:
    spec = importlib.util.find_spec("pyspark")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = sorted(Path(folders[0], "jars").glob("ivy-*.jar")) if folders else []
    if not found:
        raise StackError("PySpark, which carries the program that fetches jars, is not installed", "run `make setup`")
    return found[0]


def _settings_options(roots: Sequence[Root], target: Path) -> list[str]:
    """A mirror of the company's own when the environment names one, else Ivy's own default, as far as it is needed."""
    chosen = os.environ.get("CRM_IVY_SETTINGS")
    if chosen is None and not any(root.transitive for root in roots):
        # What each jar depends on is settled by the lock: not reading it makes fetching three times as fast (13 s, not 43 s).
        settings = target / "ivysettings.xml"
        settings.write_text(
            '<ivysettings><settings defaultResolver="public"/><resolvers>'
            '<ibiblio name="public" m2compatible="true" usepoms="false"/></resolvers></ivysettings>\n'
        )
        chosen = str(settings)
    return ["-settings", chosen] if chosen else []


def _proxy_options() -> list[str]:
    """Java does not read the proxy variables that other programs read."""
    options = []
    for scheme, address in getproxies().items():
        proxy = urlsplit(address)
        if scheme in {"http", "https"} and proxy.hostname:
            options += [f"-D{scheme}.proxyHost={proxy.hostname}", f"-D{scheme}.proxyPort={proxy.port or 80}"]
    return options


def _remove_unlocked(folder: Path, jars: Sequence[Jar]) -> None:
    """Two versions of one library on a class path are worse than none."""
    names = {jar.file for jar in jars}
    for file in folder.glob("*.jar"):
        if file.name not in names:
            file.unlink()


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One process fetches at a time; a second one waits and then finds everything there."""
    with (root / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
