"""Pages and interfaces on this machine: what `melete serve`, `melete label` and `melete watch` stand on.

Needs the extra `serve`. A server answers this machine alone unless it has a token.
"""
