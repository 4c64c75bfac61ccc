"""Machines: one `<name>.toml` per machine, in this folder; `memweave.agents.cognition` reads them."""
