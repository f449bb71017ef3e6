"""The sandbox processor's adapter."""
