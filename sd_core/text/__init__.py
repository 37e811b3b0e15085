"""From a prompt to the hidden states that the UNet looks at."""
