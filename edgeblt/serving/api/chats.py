"""Chats as one text: a Jinja template over the messages, rendered in a sandbox."""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgeblt.errors import EdgebltError, shown
from edgeblt.serving.api.refusals import RefusedError

PLAIN = """\
{% for message in messages %}
{{ message.role }}: {{ message.content }}
{% endfor %}
{% if add_generation_prompt %}
assistant:{% endif %}
"""
PLAIN_STOP = "\nuser:"  # ends an answer under the plain template, which a base model would go on with


class ChatTemplate:
    """A template that turns messages into a prompt."""

    def __init__(self, source: str | None) -> None:
        """Read a template, None for the plain one. Raises EdgebltError for one that cannot be parsed."""
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        self.is_plain = source is None
        try:
            self._template: Template = environment.from_string(PLAIN if source is None else source)
        except TemplateError as error:
            raise EdgebltError(f"the chat template cannot be used ({error}); correct it") from None

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt for an assistant's answer to messages. Raises RefusedError where the template fails on them."""
        read = [{**message, "content": _text(message["content"])} for message in messages]
        try:
            return self._template.render(messages=read, add_generation_prompt=True, bos_token="", eos_token="")
        except RefusedError:
            raise
        except Exception as error:  # whatever the template's own code raises
            raise RefusedError(400, f"the chat template fails on these messages ({shown(error)})") from None


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _refuse(message: object) -> NoReturn:
    raise RefusedError(400, f"the chat template refuses these messages: {message}", param="messages")
