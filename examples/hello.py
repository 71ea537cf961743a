"""A first agent.

warren up examples.hello:app
warren submit greet --payload '{"name": "Ada"}' --wait
"""

from pydantic import BaseModel

from warren import Context, Warren

app = Warren()


class Person(BaseModel):
    """Who is to be greeted."""

    name: str


@app.agent("greet", timeout=10)
async def greet(person: Person, ctx: Context) -> str:
    """Greet one person."""
    ctx.log.info("greeting", name=person.name)
    return f"Hello, {person.name}!"
