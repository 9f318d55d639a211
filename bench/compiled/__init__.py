"""Which compiled code has been executed, and whether it was right: the plans that GPUs choose, the record, and its tables."""
