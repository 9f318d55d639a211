"""Converts whole models of other libraries and checks that every convolution runs on the kernels or is named, that results and
gradients are right, and that the model can be given back.

`python -m bench.models` runs what is not in `results.jsonl` yet and writes `docs/models.md`. Models are built from their
configs and never downloaded.
"""
