"""What everything stands on: the broker and the database server, as assets whose materialization proves they answer."""
