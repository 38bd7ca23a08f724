"""Training of small networks in synthetic worlds."""
