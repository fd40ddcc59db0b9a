"""Load: synthetic shop data, replay of real data sets, and sending a shop's own records, all with a ledger of acked events."""
