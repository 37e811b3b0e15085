"""From a request to its images, as coroutines that ask for the work they need."""
