"""Images that lie on no disk of this machine: where they are, what is kept of them here, and how they are read."""
