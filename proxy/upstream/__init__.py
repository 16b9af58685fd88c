"""How a registry is reached: connections, redirects, tokens and credentials. One `Upstream` for each registry."""
