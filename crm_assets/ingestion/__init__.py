"""How data comes in: the Kafka topics, declared, applied and watched for drift."""
