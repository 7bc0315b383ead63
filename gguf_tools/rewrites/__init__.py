"""Exact algebraic rewrites: a Model into another Model that computes the same function, in a form a target has.

Each is proved by its own test, which runs the reference before and after. All factors are powers of two, or the rewrite
says what it rounds.
"""
