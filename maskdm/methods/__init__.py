"""Methods that train on fewer tokens: which tokens each block sees, and what is predicted for which of them.

A file a method, named like it; `docs/adding-a-method.md` shows how to add one. `method` has what they share, `masks`
draws.
"""
