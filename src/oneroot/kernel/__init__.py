"""The door to the kernel: mounts, namespaces, trees, processes. Standard library only.

Everything here raises ``OSError`` with the path concerned; the rooms above say what it means.
"""
