"""See docs/explanation/architecture.md for what this layer owns."""
