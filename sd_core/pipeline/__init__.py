"""One job's life: from the request to conditioning, latents and pictures."""
