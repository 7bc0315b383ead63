"""The search for layer surgeries that score well: candidates, their measurement in stages, and the study that holds them."""
