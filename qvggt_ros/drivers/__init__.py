"""What drives a session: a node, a recording, a DDS participant, many recordings."""
