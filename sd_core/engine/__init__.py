"""Many images, one device: the thread that runs the networks, and the forwards that images share."""
