"""Messages and recordings: the only place that reads and fills message fields."""
