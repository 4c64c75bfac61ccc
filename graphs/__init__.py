"""State machines, one file per system: state, nodes, routing, builder, in that order."""
