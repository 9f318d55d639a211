"""Measured times, a trace's or a table's, beside the roofline and the predictions: `costmodel compare` and `costmodel.measure`.

`events` reads files piece by piece, `trace` finds convolutions and their kernels in a Kineto trace, `tables` reads CSV files
and rows of `bench run`, `analysis` holds them against the model, and `show`, `page` and `drawing` say what came out.
"""
