"""`python -m bench gpu`: what only a GPU can answer, in independent stages, the most telling first."""
