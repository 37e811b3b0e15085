"""The bundled demo model: its data set, its training, and how its images are judged."""
