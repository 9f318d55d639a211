"""The plain convolutions with a prologue: y = act((conv(before(x), w) + b) * scale + shift + residual), with before(x) =
act(x * rstd * scale + shift) of a `tritonconv.Prologue`.

`costmodel.ahead` chooses whether the kernel does this to the pixels that it gathers (`tritonconv.kernels.padded`), or a kernel
before it writes before(x) once.
"""
