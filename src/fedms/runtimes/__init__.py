"""What executes an algorithm: the one round loop, and the clients behind it."""
