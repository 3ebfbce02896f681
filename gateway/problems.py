"""Problem documents as HTTP answers (RFC 9457)."""

import orjson
from starlette.requests import Request
from starlette.responses import Response

from gateway.errors import Problem, StoreUnavailable

MEDIA_TYPE = "application/problem+json"


def problem_response(problem: Problem) -> Response:
    return Response(orjson.dumps(problem.document()), problem.status, dict(problem.headers), MEDIA_TYPE)


def unavailable(error: StoreUnavailable) -> Problem:
    """The store cannot do it now: whether the request was stored is unknown, send it again."""
    headers = {"Retry-After": str(error.retry_after_s)}
    detail = "The store does not answer. Whether this was stored is unknown: send it again."
    return Problem(503, "unavailable", "Try again later", detail, headers=headers)


async def on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return problem_response(error)


async def on_unavailable(request: Request, error: Exception) -> Response:
    assert isinstance(error, StoreUnavailable)
    return problem_response(unavailable(error))


async def on_http(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405 in the same form."""
    status = getattr(error, "status_code", 500)
    word, title = {404: ("not-found", "Not found"), 405: ("method", "Method not allowed")}.get(
        status, ("error", "Error")
    )
    headers = getattr(error, "headers", None)
    return problem_response(Problem(status, word, title, headers=headers))


async def on_fault(request: Request, error: Exception) -> Response:
    """Anything unexpected: logged by the server, and nothing of it told."""
    return problem_response(Problem(500, "fault", "The gateway failed", "Try again; the operators were told."))
