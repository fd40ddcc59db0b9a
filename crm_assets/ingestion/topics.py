"""Topics as desired state: materializing creates or alters, a check shows drift, offsets are observations."""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime

import dagster as dg

from crm_assets.conventions import KAFKA_KEY, OWNERS, Group, topic_key
from crm_resources.contracts import Contract, contracts
from crm_resources.dagster_resources import SettingsResource


def topic_asset(contract: Contract) -> dg.AssetsDefinition:
    """The topic of one entity; a materialization applies its declaration and changes nothing when it already holds."""

    @dg.asset(
        key=topic_key(contract.plural),
        deps=[KAFKA_KEY],
        group_name=Group.INGESTION.value,
        kinds={"kafka"},
        owners=OWNERS,
        description=f"Kafka topic of the {contract.plural}. {contract.description} Key: see the guide to producing.",
        metadata={"entity": contract.entity, "json_schema": f"crm_resources/contracts/json_schema/{contract.entity}.schema.json"},
        check_specs=[
            dg.AssetCheckSpec(
                "no_drift", asset=topic_key(contract.plural), description="The topic is as declared right after it was applied."
            )
        ],
    )
    def topic(context: dg.AssetExecutionContext, settings: SettingsResource) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
        from crm_resources import kafka

        loaded = settings.load()
        spec = next(s for s in kafka.topic_specs(loaded) if s.plural == contract.plural)
        applied = kafka.ensure(loaded, [spec])
        left = kafka.plan([spec], kafka.observe(loaded, [spec.name]))
        context.log.info("%s: %s", spec.name, "; ".join(applied.describe()) or "nothing to change")
        yield dg.MaterializeResult(
            metadata={"topic": spec.name, "declared": asdict(spec), "changes": applied.describe()},
            check_results=[
                dg.AssetCheckResult(check_name="no_drift", passed=left.is_empty, metadata={"drift": left.describe()}),
            ],
        )

    return topic


def topic_sensor() -> dg.SensorDefinition:
    """Observes end offsets once a minute, and drift with them; says nothing when nothing moved."""

    @dg.sensor(
        name="topic_offsets",
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Reports each topic's end offsets as an observation when they moved, and drift from the declaration as a check.",
    )
    def topic_offsets(context: dg.SensorEvaluationContext, settings: SettingsResource) -> dg.SensorResult | dg.SkipReason:
        import json

        from crm_resources import kafka

        loaded = settings.load()
        seen: dict[str, str] = json.loads(context.cursor) if context.cursor else {}
        specs = kafka.topic_specs(loaded)
        observed = kafka.observe(loaded, [s.name for s in specs])
        events: list[dg.AssetObservation | dg.AssetCheckEvaluation] = []
        for spec in specs:
            drift = kafka.plan([spec], observed)
            ends = kafka.offsets(loaded, spec.name) if spec.name in observed else {}
            now = json.dumps({"ends": {p: high for p, (_, high) in sorted(ends.items())}, "drift": drift.describe()})
            if seen.get(spec.name) == now:
                continue
            seen[spec.name] = now
            key = topic_key(spec.plural)
            events.append(
                dg.AssetObservation(
                    key,
                    metadata={
                        "records": sum(high - low for low, high in ends.values()),
                        "end_offsets": {str(p): high for p, (_, high) in ends.items()},
                        "observed_at": dg.MetadataValue.timestamp(datetime.now(UTC)),
                    },
                )
            )
            events.append(
                dg.AssetCheckEvaluation(
                    asset_key=key,
                    check_name="no_drift",
                    passed=drift.is_empty,
                    metadata={"drift": dg.MetadataValue.json(drift.describe())},
                )
            )
        if not events:
            return dg.SkipReason("no topic moved")
        return dg.SensorResult(asset_events=events, cursor=json.dumps(seen))

    return topic_offsets


assets: list[dg.AssetsDefinition] = [topic_asset(contract) for contract in contracts()]
sensors: list[dg.SensorDefinition] = [topic_sensor()]
