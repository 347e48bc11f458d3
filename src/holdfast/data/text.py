"""What a reader sees of a prompt or a response."""

from __future__ import annotations

import json

from holdfast.data.records import Content, Segment


def plain_text(content: Content) -> str | None:
    """What a reader sees of a prompt or response: the text, or the messages' contents; None for a segment of an
    episode.
    """
    if content is None or isinstance(content, Segment):
        return None
    if isinstance(content, str):
        return content
    messages = content.get("messages", []) if isinstance(content, dict) else content
    parts = []
    for message in messages:
        said = message.get("content")
        parts.append(said if isinstance(said, str) else "" if said is None else json.dumps(said, ensure_ascii=False))
        if message.get("tool_calls"):
            parts.append(json.dumps(message["tool_calls"], ensure_ascii=False))
    return "\n".join(parts)


def transcript(content: Content) -> str:
    """A prompt as a reader should see it: who says what, where there are several turns."""
    messages = content.get("messages", []) if isinstance(content, dict) else content
    if not isinstance(messages, list):
        return plain_text(content) or ""
    if len(messages) == 1 and messages[0].get("role") == "user":
        return plain_text(messages) or ""
    return "\n\n".join(f"{str(m.get('role', '')).capitalize()}: {plain_text([m])}" for m in messages)
