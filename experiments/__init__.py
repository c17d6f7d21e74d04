"""One module for each result; run as `python -m experiments.NAME`, or `taskvec NAME`."""

from taskvec_jax.models import foreign

# A convert.py in the working directory must not be taken for the package the programs import.
foreign.claim("convert")
