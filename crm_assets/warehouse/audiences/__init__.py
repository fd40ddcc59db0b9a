"""Audiences: declared in `dbt/audiences.yml`, kept as members and changes by dbt, exported to whoever writes to the customers.

`declarations` reads and checks the yml and writes what dbt reads of it; `identities` says how a customer is called outside; `reconcile`
decides what an export has to send; `ledger` keeps what was sent; `destinations` sends it; `export` puts these together for the command
(`cli`) and the job (`job`).
"""
