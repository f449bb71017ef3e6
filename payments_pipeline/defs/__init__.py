"""Thin Dagster: partitions, resources, IO managers, one module per asset with its checks, jobs, schedules, sensors."""
