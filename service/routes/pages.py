"""What a browser opens: the static page, and the API described."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse
from starlette.staticfiles import StaticFiles

from service.docs import render

WEB = Path(__file__).resolve().parent.parent / "web"

router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])
def front_page() -> Response:
    """The page, always asked for anew: what it loads may have changed with it."""
    if not (WEB / "index.html").is_file():
        raise HTTPException(404)
    return FileResponse(WEB / "index.html", headers={"Cache-Control": "no-cache"})


@router.get("/docs")
def docs_page(request: Request) -> Response:
    """The API described, with nothing from another machine in it."""
    policy = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return HTMLResponse(render(request.app.openapi()), headers=policy)


class WebFiles(StaticFiles):
    """The page's files, asked for anew each time: after an upgrade no old module may meet a new one."""

    def file_response(self, *args: Any, **given: Any) -> Response:
        """As Starlette answers, 304 where nothing changed."""
        response = super().file_response(*args, **given)
        response.headers["Cache-Control"] = "no-cache"
        return response


def mount_web(app: FastAPI) -> None:
    """Serve the page's files, if there are any."""
    if WEB.is_dir():
        app.mount("/web", WebFiles(directory=WEB), name="web")
