"""Exports of audiences to a receiver that fails, and by a process that dies: nobody is told twice, nobody is forgotten, nothing leaks."""

from __future__ import annotations

import csv
import itertools
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from pydantic import SecretStr
from tenacity import wait_none
from typer.testing import CliRunner

from crm_assets.warehouse.audiences.cli import app
from crm_assets.warehouse.audiences.destinations import CsvFolder, ExportError, Webhook
from crm_assets.warehouse.audiences.export import export_audiences
from crm_assets.warehouse.audiences.identities import Identity, email_hash, pseudonym
from crm_assets.warehouse.audiences.job import export_audiences_job
from crm_assets.warehouse.audiences.ledger import ExportUnderWay, open_ledger
from crm_resources import warehouse
from crm_resources.dagster_resources import SettingsResource
from crm_resources.settings import REPOSITORY, Settings
from deploy.local.stack import Stack
from tests.oracle.refresh import data_set

KEY = "a key of the tests' own, long enough"
TOKEN = "hush-hush-token"
NUMBERS = itertools.count(1)

TABLES = (
    "create table marts.audience_rules (audience text, consent text)",
    "create table marts.audience_changes (audience text, version integer, customer_key text, action text, modified_at timestamptz)",
    "create table marts.dim_customers (customer_key text, customer_id text, email text, is_erased boolean)",
    "create table marts.audience_members (audience text, customer_key text)",
    "insert into marts.audience_rules values ('mail', 'email'), ('ads', 'ads')",
)


@dataclass
class Receiver:
    """A webhook on loopback. It keeps the first message of each key; `answers` are given to the first requests instead of 204."""

    port: int = 0
    answers: list[int] = field(default_factory=list)
    requests: list[tuple[str, dict[str, Any], str | None]] = field(default_factory=list)
    kill: tuple[int, int] | None = None
    """Number of a request and a process that is killed after the receiver took it, before the answer."""

    @property
    def url(self) -> SecretStr:
        return SecretStr(f"http://127.0.0.1:{self.port}/hook/secret-path")

    @property
    def taken(self) -> dict[str, dict[str, Any]]:
        return {key: body for key, body, _ in reversed(self.requests)}

    def inside(self, audience: str) -> set[str]:
        """Members by what was taken, in the order of arrival."""
        found: set[str] = set()
        seen: set[str] = set()
        for key, body, _ in self.requests:
            if key not in seen and body["audience"] == audience:
                (found.add if body["action"] == "join" else found.discard)(body["member"])
            seen.add(key)
        return found


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    kept = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = kept.answers.pop(0) if kept.answers else 204
            if answer == 204:
                kept.requests.append((self.headers["Idempotency-Key"], body, self.headers["Authorization"]))
                if kept.kill and len(kept.requests) == kept.kill[0]:
                    os.kill(kept.kill[1], signal.SIGKILL)
            self.send_response(answer)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield kept
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def shop(stack_services: Stack) -> Settings:
    """A data set of its own with the marts an export reads, without members."""
    settings = data_set(stack_services.settings, f"audience_export_{next(NUMBERS)}").model_copy(update={"pseudonym_key": SecretStr(KEY)})
    warehouse.prepare(settings)
    execute(settings, *TABLES)
    return settings


def execute(settings: Settings, *statements: str) -> None:
    with warehouse.connect(settings) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        connection.commit()


def customers(settings: Settings, *names: str) -> None:
    rows = ", ".join(f"('id:{name}', '{name}', ' {name.title()}@Example.com', false)" for name in names)
    execute(settings, f"insert into marts.dim_customers values {rows}")


def change(settings: Settings, audience: str, version: int, action: str, *names: str) -> None:
    rows = ", ".join(f"('{audience}', {version}, 'id:{name}', '{action}', '2026-03-0{version}T00:00:00Z')" for name in names)
    execute(settings, f"insert into marts.audience_changes values {rows}")


def send(settings: Settings, receiver: Receiver, identity: Identity = Identity.PSEUDONYM, *names: str):
    return export_audiences(settings, Webhook(receiver.url, SecretStr(TOKEN), attempts=3, wait=wait_none()), identity, names)


def called(*names: str) -> set[str]:
    return {pseudonym(KEY.encode(), name) for name in names}


def test_joins_and_leaves_arrive_once_with_their_keys(shop: Settings, receiver: Receiver):
    customers(shop, "ann", "bob", "cid")
    change(shop, "mail", 1, "join", "ann", "bob")
    assert send(shop, receiver).figures()["joins_count"] == 2
    assert send(shop, receiver).figures()["joins_count"] == 0
    change(shop, "mail", 2, "leave", "ann")
    change(shop, "mail", 2, "join", "cid")
    send(shop, receiver)
    change(shop, "mail", 3, "join", "ann")
    send(shop, receiver)

    assert receiver.inside("mail") == called("ann", "bob", "cid")
    assert len(receiver.requests) == len(receiver.taken) == 5
    (ann,) = called("ann")
    assert [key for key, body, _ in receiver.requests if body["member"] == ann] == [
        f"mail/1/{ann}/join",
        f"mail/2/{ann}/leave",
        f"mail/3/{ann}/join",
    ]
    assert {authorization for _, _, authorization in receiver.requests} == {f"Bearer {TOKEN}"}
    assert all(body["idempotency_key"] == key for key, body, _ in receiver.requests)


def test_a_receiver_that_fails_now_and_then_is_tried_again(shop: Settings, receiver: Receiver):
    customers(shop, "ann", "bob")
    change(shop, "mail", 1, "join", "ann", "bob")
    receiver.answers = [503, 429, 204, 503]
    send(shop, receiver)
    assert receiver.inside("mail") == called("ann", "bob")
    assert len(receiver.requests) == 2


def test_a_receiver_that_stays_down_stops_the_export_and_the_next_one_goes_on(shop: Settings, receiver: Receiver):
    customers(shop, "ann", "bob", "cid")
    change(shop, "mail", 1, "join", "ann", "bob", "cid")
    receiver.answers = [204, 503, 503, 503]
    with pytest.raises(ExportError, match=r"in 3 attempts: it answered 503\. 1 messages arrived, 2 are left"):
        send(shop, receiver)
    assert send(shop, receiver).figures()["joins_count"] == 2
    assert len(receiver.requests) == len(receiver.taken) == 3


def test_a_refused_message_is_named_without_a_secret(shop: Settings, receiver: Receiver):
    customers(shop, "ann")
    change(shop, "mail", 1, "join", "ann")
    receiver.answers = [422]
    with pytest.raises(ExportError, match="answered 422 to the join of customer id:ann in mail, version 1") as refused:
        send(shop, receiver)
    for secret in (TOKEN, "secret-path", *called("ann")):
        assert secret not in str(refused.value)


def test_an_export_killed_in_the_middle_is_finished_by_the_next_without_a_new_key(shop: Settings, receiver: Receiver):
    names = [f"c{number}" for number in range(8)]
    customers(shop, *names)
    change(shop, "mail", 1, "join", *names)
    environ = {key: value for key, value in os.environ.items() if not key.startswith("CRM_")} | {
        "CRM_HOME": str(shop.home),
        "CRM_ENV": shop.env,
        "CRM_POSTGRES_PORT": str(shop.postgres_port),
        "CRM_PSEUDONYM_KEY": KEY,
        "CRM_AUDIENCE_WEBHOOK_URL": receiver.url.get_secret_value(),
    }
    command = [sys.executable, "-m", "crm_assets.warehouse.audiences", "export", "--to", "webhook"]
    gate = [sys.executable, "-c", f"import os; input(); os.execv({sys.executable!r}, {command!r})"]
    with subprocess.Popen(gate, cwd=REPOSITORY, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        receiver.kill = (3, first.pid)
        first.communicate("go\n")
    assert first.returncode == -signal.SIGKILL
    assert len(receiver.requests) == 3

    receiver.kill = None
    second = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False)

    assert second.returncode == 0, second.stdout + second.stderr
    assert receiver.inside("mail") == called(*names)
    # The third had arrived and was not written down: it came again, under its own key.
    assert (len(receiver.requests), len(receiver.taken)) == (9, 8)
    assert receiver.requests[2] == receiver.requests[3]
    report = json.loads((shop.reports_dir / "audience-export.json").read_text())
    assert (report["verdict"], report["figures"]["joins_count"]) == ("pass", 6)
    for secret in (KEY, "secret-path", TOKEN):
        assert secret not in second.stdout + second.stderr


def test_two_exports_to_one_place_exclude_each_other(shop: Settings, receiver: Receiver):
    webhook = Webhook(receiver.url)
    with open_ledger(shop, Identity.PSEUDONYM, webhook.name), pytest.raises(ExportUnderWay, match="under way"):
        export_audiences(shop, webhook, Identity.PSEUDONYM)


class TestEmailHashes:
    """For ad platforms: only where it was agreed to, never beside a pseudonym, and taken back after the address is gone."""

    def test_a_leave_names_the_hash_that_joined_and_the_erased_are_forgotten(self, shop: Settings, receiver: Receiver):
        customers(shop, "ann", "bob")
        change(shop, "ads", 1, "join", "ann", "bob")
        send(shop, receiver, Identity.EMAIL_HASH)
        assert receiver.inside("ads") == {email_hash("ann@example.com"), email_hash("bob@example.com")}

        execute(shop, "update marts.dim_customers set email = null, is_erased = true where customer_id = 'ann'")
        change(shop, "ads", 2, "leave", "ann")
        send(shop, receiver, Identity.EMAIL_HASH)

        assert receiver.inside("ads") == {email_hash("bob@example.com")}
        kept = warehouse.fetch_rows(shop, "select customer_key from meta.audience_email_hash_deliveries")
        assert kept == [("id:bob",)]

    def test_a_new_address_replaces_the_old_one(self, shop: Settings, receiver: Receiver):
        customers(shop, "ann")
        change(shop, "ads", 1, "join", "ann")
        send(shop, receiver, Identity.EMAIL_HASH)
        execute(shop, "update marts.dim_customers set email = 'new@example.com'")
        send(shop, receiver, Identity.EMAIL_HASH)
        assert receiver.inside("ads") == {email_hash("new@example.com")}

    def test_other_purposes_are_refused_and_left_out(self, shop: Settings, receiver: Receiver):
        customers(shop, "ann")
        change(shop, "mail", 1, "join", "ann")
        with pytest.raises(ExportError, match="mail: e-mail hashes are exported for audiences with consent `ads` only"):
            send(shop, receiver, Identity.EMAIL_HASH, "mail")
        send(shop, receiver, Identity.EMAIL_HASH)
        assert receiver.requests == []

    def test_the_two_identities_never_meet(self, shop: Settings, receiver: Receiver):
        customers(shop, "ann")
        change(shop, "ads", 1, "join", "ann")
        send(shop, receiver, Identity.EMAIL_HASH)
        of_hashes = len(receiver.requests)
        send(shop, receiver)
        hashed, pseudonyms = json.dumps(receiver.requests[:of_hashes]), json.dumps(receiver.requests[of_hashes:])
        (ann,) = called("ann")
        assert str(email_hash("ann@example.com")) in hashed
        assert ann in pseudonyms
        assert ann not in hashed
        assert str(email_hash("ann@example.com")) not in pseudonyms
        members = "select member from meta.audience_{}_deliveries"
        assert warehouse.fetch_rows(shop, members.format("pseudonym")) == [(ann,)]
        assert warehouse.fetch_rows(shop, members.format("email_hash")) == [(email_hash("ann@example.com"),)]


def test_files_hold_what_changed_and_are_the_owners_alone(shop: Settings, tmp_path: Path):
    customers(shop, "ann", "bob")
    change(shop, "mail", 1, "join", "ann", "bob")
    folder = CsvFolder(tmp_path / "out", Identity.PSEUDONYM)
    export_audiences(shop, folder, Identity.PSEUDONYM)
    change(shop, "mail", 2, "leave", "ann")
    export_audiences(shop, folder, Identity.PSEUDONYM)
    export_audiences(shop, folder, Identity.PSEUDONYM)

    first, second = sorted((tmp_path / "out").iterdir())
    assert first.name.startswith("mail.pseudonym.v1.")
    assert stat.S_IMODE(first.stat().st_mode) == 0o600
    with first.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["member"] for row in rows} == called("ann", "bob")
    assert {row["action"] for row in rows} == {"join"}
    (ann,) = called("ann")
    assert second.read_text().splitlines()[1] == f"mail/2/{ann}/leave,mail,2,{ann},leave,2026-03-02T00:00:00+00:00"


def test_the_members_of_a_withdrawn_audience_still_leave(shop: Settings, receiver: Receiver):
    customers(shop, "ann")
    change(shop, "mail", 1, "join", "ann")
    send(shop, receiver)
    execute(shop, "delete from marts.audience_rules where audience = 'mail'")
    change(shop, "mail", 2, "leave", "ann")
    send(shop, receiver)
    assert receiver.inside("mail") == set()


def test_an_unknown_audience_is_named(shop: Settings, receiver: Receiver):
    with pytest.raises(ExportError, match="no audience is called nobody; known are ads, mail"):
        send(shop, receiver, Identity.PSEUDONYM, "nobody")


def test_before_the_first_refresh_there_is_nothing_to_export(stack_services: Stack, receiver: Receiver):
    with pytest.raises(ExportError, match="never_refreshed has no audiences yet"):
        send(data_set(stack_services.settings, "never_refreshed"), receiver)


def test_the_list_shows_declarations_members_and_exports(shop: Settings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch):
    customers(shop, "ann")
    change(shop, "win_back_valuable", 1, "join", "ann")
    execute(shop, "insert into marts.audience_members values ('win_back_valuable', 'id:ann')")
    execute(shop, "insert into marts.audience_rules values ('win_back_valuable', 'email')")
    send(shop, receiver)
    for name, value in {
        "CRM_HOME": str(shop.home),
        "CRM_ENV": shop.env,
        "CRM_POSTGRES_PORT": str(shop.postgres_port),
        "COLUMNS": "250",
    }.items():
        monkeypatch.setenv(name, value)
    shown = CliRunner().invoke(app, ["list"])
    assert shown.exit_code == 0, shown.output
    (line,) = [line for line in shown.output.splitlines() if "win_back_valuable" in line]
    assert [cell.strip() for cell in line.split("│")[1:3]] == ["win_back_valuable", "email"]
    assert "2026-03-01 00:00 UTC" in line
    assert json.loads((shop.reports_dir / "audiences.json").read_text())["figures"]["win_back_valuable_members"] == 1


def test_the_job_does_the_same_and_shows_counts_only(shop: Settings):
    class OfTheShop(SettingsResource):
        def load(self) -> Settings:
            return shop

    customers(shop, "ann")
    change(shop, "mail", 1, "join", "ann")
    result = export_audiences_job.execute_in_process(resources={"settings": OfTheShop()}, instance=dg.DagsterInstance.ephemeral())
    assert result.success
    (event,) = result.get_step_success_events()
    assert event
    assert len(list((shop.environment_dir / "audiences").iterdir())) == 1
    assert KEY not in str([e.message for e in result.all_events])
