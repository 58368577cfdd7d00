"""Models of a run over HTTP: all clients', in one process, over one foundation model.

`app.make_app` is an ASGI application; `server.serve` is what `fedms serve` runs.
"""
