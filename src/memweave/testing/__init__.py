"""Fakes, oracles and conformance tests that users of memweave can run too."""
