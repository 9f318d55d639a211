"""Convolutions in symbols: closed forms with their derivations (sympy), and the size relation solved for any of its numbers."""
