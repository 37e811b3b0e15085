"""How the weights of a network lie on a device. `choose` replaces the layers of `sd_core.models` by their variants."""
