"""What a request is refused with."""

from __future__ import annotations


class ApiError(Exception):
    """An answer with an error."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
