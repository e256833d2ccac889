"""Unattended builds: the local stack of a server and a worker, deployments, and the folder watcher."""
