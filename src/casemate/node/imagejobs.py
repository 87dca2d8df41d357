"""The image worker as the node starts it: with an observer that lists what is in each layer that is converted."""

from __future__ import annotations

from functools import partial

from casemate.image import client

#: Its own module, so that casemated itself loads neither the worker nor the scanner.
run_job = partial(client.run_job, module="casemate.node.image_worker")
