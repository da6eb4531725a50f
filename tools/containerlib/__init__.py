"""What `tools/container-check` does, in parts: the engine, stand-ins for base images, the images, and the checks."""
