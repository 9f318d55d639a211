"""`python -m bench gpu`: what only a GPU can answer, in stages that each stand alone, the most telling first."""
