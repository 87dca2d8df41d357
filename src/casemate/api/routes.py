"""The table of all routes; the OpenAPI document is generated from it."""

from __future__ import annotations

from casemate.api import attach, routes_containers, routes_files, routes_images, routes_pods, routes_system

ROUTES = (
    *routes_system.ROWS,
    *routes_containers.ROWS,
    *routes_files.ROWS,
    *routes_pods.ROWS,
    *routes_images.ROWS,
)
SOCKETS = attach.SOCKETS
