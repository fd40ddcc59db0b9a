"""The Kafka broker, the PostgreSQL server and the lake's store of the environment.

Belongs here: applying what an environment needs of a server (database, schemas, roles) and proving that it answers. Not
here: starting processes; the supervisor of the local stack does that.
"""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from crm_assets.conventions import KAFKA_KEY, LAKE_STORE_KEY, OWNERS, POSTGRES_KEY, Group
from crm_resources.dagster_resources import SettingsResource


@dg.asset(
    key=KAFKA_KEY,
    group_name=Group.INFRASTRUCTURE.value,
    kinds={"kafka"},
    owners=OWNERS,
    description="The Kafka cluster all topics live on. Materializing asks it who it is.",
)
def kafka_cluster(settings: SettingsResource) -> dg.MaterializeResult[None]:
    """Describe the cluster; fails when no broker answers."""
    from crm_resources.kafka import describe_cluster

    cluster = describe_cluster(settings.load())
    return dg.MaterializeResult(metadata={"cluster_id": cluster.cluster_id, "brokers": list(cluster.brokers), "topics": cluster.topics})


@dg.asset(
    key=POSTGRES_KEY,
    group_name=Group.INFRASTRUCTURE.value,
    kinds={"postgres"},
    owners=OWNERS,
    description="The warehouse database: schemas, raw tables from the contracts, the read-only role. Materializing applies them.",
)
def postgres_database(settings: SettingsResource) -> dg.MaterializeResult[None]:
    """Bring the database to what the loader expects."""
    from crm_resources.warehouse import prepare, server_version

    loaded = settings.load()
    prepare(loaded)
    return dg.MaterializeResult(metadata={"database": loaded.database, "version": server_version(loaded)})


@dg.asset(
    key=LAKE_STORE_KEY,
    group_name=Group.INFRASTRUCTURE.value,
    kinds={"s3"},
    owners=OWNERS,
    description="What the lake stands on: a folder of this machine, or a bucket. Materializing proves that it is there and safe to write.",
    check_specs=[
        dg.AssetCheckSpec(
            "conditional_put",
            asset=LAKE_STORE_KEY,
            blocking=True,
            description="Of several writers that race for an object exactly one wins. A store that fails this would lose Delta commits; "
            "the stream refuses to start on it.",
        )
    ],
)
def lake_store(settings: SettingsResource) -> Iterator[dg.MaterializeResult[None]]:
    """Try the store; fails when it does not answer, and fails the check when it lets two writers win."""
    from crm_resources.object_store import ObjectStore, probe_races

    loaded = settings.load()
    if not loaded.lake_on_object_store:
        folder = Path(loaded.lake_root)
        folder.mkdir(parents=True, exist_ok=True)
        reason = "a folder of this machine: the operating system's lock keeps other writers out"
        check = dg.AssetCheckResult(check_name="conditional_put", passed=True, metadata={"reason": reason})
        yield dg.MaterializeResult(metadata={"dagster/uri": loaded.lake_root}, check_results=[check])
        return
    store = ObjectStore(loaded, attempts=1)
    store.demand()
    races = probe_races(store)
    check = dg.AssetCheckResult(
        check_name="conditional_put", passed=all(race.passed for race in races), metadata={race.kind: str(race) for race in races}
    )
    metadata = {"dagster/uri": loaded.lake_root, "endpoint": loaded.s3_endpoint or f"AWS S3 in {loaded.s3_region}"}
    yield dg.MaterializeResult(metadata=metadata, check_results=[check])


assets: list[dg.AssetsDefinition] = [kafka_cluster, postgres_database, lake_store]
