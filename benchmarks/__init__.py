"""Benchmarks that anybody can run: `make bench` prints one JSON object a line."""
