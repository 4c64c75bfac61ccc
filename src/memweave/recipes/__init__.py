"""Training runs with a name: `memweave train RECIPE`."""
