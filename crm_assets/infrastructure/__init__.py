"""What everything stands on: the broker, the database server and the lake's store; materializing one proves that it answers."""
