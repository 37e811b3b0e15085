"""The bundled demo model: what it was trained on, how, and how its pictures are judged."""
