"""What watches the platform: the audit, checks, the refresh sensor and upkeep."""
