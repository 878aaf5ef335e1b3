"""The ground floor: errors, files, untrusted input. Nothing here imports JAX."""
