"""The endless stream: raw records into bronze, bronze into typed silver, dead letters and dropped duplicates.

`transform` says what a record is, `history` what counts as a duplicate, `ingest` and `refine` are the two steps, and
`driver`, `catch_up` and `rebuild` are the three ways to run them. Dagster's view of it is in `assets`.
"""
