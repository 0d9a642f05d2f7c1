"""What makes the documentation: hooks of MkDocs, and the tables that come from the code."""
