"""How the weights of a network lie on a device. `choose` replaces layers of `sd_core.models` by variants."""
