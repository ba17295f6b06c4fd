"""The coordinator: the catalog in etcd, routing, placement and the controllers."""
