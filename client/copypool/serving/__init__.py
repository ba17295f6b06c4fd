"""What the node and the coordinator do alike: settings, secrets, TLS, the listener. Neither imports the other."""
