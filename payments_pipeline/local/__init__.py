"""The embedded stack: what runs on one machine with nothing configured."""
