"""Benchmarks. They are run as scripts and import each other by name; what ``gossamer bench`` needs is installed."""
