"""The REST API: routes, server, OpenAPI; its values are in casemate.spec.api."""
