"""The commands of `qvggt`, a file each; what is heavy is imported where it is used."""
