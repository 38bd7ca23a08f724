"""Every operator in plain PyTorch: runs on any device, and is what other code is compared with."""
