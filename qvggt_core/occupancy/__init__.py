"""A floor plan for navigation: where a metric, upright map is free, occupied, or unknown."""
