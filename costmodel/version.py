"""The version of the distribution, which setuptools reads too: `tritonconv` and `costmodel` have one version."""

__version__ = "0.1.0"
