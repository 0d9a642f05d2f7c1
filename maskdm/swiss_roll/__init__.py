"""The paper's Figure 1: two coordinates as two tokens."""
