"""Exact algebraic rewrites: each turns a Model into one that computes the same function, in a form that a target supports.

A test of each runs the reference before and after. Factors are powers of two, which are exact in binary floating point;
a rewrite with other factors documents what it rounds.
"""
