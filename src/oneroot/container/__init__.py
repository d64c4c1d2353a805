"""Containers: declared, made, started, stopped, looked at."""
