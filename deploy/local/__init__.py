"""The local profile: embedded Kafka, PostgreSQL, Spark driver and Dagster under one supervisor, on loopback."""
