"""
Owns the settings of property tests.

Knows nothing of single tests.
Invariants: no example fails for being slow: a busy machine is not a bug.
Source: hypothesis, "settings profiles".
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("p2pcache", deadline=None, print_blob=True)
settings.load_profile("p2pcache")
