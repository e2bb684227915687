"""The server side: data, losses, resumable loops, measurements. Nothing imports it but the CLI."""
