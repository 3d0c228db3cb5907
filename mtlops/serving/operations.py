"""The two ports beside the clients': admin (live, ready, status, drain) and metrics."""

from collections.abc import Callable
from typing import Any

from mtlops.serving import metrics
from mtlops.serving.asgi import Application, Request, Response, as_json, check_token, no_such
from mtlops.serving.batching import Batcher
from mtlops.serving.service import Service


def admin_application(
    service: Service, *, status: Callable[[], dict[str, Any]], drain: Callable[[], None], token: str | None
) -> Application:
    """Returns the application of the admin port.

    Args:
        service: answers.
        status: what GET /status shows of the follower.
        drain: what POST /drain does.
        token: that /status and /drain ask for.
    """

    async def handle(request: Request) -> Response:
        if (request.method, request.path) == ("GET", "/live"):
            return as_json({"live": True})
        if (request.method, request.path) == ("GET", "/ready"):
            return as_json({"ready": service.is_ready}, status=200 if service.is_ready else 503)
        check_token(request, token)
        if (request.method, request.path) == ("GET", "/status"):
            return as_json({"ready": service.is_ready, "draining": service.is_draining, **status()})
        if (request.method, request.path) == ("POST", "/drain"):
            drain()
            return as_json({"draining": True}, status=202)
        raise no_such(request)

    return Application(handle)


def metrics_application(found: metrics.Metrics, batcher: Batcher) -> Application:
    """Returns the application of the metrics port."""

    async def handle(request: Request) -> Response:
        if (request.method, request.path) != ("GET", "/metrics"):
            raise no_such(request)
        found.queue_rows.set(batcher.waiting_rows)
        return Response(found.page(), content_type=metrics.CONTENT_TYPE.encode())

    return Application(handle)
