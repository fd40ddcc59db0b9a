"""The Kafka broker and the PostgreSQL server of the environment.

Belongs here: applying what an environment needs of a server (database, schemas, roles) and proving that it answers. Not
here: starting processes; the supervisor of the local stack does that.
"""

import dagster as dg

from crm_assets.conventions import KAFKA_KEY, OWNERS, POSTGRES_KEY, Group
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


assets: list[dg.AssetsDefinition] = [kafka_cluster, postgres_database]
