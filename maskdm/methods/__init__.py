"""Which tokens a phase shows to the network."""
