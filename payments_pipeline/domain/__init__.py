"""Pure money logic: frames and values in, frames and values out.

Nothing here knows Dagster, does I/O, reads the clock or the environment.
"""
