"""One module for each result; run as `python -m experiments.NAME`."""
