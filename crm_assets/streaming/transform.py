"""What a raw record is: a typed row of its entity, or a dead letter with a reason. Pure DataFrame code, no I/O, no state.

Everything is derived from the contracts. `Screen` is quick and says *surely good* or *look closer*; `Classifier` is thorough
and names the reason. What `Screen` passes, `Classifier` passes: the refine step runs the second on the few rows the first
did not pass. Not here: duplicates (`history`), reading and writing (`refine`).

A message is accepted when the contract's pydantic model accepts it in strict mode, and besides

- fields the contract does not know are ignored, and so are those that came after the schema version the message follows: what a
  message means does not change when the contract grows;
- every schema version up to the contracts' own is known; a later one is a dead letter until the stream knows it too;
- `entity_key` repeats the entity's key field; the event time is not too far in the future;
- times are spelled `2011-12-09T12:50:00.000000Z` (fraction optional, or an offset such as `+01:00`), money without exponent;
- text holds no NUL character, which PostgreSQL cannot store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from typing import TYPE_CHECKING

from crm_resources.contracts import Column, ColumnType, Contract, Reason
from crm_resources.contracts.derive_spark import silver_type, wire_type
from crm_resources.contracts.entities import ENTITY_KEY_FIELDS, SCHEMA_VERSION
from crm_resources.contracts.model import MAX_MESSAGE_BYTES
from crm_resources.layout import COORDINATES, PAYLOAD_HASH

if TYPE_CHECKING:
    from pyspark.sql import Column as SparkColumn
    from pyspark.sql import DataFrame

KNOWN_SCHEMA_VERSIONS = tuple(range(1, SCHEMA_VERSION + 1))

TIME_PATTERN = r"^(?!0000)\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(?:\.\d{1,6})?(?:Z|[+-]\d{2}:\d{2})\z"

MONEY_PATTERN = r"^[+-]?(?:\d+(?:\.\d*)?|\.\d+)\z"

MAX_NESTING = 200
"""Depth of JSON that is read; pydantic's own limit is near it, and no contract needs more than four."""

OK = "_ok"
REASON = "reason"
DETAIL = "detail"
RAW = ("kafka_key", "value")


@dataclass(frozen=True)
class Limits:
    """What the contracts do not say.

    Args:
        future_tolerance_seconds: how far an event time may lie after the record's arrival in bronze.
        max_message_bytes: largest value that is read.
        tried_again_at: time that counts instead of the arrival, for a replay of records that were refused: an event of the
            future may have come to pass. `None` where records are judged for the first time.
    """

    future_tolerance_seconds: int = 86_400
    max_message_bytes: int = MAX_MESSAGE_BYTES
    tried_again_at: datetime | None = None


class Screen:
    """Types the records of one topic, quickly. Made once and used for every batch: to build its expressions takes longer than to plan them.

    Args:
        contract: what the records should be.
        limits: see `Limits`.
    """

    def __init__(self, contract: Contract, limits: Limits) -> None:
        from pyspark.sql import functions as F

        m = F.col("m")
        conditions = [
            F.col("j._corrupt").isNull(),
            F.col("j.z") == 1,
            F.size("j.r") == 1,
            ~F.col("suspicious"),
            m["entity"] == contract.entity,
            m["schema_version"].isin(*KNOWN_SCHEMA_VERSIONS),
            m["entity_key"] == F.coalesce(*(m[name] for name in ENTITY_KEY_FIELDS[contract.entity])),
            *(_value_ok(m[c.name], c, typed=F.col(c.name)) for c in contract.columns),
            *_entity_rules(contract),
            ~_is_future(limits),
        ]
        ok = F.coalesce(reduce(lambda a, b: a & b, conditions), F.lit(False))
        # Each selection copies its rows, so the bytes go no further than the first.
        self._parsed = [
            *(F.col(c.name) for c in COORDINATES),
            F.xxhash64("value").alias(PAYLOAD_HASH.name),
            _parsed_json(_readable_text(limits), contract).alias("j"),
            _suspicious(contract, F.col("value").cast("string")).alias("suspicious"),
        ]
        kept = [F.col(name) for name in _kept()]
        message = _message(contract)
        self._typed = [*kept, F.col("j"), F.col("suspicious"), message.alias("m"), *_typed_columns(contract, message)]
        self._final = [*(F.col(name) for name in _silver_names(contract)), ok.alias(OK)]

    def __call__(self, records: DataFrame) -> DataFrame:
        """Silver columns, and `_ok`: never null, true when the row is surely good. The columns of other rows may hold anything.

        Args:
            records: rows with bronze's columns, all of the topic that belongs to the contract.
        """
        return records.select(*self._parsed).select(*self._typed).select(*self._final)


class Classifier:
    """Types the records of one topic, or says what is wrong with them. Made once, like `Screen`: its rules take half a second to build.

    Args:
        contract: what the records should be.
        limits: see `Limits`.
    """

    def __init__(self, contract: Contract, limits: Limits) -> None:
        from pyspark.sql import functions as F

        self.contract = contract
        # Each selection adds to the one before: `text`, `wrapped`, `j` (parsed wrapper), `m` (the message), `p` (any JSON).
        self._steps = [
            [_readable_text(limits).alias("text"), F.xxhash64("value").alias(PAYLOAD_HASH.name)],
            [_wrapped(F.col("text")).alias("wrapped"), _parsed_json(F.col("text"), contract).alias("j")],
            [_message(contract).alias("m"), F.try_parse_json("wrapped").alias("p")],
            _typed_columns(contract, F.col("m")),
        ]
        rules = [
            F.when(rule.broken, F.struct(F.lit(str(rule.reason)).alias(REASON), rule.detail.alias(DETAIL)))
            for rule in _rules(contract, limits)
        ]
        kept = [F.col(name) for name in (*_silver_names(contract), *RAW)]
        self._judged = [*kept, F.coalesce(*rules).alias("verdict")]
        self._final = [*kept, F.col(f"verdict.{REASON}"), F.col(f"verdict.{DETAIL}")]

    def __call__(self, records: DataFrame) -> DataFrame:
        """The silver columns of the contract, `kafka_key`, `value`, and `reason` and `detail`, null where the row is good.

        Args:
            records: rows with bronze's columns, all of the topic that belongs to the contract.
        """
        typed = reduce(lambda frame, step: frame.select("*", *step), self._steps, records)
        return typed.select(*self._judged).select(*self._final)


@dataclass(frozen=True)
class _Rule:
    """A condition that makes a dead letter; null counts as false."""

    reason: Reason
    broken: SparkColumn
    detail: SparkColumn


def _readable_text(limits: Limits) -> SparkColumn:
    """The value as text; null where it is too large, or no UTF-8."""
    from pyspark.sql import functions as F

    text = F.col("value").cast("string")
    return F.when((F.octet_length("value") <= limits.max_message_bytes) & F.is_valid_utf8(text), text)


def _wrapped(text: SparkColumn) -> SparkColumn:
    """The text as the one item of an array in an object whose last field has to be reached.

    Spark's parser stops after the first value and would accept what trails behind it.
    """
    from pyspark.sql import functions as F

    return F.concat(F.lit('{"r":['), text, F.lit('],"z":1}'))


def _parsed_json(text: SparkColumn, contract: Contract) -> SparkColumn:
    """The wrapper around a text, read into the contract's wire form."""
    from pyspark.sql import functions as F
    from pyspark.sql import types as t

    wrapper = t.StructType(
        [
            t.StructField("r", t.ArrayType(wire_type(contract.columns))),
            t.StructField("z", t.IntegerType()),
            t.StructField("_corrupt", t.StringType()),
        ]
    )
    options = {
        "mode": "PERMISSIVE",
        "columnNameOfCorruptRecord": "_corrupt",
        "allowSingleQuotes": "false",
        "allowNonNumericNumbers": "false",
        "maxNestingDepth": str(MAX_NESTING),
    }
    return F.from_json(_wrapped(text), wrapper, options)


def _message(contract: Contract) -> SparkColumn:
    """The message that was read, without fields that came after the schema version it follows."""
    from pyspark.sql import functions as F

    message = F.get("j.r", F.lit(0))
    version = message["schema_version"]
    for column in contract.columns:
        if column.is_later:
            message = message.withField(column.name, F.when(version >= F.lit(column.since), message[column.name]))
        for item in column.items:
            if item.is_later:
                message = message.withField(column.name, F.transform(message[column.name], _without_later(item, version)))
    return message


def _without_later(item: Column, version: SparkColumn) -> Callable[[SparkColumn], SparkColumn]:
    from pyspark.sql import functions as F

    return lambda x: x.withField(item.name, F.when(version >= F.lit(item.since), x[item.name]))


def _typed_columns(contract: Contract, m: SparkColumn) -> list[SparkColumn]:
    """Silver's form of each field of the message; null where the spelling is wrong."""
    types = {field.name: field.dataType for field in silver_type(contract.columns).fields}
    lax = (ColumnType.DECIMAL, ColumnType.TIMESTAMP, ColumnType.LIST)
    return [(m[c.name].try_cast(types[c.name]) if c.type in lax else m[c.name]).alias(c.name) for c in contract.columns]


def _kept() -> tuple[str, ...]:
    return (PAYLOAD_HASH.name, *(c.name for c in COORDINATES))


def _silver_names(contract: Contract) -> tuple[str, ...]:
    return (*(c.name for c in contract.columns), *_kept())


def _value_ok(wire: SparkColumn, column: Column, typed: SparkColumn | None = None) -> SparkColumn:
    """Whether a field of the wire form satisfies its contract; never null.

    Args:
        wire: the field as read.
        column: its contract.
        typed: its silver form, where it has been computed already.
    """
    from pyspark.sql import functions as F

    tests: list[SparkColumn] = [_spelling_ok(wire, column)]
    if column.type is ColumnType.TIMESTAMP:
        tests.append(_is_time(wire, wire.try_cast("timestamp") if typed is None else typed))
    elif column.type is ColumnType.DECIMAL:
        tests.append(wire.rlike(_decimal_pattern(column)))
    elif column.type is ColumnType.LIST:
        tests.append(F.forall(wire, lambda item: item.isNotNull() & _all(_value_ok(item[c.name], c) for c in column.items)))
    return F.coalesce(_all(tests), F.lit(column.nullable))


def _is_time(wire: SparkColumn, typed: SparkColumn) -> SparkColumn:
    """Whether a text names a moment that exists; null when the text is null."""
    from pyspark.sql import functions as F

    return F.when(wire.isNotNull(), typed.isNotNull())


def _spelling_ok(wire: SparkColumn, column: Column) -> SparkColumn:
    """Everything about a field but the number of digits of money; null when the field is null."""
    from pyspark.sql import functions as F

    tests: list[SparkColumn] = []
    match column.type:
        case ColumnType.STRING if column.allowed is not None:
            tests.append(wire.isin(*column.allowed))
        case ColumnType.STRING:
            if column.pattern is not None:
                tests.append(wire.rlike(_java_pattern(column.pattern)))
            elif column.min_length:
                tests.append(F.char_length(wire) >= column.min_length)
            if column.max_length is not None:
                tests.append(F.char_length(wire) <= column.max_length)
        case ColumnType.INT | ColumnType.LONG:
            lowest, highest = (-(2**31), 2**31 - 1) if column.type is ColumnType.INT else (-(2**63), 2**63 - 1)
            if column.minimum is not None and column.minimum > lowest:
                tests.append(wire >= column.minimum)
            if column.maximum is not None and column.maximum < highest:
                tests.append(wire <= column.maximum)
        case ColumnType.DECIMAL:
            tests.append(wire.rlike(MONEY_PATTERN))
        case ColumnType.TIMESTAMP:
            tests.append(wire.rlike(TIME_PATTERN))
        case ColumnType.LIST:
            if column.min_length:
                tests.append(F.size(wire) >= column.min_length)
            if column.max_length is not None:
                tests.append(F.size(wire) <= column.max_length)
        case ColumnType.BOOLEAN:
            pass
    return _all(tests) if tests else F.when(wire.isNotNull(), F.lit(True))


def _rules(contract: Contract, limits: Limits) -> list[_Rule]:
    """All rules of a contract in the order of `Reason`."""
    from pyspark.sql import functions as F

    m, value, text = F.col("m"), F.col("value"), F.col("text")
    unescaped = F.regexp_replace(text, r"\\\\", "")
    bad_type = F.col("j._corrupt").isNotNull() & ~_only_later_fields_differ(contract)
    corrupt = (
        F.col("j.z").isNull()
        | (F.coalesce(F.size("j.r"), F.lit(-1)) != 1)
        | m.isNull()
        | F.col("p").isNull()
        | F.coalesce(unescaped.rlike(_LONE_SURROGATE), F.lit(False))
    )
    rules = [
        _Rule(Reason.NULL_VALUE, value.isNull(), F.lit(None).cast("string")),
        _Rule(
            Reason.OVERSIZED,
            F.octet_length(value) > limits.max_message_bytes,
            F.concat(F.octet_length(value).cast("string"), F.lit(f" bytes, at most {limits.max_message_bytes} are read")),
        ),
        _Rule(Reason.INVALID_UTF8, text.isNull(), F.lit(None).cast("string")),
        _Rule(Reason.CORRUPT_JSON, corrupt, F.concat(F.lit("begins with: "), F.left(text, F.lit(80)))),
        _Rule(
            Reason.UNKNOWN_ENTITY,
            m["entity"] != contract.entity,
            F.concat(F.lit("entity is "), F.left(m["entity"], F.lit(80)), F.lit(f", its topic holds {contract.entity}")),
        ),
        _Rule(
            Reason.UNKNOWN_SCHEMA_VERSION,
            ~m["schema_version"].isin(*KNOWN_SCHEMA_VERSIONS),
            F.concat(F.lit("schema_version is "), m["schema_version"].cast("string")),
        ),
    ]
    for c in contract.columns:
        if not c.nullable:
            rules.append(_Rule(Reason.MISSING_FIELD, m[c.name].isNull() & ~_present(c.name), F.lit(c.name)))
        rules.extend(_item_missing_rule(c, i, bad_type) for i in c.items if not i.nullable)
    rules.extend(
        _Rule(Reason.INVALID_FIELD, _badly_typed(c) & _is_known(c), F.lit(f"{c.name}: not a JSON {_json_type(c)}"))
        for c in contract.columns
    )
    rules.append(_Rule(Reason.INVALID_FIELD, bad_type, F.lit("an item of a list has a field of the wrong type")))
    rules.extend(
        _Rule(Reason.INVALID_FIELD, text.rlike(_not_a_string([i.name])), F.lit(f"{c.name}.{i.name}: not a JSON string"))
        for c in contract.columns
        for i in c.items
        if _reads_anything(i)
    )
    rules.append(_Rule(Reason.INVALID_FIELD, unescaped.contains("\\u0000"), F.lit("a text holds the NUL character")))
    rules.extend(_field_rules(contract.columns, m))
    rules.append(
        _Rule(
            Reason.INVALID_FIELD,
            m["entity_key"] != F.coalesce(*(m[name] for name in ENTITY_KEY_FIELDS[contract.entity])),
            F.lit(f"entity_key: not the record's {' or '.join(ENTITY_KEY_FIELDS[contract.entity])}"),
        )
    )
    rules.extend(_Rule(Reason.AMOUNT_MISMATCH, ~rule, _amount_detail()) for rule in _entity_rules(contract))
    rules.append(
        _Rule(
            Reason.FUTURE_EVENT,
            _is_future(limits),
            F.concat(
                F.lit("event_time is "),
                m["event_time"],
                F.lit(", the record arrived " if limits.tried_again_at is None else ", the record was tried again "),
                _judged_at(limits).cast("string"),
            ),
        )
    )
    order = list(Reason)
    return sorted(rules, key=lambda rule: order.index(rule.reason))


def _field_rules(columns: Iterable[Column], parent: SparkColumn) -> list[_Rule]:
    """Rules about the values of fields that are there and of the right JSON type."""
    from pyspark.sql import functions as F

    rules: list[_Rule] = []
    for c in columns:
        wire, name = parent[c.name], c.name
        spelled = _spelling_ok(wire, c)
        if c.type is ColumnType.TIMESTAMP:
            spelled = spelled & _is_time(wire, wire.try_cast("timestamp"))
        rules.append(_Rule(Reason.INVALID_FIELD, ~spelled, _shown(name, wire, c)))
        if c.type is ColumnType.DECIMAL:
            rules.append(_Rule(Reason.TOO_MANY_DECIMALS, ~wire.rlike(_decimal_pattern(c)), _shown(name, wire, c)))
        if c.type is ColumnType.LIST:
            rules.append(_Rule(Reason.INVALID_FIELD, F.exists(wire, lambda x: x.isNull()), F.lit(f"{name}: an item is null")))
            rules.extend(_item_rule(c, i) for i in c.items)
            rules.extend(_item_decimals_rule(c, i) for i in c.items if i.type is ColumnType.DECIMAL)
    return rules


def _item_missing_rule(column: Column, item: Column, bad_type: SparkColumn) -> _Rule:
    from pyspark.sql import functions as F

    def broken(x: SparkColumn) -> SparkColumn:
        return x.isNotNull() & x[item.name].isNull()

    return _Rule(Reason.MISSING_FIELD, ~bad_type & F.exists(F.col("m")[column.name], broken), F.lit(f"{column.name}.{item.name}"))


def _item_rule(column: Column, item: Column) -> _Rule:
    from pyspark.sql import functions as F

    def broken(x: SparkColumn) -> SparkColumn:
        spelled = _spelling_ok(x[item.name], item)
        if item.type is ColumnType.TIMESTAMP:
            spelled = spelled & _is_time(x[item.name], x[item.name].try_cast("timestamp"))
        return F.coalesce(~spelled, F.lit(False))

    return _Rule(Reason.INVALID_FIELD, F.exists(F.col("m")[column.name], broken), F.lit(f"{column.name}.{item.name}"))


def _item_decimals_rule(column: Column, item: Column) -> _Rule:
    from pyspark.sql import functions as F

    def broken(x: SparkColumn) -> SparkColumn:
        return F.coalesce(~x[item.name].rlike(_decimal_pattern(item)), F.lit(False))

    return _Rule(Reason.TOO_MANY_DECIMALS, F.exists(F.col("m")[column.name], broken), F.lit(f"{column.name}.{item.name}"))


def _shown(name: str, wire: SparkColumn, column: Column) -> SparkColumn:
    """Detail that names a field and, where it is short text, what it holds."""
    from pyspark.sql import functions as F

    return F.lit(name) if column.type is ColumnType.LIST else F.concat(F.lit(f"{name}: "), F.left(wire.cast("string"), F.lit(80)))


def _present(name: str) -> SparkColumn:
    """Whether the JSON object has a field that is not null."""
    from pyspark.sql import functions as F

    found = F.try_variant_get("p", f"$.r[0].{name}", "variant")
    return found.isNotNull() & ~F.is_variant_null(found)


def _badly_typed(column: Column) -> SparkColumn:
    """Whether a field is there with a JSON type that is not the contract's."""
    from pyspark.sql import functions as F

    mismatch = F.col("m")[column.name].isNull() & _present(column.name)
    if not _reads_anything(column):
        return mismatch
    found = F.try_variant_get("p", f"$.r[0].{column.name}", "variant")
    return mismatch | (_present(column.name) & (F.schema_of_variant(found) != "STRING"))


def _is_known(column: Column) -> SparkColumn:
    """Whether the schema version the message follows knows a field."""
    from pyspark.sql import functions as F

    return F.col("m")["schema_version"] >= F.lit(column.since or 1)


def _only_later_fields_differ(contract: Contract) -> SparkColumn:
    """Whether a field that came after the message's schema version is what Spark could not read in the contract's type."""
    from pyspark.sql import functions as F

    read = F.get("j.r", F.lit(0))
    later = [read[c.name].isNull() & _present(c.name) & ~_is_known(c) for c in contract.columns if c.is_later]
    return F.coalesce(reduce(lambda a, b: a | b, later, F.lit(False)), F.lit(False))


def _reads_anything(column: Column) -> bool:
    """Whether Spark's parser takes any JSON value for the field and no later test would tell: it reads 17 as the text "17"."""
    return column.type is ColumnType.STRING and column.allowed is None


def _json_type(column: Column) -> str:
    match column.type:
        case ColumnType.INT | ColumnType.LONG:
            return "integer"
        case ColumnType.BOOLEAN:
            return "boolean"
        case ColumnType.LIST:
            return "array of objects"
        case _:
            return "string"


def _suspicious(contract: Contract, text: SparkColumn) -> SparkColumn:
    """Whether the text needs a closer look: a string field that is no string, or an escape of NUL or of a surrogate.

    A quick pattern finds fields whose value is neither text nor null and whose name is not one of the contract's numbers,
    booleans and lists; only where it finds one, a dearer pattern looks for the contract's own string fields.
    """
    from pyspark.sql import functions as F

    every = [*contract.columns, *(i for c in contract.columns for i in c.items)]
    strings = sorted({c.name for c in every if _reads_anything(c)})
    others = sorted({c.name for c in every if not _reads_anything(c)} - set(strings))
    quick = rf'"(?=\s*:\s*[^"\sn])(?<!"(?:{"|".join(others)})")'
    escape = text.contains("\\u") & text.rlike(r"\\u(?:0000|[dD][89a-fA-F])")
    return F.coalesce((text.rlike(quick) & text.rlike(_not_a_string(strings))) | escape, F.lit(True))


def _not_a_string(names: list[str]) -> str:
    return rf'"(?:{"|".join(names)})"\s*:\s*[^"\sn]'


_LONE_SURROGATE = (
    r"\\u[dD][89aAbB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})" r"|(?<!\\u[dD][89aAbB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)


def _decimal_pattern(column: Column) -> str:
    """Numbers that fit the column exactly: zeros in front and behind do not count, as pydantic counts."""
    scale = column.scale or 0
    whole = (column.precision or 38) - scale
    return rf"^[+-]?(?:0*\d{{1,{whole}}}(?:\.\d{{0,{scale}}}0*)?|\.\d{{1,{scale}}}0*)\z"


def _java_pattern(pattern: str) -> str:
    """A contract's pattern for Java, where `$` would also match before a last line feed."""
    return pattern.removesuffix("$") + (r"\z" if pattern.endswith("$") else "")


def _order_rules() -> list[SparkColumn]:
    """The amount is the sum of quantity × unit price, exactly."""
    from pyspark.sql import functions as F

    zero = F.lit(0).cast("decimal(38,4)")
    total = F.aggregate(F.col("lines"), zero, lambda sum_, x: (sum_ + x["quantity"] * x["unit_price"]).cast("decimal(38,4)"))
    return [F.col("amount") == total]


_ENTITY_RULES: dict[str, Callable[[], list[SparkColumn]]] = {"order": _order_rules}


def _entity_rules(contract: Contract) -> list[SparkColumn]:
    """Conditions between typed fields that hold for a good record of the entity."""
    return _ENTITY_RULES.get(contract.entity, list)()


def _amount_detail() -> SparkColumn:
    from pyspark.sql import functions as F

    return F.concat(F.lit("amount is "), F.col("amount").cast("string"), F.lit(", the lines sum to something else"))


def _is_future(limits: Limits) -> SparkColumn:
    """Compared with the time of capture or of the replay, which are stored: a rebuild judges as the stream did."""
    from pyspark.sql import functions as F

    latest = F.unix_micros(_judged_at(limits)) + F.lit(limits.future_tolerance_seconds * 1_000_000)
    return F.unix_micros("event_time") > latest


def _judged_at(limits: Limits) -> SparkColumn:
    from pyspark.sql import functions as F

    return F.col("ingested_at") if limits.tried_again_at is None else F.lit(limits.tried_again_at)


def _all(tests: Iterable[SparkColumn]) -> SparkColumn:
    return reduce(lambda a, b: a & b, tests)
