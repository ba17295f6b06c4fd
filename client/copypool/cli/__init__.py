"""The command line tool `copypool`: thin commands over the SDK."""
