"""What is kept on disk: states of server and clients, and the run folder."""
