"""oneroot: one root filesystem, many containers, patched once."""

__version__ = "0.1.0"
