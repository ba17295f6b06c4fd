"""A small Kubernetes API server for tests of the chart: Helm's engine installs, upgrades and rolls back against it.

kinds.py     which kinds there are, and the discovery documents that tell clients
merging.py   merge patches and server-side apply (pure)
rules.py     what the real server refuses: objects off their schema, changes of immutable fields (pure)
store.py     objects, revisions, watches, and controllers that finish at once
server.py    HTTP

It proves what a chart sends and whether an API server takes it; not scheduling, defaulting, RBAC or eviction.
"""
