"""Whole models of others, converted: every convolution on the kernels or named, right forward and backward, given back.

`python -m bench.models` runs what is not in `results.jsonl` yet and writes `docs/models.md`; models are built from their
configs, never downloaded.
"""
