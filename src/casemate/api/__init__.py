"""The REST API: schema, server, client."""
