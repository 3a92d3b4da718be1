"""Client, image, instance: the smallest interface."""

from __future__ import annotations

from llmasos import Client, aio


def blocking(place: str) -> list[str]:
    with Client(place) as client:
        instance = client.create_instance(client.load_image("tiny"), name="predictor")
        return [instance.predict("Copy this list: red, green"), client.predict(instance, "Who are you?", max_tokens=6)]


async def awaited(place: str) -> list[str]:
    async with aio.Client(place) as client:
        instance = await client.create_instance(await client.load_image("tiny"), name="predictor")
        first = await instance.predict("Copy this list: red, green")
        return [first, await client.predict(instance, "Who are you?", max_tokens=6)]
