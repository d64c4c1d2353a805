"""What is made and killed here; the host that it happens on is `tests.root.scene`."""

from __future__ import annotations

from tests.root.scene import Repository, Scene

__all__ = ["CONTAINERS", "CREATE", "KILLED", "Repository", "Scene"]

CONTAINERS = ("kp001", "kp002", "kp003")
CREATE = ("create", "--base", "core", "--replicas", "3", "--command", "sleep infinity", "kp")
KILLED = (-9, 137)
