"""Training material, base policy, recipes and evaluation of AgeMem on MemHop."""
