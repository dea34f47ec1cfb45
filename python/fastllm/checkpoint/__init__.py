"""Checkpoint directories: config.json, safetensors files, the hub. Everything is checked before it is used."""
