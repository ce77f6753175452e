"""``trivet serve``: the models of a run, or any model, behind OpenAI's protocol on loopback."""

from __future__ import annotations

from data.common import loopback
from pipelines.cli.exit_codes import until_stopped
from pipelines.run.chat_models import open_speakers
from pipelines.run.openai_api import Application

MESSAGE = """{target} responds at {address}v1, for this machine only; Ctrl-C ends it.
Models: {names}; {default} where a request names none.

  curl {address}v1/chat/completions -H "Content-Type: application/json" \\
       -d '{{"messages": [{{"role": "user", "content": "hello"}}]}}'

  from openai import OpenAI
  client = OpenAI(base_url="{address}v1", api_key="none")
"""


def serve(target: str, stage: str | None, port: int) -> None:
    """Serve until Ctrl-C."""
    room = open_speakers(target, stage)
    with loopback.serving(Application(room, target), port) as address:
        names = [speaker.name for speaker in room.speakers]
        for text in room.left_out:
            print(text)
        print(
            MESSAGE.format(target=target, address=address, names=", ".join(names), default=names[-1]),
            flush=True,
        )
        until_stopped()
