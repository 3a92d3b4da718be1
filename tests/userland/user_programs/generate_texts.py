"""LLM: one text, several as one batch, a stream, and beams."""

from __future__ import annotations

from llmasos import LLM, System, aio


def blocking(place: str) -> list[str]:
    with System.connect(place) as system:
        llm = LLM.from_pretrained("tiny", system=system, timeout=60)
        one: str = llm.generate("Once upon a time", max_new_tokens=6)
        several: list[str] = llm.generate(["Once there was", "One day the"], max_new_tokens=6)
        streamed = "".join(llm.stream("Once upon a time", 6))
        best = llm.generate("Once upon a time", max_new_tokens=4, num_beams=2)
        return [one, *several, str(streamed == one), best]


async def awaited(place: str) -> list[str]:
    async with aio.System.connect(place) as system:
        llm = await aio.LLM.from_pretrained("tiny", system=system, timeout=60)
        one: str = await llm.generate("Once upon a time", max_new_tokens=6)
        several: list[str] = await llm.generate(["Once there was", "One day the"], max_new_tokens=6)
        streamed = "".join([piece async for piece in llm.stream("Once upon a time", 6)])
        best = await llm.generate("Once upon a time", max_new_tokens=4, num_beams=2)
        return [one, *several, str(streamed == one), best]
