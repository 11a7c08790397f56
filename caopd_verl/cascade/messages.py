"""Chat-completion requests and responses as the proxy reads and rewrites them; no network here.

A request of the client's is refused (`BadRequest`), sent to the large model alone (`only_large`),
or asked of the small one first. The large model always gets the client's request with nothing
changed but the model's name.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from caopd_verl.core.confidence import ParsedConfidence, parse
from caopd_verl.data.prompts import CONFIDENCE_INSTRUCTION

Body = dict[str, Any]
Message = dict[str, Any]
RefusalCode = Literal["bad_request", "model_not_found", "body_too_large"]
NotForSmall = Literal["tools", "response_format"]

_DONE = b"[DONE]"
_LAST_LINE = f"End your response with this line:\n{CONFIDENCE_INSTRUCTION}"


class BadRequest(Exception):
    """A request that can't be routed; `status` and `code` as OpenAI's errors have them."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        status: int = 400,
        code: RefusalCode = "bad_request",
    ):
        super().__init__(message)
        self.message = message
        self.param = param
        self.status = status
        self.code = code


class BadResponse(Exception):
    """A response of status 200 that is no chat completion with one choice."""


def error_body(message: str, *, code: str, param: str | None = None) -> bytes:
    """An error in OpenAI's form."""
    error = {"message": message, "type": "caopd_proxy", "param": param, "code": code}
    return json.dumps({"error": error}).encode()


def read_request(raw: bytes, *, model: str) -> Body:
    """The client's request.

    Args:
        raw: the body as it came.
        model: the only name that this proxy answers to.

    Raises:
        BadRequest: no JSON object, another model's name, no messages, more than one answer wanted.
    """
    try:
        body = json.loads(raw)
    # RecursionError: thousands of brackets, which would otherwise end as an error of the server's.
    except (ValueError, RecursionError) as error:
        raise BadRequest(
            f"the body is no JSON ({type(error).__name__}); expected: a chat completion request"
        ) from None
    if not isinstance(body, dict):
        raise BadRequest("the body is no JSON object; expected: a chat completion request")
    if body.get("model") != model:
        raise BadRequest(
            f"there is no model {body.get('model')!r} here; expected: {model!r}",
            param="model",
            status=404,
            code="model_not_found",
        )
    if not _are_messages(body.get("messages")):
        raise BadRequest(
            "there are no messages; expected: a list with at least one message", param="messages"
        )
    if body.get("n") not in (None, 1):
        raise BadRequest(
            f"n = {body['n']!r}: a query is routed by the confidence of one answer; "
            "expected: n = 1, or n requests",
            param="n",
        )
    if "stream" in body and not isinstance(body["stream"], bool | None):
        raise BadRequest(f"stream = {body['stream']!r}; expected: true or false", param="stream")
    return body


def _are_messages(value: object) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(message, dict) for message in value)


def only_large(body: Body) -> NotForSmall | None:
    """Why this request can't be judged by a confidence line at the end of a text, or None.

    A tool call is no text, and a text in a prescribed format (JSON) has no room for the line.
    """
    if body.get("tools") or body.get("functions"):
        return "tools"
    form = body.get("response_format")
    if form is not None and form != {"type": "text"}:
        return "response_format"
    return None


def for_small(body: Body, *, model: str, instruction: bool) -> bytes:
    """The request as the small model gets it, with the confidence instruction where it has none.

    The instruction goes to the end of the first message where that is the system's (or the
    developer's), and into a new system message otherwise.
    """
    messages = body["messages"]
    # As JSON, since a message's content may be a text or a list of parts.
    if instruction and CONFIDENCE_INSTRUCTION not in json.dumps(messages, ensure_ascii=False):
        messages = _with_instruction(messages)
    return json.dumps({**body, "messages": messages, "model": model}).encode()


def _with_instruction(messages: list[Message]) -> list[Message]:
    # New messages: the large model may get the client's own afterwards.
    first, *others = messages
    content = first.get("content")
    from_system = first.get("role") in ("system", "developer")
    if from_system and isinstance(content, str):
        return [{**first, "content": f"{content.rstrip()}\n\n{_LAST_LINE}"}, *others]
    if from_system and isinstance(content, list):
        part = {"type": "text", "text": _LAST_LINE}
        return [{**first, "content": [*content, part]}, *others]
    return [{"role": "system", "content": _LAST_LINE}, *messages]


def for_large(body: Body, *, model: str) -> bytes:
    """The client's own request, for the large model."""
    return json.dumps({**body, "model": model}).encode()


def confidence_of(raw: bytes, *, stream: bool) -> ParsedConfidence:
    """The confidence that the small model's response (JSON, or server-sent events) states.

    Raises:
        BadResponse: the response is none, is cut off, or holds an error or several choices.
    """
    return parse(_streamed_text(raw) if stream else _text(raw))


def _text(raw: bytes) -> str:
    choices = _choices(raw)
    if len(choices) != 1:
        raise BadResponse(f"{len(choices)} choices")
    return _content(choices[0], "message")


def _streamed_text(raw: bytes) -> str:
    """The text of a stream; server-sent events: lines `data: JSON`, the last one `data: [DONE]`."""
    parts: list[str] = []
    done = False
    for line in raw.splitlines():
        field, _, value = line.partition(b":")
        if field != b"data":
            continue  # comments, event names
        if value.strip() == _DONE:
            done = True
            continue
        # The chunk that tells the usage has no choices.
        for choice in _choices(value):
            if isinstance(choice, dict) and choice.get("index", 0) != 0:
                raise BadResponse("several choices")
            parts.append(_content(choice, "delta"))
    if not done:
        raise BadResponse("the stream ends before [DONE]")
    return "".join(parts)


def _choices(raw: bytes) -> list[Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadResponse(f"no JSON ({type(error).__name__})") from None
    if not isinstance(value, dict) or not isinstance(value.get("choices"), list):
        raise BadResponse("no choices")
    return value["choices"]


def _content(choice: Any, key: Literal["message", "delta"]) -> str:
    message = choice.get(key) if isinstance(choice, dict) else None
    if not isinstance(message, dict) or not isinstance(message.get("content"), str | None):
        raise BadResponse(f"a choice without a {key}")
    return message.get("content") or ""
