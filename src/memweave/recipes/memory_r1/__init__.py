"""Memory-R1 on DialogWorld: teachers, the base policy, and the recipes that train manager and answerer (docs/memory-r1.md)."""
