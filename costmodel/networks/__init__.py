"""Whole networks: every operator that a torch module runs, what it costs and what it sees."""
