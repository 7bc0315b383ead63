"""Golden values: what any engine must compute for a model, as files that need no tinyq, and checks against them."""
