"""What the CPU computes with PyTorch in pieces that stay in a cache, without C++ of our own."""
