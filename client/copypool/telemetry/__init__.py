"""What both servers and the SDK tell about themselves: metrics, log records, trace ids, spans.

`metrics` and `tracing` are pure; `logs`, `process` and `spans` are thin shells over the standard library. Nothing
here knows a node, a coordinator or a route. What is counted is declared in the servers' own `metrics` modules.
"""
