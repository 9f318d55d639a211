"""Which compiled code has been executed, and how right it was: the plans that GPUs choose, the record of it, tables of it."""
