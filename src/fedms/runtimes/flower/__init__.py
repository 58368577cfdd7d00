"""Flower between machines: the only part that imports it, and no algorithm.

`sites` is the server's side: the round loop asks it for updates as it asks a `Simulator`. `relay`
is a site's: Flower starts a process for every message, which hands it to the one that has the
foundation model. `records` turns fedms' messages into Flower's.
"""
