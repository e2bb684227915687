"""The server side of tellapart: data, losses, resumable loops and measurements. Nothing imports it but the CLI."""
