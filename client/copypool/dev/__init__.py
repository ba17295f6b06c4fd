"""A whole cluster on one machine, for trying out, tests and the demo: real processes, real etcd, loopback only.

layout.py      what belongs to a cluster folder: names, ports, paths (pure)
settings.py    the configuration file of every process, and the client profile (pure)
processes.py   detached processes: start, recognise, signal, wait
etcd_binary.py where etcd is
probes.py      is it ready? one small HTTP call
supervisor.py  up, down, start, kill: the library; knows no command line
commands.py    `copypool dev ...`
demo.py        `copypool dev demo`: the main job, with figures
"""
