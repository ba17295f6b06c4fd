"""Plays rendered manifests as real containers: a kubelet and its controllers, as far as a chart's pods need them.

pods.py      from a Deployment, StatefulSet or Pod to the containers that they mean (pure)
engine.py    the container engine's command line
cluster.py   a cluster of them: start, kill, replace, probe, run a command inside
"""
