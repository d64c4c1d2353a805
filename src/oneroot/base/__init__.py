"""Bases: immutable, numbered versions of a root filesystem."""
