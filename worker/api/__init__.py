"""The form of a job and of its response: names, limits, words."""
