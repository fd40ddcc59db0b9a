"""Audiences without a database: what may be declared, how members are called, what an export owes its receiver."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from crm_assets.warehouse.audiences.declarations import AudienceError, derived_files, read_audiences, rules_csv
from crm_assets.warehouse.audiences.destinations import ExportError, Webhook
from crm_assets.warehouse.audiences.identities import PseudonymKeyMissing, email_hash, pseudonym, pseudonym_key
from crm_assets.warehouse.audiences.reconcile import Action, Delivery, Sent, Standing, due
from crm_resources.settings import Settings

GOOD = """
audiences:
  - name: quiet_champions
    description: Champions who went quiet.
    owner: marketing
    consent: email
    segment: [Champions]
    risk: {min: 0.5, max: 0.9, bands: [high, very high]}
    value: {tiers: [top 1 %, top 5 %], min_revenue: 100}
"""


def declared(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "audiences.yml"
    path.write_text(text)
    return path


class TestDeclarations:
    def test_the_kept_seed_and_exposures_are_what_the_yml_says(self):
        for path, text in derived_files().items():
            assert path.read_text() == text, "run `make contracts`"

    def test_a_declaration_becomes_a_row_of_the_seed(self, tmp_path: Path):
        header, row = rules_csv(read_audiences(declared(tmp_path, GOOD))).splitlines()
        assert header == "audience,description,consent,segments,risk_bands,min_risk,max_risk,value_tiers,min_revenue"
        assert row == "quiet_champions,Champions who went quiet.,email,Champions,high|very high,0.5,0.9,top 1 %|top 5 %,100.0"

    @pytest.mark.parametrize(
        ("change", "fault"),
        [
            (("[Champions]", "[Champion]"), r"quiet_champions\.segment: 'Champion' is no segment; known are About To Sleep, "),
            (("min: 0.5", "min: 5"), r"quiet_champions\.risk\.min: Input should be less than or equal to 1"),
            (("min: 0.5", "min: 0.95"), r"quiet_champions\.risk: min 0\.95 is above max 0\.9"),
            (("[high, very high]", "[dire]"), r"quiet_champions\.risk\.bands\.0: Input should be 'low', 'medium'"),
            (("consent: email", "consent: sms"), r"quiet_champions\.consent: Input should be 'email', 'ads' or 'analytics'"),
            (("    consent: email\n", ""), r"quiet_champions\.consent: Field required"),
            (("consent: email", "consent: email\n    p_alive: 0.5"), r"quiet_champions\.p_alive: Extra inputs are not permitted"),
            (("quiet_champions", "Quiet Champions"), r"Quiet Champions\.name: String should match pattern"),
            ((GOOD.split("audiences:")[1], GOOD.split("audiences:")[1] * 2), r"quiet_champions: is declared 2 times"),
            (("audiences:", "audience:"), r"audiences: Field required"),
            (("segment: [Champions]", "segment: [Champions"), r"is no yml: "),
        ],
        ids=lambda value: None if isinstance(value, tuple) else value[:40],
    )
    def test_what_cannot_be_is_named_by_audience_and_field(self, tmp_path: Path, change: tuple[str, str], fault: str):
        with pytest.raises(AudienceError, match=fault) as refused:
            read_audiences(declared(tmp_path, GOOD.replace(*change)))
        assert "audiences.yml" in str(refused.value)

    def test_an_audience_of_everybody_is_refused(self, tmp_path: Path):
        bare = "\n".join(line for line in GOOD.splitlines() if not line.strip().startswith(("segment", "risk", "value")))
        with pytest.raises(AudienceError, match="quiet_champions: give a condition on segment, risk or value"):
            read_audiences(declared(tmp_path, bare))

    def test_a_missing_file_is_named(self, tmp_path: Path):
        with pytest.raises(AudienceError, match=r"nowhere\.yml: No such file"):
            read_audiences(tmp_path / "nowhere.yml")


class TestIdentities:
    def test_an_address_is_trimmed_and_lowered_before_it_is_hashed(self):
        expected = hashlib.sha256(b"ann@example.com").hexdigest()
        assert email_hash("  Ann@Example.COM\n") == email_hash("ann@example.com") == expected

    @pytest.mark.parametrize("nothing", [None, "", "  "])
    def test_without_an_address_there_is_no_hash(self, nothing: str | None):
        assert email_hash(nothing) is None

    def test_a_pseudonym_is_the_hmac_of_rfc_4231(self):
        """Test case 2 of the standard."""
        expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        assert pseudonym(b"Jefe", "what do ya want for nothing?") == expected

    def test_the_key_comes_from_the_environment_else_from_the_file(self, tmp_path: Path):
        (tmp_path / "secrets").mkdir()
        (tmp_path / "secrets" / "pseudonym_key").write_text("from-the-file-of-the-stack\n")
        assert pseudonym_key(Settings(home=tmp_path)) == b"from-the-file-of-the-stack"
        assert pseudonym_key(Settings(home=tmp_path, pseudonym_key=SecretStr("from-the-environment"))) == b"from-the-environment"

    def test_no_key_and_a_short_key_are_refused(self, tmp_path: Path):
        with pytest.raises(PseudonymKeyMissing, match="CRM_PSEUDONYM_KEY"):
            pseudonym_key(Settings(home=tmp_path))
        with pytest.raises(PseudonymKeyMissing, match="has 9 bytes, 16 are the least") as refused:
            pseudonym_key(Settings(home=tmp_path, pseudonym_key=SecretStr("too-short")))
        assert "too-short" not in str(refused.value)


@pytest.mark.parametrize("url", ["http://example.com/hook?token=hush", "ftp://127.0.0.1/hush", "hush"])
def test_an_address_that_would_show_personal_data_or_is_none_is_refused(url: str):
    with pytest.raises(ExportError) as refused:
        Webhook(SecretStr(url))
    assert "hush" not in str(refused.value)


def test_the_name_of_a_webhook_holds_no_secret_and_tells_two_apart():
    first, second = (Webhook(SecretStr(f"https://key:pass@example.com/hook/{token}")) for token in ("hush", "hash"))
    assert first.name.startswith("webhook https://example.com ")
    assert first.name != second.name
    assert not {"hush", "pass"} & set(first.name.replace("/", " ").split())


NOW = datetime(2026, 3, 1, tzinfo=UTC)


def standing(member: str | None, version: int) -> Standing:
    return Standing("aud", "id:1", version, NOW, member)


def sent(member: str, version: int, action: Action, *, acknowledged: bool = True) -> Sent:
    return Sent("aud", "id:1", member, version, action, NOW, acknowledged)


def keys(deliveries: list[Delivery]) -> list[str]:
    return [d.idempotency_key for d in deliveries]


class TestWhatIsDue:
    @pytest.mark.parametrize(
        ("now", "told", "expected"),
        [
            (standing("m", 1), [], ["aud/1/m/join"]),
            (standing("m", 1), [sent("m", 1, Action.JOIN)], []),
            (standing(None, 2), [sent("m", 1, Action.JOIN)], ["aud/2/m/leave"]),
            (standing(None, 2), [sent("m", 2, Action.LEAVE)], []),
            (standing("m", 3), [sent("m", 2, Action.LEAVE)], ["aud/3/m/join"]),
            # Joined and left, or left and joined again, between two exports.
            (standing(None, 2), [], []),
            (standing("m", 3), [sent("m", 1, Action.JOIN)], []),
            # Begun and not acknowledged: it may have arrived.
            (standing("m", 1), [sent("m", 1, Action.JOIN, acknowledged=False)], ["aud/1/m/join"]),
            (standing(None, 2), [sent("m", 1, Action.JOIN, acknowledged=False)], ["aud/2/m/leave"]),
            (standing(None, 2), [sent("m", 2, Action.LEAVE, acknowledged=False)], ["aud/2/m/leave"]),
            (standing("m", 3), [sent("m", 2, Action.LEAVE, acknowledged=False)], ["aud/3/m/join"]),
            # Another e-mail address, and one that was erased.
            (standing("new", 1), [sent("old", 1, Action.JOIN)], ["aud/1/old/leave", "aud/1/new/join"]),
            (standing(None, 2), [sent("old", 1, Action.LEAVE), sent("new", 1, Action.JOIN)], ["aud/2/new/leave"]),
        ],
    )
    def test_of_one_customer(self, now: Standing, told: list[Sent], expected: list[str]):
        assert keys(due([now], told)) == expected

    def test_leaves_go_before_joins(self):
        standings = [Standing("a", "id:1", 2, NOW, "one"), Standing("b", "id:2", 2, NOW, None)]
        told = [Sent("b", "id:2", "two", 1, Action.JOIN, NOW, True)]
        assert [d.action for d in due(standings, told)] == [Action.LEAVE, Action.JOIN]

    @given(st.lists(st.tuples(st.booleans(), st.sampled_from(["whole", "half", "none"])), max_size=12))
    def test_whatever_happens_in_between_the_receiver_ends_where_the_audience_is(self, history: list[tuple[bool, str]]):
        """A customer goes in and out; after each change an export goes through, dies after sending, or dies before."""
        ledger: dict[str, Sent] = {}
        receiver: dict[str, str] = {}
        inside, version = False, 0
        for change, fate in [*history, (False, "whole")]:
            if change:
                inside, version = not inside, version + 1
            if not version:
                continue
            now = standing("m" if inside else None, version)
            last: dict[str, Sent] = {}
            for message in ledger.values():
                last[message.member] = message
            for delivery in due([now], last.values()):
                key = delivery.idempotency_key
                known = ledger.get(key)
                ledger[key] = sent(delivery.member, delivery.version, delivery.action, acknowledged=bool(known and known.acknowledged))
                if fate != "none":
                    # Keys tell new messages from repeated ones.
                    receiver.setdefault(key, delivery.action)
                if fate == "whole":
                    ledger[key] = sent(delivery.member, delivery.version, delivery.action)
        latest = next(reversed(receiver.values()), Action.LEAVE)
        assert (latest == Action.JOIN) == inside
