"""The networks that a federation can train."""
