"""
Owns the crash harness: faults put into the real engine, and an oracle that knows the truth.

Knows nothing of how the store works inside; fault points are found at run time.
Invariants: what this machine cannot inject is reported by name; every failure has a seed and a
command that plays it again.
Source: reliability.md §3; docs/reliability.md for the figures.
"""
