"""Many pictures, one device: the thread that draws, and the forwards that they share."""
