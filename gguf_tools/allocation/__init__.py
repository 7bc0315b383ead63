"""Types chosen for a size, by measuring each tensor."""
