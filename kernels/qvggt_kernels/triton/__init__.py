"""Triton kernels. Importing one of these modules imports Triton; the package itself does not."""
