"""Functions that replace several calls of torch, timed beside those calls: `python -m bench chains`."""
