"""Across machines: the app that Flower runs, what a server does in it, and a site's own process."""
