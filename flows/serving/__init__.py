"""What runs by itself: servers, workers, deployments, and the folder watcher."""
