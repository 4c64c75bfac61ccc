"""Training from traces. torch is imported here and nowhere above."""
