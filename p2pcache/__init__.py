"""A peer-to-peer, content-addressed cache for AI model files."""

__version__ = "0.1.0"
