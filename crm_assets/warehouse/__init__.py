"""The warehouse: silver loaded into PostgreSQL, and the dbt models over it."""
